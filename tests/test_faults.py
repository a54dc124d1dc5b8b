"""The promise under faults: what was confirmed is tracked, at least once, and the log holds it once.

Each test injects one fault into the same traffic, real scripts before a real broker:

    the broker     killed again and again, frozen, frozen for too long, away for longer than a session, its disk full,
                   taken for dead by its controller
    the network    confirmations lost, connections reset, slow
    the producer   killed, and told to stop while the broker is dead or frozen
    the trackers   killed, stopped, frozen, joining and leaving (also with a slow handler), their output gone

After it, finish() asks what every fault must leave true, and the test what this one must. The last test breaks the
tracker on purpose, to show that an order lost is found. Records that are no order are in test_poison.py. --soak
repeats more often.
"""

import random
import signal
import sys
import time

import pytest
from broker import Broker
from conftest import (
    INTERRUPT,
    OUTAGE_LIMIT,
    PROXIED,
    SOON_BACK,
    committed,
    confirmed,
    create_topic,
    freeze,
    given_up,
    more,
    posix,
    put,
    records,
    running,
    thaw,
    tracked,
    wait_until,
)
from proxy import Proxy

import tracker
from producer import new_order, to_json

pytestmark = [pytest.mark.spread, pytest.mark.timeout(900)]  # each wait has a limit of its own, far below
END_LIMIT = 15  # seconds for a script to end after a signal, of which it waits 10 itself
LONG_SESSION = ["-X", "session.timeout.ms=60000"]  # the broker is back before it forgets the tracker, however slow
# A tracker of one's own, as README shows it, that takes TAKES seconds for each order.
SLOW_TRACKER = """
import os, sys, time, tracker

def take(consumer, args, stop):
    for records in tracker.follow(consumer, [args.topic], args.count, args.exit, stop, max_poll_records=1):
        for record in records:
            print("Taking", record.offset(), file=sys.stderr)
            time.sleep(float(os.environ["TAKES"]))
            print(tracker.line_for(tracker.from_json(record.value())), flush=True)
        tracker.store(consumer, records)
    return 0

sys.exit(tracker.main(run=take))
"""


@pytest.fixture
def repeats(request):
    """A function that returns how often to inject a fault: so many times, or with --soak so many."""
    soak = request.config.getoption("--soak")
    return lambda usually, soaking: soaking if soak else usually


@pytest.fixture
def flow(traffic, bootstrap):
    """The traffic before the broker that many tests share, for faults that do it no harm."""
    return traffic(bootstrap)


@pytest.fixture
def proxied(new_broker):
    """A broker and a Proxy before it, whose address is the proxy's `bootstrap`."""
    broker = new_broker(**PROXIED)
    network = Proxy(broker.port("9095"), broker.port("9094"))
    network.bootstrap = f"127.0.0.1:{broker.port('9095')}"
    yield broker, network
    network.close()


@pytest.fixture
def slow_tracker(start, bootstrap, topic):
    """A function that starts SLOW_TRACKER, which takes so many seconds for an order."""
    command = [sys.executable, "-c", SLOW_TRACKER, "-b", bootstrap, "-t", topic, "-g", topic]
    return lambda *flags, takes: start(*command, *flags, env={"TAKES": str(takes)})


def any_of(count):
    """Return a random number below so many."""
    return random.randrange(count)  # noqa: S311


# The broker.


def test_broker_killed_again_and_again(new_broker, traffic, repeats):
    broker = new_broker(**SOON_BACK)
    flow = traffic(broker.bootstrap)
    flow.track(*LONG_SESSION)
    sending = flow.send("--rate", "100")
    for _ in range(repeats(3, 30)):
        more(sending)
        broker.kill()
        broker.start()
    more(sending)
    flow.finish()
    flow.assert_log_holds_each_once()


@posix
def test_broker_frozen(new_broker, traffic):
    """Until the producer complains that it waits: no order fails."""
    broker = new_broker()
    flow = traffic(broker.bootstrap)
    flow.track(*LONG_SESSION)
    sending = flow.send("--rate", "100", count=500)
    more(sending)
    freeze(broker.process)
    sending.wait_for("to confirm", err=True)
    thaw(broker.process)
    assert sending.wait(OUTAGE_LIMIT) == 0
    assert len(confirmed(sending)) == 500
    flow.finish()
    flow.assert_log_holds_each_once()


