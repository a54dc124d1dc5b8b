"""What a list of records becomes: rows and offsets in one transaction, and a dead letter where that can't be."""

import argparse
import sys
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from confluent_kafka import Message, Producer

import tracker
from next_steps.history.database import is_refusal, reason, transaction
from next_steps.history.life import Row, change_row, order_row
from next_steps.history.offsets import Place, move, place
from next_steps.history.rows import write
from next_steps.retries.dlq import dead_letter, named

GiveUp = Callable[[Message, Exception], None]


def save(engine: sa.Engine, known: dict[Place, int], topic: str, batch: Sequence[Message], give_up: GiveUp) -> int:
    """Write the records and the offsets behind them; return how many were given up, each of them alone."""
    orders, changes, unusable = list[Row](), list[Row](), list[tuple[Message, Exception]]()
    for msg in batch:
        try:
            if (msg.offset() or 0) < known[place(msg)]:
                continue  # the database has it
            if msg.topic() == topic:
                orders.append(order_row(msg))
            else:
                changes.append(change_row(msg))
        except ValueError as error:
            unusable.append((msg, error))
    try:
        commit(engine, known, batch, orders, changes, unusable, give_up)
        return len(unusable)
    except Exception as error:
        if not is_refusal(error):
            raise
        if len(batch) == 1:
            commit(engine, known, batch, [], [], [(batch[0], error)], give_up)
            return 1
        half = len(batch) // 2
        return sum(save(engine, known, topic, part, give_up) for part in (batch[:half], batch[half:]))


def commit(
    engine: sa.Engine,
    known: dict[Place, int],
    batch: Sequence[Message],
    orders: Sequence[Row],
    changes: Sequence[Row],
    unusable: Sequence[tuple[Message, Exception]],
    give_up: GiveUp,
) -> None:
    """Write the rows of a list of records in a transaction, with the offsets behind it."""
    ends = {place(msg): max(known[place(msg)], (msg.offset() or 0) + 1) for msg in batch}
    with transaction(engine) as connection:
        move(connection, known, ends)
        new = write(connection, orders, changes)
        for msg, error in unusable:  # at the end: if something fails before, all of it comes again
            give_up(msg, error)
    known.update(ends)
    if any(new.values()):
        tracker.show([f"Stored {', '.join(f'{what}: {number}' for what, number in new.items() if number)}"])


def bury(dlq_producer: Producer, args: argparse.Namespace, msg: Message, error: Exception) -> None:
    """Make a dead letter of the record."""
    letter = dead_letter(dlq_producer, args, msg, error, 1)
    see = f"See it: python -m next_steps.retries.dead_letters -t {args.dead_letters}"
    print(
        f"{named(msg)} can't be stored: {reason(error)}. It became the dead letter {named(letter)}. {see}",
        file=sys.stderr,
    )
