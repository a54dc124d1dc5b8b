"""next_steps/history: the tables say what both topics hold, each order once, whatever happens meanwhile."""

import contextlib
import csv
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import test_compose
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from broker import COMPOSE_FILE, ROOT, free_port
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from conftest import (
    INTERRUPT,
    UUID,
    committed,
    create_topic,
    examples,
    freeze,
    needs_postgres,
    posix,
    put,
    records,
    thaw,
    wait_until,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres import Postgres

import producer
from next_steps.history import database as db
from next_steps.history import rebuild, show
from next_steps.history.life import CHANGES, NEXT, change_row, objection
from next_steps.history.offsets import LostPlaceError, OwnOffsets, check, take_up
from next_steps.history.records import save
from next_steps.history.rows import upsert, write
from next_steps.history.tables import metadata

STEP = ROOT / "next_steps" / "history"
README = (STEP / "README.md").read_text("utf-8")
needs_clients = pytest.mark.skipif(
    not (shutil.which("sqlite3") and shutil.which("psql")), reason="apt-get install sqlite3 postgresql-client"
)
own_servers = pytest.mark.xdist_group("history with servers of its own")  # beside the others
FLOW_LIMIT = 120  # seconds for what a fault may delay
PASSWORD, WRONG = "s3cret", "wr0ng"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(scope="module")
def server():
    """A real PostgreSQL; the tests have databases of their own in it."""
    with Postgres() as server:
        yield server


both = ["sqlite", pytest.param("postgresql", marks=needs_postgres)]


@pytest.fixture(params=both)
def database(request, tmp_path):
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'orders.db'}"
    return request.getfixturevalue("server").new_database()


@pytest.fixture
def store(start, bootstrap, topic, database):
    """A function that starts the store with this test's broker, topics, group and database; flags given win."""
    return partial(start, *store_command(bootstrap, topic, database))


def store_command(bootstrap, topic, database):
    topics = ["-t", topic, "--status-topic", f"{topic}-status", "--dead-letters", f"{topic}-DLQ", "-g", topic]
    return [sys.executable, "-m", "next_steps.history.store", "-b", bootstrap, *topics, "--database", database]


def select(database, text, **values):
    """Return the rows that a query finds, as a program of anyone's would see them."""
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sa.text(text), values)]
    engine.dispose()
    return found


def tables(database):
    """Return all that the tables say, but for how far they are."""
    return {
        name: sorted(select(database, f"SELECT * FROM {name}"), key=repr)  # noqa: S608
        for name in ("orders", "status_changes", "totals")
    }


def order(user="john", item="burger", quantity=5, **further):
    return producer.new_order(user, item, quantity) | further


def change(order_id, status, by="ana", seconds=0):
    at = datetime(2026, 11, 27, tzinfo=timezone.utc) + timedelta(seconds=seconds)
    return {"order_id": order_id, "status": status, "at": at.isoformat(), "by": by}


def feed(bootstrap, topic, *events, partition=-1):
    """Send orders and changes to the topics of a test, each by its key."""
    client = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    for event in events:
        where = f"{topic}-status" if "status" in event else topic
        client.produce(where, producer.to_json(event), event["order_id"], partition=partition)
    assert client.flush(60) == 0


def statuses(database):
    return dict(select(database, "SELECT order_id, status FROM orders"))


def outcomes(database, order_id):
    query = "SELECT status, outcome, reason FROM status_changes WHERE order_id = :id ORDER BY log_offset"
    return select(database, query, id=order_id)


def assert_consistent(database, bootstrap, topic):
    """Ask what has to be true of the tables and of Kafka at any time at which the store has ended."""
    counted = "SELECT item, status, count(*), sum(quantity) FROM orders GROUP BY item, status"
    assert sorted(select(database, "SELECT item, status, orders, quantity FROM totals")) == sorted(
        select(database, counted)
    )
    there = select(database, "SELECT topic, partition, next_offset FROM offsets")
    assert there
    assert {(where, p): offset for where, p, offset in there} == {
        (where, p): committed(bootstrap, topic, where, p) for where, p, _ in there
    }


# What an order becomes.


def test_an_order_has_a_life(store, bootstrap, topic, database):
    one, other = order(), order("ana", "pizza", 2)
    feed(bootstrap, topic, one, other)
    feed(bootstrap, topic, *[change(one["order_id"], s) for s in ("accepted", "preparing", "delivered")])
    feed(bootstrap, topic, change(other["order_id"], "cancelled"), change(other["order_id"], "accepted"))
    storing = store("-e")
    assert storing.wait() == 0, storing
    assert storing.out[0] == f"Consumer is running & subscribed to {topic} and {topic}-status topics"
    assert statuses(database) == {one["order_id"]: "delivered", other["order_id"]: "cancelled"}
    assert outcomes(database, other["order_id"]) == [
        ("cancelled", "applied", None),
        ("accepted", "refused", "it was cancelled already"),
    ]
    assert sorted(select(database, "SELECT * FROM totals")) == [
        ("burger", "delivered", 1, 5),
        ("pizza", "cancelled", 1, 2),
    ]
    assert_consistent(database, bootstrap, topic)


def test_a_status_waits_for_its_order(store, bootstrap, topic, database):
    one = order()
    feed(bootstrap, topic, change(one["order_id"], "accepted"), change(one["order_id"], "delivered", "bob"))
    create_topic(bootstrap, topic)
    assert store("-e").wait() == 0
    assert [outcome for _, outcome, _ in outcomes(database, one["order_id"])] == ["waiting", "waiting"]
    feed(bootstrap, topic, one)
    storing = store("-e")
    assert (storing.wait(), storing.out[1:]) == (0, ["Stored orders: 1"])
    assert statuses(database) == {one["order_id"]: "accepted"}
    reason = "it was accepted, and the next is preparing or cancelled"
    assert outcomes(database, one["order_id"]) == [("accepted", "applied", None), ("delivered", "refused", reason)]
    assert_consistent(database, bootstrap, topic)


def test_what_was_sent_twice_counts_once(store, bootstrap, topic, database):
    one = order()
    events = [one, change(one["order_id"], "accepted"), one, change(one["order_id"], "accepted")]
    feed(bootstrap, topic, *events, *events)
    assert store("-e").wait() == 0
    feed(bootstrap, topic, *events)
    assert store("-e").wait() == 0
    assert statuses(database) == {one["order_id"]: "accepted"}
    assert outcomes(database, one["order_id"]) == [("accepted", "applied", None)]
    assert select(database, "SELECT * FROM totals") == [("burger", "accepted", 1, 5)]


