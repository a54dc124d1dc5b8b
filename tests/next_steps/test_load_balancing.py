"""next_steps/load_balancing: trackers share a topic, and a cluster of three brokers outlives any one of them."""

import json
import random
import re
import shlex
import signal
import sys
from functools import partial

import pytest
import test_compose
from broker import ROOT, Cluster, free_port, missing
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource
from conftest import INTERRUPT, answers, create_topic, put, records, wait_until
from test_faults import LIMIT, SOON_BACK, check, confirmed, given_up, more, posix, received, tracked_all
from test_readme import UUID, examples, same

from next_steps.load_balancing import lag
from producer import new_order, to_json

FOLDER = ROOT / "next_steps" / "load_balancing"
CLUSTER_FILE = FOLDER / "docker-compose.yml"
README = (FOLDER / "README.md").read_text("utf-8")
SERVERS = "localhost:9092,localhost:9094,localhost:9096"  # those of the Compose file
ORDER = to_json(new_order("john", "burger", 5))
RECEIVED = "Message received: burger 5 from john"

pytestmark = pytest.mark.timeout(600)  # each wait has a limit of its own, far below


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    """The brokers of the step's Compose file, on ports that nobody uses."""
    if lacking := missing():
        pytest.skip(f"no brokers that a test may stop: install {lacking}")
    with Cluster(tmp_path_factory.mktemp("cluster"), CLUSTER_FILE, settings=SOON_BACK) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster):
    """Three brokers that run, of which the test may kill some."""
    yield shared_cluster
    restart(*(broker for broker in shared_cluster.brokers if broker.process.poll() is not None))


@pytest.fixture
def bootstrap(cluster):
    """The addresses of all three: the fixtures `tracker` and `producer` send their scripts there."""
    return cluster.bootstrap


@pytest.fixture
def admin(bootstrap):
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})


@pytest.fixture
def own_ports():
    """Skip the test where the ports of the Compose file are in use."""
    for port in (9092, 9094, 9096):
        if test_compose.connects("localhost", port):
            pytest.skip(f"another program uses port {port}: stop it (docker-compose down)")


@pytest.fixture
def show_lag(start, bootstrap, topic):
    """A function that starts lag.py with this test's brokers, topic and group."""
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


def partitions(admin, topic):
    """Return what the cluster tells of the topic's partitions, by their numbers."""
    return admin.list_topics(topic, LIMIT).topics[topic].partitions


def in_sync(admin, topic):
    """Return whether each partition has three replicas in sync."""
    return all(len(partition.isrs) == 3 for partition in partitions(admin, topic).values())


def led_by(admin, topic, number):
    """Return the partitions that a broker leads."""
    return [n for n, partition in partitions(admin, topic).items() if partition.leader == number]


# The Compose file, in a Docker engine and without.


@pytest.mark.skipif(not test_compose.COMMANDS, reason="no Compose command: install Docker (Debian: docker-compose)")
def test_the_cluster_runs_in_a_docker_engine_and_outlives_a_container(own_ports, start, topic):
    def run(script, *arguments):
        return start(sys.executable, script, "-b", SERVERS, "-t", topic, *arguments)

    def as_documented(words):
        (command, _), *_ = examples(words, README)
        *_, arguments = command.split(" kafka ", 1)
        test_compose.run(
            "docker", "exec", project.container("kafka1"), *shlex.split(arguments.replace("orders", topic))
        )

    with test_compose.running(test_compose.COMMANDS[0], CLUSTER_FILE) as project:
        for service, port in [("kafka1", 9092), ("kafka2", 9094), ("kafka3", 9096)]:
            published = test_compose.run("docker", "port", project.container(service))
            assert published == f"{port}/tcp -> 127.0.0.1:{port}"
        admin = AdminClient({"bootstrap.servers": SERVERS, "log_level": 2})
        create_topic(SERVERS, topic, partitions=1)
        tracking = run("tracker.py", "-g", topic, "-X", "topic.metadata.refresh.interval.ms=1000")
        tracking.wait_for("Consumer is running")
        assert run("producer.py").wait() == 0
        tracking.wait_for(RECEIVED)
        as_documented("docker-compose exec")
        assert len(partitions(admin, topic)) == 6
        project.compose("kill", "kafka2")
        assert run("producer.py", "-c", "20").wait(LIMIT) == 0
        tracking.wait_for(RECEIVED, times=21, limit=LIMIT)
        assert tracking.stop() == 0
        project.down()
        project.compose("up", *project.options)
        wait_until(lambda: answers(SERVERS), "the brokers", LIMIT)
        for group, orders in [(topic, 0), (f"{topic}-new", 21)]:
            again = run("tracker.py", "-g", group, "-e")
            assert (again.wait(LIMIT), again.out[1:]) == (0, [RECEIVED] * orders)


