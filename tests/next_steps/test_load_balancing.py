"""next_steps/load_balancing: trackers share a topic, and a cluster of three brokers outlives any one of them."""

import argparse
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from functools import partial

import pytest
import test_compose
from broker import ROOT, Cluster, free_port, missing
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    NewTopic,
)
from conftest import (
    INTERRUPT,
    OUTAGE_LIMIT,
    QUIET,
    SECURED,
    SLOW_POLL,
    SOON_BACK,
    UUID,
    allow,
    answers,
    assert_log_holds_each_once,
    assert_nothing_stored_ahead,
    assert_offsets_rise,
    committed,
    confirmed,
    create_topic,
    examples,
    given_up,
    login,
    more,
    places,
    posix,
    put,
    same,
    tracked,
    wait_until,
)

from next_steps.load_balancing import lag
from producer import new_order, to_json

FOLDER = ROOT / "next_steps" / "load_balancing"
CLUSTER_FILE = FOLDER / "docker-compose.yml"
README = (FOLDER / "README.md").read_text("utf-8")
SERVERS = "localhost:9092,localhost:9094,localhost:9096"  # those of the Compose file
ORDER = to_json(new_order("john", "burger", 5))
RECEIVED = "Message received: burger 5 from john"

# Each wait has a limit of its own, far below. The tests have one cluster in common, but for those that have none.
pytestmark = pytest.mark.timeout(600)
fixed_ports = pytest.mark.xdist_group("port 9092")
wait_slowly = partial(wait_until, limit=OUTAGE_LIMIT, poll=SLOW_POLL)  # each look is a process


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    """The brokers of the step's Compose file, on ports that nobody uses."""
    if lacking := missing():
        pytest.skip(f"no brokers that a test may stop: install {lacking}")
    with Cluster(tmp_path_factory.mktemp("cluster"), CLUSTER_FILE, settings=QUIET | SOON_BACK) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster):
    """Three brokers that run, of which the test may kill some."""
    yield shared_cluster
    restart(*(broker for broker in shared_cluster.brokers if broker.process.poll() is not None))


@pytest.fixture
def bootstrap(cluster):
    """The addresses of all three: the fixtures that run a script have it use them."""
    return cluster.bootstrap


@pytest.fixture
def admin(bootstrap):
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})


@pytest.fixture
def show_lag(start, bootstrap, topic):
    """A function that starts lag.py with this test's brokers, topic and group; arguments given win over these."""
    command = [sys.executable, "-m", "next_steps.load_balancing.lag", "-b", bootstrap, "-t", topic, "-g", topic]
    return partial(start, *command)


@pytest.fixture
def owners(show_lag):
    """A function that returns the client.id of each partition's owner, "" where there is none; [] without an answer."""

    def look():
        once = show_lag()
        return [line.split()[2].split("-")[0] for line in once.out[1:-1]] if once.wait() == 0 else []

    return look


def restart(*brokers):
    """Start brokers that were killed, and return when they answer."""
    for broker in brokers:
        broker.launch()
    for broker in brokers:
        broker.wait()


def commit(bootstrap, group, topic, partition, offset):
    """Commit an offset for a group that has no members."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    consumer.commit(offsets=[TopicPartition(topic, partition, offset)], asynchronous=False)
    consumer.close()


def row(looked):
    """Return what lag.py has printed of a topic's only partition, without its name and owner."""
    assert looked.wait() == 0, looked
    return looked.out[1].split()[-3:]


def partitions(admin, topic):
    """Return what the cluster tells of the topic's partitions, by their numbers."""
    return admin.list_topics(topic, OUTAGE_LIMIT).topics[topic].partitions


def in_sync(admin, topic):
    """Return whether each partition has three replicas in sync."""
    return all(len(partition.isrs) == 3 for partition in partitions(admin, topic).values())


def led_by(admin, topic, number):
    """Return the partitions that a broker leads."""
    return [n for n, partition in partitions(admin, topic).items() if partition.leader == number]


# The Compose file, in a Docker engine and without.


