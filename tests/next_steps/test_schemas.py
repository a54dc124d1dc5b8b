"""next_steps/schemas: orders with a schema, on a real registry, beside those that are plain JSON."""

import base64
import http.server
import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
import time
import uuid
from functools import partial

import pytest
import requests
import test_compose
from broker import COMPOSE_FILE, ROOT, Registry, free_port, missing
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError
from conftest import (
    INTERRUPT,
    UUID,
    committed,
    create_topic,
    examples,
    freeze,
    posix,
    put,
    records,
    same,
    thaw,
    wait_until,
)
from proxy import Proxy

import producer
from next_steps.schemas.deserializer import FRAME, Deserializer, schema_id
from next_steps.schemas.producer import FORMATS, agree
from next_steps.schemas.registry import TIMEOUT, ask
from next_steps.schemas.tracker import RETRY, Patient

STEP = ROOT / "next_steps" / "schemas"
FILE = STEP / "docker-compose.yml"
README = (STEP / "README.md").read_text("utf-8")
TYPES = {"avro": "AVRO", "protobuf": "PROTOBUF", "json-schema": "JSON"}
ORDER = {"order_id": "123e4567-e89b-12d3-a456-426614174000", "user": "john", "item": "burger", "quantity": 5}
RECEIVED = "Message received: burger 5 from john"
START_LIMIT = 10  # seconds in which a command says that there is no registry
every_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A real registry; the tests have their own subjects in it, as they have their own topics."""
    if lacking := missing():
        pytest.skip(f"no registry can be started: install {lacking}")
    with Registry(tmp_path_factory.mktemp("registry"), FILE) as registry:
        yield registry


@pytest.fixture(scope="module")
def client(registry):
    return SchemaRegistryClient({"url": registry.url, "timeout": 10})


@pytest.fixture
def network(registry):
    """A proxy in front of the registry, which can be cut off, and the URL that goes through it."""
    port = free_port()
    proxies = [Proxy(port, registry.port)]

    class Network:
        url = f"http://127.0.0.1:{port}/apis/ccompat/v7"

        def cut(self):
            proxies.pop().close()

        def mend(self):
            proxies.append(Proxy(port, registry.port))

        def hang(self):
            proxies[-1].replies = False

        def slow(self, delay):
            proxies[-1].delay = delay

    yield Network()
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def send(start, bootstrap, topic, registry):
    """A function that starts the step's producer with this test's broker, registry and topic."""
    module = [sys.executable, "-m", "next_steps.schemas.producer"]
    return partial(start, *module, "-b", bootstrap, "-t", topic, "-r", registry.url, "--format")


@pytest.fixture
def read(start, bootstrap, topic, registry):
    """A function that starts the step's tracker with this test's broker, registry, topic and group."""
    module = [sys.executable, "-m", "next_steps.schemas.tracker"]
    return partial(start, *module, "-b", bootstrap, "-t", topic, "-g", topic, "-r", registry.url)


def subject_of(topic, name):
    return f"{topic}-value-{name}"


def values(bootstrap, topic):
    return [record.value() for record in records(bootstrap, topic)]


def framed(number, payload):
    return struct.pack(">bI", 0, number) + payload


def register(client, schema, kind="AVRO"):
    """Return the id of a schema under a subject of its own."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return client.register_schema(f"other-{uuid.uuid4().hex}", Schema(text, kind))


# The commands.


@every_format
def test_an_order_goes_through_with_its_schema(send, read, client, bootstrap, topic, name):
    sending = send(name, "-c", "2", "--user", "José 寿司")
    assert sending.wait() == 0
    assert [re.sub(UUID, "UUID", line) for line in sending.out] == 2 * [
        'Message delivered {"order_id": "UUID", "user": "José 寿司", "item": "burger", "quantity": 5}'
    ]
    tracking = read("-e")
    assert (tracking.wait(), tracking.err) == (0, [])
    assert tracking.out == [
        f"Consumer is running & subscribed to {topic} topic",
        *2 * ["Message received: burger 5 from José 寿司"],
    ]
    subject = subject_of(topic, name)
    number = client.get_latest_version(subject).schema_id
    assert [schema_id(value) for value in values(bootstrap, topic)] == [number, number]
    assert (client.get_schema(number).schema_type, client.get_compatibility(subject)) == (TYPES[name], "BACKWARD")
    ids = [json.loads(line.removeprefix("Message delivered "))["order_id"] for line in sending.out]
    assert [record.key().decode() for record in records(bootstrap, topic)] == ids
    assert send(name).wait() == 0
    assert client.get_versions(subject) == [1]


