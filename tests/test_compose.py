"""docker-compose.yml in a real Docker engine, from `up` to `down`, with each Compose command that is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in
from broker import COMPOSE_FILE, ROOT, read_brokers, read_registries, read_services
from confluent_kafka.admin import AdminClient
from conftest import SLOW_POLL, create_topic, wait_until

PROJECT = "orders-tests"  # not the name that the project's folder gives: that volume holds someone's orders
HEALTH_LIMIT = 180  # seconds; three failed healthchecks, 20 s from one to the next, are a minute

# The first test may have to make the image, and a frozen broker is given up after a minute only.
# Those on this port run in one of the workers of pytest-xdist.
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("port 9092")]


def run(*command: str, **options: Any) -> str:
    """Return what the command printed on stdout; AssertionError with all its output where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def succeeds(*command: str) -> bool:
    """Return whether the command is installed and exits with 0."""
    return bool(shutil.which(command[0])) and not subprocess.run(command, capture_output=True).returncode


class Project:
    """Compose files under a project name of the tests, run by one of the Compose commands.

    The first file has the brokers, and each further one a schema registry or a database.
    """

    def __init__(self, command: str, file: Path = COMPOSE_FILE, *overrides: Path) -> None:
        self.command, self.files = command.split(), [file, *overrides]
        self.image = stand_in.image(file)
        self.variables = {"KAFKA_IMAGE": self.image}
        for override in overrides:
            if read_registries(override):
                self.variables["REGISTRY_IMAGE"] = stand_in.registry_image(override)
            else:
                self.variables |= {"POSTGRES_IMAGE": stand_in.postgres_image(override), "POSTGRES_PASSWORD": "s3cret"}
        self.options = ["-d", "--wait"] if command == "docker compose" else ["-d"]
        self.services = [*read_brokers(file), *[name for override in overrides for name in read_services(override)]]
        self.name = f"{PROJECT}-{'-'.join(self.services)}"  # of two files at once, each has its own

    def compose(self, *arguments: str, **variables: str) -> str:
        """Return what the Compose command printed; of KAFKA_* variables it sees the given ones only."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
        files = [word for file in self.files for word in ("-f", str(file))]
        return run(*self.command, "-p", self.name, *files, *arguments, env=inherited | self.variables | variables)

    def up(self, **variables: str) -> None:
        """Start the brokers, or replace them where a variable has changed, and return when they are healthy."""
        self.compose("up", *self.options, **variables)
        for service in self.services:
            self.wait_for("healthy", service)

    def down(self, *options: str) -> None:
        """Stop the brokers; AssertionError where a container of theirs is left, or a volume without a name."""
        mounts = "{{range .Mounts}}{{.Name}} {{end}}"
        names = " ".join(self.inspect(mounts, service) for service in self.services if self.container(service))
        self.compose("down", *options)
        assert not any(self.container(service) for service in self.services)
        left = run("docker", "volume", "ls", "-q").split()
        assert [name for name in names.split() if name in left and not name.startswith(f"{self.name}_")] == []

    def container(self, service: str = "kafka") -> str:
        """Return the id of a broker's container, "" for none."""
        labels = {"project": self.name, "service": service}  # Compose itself, asked for it, takes ten times as long
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return run("docker", "ps", "-aq", "--no-trunc", *filters)

    def inspect(self, template: str, service: str = "kafka") -> str:
        return run("docker", "inspect", "-f", template, self.container(service))

    def wait_for(self, health: str, service: str = "kafka") -> None:
        """Return when a broker is starting, healthy or unhealthy; AssertionError with its checks and log."""
        container = self.container(service)
        ask = ["docker", "inspect", "-f", "{{.State.Health.Status}}", container]
        try:
            wait_until(lambda: run(*ask) == health, f"{service} to be {health}", HEALTH_LIMIT, SLOW_POLL)
        except AssertionError as error:
            state = run("docker", "inspect", "-f", "{{json .State}}", container)
            log = run("sh", "-c", f"docker logs --tail 30 {container} 2>&1")
            raise AssertionError(f"{error}\n{state}\n{log}") from None

    def freeze_until_noticed(self, service: str = "kafka") -> None:
        """Freeze a container until its healthcheck has noticed, let it go on, and return when it is healthy again."""
        run("docker", "kill", "-s", "STOP", self.container(service))
        try:
            self.wait_for("unhealthy", service)
        finally:
            run("docker", "kill", "-s", "CONT", self.container(service))
        self.wait_for("healthy", service)


COMMANDS = [name for name in ("docker-compose", "docker compose") if succeeds(*name.split(), "version")]
needs_compose = pytest.mark.skipif(not COMMANDS, reason="no Compose command: install Docker (Debian: docker-compose)")


@pytest.fixture(scope="module", params=COMMANDS or [None])
def command(request: pytest.FixtureRequest) -> str:
    """Each Compose command that is installed: version 1 has a hyphen, version 2 is a plugin of docker."""
    return request.param or pytest.skip("no Compose command: install Docker (Debian: docker.io docker-compose)")


