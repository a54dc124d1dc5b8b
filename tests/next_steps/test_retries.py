"""next_steps/retries: a handler that fails costs time, never an order; what can't succeed is kept, and can go back."""

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
from broker import ROOT
from confluent_kafka.admin import AdminClient, NewTopic
from conftest import (
    INTERRUPT,
    SECURED,
    allow,
    as_flags,
    committed,
    create_topic,
    examples,
    login,
    put,
    records,
    same,
    wait_until,
)

import producer
from next_steps.retries import dead_letters
from next_steps.retries.dlq import HEADERS
from next_steps.retries.tracker import pause

posix = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and /dev/full are POSIX")
own_brokers = pytest.mark.xdist_group("retries with brokers of their own")  # beside the others
END_LIMIT = 60  # seconds


def order(user, item="burger"):
    return producer.to_json(producer.new_order(user, item, 1))


def line_of(text):
    """Return the number of the first line of handlers.py that holds the text."""
    lines = (ROOT / "tests" / "next_steps" / "handlers.py").read_text("utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def received(process):
    """Return the users of the orders that were shown."""
    return [line.rpartition(" ")[2] for line in process.out if line.startswith("Message received")]


@pytest.fixture
def away(tmp_path):
    """The file whose presence lets the handlers `away` and `refuse` fail."""
    file = tmp_path / "away"
    file.touch()
    return file


@pytest.fixture
def environment(away):
    return {"PYTHONPATH": str(ROOT / "tests" / "next_steps"), "AWAY": str(away)}


@pytest.fixture
def run_retries(start, environment, bootstrap, topic):
    """A function that starts the tracker with one of the handlers; arguments given win over these."""

    def run(handler, *arguments, servers=bootstrap, **options):
        here = ["-b", servers, "-t", topic, "-g", topic, "--dead-letters", f"{topic}.DLQ", "--backoff", "0.1"]
        module = ["-m", "next_steps.retries.tracker", "--handler", handler if ":" in handler else f"handlers:{handler}"]
        return start(sys.executable, *module, *here, *arguments, env=environment, **options)

    return run


@pytest.fixture
def run_dead_letters(start, bootstrap, topic):
    """A function that starts dead_letters with this test's topic."""
    return partial(
        start, sys.executable, "-m", "next_steps.retries.dead_letters", "-b", bootstrap, "-t", f"{topic}.DLQ"
    )


def test_an_order_that_fails_twice_is_tried_again_in_its_place(run_retries, bootstrap, topic):
    users = ["a", "slow", "b", "slow2", "c"]
    put(bootstrap, topic, *(order(user) for user in users))
    tracking = run_retries("twice", "-e")
    assert tracking.wait() == 0
    assert received(tracking) == users
    assert [re.sub(r"\d\.\d s", "0.1 s", line) for line in tracking.err] == [
        f"{topic} [0] @ {offset} failed: TimeoutError: the kitchen did not answer (handlers.py:{line_of('did not')}). "
        f"Attempt {attempt} of 5, the next one in 0.1 s"
        for offset in (1, 3)
        for attempt in (1, 2)
    ]
    assert committed(bootstrap, topic, topic) == 5


def test_an_order_that_fails_each_time_becomes_a_dead_letter_with_all_that_it_was(run_retries, bootstrap, topic):
    put(bootstrap, topic, order("a"), order("away"), key=b"k\xff", headers=[("trace", b"\xff1"), ("trace", b"2")])
    put(bootstrap, topic, order("b"))
    tracking = run_retries("away", "-e", "--attempts", "3")
    assert tracking.wait() == 1
    assert received(tracking) == ["a", "b"]
    original = records(bootstrap, topic)[1]
    (letter,) = records(bootstrap, f"{topic}.DLQ")
    assert (letter.key(), letter.value()) == (original.key(), original.value())
    timestamp = str(original.timestamp()[1])
    facts = ("ConnectionError", "the kitchen is closed\x1b[2J", topic, "0", "1", timestamp, topic, "3")
    assert letter.headers() == original.headers() + list(zip(HEADERS, [f.encode() for f in facts], strict=True))
    assert len(tracking.err) == 3
    assert f"It became the dead letter {topic}.DLQ [0] @ 0" in tracking.err[2]
    assert all(line.isprintable() for line in tracking.err)
    assert committed(bootstrap, topic, topic) == 3


def test_what_can_never_succeed_is_not_tried_again(run_retries, bootstrap, topic):
    values = [b"no order", None, order("a", "soup"), order("b")]
    put(bootstrap, topic, *values)
    tracking = run_retries("refuse", "-e", "--backoff", "100")
    assert tracking.wait() == 1
    assert received(tracking) == ["b"]
    found = records(bootstrap, f"{topic}.DLQ")
    assert [letter.value() for letter in found] == values[:3]
    assert [dead_letters.facts(letter)["attempts"] for letter in found] == ["1", "1", "1"]
    assert dead_letters.facts(found[2])["message"] == "no soup today"


@pytest.mark.parametrize("kind", ["SSLCertVerificationError", "JSONDecodeError", "UnicodeDecodeError", "ValueError"])
def test_an_outage_that_comes_as_a_value_error_is_tried_again(run_retries, bootstrap, topic, kind):
    put(bootstrap, topic, order(kind))
    tracking = run_retries("outage", "-e")
    assert tracking.wait() == 0
    assert received(tracking) == [kind]
    assert f"failed: {kind}" in tracking.err[0]
    assert "Attempt 1 of 5" in tracking.err[0]


def test_a_bug_is_told_with_the_line_of_ones_own_code(run_retries, bootstrap, topic):
    put(bootstrap, topic, order("a"))
    tracking = run_retries("buggy", "-e", "--attempts", "1")
    assert tracking.wait() == 1
    assert (
        f"failed: TypeError: the JSON object must be str, bytes or bytearray, not int (handlers.py:{line_of('loads')})"
        in (tracking.err[0])
    )


def test_after_a_failure_the_end_has_to_come_again(run_retries, bootstrap, topic, away):
    put(bootstrap, topic, order("first"), order("away"), *(order(f"u{n}") for n in range(4)))
    tracking = run_retries("away_later", "-e", "--attempts", "0")
    tracking.wait_for("failed", err=True)  # in one list with the others and the end
    put(bootstrap, topic, *(order(f"u{n}") for n in range(4, 40)))
    away.unlink()
    assert tracking.wait() == 0
    assert received(tracking) == ["first", "away", *(f"u{n}" for n in range(40))]
    assert committed(bootstrap, topic, topic) == 42


def test_a_slow_handler_does_not_cost_the_place_in_the_group(run_retries, bootstrap, topic):
    put(bootstrap, topic, *(order(f"u{n}") for n in range(12)))
    short = ["-X", "session.timeout.ms=6000", "-X", "max.poll.interval.ms=6000", "-X", "fetch.wait.max.ms=20"]
    tracking = run_retries("slow", "-c", "12", *short)
    assert tracking.wait() == 0
    assert received(tracking) == [f"u{n}" for n in range(12)]
    assert tracking.err == []


def test_the_count_is_of_what_is_done(run_retries, bootstrap, topic):
    put(bootstrap, topic, order("slow1"), b"no order", order("b"), order("c"))
    tracking = run_retries("twice", "-c", "3")
    assert tracking.wait() == 1  # for the dead letter
    assert received(tracking) == ["slow1", "b"]
    assert committed(bootstrap, topic, topic) == 3


def test_the_other_partitions_go_on_while_one_waits(run_retries, bootstrap, topic, away):
    create_topic(bootstrap, topic, partitions=2)
    tracking = run_retries("away", "--attempts", "0", "--max-backoff", "0.2")
    tracking.wait_for("Consumer is running")
    put(bootstrap, topic, order("away1"), order("away2"), partition=0)
    tracking.wait_for("failed", err=True, times=3)
    put(bootstrap, topic, *(order(f"u{n}") for n in range(100)), partition=1)
    tracking.wait_for("from u99")
    away.unlink()
    tracking.wait_for("from away2")
    assert received(tracking) == [f"u{n}" for n in range(100)] + ["away1", "away2"]
    assert tracking.stop() == 0
    assert [committed(bootstrap, topic, topic, p) for p in (0, 1)] == [2, 100]


def test_the_orders_of_a_key_stay_in_sequence_through_many_failures(run_retries, bootstrap, topic):
    create_topic(bootstrap, topic, partitions=3)
    for number in range(300):
        put(bootstrap, topic, order(f"{number % 7}-{number}"), key=str(number % 7))
    # After a seek the next record may take as long as the broker holds an empty answer back, by default 500 ms.
    brief = ["--backoff", "0.02", "--max-backoff", "0.05", "-X", "fetch.wait.max.ms=20"]
    tracking = run_retries("moody", "-e", "--attempts", "0", *brief)
    assert tracking.wait(END_LIMIT) == 0
    assert len(tracking.err) > 20
    shown = [user.split("-") for user in received(tracking)]
    for key in range(7):
        assert [int(number) for k, number in shown if k == str(key)] == list(range(key, 300, 7))


def members(bootstrap, group):
    """Return the ids of the group's members."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    return [member.member_id for member in admin.describe_consumer_groups([group])[group].result(10).members]


@pytest.mark.parametrize("pause", ["0.1", "16"])
def test_an_outage_of_the_service_does_not_cost_the_place_in_the_group(run_retries, bootstrap, topic, away, pause):
    put(bootstrap, topic, order("away"))
    short = ["-X", "session.timeout.ms=6000", "-X", "max.poll.interval.ms=6000"]
    long = ["--attempts", "0", "--backoff", pause, "--max-backoff", pause]
    tracking = run_retries("away", *long, *short)
    tracking.wait_for("failed", err=True)
    member = members(bootstrap, topic)
    put(bootstrap, topic, order("later"))
    with pytest.raises(AssertionError, match="did not end"):
        tracking.wait(14)  # over two intervals
    assert members(bootstrap, topic) == member
    away.unlink()
    tracking.wait_for("from later", limit=END_LIMIT)
    assert received(tracking) == ["away", "later"]
    assert not [line for line in tracking.err if "failed: ConnectionError" not in line]
    assert tracking.stop() == 0


@pytest.mark.parametrize("number", [INTERRUPT, pytest.param("SIGKILL", marks=posix)])
def test_an_order_that_waits_comes_again_after_a_stop_or_a_crash(run_retries, bootstrap, topic, away, number):
    put(bootstrap, topic, order("a"), order("away"), order("b"))
    tracking = run_retries("away", "--backoff", "100", "--max-backoff", "100", "-X", "session.timeout.ms=6000")
    tracking.wait_for("failed", err=True)
    tracking.wait_for("from a")
    wait_until(lambda: committed(bootstrap, topic, topic) == 1, "the commit of the first order")
    status = tracking.stop(number if number == INTERRUPT else signal.SIGKILL)
    assert status == (0 if number == INTERRUPT else -signal.SIGKILL)
    away.unlink()
    again = run_retries("away", "-c", "2")
    assert again.wait(END_LIMIT) == 0
    assert received(again) == ["away", "b"]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_partition_that_went_and_came_back_while_it_waited_goes_on(run_retries, bootstrap, topic, away, protocol):
    create_topic(bootstrap, topic, partitions=2)
    put(bootstrap, topic, order("away0"), partition=0)
    put(bootstrap, topic, order("away1"), partition=1)
    chosen = ["-X", f"group.protocol={protocol}"]
    tracking = run_retries("away", *chosen, "--attempts", "0", "--max-backoff", "1")
    tracking.wait_for("failed", err=True, times=4)
    other = run_retries("away", *chosen, "--attempts", "0")
    other.wait_for("failed", err=True)
    assert other.stop() == 0
    away.unlink()
    tracking.wait_for("from away", times=2)
    assert sorted(received(tracking) + received(other)) == ["away0", "away1"]
    assert tracking.stop() == 0


@own_brokers
def test_a_dead_letter_waits_for_the_broker(new_broker, run_retries, topic, away):
    broker = new_broker(KAFKA_BROKER_SESSION_TIMEOUT_MS=3000)
    put(broker.bootstrap, topic, order("a"), order("away"), order("b"))
    patient = ["-X", "delivery.timeout.ms=120000", "-X", "session.timeout.ms=60000"]
    tracking = run_retries("stuck", *patient, servers=broker.bootstrap)
    tracking.wait_for("Stuck")
    broker.kill()
    away.unlink()
    broker.start()
    tracking.wait_for("from b", limit=END_LIMIT)
    assert received(tracking) == ["a", "b"]
    assert len(records(broker.bootstrap, f"{topic}.DLQ")) == 1
    assert tracking.stop() == 1  # for the dead letter


@own_brokers
def test_a_record_is_not_skipped_when_its_dead_letter_is_not_confirmed(new_broker, run_retries, topic, away):
    broker = new_broker(KAFKA_BROKER_SESSION_TIMEOUT_MS=3000)
    put(broker.bootstrap, topic, order("a"), order("away"), order("b"))
    tracking = run_retries(
        "stuck", "-X", "delivery.timeout.ms=3000", "-X", "session.timeout.ms=6000", servers=broker.bootstrap
    )
    tracking.wait_for("Stuck")
    broker.kill()
    away.unlink()
    assert tracking.wait(END_LIMIT) == 1
    assert [line for line in tracking.err if f"Topic {topic}.DLQ could not be written: " in line]
    broker.start()
    again = run_retries("stuck", "-e", servers=broker.bootstrap)
    assert again.wait(END_LIMIT) == 0
    assert received(again)[-2:] == ["away", "b"]


def test_a_dead_letter_topic_that_refuses_stops_the_tracker(run_retries, bootstrap, topic):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    small = NewTopic(f"{topic}.DLQ", 1, config={"max.message.bytes": "100"})
    admin.create_topics([small])[f"{topic}.DLQ"].result(10)
    put(bootstrap, topic, order("a"), os.urandom(1000), order("b"))
    for _ in range(2):  # the record is not skipped at the second start either
        tracking = run_retries("away", "-e")
        assert tracking.wait(END_LIMIT) == 1
        assert len(tracking.err) == 1
        assert tracking.err[0].startswith(f"Topic {topic}.DLQ could not be written: Broker: Message size too large")
    assert committed(bootstrap, topic, topic) == 1


def test_a_record_of_the_largest_size_becomes_a_dead_letter(run_retries, bootstrap, topic):
    put(bootstrap, topic, b"x" * 999_900)
    tracking = run_retries("away", "-e")
    assert tracking.wait() == 1
    assert len(records(bootstrap, f"{topic}.DLQ")) == 1


@posix
@pytest.mark.parametrize("handler", ["away", "verbose", "flushed"])
def test_standard_output_that_is_gone_is_no_failure_of_an_order(run_retries, bootstrap, topic, handler):
    put(bootstrap, topic, *(order(f"u{n}") for n in range(3000)))
    with open("/dev/full", "w") as full:
        tracking = run_retries(handler, "-e", stdout=full)
        assert tracking.wait() == 1
    assert len(tracking.err) == 1
    assert tracking.err[0].startswith("Standard output could not be written")
    again = run_retries("away", "-e")
    assert again.wait() == 0
    assert received(again) == [f"u{n}" for n in range(3000)]
    assert records(bootstrap, f"{topic}.DLQ") == []


@posix
@pytest.mark.parametrize("handler", ["away", "verbose", "flushed"])
def test_a_reader_that_went_is_no_failure_of_an_order(run_retries, bootstrap, topic, handler):
    put(bootstrap, topic, *(order(f"u{n}") for n in range(100)))
    reader, writer = os.pipe()
    tracking = run_retries(handler, "-e", stdout=writer)
    os.close(writer)
    assert b"Consumer is running" in os.read(reader, 100)
    os.close(reader)
    assert tracking.wait() == 1
    assert [line.partition(":")[0] for line in tracking.err] == ["Standard output could not be written"]
    again = run_retries("away", "-e")
    assert again.wait() == 0
    assert received(again)[-1] == "u99"
    assert committed(bootstrap, topic, topic) == 100
    assert records(bootstrap, f"{topic}.DLQ") == []


@own_brokers
def test_a_dead_letter_topic_that_may_not_be_written_is_said_at_the_start(new_broker, run_retries, topic):
    broker = new_broker(client=login("admin"), **SECURED)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0, **login("admin")})
    for name in (topic, f"{topic}.DLQ"):
        admin.create_topics([NewTopic(name, 1)])[name].result(10)
    john = as_flags(login("john"))
    allow(admin, "john", "READ", "TOPIC", topic)
    allow(admin, "john", "READ", "GROUP", topic)
    hidden = run_retries("away", "-e", *john, servers=broker.bootstrap)
    assert hidden.wait() == 1
    assert [f"Topic {topic}.DLQ can't be used: Broker: Topic authorization failed" in line for line in hidden.err] == [
        True
    ]
    allow(admin, "john", "READ", "TOPIC", f"{topic}.DLQ")
    readable = run_retries("away", "-e", *john, servers=broker.bootstrap)
    assert readable.wait() == 1
    assert [f"Topic {topic}.DLQ can't be written: " in line for line in readable.err] == [True]
    assert readable.out == []
    allow(admin, "john", "WRITE", "TOPIC", f"{topic}.DLQ")
    assert run_retries("away", "-e", *john, servers=broker.bootstrap).wait() == 0


def test_dead_letters_are_listed_and_go_back_once(run_retries, run_dead_letters, bootstrap, topic, away):
    create_topic(bootstrap, topic, partitions=2)
    put(bootstrap, topic, order("a", "soup"), b"\x1b[2Jpoison", partition=1, headers=[("trace", b"1")])
    assert run_retries("refuse", "-e").wait() == 1
    listing = run_dead_letters()
    assert listing.wait() == 0
    first, second = listing.out
    assert re.match(
        rf"{topic}\.DLQ \[0\] @ 0 \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 from {topic} \[1\] @ 0, {topic}, attempt 1: "
        r'NotRetriableError: no soup today: \{"order_id": ',
        first,
    )
    assert "\\x1b[2Jpoison" in second
    assert all(line.isprintable() for line in listing.out)
    away.unlink()
    one = run_dead_letters("--replay", "0@0")
    assert one.wait() == 0
    assert one.out == [f"{topic}.DLQ [0] @ 0 went back as {topic} [1] @ 2"]
    assert run_dead_letters("--replay", "0@0").wait() == 1
    rest = run_dead_letters()
    assert (rest.wait(), rest.out) == (0, [second])
    back = records(bootstrap, topic)[-1]
    assert back.headers() == [("trace", b"1"), ("orders.replays", b"1")]
    tracking = run_retries("refuse", "-e")
    assert tracking.wait() == 0
    assert received(tracking) == ["a"]


def test_a_replay_is_counted_and_what_fails_again_is_a_dead_letter_again(
    run_retries, run_dead_letters, bootstrap, topic
):
    put(bootstrap, topic, order("a", "soup"), order("b", "soup"))
    for count in (1, 2, 3):
        assert run_retries("refuse", "-e").wait() == 1
        replaying = run_dead_letters("--replay")
        assert (replaying.wait(), len(replaying.out)) == (0, 2)
        assert [back.headers() for back in records(bootstrap, topic)[-2:]] == [
            [("orders.replays", str(count).encode())]
        ] * 2
    listing = run_dead_letters()
    assert (listing.wait(), listing.out) == (0, [])


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_replay_that_is_interrupted_loses_nothing(run_retries, run_dead_letters, bootstrap, topic, number):
    put(bootstrap, topic, *(order(f"u{n}", "soup") for n in range(300)))
    assert run_retries("refuse", "-e").wait() == 1
    replaying = run_dead_letters("--replay")
    replaying.wait_for("went back", times=random.randrange(1, 200))  # noqa: S311
    assert replaying.stop(number) == (-number if number == signal.SIGKILL else 1)
    rest = run_dead_letters("--replay")
    assert rest.wait() == 0
    went = [json.loads(record.value())["user"] for record in records(bootstrap, topic)[300:]]
    assert list(dict.fromkeys(went)) == [f"u{n}" for n in range(300)]
    assert len(went) <= (301 if number == signal.SIGKILL else 300)
    assert 0 < len(replaying.out) < 300


@pytest.mark.parametrize("arguments", [[], ["--replay"]])
def test_that_there_are_no_dead_letters_is_said(run_dead_letters, bootstrap, topic, arguments):
    create_topic(bootstrap, f"{topic}.DLQ")
    process = run_dead_letters(*arguments)
    assert process.wait() == 0
    assert (process.out, process.err) == ([], [f"No dead letter waits in {topic}.DLQ"])


def test_dead_letters_of_a_topic_that_is_not_there_create_none(run_dead_letters, bootstrap, topic):
    for process in [run_dead_letters(*arguments, "-t", f"{topic}.DQL") for arguments in ([], ["--replay"])]:
        assert process.wait() == 1
        assert [line.startswith(f"Topic {topic}.DQL can't be used: ") for line in process.err] == [True]
    assert f"{topic}.DQL" not in AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).topics


def put_letters(bootstrap, topic, *origins):
    """Write a dead letter for each topic and partition."""
    for origin, partition in origins:
        facts = ("ValueError", "no", origin, partition, 0, 0, "g", 1)
        why = [(name, str(fact)) for name, fact in zip(HEADERS, facts, strict=True)]
        put(bootstrap, f"{topic}.DLQ", order("a"), key="k", headers=why)


def test_where_its_partition_is_gone_a_letter_goes_back_by_its_key(run_dead_letters, bootstrap, topic):
    create_topic(bootstrap, topic, partitions=2)
    put_letters(bootstrap, topic, (topic, 7), (topic, 0))
    replaying = run_dead_letters("--replay")
    assert replaying.wait() == 0
    by_key, by_place = replaying.out
    assert re.fullmatch(
        rf"{topic}\.DLQ \[0\] @ 0 went back as {topic} \[[01]\] @ 0 by its key: there is no {topic} \[7\] any more",
        by_key,
    )
    assert by_place.startswith(f"{topic}.DLQ [0] @ 1 went back as {topic} [0] @ ")
    assert [back.key() for back in records(bootstrap, topic)] == [b"k", b"k"]
    assert run_dead_letters().wait() == 0


def test_where_its_topic_is_gone_no_letter_goes_back(run_dead_letters, bootstrap, topic):
    create_topic(bootstrap, topic)
    put_letters(bootstrap, topic, (topic, 0), (f"{topic}.gone", 0))
    replaying = run_dead_letters("--replay")
    assert replaying.wait() == 1
    assert [line.startswith(f"Topic {topic}.gone can't take its letters back: ") for line in replaying.err] == [True]
    assert records(bootstrap, topic) == []
    assert f"{topic}.gone" not in AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).topics
    one = run_dead_letters("--replay", "-c", "1")
    assert (one.wait(), len(one.out)) == (0, 1)


def test_a_record_that_is_no_dead_letter_is_named_and_left_alone(run_dead_letters, bootstrap, topic):
    put(bootstrap, f"{topic}.DLQ", b"foreign", headers=[("orders.replayed", b"x")])
    put(bootstrap, f"{topic}.DLQ", b"foreign")
    for arguments in ([], ["--replay"]):
        process = run_dead_letters(*arguments)
        assert process.wait() == 1
        assert process.out == []
        assert process.err == [
            *(f"Skipped {topic}.DLQ [0] @ {n} lacks the headers of a dead letter" for n in (0, 1)),
            f"No dead letter waits in {topic}.DLQ",
        ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--handler"),
        (["--handler", "json"], "json is a module; name its function too, json:FUNCTION"),
        (["--handler", "json:"], "json: is a module; name its function too, json:FUNCTION"),
        (["--handler", "mine.py:handle"], "mine.py:handle is a file, whose module is mine:handle"),
        (["--handler", "./folder/mine.py"], "./folder/mine.py is a file, whose module is folder.mine:FUNCTION"),
        (["--handler", "nowhere:f"], "no handler nowhere:f: ModuleNotFoundError: No module named 'nowhere'"),
        (
            ["--handler", "json:nothing"],
            "no handler json:nothing: AttributeError: module 'json' has no attribute 'noth",
        ),
        (["--handler", "a b"], "no handler a b: ValueError"),
        (["--handler", "handlers:no_function"], "handlers:no_function is no function"),
        (["--handler", "handlers:later"], "handlers:later is no plain function"),
        (["--handler", "handlers:by_lines"], "handlers:by_lines is no plain function"),
        (
            ["--handler", "broken:handle"],
            "no handler broken:handle: NameError: name 'databse' is not defined (broken.py:2)",
        ),
        (
            ["--handler", "wrong:handle"],
            "no handler wrong:handle: SyntaxError: '(' was never closed (wrong.py, line 1)",
        ),
        (["--handler", "handlers:away", "--attempts", "-1"], "--attempts"),
        (["--handler", "handlers:away", "--backoff", "0"], "--backoff"),
        (["--handler", "handlers:away", "--max-backoff", "nan"], "--max-backoff"),
        (["--handler", "handlers:away", "--unknown"], "--unknown"),
    ],
)
def test_wrong_usage_of_the_tracker_is_exit_status_2(start, environment, tmp_path, arguments, says):
    (tmp_path / "broken.py").write_text("import json\ndatabase = databse\n")
    (tmp_path / "wrong.py").write_text("handle = (\n")
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    process = start(sys.executable, "-m", "next_steps.retries.tracker", *arguments, env=environment)
    assert process.wait() == 2
    assert says in process.err[-1]
    assert len([line for line in process.err if not line.startswith(("usage", " "))]) == 1


@pytest.mark.parametrize("arguments", [["--replay", "7"], ["-X", "nothing=1"], ["-X", "x"], ["-F", "/nowhere"]])
def test_wrong_usage_of_the_dead_letters_is_exit_status_2(run_dead_letters, arguments):
    assert run_dead_letters(*arguments).wait() == 2


def test_the_pauses_double_with_jitter_up_to_the_longest():
    for attempts, longest in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (5000, 60)]:
        pauses = [pause(attempts, backoff=1, max_backoff=60) for _ in range(200)]
        assert longest / 2 <= min(pauses) < 0.6 * longest
        assert 0.9 * longest < max(pauses) <= longest


README = (ROOT / "next_steps" / "retries" / "README.md").read_text("utf-8")


def mine(folder, *replaced):
    """Save the README's mine.py, with its database in the folder too."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].replace("orders.db", str(folder / "orders.db"))
    (folder / "mine.py").write_text(code.replace(*replaced, 1) if replaced else code)


@own_brokers
def test_the_commands_of_the_readme_print_what_stands_below_them(new_broker, start, tmp_path):
    mine(tmp_path)
    environment = {"KAFKA_BOOTSTRAP_SERVERS": new_broker().bootstrap, "PYTHONPATH": str(tmp_path)}
    ran = []

    def run(words, number=0):
        """Start a command of the README; return it with the lines that stand below it."""
        command, lines = examples(words, README)[number]
        ran.append(command)
        return start(sys.executable, *shlex.split(command)[1:], env=environment), lines

    def prints_all(words, number=0):
        """Run a command to its end, and compare."""
        process, lines = run(words, number)
        assert process.wait() == 0
        printed = process.out + process.err
        assert same([re.sub(r"\d{4}-\S+T\S+", "2026-11-24T12:00:00+00:00", line) for line in printed], lines)

    kitchen, opened = run("python -m next_steps.retries.kitchen")
    kitchen.wait_for("open")
    assert kitchen.out == opened
    tracking, tracked = run("python -m next_steps.retries.tracker")
    tracking.wait_for("Consumer is running")
    prints_all("python producer.py")
    tracking.wait_for("from john")
    prints_all("python producer.py -t kitchen --user ana")
    tracking.wait_for("dead letter", err=True)
    assert tracking.out + tracking.err == tracked
    prints_all("python -m next_steps.retries.dead_letters")
    kitchen.end()  # not by SIGINT, which is ignored in a child of a shell's background job
    prints_all("python producer.py")
    tracking.wait_for("Attempt 1 of 30, the next one in ", err=True)
    kitchen, opened = run("python -m next_steps.retries.kitchen", 1)
    kitchen.wait_for("open")
    assert kitchen.out == opened
    tracking.wait_for("from john", times=2)
    prints_all("python -m next_steps.retries.dead_letters -t kitchen.DLQ --replay")
    tracking.wait_for("soup 2 from ana")
    prints_all("python -m next_steps.retries.dead_letters", 2)
    prints_all("python -m next_steps.retries.tracker --handler mine:handle")
    assert set(ran) == {command for command, _ in examples("", README)}


def test_a_bug_looks_as_the_readme_says(run_retries, environment, bootstrap, topic, tmp_path):
    mine(tmp_path, 'order["quantity"]', 'order["price"]')
    environment["PYTHONPATH"] = str(tmp_path)
    put(bootstrap, topic, order("a"))
    tracking = run_retries("mine:handle", "--backoff", "1")
    tracking.wait_for("failed", err=True)
    (documented,) = re.findall(r"^kitchen \[0\] @ 0 failed: KeyError.*", README, re.MULTILINE)
    assert re.sub(r"\d\.\d s", "0.8 s", tracking.err[0]).replace(topic, "kitchen") == documented


def test_the_readme_names_each_flag_header_and_default():
    shown = subprocess.run(
        [sys.executable, "-m", "next_steps.retries.tracker", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    rows = re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE)
    assert set(rows) == set(re.findall(r"^  (--[a-z-]+)", shown.stdout, re.MULTILINE))
    assert all(f"`{name}`" in README for name in (*HEADERS, dead_letters.REPLAYED_HEADER, dead_letters.REPLAYS_HEADER))