def test_one_topic_has_orders_of_all_kinds(send, read, run_producer, run_tracker, topic):
    users = {"ana": run_producer, **{name: partial(send, name) for name in FORMATS}, "ben": run_producer}
    for user, command in users.items():
        assert command("--user", user).wait() == 0
    tracking = read("-e")
    assert (tracking.wait(), tracking.err) == (0, [])
    assert tracking.out[1:] == [f"Message received: burger 5 from {user}" for user in users]
    pair = run_tracker("-e", "-g", f"{topic}-pair")
    assert (pair.wait(), pair.out[1:]) == (1, [f"Message received: burger 5 from {user}" for user in ("ana", "ben")])
    assert len(pair.err) == len(FORMATS)
    assert all("it is framed for a schema registry: next_steps/schemas reads it" in line for line in pair.err)


@every_format
def test_each_format_keeps_what_an_order_says(client, topic, name):
    order = ORDER | {"user": "\x00é\U0001f354" * 300, "quantity": 2**62}
    value = agree(client, topic, name)(order)
    reading = Deserializer(client)
    reading.learn(schema_id(value))
    assert reading.order(Record(value)) == order


class Record:
    """What a Deserializer or a Patient asks a record for."""

    def __init__(self, value, partition=0, offset=0):
        self.value, self.headers, self.error = lambda: value, lambda: None, lambda: None
        self.topic, self.partition, self.offset = lambda: "orders", lambda: partition, lambda: offset


def test_the_schema_is_registered_once_and_only_read_later(client, topic, monkeypatch):
    agree(client, topic, "avro")
    another = SchemaRegistryClient({"url": client.config()["url"]})
    monkeypatch.setattr(another, "register_schema_full_response", None)
    monkeypatch.setattr(another, "set_compatibility", None)
    assert agree(another, topic, "avro")(ORDER)


def test_a_level_that_was_chosen_stays(client, topic):
    client.set_compatibility(subject_of(topic, "avro"), "FULL_TRANSITIVE")
    agree(client, topic, "avro")
    assert client.get_compatibility(subject_of(topic, "avro")) == "FULL_TRANSITIVE"


def test_the_level_of_the_whole_registry_holds_too(client, topic, monkeypatch):
    another = SchemaRegistryClient({"url": client.config()["url"]})
    asked = another.get_compatibility
    monkeypatch.setattr(another, "get_compatibility", lambda subject=None: asked(subject) if subject else "FULL")
    monkeypatch.setattr(another, "set_compatibility", None)
    assert agree(another, topic, "avro")(ORDER)


def test_avro_says_that_the_id_is_a_uuid(client, topic):
    agree(client, topic, "avro")
    schema = json.loads(client.get_latest_version(subject_of(topic, "avro")).schema.schema_str)
    assert schema["fields"][0] == {"name": "order_id", "type": {"type": "string", "logicalType": "uuid"}}


@every_format
def test_a_further_field_is_refused(client, topic, name):
    with pytest.raises(ValueError, match=rf"^Order .*note.* was not sent, it doesn't fit its {name} schema: .*note"):
        agree(client, topic, name)(ORDER | {"note": "no onions"})


@pytest.mark.parametrize("name", ["avro", "protobuf"])
def test_a_number_without_room_is_refused(send, bootstrap, topic, name):
    sending = send(name, "--quantity", str(2**63))
    assert (sending.wait(), sending.out, len(sending.err)) == (1, [], 1)
    assert re.match(rf'Order {{.*"quantity": {2**63}}} was not sent, it doesn\'t fit its {name}', sending.err[0])
    assert values(bootstrap, topic) == []


def test_the_generated_module_is_that_of_order_proto(tmp_path):
    command = (STEP / "order.proto").read_text("utf-8").splitlines()[0].removeprefix("// ")
    where = command.replace("_out next_steps/schemas", f"_out {tmp_path}")
    subprocess.run([sys.executable, *shlex.split(where)[1:]], check=True, cwd=ROOT)
    for file in ("order_pb2.py", "order_pb2.pyi"):
        assert (tmp_path / file).read_text() == (STEP / file).read_text()


# Records that hold no order.