@posix
def test_broker_frozen_for_too_long(new_broker, traffic):
    """Each order is either confirmed or named."""
    broker = new_broker()
    flow = traffic(broker.bootstrap)
    sending = flow.send("--rate", "100", "-X", "delivery.timeout.ms=4000", count=300)
    more(sending)
    freeze(broker.process)
    assert sending.wait(OUTAGE_LIMIT) == 1
    assert given_up(sending)
    assert confirmed(sending) | given_up(sending) == flow.attempted
    # After the producer's end: what librdkafka sends after an order that it gave up may stand in the log twice.
    thaw(broker.process)
    flow.finish()
    flow.assert_log_holds_each_once()
    flow.assert_tracked_once()


def test_broker_away_for_longer_than_a_session(new_broker, traffic):
    broker = new_broker(**SOON_BACK)
    flow = traffic(broker.bootstrap)
    tracking = flow.track("-X", "session.timeout.ms=6000")
    first = flow.send(count=200)
    assert first.wait() == 0
    wait_until(lambda: tracked(tracking) == confirmed(first), "the first orders")
    broker.kill()
    time.sleep(7)
    broker.start()
    assert flow.send(count=200).wait(OUTAGE_LIMIT) == 0
    flow.finish()
    assert len(tracking.err) <= 4, tracking
    flow.assert_log_holds_each_once()


def test_broker_taken_for_dead(new_broker, traffic):
    """As for a moment after it froze. A client that asks in that moment is told of no broker at all."""
    broker = new_broker(KAFKA_BROKER_SESSION_TIMEOUT_MS=12000, KAFKA_BROKER_HEARTBEAT_INTERVAL_MS=24000)
    flow = traffic(broker.bootstrap)
    # Without the first, librdkafka mostly finds its way back by itself; the other lets this take no minutes.
    properties = ("metadata.recovery.strategy=none", "topic.metadata.refresh.interval.ms=500")
    tracking = flow.track("-X", properties[0], "-X", properties[1], "-X", "statistics.interval.ms=1000")
    first = flow.send(count=1)
    wait_until(lambda: tracked(tracking) == confirmed(first) != set(), "the first order")
    tracking.wait_for("Kafka became unreachable", err=True)
    broker.kill()
    tracking.wait_for("Kafka became unreachable", err=True, times=2)
    time.sleep(tracker.LIMIT + 1)  # that the new consumer gives up then, as at the start, can't be waited for
    settings = broker.directory / "config/server.properties"
    settings.write_text(settings.read_text().replace("=12000", "=3000").replace("=24000", "=500"))
    broker.start()
    assert flow.send(count=200).wait(OUTAGE_LIMIT) == 0
    flow.finish()
    assert tracking.out.count(tracking.out[0]) in (2, 3), tracking  # a starting broker tells of none for a moment too


def test_broker_away_as_the_tracker_begins(new_broker, topic, capsys, no_signals):
    """The tracker goes on when it is back."""
    broker = new_broker(**SOON_BACK)
    put(broker.bootstrap, topic, to_json(new_order("ana", "tea", 1)))

    def begin(consumer, args, stop):
        broker.kill()
        found = tracker.follow(consumer, [topic], count=1)
        assert next(found) == []
        broker.start()
        return len([record for records in found for record in records]) - 1

    assert tracker.main(["-b", broker.bootstrap, "-t", topic], run=begin) == 0
    assert "Kafka became unreachable, trying again: " in capsys.readouterr().err


@posix
def test_broker_whose_disk_is_full(new_broker, traffic):
    """What was confirmed before is there when the disk has room."""
    resource = pytest.importorskip("resource")
    broker = new_broker(**SOON_BACK)
    flow = traffic(broker.bootstrap)
    sending = flow.send("--rate", "2000", "-X", "delivery.timeout.ms=5000")
    more(sending, 200)
    resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (400_000, 400_000))
    sending.wait_for("was not confirmed", err=True, limit=OUTAGE_LIMIT)
    assert sending.stop(limit=OUTAGE_LIMIT) == 1
    broker.kill()
    broker.start()
    flow.finish()
    flow.assert_log_holds_each_once()
    flow.assert_tracked_once()


# The network.


