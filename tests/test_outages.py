"""No broker, a broker that goes away, freezes or refuses, and a standard output that is gone."""

import json
import signal
import socket
import sys

import pytest
from conftest import INTERRUPT, put, records

import producer as producer_script

posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP and /dev/full are POSIX")
END_LIMIT = 15  # seconds, of which the scripts themselves wait 10


@pytest.mark.parametrize("script", ["producer.py", "tracker.py"])
def test_without_a_broker_there_is_one_clear_line_and_exit_status_1(start, script):
    alone = start(sys.executable, script, "-b", "localhost:1")
    assert alone.wait(END_LIMIT) == 1
    assert alone.out == []
    assert alone.err == ["No Kafka broker answered at localhost:1 within 10 s. Start one: docker-compose up -d"]


def test_refused_credentials_are_said_and_not_retried_for_ever(new_broker, producer, tracker, tmp_path):
    right = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": "john"}
    right["sasl.password"] = "secret"
    jaas = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_john="secret";'
    broker = new_broker(
        client=right,
        KAFKA_LISTENER_SECURITY_PROTOCOL_MAP="HOST:SASL_PLAINTEXT,NETWORK:PLAINTEXT,CONTROLLER:PLAINTEXT",
        KAFKA_SASL_ENABLED_MECHANISMS="PLAIN",
        KAFKA_LISTENER_NAME_HOST_PLAIN_SASL_JAAS_CONFIG=jaas,
    )
    file = tmp_path / "client.properties"
    file.write_text("".join(f"{name}={value}\n" for name, value in right.items()))
    here = ["-b", broker.bootstrap, "-F", file]
    assert producer(*here).wait() == 0
    assert tracker(*here, "-c", "1").wait() == 0
    for refused in (producer(*here, "-X", "sasl.password=wrong"), tracker(*here, "-X", "sasl.password=wrong")):
        assert (refused.wait(END_LIMIT), refused.out, len(refused.err)) == (1, [], 1)
        assert refused.err[0].startswith(f"{broker.bootstrap} refused the connection: ")


def test_an_outage_is_two_lines_and_nothing_is_lost_or_repeated(new_broker, producer, tracker, tmp_path, topic):
    broker = new_broker()
    orders = tmp_path / "orders.jsonl"
    users = [f"u{number}" for number in range(3000)]
    orders.write_text("".join(f'{{"user": "{user}", "item": "x", "quantity": 1}}\n' for user in users))
    # Members of a group are forgotten after session.timeout.ms: here the broker is back before, however slow.
    tracking = tracker("-b", broker.bootstrap, "-X", "session.timeout.ms=60000", "-c", "3000")
    sending = producer("-b", broker.bootstrap, "-l", orders, "--rate", "500")
    tracking.wait_for("Message received", times=20)
    broker.kill()
    for process in (sending, tracking):
        process.wait_for("Kafka became unreachable", err=True)
    broker.start()
    assert sending.wait(60) == tracking.wait(60) == 0
    assert len(sending.out) == len(records(broker.bootstrap, topic)) == 3000
    assert tracking.out[1:] == [f"Message received: x 1 from {user}" for user in users]
    for process in (sending, tracking):
        assert len(process.err) == 2, process
        assert process.err[0].startswith("Kafka became unreachable: ")
        assert process.err[1] == "Kafka answered again"


def test_a_broker_that_is_just_starting_is_waited_for_without_a_word(new_broker, producer, tracker):
    broker = new_broker()
    broker.stop()
    starting = [producer("-b", broker.bootstrap), tracker("-b", broker.bootstrap, "-c", "1")]
    broker.start()
    for process in starting:
        assert (process.wait(), process.err) == (0, [])


def test_an_address_that_is_advertised_and_does_not_answer_is_named_once(new_broker, producer, tracker):
    broker = new_broker(KAFKA_ADVERTISED_LISTENERS="HOST://localhost:1,NETWORK://kafka:19092")
    here = ["-b", broker.bootstrap, "-X", "reconnect.backoff.max.ms=500"]
    tracking, sending = tracker(*here), producer(*here, "-X", "delivery.timeout.ms=5000")
    assert sending.wait() == 1
    assert ["was not confirmed" in line for line in sending.err] == [False, True]
    tracking.wait_for("Kafka became unreachable: 127.0.0.1:", err=True)
    assert tracking.stop() == 0
    assert sum("unreachable" in line or "answered" in line for line in tracking.err) == 1


