"""Kafka that can't be had: no broker, one that goes away, freezes or refuses; and a standard output that is gone."""

import contextlib
import json
import signal
import socket
import sys
import time

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from conftest import (
    LIMIT,
    OUTAGE_LIMIT,
    PROXIED,
    SECURED,
    allow,
    as_flags,
    committed,
    confirmed,
    freeze,
    given_up,
    login,
    posix,
    put,
    received,
    records,
    thaw,
    wait_until,
)

from producer import flush, new_order, to_json

pytestmark = pytest.mark.spread
END_LIMIT = 25  # seconds, of which the scripts themselves wait 10; Python starts slowly where many start at once
ORDER = to_json(new_order("john", "burger", 5))
SCRIPTS = ["producer.py", "tracker.py"]
# A producer of one's own that says which orders it made.
MAKES_ORDERS = """
import sys, producer

def made(args):
    for number in range(args.count):
        yield (order := producer.new_order(f"u{number}", "x", 1))
        print("Made", order["order_id"])

def run(client, args, stop):
    return producer.send(client, args.topic, made(args), stop=stop)

sys.exit(producer.main(run=run))
"""


@pytest.fixture
def secured(new_broker):
    """A broker with passwords and an access list: to the topic `mine` the writer may write, and the reader read it."""
    broker = new_broker(client=login("admin"), **SECURED)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap} | login("admin"))
    for created in admin.create_topics([NewTopic("mine", 1), NewTopic("others", 1)]).values():
        created.result(LIMIT)
    allow(admin, "writer", "WRITE", "TOPIC", "mine")
    allow(admin, "reader", "READ", "TOPIC", "mine")
    allow(admin, "reader", "DESCRIBE", "TOPIC", "others")
    allow(admin, "writer", "DESCRIBE", "TOPIC", "others")
    allow(admin, "reader", "READ", "GROUP", "readers")
    return broker


def assert_said(process, *words, status=1):
    """The process ends in time and without a traceback, and its last line has the words."""
    assert process.wait(END_LIMIT) == status, str(process)
    assert "Traceback" not in str(process), str(process)
    assert process.err, str(process)
    assert all(word in process.err[-1] for word in words), (words, str(process))


def assert_one_line(process, *words):
    assert_said(process, *words)
    assert len(process.err) == 1, str(process)


# Each thing that can be missing or wrong: one line, with librdkafka's reason and an advice that fits it.


def test_no_broker(start, bootstrap):
    """All at once, since each takes 10 s."""
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    silent_address = f"127.0.0.1:{silent.getsockname()[1]}"
    cases = [
        (["-b", "localhost:1"], ["localhost:1", "Connection refused", "Start one: docker-compose up -d"]),
        (["-b", "nowhere.invalid:9092"], ["nowhere.invalid:9092", "Failed to resolve", "Check -b"]),
        (["-b", silent_address], [silent_address, "no answer came", "Check -b, security.protocol"]),
        (["-b", f"SSL://{bootstrap}"], [f"SSL://{bootstrap}", "Check -b"]),
        (["-b", bootstrap, "-X", "security.protocol=ssl"], [bootstrap, "SSL", "Check -b, -F and -X"]),
    ]
    started = [(start(sys.executable, script, *case), words) for script in SCRIPTS for case, words in cases]
    for process, words in started:
        assert_one_line(process, "No Kafka broker answered at", "within 9 s: ", *words)
        assert process.out == []
        assert ("docker-compose" in process.err[0]) == ("refused" in process.err[0])
    silent.close()