@pytest.mark.xdist_group("cluster in Docker")
@test_compose.needs_compose
def test_docker(start, topic, tmp_path):
    """The cluster runs in a Docker engine, outlives a container, and keeps its orders."""
    ports = {port: str(free_port()) for port in ("9092", "9094", "9096")}  # its own are those of test_launcher

    def moved(text):
        return re.sub(r"\b(9092|9094|9096)\b", lambda found: ports[found[0]], text)

    servers, file = moved(SERVERS), tmp_path / "docker-compose.yml"
    file.write_text(moved(CLUSTER_FILE.read_text("utf-8")), "utf-8")

    def run(script, *arguments):
        return start(sys.executable, script, "-b", servers, "-t", topic, *arguments)

    def as_documented(words):
        (command, _), *_ = examples(words, README)
        *_, arguments = moved(command.replace("orders", topic)).split(" kafka ", 1)
        test_compose.run("docker", "exec", project.container("kafka1"), *shlex.split(arguments))

    with test_compose.running(test_compose.COMMANDS[0], file) as project:
        for service, port in zip(("kafka1", "kafka2", "kafka3"), ports.values(), strict=True):
            published = test_compose.run("docker", "port", project.container(service))
            assert published == f"{port}/tcp -> 127.0.0.1:{port}"
        admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
        create_topic(servers, topic, partitions=1)
        tracking = run("tracker.py", "-g", topic, "-X", "topic.metadata.refresh.interval.ms=1000")
        tracking.wait_for("Consumer is running")
        assert run("producer.py").wait() == 0
        tracking.wait_for(RECEIVED)
        as_documented("docker-compose exec")
        assert len(partitions(admin, topic)) == 6
        project.compose("kill", "kafka2")
        assert run("producer.py", "-c", "20").wait(OUTAGE_LIMIT) == 0
        tracking.wait_for(RECEIVED, times=21, limit=OUTAGE_LIMIT)
        lag = ["-m", "next_steps.load_balancing.lag", "-b", servers, "-t", topic, "-g", topic, "--max-lag", "0"]
        # Of the lines some may be repeats: the group may have done without the tracker while its coordinator moved.
        wait_slowly(lambda: start(sys.executable, *lag).wait() == 0, "the commits")
        assert tracking.stop() == 0
        project.down()
        project.compose("up", *project.options)
        wait_until(lambda: answers(servers), "the brokers", OUTAGE_LIMIT)
        for group, orders in [(topic, 0), (f"{topic}-new", 21)]:
            again = run("tracker.py", "-g", group, "-e")
            assert (again.wait(OUTAGE_LIMIT), again.out[1:]) == (0, [RECEIVED] * orders), f"{again}{tracking}"


@fixed_ports
def test_launcher(start, topic, tmp_path):
    """The launcher runs the cluster all at once, and each broker by itself."""
    if lacking := missing():
        pytest.skip(f"no broker can be started: install {lacking}")
    test_compose.skip_where_taken(9092, 9094, 9096)
    (command, lines), *_ = examples("python tests/broker.py", README)
    launch = partial(start, sys.executable, *shlex.split(command)[1:], "--directory", tmp_path)
    pair = [("producer.py", []), ("tracker.py", ["-e", "-g", topic])]

    def order_arrives(servers):
        for script, options in pair:
            done = start(sys.executable, script, "-b", servers, "-t", topic, *options)
            assert done.wait(OUTAGE_LIMIT) == 0, done
        assert done.out[1:] == [RECEIVED]

    everything = launch()
    everything.wait_for("is running", 120)
    assert everything.out == lines
    order_arrives(SERVERS)
    assert everything.stop(INTERRUPT, 60) == 0
    alone = [launch("--service", service) for service in ("kafka2", "kafka3")]
    for broker in alone:
        broker.wait_for("is running", 120)
    order_arrives(SERVERS)  # the first of which does not answer
    for broker in alone:
        broker.popen.send_signal(INTERRUPT)
    assert [broker.wait(60) for broker in alone] == [0, 0]
    nobody = launch("--service", "kafka4")
    assert nobody.wait() == 1
    assert "Choose one of its own: kafka1, kafka2, kafka3" in nobody.err[0]


@pytest.mark.xdist_group("benchmark of the cluster")
@pytest.mark.skipif(missing() is not None, reason=f"no brokers can be started: install {missing()}")
def test_benchmark(start):
    """The benchmark measures how the pair scales."""
    measuring = start(sys.executable, "tests/benchmark.py", "--scale", "--rounds", "1", "--orders", "500")
    assert measuring.wait(280) == 0, measuring
    rows = [line.split(" | ")[:2] for line in measuring.out if line.startswith("| ")]
    figures = [(name, float(figure.split(" ")[0].replace(",", ""))) for name, figure in rows if figure[0].isdigit()]
    trackers = [f"| {count} tracker{'s' if count > 1 else ''}" for count in (1, 2, 4, 6)]
    ends, costs = ["| SIGTERM", "| SIGKILL", "| SIGKILL"], ["| 500 orders", "| 5,000 orders"]
    assert [name for name, _ in figures] == 4 * trackers + ends + 4 * costs
    assert all(figure > 0 for _, figure in figures)