def test_the_wait_for_a_confirmation_is_bounded_and_names_each_order(new_broker, producer):
    broker = new_broker()
    sending = producer("-b", broker.bootstrap, "-l", "-", "-X", "delivery.timeout.ms=3000")
    orders = [producer_script.new_order(f"u{number}", "burger", 1) for number in range(3)]
    sending.write(json.dumps(orders[0]) + "\n")
    sending.wait_for("Message delivered")
    broker.kill()
    sending.write("".join(json.dumps(order) + "\n" for order in orders[1:]))
    sending.popen.stdin.close()
    assert sending.wait(END_LIMIT) == 1
    assert len(sending.out) == 1
    named = [line for line in sending.err if "was not confirmed" in line]
    assert len(named) == 2
    assert all(order["order_id"] in line for order, line in zip(orders[1:], named, strict=True))


def test_a_full_queue_is_waited_for_and_drops_nothing(producer, bootstrap, topic):
    sending = producer("-c", "2000", "-X", "queue.buffering.max.messages=10", "-X", "linger.ms=1")
    assert sending.wait() == 0
    assert len(sending.out) == len(records(bootstrap, topic)) == 2000


def test_a_signal_ends_the_wait_for_a_full_queue(new_broker, producer):
    broker = new_broker()
    sending = producer(
        "-b", broker.bootstrap, "-c", "1000000", "--rate", "1000", "-X", "queue.buffering.max.messages=10"
    )
    sending.wait_for("Message delivered", times=20)
    broker.kill()
    sending.wait_for("Kafka became unreachable", err=True)
    assert sending.stop(limit=END_LIMIT) == 1
    assert 10 <= sum("was not confirmed" in line for line in sending.err) <= 12


@posix
@pytest.mark.parametrize("script", ["producer.py", "tracker.py"])
def test_a_signal_ends_the_search_for_a_broker(start, script):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        searching = start(sys.executable, script, "-b", f"127.0.0.1:{silent.getsockname()[1]}")
        silent.accept()
        assert searching.stop(signal.SIGTERM, limit=5) == 0
    assert searching.out == searching.err == []


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", pytest.param("SIGHUP", marks=posix)])
def test_a_signal_neither_loses_nor_repeats_an_order(producer, tracker, bootstrap, topic, number):
    put(bootstrap, topic, *(producer_script.to_json(producer_script.new_order(f"u{n}", "x", 1)) for n in range(3000)))
    lines = []
    while not lines or lines[-1] != "Message received: x 1 from u2999":
        tracking = tracker()
        tracking.wait_for("Consumer is running")
        tracking.wait_for("Message received")
        assert tracking.stop(getattr(signal, number) if sys.platform != "win32" else INTERRUPT) == 0
        lines += tracking.out[1:]
    assert lines == [f"Message received: x 1 from u{n}" for n in range(3000)]


@posix
def test_an_order_whose_line_did_not_get_out_comes_again(start, tracker, producer, bootstrap, topic):
    assert producer("-c", "3").wait() == 0
    with open("/dev/full", "w") as full:
        full_disk = tracker("-c", "3", stdout=full)
        assert full_disk.wait() == 1
    assert len(full_disk.err) == 1
    command = f"{sys.executable} tracker.py -b {bootstrap} -t {topic} -g {topic} | head -1"
    closed = start("bash", "-o", "pipefail", "-c", command)
    assert closed.wait() == 1
    assert "Standard output could not be written" in closed.err[0]
    assert len(closed.err) == 1
    tracking = tracker("-e")
    assert tracking.wait() == 0
    assert len(tracking.out) == 4


@posix
def test_a_producer_whose_output_is_gone_says_so_and_exits_1(producer, bootstrap, topic):
    with open("/dev/full", "w") as full:
        sending = producer("-c", "1000", stdout=full)
        assert sending.wait() == 1
    assert len(sending.err) == 1
    assert "Standard output could not be written" in sending.err[0]
    assert 1 <= len(records(bootstrap, topic)) <= 1000


@posix
def test_the_tracker_goes_on_after_the_broker_was_frozen(new_broker, producer, tracker):
    broker = new_broker()
    here = ["-b", broker.bootstrap]
    tracking = tracker(*here)
    tracking.wait_for("Consumer is running")
    broker.process.send_signal(signal.SIGSTOP)
    sending = producer(*here)
    with pytest.raises(AssertionError):
        sending.wait(3)
    broker.process.send_signal(signal.SIGCONT)
    assert sending.wait() == 0
    tracking.wait_for("Message received")
    assert tracking.stop() == 0
