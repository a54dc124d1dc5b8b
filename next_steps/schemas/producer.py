"""Send an order as Avro, Protobuf or JSON Schema, once a schema registry has the schema.

    python -m next_steps.schemas.producer --format avro    or protobuf, or json-schema

The other flags are those of producer.py, and -r is the registry's URL. Its heart is agree().
Exit status: that of producer.py, 1 also where the registry can't be used or refuses the schema.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.serialization import MessageField, SerializationContext

from next_steps.schemas.registry import (
    LIMIT,
    SchemaRegistryClient,
    SchemaRegistryError,
    add_url,
    ask,
    connect,
    reason,
)
from producer import Order, command_line, main, new_order, send_orders, to_json

HERE = Path(__file__).parent
BACKWARD = "BACKWARD"  # who has the new schema can read what was written with the old one
SAMPLE = new_order("john", "burger", 5)
Serializer = Callable[[Order, SerializationContext], Any]

# A library of schemas is slow to import, so each format brings its own.


def avro(registry: SchemaRegistryClient, conf: dict[str, Any]) -> Serializer:
    """Return what serializes an order as order.avsc says."""
    from confluent_kafka.schema_registry.avro import AvroSerializer

    strict = {"validate.strict.allow.default": True}  # or a field that the schema lacks would be dropped
    serialize: Serializer = AvroSerializer(registry, (HERE / "order.avsc").read_text("utf-8"), conf=conf | strict)
    return serialize


def protobuf(registry: SchemaRegistryClient, conf: dict[str, Any]) -> Serializer:
    """Return what serializes an order as order.proto says."""
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer

    from next_steps.schemas.order_pb2 import Order as Message

    serialize = ProtobufSerializer(Message, registry, conf)
    return lambda order, context: serialize(Message(**order), context)


def json_schema(registry: SchemaRegistryClient, conf: dict[str, Any]) -> Serializer:
    """Return what serializes an order as order.schema.json says."""
    from confluent_kafka.schema_registry.json_schema import JSONSerializer

    serialize: Serializer = JSONSerializer((HERE / "order.schema.json").read_text("utf-8"), registry, conf=conf)
    return serialize


FORMATS = {"avro": avro, "protobuf": protobuf, "json-schema": json_schema}


def agree(registry: SchemaRegistryClient, topic: str, name: str) -> Callable[[Order], bytes]:
    """Return what serializes orders, once the registry has their schema; SchemaRegistryError where it refuses.

    Each format has a subject of its own, as a subject has one format.
    """
    subject = f"{topic}-value-{name}"
    if compatibility(registry, subject) == "NONE":  # with which the registry would take any change
        registry.set_compatibility(subject, BACKWARD)
    conf = {"subject.name.strategy": lambda context, record: subject}
    context = SerializationContext(topic, MessageField.VALUE)
    for register in (False, True):  # one that may only read can send what others have registered
        serialize = FORMATS[name](registry, conf | {"auto.register.schemas": register})
        try:
            serialize(SAMPLE, context)  # asks the registry, and no order does any more
            break
        except SchemaRegistryError as error:
            if register or error.http_status_code != 404:
                raise

    def serialized(order: Order) -> bytes:
        """Return the order's bytes; ValueError where it doesn't fit its schema."""
        try:
            value: bytes = serialize(order, context)
            return value
        except Exception as error:  # each library has others
            text = to_json(order).decode()
            raise ValueError(f"Order {text} was not sent, it doesn't fit its {name} schema: {reason(error)}") from None

    return serialized


def compatibility(registry: SchemaRegistryClient, subject: str) -> str:
    """Return the level that holds for the subject: its own, or else the registry's."""
    try:
        return registry.get_compatibility(subject)
    except SchemaRegistryError as error:
        if error.http_status_code != 404:
            raise
        return registry.get_compatibility()


def run(producer: Producer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Send the order of the flags as its schema says; return how many Kafka did not confirm."""
    registry = connect(args, LIMIT)  # a busy one takes its time over a new schema
    refused = f"The schema registry at {args.url} did not take the schema of {args.topic}-value-{args.format}"
    serialize = ask(partial(agree, registry, args.topic, args.format), refused, stop)
    return 0 if stop else send_orders(producer, args, stop, serialize)


if __name__ == "__main__":
    parser = command_line()
    parser.description = __doc__
    add_url(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="what the orders are written as")
    sys.exit(main(parser=parser, run=run))
