"""Run the broker of docker-compose.yml without Docker: the same Kafka and settings, as a Java process.

    python tests/broker.py                               in place of `docker-compose up`, until Ctrl-C
    python tests/broker.py -- python producer.py         for one command, then stop the broker
    python tests/broker.py --file FILE --service NAME    the broker of another Compose file

Needs Java 17 or newer and Maven, which fetches Kafka from Maven Central once. The orders stay in .kafka.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
HOME = ROOT / ".kafka"
JAVA = os.path.join(os.environ["JAVA_HOME"], "bin", "java") if "JAVA_HOME" in os.environ else "java"
START_LIMIT = 120  # seconds; a loaded machine with 2 cores takes 30
STOP_LIMIT = 30  # seconds


def read_service(file: Path, name: str) -> dict[str, Any]:
    """Return one service of a Compose file, each ${VARIABLE:-default} replaced as Compose does it."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1]) or m[2], file.read_text("utf-8"))
    return yaml.safe_load(text)["services"][name]


def image_version(service: dict[str, Any]) -> str:
    """Return the version in the tag of the service's image."""
    return re.search(r":(\d+\.\d+\.\d+)", service["image"])[1]


def missing() -> str | None:
    """Return what to install before a broker can be started here, None if it is all there."""
    if shutil.which("mvn") and shutil.which(JAVA):
        version = subprocess.run([JAVA, "-version"], capture_output=True, text=True).stderr
        if (number := re.search(r'version "(\d+)', version)) and int(number[1]) >= 17:
            return None
    return "Java 17 or newer and Maven (Debian: apt-get install default-jre-headless maven)"


def fetch(version: str) -> Path:
    """Return the folder with the jars of this Kafka version, which Maven fills at the first call."""
    jars = HOME / "jars" / version
    if not (jars / "complete").exists():
        print(f"Fetching Kafka {version} from Maven Central, once", file=sys.stderr)
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={jars}", f"-Dkafka.version={version}"]
        pom = Path(__file__).with_name("pom.xml")
        subprocess.run(
            [shutil.which("mvn"), "-q", "-B", "-Dstyle.color=never", "-f", pom, *copy], check=True, stdout=sys.stderr
        )
        (jars / "complete").touch()
    return jars


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody uses, now or when a broker on it restarts.

    Hence below the range from which systems give out ports by themselves (from 32768 on Linux, 49152 elsewhere).
    """
    while True:
        port = random.randrange(20_000, 32_768)  # noqa: S311
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


class Broker:
    """One broker process: the image's own entry point, with the `environment:` of a Compose service.

    Every address becomes the loopback address and every volume a folder in `directory`. `free_ports` gives each port
    of the file an unused one; `settings` are KAFKA_* variables that win over those of the file, and `client` is what a
    client needs beyond the address.
    """

    def __init__(
        self,
        directory: Path,
        file: Path = COMPOSE_FILE,
        service: str = "kafka",
        free_ports: bool = True,
        settings: dict[str, object] | None = None,
        client: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self.log = self.directory / "broker.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._client = client or {}
        self._service = read_service(file, service)
        self._free_ports = free_ports
        self._ports: dict[str, int] = {}
        environment = self._service["environment"] | (settings or {})
        self._environment = {name: self._outside(name, str(value)) for name, value in environment.items()}
        self.version = image_version(self._service)
        self.bootstrap = f"127.0.0.1:{self.port(self._service['ports'][0].split(':')[-1])}"

    def _outside(self, name: str, value: str) -> str:
        """Return a variable's value as it has to be outside a container: loopback addresses and host folders."""
        if name.endswith(("LISTENERS", "VOTERS")):
            value = re.sub(r"(//|@)[\w.-]*:(\d+)", lambda m: f"{m[1]}127.0.0.1:{self.port(m[2])}", value)
        for volume in self._service.get("volumes", []):
            source, target = volume.split(":")[:2]
            value = value.replace(target, (self.directory / source).as_posix())
        return value

    def port(self, port: str) -> int:
        """Return the port that stands for one of the file's."""
        if port not in self._ports:
            self._ports[port] = free_port() if self._free_ports else int(port)
        return self._ports[port]

    def _run(self, *java_arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start Java with the jars and variables of the container, out of reach of this terminal's Ctrl-C."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [JAVA, "-Xmx1g", "-Dlog4j2.level=INFO", "-cp", fetch(self.version) / "*", *java_arguments],
                env=inherited | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

    def start(self) -> Broker:
        """Start the broker and return once it answers; RuntimeError says why it did not."""
        for port in self._ports.values():
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    raise RuntimeError(f"Port {port} was taken. Stop what listens there, perhaps another broker")
        config = self.directory / "config"
        config.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        for file in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):  # the entry point wants them there
            (config / file).write_text("")
        folders = [word for kind in ("default", "mounted", "final") for word in (f"--{kind}-configs-dir", config)]
        # It formats the storage, and fails where that was done before, which the image's start script passes over too.
        setup = self._run("kafka.docker.KafkaDockerWrapper", "setup", *folders)
        if setup.wait(START_LIMIT) and "already formatted" not in self._end_of_log():
            raise RuntimeError(f"Kafka could not be set up; the end of {self.log}:\n{self._end_of_log()}")
        self.process = self._run("kafka.Kafka", config / "server.properties")
        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, **self._client})
        deadline = time.monotonic() + START_LIMIT
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(KafkaException):
                client.list_topics(timeout=1)
                return self
        self.kill()
        raise RuntimeError(f"Kafka did not start; the end of {self.log}:\n{self._end_of_log()}")

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])

    def stop(self) -> None:
        """Stop the broker as `docker stop` does: a request, and after STOP_LIMIT the end."""
        if self.process:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_LIMIT)
        self.kill()

    def kill(self) -> None:
        """End the process at once, as kill -9 does."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


def main(argv: list[str] | None = None) -> int:
    """Run the broker until Ctrl-C or for one command; return the exit status, which is the command's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=COMPOSE_FILE, help="Compose file (docker-compose.yml)")
    parser.add_argument("--service", default="kafka", help="its service (kafka)")
    parser.add_argument("--directory", type=Path, default=HOME, help="where data, settings and log are kept (.kafka)")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="run it with the broker, then stop the broker")
    args = parser.parse_args(argv)
    if lacking := missing():
        parser.exit(1, f"No broker can be started here. Install {lacking}\n")
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    try:
        with Broker(args.directory, args.file, args.service, free_ports=False) as broker:
            return wait(broker, args.command, stop)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1


def wait(broker: Broker, command: list[str], stop: list[int]) -> int:
    """Return the exit status of the command, or without one 0 after a signal and 1 after the broker's own end."""
    if not command:
        print(f"Kafka {broker.version} is running at {broker.bootstrap}, Ctrl-C stops it", flush=True)
        while not stop and broker.process.poll() is None:
            time.sleep(0.1)
        return 0 if stop else 1
    child = subprocess.Popen(command, env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap})
    while child.poll() is None:
        if signal.SIGTERM in stop:  # a Ctrl-C reaches the command by itself
            child.terminate()
        time.sleep(0.1)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
