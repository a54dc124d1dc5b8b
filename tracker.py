"""Read orders from Kafka as a member of a consumer group, and print a line for each.

    python tracker.py    what the group has not read yet, then each new order until Ctrl-C, or with -e until the end

Its Kafka part: track(), follow(), store(). Exit status: 0 stopped or done, 1 bad record or Kafka failure, 2 bad usage.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

CONFIG: dict[str, Any] = {
    "bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092",
    "group.id": "order-tracker",
    "auto.offset.reset": "earliest",  # a group that has read nothing yet begins with the first order
    "enable.auto.offset.store": False,  # store() does it once an order was handled; librdkafka would before
    "allow.auto.create.topics": True,  # a tracker that is there before the first order makes the topic
    "queued.min.messages": 10_000,  # fetched ahead; more would take memory without being faster
    "fetch.queue.backoff.ms": 10,  # until it fetches more once they are there; the default, 1000, lets it run dry
    "socket.timeout.ms": 10_000,  # lets it notice after some 20 s that a broker froze; by default it takes minutes
    "log_level": 2,  # librdkafka logs each failed connection, up to 20 a second; look() says it every 10 s
}
CLASSIC_PROTOCOL = {"heartbeat.interval.ms": 1_000, "session.timeout.ms": 10_000}  # the broker's in the other one
NOT_RETRIABLE = ("AUTHORIZATION_FAILED", "SESSION_TIMEOUT", "PROTOCOL", "_RESET", "NO_OFFSET", "EXCEPTION", "FATAL")
LIMIT = 9  # seconds to find the broker, the topic and the group, and to leave it
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
NO_JSON = {None: "it is empty (a tombstone)", b"\0": "it is framed for a schema registry: next_steps/schemas reads it"}
decode_json = json.JSONDecoder().raw_decode


def from_json(data: bytes | None) -> dict[str, Any]:
    """Return the order in a record's value; ValueError says why it holds none."""
    try:
        text = (data or b"").decode().strip("\ufeff \t\r\n")  # some programs write a byte order mark
        order, end = decode_json(text)
    except (ValueError, RecursionError):
        raise ValueError(NO_JSON.get(data and data[:1], "the value is no JSON in UTF-8")) from None
    if not isinstance(order, dict) or end < len(text):
        raise ValueError(f"an order must be a JSON object and no more, got {text[end:] or order!r:.50}")
    for field in ("order_id", "user", "item"):
        if not isinstance(order.get(field), str) or not order[field]:
            raise ValueError(f"{field} must be non-empty text, got {order.get(field)!r:.50}")
    if not UUID.fullmatch(order["order_id"]):
        raise ValueError(f"order_id must be a UUID, got {order['order_id']!r:.50}")
    if type(quantity := order.get("quantity")) is not int or quantity < 1:  # True is an int as well, but no quantity
        raise ValueError(f"quantity must be a whole number of at least 1, got {quantity!r:.50}")
    return order