def test_new_topics(run_producer, run_tracker, admin, topic):
    """They have three replicas, of which two must be in sync."""
    assert run_producer().wait(OUTAGE_LIMIT) == 0
    assert run_tracker("-e").wait(OUTAGE_LIMIT) == 0
    for name, count in [(topic, 6), ("__consumer_offsets", 3)]:
        found = partitions(admin, name).values()
        assert [len(partition.replicas) for partition in found] == [3] * count
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    assert admin.describe_configs([resource])[resource].result(OUTAGE_LIMIT)["min.insync.replicas"].value == "2"


# Several trackers.


@posix
def test_trackers_come_and_go(run_bulk, run_tracker, owners, bootstrap, topic, tmp_path):
    """They share and replace each other, a clean stop repeats nothing, and the orders of a key stay in sequence."""
    create_topic(bootstrap, topic, partitions=6)
    keys, file = [new_order("x", "x", 1)["order_id"] for _ in range(40)], tmp_path / "keys.jsonl"
    orders = [new_order(f"u{number}", "x", 1, random.choice(keys)) for number in range(30_000)]  # noqa: S311
    file.write_text("".join(json.dumps(order) + "\n" for order in orders))
    sending = run_bulk("-l", file, "--rate", "100")
    names = ("one", "two", "three")
    trackers = [run_tracker("-X", f"client.id={name}") for name in names]
    wait_slowly(lambda: sorted(owners()) == sorted(2 * names), "two partitions for each")
    for tracking in trackers:
        more(tracking)
    assert trackers[0].stop(signal.SIGTERM) == 0
    wait_slowly(lambda: sorted(owners()) == ["three"] * 3 + ["two"] * 3, "three for each")
    for tracking in trackers[1:]:
        more(tracking)
    trackers[1].stop(signal.SIGKILL)
    wait_slowly(lambda: owners() == ["three"] * 6, "all partitions for the last")
    more(trackers[2], 200)
    assert sending.stop(limit=OUTAGE_LIMIT) == 0
    wait_until(lambda: tracked(*trackers) >= confirmed(sending), "all confirmed orders", OUTAGE_LIMIT)
    assert trackers[2].stop() == 0
    assert tracked(*trackers) <= {order["user"] for order in orders}
    assert_log_holds_each_once(bootstrap, topic)
    assert_offsets_rise(bootstrap, topic, *trackers)
    assert_nothing_stored_ahead(bootstrap, topic, *trackers)
    assert not tracked(trackers[0]) & tracked(*trackers[1:]), "a clean stop repeated an order"
    key_of = {order["user"]: order["order_id"] for order in orders}
    for key in keys:
        log = sorted(
            (int(user[1:]), partition, at) for user, partition, at in places(bootstrap, topic) if key_of[user] == key
        )
        assert log == sorted(log, key=lambda place: place[1:])
        assert len({partition for _, partition, _ in log}) == 1


def test_partitions_are_added(start, run_tracker, owners, bootstrap, topic):
    """Running trackers share them, and to ask for them again is a line."""
    create_topic(bootstrap, topic)
    soon = ["-X", "topic.metadata.refresh.interval.ms=500"]
    trackers = [run_tracker("-X", f"client.id={name}", *soon) for name in ("one", "two")]
    wait_slowly(lambda: any(owners()), "an owner of the only partition")
    add = partial(start, sys.executable, "-m", "next_steps.load_balancing.partitions", "-b", bootstrap, "-t", topic)
    assert add("6").wait() == 0
    wait_slowly(lambda: sorted(owners()) == ["one"] * 3 + ["two"] * 3, "three for each")
    for partition in range(6):
        put(bootstrap, topic, ORDER, partition=partition)
    for tracking in trackers:
        tracking.wait_for(RECEIVED, times=3)
        assert tracking.stop() == 0
    for number, reason in [("6", "Topic already has 6 partition(s)"), ("3", "3 would not be an increase")]:
        again = add(number)
        assert (again.wait(), again.out, len(again.err)) == (1, [], 1)
        assert again.err[0].startswith(f"Topic {topic} did not get {number} partitions: ")
        assert f"{reason}. Ask for more than it has" in again.err[0]
    assert add("0").wait() == 1
    assert len(partitions(AdminClient({"bootstrap.servers": bootstrap}), topic)) == 6