def test_the_launcher_runs_the_cluster_all_at_once_and_each_broker_by_itself(own_ports, start, topic, tmp_path):
    if lacking := missing():
        pytest.skip(f"no broker can be started: install {lacking}")
    (command, lines), *_ = examples("python tests/broker.py", README)
    launch = partial(start, sys.executable, *shlex.split(command)[1:], "--directory", tmp_path)
    pair = [("producer.py", []), ("tracker.py", ["-e", "-g", topic])]

    def order_arrives(servers):
        for script, options in pair:
            done = start(sys.executable, script, "-b", servers, "-t", topic, *options)
            assert done.wait(LIMIT) == 0, done
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


@pytest.mark.skipif(missing() is not None, reason=f"no brokers can be started: install {missing()}")
def test_the_benchmark_measures_how_the_pair_scales(start):  # here, before the other tests' brokers run
    measuring = start(sys.executable, "tests/benchmark.py", "--scale", "--rounds", "1", "--orders", "500")
    assert measuring.wait(280) == 0, measuring
    rows = [line.split(" | ")[:2] for line in measuring.out if line.startswith("| ")]
    figures = [(name, float(figure.split(" ")[0].replace(",", ""))) for name, figure in rows if figure[0].isdigit()]
    trackers = [f"| {count} tracker{'s' if count > 1 else ''}" for count in (1, 2, 4, 6)]
    ends, costs = ["| SIGTERM", "| SIGKILL", "| SIGKILL"], ["| 500 orders", "| 5,000 orders"]
    assert [name for name, _ in figures] == 4 * trackers + ends + 4 * costs
    assert all(figure > 0 for _, figure in figures)


def test_new_topics_have_three_replicas_of_which_two_must_be_in_sync(producer, tracker, admin, topic):
    assert producer().wait(LIMIT) == 0
    assert tracker("-e").wait(LIMIT) == 0
    for name, count in [(topic, 6), ("__consumer_offsets", 3)]:
        found = partitions(admin, name).values()
        assert [len(partition.replicas) for partition in found] == [3] * count
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    assert admin.describe_configs([resource])[resource].result(LIMIT)["min.insync.replicas"].value == "2"


# Several trackers.


@posix
def test_trackers_share_and_replace_each_other_and_keep_the_orders_of_a_key_in_sequence(
    producer, tracker, owners, bootstrap, topic, tmp_path
):
    create_topic(bootstrap, topic, partitions=6)
    keys, file = [new_order("x", "x", 1)["order_id"] for _ in range(40)], tmp_path / "keys.jsonl"
    orders = (new_order(f"u{number}", "x", 1, random.choice(keys)) for number in range(200_000))  # noqa: S311
    file.write_text("".join(json.dumps(order) + "\n" for order in orders))
    sending = producer("-l", file, "--rate", "100")
    names = ("one", "two", "three")
    trackers = [tracker("-X", f"client.id={name}") for name in names]
    wait_until(lambda: sorted(owners()) == sorted(2 * names), "two partitions for each")
    for tracking in trackers:
        more(tracking)
    assert trackers[0].stop(signal.SIGTERM) == 0
    wait_until(lambda: sorted(owners()) == ["three"] * 3 + ["two"] * 3, "three partitions for each")
    for tracking in trackers[1:]:
        more(tracking)
    trackers[1].stop(signal.SIGKILL)
    wait_until(lambda: owners() == ["three"] * 6, "all partitions for the last")
    more(trackers[2], 200)
    assert sending.stop(limit=LIMIT) == 0
    wait_until(lambda: set(confirmed(sending)) <= set().union(*map(received, trackers)), "all orders", LIMIT)
    assert trackers[2].stop() == 0
    check(bootstrap, topic, [sending], trackers, [file], repeated=True)
    stopped, killed, last = (set(received(tracking)) for tracking in trackers)
    assert not stopped & (killed | last), "a clean stop repeated an order"
    log = sorted(records(bootstrap, topic), key=lambda msg: json.loads(msg.value())["user"][1:].zfill(6))
    for key in keys:
        places = [(msg.partition(), msg.offset()) for msg in log if msg.key().decode() == key]
        assert places == sorted(places)
        assert len({partition for partition, _ in places}) == 1


def test_running_trackers_pick_up_partitions_that_a_topic_gets(start, tracker, owners, bootstrap, topic):
    create_topic(bootstrap, topic, partitions=1)
    soon = ["-X", "topic.metadata.refresh.interval.ms=500"]
    trackers = [tracker("-X", f"client.id={name}", *soon) for name in ("one", "two")]
    wait_until(lambda: any(owners()), "an owner of the only partition")
    (command, _), *_ = examples("python -c", README)
    code = shlex.split(command)[-1].replace("localhost:9092", bootstrap).replace("orders", topic)
    assert start(sys.executable, "-c", code).wait() == 0
    wait_until(lambda: sorted(owners()) == ["one"] * 3 + ["two"] * 3, "three for each", LIMIT)
    for partition in range(6):
        put(bootstrap, topic, ORDER, partition=partition)
    for tracking in trackers:
        tracking.wait_for(RECEIVED, times=3)
        assert tracking.stop() == 0


