"""The promise under faults: what was confirmed is tracked, at least once, and the log holds it once.

Real brokers and our scripts as processes, and after each fault the same five questions, in check(). The tests are
numbered as in the table of faults; --soak repeats more often. Number 15, records that are no order, is the first
test of test_poison.py.
"""

import json
import random
import re
import signal
import sys
import time
from collections import Counter
from functools import partial
from itertools import chain, pairwise

import pytest
from conftest import INTERRUPT, committed, create_topic, records, wait_until
from proxy import Proxy

pytestmark = pytest.mark.timeout(900)  # each wait has a limit of its own, far below
posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL, SIGSTOP and file size limits are POSIX")
LIMIT = 90  # seconds for what a restart of the broker may delay
END_LIMIT = 15  # seconds for a script to end after a signal, of which it waits 10 itself


@pytest.fixture
def repeats(request):
    """A function that returns how often to inject a fault: so many times, or with --soak so many."""
    soak = request.config.getoption("--soak")
    return lambda usually, soaking: soaking if soak else usually


@pytest.fixture
def proxy():
    """A function that starts a Proxy before one port of a broker."""
    started = []

    def start(port, target):
        started.append(Proxy(port, target))
        return started[-1]

    yield start
    for each in started:
        each.close()


# The broker's own session with its controller is 9 s by default: for that long, one that was killed can't come back.
SOON_BACK = {"KAFKA_BROKER_SESSION_TIMEOUT_MS": 3000, "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": 500}
# A listener more, whose clients are sent on to port 9095: the proxy's, before 9094.
PROXIED = {
    "KAFKA_LISTENERS": "HOST://:9092,NETWORK://:19092,CONTROLLER://localhost:9093,PROXIED://:9094",
    "KAFKA_ADVERTISED_LISTENERS": "HOST://localhost:9092,NETWORK://kafka:19092,PROXIED://localhost:9095",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": ("HOST:PLAINTEXT,NETWORK:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT"),
}


def confirmed(sending):
    """Return the users whose orders the producer has printed as delivered."""
    lines = [line.removeprefix("Message delivered ") for line in list(sending.out)]
    return [json.loads(line)["user"] for line in lines]


def given_up(sending):
    """Return the users whose orders the producer has named as not confirmed."""
    found = [re.match(r"Order (\{.*\}) was not confirmed: ", line) for line in list(sending.err)]
    return [json.loads(match[1])["user"] for match in found if match]


def received(tracking):
    """Return the users whose orders the tracker has printed, in that order."""
    return [line.rpartition(" ")[2] for line in list(tracking.out) if line.startswith("Message received: x 1 from ")]


def check(servers, topic, senders, trackers, attempted, doubled=False, repeated=False, rejoined=False):
    """Ask what each fault must leave true; the group has the topic's name.

    `doubled` allows the log to hold an order twice, `repeated` a tracker to print what one before it did, and
    `rejoined` what it printed itself.
    """
    attempted = {json.loads(line)["user"] for file in attempted for line in file.open()}
    delivered = set(chain.from_iterable(confirmed(sending) for sending in senders))
    refused = set(chain.from_iterable(given_up(sending) for sending in senders))
    shown = [received(tracking) for tracking in trackers]
    tracked = Counter(chain.from_iterable(shown))
    missing = delivered - set(tracked)
    assert not missing, (
        f"A: {len(missing)} of {len(delivered)} confirmed orders were not tracked: {sorted(missing)[:5]}"
    )
    assert set(tracked) <= attempted, "B: an order was tracked that nobody sent"
    assert not delivered & refused, "B: an order was both confirmed and reported as not confirmed"
    assert delivered, "B: no order was confirmed, so that nothing was shown"
    log = [(json.loads(r.value())["user"], r.partition(), r.offset()) for r in records(servers, topic)]
    copies = Counter(user for user, _, _ in log)
    assert doubled or max(copies.values()) == 1, f"C: the log holds {len(log)} records of {len(copies)} orders"
    assert delivered <= set(copies), "C: the log lacks an order that was confirmed"
    place = {user: (partition, offset) for user, partition, offset in log}
    for users in [] if rejoined or doubled else shown:
        for partition in {place[user][0] for user in users}:
            offsets = [place[user][1] for user in users if place[user][0] == partition]
            assert all(a < b for a, b in pairwise(offsets)), f"D: offsets fell in {partition}"
    assert repeated or doubled or max(tracked.values(), default=1) == 1, "D: an order was tracked again"
    for partition in {partition for _, partition, _ in log}:
        last = max((place[user][1] for user in tracked if place[user][0] == partition), default=-1)
        assert committed(servers, topic, topic, partition) <= last + 1, f"E: more than {last} was stored in {partition}"