# Who has what, and how far behind.


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_lag(show_lag, run_tracker, owners, bootstrap, topic, protocol):
    create_topic(bootstrap, topic, partitions=3)
    put(bootstrap, topic, ORDER, ORDER, partition=0)
    trackers = [run_tracker("-X", f"group.protocol={protocol}", "-X", f"client.id={name}") for name in ("one", "two")]
    wait_slowly(lambda: {"one", "two"} == set(owners()), "a share for each")
    wait_until(lambda: sum(tracking.out.count(RECEIVED) for tracking in trackers) == 2, "both orders")
    for tracking in trackers:
        assert tracking.stop() == 0
    put(bootstrap, topic, ORDER, ORDER, ORDER, partition=0)
    put(bootstrap, topic, ORDER, partition=2)
    once = show_lag()
    assert (once.wait(), once.err) == (0, [])
    assert [re.split(" {2,}", line.strip()) for line in once.out] == [
        ["partition", "owner", "committed", "end", "lag"],
        [f"{topic} [0]", "-", "2", "5", "3"],
        [f"{topic} [1]", "-", "-", "0", "0"],
        [f"{topic} [2]", "-", "-", "1", "1"],
        ["all", "4"],
    ]
    assert len(set(map(len, once.out))) == 1
    assert [show_lag("--max-lag", limit).wait() for limit in ("3", "4")] == [1, 0]
    assert committed(bootstrap, topic, topic, 0) == 2  # it only reads


def test_lag_where_old_orders_are_gone(show_lag, bootstrap, admin, topic):
    """It counts what can still be read, with and without a committed offset."""
    create_topic(bootstrap, topic, partitions=2)
    put(bootstrap, topic, *[ORDER] * 5, partition=0)
    commit(bootstrap, topic, topic, 0, 1)
    commit(bootstrap, f"{topic}-new", topic, 1, 0)
    gone = admin.delete_records([TopicPartition(topic, 0, 3)])
    assert [deleted.result(OUTAGE_LIMIT).low_watermark for deleted in gone.values()] == [3]
    for group, offset in [(topic, "1"), (f"{topic}-new", "-")]:
        assert row(show_lag("-g", group, "--max-lag", "2")) == [offset, "5", "2"]


def test_lag_of_an_offset_beyond_the_end(show_lag, run_tracker, bootstrap, topic):
    """As after a volume was restored: the lag is what a tracker then reads."""
    create_topic(bootstrap, topic)
    put(bootstrap, topic, ORDER, ORDER)
    commit(bootstrap, topic, topic, 0, 77)
    assert row(show_lag()) == ["77", "2", "2"]
    assert committed(bootstrap, topic, topic) == 77
    tracking = run_tracker("-e")
    assert tracking.wait() == 0
    assert tracking.out[1:] == [RECEIVED] * 2


@pytest.fixture
def transactions(bootstrap, topic):
    """A producer whose records count when their transaction ends."""
    create_topic(bootstrap, topic)
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": topic, "log_level": 2})
    producer.init_transactions(OUTAGE_LIMIT)
    return producer


def test_lag_after_a_transaction(transactions, show_lag, run_tracker, topic):
    """Its marker has an offset, but nobody will read it: a monitoring would be alarmed for ever."""
    transactions.begin_transaction()
    transactions.produce(topic, ORDER)
    transactions.commit_transaction(OUTAGE_LIMIT)
    assert run_tracker("-c", "1").wait() == 0
    assert row(show_lag("--max-lag", "0")) == ["1", "2", "0"]
    transactions.begin_transaction()
    transactions.produce(topic, ORDER)
    transactions.commit_transaction(OUTAGE_LIMIT)
    assert show_lag("--max-lag", "0").wait() == 1


def test_lag_after_an_aborted_transaction(transactions, show_lag, bootstrap, topic):
    commit(bootstrap, topic, topic, 0, 0)
    transactions.begin_transaction()
    transactions.produce(topic, ORDER)
    transactions.flush(OUTAGE_LIMIT)
    transactions.abort_transaction(OUTAGE_LIMIT)
    assert row(show_lag("--max-lag", "0")) == ["0", "2", "0"]
    assert committed(bootstrap, topic, topic) == 0