def test_further_fields_are_kept(store, bootstrap, topic, database):
    feed(bootstrap, topic, order(note="no onions", table=7))
    assert store("-e").wait() == 0
    ((further,),) = select(database, "SELECT further FROM orders")
    assert json.loads(further) == {"note": "no onions", "table": 7}


@pytest.mark.parametrize("status", NEXT)
@pytest.mark.parametrize("new", CHANGES)
def test_the_rules(status, new):
    line = ["placed", "accepted", "preparing", "delivered"]
    possible = line[line.index(status) + 1 :][:1] if status in line else []
    if status in line[:-1]:
        possible.append("cancelled")
    assert (objection(status, new) is None) == (new in possible)


def row_of_order(order_id, offset, item="burger"):
    at = datetime(2026, 11, 27, tzinfo=timezone.utc)
    names = {
        "order_id": order_id,
        "user_name": "john",
        "item": item,
        "quantity": 5,
        "further": None,
        "status": "placed",
    }
    return names | {"placed_at": at, "changed_at": at, "log_partition": 0, "log_offset": offset}


def row_of_change(order_id, status, second, by, offset):
    at = datetime(2026, 11, 27, tzinfo=timezone.utc) + timedelta(seconds=second)
    facts = {"order_id": order_id, "status": status, "changed_at": at, "changed_by": by, "outcome": "waiting"}
    return facts | {"reason": None, "log_partition": 0, "log_offset": offset}


events_of_a_life = st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 3), st.sampled_from("ab")), max_size=8)


@settings(max_examples=150, deadline=None)
@given(events_of_a_life, st.integers(1, 3), st.data())
def test_any_sequence_and_repetition_leaves_the_same_rows(life, copies, data):
    """The records of an order keep their places in the log, and come in any sequence, any number of times."""
    log = [
        row_of_order("id", place, item) for place, item in zip(range(copies), ("burger", "pizza", "soup"), strict=False)
    ]
    log += [row_of_change("id", status, second, by, place) for place, (status, second, by) in enumerate(life)]
    expected = stored([log])
    arrivals = data.draw(st.permutations(log)) + data.draw(st.lists(st.sampled_from(log), max_size=8))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arrivals)), max_size=4)))
    batches = [arrivals[a:b] for a, b in zip([0, *cuts], [*cuts, len(arrivals)], strict=True)]
    assert stored(batches) == expected


def stored(batches):
    """Return what the tables say after each of the batches was written in a transaction of its own."""
    engine = sa.create_engine("sqlite://")
    metadata.create_all(engine)
    for batch in batches:
        with engine.begin() as connection:
            orders, changes = ([row for row in batch if ("changed_by" in row) == kind] for kind in (False, True))
            write(connection, orders, changes)
    with engine.connect() as connection:
        names = ("orders", "status_changes", "totals")
        return {name: sorted(map(repr, connection.execute(sa.select(metadata.tables[name])))) for name in names}


# What a record that can't be stored does: nothing to the others.


def test_a_record_that_the_database_does_not_take_becomes_a_dead_letter_alone(store, bootstrap, topic, database):
    good = [order(f"user{n}") for n in range(40)]
    odd = {
        "no JSON": b"\xff",
        "no order": b'{"order_id": 1}',
        "a tombstone": None,
        "too large a number": producer.to_json(order("large") | {"quantity": 2**31}),
        "far too large a number": producer.to_json(order("larger") | {"quantity": 2**70}),
        "half a letter": producer.to_json(order("x")).replace(b'"x"', b'"\\ud800"'),
    }
    if database.startswith("postgresql"):
        odd["no letter"] = producer.to_json(order("x")).replace(b'"x"', b'"\\u0000"')
    values = [producer.to_json(each) for each in good]
    for place, value in enumerate(odd.values()):
        values.insert(5 * place + 3, value)
    put(bootstrap, topic, *values)
    put(bootstrap, f"{topic}-status", b"[]", producer.to_json(change(good[0]["order_id"], "eaten")))
    feed(bootstrap, topic, change(good[0]["order_id"], "accepted"))
    storing = store("-e")
    assert storing.wait() == 1, storing
    assert len(storing.err) == len(odd) + 2, storing
    letters = records(bootstrap, f"{topic}-DLQ")
    status_letters = [b"[]", producer.to_json(change(good[0]["order_id"], "eaten"))]
    assert Counter(letter.value() for letter in letters) == Counter([*odd.values(), *status_letters])
    assert statuses(database) == {each["order_id"]: "placed" for each in good} | {good[0]["order_id"]: "accepted"}
    for line in storing.err:
        assert re.fullmatch(rf"{topic}(-status)? \[0\] @ \d+ can't be stored: .+\. It became the dead letter .+", line)
    assert_consistent(database, bootstrap, topic)
    assert store("-e").wait() == 0


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "a change must be a JSON object"),
        (b'{"order_id": "x"}', "order_id must be a UUID"),
        ({"status": "placed"}, "status must be one of accepted"),
        ({"status": ["accepted"]}, "status must be one of accepted"),
        ({"by": ""}, "by must be non-empty text"),
        ({"at": "yesterday"}, "at must be a time such as"),
        ({"at": "2026-11-27T18:30:00"}, "at must be a time such as"),
        ({"at": 5}, "at must be a time such as"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "at must be a time such as"),
    ],
)
def test_what_is_no_change_says_why(value, why):
    class Record:
        def value(self):
            valid = change(str(uuid.uuid4()), "accepted")
            return value if isinstance(value, bytes) else json.dumps(valid | value).encode()

    with pytest.raises(ValueError, match=why):
        change_row(Record())


def test_nothing_in_a_record_drives_the_terminal(store, start, bootstrap, topic, database):
    feed(bootstrap, topic, order("\x1b[2J‮", "=1+1", 1))
    put(bootstrap, topic, b"\x1b[2J")
    storing = store("-e")
    assert storing.wait() == 1
    showing = start(sys.executable, "-m", "next_steps.history.show", "--database", database)
    assert showing.wait() == 0
    assert r"\x1b[2J\u202e" in showing.out[2]
    assert all(line.isprintable() for process in (storing, showing) for line in process.out + process.err)


# What fails meanwhile.