def tracked_all(tracking, *senders):
    """Return when the tracker has printed what the producers have printed as delivered."""
    delivered = {user for sending in senders for user in confirmed(sending)}
    wait_until(lambda: delivered <= set(received(tracking)), f"all confirmed orders{tracking}", LIMIT)


def more(process, count=20):
    """Return when the process has printed so many lines more than now."""
    process.wait_for("Message", times=len(process.out) + count, limit=LIMIT)


# 1
def test_a_broker_that_is_killed_again_and_again_loses_and_doubles_nothing(
    new_broker, producer, tracker, topic, orders, repeats
):
    broker, file = new_broker(**SOON_BACK), orders(200_000)
    here = ["-b", broker.bootstrap]
    tracking = tracker(*here, "-X", "session.timeout.ms=60000")
    sending = producer(*here, "-l", file, "--rate", "300")
    for _ in range(repeats(5, 30)):
        more(sending)
        broker.kill()
        broker.start()
    more(sending)
    assert sending.stop(limit=LIMIT) == 0
    tracked_all(tracking, sending)
    assert tracking.stop() == 0
    check(broker.bootstrap, topic, [sending], [tracking], [file], repeated=True, rejoined=True)


# 2
@posix
def test_a_broker_that_is_frozen_for_20_s_fails_no_order(new_broker, producer, tracker, topic, orders):
    broker, file = new_broker(), orders(1500)
    here = ["-b", broker.bootstrap]
    tracking = tracker(*here, "-X", "session.timeout.ms=60000")
    sending = producer(*here, "-l", file, "--rate", "100")
    more(sending)
    broker.process.send_signal(signal.SIGSTOP)
    time.sleep(20)
    broker.process.send_signal(signal.SIGCONT)
    assert sending.wait(LIMIT) == 0
    assert len(confirmed(sending)) == 1500
    tracked_all(tracking, sending)
    assert tracking.stop() == 0
    check(broker.bootstrap, topic, [sending], [tracking], [file], repeated=True, rejoined=True)


# 3
@posix
def test_a_broker_that_is_frozen_for_too_long_leaves_each_order_confirmed_or_named(
    new_broker, producer, tracker, topic, orders
):
    broker, file = new_broker(), orders(300)
    here = ["-b", broker.bootstrap]
    sending = producer(*here, "-l", file, "--rate", "100", "-X", "delivery.timeout.ms=4000")
    more(sending)
    broker.process.send_signal(signal.SIGSTOP)
    assert sending.wait(LIMIT) == 1
    assert len(confirmed(sending)) + len(given_up(sending)) == 300
    assert given_up(sending)
    # After the producer's end: what librdkafka sends after an order that it gave up may stand in the log twice.
    broker.process.send_signal(signal.SIGCONT)
    tracking = tracker(*here, "-e")
    assert tracking.wait(LIMIT) == 0
    check(broker.bootstrap, topic, [sending], [tracking], [file])