def test_lag_behind_an_open_transaction(transactions, show_lag, run_tracker, bootstrap, topic):
    """It holds back what was written after it, and trackers read it all once it ends."""
    commit(bootstrap, topic, topic, 0, 0)
    transactions.begin_transaction()
    transactions.produce(topic, ORDER)
    transactions.flush(OUTAGE_LIMIT)
    put(bootstrap, topic, ORDER, ORDER)
    waiting = run_tracker("-e")
    assert (waiting.wait(), waiting.out[1:]) == (0, [])
    assert row(show_lag()) == ["0", "3", "3"]
    transactions.abort_transaction(OUTAGE_LIMIT)
    assert run_tracker("-c", "2").wait() == 0
    assert row(show_lag("--max-lag", "0")) == ["3", "4", "0"]


def test_lag_of_a_name_that_could_drive_the_terminal(show_lag, owners, run_tracker):
    tracking = run_tracker("-X", "client.id=\x1b[2J")
    tracking.wait_for("Consumer is running")
    wait_slowly(lambda: "\\x1b[2J" in owners(), "an owner")
    once = show_lag()
    assert once.wait() == 0
    assert any("\\x1b[2J-" in line for line in once.out)
    assert all(line.isprintable() for line in once.out)


def test_watch(show_lag, bootstrap, topic):
    create_topic(bootstrap, topic)
    commit(bootstrap, topic, topic, 0, 0)
    watching = show_lag("--watch", "--max-lag", "0")
    for lag_so_far in (0, 1):
        seen = re.compile(f"all +{lag_so_far}")
        wait_until(lambda seen=seen: sum(map(bool, map(seen.fullmatch, watching.out))) > 1, "two looks")
        put(bootstrap, topic, ORDER)
    assert watching.stop() == 1  # the status of the last look that has ended
    assert watching.err == []


@posix
def test_watch_reads_its_properties_once(start, bootstrap, topic, tmp_path):
    """They may come from a pipe, `ps` doesn't show them, and Ctrl-C, which all processes get, is no traceback."""
    create_topic(bootstrap, topic)
    commit(bootstrap, topic, topic, 0, 0)
    (tmp_path / "properties").write_text(f"group.id={topic}\nsasl.password=of-{topic}\n")
    command = [sys.executable, "-m", "next_steps.load_balancing.lag", "-b", bootstrap, "-t", topic, "--watch"]
    watching = start(
        "bash", "-c", f"exec {shlex.join(command)} -F <(cat {tmp_path}/properties)", start_new_session=True
    )
    shown = wait_until(lambda: [line for line in processes() if f"-t {topic} -F -" in line], "a look", OUTAGE_LIMIT)
    assert f"of-{topic}" not in "".join(shown)
    watching.wait_for(":", times=3)  # in the time above each table: the third look begins now
    assert sum(f"{topic} [0]" in line for line in watching.out) >= 2
    os.killpg(watching.popen.pid, signal.SIGINT)
    assert (watching.wait(), watching.err) == (0, [])


@posix
@pytest.mark.parametrize(("end", "status"), [("exit 3", 1), ("kill -INT $$", 0)])
def test_a_look_that_ends_before_it_has_read_its_properties(monkeypatch, tmp_path, end, status):
    """A Ctrl-C may come before it is out of its reach: that is no traceback, and no lag."""
    look = tmp_path / "look"
    look.write_text(f"#!/bin/sh\n{end}\n")
    look.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(look))
    more_than_a_pipe_holds = {"client.id": "x" * 1_000_000}
    args = argparse.Namespace(config=more_than_a_pipe_holds, topic="orders", count=1, max_lag=None)
    assert lag.watch(args, []) == status


def processes():
    """Return the command lines of all processes, whole also where COLUMNS says how wide a terminal is."""
    return subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()


def test_watch_counts_its_looks(show_lag, bootstrap, topic):
    create_topic(bootstrap, topic)
    watching = show_lag("--watch", "-c", "2")
    assert watching.wait() == 1
    assert len(watching.out) == 2
    assert watching.err == [f"Group {topic} doesn't exist, or no longer. Check -g, or start a tracker in it"] * 2