class Life:
    """Orders and changes of their status that are sent while stores run, and what has to come of them."""

    def __init__(self, bootstrap, topic, orders, partitions=3):
        self.bootstrap, self.topic = bootstrap, topic
        for name in (topic, f"{topic}-status"):
            create_topic(bootstrap, name, partitions)
        self.orders = [order(f"user{n % 50}", f"item{n % 5}", n % 9 + 1) for n in range(orders)]
        self.expected = {each["order_id"]: "placed" for each in self.orders}
        self.changes = []
        rng = random.Random(topic)  # noqa: S311
        for each in self.orders:  # two changes each, of which some are impossible
            for second, status in enumerate(rng.choices(CHANGES, [6, 2, 1, 1], k=2)):
                if not objection(self.expected[each["order_id"]], status):
                    self.expected[each["order_id"]] = status
                self.changes.append(change(each["order_id"], status, "ana", second))

    def send(self, part=slice(None)):
        """Send the orders, or a part of them, and their changes, the two topics at once, some records twice."""
        orders = self.orders[part]
        ids = {each["order_id"] for each in orders}
        changes = [each for each in self.changes if each["order_id"] in ids]
        mixed = []
        for a, b, c in zip(orders, changes[::2], changes[1::2], strict=True):
            mixed += [b, a, c] if len(mixed) % 2 else [a, b, c]
        feed(self.bootstrap, self.topic, *mixed, *orders[:50])

    def assert_stored(self, database):
        self.assert_rows(database)
        assert_consistent(database, self.bootstrap, self.topic)

    def assert_rows(self, database):
        assert statuses(database) == self.expected
        counted = dict(select(database, "SELECT outcome, count(*) FROM status_changes GROUP BY outcome"))
        assert counted.pop("waiting", 0) == 0
        assert sum(counted.values()) == len(self.changes)


@pytest.fixture
def life(bootstrap, topic):
    return partial(Life, bootstrap, topic)


def wait_for_rows(database, count, limit=FLOW_LIMIT):
    """Return once the database has so many orders; it may be away meanwhile, or have no tables yet."""

    def stored():
        try:
            return select(database, "SELECT count(*) FROM orders")[0][0] >= count
        except sa.exc.DBAPIError:
            return False

    wait_until(stored, f"{count} orders in the database", limit)


@posix
@own_servers
@pytest.mark.timeout(400)
def test_kill_9_loses_and_repeats_nothing(store, life, database, bootstrap, topic):
    """Twenty times at random, while orders and their changes flow."""
    flow = life(50_000)
    rng = random.Random(7)  # noqa: S311
    for turn in range(20):
        flow.send(slice(turn * 2_500, (turn + 1) * 2_500))
        storing = store("-X", "group.instance.id=one")  # who comes back by this name has its partitions at once
        storing.wait_for("Stored")
        time.sleep(rng.uniform(0, 0.6))
        storing.popen.kill()
        storing.wait()
    assert store("-e", "-X", "group.instance.id=one").wait(FLOW_LIMIT) == 0
    flow.assert_stored(database)


