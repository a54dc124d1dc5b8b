"""Measure the pair beside other Kafka clients, or how it scales, and print one Markdown table.

    python -m pip install -r tests/requirements-benchmark.txt     and Debian's kcat
    python tests/benchmark.py                                     some seven minutes on a quiet machine with 2 cores
    python tests/benchmark.py --scale                             many trackers, three brokers, many orders: an hour
    python tests/benchmark.py --schemas                           Avro, Protobuf and JSON Schema, with a registry
    python tests/benchmark.py --history                           orders in a database, SQLite and PostgreSQL
    python tests/benchmark.py --web                               a web page, beside the bare framework
    python tests/benchmark.py --security                          TLS and passwords, beside the plain broker
    python tests/benchmark.py --rounds 1 --orders 10000           a quick look

All on one broker, its own or that of KAFKA_BOOTSTRAP_SERVERS; --scale on three of its own, --schemas, --history and
--web on one of its own, with what else they need, --security on two. Each round measures everything in turn, so that a
machine that slows down does so for all. What is not installed is shown as that. Runs on Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import inspect
import itertools
import json
import os
import platform
import queue
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import confluent_kafka
import peers
from broker import COMPOSE_FILE, ROOT, Broker, Cluster, Registry, image_version, java, missing, read_brokers
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from postgres import Postgres

sys.path.append(str(ROOT))  # next_steps, which are modules of that folder
Row = tuple[str, str, "float | None"]  # section, what was measured, its figure: None where it is not installed
VERSION = image_version(read_brokers(COMPOSE_FILE)["kafka"])
RUN = f"benchmark-{uuid.uuid4().hex[:8]}"  # what its topics and groups begin with
LIMIT = 60  # seconds for one answer or one order
REPEATS = 5  # in each round, of what takes less than a second
PACED, RATE = 500, 100  # orders whose latency is taken, orders a second
KEY = "123e4567-e89b-12d3-a456-426614174000"
VALUE = json.dumps({"order_id": KEY, "user": "john", "item": "burger", "quantity": 5})
NOTES = f"""
Medians (lowest to highest). The last column divides the first row of its section, ours, by the row. Rates are those of
whole processes, from start to end, whose output goes to a file.

- One order: from the start of a process to its last line, read from a pipe, PYTHONUNBUFFERED for all; on a topic that
  is there. The import prints nothing, and counts as a whole process.
- Producers: acks=all, one partition; idempotent, except kcat and where a row says so.
- Bare loops: confluent-kafka, the same lines. They check no order, handle neither signals nor outages, and flush at
  their end; with auto store an offset is stored before its order is printed. "10 ms": fetch.queue.backoff.ms as ours.
- next_steps.retries.tracker: the same lines, no order fails.
- kcat: C. Sends and prints ready bytes: no UUID, no JSON, no receipts; reads without a group.
- kafka-producer-perf-test: JVM. Random bytes of the size of key and value, no receipts. Batches of 100 kB.
- kafka-console-consumer: JVM. Prints bytes without parsing them; auto commit.
- aiokafka, kafka-python: as the bare loops with auto store. Batches of 100 kB, faster than their default.
- Latency: from before produce() in another process, linger.ms 0, to the line; {PACED} orders, {RATE} a second.
- Tracker first: it has made the topic and joins a new group; from an order's delivery report to its line.
- Memory: the most that was resident, the largest number of orders over the smallest.
"""
CLUSTER_FILE = ROOT / "next_steps" / "load_balancing" / "docker-compose.yml"
PARTITIONS, HANDLED = 6, 5_000  # of a topic that trackers share, and how many orders each of them handles
PAUSE = 0.02  # seconds from one order to the next in each partition, for trackers that take over
SCALE_NOTES = f"""
Medians (lowest to highest). The last column divides the first row of its section by the row. Three brokers on this one
machine, with the settings of {CLUSTER_FILE.relative_to(ROOT)}: each order is on all of them.

- Tracking: {PARTITIONS} partitions with orders for all, a handler that waits by time.sleep(0.001); while every tracker
  handles orders. Ideal would be to spend all the time in the handlers.
- Taking over: of three trackers, two partitions each and one order every {PAUSE} s in each of them, one gets a signal;
  until another one has printed an order of each partition that it had. session.timeout.ms is 10 s.
- A killed leader: from its end to the line of an order that was sent right after it, to the only partition. It is given
  up after broker.session.timeout.ms, 9 s; 2 to 4 s later where it was the active controller too.