def test_a_broker_that_wants_credentials_or_none(secured, bootstrap, start):
    wrong_password = as_flags(login("writer", **{"sasl.password": "wrong"}))
    wrong_mechanism = as_flags(login("writer", **{"sasl.mechanism": "SCRAM-SHA-256"}))
    here = ["-b", secured.bootstrap]
    cases = [
        (here, ["No Kafka broker answered", "Check -b"]),
        (["-b", bootstrap, *as_flags(login("writer"))], ["Kafka refused this", "SASL", "Check rights, password"]),
        ([*here, *wrong_password], ["Kafka refused this", "Invalid username or password", "rights, password"]),
        ([*here, *wrong_mechanism], ["Kafka refused this", "Unsupported SASL mechanism", "PLAIN", "rights, password"]),
    ]
    started = [(start(sys.executable, script, *case), words) for script in SCRIPTS for case, words in cases]
    for process, words in started:
        assert process.wait(END_LIMIT) == 1
        assert len(process.err) == 1
        assert all(word.lower() in process.err[0].lower() for word in words), str(process)
        assert "secret" not in process.err[0]


def test_a_user_without_a_right(secured, start):
    reader, writer = as_flags(login("reader")), as_flags(login("writer"))
    cases = [
        ("producer.py", [*writer, "-t", "new"], ["Topic new can't be used", "Topic authorization failed", "rights"]),
        ("producer.py", [*writer, "-t", "others"], ["Kafka refused this producer", "Topic authorization failed"]),
        ("producer.py", [*reader, "-t", "mine", "-X", "enable.idempotence=false"], ["Topic authorization failed"]),
        ("producer.py", [*reader, "-t", "mine"], ["Kafka refused this producer", "Cluster authorization", "rights"]),
        ("tracker.py", [*reader, "-t", "new", "-g", "readers"], ["Topic new can't be used", "Topic authorization"]),
        ("tracker.py", [*reader, "-t", "others", "-g", "readers"], ["Topic authorization failed", "rights"]),
        ("tracker.py", [*reader, "-t", "mine", "-g", "strangers"], ["Group authorization failed", "rights"]),
    ]
    started = [(start(sys.executable, script, "-b", secured.bootstrap, *case), words) for script, case, words in cases]
    for process, words in started:
        assert_said(process, *words)
        assert not any("Message" in line for line in process.out)


def test_who_has_the_right_needs_no_more(secured, start):
    here = ["-b", secured.bootstrap, "-t", "mine"]
    reader, writer = as_flags(login("reader")), as_flags(login("writer"))
    assert start(sys.executable, "producer.py", *here, *writer).wait() == 0
    assert start(sys.executable, "tracker.py", *here, *reader, "-g", "readers", "-c", "1").wait() == 0


@pytest.mark.parametrize("count", ["1", "20000"])
def test_a_fatal_error_leaves_no_order_unnamed(secured, start, count):
    here = ["-b", secured.bootstrap, "-t", "mine", "-c", count]
    fatal = start(sys.executable, "-c", MAKES_ORDERS, *here, *as_flags(login("reader")))
    assert_said(fatal, "Kafka refused this producer: ", "Cluster authorization failed", "Check rights")
    named = [
        json.loads(line.split(" was not confirmed")[0].removeprefix("Order ")) for line in fatal.err[:-1] if "{" in line
    ]
    ids = [order["order_id"] for order in named]
    assert len(set(ids)) == len(ids) >= 1
    assert {line.removeprefix("Made ") for line in fatal.out} <= set(ids)
    assert len(ids) - len(fatal.out) <= 1  # the last one that was made was not asked for its successor


def test_a_fatal_error_that_was_said_is_not_raised_once_more(secured):
    """librdkafka refuses an order as soon as it knows, and tells of the reason later: to whoever serves it next."""
    settings = login("reader") | {"enable.idempotence": True, "log_level": 0}
    for stop in ([], ["refused"]):
        client = Producer({"bootstrap.servers": secured.bootstrap} | settings)

        def refused(client=client):
            try:
                client.produce("mine", b"x")
            except KafkaException as error:
                return error.args[0].code() == KafkaError._FATAL

        wait_until(refused, "the fatal error")
        with contextlib.nullcontext() if stop else pytest.raises(KafkaException):
            flush(client, stop)
        assert not (stop and len(client))


