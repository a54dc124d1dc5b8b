"""Send orders to Kafka as JSON, and print a line for each one that Kafka has confirmed.

    python producer.py                                       the sample order: 5 burgers for john
    python producer.py --user ana --item pizza --quantity 2  another one
    python producer.py -c 1000 --rate 50                     a thousand of them, 50 a second
    python producer.py -l orders.jsonl                       those of a file, a JSON object a line; - is stdin

Exit status: 0 every order was confirmed, 1 some were not or were not valid, 2 wrong usage.
"""

import argparse
import io
import itertools
import json
import math
import os
import queue
import re
import reprlib
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

from confluent_kafka import KafkaError, KafkaException, Message, Producer

Order = dict[str, Any]

CONFIG: dict[str, Any] = {
    "bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092",
    # Confirmed means that every replica in sync has the order; a repeated send neither doubles nor reorders it.
    "enable.idempotence": True,
    # After this time an order is given up and reported as not confirmed.
    "delivery.timeout.ms": 120_000,
    # How many orders, and how many kB, may wait in this process. More would take memory without being faster.
    "queue.buffering.max.messages": 5_000,
    "queue.buffering.max.kbytes": 65_536,
    # librdkafka puts off its second connection by half of this: the default, 100, holds up the first order.
    "reconnect.backoff.ms": 20,
    # librdkafka logs each failed connection, up to 20 a second; error_report says it once.
    "log_level": 2,
}
CONNECT_LIMIT = 10  # seconds to find a broker
STOP_LIMIT = 10  # seconds to confirm what is under way when a signal comes
TICK = 0.02  # seconds between two looks at Kafka while the next order is not there
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
# What asks a script to stop; SIGBREAK is Ctrl-Break on Windows.
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]

encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class ConfigError(Exception):
    """A librdkafka property is unknown or has a value that it can't have."""


def new_order(user: str, item: str, quantity: int, order_id: str | None = None) -> Order:
    """Return an order, with a random order_id if none is given; ValueError names the field that is wrong."""
    for field, text in (("user", user), ("item", item)):
        if not isinstance(text, str) or not text:
            raise ValueError(f"{field} must be non-empty text, got {reprlib.repr(text)}")
    if type(quantity) is not int or quantity < 1:  # True is an int as well, but no quantity
        raise ValueError(f"quantity must be a whole number of at least 1, got {reprlib.repr(quantity)}")
    if order_id is None:
        order_id = str(uuid.uuid4())
    elif not isinstance(order_id, str) or not UUID.fullmatch(order_id):
        raise ValueError(f"order_id must be a UUID, got {reprlib.repr(order_id)}")
    return {"order_id": order_id, "user": user, "item": item, "quantity": quantity}


def to_json(order: Order) -> bytes:
    """Return the order as UTF-8 JSON, with escapes for all that could drive a terminal; ValueError for a NaN."""
    text = encode(order)
    if not text.isprintable():
        text = json.dumps(order, allow_nan=False).replace("\x7f", "\\u007f")
    return text.encode()


def send(
    orders: Iterable[Order | None],
    config: dict[str, Any],
    topic: str,
    serialize: Callable[[Order], bytes] = to_json,
    stop: Sequence[int] = (),
) -> int:
    """Send the orders until `stop` holds something; return how many Kafka did not confirm.

    A None among the orders means that the next one has not come yet. RuntimeError where no broker can be used, OSError
    where standard output is gone.
    """
    unconfirmed = 0
    # librdkafka's last error of each kind; that no broker is reachable is nothing new before connect() found one.
    errors = {KafkaError._ALL_BROKERS_DOWN: KafkaError(KafkaError._ALL_BROKERS_DOWN)}

    def delivery_report(err: KafkaError | None, msg: Message, order: bytes | None = None) -> None:
        nonlocal unconfirmed
        text = (order or msg.value() or b"").decode()
        if err is not None:
            unconfirmed += 1
            warn(f"Order {text} was not confirmed: {err.str()}. Mend that and send it again as it is")
            return
        if errors and KafkaError._ALL_BROKERS_DOWN in errors:
            errors.clear()
            warn("Kafka answered again")
        print(f"Message delivered {text}")

    try:
        producer = Producer({**config, "error_cb": partial(error_report, errors)})
    except (KafkaException, TypeError, ValueError, AttributeError) as error:  # all but the first for callbacks
        raise ConfigError(error.args[0].str() if isinstance(error, KafkaException) else error) from None
    connect(producer, config["bootstrap.servers"], topic, errors, stop)
    try:
        for order in orders:
            if stop:
                break
            if order is None:
                sys.stdout.flush()
            else:
                value, report = serialize(order), delivery_report
                if serialize is not to_json:  # the lines show an order as JSON, whatever its bytes are
                    report = partial(delivery_report, order=to_json(order))
                if not produce(producer, topic, value, order["order_id"], report, stop):
                    break
            producer.poll(0)  # runs the delivery reports that have come in
        finish(producer, stop)
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, OSError):  # standard output is gone, and each further print would fail as this one did
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        finish(producer, stop)
        raise
    return unconfirmed


