"""The main job: what a user of the pair types and sees."""

import itertools
import json
import sys
import threading
import time
import uuid
from collections import Counter
from functools import partial

import pytest
from confluent_kafka.admin import AdminClient
from conftest import INTERRUPT, LIMIT, committed, create_topic, put, records, wait_until

import producer as producer_script
import tracker as tracker_script


def sent(process):
    """Return the orders that the producer printed as delivered."""
    return [json.loads(line.removeprefix("Message delivered ")) for line in process.out]


def test_an_order_goes_from_producer_to_tracker_in_the_exact_words(producer, tracker, topic):
    tracking = tracker()
    tracking.wait_for(f"Consumer is running & subscribed to {topic} topic")
    sending = producer()
    assert sending.wait() == 0
    tracking.wait_for("Message received: burger 5 from john")
    assert tracking.stop() == 0
    order_id = str(uuid.UUID(sent(sending)[0]["order_id"]))
    assert sending.out == [
        f'Message delivered {{"order_id": "{order_id}", "user": "john", "item": "burger", "quantity": 5}}'
    ]
    assert tracking.out == [
        f"Consumer is running & subscribed to {topic} topic",
        "Message received: burger 5 from john",
    ]
    assert sending.err == tracking.err == []


def test_without_flags_the_pair_uses_the_documented_names(start, bootstrap):
    environment = {"KAFKA_BOOTSTRAP_SERVERS": bootstrap}
    assert start(sys.executable, "producer.py", env=environment).wait() == 0
    tracking = start(sys.executable, "tracker.py", env=environment)
    tracking.wait_for("Message received: burger 5 from john")
    assert tracking.stop() == 0
    assert tracking.out[0] == "Consumer is running & subscribed to orders topic"
    assert committed(bootstrap, "order-tracker", "orders") > 0


def test_any_other_order_is_printed_in_the_same_words(producer, tracker):
    sending = producer("--user", "ana", "--item", "piña colada", "--quantity", "12")
    assert sending.wait() == 0
    assert sending.out[0].endswith('"user": "ana", "item": "piña colada", "quantity": 12}')
    tracking = tracker("-c", "1")
    assert tracking.wait() == 0
    assert tracking.out[1] == "Message received: piña colada 12 from ana"


def test_the_key_of_a_record_is_its_order_id(producer, bootstrap, topic):
    sending = producer("-c", "3")
    assert sending.wait() == 0
    assert [r.key().decode() for r in records(bootstrap, topic)] == [order["order_id"] for order in sent(sending)]


def test_a_tracker_goes_on_where_its_group_stopped(producer, tracker):
    assert producer("--user", "first").wait() == 0
    assert tracker("-e").wait() == 0
    assert producer("--user", "second").wait() == 0
    tracking = tracker("-e")
    assert tracking.wait() == 0
    assert tracking.out[1:] == ["Message received: burger 5 from second"]


def test_a_tracker_that_is_there_first_makes_the_topic_before_it_says_that_it_runs(producer, tracker, bootstrap, topic):
    tracking = tracker()
    tracking.wait_for("Consumer is running")
    topics = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=LIMIT).topics
    assert topic in topics  # without it the first order would wait for the next look at the metadata, 1 s or more
    sending = producer()
    sending.wait_for("Message delivered")
    tracking.wait_for("Message received")


def test_an_idempotent_order_does_not_wait_for_its_producer_id(producer):
    assert producer().wait() == 0  # makes the topic
    debugging = producer("-X", "debug=eos")
    assert debugging.wait() == 0
    log = [line for line in debugging.err if "PIDBROKER" in line or "GETPID" in line or "Acquired" in line]
    acquired = [float(line.split("|")[1]) for line in debugging.err if "Acquired PID" in line]
    started = float(debugging.err[0].split("|")[1])
    assert acquired, log
    assert acquired[0] - started < 0.4, log  # librdkafka's own retry comes after 500 ms


def test_two_trackers_share_three_partitions_and_every_order_is_printed_once(producer, tracker, bootstrap, topic):
    create_topic(bootstrap, topic, 3)
    trackers = [tracker(), tracker()]
    for tracking in trackers:
        tracking.wait_for("Consumer is running")
    users = iter(range(1_000_000))

    def both_have_orders():
        put(
            bootstrap,
            topic,
            *(producer_script.to_json(producer_script.new_order(f"u{next(users)}", "x", 1)) for _ in range(10)),
        )
        return all(len(t.out) > 1 for t in trackers)

    wait_until(both_have_orders, "both trackers to get orders")
    count = next(users)

    def all_printed():
        return sum(len(t.out) - 1 for t in trackers) >= count

    wait_until(all_printed, f"{count} lines")
    assert [t.stop() for t in trackers] == [0, 0]
    printed = Counter(line for t in trackers for line in t.out[1:])
    assert printed == Counter(f"Message received: x 1 from u{number}" for number in range(count))


