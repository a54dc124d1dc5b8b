"""The broker of next_steps/security as a process, with credentials of its own."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

from broker import ROOT, Broker
from confluent_kafka.admin import AdminClient

COMPOSE_FILE = ROOT / "next_steps" / "security" / "docker-compose.yml"


class Secured:
    """A broker as the Compose file says, with the credentials of its users in `folder`.

    `settings` are KAFKA_* variables that win over those of the file.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.run("make_credentials")
        named = {
            "KAFKA_SSL_KEYSTORE_LOCATION": folder / "broker" / "kafka.pem",
            "KAFKA_SSL_TRUSTSTORE_LOCATION": folder / "broker" / "ca.pem",
        }
        self.broker = Broker(folder / "data", COMPOSE_FILE, settings=named | settings)
        self.servers = self.broker.bootstrap
        self.passwords: set[str] = set()
        for file in folder.glob("*.properties"):
            self.adapt(file)

    def adapt(self, file: Path) -> None:
        """Let the file have this broker's ports in place of those of the Compose file."""
        text = file.read_text()
        for port in ("19092", "9092"):
            text = text.replace(f"=localhost:{port}\n", f"=127.0.0.1:{self.broker.port(port)}\n")
        file.write_text(text)
        self.passwords.update(re.findall("sasl.password=(.*)", text))

    def file(self, user: str) -> Path:
        """Return the properties file of a user."""
        return self.folder / f"{user}.properties"

    def client(self, user: str, **changes: str) -> dict[str, str]:
        """Return the properties of a user, with changes; a name of them has _ in place of each dot."""
        lines = self.file(user).read_text().splitlines()
        found = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        return found | {name.replace("_", "."): value for name, value in changes.items()}

    def changed(self, user: str, **changes: str) -> Path:
        """Return a file with the properties of a user, with changes."""
        file = self.folder / f"{user}-changed.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in self.client(user, **changes).items()))
        return file

    @functools.cached_property
    def admin(self) -> AdminClient:
        """A client that may do all."""
        return AdminClient(self.client("apply"))

    def apply(self, *flags: str) -> list[str]:
        """Return what next_steps.security.apply printed."""
        return self.run("apply", "-F", str(self.file("apply")), *flags)

    def run(self, module: str, *flags: str) -> list[str]:
        """Return what a command of the step printed, with this folder."""
        command = [sys.executable, "-m", f"next_steps.security.{module}", "--directory", str(self.folder), *flags]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.splitlines()
