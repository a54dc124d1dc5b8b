"""Send an order to Kafka as JSON, and print a line when Kafka has confirmed it.

    python producer.py --user ana --item pizza --quantity 2    without flags: the sample order, 5 burgers for john

Its Kafka part: send(), flush(). Exit status: 0 every order was confirmed, 1 some were not or not valid, 2 wrong usage.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

CONFIG: dict[str, Any] = {
    "bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092",
    "enable.idempotence": True,  # confirmed by every replica in sync; a repeated send neither doubles nor reorders
    "delivery.timeout.ms": 120_000,  # after this time an order is given up and reported as not confirmed
    "queue.buffering.max.messages": 5_000,  # that may wait here; more would take memory without being faster
    "queue.buffering.max.kbytes": 65_536,
    "reconnect.backoff.ms": 20,  # half of it puts off the second connection; the default, 100, the first order
    "log_level": 2,  # librdkafka logs each failed connection, up to 20 a second; error_report says it every 10 s
}
LIMIT = 9  # seconds to find a broker and the topic, and to confirm what is under way when a signal comes
ADVICE = "Check rights, password, and the CA, host name and date of the certificate"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
# What is printed stays JSON on an output that lacks some letters: there they are written as JSON's own escapes.
ASCII = {str(getattr(stream, "encoding", "")).lower() for stream in (sys.stdout, sys.stderr)} != {"utf-8"}

Order = dict[str, Any]
encode = json.JSONEncoder(ensure_ascii=ASCII, allow_nan=False).encode


def new_order(user: str, item: str, quantity: int, order_id: str | None = None) -> Order:
    """Return an order, with a random order_id if none is given; ValueError names the field that is wrong."""
    for name, text in (("user", user), ("item", item)):
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name} must be non-empty text, got {text!r:.50}")
    if type(quantity) is not int or quantity < 1:  # True is an int as well, but no quantity
        raise ValueError(f"quantity must be a whole number of at least 1, got {quantity!r:.50}")
    order_id = str(uuid.uuid4()) if order_id is None else order_id
    if not isinstance(order_id, str) or not UUID.fullmatch(order_id):
        raise ValueError(f"order_id must be a UUID, got {order_id!r:.50}")
    return {"order_id": order_id, "user": user, "item": item, "quantity": quantity}


def to_json(order: Order) -> bytes:
    """Return the order as UTF-8 JSON, with escapes for all that could drive a terminal; ValueError for a NaN."""
    text = encode(order)
    return (text if text.isprintable() else json.dumps(order, allow_nan=False)).encode()


def send(producer: Producer, topic: str, orders: Iterable[Order], serialize: Any = to_json, stop: Any = ()) -> int:
    """Send the orders until `stop` holds something; return how many Kafka did not confirm, each named on stderr."""
    unconfirmed: list[str] = []
    report = partial(delivery_report, unconfirmed)
    for order in orders:
        value = serialize(order)
        on_delivery = report if serialize is to_json else partial(report, order=to_json(order))
        while not (stop and unconfirmed):
            try:
                producer.poll(0)  # runs the delivery reports that have come in
                producer.produce(topic, value, order["order_id"], on_delivery=on_delivery)
                break
            except BufferError:  # the queue is full
                flush(producer, stop)
            except KafkaException as error:
                report(error.args[0], None, to_json(order))
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    producer.poll(1)  # raises the reason of a fatal error, where it comes later than the error
                    raise
                break
        else:
            report(KafkaError(KafkaError._PURGE_QUEUE), None, to_json(order))
        if stop:
            break
    flush(producer, stop)
    show()
    return len(unconfirmed)


def delivery_report(unconfirmed: list[str], err: KafkaError | None, msg: Any, order: bytes | None = None) -> None:
    """Print the order, as JSON whatever was sent, if Kafka has confirmed it; else name it on stderr and keep it."""
    text = (order or msg.value()).decode()
    if err is None:
        show(f"Message delivered {text}\n")
        return
    unconfirmed.append(text)
    why = "the producer was stopped before Kafka answered" if err.name().startswith("_PURGE") else err.str()
    print(f"Order {text} was not confirmed: {why}. Send it again as it is once Kafka takes it", file=sys.stderr)
    if err.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED and len(unconfirmed) == 1:
        raise KafkaException(err)  # it would be the same with all that follow


def flush(producer: Producer, stop: Sequence[object]) -> None:
    """Return when every order is confirmed or given up, at the latest LIMIT seconds after `stop` held something."""
    with contextlib.suppress(*[KafkaException] * bool(stop)):  # the fatal error that it stops for may come once more
        while all(producer.flush(0.1) for _ in range(10 * LIMIT)) and not stop:  # a fatal error breaks longer ones
            print(f"Still waiting for Kafka to confirm {len(producer)} of the orders", file=sys.stderr)
    if len(producer):  # purge() works on after it returned: it would take what is sent after a full queue
        producer.purge()
        producer.flush()


def show(text: str = "") -> None:
    """Print the text, or without one flush what was printed; SystemExit where standard output is gone."""
    try:
        sys.stdout and (sys.stdout.write(text) if text else sys.stdout.flush())  # print() takes a third longer
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or each further print would fail too
        sys.exit(f"Standard output could not be written: {error}. Orders confirmed after that are not shown")


def wait_for_topic(producer: Producer, args: argparse.Namespace, why: list[str], stop: Any) -> None:
    """Return once the topic is there, which asking for it may create, or at `stop`; SystemExit says what is wrong."""
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", args.topic):
        sys.exit(f"Topic {args.topic!a} can't be used: only letters, digits, '.', '_' and '-' can be in its name")
    deadline, problem, answers = time.monotonic() + LIMIT, None, 0
    while answers < 2 and not stop:  # by the second, librdkafka can get its producer id at once: 500 ms sooner
        try:
            if not (problem := producer.list_topics(args.topic, timeout=1).topics[args.topic].error):
                answers += 1
                continue
            text = f"Topic {args.topic} can't be used: {problem.str()}. Create it, or check its name and your rights"
        except KafkaException:
            producer.poll(0)  # runs error_report
            text = f"No Kafka broker answered at {args.config['bootstrap.servers']} within {LIMIT} s: {why[0]}"
        if time.monotonic() > deadline or (problem and problem.name().endswith(("AUTHORIZATION_FAILED", "EXCEPTION"))):
            sys.exit(text)
        time.sleep(0.02)  # it is being made


def error_report(err: KafkaError, waiting: int, why: list[str], stop: Any = ()) -> None:
    """Keep why Kafka doesn't answer, and say so every 10 s while orders wait; KafkaException where that is vain."""
    if err.name() in ("_AUTHENTICATION", "_SSL") and "Local:" not in err.str() and not stop:  # as of a lost connection
        raise KafkaException(err)
    if "brokers are down" not in err.str():
        start = "Start one: docker-compose up -d; it may be starting"
        why[:] = [f"{err.str()}. {start if 'refused' in err.str() else 'Check -b, -F and -X'}"]
    elif waiting:
        print(f"Kafka became unreachable, trying again: {why[0]}", file=sys.stderr)


