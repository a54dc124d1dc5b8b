"""What reads an order from a record, however it was written: by the schema whose id stands in front, or as plain JSON.

A framed value is a zero byte, the schema's id in 4 bytes, and what confluent-kafka's serializers of each format write:
https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
"""

import base64
import functools
import io
import json
import re
import struct
from collections.abc import Callable
from typing import Any

from confluent_kafka import Message

from next_steps.schemas.registry import SchemaRegistryClient, SchemaRegistryError, reason
from producer import new_order
from tracker import from_json

Order = dict[str, Any]
Read = Callable[[bytes], Order]
PREFIX = struct.Struct(">xI")  # the zero and the id
FRAME = PREFIX.size
HEADER = "__value_schema_id"  # where newer serializers can put the id instead
NOT_FOUND = 40403  # a registry's code for a schema that it doesn't have


def schema_id(value: bytes | None) -> int | None:
    """Return the id of the schema that the value is framed with, None where it isn't framed."""
    return PREFIX.unpack_from(value)[0] if value and value[0] == 0 and len(value) >= FRAME else None


class Deserializer:
    """Asks the registry once for each schema, and reads values by it."""

    def __init__(self, registry: SchemaRegistryClient) -> None:
        self._registry = registry
        self._readers: dict[int, Read] = {}
        self.missing: set[int] = set()  # ids that the registry doesn't have, or did not have a moment ago

    def knows(self, number: int | None) -> bool:
        """Return whether a value with this id can be read, or never can; None is the id of one that isn't framed."""
        return number in self._readers or number is None or number in self.missing

    def learn(self, number: int) -> None:
        """Ask the registry for a schema; raises what the client does where it can't answer."""
        try:
            schema = self._registry.get_schema(number)
        except SchemaRegistryError as error:
            if error.error_code != NOT_FOUND:
                raise
            self.missing.add(number)
            return
        try:
            self._readers[number] = READERS[schema.schema_type or "AVRO"](str(schema.schema_str))
        except Exception as error:  # each library has others
            self._readers[number] = functools.partial(refuse, reason(error))

    def order(self, record: Message) -> Order:
        """Return the order in a record whose schema is known; ValueError says why it holds none."""
        value: Any = record.value()
        if (headers := record.headers()) and HEADER in dict(headers):
            raise ValueError(f"its schema id is in the header {HEADER}, expected 0x00 and the id in front of the value")
        number = schema_id(value)
        if number is None:
            return plain(value)
        if number in self.missing:
            raise ValueError(f"the first byte is 0x00, expected a schema id after it: the registry has no {number}")
        try:
            return self._readers[number](value)
        except Exception as error:  # on garbage each library raises others
            expected = f"expected an order of schema {number} after it"
            raise ValueError(f"the first byte is 0x00, {expected}: {reason(error)}") from None


def plain(value: bytes | None) -> Order:
    """Return the order in a value that is not framed; ValueError says why it holds none."""
    try:
        return from_json(value)
    except ValueError as why:
        if not value or value.lstrip()[:1] == b"{":
            raise
        expected = "expected {, or 0x00 and a schema id of 4 bytes"
        raise ValueError(f"{why}. The first byte is 0x{value[0]:02x}, {expected}") from None


def refuse(why: str, value: bytes) -> Order:
    """Read nothing: ValueError says why."""
    raise ValueError(why)


def checked(order: Order) -> Order:
    """Return the order if it keeps the pair's own rules; ValueError names the field that is wrong."""
    new_order(order.get("user", ""), order.get("item", ""), order.get("quantity", 0), order.get("order_id", ""))
    return order


def avro(schema: str) -> Read:
    """Return what reads by an Avro schema.

    It is fastavro, which confluent-kafka's AvroDeserializer calls too, but that expands the schema for each record.
    """
    import fastavro

    parsed = fastavro.parse_schema(json.loads(schema, object_hook=uuid_as_text))

    def read(value: bytes) -> Order:
        data = io.BytesIO(value)
        data.seek(FRAME)
        order: Any = fastavro.schemaless_reader(data, parsed, None)
        if data.read(1):
            raise ValueError("more follows")
        if not isinstance(order, dict):
            raise ValueError(f"got {order!r:.50}")
        return checked(order)

    return read


def uuid_as_text(part: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an Avro schema so that a UUID is read as the text that it is in an order."""
    return {"type": part["type"]} if part.get("logicalType") == "uuid" else part


def protobuf(schema: str) -> Read:
    """Return what reads by a Protobuf schema, whose first message has to be the order."""
    from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer

    from next_steps.schemas.order_pb2 import Order as Message

    if (name := first_message(schema)) != Message.DESCRIPTOR.full_name:
        raise ValueError(f"it is of {name}, not of {Message.DESCRIPTOR.full_name}")
    # Without the registry: Apicurio's answer to what it would ask there is not what it expects.
    deserialize = ProtobufDeserializer(Message, {"use.deprecated.format": False}, None)
    fields = [field.name for field in Message.DESCRIPTOR.fields if not field.has_presence]
    optional = [field.name for field in Message.DESCRIPTOR.fields if field.has_presence]

    def read(value: bytes) -> Order:
        if value[FRAME]:
            raise ValueError("it is of another message than the first one")
        message: Any = deserialize(value)
        order = {name: getattr(message, name) for name in fields}
        for name in optional:
            if message.HasField(name):
                order[name] = getattr(message, name)
        return checked(order)

    return read


def first_message(schema: str) -> str:
    """Return the full name of the first message: a registry has .proto text, or what confluent-kafka sends it."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    if text := re.search(r"^\s*message\s+(\w+)", schema, re.MULTILINE):
        package, name = re.search(r"^\s*package\s+([\w.]+)\s*;", schema, re.MULTILINE), text[1]
        return f"{package[1]}.{name}" if package else name
    file = FileDescriptorProto.FromString(base64.b64decode(schema))
    return ".".join(filter(None, [file.package, file.message_type[0].name]))


def json_schema(schema: str) -> Read:
    """Return what reads JSON: the pair's rules are those of the schema, so it is not validated a second time."""
    return lambda value: from_json(value[FRAME:])


READERS = {"AVRO": avro, "PROTOBUF": protobuf, "JSON": json_schema}
