"""Run the broker of docker-compose.yml without Docker: the same Kafka and settings, as a Java process.

    python tests/broker.py                               in place of `docker-compose up`, until Ctrl-C
    python tests/broker.py -- python producer.py         for one command, then stop the broker
    python tests/broker.py --file FILE                   all brokers of another Compose file
    python tests/broker.py --file FILE --service NAME    one of them: in a terminal each, so that each can be stopped

Needs Java 17 or newer and Maven, which fetches Kafka from Maven Central once. The orders stay in .kafka.
Several brokers need an address each, 127.0.0.11 and so on. macOS has to be given them, by root: ifconfig lo0 alias ...
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
STOP_LIMIT = 10  # seconds, as with `docker stop`; the last broker of a cluster needs more, as it misses the others


def read_brokers(file: Path) -> dict[str, dict[str, Any]]:
    """Return the brokers among a Compose file's services, each ${VARIABLE:-default} replaced as Compose does it."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1]) or m[2], file.read_text("utf-8"))
    services = yaml.safe_load(text)["services"].items()
    return {name: service for name, service in services if "KAFKA_PROCESS_ROLES" in service.get("environment", {})}


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
        save_classes(version)
    return jars


def class_archive(version: str) -> Path:
    """Return the file in which Java keeps what it has made of Kafka's classes."""
    return HOME / "jars" / f"{version}.jsa"


def save_classes(version: str) -> None:
    """Make the class archive, as the official image has one: each start then takes half the time."""
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory) / "classes.jsa"
        broker = Broker(Path(directory))
        broker.version, broker.java_option = version, f"-XX:ArchiveClassesAtExit={saved}"
        with broker:
            pass
        if saved.exists() and broker.process.returncode == 143:  # written to the end, which a kill would have prevented
            shutil.move(saved, class_archive(version))


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

    Every host becomes a loopback address and every volume a folder in `directory`. `port` returns what stands for a
    port of the file, None takes unused ones. `settings` are KAFKA_* variables that win over those of the file, and
    `client` is what a client needs beyond the address.
    """

    def __init__(
        self,
        directory: Path,
        file: Path = COMPOSE_FILE,
        service: str = "kafka",
        port: Callable[[str], int] | None = None,
        settings: dict[str, object] | None = None,
        client: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self.log = self.directory / "broker.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = port or functools.cache(lambda port: free_port())
        self._client = client or {}
        brokers = read_brokers(file)
        self._service, self._service_name = brokers[service], service
        environment = self._service["environment"] | (settings or {})
        # A broker alone is at 127.0.0.1 by each of its names. Several have ports in common, so each has an address.
        first = 11 if len(brokers) > 1 else 1
        self._hosts = {name: f"127.0.0.{number}" for number, name in enumerate(brokers, first)}
        self._advertised = dict(re.findall(r"(\w+://)([\w.-]+)", str(environment["KAFKA_ADVERTISED_LISTENERS"])))
        self._environment = {name: self._outside(name, str(value)) for name, value in environment.items()}
        self.version = image_version(self._service)
        self.java_option = f"-XX:SharedArchiveFile={class_archive(self.version)}"  # passed over where it isn't there
        self.bootstrap = f"127.0.0.1:{self.port(self._service['ports'][0].split(':')[-1])}"

    def _outside(self, name: str, value: str) -> str:
        """Return a variable's value as it has to be outside a container: loopback addresses and host folders."""
        if name.endswith(("LISTENERS", "VOTERS")):
            value = re.sub(r"(\w+://|@)([\w.-]*):(\d+)", self._address, value)
        for volume in self._service.get("volumes", []):
            source, target = volume.split(":")[:2]
            value = value.replace(target, (self.directory / source).as_posix())
        return value

    def _address(self, found: re.Match[str]) -> str:
        """Return what stands for a host and its port; no host, which is all of a container's, is the advertised one."""
        listener, host, port = found.groups()
        address = self._hosts.get(host or self._advertised.get(listener, self._service_name), "127.0.0.1")
        return f"{listener}{address}:{self.port(port)}"

    def _run(self, *java_arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start Java with the jars and variables of the container, out of reach of this terminal's Ctrl-C."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
        java = [JAVA, "-Xmx1g", self.java_option, "-Dlog4j2.level=INFO", "-cp", fetch(self.version) / "*"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*java, *java_arguments],
                env=inherited | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

    def start(self) -> Broker:
        """Start the broker and return once it answers; RuntimeError says why it did not."""
        self.launch()
        return self.wait()

    def launch(self) -> None:
        """Start the process; RuntimeError says why it could not be."""
        for address, port in re.findall(r"//([\d.]+):(\d+)", self._environment["KAFKA_LISTENERS"]):
            with socket.socket() as s:
                if s.connect_ex((address, int(port))) == 0:
                    raise RuntimeError(f"Port {port} was taken. Stop what listens there, perhaps another broker")
        config = self.directory / "config"
        self.log.unlink(missing_ok=True)
        if not self.process:  # the settings of a start before are still there
            self._set_up(config)
        self.process = self._run("kafka.Kafka", config / "server.properties")

    def _set_up(self, config: Path) -> None:
        """Make the folder of settings and format the storage, as the container's start script does."""
        config.mkdir(parents=True, exist_ok=True)
        for file in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):  # the entry point wants them there
            (config / file).write_text("")
        folders = [word for kind in ("default", "mounted", "final") for word in (f"--{kind}-configs-dir", config)]
        # It fails where the storage was formatted before, which the image's start script passes over too.
        setup = self._run("kafka.docker.KafkaDockerWrapper", "setup", *folders)
        if setup.wait(START_LIMIT) and "already formatted" not in self._end_of_log():
            raise RuntimeError(f"Kafka could not be set up; the end of {self.log}:\n{self._end_of_log()}")

    def wait(self) -> Broker:
        """Return once the broker answers; RuntimeError says why it did not."""
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