def test_what_holds_no_order_is_skipped_and_named(read, client, bootstrap, topic):
    avro, protobuf, json_schema = (agree(client, topic, name)(ORDER) for name in FORMATS)
    other = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "string"}]}
    proto = 'syntax = "proto3";\npackage other;\nmessage Other { string x = 1; }\n'
    loose = {"type": "record", "name": "Order", "fields": [{"name": n, "type": "string"} for n in ORDER]}
    poison = {
        framed(
            987654, avro[FRAME:]
        ): "the first byte is 0x00, expected a schema id after it: the registry has no 987654",
        b"\x02\x00\x00\x00\x01": "The first byte is 0x02, expected {, or 0x00 and a schema id of 4 bytes",
        b"\x01" + bytes(16): "The first byte is 0x01, expected {",
        b"\x00\x00": "The first byte is 0x00, expected {, or 0x00 and a schema id of 4 bytes",
        b"burger": "The first byte is 0x62, expected {",
        b"{": "the value is no JSON in UTF-8",
        b"": "the value is no JSON in UTF-8",
        avro[:-3]: f"the first byte is 0x00, expected an order of schema {schema_id(avro)} after it: ",
        avro[:FRAME]: f"the first byte is 0x00, expected an order of schema {schema_id(avro)} after it: ",
        avro + b"x": "more follows",
        framed(schema_id(avro), b"\xff" * 20): f"expected an order of schema {schema_id(avro)} after it: ",
        protobuf[:-3]: f"the first byte is 0x00, expected an order of schema {schema_id(protobuf)} after it: ",
        protobuf[:FRAME]: f"the first byte is 0x00, expected an order of schema {schema_id(protobuf)} after it: ",
        framed(schema_id(protobuf), b"\x02\x02" + protobuf[FRAME + 1 :]): "of another message than the first one",
        json_schema[:-3]: f"expected an order of schema {schema_id(json_schema)} after it: the value is no JSON",
        framed(schema_id(json_schema), b'{"order_id": "x"}'): "user must be non-empty text, got None",
        framed(register(client, other), b"\x02x"): "user must be non-empty text, got ''",
        framed(register(client, '"string"'), b"\x02x"): "got 'x'",
        framed(register(client, loose), b"\x48" + ORDER["order_id"].encode() + 3 * b"\x02x"): "quantity must be",
        framed(register(client, proto, "PROTOBUF"), b"\x00\x0a\x01x"): "it is of other.Other, not of orders.Order",
    }
    for value in poison:
        put(bootstrap, topic, avro, value)
    put(bootstrap, topic, protobuf)
    tracking = read("-e")
    assert tracking.wait() == 1
    assert tracking.out[1:] == [RECEIVED] * (len(poison) + 1)
    for number, (line, words) in enumerate(zip(tracking.err, poison.values(), strict=True)):
        assert line.startswith(f"Skipped {topic} [0] @ {2 * number + 1}: "), line
        assert words in line
        assert line.isprintable()


def test_an_id_in_a_header_is_recognised(read, client, bootstrap, topic):
    value = agree(client, topic, "avro")(ORDER)
    put(bootstrap, topic, value[FRAME:], headers={"__value_schema_id": b"\x01" + uuid.uuid4().bytes})
    tracking = read("-e")
    assert (tracking.wait(), tracking.out[1:]) == (1, [])
    assert "its schema id is in the header __value_schema_id, expected 0x00 and the id in front" in tracking.err[0]


def test_a_schema_that_comes_later_is_found(read, client, bootstrap, topic):
    """A registry that was restored: what it did not have was skipped, and is not held against what comes."""
    tracking = read()
    tracking.wait_for("Consumer is running")
    schema = json.loads((STEP / "order.avsc").read_text("utf-8"))
    payload = agree(client, topic, "avro")(ORDER)[FRAME:]
    number = register(client, schema | {"doc": uuid.uuid4().hex}) + 1
    value = framed(number, payload)
    put(bootstrap, topic, value)
    tracking.wait_for(f"the registry has no {number}", err=True)
    assert register(client, schema | {"doc": uuid.uuid4().hex}) == number
    put(bootstrap, topic, value)
    tracking.wait_for(RECEIVED)


# A registry that is away.


@pytest.mark.parametrize("fault", ["cut", "hang"])
@pytest.mark.parametrize("command", ["send", "read"])
def test_without_a_registry_the_start_fails_soon(request, network, command, fault):
    getattr(network, fault)()
    run = request.getfixturevalue(command)
    done = run(*["avro"] * (command == "send"), "-r", network.url)
    assert done.wait(START_LIMIT) == 1
    assert [line for line in done.out if "Consumer" not in line] == []
    assert len(done.err) == 1
    assert done.err[0].startswith(f"The schema registry at {network.url} did not ")
    assert ("refused. Start one" if fault == "cut" else "timed out. See that it is healthy") in done.err[0].replace(
        "[Errno 111] Connection ", ""
    )