- Cost: wall-clock time of a whole process, its lines thrown away, divided by its orders; one partition.
"""
SCHEMAS_FILE = ROOT / "next_steps" / "schemas" / "docker-compose.yml"
FORMATS = ("avro", "protobuf", "json-schema")
SCHEMAS_NOTES = """
Medians (lowest to highest). The last column divides the first row of its section, ours, by the row. Rates are those of
whole processes, from start to end, whose output goes to a file; one order is read from a pipe.

- Bare loops: confluent-kafka with its serializer or deserializer of the format, the same lines, fetch.queue.backoff.ms
  as ours. They check no order, handle neither signals nor outages, and store an offset before its order is printed.
- Its ProtobufDeserializer works without the registry here, as ours: with it, it can't read what Apicurio answers.
"""
PAGE = 50  # orders
HISTORY_NOTES = f"""
Medians (lowest to highest). The last column divides the first row of its section by the row.

- Storing: whole processes, from start to end, whose output goes to a file. The orders are of 1,000 users and 5 items,
  in one partition. The database is empty; the tables of the bare loop are there, those of the store it makes itself.
- Bare loop: confluent-kafka and the driver's executemany with ON CONFLICT DO NOTHING into the same table with the same
  indexes, a transaction for each list of up to 1,000 records, an offset stored after it. It checks nothing, keeps
  neither totals nor offsets in the database, and looks for no change of status.
- PostgreSQL: with the settings that it comes with, on this machine.
- Quiet: from an order's delivery report to the moment at which another connection sees its row.
- A page: {PAGE} orders, the newest first, by the query of `show` on a connection that is open. The last page is the one
  before the oldest order.
- Memory: the most that was resident. Rebuild: the whole process.
"""


# The commands that are compared, by the names of their rows; ours comes first.


@functools.cache
def source(function: Callable[..., None]) -> str:
    """Return a script that calls the function with its arguments."""
    return f"import json, sys, uuid\n{inspect.getsource(function)}\n{function.__name__}(*sys.argv[1:])"


def peer(function: Callable[..., None], *arguments: object) -> list[str]:
    """Return the command that calls the function in a process of its own."""
    return [sys.executable, "-c", source(function), *map(str, arguments)]


def ours(script: str, servers: str, topic: str, count: int, *options: str) -> list[str]:
    """Return the command for producer.py, tracker.py or a module of next_steps."""
    run = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    return [sys.executable, *run, "-b", servers, "-t", topic, "-c", str(count), *options]


def kafka_tool(arguments: str) -> list[str]:
    """Return the command for one of Kafka's own tools."""
    return [*java(VERSION), *f"org.apache.kafka.tools.{arguments}".split()]


def producers(servers: str, topic: str, count: int, lines: Path) -> dict[str, list[str]]:
    """Return the commands that send orders; kcat takes them from the lines."""
    perf = f"ProducerPerformance --bootstrap-server {servers} --topic {topic} --num-records {count} --throughput -1"
    perf += f" --record-size {len(KEY + VALUE)} --command-property acks=all enable.idempotence=true batch.size=100000"
    return {
        "producer.py": ours("producer.py", servers, topic, count),
        "bare loop": peer(peers.bare_producer, servers, topic, count, "enable.idempotence=true"),
        "bare loop, not idempotent": peer(peers.bare_producer, servers, topic, count),
        "kcat": [*f"kcat -P -b {servers} -t {topic} -K: -l".split(), str(lines)],
        "kafka-producer-perf-test": kafka_tool(perf),
        "aiokafka": peer(peers.aiokafka_producer, servers, topic, count),
        "kafka-python": peer(peers.kafka_python_producer, servers, topic, count),
    }