def test_watch_when_the_coordinator_is_killed(cluster, show_lag, run_tracker, owners, bootstrap, admin, topic):
    create_topic(bootstrap, topic)
    tracking = run_tracker()
    wait_slowly(lambda: any(owners()), "an owner of the only partition")
    watching = show_lag("--watch")
    watching.wait_for("rdkafka-")
    coordinator = admin.describe_consumer_groups([topic])[topic].result(OUTAGE_LIMIT).coordinator
    cluster.brokers[coordinator.id - 1].kill()
    # Of three looks that show the owner, the first may have been under way.
    watching.wait_for("rdkafka-", OUTAGE_LIMIT, times=sum("rdkafka-" in line for line in watching.out) + 3)
    assert watching.stop() == 0
    assert tracking.stop() == 0


def test_what_is_wrong_is_said_in_a_line(show_lag, bootstrap, admin, topic):
    create_topic(bootstrap, topic)
    cases = [
        (["-b", "127.0.0.1:1"], 1, r"No Kafka broker answered at 127.0.0.1:1 within 9 s: .*refused.* Start one"),
        (["-t", f"{topic}-nowhere"], 1, f"Topic {topic}-nowhere can't be used: Broker: Unknown topic or partition"),
        ([], 1, f"Group {topic} doesn't exist, or no longer. Check -g"),
        (["-X", "no.such=property"], 2, 'No such configuration property: "no.such"'),
        (["-X", "no property"], 2, "error: a flag "),
        (["-F", "no-such-file"], 2, "no-such-file"),
        (["--max-lag", "some"], 2, "invalid int value: 'some'"),
        (["--watch", "-X", "no.such=property"], 2, 'No such configuration property: "no.such"'),
    ]
    for process, status, words in [(show_lag(*arguments), status, words) for arguments, status, words in cases]:
        assert (process.wait(), process.out) == (status, []), process
        assert re.search(words, process.err[-1]), process
        assert status == 2 or len(process.err) == 1
        assert "Traceback" not in str(process)
    assert f"{topic}-nowhere" not in admin.list_topics(timeout=OUTAGE_LIMIT).topics


@pytest.mark.spread
def test_lag_where_no_coordinator_can_exist(new_broker, start):
    """As in Compose files that lack the setting: three replicas by default, and one broker."""
    broker = new_broker(KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=3)
    create_topic(broker.bootstrap, "orders")
    once = start(sys.executable, "-m", "next_steps.load_balancing.lag", "-b", broker.bootstrap)
    assert (once.wait(20), once.out, len(once.err)) == (1, [], 1)
    said = "Kafka did not tell the lag of group order-tracker: Local: Timed out. See that as many brokers run"
    assert once.err[0].startswith(said)


@pytest.mark.spread
def test_lag_without_rights(new_broker, start, topic, tmp_path):
    broker = new_broker(login("admin"), **SECURED)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap} | login("admin"))
    admin.create_topics([NewTopic(topic, 1)])[topic].result(OUTAGE_LIMIT)
    (tmp_path / "john").write_text("".join(f"{name}={value}\n" for name, value in login("john").items()))
    rights = [
        (f"Topic {topic} can't be used: Broker: Topic authorization failed", "TOPIC"),
        (f"Kafka did not tell the lag of group {topic}: Broker: Group authorization failed", "GROUP"),
        (f"Group {topic} doesn't exist, or no longer", None),
    ]
    arguments = ["-b", broker.bootstrap, "-t", topic, "-g", topic, "-F", tmp_path / "john"]
    for words, kind in rights:
        look = partial(start, sys.executable, "-m", "next_steps.load_balancing.lag", *arguments)
        once = wait_until(lambda look=look, words=words: said(look(), words), words)
        assert len(once.err) == 1
        if kind:
            allow(admin, "john", "DESCRIBE", kind, topic)


def said(process, words):
    """Return the process if it has ended with 1 and such a line; a right takes a moment until it counts."""
    return process if process.wait(20) == 1 and process.err[0].startswith(words) else None


# Three brokers, of which some fail.


def test_one_reachable_bootstrap_server_is_enough(cluster, run_producer, run_tracker, topic):
    servers = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()},{cluster.brokers[2].bootstrap}"
    tracking = run_tracker("-b", servers)
    tracking.wait_for("Consumer is running")
    assert run_producer("-b", servers, "-c", "12").wait() == 0
    tracking.wait_for(RECEIVED, times=12)
    assert (tracking.stop(), tracking.err) == (0, [])