@needs_postgres
@posix
@own_servers
@pytest.mark.timeout(300)
def test_postgresql_may_stop_die_and_freeze(start, bootstrap, topic, tmp_path, life):
    """The store waits inside its group, says so once each time, and goes on; its connections may be ended, too."""
    flow = life(20_000)
    with Postgres() as server:
        database = server.new_database()
        storing = start(*store_command(bootstrap, topic, database))
        storing.wait_for("Consumer is running")
        faults = [server.stop, server.kill, server.freeze]
        for turn, fault in enumerate(faults):
            flow.send(slice(turn * 5_000, (turn + 1) * 5_000))
            wait_for_rows(database, turn * 5_000 + 500)
            fault()
            storing.wait_for("The database does not serve", times=turn + 1, err=True, limit=FLOW_LIMIT)
            if turn == 2:
                server.thaw()
            else:
                server.start()
            wait_for_rows(database, (turn + 1) * 5_000)
        flow.send(slice(15_000, None))
        for _ in range(20):
            select(
                database, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
            time.sleep(0.05)
        wait_for_rows(database, 20_000)
        wait_until(lambda: statuses(database) == flow.expected, storing)
        assert storing.stop() == 0
        flow.assert_stored(database)
        assert all(line.startswith("The database does not serve: ") for line in storing.err), storing


def test_sqlite_may_be_locked(start, bootstrap, topic, tmp_path):
    database = f"sqlite:///{tmp_path / 'orders.db'}"
    storing = start(*store_command(bootstrap, topic, database))
    storing.wait_for("Consumer is running")
    first, second = order("first"), order("second")
    feed(bootstrap, topic, first)
    wait_for_rows(database, 1)
    with sqlite3.connect(tmp_path / "orders.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        feed(bootstrap, topic, second)
        storing.wait_for("The database does not serve: database is locked. Going on once it does", err=True)
        other.execute("ROLLBACK")
    wait_for_rows(database, 2)
    assert (storing.stop(), len(storing.err)) == (0, 1), storing
    assert_consistent(database, bootstrap, topic)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a small disk is made by root, on Linux")
@pytest.mark.parametrize("kind", both)
def test_the_disk_may_be_full(start, bootstrap, topic, kind, life):
    disk = Path(tempfile.mkdtemp())  # not in a folder of pytest, which PostgreSQL's user may not look into
    size = "4m" if kind == "sqlite" else "120m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    filler = disk / "filler"
    try:
        with contextlib.ExitStack() as stack:
            database = f"sqlite:///{disk / 'orders.db'}"
            if kind == "postgresql":
                database = stack.enter_context(Postgres(disk)).new_database()
            flow = life(10_000)
            storing = start(*store_command(bootstrap, topic, database))
            flow.send(slice(0, 100))
            wait_for_rows(database, 100)
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            flow.send(slice(100, None))
            storing.wait_for("The database does not serve", err=True)
            assert storing.popen.poll() is None
            filler.unlink()
            if kind == "sqlite":
                subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
            wait_until(lambda: statuses(database) == flow.expected, storing, FLOW_LIMIT)
            assert storing.stop() == 0
            flow.assert_stored(database)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
        disk.rmdir()


@posix
@own_servers
@pytest.mark.timeout(300)
def test_two_stores_share_and_a_third_is_frozen_past_its_session(store, life, database, bootstrap, topic):
    """What the frozen one still has in hand, it can't write over what the others have written meanwhile."""
    flow = life(12_000)
    stores = [store() for _ in range(3)]
    for storing in stores:
        storing.wait_for("Consumer is running")
    for part in itertools.count():  # until each has its share
        flow.send(slice(part * 100, part * 100 + 100))
        wait_for_rows(database, part * 100 + 100)
        if all("Stored" in str(storing.out) for storing in stores):
            break
    freeze(stores[2].popen)
    flow.send(slice(part * 100 + 100, None))
    try:
        wait_until(lambda: statuses(database) == flow.expected, stores, FLOW_LIMIT)
    finally:
        thaw(stores[2].popen)
    feed(bootstrap, topic, *[order("afterwards") for _ in range(1_000)])
    wait_for_rows(database, 13_000)
    for storing in stores:
        assert storing.stop() == 0, storing
    flow.expected |= dict.fromkeys(statuses(database).keys() - flow.expected.keys(), "placed")
    flow.assert_stored(database)


def test_who_was_overtaken_writes_nothing(bootstrap, topic, database):
    """A store whose partition another one has taken on from where it was still has the records in its hands."""
    feed(bootstrap, topic, *[order() for _ in range(4)])
    batch = records(bootstrap, topic)
    engine = db.connect(db.address(database))
    db.upgrade(engine)
    with engine.begin() as connection:
        upsert(connection, metadata.tables["offsets"], [{"topic": topic, "partition": 0, "next_offset": 0}])
    slow, quick = {(topic, 0): 0}, {(topic, 0): 0}
    save(engine, quick, topic, batch[:2], give_up=None)
    with pytest.raises(LostPlaceError):
        save(engine, slow, topic, batch[:1], give_up=None)
    with pytest.raises(LostPlaceError):
        save(engine, slow, topic, batch, give_up=None)
    assert len(statuses(database)) == 2
    assert select(database, "SELECT next_offset FROM offsets") == [(2,)]
    save(engine, quick, topic, batch, give_up=None)
    assert len(statuses(database)) == 4
    engine.dispose()


def test_sqlite_takes_samples_once_it_is_quiet(start, bootstrap, topic, tmp_path):
    database = f"sqlite:///{tmp_path / 'orders.db'}"
    storing = start(*store_command(bootstrap, topic, database))
    feed(bootstrap, topic, order())
    wait_for_rows(database, 1)
    wait_until(lambda: select(database, "SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'"), storing)
    assert storing.stop() == 0


@needs_postgres
def test_a_database_may_have_no_encoding(server, start, bootstrap, topic):
    """PostgreSQL makes such a one where the system has no locale."""
    database = server.new_database("ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    feed(bootstrap, topic, order("José 寿司"))
    assert start(*store_command(bootstrap, topic, database), "-e").wait() == 0
    showing = start(sys.executable, "-m", "next_steps.history.show", "--database", database, "--json")
    assert showing.wait() == 0
    assert json.loads(showing.out[0])["user_name"] == "José 寿司"


@needs_postgres
@posix
def test_a_frozen_database_keeps_nobody_from_stopping(start, bootstrap, topic, tmp_path):
    with Postgres() as server:
        storing = start(*store_command(bootstrap, topic, server.new_database()))
        storing.wait_for("Consumer is running")
        server.freeze()
        try:
            feed(bootstrap, topic, order())
            time.sleep(1)  # it waits for an answer now
            assert storing.stop(limit=FLOW_LIMIT) == 0
        finally:
            server.thaw()


# Where the database is, and where Kafka is.


def test_a_new_database_begins_at_the_start_whatever_the_group_has_read(start, bootstrap, topic, database, tmp_path):
    sent = [order() for _ in range(20)]
    feed(bootstrap, topic, *sent)
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    assert start(*store_command(bootstrap, topic, elsewhere), "-e").wait() == 0
    assert committed(bootstrap, topic, topic) == 20
    assert start(*store_command(bootstrap, topic, database), "-e").wait() == 0
    assert statuses(database).keys() == {each["order_id"] for each in sent}
    assert_consistent(database, bootstrap, topic)


@pytest.mark.parametrize("running", [False, True])
def test_a_backup_is_noticed_and_brought_up_to_date(start, bootstrap, topic, tmp_path, running):
    """At the start as well as under a store that waits for records."""
    file = tmp_path / "orders.db"
    store = partial(start, *store_command(bootstrap, topic, f"sqlite:///{file}"))
    sent = [order() for _ in range(20)]
    feed(bootstrap, topic, *sent[:10])
    assert store("-e").wait() == 0
    backup = file.read_bytes()
    feed(bootstrap, topic, *sent[10:])
    if running:
        storing = store()
        storing.wait_for("Stored orders")
        (tmp_path / "backup.db").write_bytes(backup)
        with sqlite3.connect(tmp_path / "backup.db") as source, sqlite3.connect(file) as target:
            source.backup(target)
        assert len(statuses(f"sqlite:///{file}")) == 10
        wait_for_rows(f"sqlite:///{file}", 20)
        assert storing.stop() == 0
    else:
        assert store("-e").wait() == 0
        file.write_bytes(backup)
        assert store("-e").wait() == 0
    assert len(statuses(f"sqlite:///{file}")) == 20
    assert_consistent(f"sqlite:///{file}", bootstrap, topic)


def delete_records(bootstrap, topic, before):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for done in admin.delete_records([TopicPartition(topic, 0, before)]).values():
        done.result(30)


def test_a_hole_is_never_left_silently(store, bootstrap, topic, database):
    feed(bootstrap, topic, *[order() for _ in range(10)])
    assert store("-e").wait() == 0
    feed(bootstrap, topic, *[order() for _ in range(10)])
    delete_records(bootstrap, topic, 15)
    stopped = store("-e")
    assert stopped.wait() == 1
    hole = f"{topic} [0] holds 15 to 20 in Kafka, and the database comes to 10 next: there would be a hole. "
    assert stopped.err == [hole + "Bring back a newer backup, or accept it with --skip-missing"]
    assert len(statuses(database)) == 10
    accepted = store("-e", "--skip-missing")
    assert accepted.wait() == 0
    assert accepted.err == [f"{topic} [0] begins at 15: what was before is no longer in Kafka"]
    assert len(statuses(database)) == 15
    assert_consistent(database, bootstrap, topic)


def topic_id(admin, topic):
    """Return what tells a topic from another one of the same name, None where there is none."""
    with contextlib.suppress(KafkaException):
        return str(admin.describe_topics(TopicCollection([topic]))[topic].result(30).topic_id)


def test_a_topic_that_was_made_anew_is_noticed(store, bootstrap, topic, database):
    feed(bootstrap, topic, *[order() for _ in range(10)])
    assert store("-e").wait() == 0
    admin = AdminClient({"bootstrap.servers": bootstrap})
    before = topic_id(admin, topic)
    admin.delete_topics([topic])[topic].result(30)

    def made_anew():
        with contextlib.suppress(KafkaException):  # a client that still knows the topic may have made it
            admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
        return topic_id(admin, topic) not in (None, before)

    wait_until(made_anew, "the topic")
    feed(bootstrap, topic, order())
    stopped = store("-e")
    assert stopped.wait() == 1
    assert f"{topic} [0] holds 0 to 1 in Kafka, and the database comes to 10 next" in stopped.err[-1]
    refused = store("--rebuild")
    assert refused.wait() == 1
    assert "they would lose some. Keep them" in refused.err[-1]
    assert store("-e", "--skip-missing").wait() == 0
    assert len(statuses(database)) == 11
    refused = store("--rebuild")
    assert refused.wait() == 1
    assert "The new tables have 1 orders, and those that are there 11" in refused.err[-1]
    assert len(statuses(database)) == 11
    assert store("--rebuild", "--skip-missing").wait() == 0
    assert len(statuses(database)) == 1


def test_records_that_are_gone_while_it_waits_are_a_hole_too(start, bootstrap, topic, tmp_path):
    """The log's start moves past a store that a lock keeps waiting."""
    database = f"sqlite:///{tmp_path / 'orders.db'}"
    storing = start(*store_command(bootstrap, topic, database))
    feed(bootstrap, topic, order())
    wait_for_rows(database, 1)
    with sqlite3.connect(tmp_path / "orders.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        feed(bootstrap, topic, *[order() for _ in range(9)])
        storing.wait_for("database is locked", err=True)
        delete_records(bootstrap, topic, 5)
        other.execute("ROLLBACK")
    assert storing.wait() == 1
    assert "there would be a hole" in storing.err[-1]


def test_a_gap_is_a_hole_only_where_kafka_dropped_what_comes_next(bootstrap, topic):
    """A gap that compaction or a transaction leaves is none."""
    feed(bootstrap, topic, *[order() for _ in range(10)])
    delete_records(bootstrap, topic, 5)
    batch = records(bootstrap, topic)
    consumer = OwnOffsets(Consumer({"bootstrap.servers": bootstrap, "group.id": topic}))
    for known in (5, 6, 10):
        check(consumer, {(topic, 0): known}, batch[1:])
    for known in (4, 11):
        with pytest.raises(LostPlaceError):
            check(consumer, {(topic, 0): known}, batch)
    consumer.close()


class TooSoon(OwnOffsets):
    """A consumer that is asked to seek before librdkafka has begun with the partition, as it may be on any start."""

    sought = 0

    def seek(self, where):
        self.sought += 1
        if self.sought == 1:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self._consumer.seek(where)


def test_a_partition_that_can_not_be_sought_in_yet_is_taken_up_the_next_time(bootstrap, topic, tmp_path):
    """A slow machine looks while librdkafka still asks how far the group was."""
    feed(bootstrap, topic, *[order() for _ in range(3)])
    engine = db.connect(sa.make_url(f"sqlite:///{tmp_path / 'orders.db'}"))
    db.ready(engine, [])
    consumer = TooSoon(Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "enable.auto.offset.store": False}))
    known = {}
    consumer.assign([TopicPartition(topic, 0)])
    assert take_up(consumer, engine, known, False) == [TopicPartition(topic, 0)]
    assert not known
    wait_until(lambda: take_up(consumer, engine, known, False) and known, "the partition")
    assert known == {(topic, 0): 0}
    assert wait_until(lambda: consumer.poll(1), "the first record").offset() == 0
    consumer.close()
    engine.dispose()


def test_c_stops_after_so_many_records(store, bootstrap, topic, database):
    feed(bootstrap, topic, *[order() for _ in range(10)])
    assert store("-c", "4").wait() == 0
    assert len(statuses(database)) == 4
    assert_consistent(database, bootstrap, topic)
    assert store("-c", "6").wait() == 0
    assert len(statuses(database)) == 10


@posix
def test_a_group_that_another_database_has_led_on_leaves_no_hole(start, store, bootstrap, topic, database, tmp_path):
    """Two stores of one group, each with a database of its own, is a mistake that costs nothing."""
    elsewhere = store_command(bootstrap, topic, f"sqlite:///{tmp_path / 'elsewhere.db'}")
    storing = store()
    feed(bootstrap, topic, order())
    storing.wait_for("Stored")
    freeze(storing.popen)
    try:
        feed(bootstrap, topic, *[order() for _ in range(10)])
        assert start(*elsewhere, "-c", "11").wait() == 0
        assert committed(bootstrap, topic, topic) == 11
    finally:
        thaw(storing.popen)
    feed(bootstrap, topic, order())
    wait_for_rows(database, 12)
    assert storing.stop() == 0


# A rebuild.


def test_a_rebuild_gives_the_same_rows(store, life, database):
    flow = life(2_000)
    flow.send()
    assert store("-e").wait() == 0
    before = tables(database)
    select_and_change(database, "DELETE FROM status_changes")
    select_and_change(database, "UPDATE orders SET status = 'placed', item = 'wrong'")
    rebuilding = store("--rebuild")
    assert rebuilding.wait() == 0, rebuilding
    assert rebuilding.out[-1] == "The tables were made anew"
    assert tables(database) == before
    assert store("-e").wait() == 0
    flow.assert_stored(database)


def select_and_change(database, text):
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.text(text))
    engine.dispose()


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, INTERRUPT])
def test_a_rebuild_that_ends_early_leaves_the_tables_as_they_were(store, life, database, number):
    flow = life(20_000)
    flow.send(slice(0, 100))
    assert store("-e").wait() == 0
    before = tables(database)
    flow.send(slice(100, None))
    rebuilding = store("--rebuild")
    rebuilding.wait_for("Stored")
    rebuilding.stop(number)
    assert rebuilding.popen.returncode in (1, -signal.SIGKILL)
    assert tables(database) == before
    assert store("--rebuild").wait(FLOW_LIMIT) == 0
    flow.assert_rows(database)


