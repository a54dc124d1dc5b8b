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
from conftest import INTERRUPT, committed, create_topic, put, records, wait_until
from test_readme import examples, same

import producer as producer_script
from next_steps.retries import dead_letters
from next_steps.retries.tracker import HEADERS, Retries

posix = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and /dev/full are POSIX")
END_LIMIT = 60  # seconds


def order(user, item="burger"):
    return producer_script.to_json(producer_script.new_order(user, item, 1))


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
def retries(start, environment, bootstrap, topic):
    """A function that starts the tracker with one of the handlers; arguments given win over these."""

    def run(handler, *arguments, servers=bootstrap, **options):
        here = ["-b", servers, "-t", topic, "-g", topic, "--dead-letters", f"{topic}.DLQ", "--backoff", "0.1"]
        module = ["-m", "next_steps.retries.tracker", "--handler", f"handlers:{handler}"]
        return start(sys.executable, *module, *here, *arguments, env=environment, **options)

    return run


@pytest.fixture
def letters(start, bootstrap, topic):
    """A function that starts dead_letters with this test's topic."""
    return partial(
        start, sys.executable, "-m", "next_steps.retries.dead_letters", "-b", bootstrap, "-t", f"{topic}.DLQ"
    )


def test_an_order_that_fails_twice_is_tried_again_in_its_place(retries, bootstrap, topic):
    users = ["a", "slow", "b", "slow2", "c"]
    put(bootstrap, topic, *(order(user) for user in users))
    tracking = retries("twice", "-e")
    assert tracking.wait() == 0
    assert received(tracking) == users
    assert [re.sub(r"\d\.\d s", "0.1 s", line) for line in tracking.err] == [
        f"{topic} [0] @ {offset} failed: TimeoutError: the kitchen did not answer. "
        f"Attempt {attempt} of 5, the next one in 0.1 s"
        for offset in (1, 3)
        for attempt in (1, 2)
    ]
    assert committed(bootstrap, topic, topic) == 5


def test_an_order_that_fails_each_time_becomes_a_dead_letter_with_all_that_it_was(retries, bootstrap, topic):
    put(bootstrap, topic, order("a"), order("away"), key=b"k\xff", headers=[("trace", b"\xff1"), ("trace", b"2")])
    put(bootstrap, topic, order("b"))
    tracking = retries("away", "-e", "--attempts", "3")
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


def test_what_can_never_succeed_is_not_tried_again(retries, bootstrap, topic):
    values = [b"no order", None, order("a", "soup"), order("b")]
    put(bootstrap, topic, *values)
    tracking = retries("refuse", "-e", "--backoff", "100")
    assert tracking.wait() == 1
    assert received(tracking) == ["b"]
    found = records(bootstrap, f"{topic}.DLQ")
    assert [letter.value() for letter in found] == values[:3]
    assert [dead_letters.facts(letter)["attempts"] for letter in found] == ["1", "1", "1"]
    assert dead_letters.facts(found[2])["message"] == "no soup today"


def test_the_other_partitions_go_on_while_one_waits(retries, bootstrap, topic, away):
    create_topic(bootstrap, topic, partitions=2)
    tracking = retries("away", "--attempts", "0", "--max-backoff", "0.2")
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