@pytest.mark.parametrize("idempotent", [True, False])
def test_confirmations_lost(proxied, traffic, topic, repeats, idempotent):
    """The log holds no order twice, unless idempotence is off: then it must, or the fault was none."""
    broker, network = proxied
    flow = traffic(broker.bootstrap)
    off = [] if idempotent else ["-X", "enable.idempotence=false"]
    sending = flow.send("--rate", "300", "-b", network.bootstrap, *off)
    for _ in range(repeats(5, 50)):
        more(sending)
        network.replies = False
        # No more than five requests go out without an answer, each perhaps with a single order.
        wait_until(lambda: len(records(broker.bootstrap, topic)) > len(sending.out) + 2, "orders without an answer")
        network.replies = True
        network.reset()
    more(sending)
    flow.finish()
    if idempotent:
        flow.assert_log_holds_each_once()
        flow.assert_tracked_once()
    else:
        with pytest.raises(AssertionError, match="more than once"):
            flow.assert_log_holds_each_once()


def test_connections_reset(proxied, traffic, repeats):
    _, network = proxied
    flow = traffic(network.bootstrap)
    tracking, sending = flow.track(), flow.send("--rate", "300")
    for _ in range(repeats(5, 100)):
        more(tracking)
        time.sleep(random.random() * 2)  # noqa: S311
        network.reset()
    more(sending)
    flow.finish()
    flow.assert_log_holds_each_once()


def test_slow_network_before_a_small_queue(proxied, traffic):
    broker, network = proxied
    network.delay = 0.05
    flow = traffic(broker.bootstrap)
    sending = flow.send("-b", network.bootstrap, "-X", "queue.buffering.max.messages=10", count=500)
    assert sending.wait(OUTAGE_LIMIT) == 0, str(sending)
    assert len(confirmed(sending)) == 500
    flow.finish()
    flow.assert_log_holds_each_once()
    flow.assert_tracked_once()


# The producer.


@posix
def test_producer_killed(flow, repeats):
    """What it had printed is there."""
    for _ in range(repeats(5, 100)):
        sending = flow.send()
        sending.wait_for("Message", times=1 + any_of(20_000))
        assert sending.stop(signal.SIGKILL) == -signal.SIGKILL
        if not sending.out[-1].endswith("}"):  # the kill cut it in two
            sending.out.pop()
    flow.finish()
    flow.assert_log_holds_each_once()
    flow.assert_tracked_once()


@pytest.mark.parametrize(
    ("away", "back"),
    [
        pytest.param(Broker.kill, Broker.start, id="dead"),
        pytest.param(lambda b: freeze(b.process), lambda b: thaw(b.process), id="frozen", marks=posix),
    ],
)
def test_both_told_to_stop_without_a_broker(new_broker, traffic, away, back):
    """They end in time, and each order is confirmed or named."""
    broker = new_broker(**SOON_BACK)
    flow = traffic(broker.bootstrap)
    tracking, sending = flow.track(), flow.send("--rate", "100")
    more(tracking)
    away(broker)
    for process in (sending, tracking):
        process.popen.send_signal(INTERRUPT if sys.platform == "win32" else signal.SIGTERM)
    started = time.monotonic()
    assert tracking.wait(END_LIMIT) == 0
    assert sending.wait(END_LIMIT) == (1 if given_up(sending) else 0)
    assert time.monotonic() - started < END_LIMIT
    back(broker)
    flow.finish()
    flow.assert_log_holds_each_once()


# The trackers.


@posix
def test_tracker_killed_at_random(new_broker, traffic, repeats):
    broker = new_broker(KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS=1000)
    flow = traffic(broker.bootstrap)
    soon = ["-X", "session.timeout.ms=1000", "-X", "heartbeat.interval.ms=300", "-X", "auto.commit.interval.ms=50"]
    flow.send("--rate", "300")
    for _ in range(repeats(12, 100)):
        tracking = flow.track(*soon)
        more(tracking, 1 + any_of(300))
        assert tracking.stop(signal.SIGKILL) == -signal.SIGKILL
    flow.finish()
    flow.assert_offsets_rise()
    flow.assert_log_holds_each_once()


@posix
@pytest.mark.parametrize(("number", "signals"), [(signal.SIGTERM, 1), (signal.SIGINT, 50)])
def test_tracker_stopped_again_and_again(flow, repeats, number, signals):
    """Each order is printed once; signals in a row are as good as one."""
    flow.send("--rate", "300")
    for _ in range(repeats(12, 200)):
        tracking = flow.track()
        more(tracking, 1 + any_of(50))
        for _ in range(signals):
            tracking.popen.send_signal(number)
            time.sleep(random.random() / 100)  # noqa: S311
        assert (tracking.wait(), tracking.err) == (0, [])
    flow.finish()
    flow.assert_tracked_once()
    flow.assert_offsets_rise()