def test_readers_and_stores_go_on_during_a_rebuild(store, life, database, bootstrap, topic):
    flow = life(20_000)
    flow.send(slice(0, 10_000))
    storing = store()
    wait_for_rows(database, 10_000)
    rebuilding = store("--rebuild")
    rebuilding.wait_for("Reading all of")
    seen = []
    flow.send(slice(10_000, None))
    while rebuilding.popen.poll() is None:
        seen.append(select(database, "SELECT count(*) FROM orders")[0][0])
    assert rebuilding.wait() == 0, rebuilding
    assert min(seen) >= 10_000
    assert database.startswith("sqlite") or seen == sorted(seen)
    wait_until(lambda: statuses(database) == flow.expected, storing, FLOW_LIMIT)
    assert storing.stop() == 0
    flow.assert_stored(database)


@needs_postgres
def test_a_rebuild_waits_for_a_reader_and_says_what_is_in_its_way(server, start, bootstrap, topic):
    database = server.new_database()
    store = partial(start, *store_command(bootstrap, topic, database))
    feed(bootstrap, topic, order())
    assert store("-e").wait() == 0
    engine = sa.create_engine(database)
    with engine.connect() as reader:
        reader.execute(sa.text("SELECT * FROM orders"))
        rebuilding = store("--rebuild")
        rebuilding.wait_for("The tables can't be put in place yet: canceling statement due to lock timeout", err=True)
    assert rebuilding.wait() == 0, rebuilding
    engine.dispose()
    select_and_change(database, "CREATE VIEW burgers AS SELECT * FROM orders WHERE item = 'burger'")
    refused = store("--rebuild")
    assert refused.wait() == 1
    assert "depends on" in refused.err[-1]
    assert "They are as they were" in refused.err[-1]
    assert len(select(database, "SELECT * FROM burgers")) == 1