@pytest.mark.parametrize("command", ["send", "read"])
def test_a_registry_that_just_starts_is_waited_for(request, network, command):
    network.cut()
    run = request.getfixturevalue(command)
    done = run(*["avro"] * (command == "send"), "-r", network.url, *["-e"] * (command == "read"))
    threading.Timer(2, network.mend).start()
    assert done.wait() == 0, done


def test_a_registry_may_take_its_time_over_a_new_schema(send, network, bootstrap, topic):
    """Longer than a tracker waits for each answer, as it has other partitions to read."""
    network.slow(TIMEOUT / 2 + 0.1)  # a question, and its answer
    sending = send("avro", "-r", network.url)
    assert sending.wait() == 0, sending


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_registry_is_asked_again(status):
    answers = iter([SchemaRegistryError(status, -1, "busy"), "served"])

    def question():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert ask(question, "", []) == "served"


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_an_answer_that_is_not_the_registrys_no_is_waited_out(status):
    """A login that ran out, a proxy's page: the schema may be there all the same."""

    class Page:
        def get_schema(self, number):
            raise SchemaRegistryError(status, -1, "Unknown Schema Registry Error: b'<html>'")

    reading = Deserializer(Page())
    with pytest.raises(SchemaRegistryError):
        reading.learn(1)
    assert not reading.knows(1)


def test_a_registry_that_does_not_answer_is_left_alone_for_a_while(monkeypatch, capsys):
    """Whatever comes meanwhile: a frozen one would cost each record its time-out."""
    done, now = [], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Records:
        def consume(self, num_messages, timeout):
            return [Record(framed(p + 1, b""), p, offset) for p in (0, 1) for offset in (7, 8)]

        def __getattr__(self, name):
            return lambda places: done.append((name, str(places)))

    class Unanswered:
        def get_schema(self, number):
            done.append(("asked", number))
            raise OSError("away")

    consumer = Patient(Records(), Deserializer(Unanswered()), "URL")
    for _ in range(3):
        assert consumer.consume(10, 0) == []
    names = [name for name, _ in done]
    assert names[:5] == ["asked", "pause", "seek", "pause", "seek"]
    assert names.count("asked") == 1
    assert "resume" not in names
    assert len(capsys.readouterr().err.splitlines()) == 1
    now[0] += RETRY - 1
    assert consumer.consume(10, 0) == []
    assert [name for name, _ in done].count("asked") == 1
    now[0] += 2
    assert consumer.consume(10, 0) == []
    assert [name for name, _ in done].count("asked") == 2
    assert [name for name, _ in done].count("resume") == 1


@pytest.mark.parametrize("fault", ["cut", "hang"])
def test_a_registry_away_costs_time_and_no_order(read, network, client, bootstrap, topic, fault):
    create_topic(bootstrap, topic, partitions=2)
    known, unknown = (agree(client, topic, name) for name in ("avro", "protobuf"))
    put(bootstrap, topic, known(ORDER), partition=0)
    tracking = read("-r", network.url)
    tracking.wait_for(RECEIVED)
    getattr(network, fault)()
    put(bootstrap, topic, known(ORDER | {"user": "before"}), unknown(ORDER | {"user": "waits"}), partition=0)
    put(bootstrap, topic, known(ORDER | {"user": "behind"}), partition=0)
    tracking.wait_for(f"{topic} [0] @ 2 waits for its schema", err=True)
    put(bootstrap, topic, known(ORDER | {"user": "beside"}), partition=1)
    tracking.wait_for("from beside")
    tracking.wait_for(f"{topic} [0] @ 2 waits for its schema", err=True, times=2)
    assert [line.split()[-1] for line in tracking.out[1:]] == ["john", "before", "beside"]
    assert committed(bootstrap, topic, topic) <= 2
    if fault == "hang":
        network.cut()
    network.mend()
    tracking.wait_for("from behind")
    assert [line.split()[-1] for line in tracking.out[1:]] == ["john", "before", "beside", "waits", "behind"]
    assert tracking.stop() == 0
    assert all("waits for its schema" in line for line in tracking.err)
    assert committed(bootstrap, topic, topic) == 4