@contextlib.contextmanager
def running(command: str, file: Path = COMPOSE_FILE, *overrides: Path) -> Iterator[Project]:
    """Start what is in Compose files and yield it when all of it is healthy; skip the test where it can't be."""
    if not succeeds("docker", "info"):
        pytest.skip("no Docker engine answers: install Docker (Debian: docker.io), start it, and be allowed to use it")
    try:
        project = Project(command, file, *overrides)
    except RuntimeError as error:
        pytest.skip(str(error))
    project.down("-v")  # what an earlier run may have left when it was killed
    services = [service for one in project.files for service in read_services(one).values()]
    skip_where_taken(*[int(port.split(":")[1]) for service in services for port in service["ports"]])
    try:
        project.up()
        yield project
    finally:
        project.down("-v")


@pytest.fixture(scope="module")
def project(command: str) -> Iterator[Project]:
    """The broker of docker-compose.yml, started and healthy."""
    with running(command) as project:
        yield project


@pytest.fixture(scope="module")
def bootstrap(project: Project) -> str:
    """The address that people use: the fixtures `run_tracker` and `run_producer` send their scripts there."""
    return "localhost:9092"


def skip_where_taken(*ports: int) -> None:
    """Skip the test where something listens on one of the ports."""
    for port in ports:
        if connects("localhost", port):
            pytest.skip(f"another program uses port {port}: stop it (docker-compose down)")


def connects(host: str, port: int = 9092) -> bool:
    """Return whether something listens on the port of this address."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def partitions(bootstrap: str, topic: str) -> int:
    return len(AdminClient({"bootstrap.servers": bootstrap}).list_topics(topic, 10).topics[topic].partitions)


def test_compose_accepts_the_file_without_a_warning(command):
    done = subprocess.run([*command.split(), "-f", COMPOSE_FILE, "config", "-q"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_order_goes_from_producer_to_tracker_on_the_host(run_producer, run_tracker, topic):
    tracking = run_tracker()
    tracking.wait_for(f"Consumer is running & subscribed to {topic} topic")
    assert run_producer().wait() == 0
    tracking.wait_for("Message received: burger 5 from john")
    assert tracking.stop() == 0


def test_a_client_in_the_compose_network_reaches_the_broker(project, bootstrap, topic):
    create_topic(bootstrap, topic)
    tool = ["/opt/kafka/bin/kafka-topics.sh", "--bootstrap-server", "kafka:19092", "--list"]
    listed = run("docker", "run", "--rm", "--network", f"{project.name}_default", project.image, *tool)
    assert topic in listed.splitlines()


def test_the_port_answers_on_loopback_only(project):
    assert run("docker", "port", project.container()) == "9092/tcp -> 127.0.0.1:9092"
    gateways = project.inspect("{{range .NetworkSettings.Networks}}{{.Gateway}} {{end}}").split()
    # This machine's own addresses; `hostname -I` is Linux's, elsewhere the engine runs in a machine of its own.
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    assert connects("127.0.0.1")
    assert [address for address in gateways + own if connects(address)] == []


def test_the_orders_are_in_the_named_volume(project, run_producer, topic):
    assert run_producer().wait() == 0
    volume = f"{project.name}_kafka_kraft:/orders:ro"
    files = run(
        "docker", "run", "--rm", "-v", volume, project.image, "find", "/orders", "-name", "*.log", "-size", "+0"
    )
    assert f"/orders/{topic}-0/00000000000000000000.log" in files.splitlines()


# Once is enough: the engine runs the healthcheck, whichever Compose command it was given by.
@pytest.mark.parametrize("command", COMMANDS[:1] or [None], indirect=True)
def test_a_frozen_broker_is_unhealthy_until_it_goes_on(project):
    project.freeze_until_noticed()


def test_orders_and_offsets_survive_down_and_up(project, run_producer, run_tracker, topic):
    received = [f"Consumer is running & subscribed to {topic} topic", "Message received: burger 5 from john"]
    assert run_producer().wait() == 0
    first = run_tracker("-e")
    assert (first.wait(), first.out) == (0, received)
    project.down()
    project.up()
    same_group, new_group = run_tracker("-e"), run_tracker("-e", "-g", f"{topic}-new")
    assert (same_group.wait(), same_group.out) == (0, received[:1])
    assert (new_group.wait(), new_group.out) == (0, received)


def test_the_healthcheck_does_without_the_agents_ports_and_memory_of_the_broker(project, tmp_path):
    override = tmp_path / "override.yml"
    override.write_text("""
services:
  kafka:
    environment:
      JMX_PORT: 9999
      KAFKA_OPTS: -agentlib:jdwp=transport=dt_socket,server=y,suspend=n,address=5005
      KAFKA_HEAP_OPTS: -Xms300m -Xmx300m
""")
    project.compose("-f", str(override), "up", *project.options)
    project.wait_for("healthy")
    listening = run("docker", "exec", project.container(), "cat", "/proc/net/tcp", "/proc/net/tcp6")
    assert all(f":{port:04X} " in listening for port in (9999, 5005))  # the broker does have them


def test_a_variable_sets_how_many_partitions_a_new_topic_gets(project, bootstrap, run_producer, topic):
    project.up()
    assert run_producer().wait() == 0
    project.up(KAFKA_NUM_PARTITIONS="3")
    assert run_producer("-t", f"{topic}-new").wait() == 0
    assert (partitions(bootstrap, topic), partitions(bootstrap, f"{topic}-new")) == (1, 3)
