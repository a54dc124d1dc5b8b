"""Read orders from Kafka as a member of a consumer group, and print a line for each.

    python tracker.py             what the group has not read yet, then each new order, until Ctrl-C
    python tracker.py -e          to the end of the topic only
    python tracker.py -g other    in another group, which begins with the first order

An order is stored as read when its line is out: a crash may repeat it, never lose it.
Exit status: 0 stopped or done, 1 a record was no order or Kafka can't be used, 2 wrong usage.
"""

import argparse
import contextlib
import io
import json
import os
import re
import reprlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TextIO

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

Order = dict[str, Any]

CONFIG: dict[str, Any] = {
    "bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092",
    "group.id": "order-tracker",
    # A group that has read nothing yet begins with the first order.
    "auto.offset.reset": "earliest",
    # follow() stores an offset after the order was handled; librdkafka would when it hands the order over.
    "enable.auto.offset.store": False,
    # A tracker that is there before the first order makes the topic by asking for it.
    "allow.auto.create.topics": True,
    # How many orders are fetched ahead. More would take memory without being faster.
    "queued.min.messages": 10_000,
    # How long to wait before fetching more once that many are there; the default, 1000, lets a fast tracker run dry.
    "fetch.queue.backoff.ms": 10,
    # librdkafka puts off its second connection by half of this: the default, 100, holds up the first order.
    "reconnect.backoff.ms": 20,
    # librdkafka logs each failed connection, up to 20 a second; error_report says it once.
    "log_level": 2,
}
# The classic group protocol, and not `consumer` (KIP-848), in which these two are the broker's to set (5 s and 45 s).
# Measured with Kafka 4.3.1, classic against consumer: a second tracker had its share after 1.0 s against 5.1 s, that of
# a stopped one went over in 0.7 s against 4.6 s, and that of a killed one in 10 s against 48 s. A longer session would
# outlast longer outages without repeating orders, but after those that it does not, the tracker waits for it once more.
CLASSIC: dict[str, Any] = {"heartbeat.interval.ms": 1_000, "session.timeout.ms": 10_000}
# Errors that trying again does not mend: no right to read, a group or an offset that the settings don't fit.
FINAL = (
    KafkaError._FATAL,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.INVALID_SESSION_TIMEOUT,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError._NO_OFFSET,
)
CONNECT_LIMIT = 10  # seconds to find a broker and the topic
CLOSE_LIMIT = 10  # seconds to commit and to leave the group
STORE_INTERVAL = 1.0  # seconds until offsets are stored although more orders are at hand
WAIT = 0.5  # seconds to wait for the next record before looking at `stop` again
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
# What asks a script to stop; SIGBREAK is Ctrl-Break on Windows.
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]

decode = json.JSONDecoder().decode


class ConfigError(Exception):
    """A librdkafka property is unknown or has a value that it can't have."""


class OutputError(Exception):
    """Standard output could not be written. No OSError: a handler may raise those for reasons of its own."""


class Output(io.RawIOBase):
    """The bytes of a text stream, with OutputError in place of OSError."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def write(self, data: Any) -> int:
        try:
            self.stream.buffer.write(data)
            self.stream.buffer.flush()
        except OSError as error:
            raise OutputError(error) from None
        return len(data)


def from_json(data: bytes | None) -> Order:
    """Return the order in a record's value; ValueError says why it holds none."""
    if data is None:
        raise ValueError("the record is empty (a tombstone)")
    try:
        order = decode(data.decode())
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(order, dict):
        raise ValueError(f"an order must be a JSON object, got {reprlib.repr(order)}")
    order_id, quantity = order.get("order_id"), order.get("quantity")
    if not isinstance(order_id, str) or not UUID.fullmatch(order_id):
        raise ValueError(f"order_id must be a UUID, got {reprlib.repr(order_id)}")
    for field in ("user", "item"):
        if not isinstance(order.get(field), str) or not order[field]:
            raise ValueError(f"{field} must be non-empty text, got {reprlib.repr(order.get(field))}")
    if type(quantity) is not int or quantity < 1:  # True is an int as well, but no quantity
        raise ValueError(f"quantity must be a whole number of at least 1, got {reprlib.repr(quantity)}")
    return order