@posix
def test_a_topic_name_that_is_none(start, bootstrap):
    cases = [
        (b"caf\xe9", "'caf\\udce9'"),
        ("", "''"),
        ("no topic!", "'no topic!'"),
        ("x" * 250, "xxx"),
        ("é", "'\\xe9'"),
    ]
    here = [sys.executable, "-b", bootstrap]
    started = [(start(here[0], script, *here[1:], "-t", name), shown) for script in SCRIPTS for name, shown in cases]
    for process, shown in started:
        assert_one_line(process, f"Topic {shown}" if shown != "xxx" else shown, "can't be used", "letters")


def test_a_topic_that_is_not_there(start, bootstrap, topic):
    """It may be in the making, so this takes 10 s."""
    never = ["-b", bootstrap, "-t", topic, "-X", "allow.auto.create.topics=false"]
    for process in [start(sys.executable, script, *never) for script in SCRIPTS]:
        assert_one_line(process, f"Topic {topic} can't be used: ", "Unknown topic", "Create it")


# Silence, and alarms that are none.


def test_no_coordinator_can_exist(new_broker, run_tracker):
    """The commonest mistake in Compose files for one broker; the tracker says why it can't go on."""
    broker = new_broker(KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=3)
    here = ["-b", broker.bootstrap]
    for process in [run_tracker(*here), run_tracker(*here, "-e")]:
        assert_said(process, "Kafka refused this tracker: ", "broker's log")
        assert len(process.err) == 1


def test_a_committed_offset_beyond_the_end(run_tracker, bootstrap, topic):
    """As after a volume was restored: a line says that it begins anew."""
    put(bootstrap, topic, *[ORDER] * 3)
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": topic})
    client.commit(offsets=[TopicPartition(topic, 0, 5)], asynchronous=False)
    client.close()
    beyond = run_tracker("-e")
    assert (beyond.wait(), len(beyond.out)) == (0, 4)
    assert len(beyond.err) == 1
    assert all(words in beyond.err[0] for words in (f"{topic} [0]", "5", "holds 0 to 3", "It begins anew"))


def test_a_committed_offset_below_what_is_left(run_tracker, bootstrap, topic):
    put(bootstrap, topic, *[ORDER] * 5)
    assert run_tracker("-c", "1").wait() == 0
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for deleted in admin.delete_records([TopicPartition(topic, 0, 3)]).values():
        assert deleted.result(LIMIT).low_watermark == 3
    below = run_tracker("-e")
    assert (below.wait(), len(below.out)) == (0, 3)
    assert len(below.err) == 1
    assert all(words in below.err[0] for words in (f"{topic} [0]", "1", "holds 3 to 5", "It begins anew"))


def test_idle_connections_that_the_broker_closes_are_no_outage(new_broker, run_bulk, run_tracker):
    # Just below the 3 s from one heartbeat to the next: each look that falls into a reconnection is a false alarm.
    broker = new_broker(KAFKA_CONNECTIONS_MAX_IDLE_MS=2500)
    tracking = run_tracker("-b", broker.bootstrap)
    sending = run_bulk("-b", broker.bootstrap, "-l", "-")
    spare = run_tracker("-b", broker.bootstrap)  # of these two one has no partition, and asks for nothing but its place
    for count in (1, 2):
        sending.write('{"user": "ana", "item": "x", "quantity": 1}\n')
        sending.wait_for("Message delivered", times=count)
        wait_until(lambda: len(received(tracking) + received(spare)) == count, (tracking, spare))  # noqa: B023
        time.sleep(11)  # what shall not be printed can't be waited for
    sending.popen.stdin.close()
    assert (sending.wait(), tracking.stop(), spare.stop()) == (0, 0, 0)
    assert sending.err == tracking.err == spare.err == []