def trackers(servers: str, topic: str, count: int) -> dict[str, list[str]]:
    """Return the commands that read orders, each in a new group."""
    group = f"{RUN}-{uuid.uuid4().hex[:8]}"
    console = f"consumer.ConsoleConsumer --bootstrap-server {servers} --topic {topic} --from-beginning"
    retries = ["-g", f"{group}-9", "--handler", "tests.peers:show_order", "--dead-letters", f"{topic}.DLQ"]
    bare = peers.bare_tracker
    auto, each, ten = "enable.auto.offset.store=true", "enable.auto.offset.store=false", "fetch.queue.backoff.ms=10"
    return {
        "tracker.py": ours("tracker.py", servers, topic, count, "-g", f"{group}-1"),
        "next_steps.retries.tracker": ours("next_steps.retries.tracker", servers, topic, count, *retries),
        "bare loop, auto store": peer(bare, servers, topic, f"{group}-2", count, auto),
        "bare loop, auto store, 10 ms": peer(bare, servers, topic, f"{group}-3", count, auto, ten),
        "bare loop, store_offsets each": peer(bare, servers, topic, f"{group}-4", count, each),
        "bare loop, store_offsets each, 10 ms": peer(bare, servers, topic, f"{group}-5", count, each, ten),
        "kcat": f"kcat -C -b {servers} -t {topic} -o beginning -c {count} -q".split(),
        "kafka-console-consumer": kafka_tool(f"{console} --group {group}-6 --max-messages {count}"),
        "aiokafka": peer(peers.aiokafka_tracker, servers, topic, f"{group}-7", count),
        "kafka-python": peer(peers.kafka_python_tracker, servers, topic, f"{group}-8", count),
    }


@functools.cache
def absent() -> set[str]:
    """Return the names of the rows whose client is not installed."""
    has_java, module = not missing(), importlib.util.find_spec
    found: dict[str, object] = {
        "kcat": shutil.which("kcat"),
        "aiokafka": module("aiokafka"),
        "kafka-python": module("kafka"),
    }
    found |= {"kafka-producer-perf-test": has_java, "kafka-console-consumer": has_java}
    return {name for name, there in found.items() if not there}


# The measurements.


