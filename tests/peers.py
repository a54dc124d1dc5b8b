"""What benchmark.py measures beside the pair. Each function runs in a process of its own, see benchmark.peer().

That process holds json, sys, uuid and the function alone.
"""

import json
import sys
import uuid


def bare_producer(servers: str, topic: str, count: str, *properties: str) -> None:
    """Produce orders with confluent-kafka."""
    from confluent_kafka import Producer

    def report(err, msg):
        print(f"Message delivered {msg.value().decode()}" if err is None else f"Failed: {err}")

    producer = Producer({"bootstrap.servers": servers, **dict(p.split("=") for p in properties)})
    for _ in range(int(count)):
        order = {"order_id": str(uuid.uuid4()), "user": "john", "item": "burger", "quantity": 5}
        value = json.dumps(order).encode()
        while True:
            try:
                producer.produce(topic, value, order["order_id"], on_delivery=report)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()


def schema_producer(servers: str, url: str, name: str, topic: str, count: str) -> None:
    """Produce orders with one of confluent-kafka's serializers."""
    from functools import partial
    from pathlib import Path

    from confluent_kafka import Producer
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.serialization import MessageField, SerializationContext

    def report(order, err, msg):
        print(f"Message delivered {json.dumps(order)}" if err is None else f"Failed: {err}")

    registry, folder, message = SchemaRegistryClient({"url": url}), Path("next_steps", "schemas"), dict
    conf = {"subject.name.strategy.type": "TOPIC"}
    if name == "avro":
        from confluent_kafka.schema_registry.avro import AvroSerializer

        serialize = AvroSerializer(registry, (folder / "order.avsc").read_text(), conf=conf)
    elif name == "protobuf":
        from confluent_kafka.schema_registry.protobuf import ProtobufSerializer

        from next_steps.schemas.order_pb2 import Order

        serialize, message = ProtobufSerializer(Order, registry, conf), Order
    else:
        from confluent_kafka.schema_registry.json_schema import JSONSerializer

        serialize = JSONSerializer((folder / "order.schema.json").read_text(), registry, conf=conf)
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})
    context = SerializationContext(topic, MessageField.VALUE)
    for _ in range(int(count)):
        order = {"order_id": str(uuid.uuid4()), "user": "john", "item": "burger", "quantity": 5}
        value = serialize(message(**order), context)
        while True:
            try:
                producer.produce(topic, value, order["order_id"], on_delivery=partial(report, order))
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()


def aiokafka_producer(servers: str, topic: str, count: str) -> None:
    """Produce orders with aiokafka."""
    import asyncio

    from aiokafka import AIOKafkaProducer

    async def produce():
        options = {"acks": "all", "enable_idempotence": True, "linger_ms": 5, "max_batch_size": 100_000}
        async with AIOKafkaProducer(bootstrap_servers=servers, **options) as producer:
            for _ in range(int(count)):
                order = {"order_id": str(uuid.uuid4()), "user": "john", "item": "burger", "quantity": 5}
                value = json.dumps(order).encode()
                sent = await producer.send(topic, value, order["order_id"].encode())
                sent.add_done_callback(lambda s, v=value: s.result() and print(f"Message delivered {v.decode()}"))

    asyncio.run(produce())


def kafka_python_producer(servers: str, topic: str, count: str) -> None:
    """Produce orders with kafka-python."""
    from kafka import KafkaProducer

    options = {"acks": "all", "enable_idempotence": True, "linger_ms": 5, "batch_size": 100_000}
    producer = KafkaProducer(bootstrap_servers=servers, **options)
    for _ in range(int(count)):
        order = {"order_id": str(uuid.uuid4()), "user": "john", "item": "burger", "quantity": 5}
        value = json.dumps(order).encode()
        sent = producer.send(topic, value, order["order_id"].encode())
        sent.add_callback(lambda _, v=value: print(f"Message delivered {v.decode()}"))
    producer.close()