@posix
def test_a_frozen_broker_is_named_by_both(new_broker, run_producer, run_tracker):
    """Some 10 s after an order is due, and some 20 s after the tracker got its last answer."""
    broker = new_broker()
    tracking = run_tracker("-b", broker.bootstrap)
    assert run_producer("-b", broker.bootstrap).wait() == 0
    tracking.wait_for("Message received")
    sending = run_producer("-b", broker.bootstrap, "-c", "60000")
    sending.wait_for("Message delivered")
    freeze(broker.process)
    sending.wait_for("Kafka", err=True, limit=20)
    tracking.wait_for("Kafka became unreachable, trying again: ", err=True, limit=35)
    thaw(broker.process)
    assert sending.wait(OUTAGE_LIMIT) == 0
    tracking.wait_for("Message received", times=60_001, limit=OUTAGE_LIMIT)
    assert tracking.stop() == 0


# A broker that goes away.


def test_an_outage_is_a_line_now_and_then(new_broker, traffic):
    """Nothing is lost or repeated."""
    broker = new_broker()
    flow = traffic(broker.bootstrap)
    # Members of a group are forgotten after session.timeout.ms: here the broker is back before, however slow.
    tracking = flow.track("-X", "session.timeout.ms=60000", "-c", "1500")
    sending = flow.send("--rate", "150", count=1500)
    tracking.wait_for("Message received", times=20)
    broker.kill()
    for process in (sending, tracking):
        process.wait_for("Kafka became unreachable, trying again: ", err=True)
    broker.start()
    assert (sending.wait(60), tracking.wait(60)) == (0, 0)
    assert received(tracking) == [f"run0-{number}" for number in range(1500)]
    assert len(sending.out) == len(records(broker.bootstrap, flow.topic)) == 1500
    words = ("Kafka became unreachable, trying again: ", "Still waiting for Kafka to confirm ")
    for process in (sending, tracking):
        assert all(line.startswith(words) for line in process.err), process.err
        assert len(process.err) <= 6, process.err


def test_an_outage_is_said_every_10_s_for_as_long_as_it_lasts(new_broker, run_producer, run_tracker):
    """With the reason. By each of many trackers: in some, librdkafka's own event for it comes only once."""
    broker = new_broker()
    trackers = [run_tracker("-b", broker.bootstrap, "-g", group) for group in "abcdefgh"]
    assert run_producer("-b", broker.bootstrap).wait() == 0
    for tracking in trackers:
        tracking.wait_for("Message received")  # it has joined its group: one that was about to would say more
    broker.process.terminate()  # then it tells of no broker for a moment
    broker.process.wait(LIMIT)
    time.sleep(31)  # how often it is said in that time
    for tracking in trackers:
        assert all(line.startswith("Kafka became unreachable, trying again: ") for line in tracking.err), tracking
        assert 3 <= len(tracking.err) <= 4, tracking
        # Until librdkafka tries to connect again there is no reason yet, which takes it up to 15 s.
        other = [line for line in tracking.err[2:] if "Connection refused" not in line]
        assert not other, tracking


def test_a_broker_that_is_just_starting_is_waited_for_without_a_word(new_broker, run_producer, run_tracker):
    broker = new_broker()
    broker.stop()
    broker.launch()
    port = "endpoint : ListenerName(HOST)"  # is made, but not open yet
    wait_until(lambda: port in broker.log.read_text("utf-8", "replace"), "two thirds of its start")
    starting = [run_producer("-b", broker.bootstrap), run_tracker("-b", broker.bootstrap, "-c", "1")]
    for process in starting:
        assert (process.wait(), process.err) == (0, [])