def produce(
    producer: Producer, topic: str, value: bytes, key: str, report: Callable[..., None], stop: Sequence[int]
) -> bool:
    """Hand the order to librdkafka, waiting for room where its queue is full; return whether more can be sent.

    `report` hears of an order that was not taken.
    """
    while True:
        try:
            producer.produce(topic, value, key, on_delivery=report)
            return True
        except KafkaException as error:
            report(error.args[0], Message(topic=topic, value=value))
            return bool(error.args[0].code() != KafkaError._FATAL)
        except BufferError:
            if stop:
                report(KafkaError(KafkaError._QUEUE_FULL), Message(topic=topic, value=value))
                return False
            producer.poll(0.1)


def finish(producer: Producer, stop: Sequence[int]) -> None:
    """Return when every order is confirmed or given up, at the latest STOP_LIMIT after `stop` held something."""
    deadline = math.inf
    while producer.flush(0.1) and time.monotonic() < deadline:
        if stop:
            deadline = min(deadline, time.monotonic() + STOP_LIMIT)
    producer.purge()
    producer.flush()


def connect(producer: Producer, servers: str, topic: str, errors: dict[int, KafkaError], stop: Sequence[int]) -> None:
    """Return once the topic is there, which asking for it may create, or `stop` holds something.

    RuntimeError says why it can't be used. It takes two answers: at the first, librdkafka is not connected yet to the
    broker that gives an idempotent producer its id, and without the second it would look again after 500 ms only.
    """
    reason = f"No Kafka broker answered at {servers} within {CONNECT_LIMIT} s. Start one: docker-compose up -d"
    deadline = time.monotonic() + CONNECT_LIMIT
    answers = 0
    while answers < 2 and not stop:
        try:
            problem = producer.list_topics(topic, timeout=1).topics[topic].error
        except KafkaException:
            producer.poll(0)  # runs error_report
            if refusal := errors.get(KafkaError._AUTHENTICATION) or errors.get(KafkaError._SSL):
                raise RuntimeError(f"{servers} refused the connection: {refusal.str()}. Check -F and -X") from None
        else:
            answers += problem is None
            if problem:
                reason = f"Topic {topic} can't be used: {problem.str()}. Create it, or check its name and your rights"
                if problem.code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE):
                    raise RuntimeError(reason)
                time.sleep(TICK)  # it is being made
        if answers < 2 and time.monotonic() > deadline:
            raise RuntimeError(reason)
    if not stop:
        producer.poll(0)  # runs error_report for what went wrong until now
        errors.clear()


def error_report(errors: dict[int, KafkaError], err: KafkaError) -> None:
    """Keep the error under its code, and say once that an outage began; librdkafka itself goes on trying."""
    if err.code() == KafkaError._ALL_BROKERS_DOWN and err.code() not in errors:
        where = errors.get(KafkaError._TRANSPORT) or errors.get(KafkaError._RESOLVE) or err
        warn(f"Kafka became unreachable: {where.str()}. Trying again; see that the broker runs")
    errors[err.code()] = err


def warn(line: str) -> None:
    """Print the line to stderr."""
    print(line, file=sys.stderr, flush=True)


def read_order(line: bytes) -> Order:
    """Return the order in a line of JSON, further fields and all; ValueError or RecursionError where it holds none."""
    record = json.loads(line.decode("utf-8-sig"))  # some editors put a byte order mark at the start of a file
    if not isinstance(record, dict):
        raise ValueError(f"an order must be a JSON object, got {reprlib.repr(record)}")
    fields: Order = {name: record.get(name) for name in ("user", "item", "quantity", "order_id")}
    order = new_order(**fields)
    order = {**order, **record, "order_id": order["order_id"]}
    to_json(order)  # a further field may be what JSON can't hold, such as NaN
    return order


def read_orders(lines: BinaryIO, reject: Callable[[str], None]) -> Iterator[Order]:
    """Yield the orders of JSON Lines; `reject` hears of each line that is neither an order nor empty."""
    name = "stdin" if lines.name == 0 else lines.name
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield read_order(line)
        except (ValueError, RecursionError) as why:
            reject(f"{name}:{number}: {why}")


