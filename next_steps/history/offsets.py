"""Where the database is in each partition. Kafka's group knows it too, but the database's word holds.

A row of the table `offsets` names the record that the tables come to next. It moves with them, in one transaction, and
only from where this store left it. Whoever was frozen while another one wrote can't write over that.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from next_steps.history.database import take_samples, transaction
from next_steps.history.rows import upsert
from next_steps.history.tables import offsets

LIMIT = 10  # seconds for an answer of Kafka
INTERVAL = 1  # seconds between two looks at the database while nothing comes
Place = tuple[str, int]  # topic, partition


class LostPlaceError(Exception):
    """The database isn't where this store left it: another one has the partition now, or a backup came back."""


class OwnOffsets:
    """A consumer whose group isn't asked how far it is: what the database says of that holds.

    `assigned` are the partitions that came since take_up() looked, also where they had only been away for a moment.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.assigned: set[Place] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def subscribe(self, topics: list[str], on_assign: Callable[[Any, Any], object]) -> None:
        """Subscribe as Consumer.subscribe() does."""

        def note(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self.assigned.update((str(p.topic), p.partition) for p in partitions)
            on_assign(consumer, partitions)

        self._consumer.subscribe(topics, on_assign=note)

    def committed(self, *_: object) -> list[TopicPartition]:
        """Return nothing."""
        return []


def place(msg: Message) -> Place:
    """Return the partition of a record."""
    return str(msg.topic()), msg.partition() or 0


def read(connection: sa.Connection) -> dict[Place, int]:
    """Return which record the database comes to next in each partition."""
    return {(topic, partition): offset for topic, partition, offset in connection.execute(sa.select(offsets))}


def move(connection: sa.Connection, known: dict[Place, int], ends: dict[Place, int]) -> None:
    """Move the database on to these offsets; LostPlaceError where it isn't at the known ones."""
    for where, end in sorted(ends.items()):
        at = sa.and_(
            offsets.c.topic == where[0], offsets.c.partition == where[1], offsets.c.next_offset == known[where]
        )
        if connection.execute(sa.update(offsets).where(at).values(next_offset=end)).rowcount != 1:
            raise LostPlaceError


def take_up(
    consumer: OwnOffsets, engine: sa.Engine, known: dict[Place, int], skip_missing: bool
) -> list[TopicPartition]:
    """Go to where the database is in each partition that isn't known yet, and return these.

    One where librdkafka has not begun yet isn't in `known` afterwards, and is gone to the next time.

    SystemExit where Kafka doesn't have the record that the database comes to next: it was deleted, or the topic is
    another one of that name. With `skip_missing`, and in a database that is new, the first one that there is follows.
    """
    ours = {(str(p.topic), p.partition) for p in consumer.assignment()}
    for gone in known.keys() - ours | consumer.assigned & known.keys():
        del known[gone]
    new = ours - known.keys()
    if not new:
        return []
    bounds = {where: consumer.get_watermark_offsets(TopicPartition(*where), LIMIT) for where in new}
    with transaction(engine) as connection:
        there = read(connection)
        for where, (first, end) in bounds.items():
            if first <= there.get(where, -1) <= end:
                continue
            accept(where, there.get(where), first, end, skip_missing)
            there[where] = first
            upsert(connection, offsets, [{"topic": where[0], "partition": where[1], "next_offset": first}])
    starts = [TopicPartition(*where, there[where]) for where in new]
    consumer.resume(starts)
    try:
        for start in starts:
            consumer.seek(start)
    except KafkaException as error:
        if error.args[0].code() != KafkaError._STATE:
            raise
        return starts  # librdkafka still asks how far the group is, and can't seek before: so the next time
    consumer.store_offsets(offsets=starts)
    known.update({where: there[where] for where in new})
    consumer.assigned.clear()
    return starts


def accept(where: Place, known: int | None, first: int, end: int, skip_missing: bool) -> None:
    """Say that a partition begins at its first record; SystemExit where that leaves a hole, not accepted."""
    name = f"{where[0]} [{where[1]}]"
    if known is not None and not skip_missing:
        holds = f"{name} holds {first} to {end} in Kafka, and the database comes to {known} next"
        sys.exit(f"{holds}: there would be a hole. Bring back a newer backup, or accept it with --skip-missing")
    if known is not None or first:
        print(f"{name} begins at {first}: what was before is no longer in Kafka", file=sys.stderr)


def check(consumer: OwnOffsets, known: dict[Place, int], batch: Sequence[Message]) -> None:
    """Raise LostPlaceError where the records don't go on from the known offsets, as Kafka doesn't have these."""
    first = {place(msg): msg.offset() for msg in reversed(batch)}
    for where, offset in first.items():
        if offset != known[where]:  # some come once more, some were compacted away, or it is a hole
            low, high = consumer.get_watermark_offsets(TopicPartition(*where), LIMIT)
            if not low <= known[where] <= high:
                raise LostPlaceError


class Quiet:
    """What is done while no record comes."""

    due, sampled = 0.0, 0

    def look(self, engine: sa.Engine, known: dict[Place, int]) -> None:
        """Raise LostPlaceError where the database was moved: by a store that has a partition of ours, or a backup."""
        if time.monotonic() > self.due:
            with transaction(engine) as connection:
                there = read(connection)
            if any(there.get(where) != offset for where, offset in known.items()):
                raise LostPlaceError
            if engine.dialect.name == "sqlite" and self.sampled != sum(known.values()):  # PostgreSQL does it by itself
                take_samples(engine)
            self.due, self.sampled = time.monotonic() + INTERVAL, sum(known.values())
