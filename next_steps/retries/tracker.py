"""Track orders with a handler that may fail: try again later, and give up into a dead-letter topic.

    python -m next_steps.retries.tracker --handler next_steps.retries.kitchen:cook
    python -m next_steps.retries.tracker --handler MODULE:FUNCTION --attempts 0    try for ever

The function takes an order. NotRetriableError from it means that this order can never succeed, any other exception that
it may later. The other flags are those of tracker.py; its Kafka part is run().
Exit status: 0 stopped or done, 1 a record was dead-lettered or Kafka can't be used, 2 wrong usage.
"""

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO, cast

from confluent_kafka import Consumer, Message, Producer, TopicPartition

import tracker
from next_steps.retries import NotRetriableError
from next_steps.retries.dlq import dead_letter, make_dlq_producer, named
from next_steps.retries.handler import Output, describe, handler, own_line

MAX_POLL_RECORDS = 10  # one by one takes twice as long, and from a longer list more has to come again after a failure
LIST = "See it: python -m next_steps.retries.dead_letters -t"


@dataclass
class Failure:
    """A record that comes again: its offset, how often it was tried, and when its partition goes on."""

    offset: int | None
    attempts: int
    due: float  # on the clock of time.monotonic()
    paused: bool = True


def run(consumer: Consumer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Call the handler with each order of the topic; return how many records became dead letters."""
    dlq_producer = make_dlq_producer(args, args.dead_letters, stop)
    failures: dict[TopicPartition, Failure] = {}  # each stays until its record was handled or became a dead letter
    dead: list[Message] = []
    left = args.count or sys.maxsize
    limit = int(args.config.get("max.poll.interval.ms", 300_000)) / 30_000  # seconds for a list: 10, if not changed
    tracker.show([f"Consumer is running & subscribed to {args.topic} topic"])
    for records in tracker.follow(consumer, [args.topic], None, args.exit, stop, failures, MAX_POLL_RECORDS):
        resume_due(consumer, failures)
        done: list[Message] = []
        put_back = set()
        until = time.monotonic() + limit
        for msg in records:
            if stop or len(done) == left or msg.partition() in put_back:
                continue
            before = failures.pop(TopicPartition(args.topic, msg.partition() or 0), None) if failures else None
            failure = attempt(msg, before, until, args, dlq_producer, dead)
            if failure:
                put_back.add(msg.partition())
                put_off(consumer, failures, msg, failure)
            else:
                done.append(msg)
        tracker.show([])  # what the handler printed is out before the offsets are stored
        tracker.store(consumer, done)
        left -= len(done)
        if not left:
            break
    return len(dead)


def attempt(
    msg: Message, before: Failure | None, until: float, args: Any, dlq_producer: Producer, dead: list[Message]
) -> Failure | None:
    """Return when the record comes again, or None where it is done: its order was handled, or `dead` has it now."""
    attempts = before.attempts if before and before.offset == msg.offset() else 0
    if time.monotonic() > until:  # a slow handler: the group must not take this tracker for dead
        return Failure(msg.offset(), attempts, due=0)
    attempts += 1
    final = True  # what holds no order never will
    try:
        order = tracker.from_json(msg.value())
        final = False
        args.handler(order)
        return None
    except Exception as failed:
        error = failed
    tracker.show([])  # where it was this that failed, it ends the tracker
    final = final or isinstance(error, NotRetriableError)
    line = f"{named(msg)} failed: {describe(error)}{'' if final else own_line(error, args.handler.__module__)}"
    if final or attempts == args.attempts:
        letter = dead_letter(dlq_producer, args, msg, error, attempts)
        print(f"{line}. It became the dead letter {named(letter)}. {LIST} {args.dead_letters}", file=sys.stderr)
        dead.append(letter)
        return None
    wait = pause(attempts, args.backoff, args.max_backoff)
    of = f" of {args.attempts}" if args.attempts else ""
    print(f"{line}. Attempt {attempts}{of}, the next one in {wait:.1f} s", file=sys.stderr)
    return Failure(msg.offset(), attempts, time.monotonic() + wait)


def pause(attempts: int, backoff: float, max_backoff: float) -> float:
    """Return for how many seconds to wait after so many attempts: exponential backoff, half of it jitter."""
    return min(max_backoff, backoff * 2.0 ** min(attempts - 1, 100)) * random.uniform(0.5, 1)  # noqa: S311


def put_off(consumer: Consumer, failures: dict[TopicPartition, Failure], msg: Message, failure: Failure) -> None:
    """Let the partition wait, and begin with this record then."""
    where = TopicPartition(str(msg.topic()), msg.partition() or 0, msg.offset() or 0)
    failures[where] = failure
    consumer.pause([where])
    consumer.seek(where)


def resume_due(consumer: Consumer, failures: dict[TopicPartition, Failure]) -> None:
    """Let the partitions go on whose next attempt is due; forget it where another tracker has the partition now."""
    for partition, failure in [*failures.items()]:
        if failure.due > time.monotonic():
            continue
        if failure.paused:  # also where another tracker has the partition now: it would still be paused when it returns
            consumer.resume([partition])
            failure.paused = False
        if partition not in consumer.assignment():
            del failures[partition]


def above_zero(text: str) -> float:
    """Return the number; ValueError where it isn't above 0."""
    if not float(text) > 0:
        raise ValueError
    return float(text)


def not_negative(text: str) -> int:
    """Return the whole number; ValueError where it is below 0."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Follow the topic of the command line; return the exit status, SystemExit says what is wrong."""
    parser = tracker.command_line()
    parser.description = __doc__
    add = parser.add_argument
    add("--handler", type=handler, required=True, metavar="MODULE:FUNCTION", help="what is done with each order")
    add("--attempts", type=not_negative, default=5, metavar="N", help="how often to try an order, 0: for ever (5)")
    add(
        "--backoff", type=above_zero, default=1, metavar="S", help="seconds before the second attempt, then doubled (1)"
    )
    add("--max-backoff", type=above_zero, default=60, metavar="S", help="seconds before an attempt at most (60)")
    add("--dead-letters", default="orders.DLQ", metavar="TOPIC", help="the topic of dead letters (orders.DLQ)")
    with contextlib.redirect_stdout(cast(TextIO, Output(sys.stdout))):
        return tracker.main(argv, parser, run)


if __name__ == "__main__":
    sys.exit(main())
