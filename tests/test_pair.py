"""The main job: what a user of the pair types and sees, and what stands on its seams."""

import itertools
import json
import sys
import threading
import time
import uuid
from collections import Counter
from functools import partial

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from conftest import LIMIT, committed, create_topic, put, records, wait_until

import producer
import tracker

pytestmark = pytest.mark.spread
RECEIVED = "Message received: burger 5 from john"


def sent(process):
    """Return the orders that the producer printed as delivered."""
    return [json.loads(line.removeprefix("Message delivered ")) for line in process.out]


# What is typed and seen.


def test_an_order_arrives_in_the_exact_words(run_producer, run_tracker, topic):
    tracking = run_tracker()
    tracking.wait_for(f"Consumer is running & subscribed to {topic} topic")
    sending = run_producer()
    assert sending.wait() == 0
    tracking.wait_for(RECEIVED)
    assert tracking.stop() == 0
    order_id = str(uuid.UUID(sent(sending)[0]["order_id"]))
    assert sending.out == [
        f'Message delivered {{"order_id": "{order_id}", "user": "john", "item": "burger", "quantity": 5}}'
    ]
    assert tracking.out == [f"Consumer is running & subscribed to {topic} topic", RECEIVED]
    assert sending.err == tracking.err == []


def test_without_flags_the_documented_names_count(start, bootstrap):
    environment = {"KAFKA_BOOTSTRAP_SERVERS": bootstrap}
    assert start(sys.executable, "producer.py", env=environment).wait() == 0
    tracking = start(sys.executable, "tracker.py", env=environment)
    tracking.wait_for(RECEIVED)
    assert tracking.stop() == 0
    assert tracking.out[0] == "Consumer is running & subscribed to orders topic"
    assert committed(bootstrap, "order-tracker", "orders") > 0


def test_another_order_is_printed_in_the_same_words(run_producer, run_tracker):
    sending = run_producer("--user", "ana", "--item", "piña colada", "--quantity", "12")
    assert sending.wait() == 0
    assert sending.out[0].endswith('"user": "ana", "item": "piña colada", "quantity": 12}')
    tracking = run_tracker("-c", "1")
    assert tracking.wait() == 0
    assert tracking.out[1] == "Message received: piña colada 12 from ana"


def test_the_key_is_the_order_id(run_producer, bootstrap, topic):
    sending = run_producer("-c", "3")
    assert sending.wait() == 0
    assert [r.key().decode() for r in records(bootstrap, topic)] == [order["order_id"] for order in sent(sending)]


def test_a_tracker_goes_on_where_its_group_stopped(run_producer, run_tracker):
    assert run_producer("--user", "first").wait() == 0
    assert run_tracker("-e").wait() == 0
    assert run_producer("--user", "second").wait() == 0
    tracking = run_tracker("-e")
    assert tracking.wait() == 0
    assert tracking.out[1:] == ["Message received: burger 5 from second"]


def test_a_tracker_that_is_first_makes_the_topic(run_producer, run_tracker, bootstrap, topic):
    """It does so before it says that it runs: the first order would wait a second for the next look at the metadata."""
    tracking = run_tracker()
    tracking.wait_for("Consumer is running")
    assert topic in AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=LIMIT).topics
    sending = run_producer()
    sending.wait_for("Message delivered")
    tracking.wait_for("Message received")


def test_an_order_does_not_wait_for_its_producer_id(run_producer):
    assert run_producer().wait() == 0  # makes the topic
    debugging = run_producer("-X", "debug=eos")
    assert debugging.wait() == 0
    log = [line for line in debugging.err if "PIDBROKER" in line or "GETPID" in line or "Acquired" in line]
    acquired = [float(line.split("|")[1]) for line in debugging.err if "Acquired PID" in line]
    started = float(debugging.err[0].split("|")[1])
    assert acquired, log
    assert acquired[0] - started < 0.4, log  # librdkafka's own retry comes after 500 ms


def test_a_second_tracker_runs_although_the_first_has_the_only_partition(run_producer, run_tracker):
    first = run_tracker()
    first.wait_for("Consumer is running")
    assert run_producer().wait() == 0
    first.wait_for("Message received")
    second = run_tracker()
    second.wait_for("Consumer is running")
    assert [first.stop(), second.stop()] == [0, 0]