def test_trackers_join_and_leave(flow, bootstrap, topic, repeats):
    create_topic(bootstrap, topic, partitions=4)
    flow.send("--rate", "500")
    for number in range(repeats(8, 40)):
        more(flow.track())
        if number % 3:
            assert random.choice(running(flow.trackers)).stop() == 0  # noqa: S311
    flow.finish()
    flow.assert_tracked_once()
    flow.assert_offsets_rise()


def test_slow_trackers_stopped_while_others_join(slow_tracker, flow, bootstrap, topic):
    """A clean stop repeats nothing, also while the group is sharing anew: close() alone loses its commit then."""
    create_topic(bootstrap, topic, partitions=3)
    users = [f"u{number}" for number in range(3000)]  # more in each partition than the slow ones can take
    for partition in range(3):
        orders = (to_json(new_order(user, "x", 1)) for user in users[partition::3])
        put(bootstrap, topic, *orders, partition=partition)
    trackers = flow.trackers
    trackers.append(slow_tracker(takes=0.1))
    for _ in range(6):
        trackers.append(slow_tracker(takes=0.1))
        trackers[-1].wait_for("Taking", err=True, limit=OUTAGE_LIMIT)
        trackers.append(slow_tracker(takes=0.1))
        time.sleep(random.random() * 2)  # noqa: S311
        for _ in range(2):
            assert random.choice(running(trackers)[:-1]).stop() == 0  # noqa: S311
    assert trackers[-1].stop() == 0
    trackers.append(slow_tracker("-e", takes=0))
    assert trackers[-1].wait() == 0
    assert tracked(*trackers) == set(users)
    flow.assert_tracked_once()
    flow.assert_offsets_rise()


def test_tracker_joins_one_that_is_busy(flow, slow_tracker, bootstrap, topic, capsys, monkeypatch, no_signals):
    """For longer than the tracker waits for an answer at its start, however slow that start is: it gets its turn."""
    create_topic(bootstrap, topic, partitions=2)
    assert flow.send(count=20).wait() == 0
    busy = slow_tracker(takes=15)
    busy.wait_for("Taking", err=True)
    compare = tracker.compare
    monkeypatch.setattr(tracker, "compare", lambda *asked: time.sleep(1) or compare(*asked))
    assert tracker.main(["-b", bootstrap, "-t", topic, "-g", topic, "-c", "1"]) == 0
    assert "Message received: x 1 from " in capsys.readouterr().out


@posix
def test_tracker_frozen_beyond_its_poll_interval(flow, bootstrap, topic):
    create_topic(bootstrap, topic, partitions=2)
    short = ["-X", "session.timeout.ms=6000", "-X", "max.poll.interval.ms=6000"]
    flow.send("--rate", "300")
    frozen = flow.track(*short)
    more(frozen)
    freeze(frozen.popen)
    more(flow.track(*short), 500)  # once the group has done without the frozen one
    thaw(frozen.popen)
    more(frozen, 2000)
    flow.finish()


@posix
@pytest.mark.parametrize("rest", ["| head -1", "-e > /dev/full"])
def test_output_gone(flow, start, bootstrap, topic, rest):
    """Orders whose lines did not get out come again, all of their list."""
    assert flow.send(count=5000).wait() == 0
    command = f"{sys.executable} tracker.py -b {bootstrap} -t {topic} -g {topic} {rest}"
    broken = start("bash", "-o", "pipefail", "-c", command)
    flow.trackers.append(broken)
    assert broken.wait() == 1
    assert len(broken.err) == 1
    assert broken.err[0].startswith("Standard output could not be written: ")
    flow.finish()
    flow.assert_log_holds_each_once()


@posix
@pytest.mark.parametrize("early", [True, False])
def test_tracker_that_stores_too_early(flow, slow_tracker, bootstrap, topic, early):
    """It loses the order that it was killed with, and assert_kept() finds that; with our own setting it does not."""
    assert flow.send(count=5).wait() == 0
    store = ["-X", f"enable.auto.offset.store={early}".lower(), "-X", "auto.commit.interval.ms=100"]
    killed = slow_tracker(*store, takes=60)
    killed.wait_for("Taking", err=True)
    if early:
        wait_until(lambda: committed(bootstrap, topic, topic) == 1, "the commit of an order that was not handled")
    killed.stop(signal.SIGKILL)
    assert flow.track("-e").wait(OUTAGE_LIMIT) == 0
    if early:
        with pytest.raises(AssertionError, match="1 of 5 confirmed orders were not tracked"):
            flow.assert_kept()
    else:
        flow.assert_kept()
