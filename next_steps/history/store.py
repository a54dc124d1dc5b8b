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
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import sqlalchemy as sa
from confluent_kafka import Consumer, KafkaException, TopicPartition
from sqlalchemy.exc import SQLAlchemyError

import tracker
from next_steps.history.database import ADVICE, AWAY, add_database, connect, ready, reason
from next_steps.history.offsets import LostPlaceError, OwnOffsets, Place, Quiet, check, place, take_up
from next_steps.history.rebuild import rebuild
from next_steps.history.records import GiveUp, bury, save
from next_steps.retries.dlq import make_dlq_producer

GROUP = "order-history"
WAIT, MAX_WAIT = 0.5, 5.0  # seconds until the database is asked again: at first, and at most


def run(consumer: Consumer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Store what both topics hold; return how many records could not be."""
    status_topic = argparse.Namespace(**{**vars(args), "topic": args.status_topic})
    tracker.wait_for_topic(consumer, status_topic, ["no answer came"], stop)
    engine = connect(args.database)
    ready(engine, stop)
    try:
        if args.rebuild:
            return rebuild(consumer, engine, args, stop, keep)
        dlq_producer = make_dlq_producer(args, args.dead_letters, stop)
        tracker.show([f"Consumer is running & subscribed to {args.topic} and {args.status_topic} topics"])
        return keep(OwnOffsets(consumer), engine, args, stop, partial(bury, dlq_producer, args))
    except SQLAlchemyError as error:
        sys.exit(f"The database {engine.url} can't be used: {reason(error)}. {ADVICE}")


class Outage:
    """The time for which the database doesn't serve: said once, and asked again ever more rarely."""

    wait = due = 0.0  # seconds to wait, and when that is over, on the clock of time.monotonic()

    def lasts(self) -> bool:
        """Return whether it is too soon to ask again."""
        return time.monotonic() < self.due

    def go_on(self, error: Exception) -> None:
        """Wait once more, as it could not be asked."""
        if not self.wait:
            who = "Kafka" if isinstance(error, KafkaException) else "The database"
            print(f"{who} does not serve: {reason(error)}. Going on once it does", file=sys.stderr)
        self.wait = min(MAX_WAIT, self.wait * 2 or WAIT)
        self.due = time.monotonic() + self.wait


def keep(consumer: OwnOffsets, engine: sa.Engine, args: Any, stop: Sequence[object], give_up: GiveUp) -> int:
    """Store what both topics hold until follow() ends; return how many records were given up."""
    known: dict[Place, int] = {}  # of each partition that is ours, the offset that the database comes to next
    again: set[TopicPartition] = set()  # those that come to their end once more
    given_up, left, outage, quiet = 0, args.count or sys.maxsize, Outage(), Quiet()
    for records in tracker.follow(cast(Any, consumer), [args.topic, args.status_topic], None, args.exit, stop, again):
        again.clear()
        if outage.lasts():
            again.update(put_off(consumer, known))
            continue
        try:
            again.update(take_up(consumer, engine, known, args.skip_missing))
            batch = [msg for msg in records if place(msg) in known and TopicPartition(*place(msg)) not in again][:left]
            check(consumer, known, batch)
            if batch:
                given_up += save(engine, known, args.topic, batch, give_up)
            else:
                quiet.look(engine, known)
        except LostPlaceError:
            known.clear()
        except (KafkaException, *AWAY) as error:
            outage.go_on(error)
            again.update(put_off(consumer, known))
        else:
            outage.wait = 0
            tracker.store(cast(Any, consumer), batch)
            left -= len(batch)
            if not left:
                break
    return given_up


def put_off(consumer: OwnOffsets, known: dict[Place, int]) -> list[TopicPartition]:
    """Let all partitions wait, and return them; take_up() goes back to where the database is."""
    known.clear()
    partitions: list[TopicPartition] = consumer.assignment()
    with contextlib.suppress(KafkaException):  # another store has one of them now
        consumer.pause(partitions)
    return partitions


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