@posix
def test_a_frozen_registry_keeps_nobody_from_stopping(read, tmp_path, client, bootstrap, topic):
    with Registry(tmp_path, FILE) as registry:
        own = SchemaRegistryClient({"url": registry.url})
        value = agree(own, topic, "avro")(ORDER)
        tracking = read("-r", registry.url)
        tracking.wait_for("Consumer is running")
        freeze(registry.process)
        try:
            put(bootstrap, topic, value)
            tracking.wait_for("waits for its schema", err=True)
            assert tracking.stop(limit=START_LIMIT) == 0
        finally:
            thaw(registry.process)
        assert committed(bootstrap, topic, topic) < 1
        again = read("-r", registry.url, "-e")
        assert (again.wait(), again.out[1:]) == (0, [RECEIVED])


def test_a_tracker_takes_over_what_waits(read, network, client, bootstrap, topic):
    """Where the registry is away for one tracker only, another one reads on from the record that waited."""
    value = agree(client, topic, "avro")(ORDER)
    first = read("-r", network.url)
    first.wait_for("Consumer is running")
    network.cut()
    put(bootstrap, topic, producer.to_json(ORDER), value, producer.to_json(ORDER))
    first.wait_for("waits for its schema", err=True)
    assert (first.stop(), first.out[1:]) == (0, [RECEIVED])
    second = read("-e")
    assert (second.wait(), second.out[1:]) == (0, [RECEIVED] * 2)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_partition_that_waits_changes_hands_and_loses_nothing(read, network, client, bootstrap, topic, protocol):
    """Each rebalance gives the partitions out anew, and what waits comes once more before the registry is back."""
    create_topic(bootstrap, topic, partitions=4)
    value = agree(client, topic, "avro")
    read = partial(read, "-X", f"group.protocol={protocol}")
    tracking = read("-r", network.url)
    tracking.wait_for("Consumer is running")
    network.cut()
    for partition in range(4):
        put(bootstrap, topic, *[value(ORDER | {"user": f"{partition}.{n}"}) for n in range(3)], partition=partition)
    tracking.wait_for("waits for its schema", err=True)
    others = [read() for _ in range(2)]
    # Either of them may get only what the other one has read before.
    wait_until(lambda: any("Message received" in line for other in others for line in other.out), others)
    for other in others:
        other.wait_for("Consumer is running")
    for other in others:
        assert other.stop() == 0
    tracking.wait_for("waits for its schema", err=True, times=len(tracking.err) + 1)
    network.mend()

    def seen():
        return {line.split()[-1] for process in (tracking, *others) for line in process.out if "received" in line}

    wait_until(lambda: seen() == {f"{partition}.{n}" for partition in range(4) for n in range(3)}, tracking)
    assert tracking.stop() == 0
    assert sum(committed(bootstrap, topic, topic, partition) for partition in range(4)) == 12


# Evolution.


@pytest.fixture(scope="module")
def version_2(tmp_path_factory):
    """A copy of the project in which an order has a note, as the READMEs say."""
    folder = tmp_path_factory.mktemp("version-2")
    shutil.copytree(STEP, folder / "next_steps" / "schemas")
    changes = {
        "producer.py": ('"quantity": quantity}', '"quantity": quantity, "note": "no onions"}'),
        "tracker.py": ("from {order['user']}", "from {order['user']} {order.get('note', '-')}"),
    }
    for name, (before, after) in changes.items():
        (folder / name).write_text((ROOT / name).read_text("utf-8").replace(before, after))
    added = dict(re.findall(r"^\| `(order\.[\w.]+)`, behind `quantity` \| `([^`]+)`", README, re.MULTILINE))
    for name, text in added.items():
        file = folder / "next_steps" / "schemas" / name
        before, field, after = re.split(r"(?m)(^.*\bquantity\b.*[;}])$", file.read_text("utf-8"))
        comma = "" if name.endswith(".proto") else ","
        file.write_text(f"{before}{field}{comma}\n{text}{after}")
    command = (STEP / "order.proto").read_text("utf-8").splitlines()[0].removeprefix("// ")
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, cwd=folder)
    return folder


@pytest.fixture
def run_version_2(start, version_2, bootstrap, topic, registry):
    """A function that starts a command of version 2."""

    def run(command, *arguments):
        flags = ["-b", bootstrap, "-t", topic, "-r", registry.url, *arguments]
        line = shlex.join([sys.executable, "-m", f"next_steps.schemas.{command}", *flags])
        return start("bash", "-c", f"cd {shlex.quote(str(version_2))} && exec {line}")

    return run