@contextlib.contextmanager
def running(
    command: list[str], stdout: int = subprocess.PIPE, stdin: int = subprocess.DEVNULL, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command, and after the block wait for its end; RuntimeError with its stderr where it failed."""
    with tempfile.TemporaryFile() as err:
        env = os.environ | {"PYTHONUNBUFFERED": ""} | env  # what the caller's shell says must not slow some down
        child = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=err, cwd=ROOT, env=env)
        try:
            yield child
            status = child.wait()
        finally:
            child.kill()
        err.seek(0)
        if status:
            raise RuntimeError(f"{command} ended with {status}: {err.read().decode(errors='replace')}")


def new_topic(servers: str, partitions: int = 1) -> str:
    """Return the name of a topic that is made for this run."""
    admin, topic = AdminClient({"bootstrap.servers": servers, "log_level": 2}), f"{RUN}-{uuid.uuid4().hex[:8]}"
    admin.create_topics([NewTopic(topic, partitions)])[topic].result(LIMIT)
    return topic


def rate(command: list[str], orders: int, lines: int) -> float:
    """Return how many orders a second the command had done from its start to its end; it has to print the lines."""
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        with running(command, out.fileno()):
            pass
        seconds = time.perf_counter() - start
        out.seek(0)
        assert sum(1 for _ in out) >= lines, f"{command} printed fewer than {lines} lines"
    return orders / seconds


def start_up(servers: str, topic: str, line: Path) -> Iterator[Row]:
    """Yield the times to the last line and to the end of a process that sends one order."""
    commands = producers(servers, topic, 1, line)
    commands = {name: commands[name] for name in ("producer.py", "bare loop", "bare loop, not idempotent", "kcat")}
    commands["`import confluent_kafka`"] = [sys.executable, "-c", "import confluent_kafka"]
    for name, command in commands.items():
        start = printed = time.perf_counter()
        if name not in absent():
            with running(command, PYTHONUNBUFFERED="1") as child:
                for _ in child.stdout or ():
                    printed = time.perf_counter()
        end = time.perf_counter()
        if name != "kcat":  # prints nothing, as the import does, which is a yardstick for both times
            yield "One order, start to delivered, ms", name, ((end if "import" in name else printed) - start) * 1000
        yield "One order, whole process, ms", name, None if name in absent() else (end - start) * 1000


def bulk(servers: str, tracked: str, orders: int, lines: Path) -> Iterator[Row]:
    """Yield the rates of producers and of trackers."""
    topic, silent = new_topic(servers), ("kcat", "kafka-producer-perf-test")
    for name, command in producers(servers, topic, orders, lines).items():
        figure = None if name in absent() else rate(command, orders, 0 if name in silent else orders)
        yield f"Producing {orders:,} orders, orders/s", name, figure
    end = Consumer({"bootstrap.servers": servers, "group.id": RUN}).get_watermark_offsets(TopicPartition(topic, 0))[1]
    expected = orders * len(producers(servers, topic, orders, lines).keys() - absent())
    assert end >= expected, f"{end} of {expected} orders arrived"
    for name, command in trackers(servers, tracked, orders).items():
        figure = None if name in absent() else rate(command, orders, orders)
        yield f"Tracking {orders:,} orders, orders/s", name, figure


def latencies(servers: str, topic: str, command: list[str], **env: str) -> list[float]:
    """Return the milliseconds from before produce() to the tracker's line, for PACED orders after a first one."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 0, "log_level": 2})
    arrivals: queue.SimpleQueue[float] = queue.SimpleQueue()

    def read(lines: IO[bytes]) -> None:
        for line in lines:
            if line.startswith(b"Message received"):
                arrivals.put(time.perf_counter())

    with running(command, **env) as child:
        threading.Thread(target=read, args=[child.stdout], daemon=True).start()
        producer.produce(topic, VALUE, KEY)
        producer.flush(LIMIT)
        arrivals.get(timeout=LIMIT)
        sent, start = [], time.perf_counter()
        for number in range(PACED):
            time.sleep(max(0, start + number / RATE - time.perf_counter()))
            sent.append(time.perf_counter())
            producer.produce(topic, VALUE, KEY)
            producer.poll(0)
        producer.flush(LIMIT)
        return [(arrivals.get(timeout=LIMIT) - moment) * 1000 for moment in sent]


def latency(servers: str) -> Iterator[Row]:
    """Yield two percentiles of the latency; a line of the bare loop is flushed by PYTHONUNBUFFERED."""
    for name, env in {"tracker.py": {}, "bare loop, auto store": {"PYTHONUNBUFFERED": "1"}}.items():
        topic = new_topic(servers)
        command = trackers(servers, topic, PACED + 1)[name]
        percentiles = statistics.quantiles(latencies(servers, topic, command, **env), n=100)
        yield "Latency, p50, ms", name, percentiles[49]
        yield "Latency, p99, ms", name, percentiles[98]


def tracker_first(servers: str, pause: int) -> Iterator[Row]:
    """Yield the time from delivery to line, of an order so many seconds after a tracker has made the topic."""
    topic, delivered = f"{RUN}-{uuid.uuid4().hex[:8]}", []
    producer = Producer({"bootstrap.servers": servers, "log_level": 2})
    with running(trackers(servers, topic, 1)["tracker.py"]) as child:
        child.stdout.readline()
        producer.list_topics(topic, LIMIT)
        time.sleep(pause)
        producer.produce(topic, VALUE, KEY, on_delivery=lambda *_: delivered.append(time.perf_counter()))
        producer.flush(LIMIT)
        child.stdout.readline()
        figure = (time.perf_counter() - delivered[0]) * 1000
    yield f"Tracker first, order {pause} s after its ready line, delivered to line, ms", "tracker.py", figure


def memory(servers: str, orders: int) -> Iterator[Row]:
    """Yield the peak memory of the pair with many orders and with few."""
    for count in (orders * 5, orders // 20 or 1):
        topic = new_topic(servers)
        for script in ("producer.py", "tracker.py"):
            options = ["-g", topic] if script == "tracker.py" else []
            with running(peer(peers.peak_memory, *ours(script, servers, topic, count, *options))) as child:
                yield f"Peak memory of {script}, MB", f"{count:,} orders", int(child.stdout.read()) / 1e6


# How it scales.


def shared_work(servers: str) -> Iterator[Row]:
    """Yield the rates of several trackers whose handler takes 1 ms, and their part of what is ideal."""
    topic, alone = new_topic(servers, PARTITIONS), 0.0
    with running(ours("next_steps.bulk.producer", servers, topic, 2 * PARTITIONS * HANDLED, "-q")):
        pass
    for count in (1, 2, 4, PARTITIONS):
        arguments = ["-b", servers, "-t", topic, "-g", f"{topic}-{count}", "-c", HANDLED]
        with contextlib.ExitStack() as files:
            outs = [files.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
            with contextlib.ExitStack() as trackers:
                for out in outs:
                    trackers.enter_context(running(peer(peers.waiting_tracker, *arguments), out.fileno()))
            handled = [list(handled_orders(out)) for out in outs]
        first, last = max(own[0][1] for own in handled), min(own[-1][1] for own in handled)
        together = [end - began for began, end in itertools.chain(*handled) if first < end <= last]
        rate = len(together) / (last - first)
        alone = alone or rate
        name = f"{count} tracker{'s' if count > 1 else ''}"
        yield "Tracking with a handler of 1 ms, orders/s", name, rate
        yield "Tracking, part of as many times what one tracker does", name, rate / count / alone
        yield "Tracking, part of the time that is spent in the handlers", name, sum(together) / (last - first) / count
        yield "What the handler takes, ms", name, statistics.mean(together) * 1000


def handled_orders(out: IO[bytes]) -> Iterator[tuple[float, float]]:
    """Yield when each order that a tracker handled began and ended."""
    out.seek(0)
    for line in out:
        if line.startswith(b"Handled"):
            _, began, end = line.split()
            yield float(began), float(end)


def take_over(servers: str, number: int) -> float:
    """Return the seconds from a signal to one of three trackers until the others printed orders of its partitions."""
    topic, done = new_topic(servers, PARTITIONS), threading.Event()
    lines: queue.SimpleQueue[tuple[float, int, int]] = queue.SimpleQueue()  # when, which tracker, which partition

    def read(tracker: int, out: IO[bytes]) -> None:
        for line in out:
            if line.startswith(b"Message received"):
                lines.put((time.perf_counter(), tracker, int(line.split()[-1])))

    def feed() -> None:
        producer = Producer({"bootstrap.servers": servers, "linger.ms": 0, "log_level": 2})
        while not done.wait(PAUSE):
            for partition in range(PARTITIONS):
                producer.produce(topic, VALUE.replace("john", str(partition)), KEY, partition)
            producer.poll(0)
        producer.flush(LIMIT)

    with contextlib.ExitStack() as stack:
        children = []
        for tracker in range(3):
            command = ours("tracker.py", servers, topic, sys.maxsize, "-g", topic)
            children.append(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT))
            stack.callback(children[-1].kill)
            threading.Thread(target=read, args=[tracker, children[-1].stdout], daemon=True).start()
        stack.callback(done.set)
        threading.Thread(target=feed, daemon=True).start()
        owners: dict[int, int] = {}
        settled = 0  # how many lines came since a partition went to another tracker
        while settled < 2 / PAUSE or len(set(owners.values())) < 3:
            _, tracker, partition = lines.get(timeout=LIMIT)
            settled = settled + 1 if owners.get(partition) == tracker else 0
            owners[partition] = tracker
        lost = {partition for partition, tracker in owners.items() if tracker == 0}
        time.sleep(random.random())  # noqa: S311 - heartbeats come once a second, and the signal at any time between
        signalled = time.perf_counter()
        children[0].send_signal(number)
        while lost:
            moment, tracker, partition = lines.get(timeout=LIMIT)
            if tracker != 0:
                lost.discard(partition)
        return moment - signalled


def taking_over(servers: str) -> Iterator[Row]:
    """Yield the times that other trackers take to replace one that stops, and one that is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        yield "One of three trackers ends, until others print its orders, s", number.name, take_over(servers, number)


def killed_leader(cluster: Cluster) -> Iterator[Row]:
    """Yield the time from the end of a partition's leader to the next confirmed order."""
    topic = new_topic(cluster.bootstrap)
    with running(
        ours("next_steps.bulk.producer", cluster.bootstrap, topic, 2, "-l", "-"), stdin=subprocess.PIPE
    ) as child:

        def confirm_an_order() -> None:
            child.stdin.write(f"{VALUE}\n".encode())
            child.stdin.flush()
            child.stdout.readline()

        confirm_an_order()
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 2})
        leader = cluster.brokers[admin.list_topics(topic, LIMIT).topics[topic].partitions[0].leader - 1]
        leader.kill()
        killed = time.perf_counter()
        confirm_an_order()
        yield "A leader is killed, until the next confirmed order, s", "SIGKILL", time.perf_counter() - killed
    leader.start()
    for each in admin.list_topics(timeout=LIMIT).topics:
        while any(len(p.isrs) < 3 for p in admin.list_topics(each, LIMIT).topics[each].partitions.values()):
            time.sleep(0.1)