# 4
@pytest.mark.parametrize("idempotent", [True, False])
def test_confirmations_that_get_lost_double_nothing_unless_idempotence_is_off(
    new_broker, producer, tracker, proxy, topic, orders, repeats, idempotent
):
    broker, file = new_broker(**PROXIED), orders(200_000)
    network = proxy(broker.port("9095"), broker.port("9094"))
    through = ["-b", f"127.0.0.1:{broker.port('9095')}", "-X", f"enable.idempotence={idempotent}".lower()]
    sending = producer(*through, "-l", file, "--rate", "300")
    for _ in range(repeats(5, 50)):
        more(sending)
        network.replies = False
        # No more than five requests go out without an answer, each perhaps with a single order.
        wait_until(lambda: len(records(broker.bootstrap, topic)) > len(sending.out) + 2, "orders without an answer")
        network.replies = True
        network.reset()
    more(sending)
    assert sending.stop(limit=LIMIT) == 0
    tracking = tracker("-b", broker.bootstrap, "-e")
    assert tracking.wait(LIMIT) == 0
    checked = partial(check, broker.bootstrap, topic, [sending], [tracking], [file])
    if idempotent:
        checked()
    else:
        checked(doubled=True)
        with pytest.raises(AssertionError, match=r"^C: "):
            checked()


# 5
def test_connections_that_are_reset_every_2_s_lose_and_double_nothing(
    new_broker, producer, tracker, proxy, topic, orders, repeats
):
    broker, file = new_broker(**PROXIED), orders(200_000)
    network = proxy(broker.port("9095"), broker.port("9094"))
    through = ["-b", f"127.0.0.1:{broker.port('9095')}"]
    tracking, sending = tracker(*through), producer(*through, "-l", file, "--rate", "300")
    more(tracking)
    for _ in range(repeats(5, 100)):
        time.sleep(2)
        network.reset()
    more(sending)
    assert sending.stop(limit=LIMIT) == 0
    tracked_all(tracking, sending)
    assert tracking.stop() == 0
    check(broker.bootstrap, topic, [sending], [tracking], [file], repeated=True, rejoined=True)


# 6
@posix
def test_a_tracker_that_is_killed_at_random_repeats_and_loses_nothing(
    new_broker, producer, tracker, topic, orders, repeats
):
    broker, file = new_broker(KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS=1000), orders(200_000)
    here = ["-b", broker.bootstrap]
    soon = ["-X", "session.timeout.ms=1000", "-X", "heartbeat.interval.ms=300", "-X", "auto.commit.interval.ms=50"]
    sending = producer(*here, "-l", file, "--rate", "300")
    killed = []
    for _ in range(repeats(20, 100)):
        killed.append(tracker(*here, *soon))
        more(killed[-1], random.randrange(1, 300))  # noqa: S311
        assert killed[-1].stop(signal.SIGKILL) == -signal.SIGKILL
    assert sending.stop(limit=LIMIT) == 0
    last = tracker(*here, "-e")
    assert last.wait(LIMIT) == 0
    check(broker.bootstrap, topic, [sending], [*killed, last], [file], repeated=True)


# 7 and 8
@posix
@pytest.mark.parametrize(("number", "signals"), [(signal.SIGTERM, 1), (signal.SIGINT, 50)])
def test_a_tracker_that_is_stopped_20_times_neither_loses_nor_repeats(
    producer, tracker, bootstrap, topic, orders, repeats, number, signals
):
    file = orders(200_000)
    sending = producer("-l", file, "--rate", "300")
    stopped = []
    for _ in range(repeats(20, 200)):
        stopped.append(tracker())
        more(stopped[-1], random.randrange(1, 50))  # noqa: S311
        for _ in range(signals):
            stopped[-1].popen.send_signal(number)
            time.sleep(random.random() / 100)  # noqa: S311
        assert (stopped[-1].wait(), stopped[-1].err) == (0, [])
    assert sending.stop(limit=LIMIT) == 0
    last = tracker("-e")
    assert last.wait(LIMIT) == 0
    check(bootstrap, topic, [sending], [*stopped, last], [file])