def test_new_tables_that_are_behind_are_not_put_in_place(database):
    url = db.address(database)
    engine = db.connect(url)
    db.upgrade(engine)
    fresh = rebuild.anew(engine, url)
    db.upgrade(fresh)
    for where, offset in ((engine, 5), (fresh, 4)):
        with where.begin() as connection:
            upsert(connection, metadata.tables["offsets"], [{"topic": "t", "partition": 0, "next_offset": offset}])
    assert rebuild.swap(engine, fresh, set(), skip_missing=False) is False
    assert select(database, "SELECT next_offset FROM offsets") == [(5,)]
    assert rebuild.swap(engine, fresh, {("t", 0)}, skip_missing=True) is True
    assert select(database, "SELECT next_offset FROM offsets") == [(4,)]
    fresh.dispose()
    engine.dispose()


def test_a_rebuild_that_would_lose_rows_is_refused(store, bootstrap, topic, database):
    feed(bootstrap, topic, *[order() for _ in range(10)])
    assert store("-e").wait() == 0
    delete_records(bootstrap, topic, 5)
    refused = store("--rebuild")
    assert refused.wait() == 1
    assert "they would lose some. Keep them, or accept that with --skip-missing" in refused.err[-1]
    other = store("--rebuild", "-t", f"{topic}-status", "--status-topic", f"{topic}-DLQ")
    assert other.wait() == 1
    assert f"The tables have the records of {topic} too" in other.err[-1]
    assert len(statuses(database)) == 10
    assert store("--rebuild", "--skip-missing").wait() == 0
    assert len(statuses(database)) == 5


# Versions of the tables.


def test_the_migrations_make_the_tables_of_the_code(database):
    engine = db.connect(db.address(f"{database}"))
    db.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": db.VERSIONS, "compare_type": True})
        assert compare_metadata(context, metadata) == []
        names = {constraint["name"] for constraint in sa.inspect(connection).get_check_constraints("orders")}
        names |= {sa.inspect(connection).get_pk_constraint(table)["name"] for table in metadata.tables}
    assert names == {"ck_orders_quantity", *(f"pk_{table}" for table in metadata.tables)}
    engine.dispose()


MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("orders") as batch:
        batch.add_column(sa.Column("note", sa.Text))
        batch.create_check_constraint(op.f("ck_orders_note"), "note <> ''")