@posix
@every_format
def test_old_and_new_read_each_other(send, read, run_version_2, client, topic, name):
    assert send(name, "--user", "old").wait() == 0
    sending = run_version_2("producer", "--format", name, "--user", "new")
    assert sending.wait() == 0, sending
    assert '"note": "no onions"' in sending.out[0]
    assert send(name, "--user", "old").wait() == 0  # which was not updated yet
    old, new = read("-e"), run_version_2("tracker", "-g", f"{topic}-2", "-e")
    for tracking, users in ((old, ["old", "new", "old"]), (new, ["old -", "new no onions", "old -"])):
        assert (tracking.wait(), tracking.err) == (0, [])
        assert [line.partition(" from ")[2] for line in tracking.out[1:]] == users
    assert client.get_versions(subject_of(topic, name)) == [1, 2]


@pytest.mark.parametrize(
    ("name", "file", "before", "after"),
    [
        ("avro", "order.avsc", '"type": "long"', '"type": "string"'),
        ("avro", "order.avsc", '{"name": "user", "type": "string"}', '{"name": "guest", "type": "string"}'),
        ("protobuf", "order.proto", "int64 quantity = 4", "string quantity = 4"),
        ("json-schema", "order.schema.json", '"required": [', '"required": ["note", '),
    ],
)
def test_the_registry_refuses_what_would_break_a_reader(client, topic, name, file, before, after):
    agree(client, topic, name)
    old = (STEP / file).read_text("utf-8")
    assert before in old
    with pytest.raises(SchemaRegistryError, match="409"):
        client.register_schema(subject_of(topic, name), Schema(old.replace(before, after), TYPES[name]))
    assert client.get_versions(subject_of(topic, name)) == [1]


def test_an_incompatible_change_is_refused_before_any_order(client, send, bootstrap, topic):
    """The subject holds another schema already, which no order fits."""
    subject = subject_of(topic, "avro")
    client.set_compatibility(subject, "BACKWARD")
    number = {"name": "order_id", "type": "long"}
    client.register_schema(subject, Schema(json.dumps({"type": "record", "name": "Order", "fields": [number]}), "AVRO"))
    sending = send("avro", "-c", "3")
    assert (sending.wait(), sending.out, len(sending.err)) == (1, [], 1)
    assert f"did not take the schema of {subject}: " in sending.err[0]
    assert "Incompatible" in sending.err[0]
    assert "give a new one a default" in sending.err[0]
    assert values(bootstrap, topic) == []


# A client that no one here wrote.


@pytest.fixture(scope="module")
def exchange():
    """The command that runs exchange.mjs; npm fetches what it needs once."""
    folder = ROOT / "tests" / "next_steps" / "interop"
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("no npm: install Node.js (Debian: apt-get install nodejs npm)")
    if not (folder / "node_modules" / "@confluentinc" / "schemaregistry").exists():
        quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        subprocess.run(["npm", "install", *quiet], check=True, cwd=folder, capture_output=True)
    return ["node", folder / "exchange.mjs"]