def printable(text: str) -> str:
    """Return the text with an escape in place of each character that could drive a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def line_for(order: dict[str, Any]) -> str:
    """Return the line that tells of an order."""
    return printable(f"Message received: {order['item']} {order['quantity']} from {order['user']}")


def track(consumer: Consumer, args: Any, stop: Any, decode: Any = lambda record: from_json(record.value())) -> int:
    """Print a line for each order of the topic; return how many records held none."""
    skipped = 0
    show([f"Consumer is running & subscribed to {args.topic} topic"])
    for records in follow(consumer, [args.topic], args.count, args.exit, stop):
        lines = []
        for msg in records:
            try:
                lines.append(line_for(decode(msg)))
            except ValueError as why:
                skipped += 1
                topic, partition, offset = msg.topic(), msg.partition(), msg.offset()
                kcat = f"kcat -C -b {args.config['bootstrap.servers']} -t {topic} -p {partition} -o {offset} -c 1"
                print(f"Skipped {topic} [{partition}] @ {offset}: {why}. Look at it: {kcat}", file=sys.stderr)
        show(lines)  # first the lines, then the offsets: a crash in between repeats orders, and loses none
        store(consumer, records)
    return skipped


def follow(
    consumer: Consumer,
    topics: list[str],
    count: int | None = None,
    until_end: bool = False,
    stop: Any = (),
    paused: Any = (),
    max_poll_records: int = 1000,
) -> Iterator[list[Message]]:
    """Yield the records at hand, or [], until `stop`, `count` or the end, also that of the partitions in `paused`."""
    left, ends = count or sys.maxsize, set[Any]()  # the partitions at their end; None where this consumer has none
    compare(consumer, topics)  # before it joins: Kafka answers nothing else on that connection until all members joined
    consumer.subscribe(topics, on_assign=lambda _, new: ends.difference_update([None, *new]) if new else ends.add(None))
    while left and not stop and not (until_end and ends and ends.issuperset(consumer.assignment() or [None])):
        records = []
        for msg in consumer.consume(min(left, max_poll_records), 0) or consumer.consume(1, 0.1):
            if not (err := msg.error()):
                records.append(msg)
            elif err.code() == KafkaError._PARTITION_EOF:
                ends.add(TopicPartition(str(msg.topic()), msg.partition() or 0))
            elif err.name().endswith(NOT_RETRIABLE):
                raise KafkaException(err)
            else:
                print(f"Kafka reported a problem: {err.str()}. Going on", file=sys.stderr)
        left -= len(records)
        yield records
        ends.difference_update(paused)  # they were put back, and come to their end once more


def store(consumer: Consumer, records: Sequence[Message]) -> None:
    """Store the offsets of records that are done; librdkafka commits them every 5 s, and before a partition goes."""
    for last in {(msg.topic(), msg.partition()): msg for msg in records}.values():
        with contextlib.suppress(KafkaException):  # another member has the partition now, or librdkafka stores itself
            consumer.store_offsets(message=last)


def show(lines: Sequence[str]) -> None:
    """Print the lines, out of this process; SystemExit where standard output is gone."""
    try:
        print("".join(line + "\n" for line in lines), end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush would fail too
        sys.exit(f"Standard output could not be written: {error}. What was not shown comes again at the next start")


def compare(consumer: Consumer, topics: list[str]) -> None:
    """Say where a partition doesn't hold what the group had reached; KafkaException where no coordinator answers."""
    try:
        known = [TopicPartition(t, n) for t in topics for n in consumer.list_topics(t, LIMIT).topics[t].partitions]
        for place in consumer.committed(known, LIMIT):
            with contextlib.suppress(KafkaException):  # its leader may just change
                first, end = consumer.get_watermark_offsets(place, 1)
                if place.offset > end or 0 <= place.offset < first:
                    now = f"{place.topic} [{place.partition}] holds {first} to {end}, its group was at {place.offset}"
                    print(f"{now}. It begins anew, as auto.offset.reset says", file=sys.stderr)
    except KafkaException as error:
        answers = None  # without a broker it is an outage, which look() reports
        with contextlib.suppress(KafkaException):
            answers = consumer.list_topics(topics[0], 3)
        if answers and "COORDINATOR" not in error.args[0].name():  # which may just move
            raise


def close(consumer: Consumer) -> None:
    """Commit what is stored, and leave the group; without a broker this takes minutes."""
    with contextlib.suppress(KafkaException):  # there was nothing to commit
        consumer.commit(asynchronous=False)  # what close() commits is lost while the group shares anew
    consumer.close()


def wait_for_topic(consumer: Consumer, args: argparse.Namespace, why: list[str], stop: Any) -> None:
    """Return once the topic is there, which asking for it may create, or at `stop`; SystemExit says what is wrong."""
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", args.topic):
        sys.exit(f"Topic {args.topic!a} can't be used: only letters, digits, '.', '_' and '-' can be in its name")
    deadline, problem = time.monotonic() + LIMIT, None
    while not stop:
        text = f"No Kafka broker answered at {args.config['bootstrap.servers']} within {LIMIT} s: {why[0]}"
        with contextlib.suppress(KafkaException):
            if not (problem := consumer.list_topics(args.topic, timeout=1).topics[args.topic].error):
                return
            text = f"Topic {args.topic} can't be used: {problem.str()}. Create it, or check its name and your rights"
        if (time.monotonic() > deadline and not args.running) or (problem and problem.name().endswith(NOT_RETRIABLE)):
            sys.exit(text)
        consumer.consume(1, 0.02)  # runs error_report; or the topic is being made


def error_report(err: KafkaError, why: list[str], stop: Any) -> None:
    """Keep why Kafka doesn't answer, while librdkafka goes on trying; KafkaException where that is in vain."""
    if err.name() in ("_AUTHENTICATION", "_SSL") and "Local:" not in err.str() and not stop:  # as of a lost connection
        raise KafkaException(err)
    advice = "Start one: docker-compose up -d; it may be starting" if "refused" in err.str() else "Check -b, -F and -X"
    why[:] = why if "brokers are down" in err.str() else [f"{err.str()}. {advice}"]