def test_a_second_tracker_says_that_it_runs_although_the_first_has_the_only_partition(producer, tracker):
    first = tracker()
    first.wait_for("Consumer is running")
    assert producer().wait() == 0
    first.wait_for("Message received")
    second = tracker()
    second.wait_for("Consumer is running")
    idle = tracker("-e")
    assert idle.wait() == 0  # there is nothing for it to read
    assert [first.stop(), second.stop()] == [0, 0]


def test_orders_and_the_groups_place_survive_a_restart_of_the_broker(new_broker, producer, tracker):
    broker = new_broker()
    here = ("-b", broker.bootstrap)
    assert producer(*here, "--user", "before").wait() == 0
    assert tracker(*here, "-e").wait() == 0
    assert producer(*here, "--user", "kept").wait() == 0
    broker.stop()
    broker.start()
    tracking = tracker(*here, "-e")
    assert tracking.wait() == 0
    assert tracking.out[1:] == ["Message received: burger 5 from kept"]


def test_other_bytes_and_another_handler_plug_into_the_seams(bootstrap, topic, capsys):
    def upper(order):
        return producer_script.to_json(order).swapcase()

    def lower(data):
        return tracker_script.from_json(data.swapcase())

    handled = []
    here = ["-b", bootstrap, "-t", topic]
    assert producer_script.main([*here, "-c", "2"], serialize=upper) == 0
    assert tracker_script.main([*here, "-g", topic, "-c", "2"], deserialize=lower, handle=handled.append) == 0
    assert [order["item"] for order in handled] == ["burger", "burger"]
    assert "Message delivered" in capsys.readouterr().out


def test_an_order_whose_handler_failed_comes_again_and_those_before_it_do_not(bootstrap, topic, producer):
    assert producer("-c", "3000").wait() == 0
    handled = []
    arguments = ["-b", bootstrap, "-t", topic, "-g", topic, "-e"]

    def fail_in_the_middle(order):
        if len(handled) == 2000:
            raise ZeroDivisionError
        handled.append(order["order_id"])

    with pytest.raises(ZeroDivisionError):
        tracker_script.main(arguments, handle=fail_in_the_middle)
    assert tracker_script.main(arguments, handle=lambda order: handled.append(order["order_id"])) == 0
    assert handled == [record.key().decode() for record in records(bootstrap, topic)]


def test_partitions_change_hands_under_load_without_loss_or_repetition(bootstrap, topic):
    create_topic(bootstrap, topic, 3)
    users = [f"u{number}" for number in range(6000)]
    for partition in range(3):
        orders = (producer_script.new_order(user, "x", 1) for user in users[partition::3])
        put(bootstrap, topic, *map(producer_script.to_json, orders), partition=partition)
    config = tracker_script.CONFIG | tracker_script.CLASSIC | {"bootstrap.servers": bootstrap, "group.id": topic}
    shares, stop = [[], [], []], []

    def handle(share, order):
        time.sleep(0.001)  # a handler with some work to do, so that offsets are yet to be stored at any moment
        share.append(order["user"])

    def follow(share):
        tracker_script.follow(config, topic, handle=partial(handle, share), stop=stop)

    trackers = [threading.Thread(target=follow, args=[share], daemon=True) for share in shares]
    for tracking, share in zip(trackers, shares, strict=True):
        tracking.start()
        wait_until(lambda share=share: share, "the next tracker to get orders")
    wait_until(lambda: sum(map(len, shares)) >= len(users), "all orders")
    stop.append(True)
    for tracking in trackers:
        tracking.join(LIMIT)
    assert Counter(itertools.chain(*shares)) == Counter(users)


def test_ctrl_c_stops_both_after_what_is_in_hand(producer, tracker):
    sending = producer("-c", "1000000", "--rate", "200")
    sending.wait_for("Message delivered", times=50)
    assert sending.stop(INTERRUPT) == 0
    tracking = tracker()
    tracking.wait_for("Message received", times=len(sending.out))
    assert tracking.stop(INTERRUPT) == 0
    assert len(tracking.out) - 1 == len(sending.out)