def printable(text: str) -> str:
    """Return the text with an escape in place of each character that could drive a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def show(order: Order) -> None:
    """Print the order."""
    print(f"Message received: {printable(order['item'])} {order['quantity']} from {printable(order['user'])}")


def receive(
    consumer: Consumer,
    msg: Message,
    config: dict[str, Any],
    deserialize: Callable[[bytes | None], Order],
    handle: Callable[[Order], None],
) -> bool | None:
    """Handle the order in a record; return whether it held one, or None where it was put off and comes again."""
    try:
        order = deserialize(msg.value())
    except ValueError as why:
        kcat = f"kcat -C -b {config['bootstrap.servers']} -t {msg.topic()} -p {msg.partition()} -o {msg.offset()} -c 1"
        warn(f"Skipped {msg.topic()} [{msg.partition()}] @ {msg.offset()}: {why}. Look at it: {kcat}")
        return False
    handle(order)
    return True


def follow(
    config: dict[str, Any],
    topic: str,
    deserialize: Callable[[bytes | None], Order] = from_json,
    handle: Callable[[Order], None] = show,
    count: int | None = None,
    until_end: bool = False,
    stop: Sequence[int] = (),
    receive: Callable[..., bool | None] = receive,
    wait: Callable[[Consumer], float] = lambda consumer: WAIT,
) -> int:
    """Handle a topic's orders until `stop` holds something, at most `count`; return how many records held no order.

    `receive` is what is done with each record, and `wait`, asked at least every STORE_INTERVAL, for how many seconds to
    poll when no record is at hand. RuntimeError where Kafka can't be used, OutputError where standard output is gone,
    and whatever `handle` raises: the order at hand is not stored as read then.
    """
    orders = skipped = 0
    handled: dict[int | None, Message] = {}  # by partition, the last record whose offset is still to be stored
    unread: set[int | None] | None = None  # the partitions not at their end, None before the group has given us any
    # librdkafka's last error of each kind; that no broker is reachable is nothing new before connect() found one.
    errors = {KafkaError._ALL_BROKERS_DOWN: KafkaError(KafkaError._ALL_BROKERS_DOWN)}

    def on_assign(_: Consumer, partitions: list[TopicPartition]) -> None:
        nonlocal unread
        unread = (unread or set()) | {p.partition for p in partitions}

    def on_revoke(_: Consumer, partitions: list[TopicPartition]) -> None:
        nonlocal unread
        store(consumer, handled)
        unread = (unread or set()) - {p.partition for p in partitions} or None

    try:
        consumer = Consumer({**config, "enable.partition.eof": until_end, "error_cb": partial(error_report, errors)})
    except (KafkaException, TypeError, ValueError, AttributeError) as error:  # all but the first for callbacks
        raise ConfigError(error.args[0].str() if isinstance(error, KafkaException) else error) from None
    try:
        connect(consumer, config["bootstrap.servers"], topic, errors, stop)
        if not stop:
            consumer.subscribe([topic], on_assign=on_assign, on_revoke=on_revoke)
            print(f"Consumer is running & subscribed to {topic} topic", flush=True)
        due = time.monotonic() + STORE_INTERVAL
        while not stop and orders != count and not (until_end and unread == set()):
            msg = consumer.poll(0 if handled else wait(consumer))
            if msg is None:
                store(consumer, handled)
                if KafkaError._ALL_BROKERS_DOWN in errors:
                    look_for_broker(consumer, topic, errors)
            elif err := msg.error():
                if err.code() != KafkaError._PARTITION_EOF:
                    consumer_error(err)
                elif unread:
                    unread.discard(msg.partition())
            else:
                held_order = receive(consumer, msg, config, deserialize, handle)
                if held_order is None:
                    unread = (unread or set()) | {msg.partition()}
                    continue
                orders += held_order
                skipped += not held_order
                handled[msg.partition()] = msg
                if time.monotonic() > due:
                    store(consumer, handled)
                    due = time.monotonic() + STORE_INTERVAL
    except OutputError:
        handled.clear()  # the lines that did not get out may be those of any of them, and they have to come again
        raise
    finally:
        try:
            store(consumer, handled)
        finally:
            handled.clear()
            close(consumer)
    return skipped


def store(consumer: Consumer, handled: dict[int | None, Message]) -> None:
    """Store the offsets of the handled records, once their lines are out.

    librdkafka commits what is stored every 5 s, when a partition goes to another tracker, and in close().
    """
    if handled:
        sys.stdout.flush()
    for msg in handled.values():
        try:
            consumer.store_offsets(message=msg)
        except KafkaException as error:
            # _STATE: the partition was lost, and its new owner repeats the order.
            # _INVALID_ARG: librdkafka itself stores, as -X enable.auto.offset.store=true asks it to.
            if error.args[0].code() not in (KafkaError._STATE, KafkaError._INVALID_ARG):
                raise
    handled.clear()


def close(consumer: Consumer) -> None:
    """Commit what is stored and leave the group, within CLOSE_LIMIT: without a broker close() alone takes minutes."""
    closing = threading.Thread(target=consumer.close, daemon=True)
    closing.start()
    closing.join(CLOSE_LIMIT)
    if closing.is_alive():
        warn(f"Kafka did not answer for {CLOSE_LIMIT} s on leaving. The last orders may come again at the next start")


def connect(consumer: Consumer, servers: str, topic: str, errors: dict[int, KafkaError], stop: Sequence[int]) -> None:
    """Return once the topic is there, which asking for it may create, or `stop` holds something.

    RuntimeError says why it can't be used.
    """
    reason = f"No Kafka broker answered at {servers} within {CONNECT_LIMIT} s. Start one: docker-compose up -d"
    deadline = time.monotonic() + CONNECT_LIMIT
    answered = False
    while not answered and not stop:
        try:
            problem = consumer.list_topics(topic, timeout=1).topics[topic].error
        except KafkaException:
            consumer.poll(0)  # runs error_report
            if refusal := errors.get(KafkaError._AUTHENTICATION) or errors.get(KafkaError._SSL):
                raise RuntimeError(f"{servers} refused the connection: {refusal.str()}. Check -F and -X") from None
        else:
            answered = problem is None
            if problem:
                reason = f"Topic {topic} can't be used: {problem.str()}. Create it, or check its name and your rights"
                if problem.code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE):
                    raise RuntimeError(reason)
                time.sleep(0.02)  # it is being made
        if not answered and time.monotonic() > deadline:
            raise RuntimeError(reason)
    if not stop:
        consumer.poll(0)  # runs error_report for what went wrong until now
        errors.clear()


def error_report(errors: dict[int, KafkaError], err: KafkaError) -> None:
    """Keep the error under its code, and say once that an outage began; librdkafka itself goes on trying."""
    if err.code() == KafkaError._ALL_BROKERS_DOWN and err.code() not in errors:
        where = errors.get(KafkaError._TRANSPORT) or errors.get(KafkaError._RESOLVE) or err
        warn(f"Kafka became unreachable: {where.str()}. Trying again; see that the broker runs")
    errors[err.code()] = err


def look_for_broker(consumer: Consumer, topic: str, errors: dict[int, KafkaError]) -> None:
    """Say that the outage is over if the group's coordinator answers, which it does where the broker advertises it."""
    with contextlib.suppress(KafkaException):
        consumer.committed([TopicPartition(topic, 0)], timeout=0.5)
        errors.clear()
        warn("Kafka answered again")