def test_the_orders_of_a_key_stay_in_sequence_through_many_failures(retries, bootstrap, topic):
    create_topic(bootstrap, topic, partitions=3)
    for number in range(300):
        put(bootstrap, topic, order(f"{number % 7}-{number}"), key=str(number % 7))
    # After a seek the next record may take as long as the broker holds an empty answer back, by default 500 ms.
    brief = ["--backoff", "0.02", "--max-backoff", "0.05", "-X", "fetch.wait.max.ms=20"]
    tracking = retries("moody", "-e", "--attempts", "0", *brief)
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
def test_an_outage_of_the_service_does_not_cost_the_place_in_the_group(retries, bootstrap, topic, away, pause):
    put(bootstrap, topic, order("away"))
    short = ["-X", "session.timeout.ms=6000", "-X", "max.poll.interval.ms=6000"]
    long = ["--attempts", "0", "--backoff", pause, "--max-backoff", pause]
    tracking = retries("away", *long, *short)
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
def test_an_order_that_waits_comes_again_after_a_stop_or_a_crash(retries, bootstrap, topic, away, number):
    put(bootstrap, topic, order("a"), order("away"), order("b"))
    tracking = retries("away", "--backoff", "100", "--max-backoff", "100", "-X", "session.timeout.ms=6000")
    tracking.wait_for("failed", err=True)
    tracking.wait_for("from a")
    wait_until(lambda: committed(bootstrap, topic, topic) == 1, "the commit of the first order")
    status = tracking.stop(number if number == INTERRUPT else signal.SIGKILL)
    assert status == (0 if number == INTERRUPT else -signal.SIGKILL)
    away.unlink()
    again = retries("away", "-c", "2")
    assert again.wait(END_LIMIT) == 0
    assert received(again) == ["away", "b"]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_partition_that_went_and_came_back_while_it_waited_goes_on(
    retries, tracker, bootstrap, topic, away, protocol
):
    create_topic(bootstrap, topic, partitions=2)
    put(bootstrap, topic, order("away0"), partition=0)
    put(bootstrap, topic, order("away1"), partition=1)
    chosen = ["-X", f"group.protocol={protocol}"]
    tracking = retries("away", *chosen, "--attempts", "0", "--max-backoff", "1")
    tracking.wait_for("failed", err=True, times=4)
    other = retries("away", *chosen, "--attempts", "0")
    other.wait_for("failed", err=True)
    assert other.stop() == 0
    away.unlink()
    tracking.wait_for("from away", times=2)
    assert sorted(received(tracking) + received(other)) == ["away0", "away1"]
    assert tracking.stop() == 0


def test_a_dead_letter_waits_for_the_broker(new_broker, retries, topic, away):
    broker = new_broker(KAFKA_BROKER_SESSION_TIMEOUT_MS=3000)
    put(broker.bootstrap, topic, order("a"), order("away"), order("b"))
    patient = ["-X", "delivery.timeout.ms=120000", "-X", "session.timeout.ms=60000"]
    tracking = retries("stuck", *patient, servers=broker.bootstrap)
    tracking.wait_for("Stuck")
    broker.kill()
    away.unlink()
    broker.start()
    tracking.wait_for("from b", limit=END_LIMIT)
    assert received(tracking) == ["a", "b"]
    assert len(records(broker.bootstrap, f"{topic}.DLQ")) == 1
    assert tracking.stop() == 1  # for the dead letter


def test_a_record_is_not_skipped_when_its_dead_letter_is_not_confirmed(new_broker, retries, topic, away):
    broker = new_broker(KAFKA_BROKER_SESSION_TIMEOUT_MS=3000)
    put(broker.bootstrap, topic, order("a"), order("away"), order("b"))
    tracking = retries(
        "stuck", "-X", "delivery.timeout.ms=3000", "-X", "session.timeout.ms=6000", servers=broker.bootstrap
    )
    tracking.wait_for("Stuck")
    broker.kill()
    away.unlink()
    assert tracking.wait(END_LIMIT) == 1
    assert [line for line in tracking.err if f"Topic {topic}.DLQ could not be written: " in line]
    broker.start()
    again = retries("stuck", "-e", servers=broker.bootstrap)
    assert again.wait(END_LIMIT) == 0
    assert received(again)[-2:] == ["away", "b"]


def test_a_dead_letter_topic_that_refuses_stops_the_tracker(retries, bootstrap, topic):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    small = NewTopic(f"{topic}.DLQ", 1, config={"max.message.bytes": "100"})
    admin.create_topics([small])[f"{topic}.DLQ"].result(10)
    put(bootstrap, topic, order("a"), os.urandom(1000), order("b"))
    for _ in range(2):  # the record is not skipped at the second start either
        tracking = retries("away", "-e")
        assert tracking.wait(END_LIMIT) == 1
        assert len(tracking.err) == 1
        assert tracking.err[0].startswith(f"Topic {topic}.DLQ could not be written: Broker: Message size too large")
    assert committed(bootstrap, topic, topic) == 1