def cost(servers: str, orders: int) -> Iterator[Row]:
    """Yield what an order costs producer and tracker, and their peak memory, with many orders and ten times as many."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    for count in (orders, orders * 10):
        topic = new_topic(servers)
        for script, options in (("producer.py", []), ("tracker.py", ["-g", topic])):
            start = time.perf_counter()
            with running(peer(peers.peak_memory, *ours(script, servers, topic, count, *options))) as child:
                memory = int(child.stdout.read()) / 1e6
            yield f"Cost of an order in {script}, µs", f"{count:,} orders", (time.perf_counter() - start) / count * 1e6
            yield f"Peak memory of {script}, MB", f"{count:,} orders", memory
        admin.delete_topics([topic])[topic].result(LIMIT)  # three times ten million orders are 6 GB


def table(figures: dict[str, dict[str, list[float | None]]], first_row: str) -> Iterator[str]:
    """Yield the lines of the Markdown table, with a name for the first row of each section."""
    yield from (f"| | figure | {first_row} ÷ this |", "|---|--:|--:|")
    for section, rows in figures.items():
        yield f"| **{section}** | | |"
        first = 0.0
        for name, values in rows.items():
            if known := [value for value in values if value is not None]:
                median = statistics.median(known)
                digits = 0 if median >= 1000 else 1 if median >= 10 else 2
                low, middle, high = (f"{value:,.{digits}f}" for value in (min(known), median, max(known)))
                yield f"| {name} | {middle} ({low} to {high}) | {f'{first / median:.2f}' if first else ''} |"
                first = first or median
            else:
                yield f"| {name} | not installed | |"


@contextlib.contextmanager
def comparison(folder: Path, orders: int) -> Iterator[Callable[[], Iterator[Row]]]:
    """Start a broker, and yield a function that measures the pair beside other clients once."""
    with contextlib.ExitStack() as stack:
        servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or stack.enter_context(Broker(folder / "broker")).bootstrap
        one, lines, tracked = folder / "one", folder / "lines", new_topic(servers)
        one.write_text(f"{KEY}:{VALUE}\n")
        lines.write_text(f"{KEY}:{VALUE}\n" * orders)
        rate(ours("producer.py", servers, tracked, orders), orders, orders)

        def measured() -> Iterator[Row]:
            for _ in range(REPEATS):
                yield from start_up(servers, tracked, one)
            yield from bulk(servers, tracked, orders, lines)
            yield from latency(servers)
            for _ in range(REPEATS):
                for pause in (0, 1):
                    yield from tracker_first(servers, pause)
            yield from memory(servers, orders)

        yield measured
        admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
        made = [topic for topic in admin.list_topics(timeout=LIMIT).topics if topic.startswith(RUN)]
        for deleted in admin.delete_topics(made).values():
            deleted.result(LIMIT)


@contextlib.contextmanager
def scale(folder: Path, orders: int) -> Iterator[Callable[[], Iterator[Row]]]:
    """Start three brokers, and yield a function that measures how the pair scales once."""
    with Cluster(folder, CLUSTER_FILE) as cluster:

        def measured() -> Iterator[Row]:
            yield from shared_work(cluster.bootstrap)
            yield from taking_over(cluster.bootstrap)
            yield from killed_leader(cluster)
            yield from cost(cluster.bootstrap, orders)

        yield measured


@contextlib.contextmanager
def schemas(folder: Path, orders: int) -> Iterator[Callable[[], Iterator[Row]]]:
    """Start a broker and a registry, and yield a function that measures each format once."""
    with Broker(folder / "broker") as broker, Registry(folder / "registry", SCHEMAS_FILE) as registry:
        servers = broker.bootstrap

        def measured() -> Iterator[Row]:
            for name in ("JSON", *FORMATS):
                topic, bare = new_topic(servers), new_topic(servers)  # each reads what it has written itself
                send, read = commands(servers, registry.url, name, orders, topic, bare)
                for what, pair in (("Producing", send), ("Tracking", read)):
                    for who, command in pair.items():
                        yield f"{what} {orders:,} orders as {name}, orders/s", who, rate(command, orders, orders)
                yield "Bytes of an order", name, len(last_value(servers, topic))
                for _ in range(REPEATS):
                    one, _ = commands(servers, registry.url, name, 1, topic, bare)
                    start = time.perf_counter()
                    with running(one["ours"], PYTHONUNBUFFERED="1") as child:
                        child.stdout.readline()
                        yield "One order, start to delivered, ms", name, (time.perf_counter() - start) * 1000

        rate(ours("producer.py", servers, new_topic(servers), orders), orders, orders)  # the broker compiles its code
        yield measured


@contextlib.contextmanager
def history(folder: Path, orders: int) -> Iterator[Callable[[], Iterator[Row]]]:
    """Start a broker and PostgreSQL, and yield a function that measures each database once."""
    from next_steps.history.database import address, connect, upgrade

    with Broker(folder / "broker") as broker, Postgres() as server:
        topic, few = new_topic(broker.bootstrap), orders // 20 or 1
        various(broker.bootstrap, topic, orders)
        rate(ours("tracker.py", broker.bootstrap, topic, orders, "-g", f"{topic}-warm"), orders, orders)

        def measured() -> Iterator[Row]:
            for kind in ("SQLite", "PostgreSQL"):
                url, bare = (new_database(kind, folder, server) for _ in range(2))
                upgrade(connect(address(bare)))
                group = f"{RUN}-{uuid.uuid4().hex[:8]}"
                commands = {
                    "next_steps.history.store": stores(broker.bootstrap, topic, orders, group, url),
                    "bare loop": peer(peers.bare_store, broker.bootstrap, topic, f"{group}-1", orders, bare),
                    "tracker.py": ours("tracker.py", broker.bootstrap, topic, orders, "-g", f"{group}-2"),
                }
                for name, command in commands.items():
                    yield f"Storing {orders:,} orders in {kind}, orders/s", name, rate(command, orders, 0)
                yield from pages(kind, url, orders)
                for count in (orders, few):
                    where = new_database(kind, folder, server)
                    command = stores(broker.bootstrap, topic, count, f"{group}-{count}", where)
                    with running(peer(peers.peak_memory, *command)) as child:
                        yield f"Peak memory of a store, {kind}, MB", f"{count:,} orders", int(child.stdout.read()) / 1e6
                start = time.perf_counter()
                with running(stores(broker.bootstrap, topic, orders, group, url, "--rebuild"), subprocess.DEVNULL):
                    pass
                yield f"Rebuild of {orders:,} orders, s", kind, time.perf_counter() - start
                for _ in range(REPEATS):
                    where = new_database(kind, folder, server)
                    yield "Quiet, delivered to row, ms", kind, visible(broker.bootstrap, where)

        yield measured


def stores(servers: str, topic: str, count: int, group: str, url: str, *options: str) -> list[str]:
    """Return the command for the store."""
    own = ["-g", group, "--status-topic", f"{topic}.status", "--dead-letters", f"{topic}.DLQ", "--database", url]
    return ours("next_steps.history.store", servers, topic, count, *own, *options)


def new_database(kind: str, folder: Path, server: Postgres) -> str:
    """Return the URL of an empty database."""
    return f"sqlite:///{folder / uuid.uuid4().hex}" if kind == "SQLite" else server.new_database()


def various(servers: str, topic: str, orders: int) -> None:
    """Send orders of many users and some items."""
    client = Producer({"bootstrap.servers": servers, "linger.ms": 20, "log_level": 2})
    items = ("burger", "pizza", "soup", "salad", "fries")
    for number in range(orders):
        order = {"order_id": str(uuid.uuid4()), "user": f"user{number % 1000}", "item": items[number % 7 % 5]}
        value = json.dumps(order | {"quantity": number % 9 + 1})
        while True:
            try:
                client.produce(topic, value, order["order_id"])
                break
            except BufferError:
                client.poll(0.1)
    assert client.flush(LIMIT) == 0


def pages(kind: str, url: str, orders: int) -> Iterator[Row]:
    """Yield how long the first page of a list takes, and the last one."""
    from next_steps.history import show
    from next_steps.history.database import address, connect
    from next_steps.history.tables import orders as table

    with connect(address(url), read_only=True).connect() as connection:
        for flags in (
            "",
            "--user user7",
            "--item soup",
            "--status placed",
            "--item soup --status placed",
            "--item soup --status cancelled",
        ):
            args = show.command_line().parse_args(["--limit", str(PAGE), *flags.split()])
            found = table.select().order_by("placed_at", "order_id").offset(PAGE).limit(1)
            for option in flags.split("--")[1:]:
                name, value = option.split()
                found = found.where(table.c["user_name" if name == "user" else name] == value)
            last = connection.execute(found).scalar()
            for which, after in (("first", None), ("last", last)):
                args.after = after
                for _ in range(REPEATS):
                    start = time.perf_counter()
                    rows = show.listed(connection, args)
                    took = (time.perf_counter() - start) * 1000
                    assert bool(rows) != ("cancelled" in flags)
                    yield f"A page out of {orders:,}, {kind}, ms", f"{which} {flags.replace('--', '')}".strip(), took


def visible(servers: str, url: str) -> float:
    """Return the milliseconds from the delivery of an order to its row, for a store that waits for one."""
    from next_steps.history.database import address, connect
    from next_steps.history.tables import orders as table

    topic, delivered = new_topic(servers), list[float]()
    client = Producer({"bootstrap.servers": servers, "linger.ms": 0, "log_level": 2})
    with running(stores(servers, topic, 2, topic, url)) as child:
        child.stdout.readline()
        client.produce(topic, VALUE, KEY)
        child.stdout.readline()
        with connect(address(url), read_only=True).connect() as connection:
            time.sleep(1)
            client.produce(
                topic,
                VALUE.replace(KEY, str(uuid.uuid4())),
                KEY,
                on_delivery=lambda *_: delivered.append(time.perf_counter()),
            )
            client.flush(LIMIT)
            while len(list(connection.execute(table.select()))) < 2:
                connection.rollback()
            return (time.perf_counter() - delivered[0]) * 1000


def commands(
    servers: str, url: str, name: str, count: int, topic: str, bare: str
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the commands that send orders in a format, ours and the bare loop, and those that read them."""
    if name == "JSON":
        step, flags = ["producer.py", "tracker.py"], []
        senders = peer(peers.bare_producer, servers, bare, count, "enable.idempotence=true")
        readers = peer(peers.bare_tracker, servers, bare, bare, count, "fetch.queue.backoff.ms=10")
    else:
        step, flags = ["next_steps.schemas.producer", "next_steps.schemas.tracker"], ["-r", url]
        senders = peer(peers.schema_producer, servers, url, name, bare, count)
        readers = peer(peers.schema_tracker, servers, url, name, bare, bare, count)
    send = ours(step[0], servers, topic, count, *flags, *(["--format", name] if flags else []))
    read = ours(step[1], servers, topic, count, *flags, "-g", topic)
    return {"ours": send, "bare loop": senders}, {"ours": read, "bare loop": readers}