def consumer_error(err: KafkaError) -> None:
    """Say what happened; RuntimeError if the tracker can't go on."""
    if err.fatal() or err.code() in FINAL:
        raise RuntimeError(f"Kafka refused this tracker: {err.str()}. Check its rights, its group and its settings")
    warn(f"Kafka reported a problem: {err.str()}. Going on")


def warn(line: str) -> None:
    """Print the line to stderr."""
    print(line, file=sys.stderr, flush=True)


def with_progress(handle: Callable[[Order], None]) -> Callable[[Order], None]:
    """Return `handle` with a count that is shown on stderr every second."""
    count, shown = 0, time.monotonic()

    def counted(order: Order) -> None:
        nonlocal count, shown
        handle(order)
        count += 1
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"{count:,} orders", end="\r", file=sys.stderr, flush=True)

    return counted


def properties(lines: Iterable[str]) -> dict[str, str]:
    """Return the properties in lines of PROP=VALUE; ValueError where a line is something else."""
    pairs = [line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise ValueError("a property was not of the form PROP=VALUE")  # not which: it may be a password
    return {name.strip(): value.strip() for name, _, value in pairs}


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_property = partial(add, dest="properties", action="append", default=[])
    servers = partial(add_property, type="bootstrap.servers={}".format, metavar="HOST:PORT")
    servers("-b", "--bootstrap-servers", help="brokers to begin with (KAFKA_BOOTSTRAP_SERVERS, else localhost:9092)")
    add("-t", "--topic", default="orders", help="(orders)")
    add_property("-g", "--group", type="group.id={}".format, metavar="GROUP", help="(order-tracker)")
    add_property("-X", metavar="PROP=VALUE", help="any librdkafka property")
    add("-F", dest="file", metavar="FILE", help="a file of such properties: the place for passwords")
    add("-c", "--count", type=int, metavar="N", help="stop after N orders")
    add("-e", "--exit", action="store_true", help="stop at the end of the topic")
    add("-q", "--quiet", action="store_true", help="print no line per order")
    return parser


def main(
    argv: Sequence[str] | None = None,
    deserialize: Callable[[bytes | None], Order] = from_json,
    handle: Callable[[Order], None] = show,
    receive: Callable[..., bool | None] = receive,
    wait: Callable[[Consumer], float] = lambda consumer: WAIT,
) -> int:
    """Follow the topic of the command line; return the exit status, SystemExit with 2 for wrong usage."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # closed by 2>&-
    parser = command_line()
    args = parser.parse_args(argv)
    if not sys.stdout:
        warn("Standard output was closed. Open it, if only to /dev/null")
        return 1
    if args.count is not None and args.count < 1:
        parser.error("--count must be above 0")
    try:
        file = open(args.file, encoding="utf-8") if args.file is not None else ()
        chosen = properties(file) | properties(args.properties)
        classic = chosen.get("group.protocol", "classic") == "classic"
        config = CONFIG | (CLASSIC if classic else {}) | chosen
        if not config["group.id"]:
            raise ValueError("the group has no name")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    stop: list[int] = []  # handlers that do no more than this can't cut poll() short, which would drop the order in it
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as nohup ignores SIGHUP
            signal.signal(number, lambda number, _: stop.append(number))
    if isinstance(sys.stdout, io.TextIOWrapper):
        out, lines = sys.stdout, sys.stdout.line_buffering or sys.stdout.write_through  # a terminal, or python -u
        # backslashreplace is for a terminal that isn't UTF-8.
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(Output(out)), out.encoding, "backslashreplace", line_buffering=lines
        )
    handle = (lambda order: None) if args.quiet and handle is show else handle
    if sys.stderr.isatty() and (args.quiet or not sys.stdout.isatty()):
        handle = with_progress(handle)
    try:
        skipped = follow(config, args.topic, deserialize, handle, args.count, args.exit, stop, receive, wait)
        return 1 if skipped else 0
    except ConfigError as error:
        parser.error(f"{error} (-X or -F)")
    except RuntimeError as error:
        warn(str(error))
    except OutputError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush would fail too
        warn(f"Standard output could not be written: {error}. Orders that were not shown come again at the next start")
    return 1


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:  # before the handlers were set
        status = 130
    for number in SIGNALS:  # one that comes while the interpreter ends would change the exit status
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)