def test_a_record_of_the_largest_size_becomes_a_dead_letter(retries, bootstrap, topic):
    put(bootstrap, topic, b"x" * 999_900)
    tracking = retries("away", "-e")
    assert tracking.wait() == 1
    assert len(records(bootstrap, f"{topic}.DLQ")) == 1


@posix
def test_standard_output_that_is_gone_is_no_failure_of_an_order(retries, bootstrap, topic):
    put(bootstrap, topic, *(order(f"u{n}") for n in range(3000)))
    with open("/dev/full", "w") as full:
        tracking = retries("away", "-e", stdout=full)
        assert tracking.wait() == 1
    assert len(tracking.err) == 1
    assert tracking.err[0].startswith("Standard output could not be written")
    again = retries("away", "-e")
    assert again.wait() == 0
    assert received(again) == [f"u{n}" for n in range(3000)]
    assert records(bootstrap, f"{topic}.DLQ") == []


def test_dead_letters_are_listed_and_go_back_once(retries, letters, bootstrap, topic, away):
    create_topic(bootstrap, topic, partitions=2)
    put(bootstrap, topic, order("a", "soup"), b"\x1b[2Jpoison", partition=1, headers=[("trace", b"1")])
    assert retries("refuse", "-e").wait() == 1
    listing = letters()
    assert listing.wait() == 0
    first, second = listing.out
    assert re.match(
        rf"{topic}\.DLQ \[0\] @ 0 \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 from {topic} \[1\] @ 0, {topic}, attempt 1: "
        r'ValueError: no soup today: \{"order_id": ',
        first,
    )
    assert "\\x1b[2Jpoison" in second
    assert all(line.isprintable() for line in listing.out)
    away.unlink()
    one = letters("--replay", "0@0")
    assert one.wait() == 0
    assert one.out == [f"{topic}.DLQ [0] @ 0 went back as {topic} [1] @ 2"]
    assert letters("--replay", "0@0").wait() == 1
    rest = letters()
    assert (rest.wait(), rest.out) == (0, [second])
    back = records(bootstrap, topic)[-1]
    assert back.headers() == [("trace", b"1"), ("orders.replays", b"1")]
    tracking = retries("refuse", "-e")
    assert tracking.wait() == 0
    assert received(tracking) == ["a"]


def test_a_replay_is_counted_and_what_fails_again_is_a_dead_letter_again(retries, letters, bootstrap, topic):
    put(bootstrap, topic, order("a", "soup"), order("b", "soup"))
    for count in (1, 2, 3):
        assert retries("refuse", "-e").wait() == 1
        replaying = letters("--replay")
        assert (replaying.wait(), len(replaying.out)) == (0, 2)
        assert [back.headers() for back in records(bootstrap, topic)[-2:]] == [
            [("orders.replays", str(count).encode())]
        ] * 2
    listing = letters()
    assert (listing.wait(), listing.out) == (0, [])


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_replay_that_is_interrupted_loses_nothing(retries, letters, bootstrap, topic, number):
    put(bootstrap, topic, *(order(f"u{n}", "soup") for n in range(300)))
    assert retries("refuse", "-e", "-q").wait() == 1
    replaying = letters("--replay")
    replaying.wait_for("went back", times=random.randrange(1, 200))  # noqa: S311
    assert replaying.stop(number) == (-number if number == signal.SIGKILL else 1)
    rest = letters("--replay")
    assert rest.wait() == 0
    went = [json.loads(record.value())["user"] for record in records(bootstrap, topic)[300:]]
    assert list(dict.fromkeys(went)) == [f"u{n}" for n in range(300)]
    assert len(went) <= (301 if number == signal.SIGKILL else 300)
    assert 0 < len(replaying.out) < 300


