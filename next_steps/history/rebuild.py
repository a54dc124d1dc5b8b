"""Make the tables anew from all that Kafka has, beside those that are there, and put them in their place at the end."""

import argparse
import contextlib
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import sqlalchemy as sa
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from sqlalchemy.exc import OperationalError, SQLAlchemyError

import tracker
from next_steps.history import offsets
from next_steps.history.database import VERSIONS, connect, ready, reason, transaction
from next_steps.history.tables import metadata, totals
from next_steps.retries.dlq import named

SCHEMA = "order_history_rebuild"  # where PostgreSQL has the new tables meanwhile; SQLite has a file of its own


class WholeLog(offsets.OwnOffsets):
    """A consumer that reads both topics from their start, beside the group and without a word to it."""

    def subscribe(self, topics: list[str], on_assign: object) -> None:
        """Take all partitions."""
        known = {topic: self._consumer.list_topics(topic, offsets.LIMIT).topics[topic].partitions for topic in topics}
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for topic in topics for p in known[topic]])

    def store_offsets(self, **_: object) -> None:
        """Leave the group where it is."""


def rebuild(
    consumer: Consumer, engine: sa.Engine, args: argparse.Namespace, stop: Sequence[object], keep: Callable[..., int]
) -> int:
    """Make the tables anew with `keep`, which fills them; return how many records could not be stored."""
    args.exit, args.count = True, None
    gone = no_longer_in_kafka(consumer, engine, args)
    tracker.show([f"Reading all of {args.topic} and {args.status_topic}. Until it is read the tables stay as they are"])
    fresh = anew(engine, args.database)
    try:
        ready(fresh, stop)
        left_out, swapped = 0, False
        while not stop and not swapped:
            left_out += keep(WholeLog(consumer), fresh, args, stop, leave_out)
            swapped = not stop and swap(engine, fresh, gone, args.skip_missing)  # else more has come meanwhile
    except SQLAlchemyError as error:
        sys.exit(f"The tables could not be made anew: {reason(error)}. They are as they were")
    finally:
        fresh.dispose()
        with contextlib.suppress(SQLAlchemyError):  # the next rebuild does it as well
            discard(engine, args.database)
    if stop:
        sys.exit("The tables were not made anew, as this was stopped: they are as they were")
    tracker.show(["The tables were made anew"])
    return left_out


def no_longer_in_kafka(consumer: Consumer, engine: sa.Engine, args: argparse.Namespace) -> set[offsets.Place]:
    """Return the partitions of which the tables have more than Kafka; SystemExit where that may not be lost."""
    gone = set()
    with transaction(engine) as connection:
        there = offsets.read(connection)
    for (topic, partition), offset in there.items():
        if topic not in (args.topic, args.status_topic):
            sys.exit(
                f"The tables have the records of {topic} too, and would lose them: name it with -t, --status-topic"
            )
        first, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), offsets.LIMIT)
        if not first and offset <= end:
            continue
        if not args.skip_missing:
            holds = f"{topic} [{partition}] holds {first} to {end} in Kafka, and the tables what came before {offset}"
            sys.exit(f"{holds}: they would lose some. Keep them, or accept that with --skip-missing")
        gone.add((topic, partition))
    return gone


def leave_out(msg: Message, error: Exception) -> None:
    """Say that a record isn't in the new tables; when it came, it became a dead letter."""
    print(f"{named(msg)} can't be stored: {reason(error)}. It is left out", file=sys.stderr)


def swap(engine: sa.Engine, fresh: sa.Engine, gone: set[offsets.Place], skip_missing: bool) -> bool:
    """Put the new tables into the place of the old ones; return False where it is too soon for that.

    The old ones have come further meanwhile, but for the partitions that are `gone`, or somebody reads them for long.
    """
    try:
        return swap_now(engine, fresh, gone, skip_missing)
    except OperationalError as error:
        print(f"The tables can't be put in place yet: {reason(error)}. Trying again", file=sys.stderr)
        return False


def swap_now(engine: sa.Engine, fresh: sa.Engine, gone: set[offsets.Place], skip_missing: bool) -> bool:
    """Do it in a transaction; SystemExit where the new tables lack orders that the old ones have."""
    number = sa.select(sa.func.coalesce(sa.func.sum(totals.c.orders), 0))
    with fresh.connect() as connection:
        now, new = offsets.read(connection), connection.execute(number).scalar_one()
    with engine.begin() as connection:
        before, old = offsets.read(connection), connection.execute(number).scalar_one()
        if new < old and not skip_missing:
            lose = (
                f"The new tables have {new} orders, and those that are there {old}, some of which Kafka no longer has"
            )
            sys.exit(f"{lose}. Keep them, or accept that with --skip-missing")
        if any(now.get(where, 0) < offset for where, offset in before.items() if where not in gone):
            return False
        if engine.dialect.name == "postgresql":
            own = connection.scalar(sa.select(sa.func.current_schema()))
            for table in (*metadata.tables, VERSIONS):
                connection.exec_driver_sql(f'DROP TABLE "{table}"')
                connection.exec_driver_sql(f'ALTER TABLE {SCHEMA}."{table}" SET SCHEMA "{own}"')
            return True
    # A store that writes between that look and this copy finds its rows gone, and writes them again within a second.
    with contextlib.closing(fresh.raw_connection()) as source, contextlib.closing(engine.raw_connection()) as target:
        cast(sqlite3.Connection, source.driver_connection).backup(cast(sqlite3.Connection, target.driver_connection))
    return True


def anew(engine: sa.Engine, database: sa.URL) -> sa.Engine:
    """Return what connects to a place for the new tables, which is empty."""
    discard(engine, database)
    if engine.dialect.name == "sqlite":
        return connect(database.set(database=beside(database)))
    with transaction(engine) as connection:
        connection.execute(sa.schema.CreateSchema(SCHEMA))
    return connect(database, schema=SCHEMA)


def beside(database: sa.URL) -> str:
    """Return the name of SQLite's file for the new tables."""
    return f"{database.database}-rebuild"


def discard(engine: sa.Engine, database: sa.URL) -> None:
    """Delete new tables that were not finished."""
    if engine.dialect.name == "postgresql":
        with transaction(engine) as connection:
            connection.execute(sa.schema.DropSchema(SCHEMA, cascade=True, if_exists=True))
    else:
        for end in ("", "-wal", "-shm"):
            Path(beside(database) + end).unlink(missing_ok=True)
