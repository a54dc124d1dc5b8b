"""What the tests share: a real broker, and our scripts as processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from broker import COMPOSE_FILE, ROOT, Broker, fetch, image_version, missing, read_brokers
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from postgres import programs

LIMIT = 30  # seconds for whatever a test waits for; far more than it takes, since machines differ
OUTAGE_LIMIT = 90  # seconds for what a restart of the broker may delay
POLL = 0.02  # seconds between two looks at a condition
SLOW_POLL = 0.5  # the same, where a look is a process
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # Windows can send Ctrl-Break to such a one only
INTERRUPT = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)
posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL, SIGSTOP and file size limits are POSIX")
needs_postgres = pytest.mark.skipif(not programs(), reason="no PostgreSQL server: apt-get install postgresql")
# The broker's own session with its controller is 9 s by default: for that long, one that was killed can't come back.
SOON_BACK = {"KAFKA_BROKER_SESSION_TIMEOUT_MS": 3000, "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": 500}
# By default, a broker with nothing to do says so in its log twice a second: many at once keep a small machine busy.
QUIET = {"KAFKA_METADATA_MAX_IDLE_INTERVAL_MS": 60_000}
# A listener more, whose clients are sent on to port 9095: the proxy's, before 9094.
PROXIED = {
    "KAFKA_LISTENERS": "HOST://:9092,NETWORK://:19092,CONTROLLER://localhost:9093,PROXIED://:9094",
    "KAFKA_ADVERTISED_LISTENERS": "HOST://localhost:9092,NETWORK://kafka:19092,PROXIED://localhost:9095",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "HOST:PLAINTEXT,NETWORK:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
}
# A broker whose users have a password, "secret", and no right but admin; clients inside it are nobody's, and trusted.
SECURED = {
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "HOST:SASL_PLAINTEXT,NETWORK:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "KAFKA_SASL_ENABLED_MECHANISMS": "PLAIN",
    "KAFKA_LISTENER_NAME_HOST_PLAIN_SASL_JAAS_CONFIG": "org.apache.kafka.common.security.plain.PlainLoginModule "
    'required user_admin="secret" user_john="secret" user_writer="secret" user_reader="secret";',
    "KAFKA_AUTHORIZER_CLASS_NAME": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "KAFKA_SUPER_USERS": "User:admin;User:ANONYMOUS",
}
SHARED = pytest.StashKey[str]()  # the address of the broker that all workers share
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")  # brokers that live for seconds start sooner


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", action="store_true", help="make those of next_steps/web/README.md anew")
    parser.addoption("--soak", action="store_true", help="inject the faults of test_faults.py more often")


def pytest_configure(config: pytest.Config) -> None:
    """Fetch Kafka before the tests: what one of them waited for it would count against its time limit."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's & has it, and our scripts would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "spread: run each of these beside any other, rather than with its file's in turn"
    )
    config.addinivalue_line("markers", "xdist_group: known without pytest-xdist as well")
    if not hasattr(config, "workerinput") and not os.environ.get("KAFKA_BOOTSTRAP_SERVERS") and not missing():
        fetch(image_version(read_brokers(COMPOSE_FILE)["kafka"]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let the workers of pytest-xdist share one broker; one for each would keep a small machine busy by itself."""
    config = node.config
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or missing():
        return
    if SHARED not in config.stash:
        stack = contextlib.ExitStack()
        config.add_cleanup(stack.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-"))
        config.stash[SHARED] = stack.enter_context(Broker(Path(folder), settings=QUIET)).bootstrap
    node.workerinput["bootstrap"] = config.stash[SHARED]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a file's tests one after the other, beside those of other files, but where the test says otherwise.

    What takes longest begins first, so that no worker still has it when the others are done: the groups, and then each
    test that has a broker of its own.
    """

    def rank(item: pytest.Item) -> int:
        if group := item.get_closest_marker("xdist_group"):
            return 0 if group.args[0] == "port 9092" else 1
        if item.get_closest_marker("spread"):
            return 2 if "new_broker" in item.fixturenames else 3
        item.add_marker(pytest.mark.xdist_group(item.path.name))
        return 1

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Let a skipped test fail where CI=true: there it would hide that something was not tested."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome, report.longrepr = "failed", f"skipped although CI=true: {report.longrepr}"
    return report


def wait_until(condition: Callable[[], Any], what: object, limit: float = LIMIT, poll: float = POLL) -> Any:
    """Return what the condition returns as soon as it is true; AssertionError with `what` after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {limit} s for {what}"
        time.sleep(poll)
    return result


class Process:
    """A running command and the lines that it has printed so far, in `out` and in `err`."""

    def __init__(self, *command: str | Path, **options: Any) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.popen = subprocess.Popen(
            command,
            stdin=options.pop("stdin", subprocess.PIPE),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            encoding="utf-8",
            cwd=options.pop("cwd", ROOT),
            creationflags=NEW_GROUP,
            # Without PYTHONUNBUFFERED, which would hide a line that isn't flushed.
            env=os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": ""} | options.pop("env", {}),
            **options,
        )
        streams = [(self.popen.stdout, self.out), (self.popen.stderr, self.err)]
        self._readers = [threading.Thread(target=self._read, args=s, daemon=True) for s in streams if s[0]]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.removesuffix("\n"))

    def __repr__(self) -> str:
        out, err = list(self.out), list(self.err)
        return f"\nstdout, {len(out)} lines: {out[-20:]}\nstderr, {len(err)} lines: {err[-20:]}"

    def wait_for(self, text: str, limit: float = LIMIT, err: bool = False, times: int = 1) -> None:
        """Return when so many lines with the text were printed; AssertionError with all output otherwise."""
        lines = self.err if err else self.out

        def seen() -> bool:
            ended = not any(reader.is_alive() for reader in self._readers)
            found = sum(text in line for line in list(lines)) >= times
            assert found or not ended, f"ended without printing {text!r} {times} times{self}"
            return found

        wait_until(seen, (text, times, self), limit)

    def wait(self, limit: float = LIMIT) -> int:
        """Return the exit status, when all output was read."""
        try:
            status = self.popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {limit} s{self}") from None
        for reader in self._readers:
            reader.join(LIMIT)
        return status

    def write(self, text: str) -> None:
        self.popen.stdin.write(text)
        self.popen.stdin.flush()

    def stop(self, number: int = INTERRUPT, limit: float = LIMIT) -> int:
        """Send the signal and return the exit status."""
        self.popen.send_signal(number)
        return self.wait(limit)

    def end(self) -> None:
        """Kill what still runs."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.wait()


def compose_command() -> list[str] | None:
    """Return the Compose command of a Docker engine that answers, None without one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            engine = subprocess.run(["docker", "info"], capture_output=True)
            return None if engine.returncode else command
    return None


@pytest.fixture(scope="session")
def bootstrap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real broker: the one in KAFKA_BOOTSTRAP_SERVERS, else a Java process, else a container."""
    shared = getattr(request.config, "workerinput", {}).get("bootstrap")
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or shared:
        yield servers
    elif not (lacking := missing()):
        with Broker(tmp_path_factory.mktemp("broker"), settings=QUIET) as broker:
            yield broker.bootstrap
    elif compose := compose_command():
        compose = [*compose, "-p", "orders-tests", "-f", str(COMPOSE_FILE)]
        try:
            subprocess.run([*compose, "up", "-d"], check=True)
            wait_until(lambda: answers("localhost:9092"), "the broker of docker-compose.yml", 120)
            yield "localhost:9092"
        finally:
            subprocess.run([*compose, "down", "-v"], check=True)
    else:
        pytest.skip(f"no Kafka broker: install {lacking} or Docker, or set KAFKA_BOOTSTRAP_SERVERS")


def answers(servers: str) -> bool:
    """Return whether a broker answers there."""
    with contextlib.suppress(KafkaException):
        AdminClient({"bootstrap.servers": servers, "log_level": 0}).list_topics(timeout=5)
        return True
    return False


@pytest.fixture
def new_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """A function that starts a broker for one test alone, which may stop, freeze and restart it."""
    if lacking := missing():
        pytest.skip(f"no broker that a test may stop: install {lacking}")
    with contextlib.ExitStack() as stack:

        def start(client: dict[str, str] | None = None, **settings: object) -> Broker:
            broker = Broker(tmp_path / uuid.uuid4().hex, settings=QUIET | settings, client=client)
            stack.callback(broker.kill)
            return broker.start()

        yield start


@pytest.fixture
def topic() -> str:
    """The name of a topic, and of a group, that only this test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """A function that starts a command as a Process, which is killed after the test if it still runs."""
    with contextlib.ExitStack() as stack:

        def start(*command: str | Path, **options: Any) -> Process:
            process = Process(*command, **options)
            stack.callback(process.end)
            return process

        yield start


@pytest.fixture
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pytest its own signal handlers where main() runs in its process."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


@pytest.fixture
def run_producer(start: Callable[..., Process], bootstrap: str, topic: str) -> Callable[..., Process]:
    """A function that starts producer.py with this test's broker and topic; arguments given win over these."""
    return partial(start, sys.executable, "producer.py", "-b", bootstrap, "-t", topic)


@pytest.fixture
def run_bulk(start: Callable[..., Process], bootstrap: str, topic: str) -> Callable[..., Process]:
    """A function that starts next_steps.bulk.producer as run_producer starts producer.py."""
    return partial(start, sys.executable, "-m", "next_steps.bulk.producer", "-b", bootstrap, "-t", topic)


@pytest.fixture
def run_tracker(start: Callable[..., Process], bootstrap: str, topic: str) -> Callable[..., Process]:
    """A function that starts tracker.py with this test's broker, topic and group; arguments given win over these."""
    return partial(start, sys.executable, "tracker.py", "-b", bootstrap, "-t", topic, "-g", topic)


@pytest.fixture
def orders(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a file with so many orders for run_bulk, each of a user of its own, and returns it."""

    def write(count: int, prefix: str = "u") -> Path:
        file = tmp_path / f"{prefix}.jsonl"
        order = '{{"user": "{}{}", "item": "x", "quantity": 1}}\n'
        file.write_text("".join(order.format(prefix, number) for number in range(count)))
        return file

    return write


@pytest.fixture
def traffic(
    run_bulk: Callable[..., Process], run_tracker: Callable[..., Process], orders: Callable[..., Path], topic: str
) -> Callable[[str], Traffic]:
    """A function that returns the Traffic through this test's topic on the broker of that address."""

    def flow(servers: str) -> Traffic:
        return Traffic(partial(run_bulk, "-b", servers), partial(run_tracker, "-b", servers), orders, servers, topic)

    return flow


class Traffic:
    """Orders that flow: the bulk producers that send, the trackers that print, and what they must have kept at last."""

    def __init__(self, send: Any, track: Any, orders: Any, servers: str, topic: str) -> None:
        self._send, self._track, self._orders, self.servers, self.topic = send, track, orders, servers, topic
        self.senders: list[Process] = []
        self.trackers: list[Process] = []
        self.attempted: set[str] = set()

    def send(self, *flags: str, count: int = 50_000) -> Process:
        """Return a bulk producer that sends so many orders, each of a user of its own."""
        prefix = f"run{len(self.senders)}-"
        self.attempted.update(f"{prefix}{number}" for number in range(count))
        self.senders.append(self._send("-l", self._orders(count, prefix), *flags))
        return self.senders[-1]

    def track(self, *flags: str) -> Process:
        """Return a further tracker."""
        self.trackers.append(self._track(*flags))
        return self.trackers[-1]

    def finish(self) -> None:
        """Stop the producers, let the trackers print what was confirmed, stop them, and look at what all have kept."""
        for sending in running(self.senders):
            assert sending.stop(limit=OUTAGE_LIMIT) == 0, sending
        if not running(self.trackers):
            assert self.track("-e").wait(OUTAGE_LIMIT) == 0, self.trackers[-1]
        wait_until(lambda: tracked(*self.trackers) >= confirmed(*self.senders), "all confirmed orders", OUTAGE_LIMIT)
        for tracking in running(self.trackers):
            assert tracking.stop() == 0, tracking
        self.assert_kept()

    def assert_kept(self) -> None:
        """Ask what every fault must leave true."""
        delivered, seen = confirmed(*self.senders), tracked(*self.trackers)
        assert delivered, "no order was confirmed, so that nothing was shown"
        assert not delivered - seen, f"{len(delivered - seen)} of {len(delivered)} confirmed orders were not tracked"
        assert seen <= self.attempted, "an order was tracked that nobody sent"
        assert not delivered & given_up(*self.senders), "an order was both confirmed and named as not confirmed"
        assert_nothing_stored_ahead(self.servers, self.topic, *self.trackers)

    def assert_log_holds_each_once(self) -> None:
        assert_log_holds_each_once(self.servers, self.topic)

    def assert_offsets_rise(self) -> None:
        assert_offsets_rise(self.servers, self.topic, *self.trackers)

    def assert_tracked_once(self) -> None:
        assert_tracked_once(*self.trackers)


def freeze(process: subprocess.Popen[Any]) -> None:
    """Return when the process does nothing any more, which with many threads takes a moment."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def thaw(process: subprocess.Popen[Any]) -> None:
    """Let the process go on."""
    process.send_signal(signal.SIGCONT)


def running(processes: list[Process]) -> list[Process]:
    """Return those that have not ended."""
    return [process for process in processes if process.popen.poll() is None]


def more(process: Process, count: int = 20) -> None:
    """Return when the process has printed so many lines more than now."""
    process.wait_for("Message", times=len(process.out) + count, limit=OUTAGE_LIMIT)


def confirmed(*senders: Process) -> set[str]:
    """Return the users whose orders the producers have printed as delivered."""
    lines = [line.removeprefix("Message delivered ") for sending in senders for line in list(sending.out)]
    return {json.loads(line)["user"] for line in lines}


def given_up(*senders: Process) -> set[str]:
    """Return the users whose orders the producers have named as not confirmed."""
    lines = [line for sending in senders for line in list(sending.err)]
    found = [re.match(r"Order (\{.*\}) was not confirmed: ", line) for line in lines]
    return {json.loads(match[1])["user"] for match in found if match}


def received(tracking: Process) -> list[str]:
    """Return the users whose orders the tracker has printed, in that order; all are one x, as in a file of orders()."""
    return [line.rpartition(" ")[2] for line in list(tracking.out) if line.startswith("Message received: x 1 from ")]


def tracked(*trackers: Process) -> set[str]:
    """Return the users whose orders any of the trackers has printed."""
    return {user for tracking in trackers for user in received(tracking)}


def places(bootstrap: str, topic: str) -> list[tuple[str, int, int]]:
    """Return the user of each order in the topic, with its partition and offset."""
    return [(json.loads(r.value())["user"], r.partition(), r.offset()) for r in records(bootstrap, topic)]


def assert_log_holds_each_once(bootstrap: str, topic: str) -> None:
    """Of each order the topic holds one record, however often it had to be sent."""
    copies = Counter(user for user, _, _ in places(bootstrap, topic))
    doubled = [user for user, count in copies.items() if count > 1]
    assert not doubled, f"the log holds {len(doubled)} orders more than once: {doubled[:5]}"


def assert_tracked_once(*trackers: Process) -> None:
    """No order was printed twice, by one tracker or by two."""
    copies = Counter(user for tracking in trackers for user in received(tracking))
    repeated = [user for user, count in copies.items() if count > 1]
    assert not repeated, f"{len(repeated)} orders were tracked again: {repeated[:5]}"


def assert_offsets_rise(bootstrap: str, topic: str, *trackers: Process) -> None:
    """Each tracker has printed the orders of a partition in the sequence of the log, none of them twice."""
    place = {user: (partition, offset) for user, partition, offset in places(bootstrap, topic)}
    for tracking in trackers:
        seen: dict[int, list[int]] = {}
        for user in received(tracking):
            seen.setdefault(place[user][0], []).append(place[user][1])
        for partition, offsets in seen.items():
            assert all(a < b for a, b in pairwise(offsets)), f"offsets fell in {partition}"


def assert_nothing_stored_ahead(bootstrap: str, topic: str, *trackers: Process) -> None:
    """The group, which has the topic's name, has committed no order that was not printed."""
    log, seen = places(bootstrap, topic), tracked(*trackers)
    for partition in {partition for _, partition, _ in log}:
        last = max((offset for user, p, offset in log if p == partition and user in seen), default=-1)
        assert committed(bootstrap, topic, topic, partition) <= last + 1, f"more than {last} was stored in {partition}"


def examples(start: str, readme: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a README's console blocks that begin so, each with the lines printed below it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", readme, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found[-1][0].endswith("\\") and not found[-1][1]:  # a command of several lines
                found[-1] = (found[-1][0][:-1].rstrip() + " " + line.strip(), [])
            else:
                found[-1][1].append(line)
    return [(command, lines) for command, lines in found if command.startswith(start)]


def same(printed: list[str], documented: list[str]) -> bool:
    """Return whether the lines are the same but for their UUIDs."""
    return [re.sub(UUID, "UUID", line) for line in printed] == [re.sub(UUID, "UUID", line) for line in documented]


def create_topic(bootstrap: str, topic: str, partitions: int = 1) -> None:
    """Create the topic and return when it can be used."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, partitions)])[topic].result(LIMIT)
    wait_until(lambda: len(admin.list_topics(topic, LIMIT).topics[topic].partitions) == partitions, "the topic")


def login(user: str, **others: str) -> dict[str, str]:
    """Return what a client of a SECURED broker needs to be this user."""
    sasl = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN"}
    return sasl | {"sasl.username": user, "sasl.password": "secret"} | others


def as_flags(properties: dict[str, str]) -> list[str]:
    """Return the -X flags that set the properties."""
    return [word for name, value in properties.items() for word in ("-X", f"{name}={value}")]


def allow(admin: AdminClient, user: str, operation: str, kind: str, name: str) -> None:
    """Give a user a right: to do what AclOperation calls so, to the topic or group of that name."""
    what, may = (ResourceType[kind], name, ResourcePatternType.LITERAL), AclPermissionType.ALLOW
    rule = AclBinding(*what, f"User:{user}", "*", AclOperation[operation], may)
    admin.create_acls([rule])[rule].result(LIMIT)


def put(bootstrap: str, topic: str, *values: bytes | None, login: dict[str, str] | None = None, **options: Any) -> None:
    """Write records with these values, none of which need be an order."""
    client = Producer((login or {}) | {"bootstrap.servers": bootstrap})
    for value in values:
        client.produce(topic, value, **options)
    assert client.flush(LIMIT) == 0


def records(bootstrap: str, topic: str, **login: str) -> list[Message]:
    """Return what the topic holds, read without a group; within a partition in its order."""
    client = Consumer(login | {"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    found: list[Message] = []
    for partition in client.list_topics(topic, LIMIT).topics[topic].partitions:
        first, end = client.get_watermark_offsets(TopicPartition(topic, partition), LIMIT)
        client.assign([TopicPartition(topic, partition, first)])
        for _ in range(end - first):
            found.append(client.poll(LIMIT))
    client.close()
    return found


def committed(bootstrap: str, group: str, topic: str, partition: int = 0) -> int:
    """Return the offset that the group has committed, -1001 for none."""
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    offset = client.committed([TopicPartition(topic, partition)], LIMIT)[0].offset
    client.close()
    return offset