def test_a_record_that_is_no_dead_letter_is_named_and_left_alone(letters, bootstrap, topic):
    put(bootstrap, f"{topic}.DLQ", b"foreign", headers=[("orders.replayed", b"x")])
    put(bootstrap, f"{topic}.DLQ", b"foreign")
    for arguments in ([], ["--replay"]):
        process = letters(*arguments)
        assert process.wait() == 1
        assert process.out == []
        assert process.err[-2:] == [f"Skipped {topic}.DLQ [0] @ {n} lacks the headers of a dead letter" for n in (0, 1)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--handler"),
        (["--handler", "json"], "no handler json"),
        (["--handler", "nowhere:f"], "No module named 'nowhere'"),
        (["--handler", "json:nothing"], "nothing"),
        (["--handler", "handlers:later"], "no plain function"),
        (["--handler", "handlers:away", "--attempts", "-1"], "--attempts"),
        (["--handler", "handlers:away", "--backoff", "0"], "--backoff"),
        (["--handler", "handlers:away", "--unknown"], "--unknown"),
    ],
)
def test_wrong_usage_of_the_tracker_is_exit_status_2(start, environment, arguments, says):
    process = start(sys.executable, "-m", "next_steps.retries.tracker", *arguments, env=environment)
    assert process.wait() == 2
    assert says in process.err[-1]


@pytest.mark.parametrize("arguments", [["--replay", "7"], ["-X", "nothing=1"], ["-X", "x"], ["-F", "/nowhere"]])
def test_wrong_usage_of_the_dead_letters_is_exit_status_2(letters, arguments):
    assert letters(*arguments).wait() == 2


def test_the_pauses_double_with_jitter_up_to_the_longest():
    retries = Retries("orders.DLQ", 0, backoff=1, max_backoff=60)
    for attempts, longest in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (5000, 60)]:
        pauses = [retries.pause(attempts) for _ in range(200)]
        assert longest / 2 <= min(pauses) < 0.6 * longest
        assert 0.9 * longest < max(pauses) <= longest


README = (ROOT / "next_steps" / "retries" / "README.md").read_text("utf-8")


def test_the_commands_of_the_readme_print_what_stands_below_them(new_broker, start):
    environment = {"KAFKA_BOOTSTRAP_SERVERS": new_broker().bootstrap}
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
        assert same([re.sub(r"\d{4}-\S+T\S+", "2026-11-24T12:00:00+00:00", line) for line in process.out], lines)

    kitchen, opened = run("python -m next_steps.retries.kitchen")
    kitchen.wait_for("open")
    assert kitchen.out == opened
    tracking, tracked = run("python -m next_steps.retries.tracker")
    tracking.wait_for("Consumer is running")
    prints_all("python producer.py")
    tracking.wait_for("from john")
    prints_all("python producer.py --user ana")
    tracking.wait_for("dead letter", err=True)
    assert tracking.out + tracking.err == tracked
    prints_all("python -m next_steps.retries.dead_letters")
    kitchen.end()  # not by SIGINT, which is ignored in a child of a shell's background job
    prints_all("python producer.py")
    tracking.wait_for("Attempt 1 of 5, the next one in ", err=True)
    kitchen, opened = run("python -m next_steps.retries.kitchen", 1)
    kitchen.wait_for("open")
    assert kitchen.out == opened
    tracking.wait_for("from john", times=2)
    prints_all("python -m next_steps.retries.dead_letters --replay")
    tracking.wait_for("soup 2 from ana")
    assert set(ran) == {command for command, _ in examples("", README)}


def test_the_readme_names_each_flag_header_and_default():
    shown = subprocess.run(
        [sys.executable, "-m", "next_steps.retries.tracker", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    rows = re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE)
    assert set(rows) == set(re.findall(r"^  (--[a-z-]+)", shown.stdout, re.MULTILINE))
    assert all(f"`{name}`" in README for name in (*HEADERS, dead_letters.NOTE, dead_letters.REPLAYS))


def test_the_index_of_the_steps_names_each_folder_and_its_command():
    index = (ROOT / "next_steps" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)/README\.md\) \| .* \| `(.*)` \|$", index, re.MULTILINE)
    folders = {file.parent.name for file in (ROOT / "next_steps").glob("*/README.md")}
    assert {name for name, _, _ in rows} == {folder for _, folder, _ in rows} == folders
    for _, folder, command in rows:
        assert command in (ROOT / "next_steps" / folder / "README.md").read_text("utf-8")
