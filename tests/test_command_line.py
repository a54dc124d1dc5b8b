"""Each flag of both scripts, and each exit status."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from conftest import committed, put, records

ORDER = {"order_id": "123e4567-e89b-12d3-a456-426614174000", "user": "john", "item": "burger", "quantity": 5}


@pytest.fixture(params=["producer.py", "tracker.py"])
def script(request, start, topic):
    """A function that starts one of the scripts, and then the other, with nothing but the arguments given."""

    def run(*arguments, **options):
        return start(sys.executable, request.param, "-t", topic, *arguments, **options)

    run.name = request.param
    return run


def test_b_wins_over_the_variable_and_the_variable_over_the_default(script, bootstrap):
    variable = {"KAFKA_BOOTSTRAP_SERVERS": bootstrap}
    once = ["-c", "1"] if script.name == "producer.py" else ["-e"]
    assert script(*once, env=variable).wait() == 0
    assert script(*once, "--bootstrap-servers", bootstrap, env={"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}).wait() == 0


def test_t_names_the_topic(start, bootstrap, topic):
    assert start(sys.executable, "producer.py", "-b", bootstrap, "--topic", topic).wait() == 0
    assert len(records(bootstrap, topic)) == 1


def test_g_names_the_group(tracker, producer, bootstrap, topic):
    assert producer().wait() == 0
    assert tracker("--group", f"{topic}-other", "-e").wait() == 0
    assert committed(bootstrap, f"{topic}-other", topic) == 1
    assert committed(bootstrap, topic, topic) == -1001


def test_x_wins_over_the_file_and_the_file_over_the_scripts_own(producer, tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("# a comment\n\ndelivery.timeout.ms = 4321\nlinger.ms=77\n")
    sending = producer("-X", "debug=conf", "-X", "linger.ms=78", "-F", file)
    assert sending.wait() == 0
    shown = " ".join(sending.err)
    assert "delivery.timeout.ms = 4321" in shown or "message.timeout.ms = 4321" in shown
    assert "linger.ms = 78" in shown or "queue.buffering.max.ms = 78" in shown


def test_c_sends_so_many_orders_and_stops_after_so_many(producer, tracker, bootstrap, topic):
    assert producer("--count", "7").wait() == 0
    assert len(records(bootstrap, topic)) == 7
    tracking = tracker("--count", "3")
    assert tracking.wait() == 0
    assert len(tracking.out) == 4
    rest = tracker("-e")
    assert rest.wait() == 0
    assert len(rest.out) == 5


def test_e_stops_at_the_end_even_of_an_empty_topic(tracker, topic):
    tracking = tracker("--exit")
    assert tracking.wait() == 0
    assert tracking.out == [f"Consumer is running & subscribed to {topic} topic"]


def test_q_prints_no_line_per_order(producer, tracker, bootstrap, topic):
    sending = producer("-q", "-c", "5")
    assert (sending.wait(), sending.out) == (0, [])
    tracking = tracker("--quiet", "-e")
    assert (tracking.wait(), len(tracking.out)) == (0, 1)
    assert committed(bootstrap, topic, topic) == 5


def test_l_sends_the_good_lines_of_a_file_and_names_the_bad_ones(producer, bootstrap, topic, tmp_path):
    file = tmp_path / "orders.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"user": "ana", "item": "pizza", "quantity": 2, "note": "hot"}\r\n'
        b"\n"
        b'{"user": "ana", "item": "pizza", "quantity": -2}\n'
        b"pizza\n"
        b"\xff\n"
        b"[1]\n" + b"[" * 100_000 + b"\n"
        b'{"user": "ana", "item": "pizza", "quantity": 1, "price": 1e999}\n'
        b'{"order_id": "42", "user": "ana", "item": "pizza", "quantity": 1}\n' + json.dumps(ORDER).encode()
    )
    sending = producer("-l", file)
    assert sending.wait() == 1
    assert [line.split(": ")[0] for line in sending.err] == [f"{file}:{n}" for n in range(3, 10)]
    assert sending.err[0] == f"{file}:3: quantity must be a whole number of at least 1, got -2"
    first, second = (json.loads(record.value()) for record in records(bootstrap, topic))
    assert second == ORDER
    assert first == {"user": "ana", "item": "pizza", "quantity": 2, "note": "hot", "order_id": first["order_id"]}


def test_l_with_a_dash_confirms_each_line_of_stdin_as_it_comes(producer):
    sending = producer("-l", "-")
    for number in range(3):
        sending.write(json.dumps(ORDER | {"user": f"u{number}"}) + "\n")
        sending.wait_for(f'"user": "u{number}"')
    sending.popen.stdin.close()
    assert sending.wait() == 0
    assert len(sending.out) == 3


def test_a_signal_ends_the_wait_for_stdin(producer):
    sending = producer("-l", "-")
    sending.write(json.dumps(ORDER) + "\n")
    sending.wait_for("Message delivered")
    assert sending.stop() == 0


def test_c_limits_the_orders_of_a_file(producer, tmp_path):
    file = tmp_path / "orders.jsonl"
    file.write_text((json.dumps(ORDER) + "\n") * 9)
    sending = producer("-l", file, "-c", "4")
    assert (sending.wait(), len(sending.out)) == (0, 4)


def test_a_high_rate_is_reached(producer):
    sending = producer("-q", "-c", "20000", "--rate", "10000")
    started = time.monotonic()
    assert sending.wait() == 0
    assert 2 < time.monotonic() - started < 4  # 2 s, and the start


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and can't be read")
def test_a_file_that_cannot_be_read_to_its_end_exits_1(producer):
    sending = producer("-l", "/proc/self/mem")
    assert sending.wait() == 1
    assert len(sending.err) == 1
    assert sending.err[0].startswith("Orders could not be read to the end: ")


def test_rate_limits_the_orders_a_second(producer):
    sending = producer("-c", "20", "--rate", "20")
    sending.wait_for("Message delivered")
    started = time.monotonic()
    assert sending.wait() == 0
    assert time.monotonic() - started > 0.8  # 19 more orders, 1/20 s apart
    assert len(sending.out) == 20


@pytest.mark.parametrize("arguments", [["-q"], ["-q", "--rate", "100000"]])
def test_a_long_run_shows_on_a_terminal_how_far_it_is(start, bootstrap, topic, arguments):
    pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
    ours, theirs = pty.openpty()
    command = [sys.executable, "producer.py", "-b", bootstrap, "-t", topic, "-c", "10000000", *arguments]
    sending = start(*command, stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 100).decode()
    assert sending.stop() == 0
    assert " orders" in shown
    assert shown.endswith("\r")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-flag"],
        ["-X", "no-equals-sign"],
        ["-X", "no.such.property=1"],
        ["-X", "enable.idempotence=perhaps"],
        ["-X", "stats_cb=text"],
        ["-F", "no-such-file"],
        ["-F", ""],
        ["-c", "0"],
        ["-c", "many"],
        ["argument"],
    ],
)
def test_wrong_usage_exits_2_with_one_line_that_says_what_is_wrong(script, arguments):
    wrong = script(*arguments)
    assert wrong.wait() == 2
    assert wrong.out == []
    assert wrong.err[-1].startswith(f"{script.name}: error: ")
    assert "Traceback" not in "".join(wrong.err)


@pytest.mark.parametrize(
    "arguments", [["-l", "no-such-file"], ["-l", ""], ["--rate", "0"], ["--rate", "nan"], ["--quantity", "x"]]
)
def test_wrong_usage_of_the_producers_own_flags_exits_2(producer, arguments):
    wrong = producer(*arguments)
    assert (wrong.wait(), wrong.out) == (2, [])
    assert "error: " in wrong.err[-1]


def test_a_group_without_a_name_is_wrong_usage(tracker):
    wrong = tracker("-g", "")
    assert (wrong.wait(), wrong.out) == (2, [])
    assert "error: " in wrong.err[-1]


def test_a_topic_that_is_not_there_and_not_made_is_said_by_both(script, bootstrap):
    missing = script("-b", bootstrap, "-X", "allow.auto.create.topics=false")
    assert missing.wait() == 1
    assert len(missing.err) == 1
    assert "can't be used" in missing.err[0]


@pytest.mark.skipif(sys.platform == "win32", reason="closing a stream is the shell's, here bash's")
def test_closed_streams_are_no_traceback(start, bootstrap, topic):
    for script in ("producer.py", "tracker.py -e"):
        command = f"exec {sys.executable} {script} -b {bootstrap} -t {topic}"
        assert start("bash", "-c", f"{command} 2>&-").wait() == 0
        closed = start("bash", "-c", f"{command} >&-")
        assert closed.wait() == 1
        assert closed.err == ["Standard output was closed. Open it, if only to /dev/null"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-X", "group.protocol=consumer", "-X", "group.remote.assignor=unknown"],
        ["-X", "session.timeout.ms=1000"],
        ["-X", "auto.offset.reset=error"],
    ],
)
def test_what_trying_again_cannot_mend_ends_the_tracker(tracker, producer, arguments):
    assert producer().wait() == 0
    refused = tracker(*arguments)
    assert refused.wait() == 1
    assert refused.err[-1].startswith("Kafka refused this tracker: ")


def test_a_bad_property_in_a_file_is_not_shown_since_it_may_be_a_password(script, tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("sasl.password secret\n")
    wrong = script("-F", file)
    assert wrong.wait() == 2
    assert "secret" not in "".join(wrong.err)


@pytest.mark.parametrize(("flag", "value"), [("--user", ""), ("--item", ""), ("--quantity", "0"), ("--quantity", "-2")])
def test_an_order_that_is_not_valid_exits_1_and_is_not_sent(producer, flag, value):
    sending = producer(flag, value)
    assert (sending.wait(), sending.out) == (1, [])
    assert sending.err[0].startswith(f"{flag.removeprefix('--')} must be ")


def test_an_order_over_a_megabyte_is_named_and_the_others_are_sent(producer, tmp_path):
    file = tmp_path / "orders.jsonl"
    file.write_text("".join(json.dumps(ORDER | {"user": user}) + "\n" for user in ("ana", "x" * 1_100_000, "bob")))
    sending = producer("-l", file)
    assert sending.wait() == 1
    assert len(sending.out) == 2
    assert len(sending.err) == 1
    assert "was not confirmed" in sending.err[0]


def test_a_topic_name_that_kafka_refuses_is_said(script, bootstrap):
    wrong = script("-b", bootstrap, "-t", "no topic!")
    assert wrong.wait() == 1
    assert len(wrong.err) == 1
    assert "opic" in wrong.err[0]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_either_group_protocol_can_be_chosen(producer, tracker, protocol):
    assert producer("-c", "3").wait() == 0
    tracking = tracker("-e", "-X", f"group.protocol={protocol}")
    assert tracking.wait() == 0
    assert len(tracking.out) == 4


def test_the_mock_broker_of_librdkafka_is_enough_for_a_smoke_test(start):
    mock = ["-b", "localhost:1", "-X", "test.mock.num.brokers=1"]
    sending = start(sys.executable, "producer.py", *mock)
    assert sending.wait() == 0
    assert sending.out[0].startswith("Message delivered ")
    tracking = start(sys.executable, "tracker.py", *mock)
    tracking.wait_for("Consumer is running & subscribed to orders topic")
    assert tracking.stop() == 0


def test_skipped_records_make_the_trackers_exit_status_1(tracker, bootstrap, topic):
    put(bootstrap, topic, b"no order")
    assert tracker("-e").wait() == 1
    assert tracker("-e").wait() == 0  # it was skipped for good