def test_orders_and_the_groups_place_survive_a_restart(new_broker, run_producer, run_tracker):
    broker = new_broker()
    here = ("-b", broker.bootstrap)
    assert run_producer(*here, "--user", "before").wait() == 0
    assert run_tracker(*here, "-e").wait() == 0
    assert run_producer(*here, "--user", "kept").wait() == 0
    broker.stop()
    broker.start()
    tracking = run_tracker(*here, "-e")
    assert tracking.wait() == 0
    assert tracking.out[1:] == ["Message received: burger 5 from kept"]


# The seams.


def test_other_bytes_plug_into_the_seams(bootstrap, topic, capsys, no_signals):
    def send_upper(client, args, stop):
        orders = [producer.new_order("ana", "tea", 1)] * 2
        return producer.send(client, args.topic, orders, lambda order: producer.to_json(order).swapcase(), stop)

    def decode(record):
        return tracker.from_json(record.value().swapcase())

    here = ["-b", bootstrap, "-t", topic]
    assert producer.main(here, run=send_upper) == 0
    assert tracker.main([*here, "-g", topic, "-c", "2"], run=partial(tracker.track, decode=decode)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line.removeprefix("Message delivered "))["item"] for line in lines[:2]] == ["tea", "tea"]
    assert lines[3:] == ["Message received: tea 1 from ana"] * 2


@pytest.mark.parametrize("problem", [ZeroDivisionError, ConnectionError, BrokenPipeError])
def test_a_failure_of_ones_own_is_not_taken_for_another(bootstrap, topic, run_producer, no_signals, problem):
    """It comes out as it is, what was done before isn't repeated, and the next start has the partition at once."""
    assert run_producer("-c", "3000").wait() == 0
    handled = []
    arguments = ["-b", bootstrap, "-t", topic, "-g", topic, "-e"]

    def handle(consumer, args, stop, fails_at):
        for batch in tracker.follow(consumer, [args.topic], args.count, args.exit, stop, max_poll_records=10):
            for record in batch:
                if len(handled) == fails_at:
                    raise problem
                handled.append(record.key())
                tracker.store(consumer, [record])
        return 0

    with pytest.raises(problem):
        tracker.main(arguments, run=partial(handle, fails_at=2005))
    started = time.monotonic()
    assert tracker.main(arguments, run=partial(handle, fails_at=None)) == 0
    assert time.monotonic() - started < 8  # a member that had not left would keep it for its session, 10 s
    assert handled == [record.key() for record in records(bootstrap, topic)]


@pytest.mark.parametrize(("returned", "status"), [([None, None, None], 0), ([0, 2, None], 1)])
def test_it_runs_once_more_each_time_librdkafka_has_lost_its_brokers(bootstrap, topic, no_signals, returned, status):
    consumers = []

    def run(consumer, args, stop):
        consumers.append(consumer)
        if len(consumers) < 3:
            stop.append("lost")
        return returned[len(consumers) - 1]

    assert tracker.main(["-b", bootstrap, "-t", topic], run=run) == status
    assert len({*map(id, consumers)}) == 3


def test_a_failure_of_ones_own_in_the_producer_comes_out_as_it_is(bootstrap, topic, no_signals):
    def fail(client, args, stop):
        raise ConnectionError("mine")

    with pytest.raises(ConnectionError, match="mine"):
        producer.main(["-b", bootstrap, "-t", topic], run=fail)


def test_partitions_change_hands_under_load(bootstrap, topic):
    """Nothing is lost and nothing comes twice."""
    create_topic(bootstrap, topic, 3)
    users = [f"u{number}" for number in range(6000)]
    for partition in range(3):
        orders = (producer.new_order(user, "x", 1) for user in users[partition::3])
        put(bootstrap, topic, *map(producer.to_json, orders), partition=partition)
    config = tracker.CONFIG | tracker.CLASSIC_PROTOCOL | {"bootstrap.servers": bootstrap, "group.id": topic}
    shares, stop = [[], [], []], []

    def take(share):
        consumer = Consumer(config)
        for batch in tracker.follow(consumer, [topic], stop=stop, max_poll_records=20):
            for record in batch:
                time.sleep(0.001)  # some work to do, so that offsets are yet to be stored at any moment
                share.append(tracker.from_json(record.value())["user"])
            tracker.store(consumer, batch)
        tracker.close(consumer)

    trackers = [threading.Thread(target=take, args=[share], daemon=True) for share in shares]
    for tracking, share in zip(trackers, shares, strict=True):
        tracking.start()
        wait_until(lambda share=share: share, "the next tracker to get orders")
    wait_until(lambda: sum(map(len, shares)) >= len(users), "all orders")
    stop.append(True)
    for tracking in trackers:
        tracking.join(LIMIT)
    assert Counter(itertools.chain(*shares)) == Counter(users)