def bare_tracker(servers: str, topic: str, group: str, count: str, *properties: str) -> None:
    """Print orders that confluent-kafka reads."""
    from confluent_kafka import Consumer

    config = {"bootstrap.servers": servers, "group.id": group, "auto.offset.reset": "earliest"}
    config.update(p.split("=") for p in properties)
    store_each = config.get("enable.auto.offset.store") == "false"
    consumer = Consumer(config)
    consumer.subscribe([topic])
    orders = 0
    while orders < int(count):
        msg = consumer.poll(1)
        if msg is None or msg.error():
            continue
        order = json.loads(msg.value())
        print(f"Message received: {order['item']} {order['quantity']} from {order['user']}")
        if store_each:
            consumer.store_offsets(msg)
        orders += 1
    consumer.close()


def schema_tracker(servers: str, url: str, name: str, topic: str, group: str, count: str) -> None:
    """Print orders that confluent-kafka reads with one of its deserializers."""
    from confluent_kafka import Consumer
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.serialization import MessageField, SerializationContext

    registry, conf = SchemaRegistryClient({"url": url}), {"subject.name.strategy.type": "TOPIC"}
    if name == "avro":
        from confluent_kafka.schema_registry.avro import AvroDeserializer

        deserialize = AvroDeserializer(registry, conf=conf)
    elif name == "protobuf":
        from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer

        from next_steps.schemas.order_pb2 import Order

        deserialize = ProtobufDeserializer(Order, conf)
    else:
        from confluent_kafka.schema_registry.json_schema import JSONDeserializer

        deserialize = JSONDeserializer(None, schema_registry_client=registry, conf=conf)
    config = {"bootstrap.servers": servers, "group.id": group, "auto.offset.reset": "earliest"}
    consumer = Consumer(config | {"fetch.queue.backoff.ms": 10})
    consumer.subscribe([topic])
    context = SerializationContext(topic, MessageField.VALUE)
    orders = 0
    while orders < int(count):
        msg = consumer.poll(1)
        if msg is None or msg.error():
            continue
        order = deserialize(msg.value(), context)
        if name == "protobuf":
            print(f"Message received: {order.item} {order.quantity} from {order.user}")
        else:
            print(f"Message received: {order['item']} {order['quantity']} from {order['user']}")
        orders += 1
    consumer.close()


def aiokafka_tracker(servers: str, topic: str, group: str, count: str) -> None:
    """Print orders that aiokafka reads."""
    import asyncio

    from aiokafka import AIOKafkaConsumer

    async def track():
        options = {"group_id": group, "auto_offset_reset": "earliest"}
        async with AIOKafkaConsumer(topic, bootstrap_servers=servers, **options) as consumer:
            orders = 0
            while orders < int(count):
                for messages in (await consumer.getmany(timeout_ms=1000)).values():
                    for order in map(json.loads, [msg.value for msg in messages]):
                        print(f"Message received: {order['item']} {order['quantity']} from {order['user']}")
                    orders += len(messages)

    asyncio.run(track())


def kafka_python_tracker(servers: str, topic: str, group: str, count: str) -> None:
    """Print orders that kafka-python reads."""
    from kafka import KafkaConsumer

    options = {"group_id": group, "auto_offset_reset": "earliest", "max_poll_records": 5000}
    consumer = KafkaConsumer(topic, bootstrap_servers=servers, **options)
    orders = 0
    while orders < int(count):
        for messages in consumer.poll(timeout_ms=1000).values():
            for order in map(json.loads, [msg.value for msg in messages]):
                print(f"Message received: {order['item']} {order['quantity']} from {order['user']}")
            orders += len(messages)
    consumer.close()


def show_order(order):
    """Print an order as tracker.py does: a handler for next_steps.retries.tracker."""
    import tracker

    print(tracker.line_for(order))