def test_each_broker_is_killed_in_turn(cluster, traffic, admin, topic):
    """Nothing is lost, and nothing is doubled that goes batch by batch."""
    create_topic(cluster.bootstrap, topic, partitions=6)
    flow = traffic(cluster.bootstrap)
    tracking = flow.track()
    # librdkafka #4953, see the README
    sending = [flow.send("--rate", "50", *options) for options in ([], ["-X", "max.in.flight=1"])]
    more(tracking)
    for number, broker in enumerate(cluster.brokers, 1):
        wait_until(lambda: in_sync(admin, topic), "three replicas in sync", OUTAGE_LIMIT)
        assert led_by(admin, topic, number)
        broker.kill()
        wait_until(lambda number=number: not led_by(admin, topic, number), "other leaders", OUTAGE_LIMIT)
        for process in sending:
            more(process, 100)
        restart(broker)
    for process in sending:
        more(process)
    flow.finish()
    assert given_up(*sending) == set()
    never_twice = confirmed(sending[1])
    users = (user for user, _, _ in places(cluster.bootstrap, topic))
    assert sum(user in never_twice for user in users) == len(never_twice)


def test_two_brokers_are_down(cluster, traffic):
    """No order is confirmed until one of them is back."""
    flow = traffic(cluster.bootstrap)
    assert flow.send(count=20).wait() == 0
    under_way = flow.send("--rate", "2", "-X", "delivery.timeout.ms=5000", count=20)
    more(under_way, 2)
    for broker in cluster.brokers[1:]:
        broker.kill()
    without = flow.send("-X", "delivery.timeout.ms=5000", count=20)
    for sending in (under_way, without):
        assert sending.wait(OUTAGE_LIMIT) == 1
    assert len(confirmed(under_way) | given_up(under_way)) == 20
    assert given_up(under_way)
    assert (confirmed(without), len(given_up(without))) == (set(), 20)
    restart(cluster.brokers[1])
    assert flow.send(count=20).wait(OUTAGE_LIMIT) == 0
    flow.finish()


# The README.


def test_the_commands_of_the_readme(cluster, start):
    """Each prints what stands below it."""
    ran = []
    create_topic(cluster.bootstrap, "orders")

    def run(words, number=0):
        """Start a command of the README; return it with the lines that stand below it."""
        command, lines = examples(words, README)[number]
        ran.append(command)
        arguments = shlex.split(command.replace(SERVERS, cluster.bootstrap))[1:]
        return start(sys.executable, *arguments, env={"KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap}), lines

    def table_without_numbers(lines):
        return [re.sub(r"/[\d.]+|\d+", "0", re.sub(rf"{UUID}| +", " ", line)) for line in lines]

    adding, lines = run("python -m next_steps.load_balancing.partitions")
    assert (adding.wait(), adding.out) == (0, lines)
    trackers = [run(f"python tracker.py -X client.id={name}") for name in ("one", "two")]
    for tracking, lines in trackers:
        tracking.wait_for("Consumer is running")
        assert tracking.out == lines
    assert run("python -m next_steps.bulk.producer -q")[0].wait() == 0

    def lag_is_as_documented():
        process, lines = run("python -m next_steps.load_balancing.lag")
        assert process.wait() == 0
        return table_without_numbers(process.out) == table_without_numbers(lines)

    wait_slowly(lag_is_as_documented, "three partitions for each, and commits")
    for tracking, _ in trackers:
        assert tracking.stop() == 0
    tracking, lines = run(f"python tracker.py -b {SERVERS}")
    tracking.wait_for("Consumer is running")
    assert tracking.out == lines
    sending, lines = run(f"python -m next_steps.bulk.producer -b {SERVERS}")
    sending.wait_for("Message delivered")
    assert same(sending.out[:1], lines)
    tracking.wait_for(RECEIVED)
    assert sending.stop() == 0
    elsewhere = ("docker-compose", "python tests/broker.py")
    assert set(ran) == {command for command, _ in examples("", README) if not command.startswith(elsewhere)}


def test_the_readme_names_each_flag_of_lag():
    rows = re.findall(r"^\| (`-.*?) \|", README, re.MULTILINE)
    named = {flag for line in rows for flag in re.findall(r"`(--?[a-zA-Z-]+)", line)}
    shown = [action for action in lag.command_line()._actions if action.help != argparse.SUPPRESS]
    assert named == {action.option_strings[0] for action in shown} - {"-h"}