# Who has what, and how far behind.


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_lag_shows_who_has_what_and_how_far_behind(show_lag, tracker, owners, bootstrap, topic, protocol):
    create_topic(bootstrap, topic, partitions=3)
    put(bootstrap, topic, ORDER, ORDER, partition=0)
    trackers = [tracker("-X", f"group.protocol={protocol}", "-X", f"client.id={name}") for name in ("one", "two")]
    wait_until(lambda: {"one", "two"} == set(owners()), "a share for each", LIMIT)
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


def test_lag_counts_what_can_still_be_read_when_old_orders_are_gone(show_lag, tracker, bootstrap, admin, topic):
    create_topic(bootstrap, topic, partitions=1)
    put(bootstrap, topic, *[ORDER] * 5)
    assert tracker("-c", "1").wait() == 0
    gone = admin.delete_records([TopicPartition(topic, 0, 3)])
    assert [deleted.result(LIMIT).low_watermark for deleted in gone.values()] == [3]
    for group, committed in [(topic, "1"), (f"{topic}-new", "-")]:
        once = show_lag("-g", group, "--max-lag", "2")
        assert once.wait() == 0
        assert once.out[1].split()[2:] == ["-", committed, "5", "2"]


def test_lag_shows_nothing_that_could_drive_the_terminal(show_lag, owners, tracker):
    tracking = tracker("-X", "client.id=\x1b[2J")
    tracking.wait_for("Consumer is running")
    wait_until(lambda: "\\x1b[2J" in owners(), "an owner")
    once = show_lag()
    assert once.wait() == 0
    assert any("\\x1b[2J-" in line for line in once.out)
    assert all(line.isprintable() for line in once.out)


def test_watching_the_lag_shows_it_again_and_again(show_lag, bootstrap, topic):
    create_topic(bootstrap, topic, partitions=1)
    watching = show_lag("--watch", "--max-lag", "0")
    for lag_so_far in (0, 1):
        seen = re.compile(f"all +{lag_so_far}")
        wait_until(lambda seen=seen: sum(map(bool, map(seen.fullmatch, watching.out))) > 1, "two looks")
        put(bootstrap, topic, ORDER)
    assert watching.stop() == 1  # the status of the last look that has ended
    assert watching.err == []


def test_watching_the_lag_goes_on_when_the_coordinator_of_the_group_is_killed(
    cluster, show_lag, tracker, owners, bootstrap, admin, topic
):
    create_topic(bootstrap, topic, partitions=1)
    tracking = tracker()
    wait_until(lambda: any(owners()), "an owner of the only partition")
    watching = show_lag("--watch")
    watching.wait_for("rdkafka-")
    coordinator = admin.describe_consumer_groups([topic])[topic].result(LIMIT).coordinator
    cluster.brokers[coordinator.id - 1].kill()
    watching.wait_for("rdkafka-", times=sum("rdkafka-" in line for line in watching.out) + 2)
    assert watching.stop() == 0
    assert tracking.stop() == 0


def test_what_is_wrong_is_said_in_a_line(show_lag):
    cases = [
        (["-b", "127.0.0.1:1"], 1, "No Kafka broker answered at 127.0.0.1:1 within 10 s. Start one"),
        (["-t", "nowhere"], 1, "Topic nowhere can't be used: "),
        (["-X", "no.such=property"], 2, 'No such configuration property: "no.such"'),
        (["-X", "no property"], 2, "a property was not of the form PROP=VALUE"),
        (["-F", "no-such-file"], 2, "no-such-file"),
        (["--max-lag", "some"], 2, "invalid int value: 'some'"),
        (["--watch", "-X", "no.such=property"], 2, 'No such configuration property: "no.such"'),
    ]
    for process, status, words in [(show_lag(*arguments), status, words) for arguments, status, words in cases]:
        assert (process.wait(), words in process.err[-1]) == (status, True), process
        assert "Traceback" not in str(process)


# Three brokers, of which some fail.


def test_one_reachable_bootstrap_server_is_enough(cluster, producer, tracker, topic):
    servers = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()},{cluster.brokers[2].bootstrap}"
    tracking = tracker("-b", servers)
    tracking.wait_for("Consumer is running")
    assert producer("-b", servers, "-c", "12").wait() == 0
    tracking.wait_for(RECEIVED, times=12)
    assert (tracking.stop(), tracking.err) == (0, [])