def test_an_address_that_is_advertised_and_does_not_answer_is_named(new_broker, run_producer, run_tracker):
    broker = new_broker(**PROXIED)
    nobody = f"127.0.0.1:{broker.port('9095')}"
    here = ["-b", f"127.0.0.1:{broker.port('9094')}", "-X", "reconnect.backoff.max.ms=500"]
    tracking, sending = run_tracker(*here), run_producer(*here, "-X", "delivery.timeout.ms=5000")
    for process in (tracking, sending):
        assert process.wait(END_LIMIT) == 1
        assert process.err, process
        assert nobody in str(process), str(process)
        assert "Traceback" not in str(process)


# A wait that is bounded, and a signal that ends it.


def test_the_wait_for_a_confirmation_is_bounded(new_broker, run_bulk, topic):
    broker = new_broker()
    sending = run_bulk("-b", broker.bootstrap, "-l", "-", "-X", "delivery.timeout.ms=3000")
    orders = [new_order(f"u{number}", "burger", 1) for number in range(3)]
    sending.write(json.dumps(orders[0]) + "\n")
    sending.wait_for("Message delivered")
    broker.kill()
    sending.write("".join(json.dumps(order) + "\n" for order in orders[1:]))
    sending.popen.stdin.close()
    assert sending.wait(END_LIMIT) == 1
    assert (confirmed(sending), given_up(sending)) == ({"u0"}, {"u1", "u2"})
    assert all(order["order_id"] in str(sending.err) for order in orders[1:])


def test_a_full_queue_drops_nothing(run_producer, bootstrap, topic):
    sending = run_producer("-c", "2000", "-X", "queue.buffering.max.messages=10", "-X", "linger.ms=1")
    assert sending.wait() == 0
    assert len(sending.out) == len(records(bootstrap, topic)) == 2000


def test_a_signal_while_the_queue_is_full_leaves_no_order_behind(run_producer):
    sending = run_producer("-c", "1000000", "-X", "queue.buffering.max.messages=10", "-X", "linger.ms=100")
    sending.wait_for("Message delivered", times=20)
    assert (sending.stop(), sending.err) == (0, [])


def test_a_signal_ends_the_wait_for_a_full_queue(new_broker, run_bulk):
    broker = new_broker()
    small = ["-X", "queue.buffering.max.messages=10"]
    sending = run_bulk("-b", broker.bootstrap, "-c", "1000000", "--rate", "1000", *small)
    sending.wait_for("Message delivered", times=20)
    broker.kill()
    sending.wait_for("Kafka became unreachable", err=True)
    assert sending.stop(limit=END_LIMIT) == 1
    assert 10 <= sum("was not confirmed: the producer was stopped" in line for line in sending.err) <= 12


@posix
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_signal_ends_the_search_for_a_broker(start, script):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        searching = start(sys.executable, script, "-b", f"127.0.0.1:{silent.getsockname()[1]}")
        silent.accept()
        assert searching.stop(signal.SIGTERM, limit=END_LIMIT) == 0
    assert searching.out == searching.err == []


# A standard output that is gone.


@posix
def test_the_producer_says_that_its_output_is_gone(run_producer, bootstrap, topic):
    with open("/dev/full", "w") as full:
        sending = run_producer("-c", "1000", stdout=full)
        assert sending.wait() == 1
    assert len(sending.err) == 1
    assert "Standard output could not be written" in sending.err[0]
    assert 1 <= len(records(bootstrap, topic)) <= 1000


@posix
def test_nothing_is_stored_of_a_list_that_was_not_printed(start, run_tracker, bootstrap, topic):
    """And the next start reads at once: the member has left, whose session would last for 10 s."""
    put(bootstrap, topic, *[ORDER] * 30)
    command = f"{sys.executable} tracker.py -b {bootstrap} -t {topic} -g {topic} | head -1"
    gone = start("bash", "-o", "pipefail", "-c", command)
    assert_one_line(gone, "Standard output could not be written: ", "comes again at the next start")
    assert committed(bootstrap, topic, topic) == -1001
    started = time.monotonic()
    again = run_tracker("-c", "30")
    assert (again.wait(), len(again.out)) == (0, 31)
    assert time.monotonic() - started < 8