# 9
@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=posix)])
def test_a_signal_ends_both_within_15_s_when_the_broker_is_dead_or_frozen(
    new_broker, producer, tracker, topic, orders, frozen
):
    broker, file = new_broker(**SOON_BACK), orders(200_000)
    here = ["-b", broker.bootstrap]
    tracking, sending = tracker(*here), producer(*here, "-l", file, "--rate", "100")
    more(tracking)
    broker.process.send_signal(signal.SIGSTOP) if frozen else broker.kill()
    for process in (sending, tracking):
        process.popen.send_signal(INTERRUPT if sys.platform == "win32" else signal.SIGTERM)
    started = time.monotonic()
    assert tracking.wait(END_LIMIT) == 0
    assert sending.wait(END_LIMIT) == (1 if given_up(sending) else 0)
    assert time.monotonic() - started < END_LIMIT
    broker.process.send_signal(signal.SIGCONT) if frozen else broker.start()
    again = tracker(*here, "-e")
    assert again.wait(LIMIT) == 0
    check(broker.bootstrap, topic, [sending], [tracking, again], [file], repeated=True)


# 10
@posix
def test_what_a_producer_printed_before_it_was_killed_is_there(producer, tracker, bootstrap, topic, orders, repeats):
    killed, files = [], [orders(50_000, f"run{number}-") for number in range(repeats(5, 100))]
    for file in files:
        killed.append(producer("-l", file))
        killed[-1].wait_for("Message", times=random.randrange(1, 20_000))  # noqa: S311
        assert killed[-1].stop(signal.SIGKILL) == -signal.SIGKILL
    killed_lines = [sending.out.pop() for sending in killed if not sending.out[-1].endswith("}")]
    assert all(len(line) < 200 for line in killed_lines)  # no more than the one that the kill cut in two
    tracking = tracker("-e")
    assert tracking.wait(LIMIT) == 0
    check(bootstrap, topic, killed, [tracking], files)


# 11
def test_a_tracker_outlives_an_outage_longer_than_its_session_with_few_words(
    new_broker, producer, tracker, topic, orders
):
    broker, files = new_broker(**SOON_BACK), [orders(200, "before"), orders(200, "after")]
    here = ["-b", broker.bootstrap]
    tracking = tracker(*here, "-X", "session.timeout.ms=6000")
    sent = [producer(*here, "-l", files[0])]
    assert sent[0].wait() == 0
    tracked_all(tracking, *sent)
    broker.kill()
    time.sleep(7)
    broker.start()
    sent.append(producer(*here, "-l", files[1]))
    assert sent[1].wait(LIMIT) == 0
    tracked_all(tracking, *sent)
    assert tracking.stop() == 0
    assert len(tracking.err) <= 4, tracking
    check(broker.bootstrap, topic, sent, [tracking], files, repeated=True, rejoined=True)


# 12
def test_trackers_that_join_and_leave_under_load_neither_lose_nor_repeat(
    producer, tracker, bootstrap, topic, orders, repeats
):
    create_topic(bootstrap, topic, partitions=4)
    file = orders(200_000)
    sending = producer("-l", file, "--rate", "500")
    running, trackers = [], []
    for number in range(repeats(8, 40)):
        trackers.append(tracker())
        running.append(trackers[-1])
        more(trackers[-1])
        if number % 3:
            assert running.pop(random.randrange(len(running))).stop() == 0  # noqa: S311
    assert sending.stop(limit=LIMIT) == 0
    for tracking in running:
        assert tracking.stop() == 0
    trackers.append(tracker("-e"))
    assert trackers[-1].wait(LIMIT) == 0
    check(bootstrap, topic, [sending], trackers, [file])


# 13
@posix
def test_a_tracker_that_was_frozen_beyond_its_poll_interval_comes_back(producer, tracker, bootstrap, topic, orders):
    create_topic(bootstrap, topic, partitions=2)
    file = orders(200_000)
    sending = producer("-l", file, "--rate", "300")
    short = ["-X", "session.timeout.ms=6000", "-X", "max.poll.interval.ms=6000"]
    frozen = tracker(*short)
    more(frozen)
    frozen.popen.send_signal(signal.SIGSTOP)
    other = tracker(*short)
    more(other, 500)  # once the group has done without the frozen one
    frozen.popen.send_signal(signal.SIGCONT)
    more(frozen, 2000)
    assert sending.stop(limit=LIMIT) == 0
    assert frozen.stop() == other.stop() == 0
    last = tracker("-e")
    assert last.wait(LIMIT) == 0
    check(bootstrap, topic, [sending], [frozen, other, last], [file], repeated=True, rejoined=True)


