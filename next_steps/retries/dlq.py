"""The dead-letter topic (DLQ): what a dead letter says, and how one is written."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicCollection
from confluent_kafka.admin import AdminClient

import producer

# What a dead letter says, after the record's own headers. The first five names are those of Kafka Streams (KIP-1034);
# it has none for the rest.
HEADERS = (
    "__streams.errors.exception",
    "__streams.errors.message",
    "__streams.errors.topic",
    "__streams.errors.partition",
    "__streams.errors.offset",
    "orders.errors.timestamp",
    "orders.errors.group",
    "orders.errors.attempts",
)
# Properties of the producer of dead letters, below those of -F and -X.
CONFIG: dict[str, Any] = {
    "delivery.timeout.ms": 30_000,  # after this time the tracker stops, and the record comes again at the next start
    "message.max.bytes": 2_000_000,  # a record of the largest size grows by its headers
    "compression.type": "lz4",
}
LIMIT = 10  # seconds for an answer


def named(msg: Message) -> str:
    """Return the record's place in words."""
    return f"{msg.topic()} [{msg.partition()}] @ {msg.offset()}"


def headers(msg: Message) -> list[tuple[str, bytes | None]]:
    """Return the record's headers, none as an empty list."""
    return cast(list[tuple[str, bytes | None]], msg.headers() or [])


def dead_letter(dlq_producer: Producer, args: Any, msg: Message, error: Exception, attempts: int) -> Message:
    """Return the record's dead letter, as Kafka confirmed it; SystemExit where it did not."""
    origin = (msg.topic(), msg.partition(), msg.offset(), msg.timestamp()[1], args.config["group.id"])
    said = (type(error).__name__, str(error)[:1000], *origin, attempts)
    why = [(name, str(fact).encode(errors="replace")) for name, fact in zip(HEADERS, said, strict=True)]
    record = {"value": msg.value(), "key": msg.key(), "headers": [*headers(msg), *why]}
    return send_and_wait(dlq_producer, args.dead_letters, **record)


def send_and_wait(client: Producer, topic: str, **record: Any) -> Message:
    """Send a record and return it as Kafka confirmed it; SystemExit where it did not."""
    sent: list[tuple[KafkaError | None, Message]] = []
    try:
        client.produce(topic, **record, on_delivery=lambda err, msg: sent.append((err, msg)))
        client.flush()
    except KafkaException as error:
        sent.append((error.args[0], Message(topic=topic)))
    err, msg = sent[0]
    if err is not None:
        sys.exit(f"Topic {topic} could not be written: {err.str()}. Mend that and start again")
    return msg


def make_dlq_producer(args: argparse.Namespace, topic: str, stop: Sequence[object]) -> Producer:
    """Return a producer with the properties given, once it may write to the topic; SystemExit says why it may not."""
    why = ["no answer came. Check -b, security.protocol and that it is healthy"]
    # Not the producer: without a right to write, librdkafka would log that it can't be idempotent.
    admin: Any = AdminClient(args.config | {"error_cb": lambda err: producer.error_report(err, 0, why)})
    producer.wait_for_topic(admin, argparse.Namespace(topic=topic, config=args.config), why, stop)
    if not stop:  # a missing right would show when the first order fails, when nobody looks any more
        asked = admin.describe_topics(TopicCollection([topic]), include_authorized_operations=True)[topic]
        rights = asked.result(LIMIT).authorized_operations
        if rights and "WRITE" not in {right.name for right in rights}:
            sys.exit(f"Topic {topic} can't be written: Topic authorization failed. Give this user the right to WRITE")
    config = producer.CONFIG | CONFIG | args.config  # it passes over the properties that are a consumer's
    try:
        client: Producer = Producer(config | {"error_cb": lambda err: producer.error_report(err, len(client), why)})
    except KafkaException as error:
        sys.exit(f"Dead letters can't be written: {error.args[0].str()}. Check -F and -X")
    return client