def at_rate(orders: Iterable[Order], rate: float) -> Iterator[Order]:
    """Yield at most `rate` orders a second."""
    due = time.monotonic()
    for order in orders:
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        due = max(due, time.monotonic() - TICK) + 1 / rate  # makes up for sleeping a little long, not for an outage
        yield order


def as_they_come(orders: Iterable[Order]) -> Iterator[Order | None]:
    """Yield the orders, and None whenever the next one is not there within a TICK.

    A thread waits for them: nothing else that works on every system waits for a pipe and for Kafka at once.
    """
    waiting: queue.Queue[Order | RuntimeError] = queue.Queue(1000)

    def read() -> None:
        try:
            for order in orders:
                waiting.put(order)
        except Exception as error:
            waiting.put(RuntimeError(f"Orders could not be read to the end: {error}. Those before it were sent"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while reader.is_alive() or not waiting.empty():
        try:
            order = waiting.get(timeout=TICK)
        except queue.Empty:
            yield None
            continue
        if isinstance(order, RuntimeError):
            raise order
        yield order


def with_progress(orders: Iterable[Order | None]) -> Iterator[Order | None]:
    """Yield the orders, and show on stderr every second how many there were."""
    count, shown = 0, time.monotonic()
    for order in orders:
        count += order is not None
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"{count:,} orders", end="\r", file=sys.stderr, flush=True)
        yield order
    print(f"{count:,} orders", file=sys.stderr)


def asked_for(
    args: argparse.Namespace, lines: BinaryIO | None, reject: Callable[[str], None]
) -> Iterable[Order | None]:
    """Return the orders of the lines, or the one that the flags give; ValueError if that is not valid."""
    orders: Iterable[Order]
    if lines:
        orders = itertools.islice(read_orders(lines, reject), args.count)
    else:
        new_order(args.user, args.item, args.quantity)  # fails now rather than while sending
        orders = (new_order(args.user, args.item, args.quantity) for _ in range(args.count or 1))
    if args.rate:
        orders = at_rate(orders, args.rate)
    return as_they_come(orders) if lines or args.rate else orders


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
    add_property("-X", metavar="PROP=VALUE", help="any librdkafka property")
    add("-F", dest="file", metavar="FILE", help="a file of such properties: the place for passwords")
    add("-c", "--count", type=int, metavar="N", help="send N orders")
    add("--user", default="john", help="who orders (john)")
    add("--item", default="burger", help="what (burger)")
    add("--quantity", type=int, default=5, help="how many of it (5)")
    add("-l", dest="lines", metavar="FILE", help="send the orders of a JSON Lines file, - for stdin")
    add("--rate", type=float, metavar="N", help="send at most N orders a second")
    add("-q", "--quiet", action="store_true", help="print no line per order")
    return parser


def main(argv: Sequence[str] | None = None, serialize: Callable[[Order], bytes] = to_json) -> int:
    """Send the orders that the command line asks for; return the exit status, SystemExit with 2 for wrong usage."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # closed by 2>&-
    parser = command_line()
    args = parser.parse_args(argv)
    if not sys.stdout:
        warn("Standard output was closed. Open it, if only to /dev/null")
        return 1
    if (args.count is not None and args.count < 1) or (args.rate is not None and not args.rate > 0):
        parser.error("--count and --rate must be above 0")
    try:
        file = open(args.file, encoding="utf-8") if args.file is not None else ()
        config = CONFIG | properties(file) | properties(args.properties)
        lines = (
            open(0 if args.lines == "-" else args.lines, "rb", closefd=args.lines != "-")
            if args.lines is not None
            else None
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    stop: list[int] = []  # handlers that do no more than this can't cut a delivery report in two
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as nohup ignores SIGHUP
            signal.signal(number, lambda number, _: stop.append(number))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that isn't UTF-8
    if args.quiet:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    bad_lines = 0

    def reject(line: str) -> None:
        nonlocal bad_lines
        bad_lines += 1
        warn(line)

    try:
        orders = asked_for(args, lines, reject)
        if sys.stderr.isatty() and not sys.stdout.isatty():
            orders = with_progress(orders)
        unconfirmed = send(orders, config, args.topic, serialize, stop)
        return 1 if bad_lines or unconfirmed else 0
    except ConfigError as error:
        parser.error(f"{error} (-X or -F)")
    except (ValueError, RuntimeError) as error:
        warn(str(error))
    except OSError as error:
        warn(f"Standard output could not be written: {error}. Orders confirmed after that are not shown")
    return 1


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:  # before the handlers were set
        status = 130
    for number in SIGNALS:  # one that comes while the interpreter ends would change the exit status
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)