# 14
@posix
@pytest.mark.parametrize("command", ["{tracker} | head -1", "{tracker} -e > /dev/full"])
def test_orders_whose_lines_did_not_get_out_come_again(start, producer, tracker, bootstrap, topic, orders, command):
    file = orders(5000)
    sending = producer("-l", file)
    assert sending.wait() == 0
    command = command.format(tracker=f"{sys.executable} tracker.py -b {bootstrap} -t {topic} -g {topic}")
    broken = start("bash", "-o", "pipefail", "-c", command)
    assert broken.wait() == 1
    assert len(broken.err) == 1
    assert broken.err[0].startswith("Standard output could not be written: ")
    again = tracker("-e")
    assert again.wait() == 0
    check(bootstrap, topic, [sending], [broken, again], [file], repeated=True)


# 16
def test_a_small_queue_before_a_slow_network_is_waited_for(new_broker, producer, tracker, proxy, topic, orders):
    broker, file = new_broker(**PROXIED), orders(500)
    network = proxy(broker.port("9095"), broker.port("9094"))
    network.delay = 0.05
    through = ["-b", f"127.0.0.1:{broker.port('9095')}", "-X", "queue.buffering.max.messages=10"]
    sending = producer(*through, "-l", file)
    assert sending.wait(LIMIT) == 0
    assert len(confirmed(sending)) == 500
    tracking = tracker("-b", broker.bootstrap, "-e")
    assert tracking.wait() == 0
    check(broker.bootstrap, topic, [sending], [tracking], [file])


# 17
@posix
def test_what_was_confirmed_before_the_disk_was_full_is_there_when_it_has_room(
    new_broker, producer, tracker, topic, orders
):
    resource = pytest.importorskip("resource")
    broker, file = new_broker(**SOON_BACK), orders(200_000)
    here = ["-b", broker.bootstrap]
    sending = producer(*here, "-l", file, "--rate", "2000", "-X", "delivery.timeout.ms=5000")
    more(sending, 200)
    resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (400_000, 400_000))
    sending.wait_for("was not confirmed", err=True, limit=LIMIT)
    assert sending.stop(limit=LIMIT) == 1
    broker.kill()
    broker.start()
    tracking = tracker(*here, "-e")
    assert tracking.wait(LIMIT) == 0
    check(broker.bootstrap, topic, [sending], [tracking], [file])


# 18
@posix
@pytest.mark.parametrize("early", [True, False])
def test_a_tracker_that_stores_too_early_loses_an_order_and_check_finds_it(
    start, producer, tracker, bootstrap, topic, orders, early
):
    file = orders(5)
    sending = producer("-l", file)
    assert sending.wait() == 0
    handle = "lambda order: print('Taken', flush=True) or time.sleep(60)"
    code = f"import sys, time, tracker; tracker.main(sys.argv[1:], handle={handle})"
    store = ["-X", f"enable.auto.offset.store={early}".lower(), "-X", "auto.commit.interval.ms=100"]
    killed = start(sys.executable, "-c", code, "-b", bootstrap, "-t", topic, "-g", topic, *store)
    killed.wait_for("Taken")
    if early:
        wait_until(lambda: committed(bootstrap, topic, topic) == 1, "the commit of an order that was not handled")
    killed.stop(signal.SIGKILL)
    again = tracker("-e")
    assert again.wait(LIMIT) == 0
    if early:
        with pytest.raises(AssertionError, match=r"^A: 1 of 5 "):
            check(bootstrap, topic, [sending], [killed, again], [file])
    else:
        check(bootstrap, topic, [sending], [killed, again], [file])