class Cluster:
    """All brokers of a Compose file, or the one that `service` names; several have a folder each in `directory`."""

    def __init__(
        self,
        directory: Path,
        file: Path = COMPOSE_FILE,
        service: str | None = None,
        port: Callable[[str], int] | None = None,
        settings: dict[str, object] | None = None,
    ) -> None:
        names = list(read_brokers(file))
        chosen = [name for name in names if service in (None, name)]
        if not chosen:
            raise RuntimeError(f"{file} has no broker {service or ''}. Choose one of its own: {', '.join(names)}")
        port = port or functools.cache(lambda _: free_port())
        folders = {name: directory / name if len(names) > 1 else directory for name in chosen}
        self.brokers = [Broker(folder, file, name, port, settings) for name, folder in folders.items()]
        self.bootstrap = ",".join(broker.bootstrap for broker in self.brokers)

    def __enter__(self) -> Cluster:
        try:
            for broker in self.brokers:
                broker.launch()
            for broker in self.brokers:  # none of them answers before most of them run
                broker.wait()
        except BaseException:
            for broker in self.brokers:
                broker.kill()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for broker in self.brokers:  # all at once: the last ones would look in vain for others that take over
            broker.process.terminate()
        for broker in self.brokers:
            broker.stop()


def main(argv: list[str] | None = None) -> int:
    """Run the brokers until Ctrl-C or for one command; return the exit status, which is the command's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=COMPOSE_FILE, help="Compose file (docker-compose.yml)")
    parser.add_argument("--service", help="the one of its brokers to run (all)")
    parser.add_argument("--directory", type=Path, default=HOME, help="where data, settings and log are kept (.kafka)")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="run it with the brokers, then stop them")
    args = parser.parse_args(argv)
    if lacking := missing():
        parser.exit(1, f"No broker can be started here. Install {lacking}\n")
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    try:
        with Cluster(args.directory, args.file, args.service, port=int) as cluster:
            return wait(cluster, args.command, stop)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1


def wait(cluster: Cluster, command: list[str], stop: list[int]) -> int:
    """Return the exit status of the command, or without one 0 after a signal and 1 after the brokers' own end."""
    if not command:
        version = cluster.brokers[0].version
        print(f"Kafka {version} is running at {cluster.bootstrap}, Ctrl-C stops it", flush=True)
        while not stop and any(broker.process.poll() is None for broker in cluster.brokers):
            time.sleep(0.1)
        return 0 if stop else 1
    child = subprocess.Popen(command, env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap})
    while child.poll() is None:
        if signal.SIGTERM in stop:  # a Ctrl-C reaches the command by itself
            child.terminate()
        time.sleep(0.1)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