def read_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the properties that the command line gives; OSError or ValueError says what is wrong with it."""
    if args.count is not None and args.count < 1:
        raise ValueError("--count must be above 0")
    file = [*open(args.file, encoding="utf-8-sig", errors="surrogateescape")] if args.file is not None else []
    config, args.registry = CONFIG | {"enable.partition.eof": args.exit}, dict[str, str]()
    for row, line in enumerate(file + args.properties + args.flags, 1):
        if match := re.fullmatch(r"""\s*([\w.-]+)\s*[=:]\s*(["']?)([^\ud800-\udfff]+?)\2\s*""", line):
            name = "bootstrap.servers" if match[1] == "metadata.broker.list" else match[1]
            config.pop(name, None)  # librdkafka has several names for some, and takes what comes last
            (args.registry if row <= len(file) and re.match("schema.reg|basic.auth", name) else config)[name] = match[3]
        elif not re.match(r"\s*([#![]|$)", line):  # what it holds instead may be a password
            raise ValueError(f"{args.file}:{row} is no UTF-8 PROP=VALUE" if row <= len(file) else "a flag has no value")
    return config if config.get("group.protocol", "classic") != "classic" else CLASSIC_PROTOCOL | config


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("-b", "--bootstrap-servers", dest="flags", type="bootstrap.servers={}".format, metavar="HOST:PORT", **many)
    add("-t", "--topic", default="orders", help="(%(default)s)")
    add("-g", "--group", dest="flags", type="group.id={}".format, metavar="ID", help=f"({CONFIG['group.id']})", **many)
    add("-X", dest="properties", metavar="PROP=VALUE", help="any librdkafka property", **many)
    add("-F", dest="file", metavar="FILE", help="a file of such properties: the place for passwords")
    add("-c", "--count", type=int, metavar="N", help="stop after N records")
    add("-e", "--exit", action="store_true", help="stop at the end of the topic")
    return parser


def attend(consumer: Consumer, args: argparse.Namespace, why: list[str], stop: Any, run: Any) -> int:
    """Run with the consumer, and leave the group; return what `run` does, SystemExit says what is wrong."""
    try:
        wait_for_topic(consumer, args, why, stop)
        args.running = not stop
        return (args.running and run(consumer, args, stop)) or 0  # one's own may return nothing
    except KafkaException as error:
        args.running, why[:], stop[:] = False, [], [error.args[0].name()]  # a time-out may have a reason, for consume()
        said = [err.str() for msg in consumer.consume(1, 0) if (err := msg.error())] or [error.args[0].str(), *why]
        sys.exit(f"Kafka refused this tracker: {'. '.join(said)}. Check rights, password, CA, host, date, broker's log")
    finally:
        if "lost" not in stop:
            args.running, closing = False, threading.Thread(target=close, args=[consumer], daemon=True)
            closing.start()
            closing.join(LIMIT)
            if closing.is_alive():
                print(f"Kafka did not answer for {LIMIT} s on leaving: the last orders may come again", file=sys.stderr)


def main(argv: Sequence[str] | None = None, parser: Any = None, run: Callable[..., int] = track) -> int:
    """Run with a consumer as the command line says; return the exit status, SystemExit says what is wrong."""
    args = (parser := parser or command_line()).parse_args(argv)
    stop, why, args.running = list[Any](), ["no answer came. Check -b, security.protocol and that it is healthy"], False
    for name in {"SIGINT", "SIGTERM", "SIGBREAK"} & set(dir(signal)):  # the first stops, and more of it are ignored
        signal.signal(getattr(signal, name), lambda number, _: stop.append(signal.signal(number, signal.SIG_IGN)))
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # it may lack some letters

    def look(stats: str) -> None:
        if args.running and not re.search('"(learned|logical)", "state":"UP"', stats):
            print(f"Kafka became unreachable, trying again: {why[0]}", file=sys.stderr)
            stop.extend([] if re.search('"(conf|learn)', stats) else ["lost"])  # there is none to try

    report = {"statistics.interval.ms": 10_000, "stats_cb": look, "error_cb": lambda err: error_report(err, why, stop)}
    try:
        args.config = read_config(args)
        consumer = Consumer(report | args.config)
    except KafkaException as error:
        parser.error(f"{error.args[0].str().rstrip('.')}. JAAS: see sasl.username, a trust store: ssl.ca.location")
    except (OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    failed = attend(consumer, args, why, stop, run)
    while stop and stop.pop(0) == "lost":  # its last broker, and librdkafka looks for no other then (its issue 5301)
        failed += attend(consumer := Consumer(report | args.config), args, why, stop, run)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