def test_another_code_base_reads_our_records_and_writes_some_for_us(
    exchange, send, read, registry, bootstrap, topic, tmp_path
):
    for name in FORMATS:
        assert send(name).wait() == 0
    ours = dict(zip(FORMATS, values(bootstrap, topic), strict=True))
    file = tmp_path / "set"
    protoc = ["-m", "grpc_tools.protoc", "-I", STEP, f"--descriptor_set_out={file}", "order.proto"]
    subprocess.run([sys.executable, *protoc], check=True)
    task = {
        "url": registry.url,
        "topic": topic,
        "schemas": {
            "avro": (STEP / "order.avsc").read_text("utf-8"),
            "json-schema": (STEP / "order.schema.json").read_text("utf-8"),
            "protobuf": base64.b64encode(file.read_bytes()).decode(),
        },
        "order": ORDER | {"user": "José"},
        "records": {name: base64.b64encode(value).decode() for name, value in ours.items()},
    }
    done = subprocess.run(exchange, input=json.dumps(task), capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    exchanged = json.loads(done.stdout)
    assert {name: order | {"order_id": "UUID"} for name, order in exchanged["read"].items()} == dict.fromkeys(
        FORMATS, ORDER | {"order_id": "UUID"}
    )
    assert [order["order_id"].encode() for order in exchanged["read"].values()] == [
        record.key() for record in records(bootstrap, topic)
    ]
    put(bootstrap, f"{topic}-js", *[base64.b64decode(value) for value in exchanged["written"].values()])
    tracking = read("-t", f"{topic}-js", "-e")
    assert (tracking.wait(), tracking.err) == (0, [])
    assert tracking.out[1:] == ["Message received: burger 5 from José"] * 3


@every_format
def test_the_registrys_own_interface_shows_the_schema(client, registry, topic, name):
    agree(client, topic, name)
    artifact = f"http://127.0.0.1:{registry.port}/apis/registry/v3/groups/default/artifacts/{subject_of(topic, name)}"
    assert requests.get(artifact, timeout=10).json()["artifactType"] == TYPES[name]
    content = requests.get(f"{artifact}/versions/1/content", timeout=10).content
    assert b"quantity" in (base64.b64decode(content) if name == "protobuf" else content)


# Credentials.


@pytest.fixture
def guarded(registry):
    """The URL of the registry behind a login: me, s3cret; and what was asked without."""
    refused = []

    class Guard(http.server.BaseHTTPRequestHandler):
        def serve(self):
            if self.headers["Authorization"] != "Basic " + base64.b64encode(b"me:s3cret").decode():
                refused.append(self.path)
                return self.answer(401, b"<html>" + b"no " * 10_000)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            url = f"http://127.0.0.1:{registry.port}{self.path}"
            answer = requests.request(self.command, url, data=body, headers=kind, timeout=10)
            return self.answer(answer.status_code, answer.content)

        do_GET = do_POST = do_PUT = serve  # noqa: N815

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/apis/ccompat/v7", refused
        server.shutdown()


@pytest.mark.parametrize("prefix", ["", "schema.registry."])
def test_a_login_comes_from_the_file_of_a_console(send, read, guarded, tmp_path, prefix):
    url, _ = guarded
    file = tmp_path / "client.properties"
    file.write_text(
        "# Required connection configs for Kafka\nclient.id=me\n"
        f"schema.registry.url={url}\nbasic.auth.credentials.source=USER_INFO\n{prefix}basic.auth.user.info=me:s3cret\n"
    )
    assert send("avro", "-F", file, "-r", url).wait() == 0
    tracking = read("-F", file, "-r", url, "-e")
    assert (tracking.wait(), tracking.out[1:]) == (0, [RECEIVED])


def test_the_address_can_come_from_the_file(start, guarded, bootstrap, topic, tmp_path):
    file = tmp_path / "client.properties"
    file.write_text(f"schema.registry.url={guarded[0]}\nbasic.auth.user.info=me:s3cret\n")
    module = [sys.executable, "-m", "next_steps.schemas.producer", "--format", "avro"]
    sending = start(*module, "-b", bootstrap, "-t", topic, "-F", file)
    assert sending.wait() == 0, sending


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["401", "Check basic.auth.user.info in the file of -F"]),
        (["basic.auth.user.info=me:wr0ng"], ["401", "Check basic.auth.user.info in the file of -F"]),
        (["basic.auth.user.info=s3cret"], ["basic.auth.user.info must be in the form"]),
        (["basic.auth.credentials.source=SASL_INHERIT"], ["can only be USER_INFO"]),
        (["schema.registry.no.such=s3cret"], ["no.such"]),
        (["schema.registry.ssl.ca.location=/no/such"], ["No such file"]),
    ],
)
def test_what_is_wrong_with_a_login_is_said_and_not_shown(send, guarded, tmp_path, lines, words):
    url, refused = guarded
    file = tmp_path / "client.properties"
    file.write_text("\n".join(lines))
    sending = send("avro", "-F", file, "-r", url)
    assert (sending.wait(START_LIMIT), sending.out, len(sending.err)) == (1, [], 1)
    assert all(word in sending.err[0] for word in words), sending
    assert len(refused) == ("401" in words)  # such an answer is one: nothing is asked a second time
    assert len(sending.err[0]) < 1000
    assert not re.search("s3cret|wr0ng", str(sending.err))


@pytest.mark.parametrize("url", ["http://me:s3cret@localhost:8081", "s3cret@x", "localhost:8081", "ftp://x", "http://"])
@pytest.mark.parametrize("command", ["send", "read"])
def test_an_address_that_is_none_or_shows_a_password_is_wrong_usage(request, command, url):
    run = request.getfixturevalue(command)
    wrong = run(*["avro"] * (command == "send"), "-r", url)
    assert (wrong.wait(), wrong.out) == (2, [])
    assert "argument -r/--registry" in wrong.err[-1]
    assert "s3cret@" not in str(wrong.err)


def test_a_page_that_is_no_registry_is_said_to_be_none(send, registry):
    sending = send("avro", "-r", f"http://127.0.0.1:{registry.port}")
    assert (sending.wait(START_LIMIT), sending.out, len(sending.err)) == (1, [], 1)
    assert "Check -r: the address of Apicurio ends in /apis/ccompat/v7" in sending.err[0]