def test_each_broker_killed_in_turn_loses_nothing_and_doubles_nothing_that_goes_batch_by_batch(
    cluster, producer, tracker, admin, topic, orders
):
    bootstrap, files = cluster.bootstrap, [orders(20_000, "as-documented"), orders(20_000, "never-twice")]
    create_topic(bootstrap, topic, partitions=6)
    tracking = tracker()
    options = [], ["-X", "max.in.flight=1"]  # librdkafka #4953, see the README
    sending = [producer("-l", file, "--rate", "50", *option) for file, option in zip(files, options, strict=True)]
    more(tracking)
    for number, broker in enumerate(cluster.brokers, 1):
        wait_until(lambda: in_sync(admin, topic), "three replicas in sync", LIMIT)
        assert led_by(admin, topic, number)
        broker.kill()
        wait_until(lambda number=number: not led_by(admin, topic, number), "other leaders", LIMIT)
        for process in sending:
            more(process, 100)
        restart(broker)
    for process in sending:
        more(process)
        assert process.stop(limit=LIMIT) == 0
        assert given_up(process) == []
    tracked_all(tracking, *sending)
    assert tracking.stop() == 0
    check(bootstrap, topic, sending, [tracking], files, doubled=True, repeated=True, rejoined=True)
    never_twice = set(confirmed(sending[1]))
    users = (json.loads(record.value())["user"] for record in records(bootstrap, topic))
    assert sum(user in never_twice for user in users) == len(never_twice)


def test_with_two_brokers_down_no_order_is_confirmed_until_one_is_back(cluster, producer, tracker, topic, orders):
    bootstrap, files = cluster.bootstrap, [orders(20, name) for name in ("before", "under-way", "without", "after")]
    sent = [producer("-l", files[0])]
    assert sent[0].wait() == 0
    under_way = producer("-l", files[1], "--rate", "2", "-X", "delivery.timeout.ms=5000")
    more(under_way, 2)
    for broker in cluster.brokers[1:]:
        broker.kill()
    without = producer("-l", files[2], "-X", "delivery.timeout.ms=5000")
    for sending in (under_way, without):
        assert sending.wait(LIMIT) == 1
    assert len(confirmed(under_way)) + len(given_up(under_way)) == 20
    assert given_up(under_way)
    assert (confirmed(without), len(given_up(without))) == ([], 20)
    restart(cluster.brokers[1])
    sent += [under_way, without, producer("-l", files[3])]
    assert sent[-1].wait(LIMIT) == 0
    tracking = tracker("-e")
    assert tracking.wait(LIMIT) == 0
    check(bootstrap, topic, sent, [tracking], files, doubled=True)  # librdkafka #4953, see the README


# The README.


def test_the_commands_of_the_readme_print_what_stands_below_them(cluster, start):
    ran = []

    def run(words, number=0):
        """Start a command of the README; return it with the lines that stand below it."""
        command, lines = examples(words, README)[number]
        ran.append(command)
        arguments = shlex.split(command.replace(SERVERS, cluster.bootstrap))[1:]
        return start(sys.executable, *arguments, env={"KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap}), lines

    def table_without_numbers(lines):
        return [re.sub(r"/[\d.]+|\d+", "0", re.sub(rf"{UUID}| +", " ", line)) for line in lines]

    trackers = [run(f"python tracker.py -X client.id={name}") for name in ("one", "two")]
    for tracking, lines in trackers:
        tracking.wait_for("Consumer is running")
        assert tracking.out == lines
    assert run("python producer.py -q")[0].wait() == 0

    def lag_is_as_documented():
        process, lines = run("python -m next_steps.load_balancing.lag")
        assert process.wait() == 0
        return table_without_numbers(process.out) == table_without_numbers(lines)

    wait_until(lag_is_as_documented, "two trackers with three partitions each, who have committed")
    for tracking, _ in trackers:
        assert tracking.stop() == 0
    tracking, lines = run(f"python tracker.py -b {SERVERS}")
    tracking.wait_for("Consumer is running")
    assert tracking.out == lines
    sending, lines = run(f"python producer.py -b {SERVERS}")
    assert sending.wait() == 0
    assert same(sending.out, lines)
    tracking.wait_for(RECEIVED)
    elsewhere = ("docker-compose", "KAFKA_NUM_PARTITIONS=6 docker-compose", "python -c", "python tests/broker.py")
    assert set(ran) == {command for command, _ in examples("", README) if not command.startswith(elsewhere)}


def test_the_readme_names_each_flag_of_lag():
    rows = re.findall(r"^\| (`-.*?) \|", README, re.MULTILINE)
    named = {flag for row in rows for flag in re.findall(r"`(--?[a-zA-Z-]+)", row)}
    flags = {action.option_strings[0] for action in lag.command_line()._actions}
    assert named == flags - {"-h"}