def last_value(servers: str, topic: str) -> bytes:
    """Return the value of the last record in the only partition of a topic."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": RUN})
    end = consumer.get_watermark_offsets(TopicPartition(topic, 0), LIMIT)[1]
    consumer.assign([TopicPartition(topic, 0, end - 1)])
    value = consumer.poll(LIMIT).value()
    consumer.close()
    return value


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--scale", action="store_true", help="many trackers, three brokers, many orders")
    which.add_argument("--schemas", action="store_true", help="each format of next_steps/schemas")
    which.add_argument("--web", action="store_true", help="the page of next_steps/web")
    which.add_argument("--security", action="store_true", help="the broker of next_steps/security")
    which.add_argument("--history", action="store_true", help="each database of next_steps/history")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often everything is measured (5)")
    parser.add_argument("--orders", type=int, metavar="N", help="orders of a bulk (200000; for --scale a million)")
    args = parser.parse_args()
    own = args.scale or args.schemas or args.history or args.web or args.security
    if missing() and (own or not os.environ.get("KAFKA_BOOTSTRAP_SERVERS")):
        otherwise = "" if own else ", or set KAFKA_BOOTSTRAP_SERVERS"
        parser.exit(1, f"No broker can be started here. Install {missing()}{otherwise}\n")
    start, orders, first_row, notes = (comparison, 200_000, "ours", NOTES)
    if args.scale:
        start, orders, first_row, notes = (scale, 1_000_000, "first", SCALE_NOTES)
    if args.schemas:
        start, orders, first_row, notes = (schemas, 200_000, "first", SCHEMAS_NOTES)
    if args.history:
        start, orders, first_row, notes = (history, 300_000, "first", HISTORY_NOTES)
    if args.web:
        from benchmark_web import WEB_NOTES, web

        start, orders, first_row, notes = (web, 300_000, "first", WEB_NOTES)
    if args.security:
        from benchmark_security import SECURITY_NOTES, security

        start, orders, first_row, notes = (security, 200_000, "first", SECURITY_NOTES)
    figures: dict[str, dict[str, list[float | None]]] = {}
    with tempfile.TemporaryDirectory() as folder, start(Path(folder), args.orders or orders) as measured:
        for number in range(1, args.rounds + 1):
            for section, name, figure in measured():
                figures.setdefault(section, {}).setdefault(name, []).append(figure)
                print(f"{number}/{args.rounds} {section}: {name} {figure}", file=sys.stderr)
    versions = f"Python {platform.python_version()}, confluent-kafka {confluent_kafka.__version__}"
    brokers = "three brokers" if args.scale else "two brokers" if args.security else "one broker"
    print(f"{platform.platform()}, {os.cpu_count()} cores, {versions}, {args.rounds} rounds on {brokers}\n")
    print(*table(figures, first_row), notes, sep="\n", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
