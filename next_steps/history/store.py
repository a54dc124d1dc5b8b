"""Keep what happens to every order in a database: orders, and the changes of their status, each counted once.

    python -m next_steps.history.store                      into the file orders.db, until Ctrl-C, or with -e the end
    python -m next_steps.history.store --database @FILE     into the database whose URL the file holds
    python -m next_steps.history.store --rebuild            everything anew from Kafka, while readers read on

The other flags are those of tracker.py. Each list of records is a transaction, with the offsets behind it.
Exit status: 0 stopped or done, 1 a record became a dead letter, or Kafka or the database can't be used, 2 wrong usage.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import sqlalchemy as sa
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from sqlalchemy.exc import SQLAlchemyError

import tracker
from next_steps.history.database import (
    ADVICE,
    AWAY,
    add_database,
    connect,
    is_refusal,
    ready,
    reason,
    take_samples,
    transaction,
)
from next_steps.history.life import Row, change_row, order_row
from next_steps.history.offsets import LostPlaceError, OwnOffsets, Place, check, check_database, move, place, take_up
from next_steps.history.rebuild import rebuild
from next_steps.history.rows import write
from next_steps.retries.dlq import dead_letter, make_dlq_producer, named

GROUP = "order-history"
WAIT, MAX_WAIT = 0.5, 5.0  # seconds until the database is asked again: at first, and at most
CHECK = 1  # seconds between two looks at the database's offsets while nothing comes
GiveUp = Callable[[Message, Exception], None]


def run(consumer: Consumer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Store what both topics hold; return how many records could not be."""
    status_topic = argparse.Namespace(**{**vars(args), "topic": args.status_topic})
    tracker.wait_for_topic(consumer, status_topic, ["no answer came"], stop)
    engine = connect(args.database)
    ready(engine, stop)
    if args.rebuild:
        return rebuild(consumer, engine, args, stop, keep)
    dlq_producer = make_dlq_producer(args, args.dead_letters, stop)
    tracker.show([f"Consumer is running & subscribed to {args.topic} and {args.status_topic} topics"])
    try:
        return keep(cast(Consumer, OwnOffsets(consumer)), engine, args, stop, partial(bury, dlq_producer, args))
    except SQLAlchemyError as error:
        sys.exit(f"The database {engine.url} can't be used: {reason(error)}. {ADVICE}")


def keep(consumer: Consumer, engine: sa.Engine, args: Any, stop: Sequence[object], give_up: GiveUp) -> int:
    """Store what both topics hold until follow() ends; return how many records were given up."""
    known: dict[Place, int] = {}  # of each partition that is ours, the offset that the database comes to next
    again: set[TopicPartition] = set()  # those that come to their end once more
    given_up, left, grown = 0, args.count or sys.maxsize, False
    wait = due = look = 0.0
    for records in tracker.follow(consumer, [args.topic, args.status_topic], None, args.exit, stop, again):
        again.clear()
        if time.monotonic() < due:
            again.update(put_off(consumer))
            continue
        try:
            moved = take_up(consumer, engine, known, args.skip_missing)
            again.update(TopicPartition(*where) for where in moved)
            batch = [msg for msg in records if place(msg) in known and place(msg) not in moved][:left]
            check(consumer, known, batch)
            if batch:
                given_up += save(engine, known, args.topic, batch, give_up)
                grown = True
            elif time.monotonic() > look:
                check_database(engine, known)
                look = time.monotonic() + CHECK
                if grown and engine.dialect.name == "sqlite":  # PostgreSQL does it by itself
                    take_samples(engine)
                    grown = False
        except LostPlaceError:
            known.clear()
        except (KafkaException, *AWAY) as error:
            if not wait:
                who = "Kafka" if isinstance(error, KafkaException) else "The database"
                print(f"{who} does not serve: {reason(error)}. Going on once it does", file=sys.stderr)
            wait = min(MAX_WAIT, wait * 2 or WAIT)
            due = time.monotonic() + wait
            known.clear()
            again.update(put_off(consumer))
        else:
            wait = 0.0
            tracker.store(consumer, batch)
            left -= len(batch)
            if not left:
                break
    return given_up


def put_off(consumer: Consumer) -> list[TopicPartition]:
    """Let all partitions wait, and return them; take_up() goes back to where the database is."""
    partitions = consumer.assignment()
    with contextlib.suppress(KafkaException):  # another store has one of them now
        consumer.pause(partitions)
    return partitions


def save(
    engine: sa.Engine, known: dict[Place, int], topic: str, batch: Sequence[Message], give_up: GiveUp, no: Any = None
) -> int:
    """Write the records with the offsets behind them; return how many were given up, each of them alone.

    `no` is why the database can't have the only one.
    """
    rows: dict[bool, list[Row]] = {True: [], False: []}
    bad: list[tuple[Message, Exception]] = []
    for msg in batch:
        is_order = msg.topic() == topic
        try:
            if (msg.offset() or 0) >= known[place(msg)]:  # else the database has it
                rows[is_order].append(order_row(msg) if is_order else change_row(msg))
        except ValueError as error:
            bad.append((msg, error))
    if no:
        rows, bad = {True: [], False: []}, [(batch[0], no)]
    ends = {place(msg): max(known[place(msg)], (msg.offset() or 0) + 1) for msg in batch}
    try:
        with transaction(engine) as connection:
            move(connection, known, ends)
            new = write(connection, rows[True], rows[False])
            for each in bad:  # at the end, as what fails before comes again
                give_up(*each)
    except Exception as error:
        if not is_refusal(error):
            raise
        half = len(batch) // 2
        if not half:
            return save(engine, known, topic, batch, give_up, error)
        return sum(save(engine, known, topic, part, give_up) for part in (batch[:half], batch[half:]))
    known.update(ends)
    if any(new.values()):
        tracker.show([f"Stored {', '.join(f'{what}: {number}' for what, number in new.items() if number)}"])
    return len(bad)


def bury(dlq_producer: Producer, args: argparse.Namespace, msg: Message, error: Exception) -> None:
    """Make a dead letter of the record."""
    letter = dead_letter(dlq_producer, args, msg, error, 1)
    see = f"See it: python -m next_steps.retries.dead_letters -t {args.dead_letters}"
    print(
        f"{named(msg)} can't be stored: {reason(error)}. It became the dead letter {named(letter)}. {see}",
        file=sys.stderr,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Store what the command line says; return the exit status, SystemExit says what is wrong."""
    tracker.CONFIG["group.id"] = GROUP
    parser = tracker.command_line()
    parser.description = __doc__
    parser.set_defaults(properties=["enable.partition.eof=true"])  # a rebuild ends at the end
    add = parser.add_argument
    add_database(parser)
    add("--status-topic", default="order-status", metavar="TOPIC", help="where the changes of status are (%(default)s)")
    add("--dead-letters", default="orders.DLQ", metavar="TOPIC", help="the topic of dead letters (%(default)s)")
    add("--rebuild", action="store_true", help="make the tables anew from all that Kafka has")
    add("--skip-missing", action="store_true", help="go on where Kafka has deleted what comes next")
    return tracker.main(argv, parser, run)


if __name__ == "__main__":
    sys.exit(main())