def read_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the properties that the command line gives; OSError or ValueError says what is wrong with it."""
    if args.count is not None and args.count < 1:
        raise ValueError("--count must be above 0")
    file = [*open(args.file, encoding="utf-8-sig", errors="surrogateescape")] if args.file is not None else []
    config, args.registry = dict(CONFIG), dict[str, str]()  # what a file has for a schema registry is not for Kafka
    for row, line in enumerate(file + args.properties + args.flags, 1):
        if match := re.fullmatch(r"""\s*([\w.-]+)\s*[=:]\s*(["']?)([^\ud800-\udfff]+?)\2\s*""", line):
            name = "bootstrap.servers" if match[1] == "metadata.broker.list" else match[1]
            config.pop(name, None)  # librdkafka has several names for some, and takes what comes last
            (args.registry if row <= len(file) and re.match("schema.reg|basic.auth", name) else config)[name] = match[3]
        elif not re.match(r"\s*([#![]|$)", line):  # what it holds instead may be a password
            raise ValueError(f"{args.file}:{row} is no UTF-8 PROP=VALUE" if row <= len(file) else "a flag has no value")
    return config


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("-b", "--bootstrap-servers", dest="flags", type="bootstrap.servers={}".format, metavar="HOST:PORT", **many)
    add("-t", "--topic", default="orders", help="(%(default)s)")
    add("-X", dest="properties", metavar="PROP=VALUE", help="any librdkafka property", **many)
    add("-F", dest="file", metavar="FILE", help="a file of such properties: the place for passwords")
    add("-c", "--count", type=int, default=1, metavar="N", help="send N orders")
    add("--user", default="john", help="who orders (john)")
    add("--item", default="burger", help="what (burger)")
    add("--quantity", type=int, default=5, help="how many of it (5)")
    return parser


def send_orders(producer: Producer, args: argparse.Namespace, stop: Sequence[object], serialize: Any = to_json) -> int:
    """Send the order of the flags, as often as they say; return how many Kafka did not confirm."""
    orders = (new_order(args.user, args.item, args.quantity) for _ in range(args.count))
    return send(producer, args.topic, orders, serialize, stop)


def main(argv: Sequence[str] | None = None, parser: Any = None, run: Callable[..., int] = send_orders) -> int:
    """Run with a producer as the command line says; return the exit status, SystemExit says what is wrong."""
    args = (parser := parser or command_line()).parse_args(argv)
    stop: list[object] = []
    for name in {"SIGINT", "SIGTERM", "SIGBREAK"} & set(dir(signal)):  # the first stops, and more of it are ignored
        signal.signal(getattr(signal, name), lambda number, _: stop.append(signal.signal(number, signal.SIG_IGN)))
    why, running = ["no answer came. Check -b, security.protocol and that it is healthy"], False
    try:
        args.config = read_config(args)
        report = {"error_cb": lambda err: error_report(err, running and len(producer), why, stop)}
        producer: Producer = Producer(args.config | report)
    except KafkaException as error:
        parser.error(f"{error.args[0].str().rstrip('.')}. JAAS: see sasl.username, a trust store: ssl.ca.location")
    except (OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    try:
        wait_for_topic(producer, args, why, stop)
        running = True
        return 1 if not stop and run(producer, args, stop) else 0
    except ValueError as error:
        sys.exit(str(error))
    except KafkaException as error:
        stop.append(0)
        sys.exit(f"Kafka refused this producer: {error.args[0].str().rstrip('.')}. {ADVICE}")
    finally:
        flush(producer, stop if running else ["no order was sent"])
        with contextlib.suppress(KafkaException):  # said before
            producer.close()  # a thread of its that is in TLS as OpenSSL ends would crash the process


if __name__ == "__main__":
    sys.exit(main())