def waiting_tracker(*arguments: str) -> None:
    """Track orders with work that waits 1 ms for each, and print when that began and ended."""
    import time

    import tracker

    def work(consumer, args, stop):
        for records in tracker.follow(consumer, [args.topic], args.count, args.exit, stop, max_poll_records=10):
            for _ in records:
                began = time.monotonic()
                time.sleep(0.001)
                print("Handled", began, time.monotonic())
            tracker.store(consumer, records)

    sys.exit(tracker.main(arguments, run=work))


def peak_memory(*command: str) -> None:
    """Run the command and print its peak memory in bytes; a child inherits its parent's peak, so this one is small."""
    import resource
    import subprocess

    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def bare_store(servers: str, topic: str, group: str, count: str, url: str) -> None:
    """Write orders into a table that is there, with the driver's executemany and a transaction a list."""
    from datetime import datetime, timezone

    from confluent_kafka import Consumer

    if url.startswith("sqlite:///"):
        import sqlite3

        connection, mark = sqlite3.connect(url.removeprefix("sqlite:///")), "?"
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
    else:
        import psycopg

        connection, mark = psycopg.connect(url.replace("+psycopg", "")), "%s"
    names = "order_id, user_name, item, quantity, placed_at, status, changed_at, log_partition, log_offset"
    insert = f"INSERT INTO orders ({names}) VALUES ({', '.join([mark] * 9)}) ON CONFLICT DO NOTHING"  # noqa: S608
    own = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.offset.store": False}
    consumer = Consumer({"bootstrap.servers": servers, "fetch.queue.backoff.ms": 10, **own})
    consumer.subscribe([topic])
    left = int(count)
    while left:
        records = consumer.consume(min(left, 1000), 0) or consumer.consume(1, 0.1)
        rows = []
        for record in records:
            order = json.loads(record.value())
            at = datetime.fromtimestamp(record.timestamp()[1] / 1000, timezone.utc)
            at = at.isoformat(" ") if mark == "?" else at
            facts = (order["order_id"], order["user"], order["item"], order["quantity"], at, "placed", at)
            rows.append((*facts, record.partition(), record.offset()))
        if rows:
            connection.cursor().executemany(insert, rows)
            connection.commit()
            consumer.store_offsets(message=records[-1])
            left -= len(rows)
    consumer.close()


def bare_web(servers: str, topic: str, port: str) -> None:
    """Serve POST /api/orders with FastAPI alone: input checked, one Producer, answered once Kafka has confirmed it."""
    import asyncio
    import threading

    import uvicorn
    from confluent_kafka import Producer
    from fastapi import FastAPI, HTTPException
    from pydantic import BaseModel

    class Order(BaseModel):
        user: str
        item: str
        quantity: int

    app, producer = FastAPI(), Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 1})

    def serve_reports():
        while True:
            producer.poll(0.1)

    threading.Thread(target=serve_reports, daemon=True).start()

    @app.get("/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/api/orders", status_code=201)
    async def place(order: Order) -> dict[str, object]:
        placed = {"order_id": str(uuid.uuid4()), **order.model_dump()}
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        report = lambda err, msg: loop.call_soon_threadsafe(answer.set_result, err)  # noqa: E731
        producer.produce(topic, json.dumps(placed).encode(), placed["order_id"], on_delivery=report)
        if await answer:
            raise HTTPException(503)
        return placed

    uvicorn.run(app, port=int(port), http="httptools", log_config=None, access_log=False)


def http_load(port: str, count: str, connections: str) -> None:
    """Post orders over so many connections, one after the other on each; print the milliseconds of each answer."""
    import asyncio
    import time

    body = b'{"user": "john", "item": "burger", "quantity": 5}'
    head = f"POST /api/orders HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    took = []

    async def post(times):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        for _ in range(times):
            start = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 201"), answer
            (length,) = (line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            took.append((time.perf_counter() - start) * 1000)
        writer.close()

    async def post_all():
        await asyncio.gather(*(post(int(count) // int(connections)) for _ in range(int(connections))))

    begin = time.perf_counter()
    asyncio.run(post_all())
    print(json.dumps({"seconds": time.perf_counter() - begin, "took": took}))