@pytest.mark.parametrize("command", ["producer", "tracker"])
def test_missing_libraries_are_named(start, tmp_path, command):
    (tmp_path / "authlib").mkdir()
    (tmp_path / "authlib" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'authlib'\")")
    failing = start(sys.executable, "-m", f"next_steps.schemas.{command}", env={"PYTHONPATH": str(tmp_path)})
    assert (failing.wait(), failing.out, len(failing.err)) == (1, [], 1)
    assert "pip install -r next_steps/schemas/requirements.txt" in failing.err[0]


# The README and its Compose file.


def curl(line):
    """Return what a command with curl prints."""
    command = shlex.split(line)
    return requests.get(command[-1], timeout=10).text if not shutil.which("curl") else test_compose.run(*command)


@every_format
def test_the_bytes_of_an_order_are_those_of_the_readme(client, topic, name):
    (size,) = re.findall(rf"^\| `{name}` \| .* \| (\d+) bytes \|", README, re.MULTILINE)
    assert len(agree(client, topic, name)(ORDER)) == int(size)
    assert f"Plain JSON takes {len(producer.to_json(ORDER))} bytes" in README


@pytest.mark.xdist_group("port 9092")
def test_the_readme_word_by_word_without_docker(start, tmp_path):
    if lacking := missing():
        pytest.skip(f"no broker can be started: install {lacking}")
    test_compose.skip_where_taken(9092, 8081)
    _, (install, launch) = (block.splitlines() for block in re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL))
    assert install == "pip install -r tests/requirements-broker.txt"  # which has brought this here
    servers = start(sys.executable, *shlex.split(launch)[1:], "--directory", tmp_path)
    servers.wait_for("is running at 127.0.0.1:9092", 120)
    assert servers.out[0] == "Apicurio Registry 3.3.3 is running at http://127.0.0.1:8081/apis/ccompat/v7"
    (installing, _), (tracking, received), *sending, (asking, subjects) = examples("", README)
    assert test_compose.run(sys.executable, "-m", *shlex.split(installing))
    tracker = start(sys.executable, *shlex.split(tracking)[1:])
    tracker.wait_for("Consumer is running")
    for command, lines in sending:
        sent = start(sys.executable, *shlex.split(command)[1:])
        assert (sent.wait(), same(sent.out, lines)) == (0, True), sent
    tracker.wait_for(RECEIVED, times=len(sending))
    assert (tracker.out, tracker.err) == (received, [])
    assert curl(asking).splitlines() == subjects
    assert servers.stop(INTERRUPT, 60) == 0


@pytest.mark.xdist_group("registry in Docker")
@pytest.mark.timeout(600)
@test_compose.needs_compose
def test_docker(start, topic, tmp_path):
    """The registry runs in a Docker engine, keeps its schemas, and is unhealthy where it doesn't answer."""
    broker, web = free_port(), free_port()
    files = [tmp_path / "docker-compose.yml", tmp_path / "registry.yml"]
    for file, original in zip(files, (COMPOSE_FILE, FILE), strict=True):
        file.write_text(re.sub(r"\b9092\b", str(broker), original.read_text("utf-8")).replace("8081", str(web)))
    url = f"http://localhost:{web}/apis/ccompat/v7"
    flags = ["-b", f"localhost:{broker}", "-t", topic, "-r", url]

    def run(command, *arguments):
        return start(sys.executable, "-m", f"next_steps.schemas.{command}", *flags, *arguments)

    with test_compose.running(test_compose.COMMANDS[0], *files) as project:
        published = test_compose.run("docker", "port", project.container("registry"))
        assert published == f"8080/tcp -> 127.0.0.1:{web}"
        # The first write to a new database waits for the disk, which is busy with images: longer than a producer does.
        requests.put(f"{url}/config/any", json={"compatibility": "NONE"}, timeout=60).raise_for_status()
        assert run("producer", "--format", "avro").wait() == 0
        inside = ["docker", "run", "--rm", "--network", f"{project.name}_default", "--entrypoint", "curl"]
        subjects = [project.variables["REGISTRY_IMAGE"], "-fsS", "http://registry:8080/apis/ccompat/v7/subjects"]
        assert test_compose.run(*inside, *subjects) == f'["{topic}-value-avro"]'
        project.down()
        project.up()
        tracking = run("tracker", "-g", topic, "-e")
        assert (tracking.wait(), tracking.out[1:], tracking.err) == (0, [RECEIVED], [])
        project.freeze_until_noticed("registry")