"""


def test_an_older_database_is_upgraded_and_a_newer_one_refused(start, store, bootstrap, topic, database, tmp_path):
    """As it is for who adds a migration, in a copy of the project, and then starts the code of before once more."""
    feed(bootstrap, topic, *[order() for _ in range(5)])
    assert store("-e").wait() == 0
    copy = project(tmp_path / "copy")
    (copy / "next_steps" / "history" / "migrations" / "versions" / "0002_note.py").write_text(MIGRATION)
    newer = start(*store_command(bootstrap, topic, database), "-e", cwd=copy)
    assert (newer.wait(), newer.err) == (0, ["Upgrading the tables of the database from version 0001 to 0002"])
    assert select(database, "SELECT count(*), count(note) FROM orders") == [(5, 0)]
    with pytest.raises(sa.exc.IntegrityError, match="ck_orders_note"):
        select_and_change(database, "UPDATE orders SET note = ''")
    refused = store("-e")
    refusal = "The database has tables of version 0002, which is newer than this code's 0001. Update it"
    assert (refused.wait(), refused.err) == (1, [refusal])
    showing = start(sys.executable, "-m", "next_steps.history.show", "--database", database)
    assert showing.wait() == 1
    assert "0002" in showing.err[-1]


def test_the_command_that_writes_a_migration(start, store, database, tmp_path):
    """As alembic.ini gives it, after a column was added to the code."""
    assert store("-e").wait() == 0
    copy = project(tmp_path / "copy")
    code = copy / "next_steps" / "history" / "tables.py"
    code.write_text(
        code.read_text("utf-8").replace('Column("item", Name', 'Column("note", Text), Column("item", Name', 1), "utf-8"
    )
    (command,) = re.findall("^#   (alembic .*)", (STEP / "alembic.ini").read_text("utf-8"), re.MULTILINE)
    command = shlex.split(command.replace("sqlite:///orders.db", database))
    assert start(sys.executable, "-m", *command, cwd=copy).wait() == 0
    versions = (copy / "next_steps" / "history" / "migrations" / "versions").glob("*.py")
    (written,) = [file for file in versions if not file.name.startswith("0001")]
    assert "add_column(sa.Column('note', sa.Text(), nullable=True))" in written.read_text("utf-8")
    newer = store("-e", cwd=copy)
    assert newer.wait() == 0, newer
    assert select(database, "SELECT note FROM orders") == []


def test_two_stores_that_start_at_once_make_the_tables_once(store, database):
    stores = [store("-e") for _ in range(4)]
    assert [storing.wait() for storing in stores] == [0] * 4, stores


def test_tables_of_somebody_else_are_left_alone(store, database):
    select_and_change(database, "CREATE TABLE orders (mine text)")
    refused = store("-e")
    assert refused.wait() == 1
    assert len(refused.err) == 1
    assert "orders" in refused.err[0]
    assert "already exists" in refused.err[0]
    assert select(database, "SELECT * FROM orders") == []


def project(folder):
    """Return a copy of what users have, and not of what has come to be beside it."""
    ignored = shutil.ignore_patterns("__pycache__", ".*", "tests", "*.db*")
    return shutil.copytree(ROOT, folder, ignore=ignored)


# What people bring.


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://me:s3cret@localhost/orders", "a URL shows its password"),
        ("postgresql://me@localhost/orders?password=s3cret", "a URL shows its password"),
        ("postgresql:/me:s3cret@localhost/orders", "that is no URL such as sqlite:///orders.db"),
        ("mysql://localhost/orders", "'mysql' is neither sqlite nor postgresql+psycopg"),
        ("orders.db", "that is no URL such as sqlite:///orders.db, nor @FILE with one"),
        ("sqlite://", "a history in memory would be lost"),
        ("sqlite:///:memory:", "a history in memory would be lost"),
        ("@no-such-file", "No such file or directory"),
        ("", "that is no URL such as sqlite:///orders.db, nor @FILE with one"),
    ],
)
@pytest.mark.parametrize("command", ["store", "show"])
def test_a_database_that_can_not_be_one_is_wrong_usage(start, url, why, command):
    refused = start(sys.executable, "-m", f"next_steps.history.{command}", "--database", url)
    assert refused.wait() == 2
    assert why in refused.err[-1]
    assert not any("s3cret" in line for line in refused.err)


@needs_postgres
def test_a_password_comes_from_a_file_and_is_not_shown(start, bootstrap, topic, tmp_path):
    with Postgres() as server:
        url = sa.make_url(server.new_database())
        select_and_change(url, "ALTER ROLE CURRENT_USER PASSWORD 's3cret'")
        access = server.data / "pg_hba.conf"
        access.write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        server.stop()
        server.start()
        file, passwords = tmp_path / "orders.url", tmp_path / "pgpass"
        file.write_text(url.set(password=PASSWORD).render_as_string(hide_password=False) + "\n")
        assert start(*store_command(bootstrap, topic, f"@{file}"), "-e").wait() == 0
        passwords.write_text("*:*:*:*:s3cret\n")
        passwords.chmod(0o600)
        command = store_command(bootstrap, topic, url.render_as_string())
        assert start(*command, "-e", env={"PGPASSFILE": str(passwords)}).wait() == 0
        file.write_text(url.set(password=WRONG).render_as_string(hide_password=False))
        refused = start(*store_command(bootstrap, topic, f"@{file}"), "-e")
        assert refused.wait() == 1
        assert "password authentication failed" in refused.err[-1]
        assert not any("wr0ng" in line for line in refused.err)


def test_a_database_that_is_away_at_the_start_ends_the_store_within_some_seconds(start, bootstrap, topic):
    away = f"postgresql://127.0.0.1:{free_port()}/orders"
    refused = start(*store_command(bootstrap, topic, away))
    assert refused.wait(25) == 1
    assert len(refused.err) == 1
    assert "did not serve within 10 s: connection failed" in refused.err[0]


def test_a_change_is_sent_by_hand(start, store, bootstrap, topic, database):
    one = order()
    feed(bootstrap, topic, one)
    command = [sys.executable, "-m", "next_steps.history.change", "-b", bootstrap, "-t", f"{topic}-status"]
    sending = start(*command, one["order_id"], "accepted", "--by", "José")
    assert sending.wait() == 0, sending
    sent = json.loads(sending.out[0].removeprefix("Message delivered "))
    assert sent == {"order_id": one["order_id"], "status": "accepted", "at": sent["at"], "by": "José"}
    assert [record.key().decode() for record in records(bootstrap, f"{topic}-status")] == [one["order_id"]]
    assert store("-e").wait() == 0
    assert statuses(database) == {one["order_id"]: "accepted"}
    for wrong in (
        ["x", "accepted", "--by", "a"],
        [one["order_id"], "placed", "--by", "a"],
        [one["order_id"], "accepted"],
    ):
        assert start(*command, *wrong).wait() == 2
    assert start(*command, one["order_id"], "accepted", "--by", "").wait() == 2


# What is shown.


@pytest.fixture
def shown(start, database):
    """A function that returns what `show` prints for these flags."""

    def run(*flags, status=0):
        showing = start(sys.executable, "-m", "next_steps.history.show", "--database", database, *flags)
        assert showing.wait() == status, showing
        return showing.out if status == 0 else showing.err

    return run


def test_the_list_is_filtered_and_paged(store, shown, bootstrap, topic, database):
    users, items = ("ana", "bob"), ("burger", "pizza", "soup")
    sent = [order(users[n % 2], items[n % 3], n + 1) for n in range(30)]
    feed(bootstrap, topic, *sent, *[change(each["order_id"], "accepted") for each in sent[:10]])
    assert store("-e").wait() == 0

    def listed(*flags):
        return [json.loads(line) for line in shown("--json", *flags)]

    everything = listed("--limit", "100")
    assert {row["order_id"] for row in everything} == {each["order_id"] for each in sent}
    assert everything == sorted(everything, key=lambda row: (row["placed_at"], row["order_id"]), reverse=True)
    for flags, test in {
        ("--user", "ana"): lambda row: row["user_name"] == "ana",
        ("--item", "soup", "--user", "bob"): lambda row: (row["item"], row["user_name"]) == ("soup", "bob"),
        ("--status", "accepted"): lambda row: row["status"] == "accepted",
        ("--order-id", sent[3]["order_id"]): lambda row: row["order_id"] == sent[3]["order_id"],
        ("--since", everything[7]["placed_at"]): lambda row: row["placed_at"] >= everything[7]["placed_at"],
        ("--until", everything[7]["placed_at"]): lambda row: row["placed_at"] < everything[7]["placed_at"],
    }.items():
        assert listed("--limit", "100", *flags) == [row for row in everything if test(row)], flags
    pages = [listed("--limit", "7")]
    while len(pages[-1]) == 7:
        pages.append(listed("--limit", "7", "--after", pages[-1][-1]["order_id"]))
    assert [row for page in pages for row in page] == everything
    assert shown("--limit", "1")[2].split()[1] == everything[0]["order_id"]
    assert shown("--after", str(uuid.uuid4()), status=1)[0].startswith("There is no order")


def test_totals_and_stories(store, shown, bootstrap, topic, database):
    one = order("ana", "pizza", 2) | {"note": "hot"}
    feed(
        bootstrap,
        topic,
        one,
        order(),
        change(one["order_id"], "accepted"),
        change(one["order_id"], "accepted", "bob", 1),
    )
    assert store("-e").wait() == 0
    assert shown("--totals", "--csv") == ["item,status,orders,quantity", "burger,placed,1,5", "pizza,accepted,1,2"]
    told = [json.loads(line) for line in shown("--story", one["order_id"], "--json")]
    assert [(event["status"], event["by"], event["outcome"], event["note"]) for event in told] == [
        ("placed", "ana", "applied", '2 pizza {"note": "hot"}'),
        ("accepted", "ana", "applied", ""),
        ("accepted", "bob", "refused", "it was accepted already"),
    ]
    assert shown("--story", str(uuid.uuid4()), status=1)[0].startswith("Nothing is known of order")


def test_csv_opens_in_a_spreadsheet_without_a_formula(store, shown, bootstrap, topic, database):
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "a,b", 'a"b', "a\nb", "寿司"]
    feed(bootstrap, topic, *[order(name, name, 1) for name in names])
    assert store("-e").wait() == 0
    header, *rows = csv.reader(io.StringIO("\n".join(shown("--csv"))))
    assert len(rows) == len(names)
    assert not any(cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\uff1d") for row in rows for cell in row)
    cells = {row[header.index("item")].removeprefix("'") for row in rows}
    assert cells == {name.replace("\t", r"\t").replace("\r", r"\r").replace("\n", r"\n") for name in names}


def test_show_makes_no_database(start, tmp_path):
    showing = start(sys.executable, "-m", "next_steps.history.show", "--database", f"sqlite:///{tmp_path / 'none.db'}")
    assert showing.wait() == 1
    assert "Start the store, or check --database" in showing.err[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("filters", [{}, {"user": "u1"}, {"item": "i1"}, {"status": "placed"}])
def test_a_page_is_found_by_an_index(database, filters):
    """Neither sorted nor counted off: the first page and the last one are as quick."""
    engine = db.connect(db.address(database))
    db.upgrade(engine)
    args = show.command_line().parse_args([])
    vars(args).update(filters)
    with engine.connect() as connection:
        rows = [row_of_order(str(uuid.uuid4()), n, f"i{n % 3}") | {"user_name": f"u{n % 7}"} for n in range(3_000)]
        write(connection, rows, [])
        args.after = rows[9]["order_id"]
        if database.startswith("postgresql"):
            connection.exec_driver_sql("ANALYZE")
            connection.exec_driver_sql("SET enable_seqscan = off")
        plans = []

        @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
        def explained(connection, cursor, statement, parameters, context, executemany):
            plain = "EXPLAIN QUERY PLAN " if database.startswith("sqlite") else "EXPLAIN "
            if statement.startswith("SELECT orders.placed_at, orders.order_id") and "EXPLAIN" not in statement:
                plans.append(list(connection.exec_driver_sql(plain + statement, parameters)))
            return statement, parameters

        assert show.listed(connection, args)
    plan = str(plans)
    assert "ix_orders_" in plan
    assert "TEMP B-TREE" not in plan
    assert "Sort" not in plan
    engine.dispose()


# The README.


@needs_clients
def test_the_readme_word_by_word(new_broker, start, tmp_path):
    folder = project(tmp_path / "copy")
    environment = {"KAFKA_BOOTSTRAP_SERVERS": new_broker().bootstrap}
    commands = examples("", README)
    (installing, _), (storing_command, stored), *others = commands
    assert installing == "pip install -r next_steps/history/requirements.txt"
    storing = start(sys.executable, *shlex.split(storing_command)[1:], cwd=folder, env=environment)
    storing.wait_for("Consumer is running")
    ids, sent_so_far = {}, 0
    for command, lines in others:
        command = re.sub(UUID, lambda match: ids.get(match[0], match[0]), command)
        done = start(sys.executable, *shlex.split(command)[1:], cwd=folder, env=environment)
        assert done.wait() == 0, done
        if "producer.py" in command:
            documented, sent = (re.search(UUID, line)[0] for line in (lines[0], done.out[0]))
            ids[documented] = sent
        assert [plain(line) for line in done.out] == [plain(line) for line in lines]
        if "Message delivered" in done.out[0]:
            sent_so_far += 1
            storing.wait_for("Stored", times=sent_so_far)
    assert storing.stop() == 0
    assert (storing.out, storing.err) == (stored, [])
    (query,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    asked = subprocess.run(["sqlite3", folder / "orders.db", query], capture_output=True, text=True, check=True)
    assert asked.stdout == "burger|1|5\n"


def plain(line):
    return re.sub(TIME, "TIME", re.sub(UUID, "UUID", line))


@needs_postgres
@needs_clients
def test_psql_reads_the_tables_by_the_query_of_the_readme(server, start, bootstrap, topic):
    database = server.new_database()
    one = order()
    feed(bootstrap, topic, one, order("ana", "pizza", 2), change(one["order_id"], "cancelled"))
    assert start(*store_command(bootstrap, topic, database), "-e").wait() == 0
    (query,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    url = database.replace("postgresql+psycopg", "postgresql")
    asked = subprocess.run(["psql", "-At", url, "-c", query], capture_output=True, text=True, check=True)
    assert asked.stdout == "pizza|1|2\n"


@pytest.mark.xdist_group("history in Docker")
@pytest.mark.timeout(600)
@test_compose.needs_compose
def test_docker(start, topic, tmp_path):
    """PostgreSQL runs in a Docker engine, keeps the history, and is unhealthy where it doesn't answer."""
    broker, port = free_port(), free_port()
    files = [tmp_path / "docker-compose.yml", tmp_path / "postgres.yml"]
    for file, original in zip(files, (COMPOSE_FILE, STEP / "docker-compose.yml"), strict=True):
        text = re.sub(r"\b9092\b", str(broker), original.read_text("utf-8"))
        file.write_text(text.replace("127.0.0.1:5432:", f"127.0.0.1:{port}:"))
    servers = f"localhost:{broker}"
    url = tmp_path / "orders.url"

    def shown():
        showing = start(sys.executable, "-m", "next_steps.history.show", "--database", f"@{url}", "--totals", "--csv")
        assert showing.wait() == 0, showing
        return showing.out[1:]

    with test_compose.running(test_compose.COMMANDS[0], *files) as project:
        url.write_text(f"postgresql://orders:{project.variables['POSTGRES_PASSWORD']}@localhost:{port}/orders")
        published = test_compose.run("docker", "port", project.container("postgres"))
        assert published == f"5432/tcp -> 127.0.0.1:{port}"
        assert start(sys.executable, "producer.py", "-b", servers, "-t", topic).wait() == 0
        assert start(*store_command(servers, topic, f"@{url}"), "-e").wait() == 0
        assert shown() == ["burger,placed,1,5"]
        inside = ["docker", "run", "--rm", "--network", f"{project.name}_default", "--entrypoint", "pg_isready"]
        image = project.variables["POSTGRES_IMAGE"]
        assert test_compose.run(*inside, image, "-h", "postgres") == "postgres:5432 - accepting connections"
        project.down()
        project.up()
        assert shown() == ["burger,placed,1,5"]
        project.freeze_until_noticed("postgres")
        with pytest.raises(AssertionError, match="POSTGRES_PASSWORD"):
            project.compose("up", "-d", POSTGRES_PASSWORD="")


def test_the_readme_names_every_flag_and_is_short():
    flags = {flag for action in show.command_line()._actions for flag in action.option_strings} - {"-h", "--help"}
    assert flags <= set(re.findall(r"--[a-z-]+", README))
    assert len(README.splitlines()) <= 130
