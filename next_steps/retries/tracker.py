"""Track orders with a handler that may fail: try again later, and give up into a dead-letter topic.

    python -m next_steps.retries.tracker --handler next_steps.retries.kitchen:cook
    python -m next_steps.retries.tracker --handler MODULE:FUNCTION --attempts 0    try for ever

The function takes an order. ValueError from it means that this order can never succeed, any other exception that it may
later. The other flags are those of tracker.py.
Exit status: 0 stopped or done, 1 a record was dead-lettered or Kafka can't be used, 2 wrong usage.
"""

import argparse
import importlib
import inspect
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

import producer
import tracker
from tracker import Order, printable, warn

# What a dead letter says, after the record's own headers. The first five names are those of Kafka Streams (KIP-1034);
# it has none for the rest.
HEADERS = (
    "__streams.errors.exception",
    "__streams.errors.message",
    "__streams.errors.topic",
    "__streams.errors.partition",
    "__streams.errors.offset",
    "orders.errors.timestamp",
    "orders.errors.group",
    "orders.errors.attempts",
)
# Properties of the producer of dead letters, below those of -F and -X.
CONFIG: dict[str, Any] = {
    # After this time the tracker stops, and the record comes again at the next start.
    "delivery.timeout.ms": 30_000,
    # A record of the largest size grows by its headers.
    "message.max.bytes": 2_000_000,
    "compression.type": "lz4",
}


@dataclass
class Failure:
    """A record that failed: its place, how often it was tried, and when its partition goes on (None: it does)."""

    place: TopicPartition
    attempts: int
    due: float | None  # on the clock of time.monotonic()


class Retries:
    """Two seams of tracker.follow, `receive` and `wait`, which share what failed in each partition."""

    def __init__(self, topic: str, attempts: int, backoff: float, max_backoff: float) -> None:
        """Take the dead-letter topic, how often to try (0: for ever), and the first and longest pause in seconds."""
        self.topic, self.attempts, self.backoff, self.max_backoff = topic, attempts, backoff, max_backoff
        self.failures: dict[int | None, Failure] = {}  # by partition
        self.letters: Producer | None = None

    def receive(
        self,
        consumer: Consumer,
        msg: Message,
        config: dict[str, Any],
        deserialize: Callable[[bytes | None], Order],
        handle: Callable[[Order], None],
    ) -> bool | None:
        """Return True where the order was handled, None where its partition waits, False where it was dead-lettered.

        RuntimeError where the dead-letter topic can't be written.
        """
        if self.letters is None:  # now, and not when the first order has failed: whoever starts the tracker is here now
            self.letters = dead_letter_producer(config, self.topic)
        before = self.failures.pop(msg.partition(), None) if self.failures else None
        try:
            handle(deserialize(msg.value()))
            return True
        except tracker.OutputError:
            raise
        except Exception as error:
            here = TopicPartition(*place(msg))
            attempts = before.attempts + 1 if before and before.place.offset == here.offset else 1
            if isinstance(error, ValueError) or attempts == self.attempts:
                letter = dead_letter(self.letters, self.topic, msg, error, config["group.id"], attempts)
                warn(f"{named(msg)} failed: {describe(error)}. It became the dead letter {named(letter)}. {LIST}")
                return False
            pause = self.pause(attempts)
            of = f" of {self.attempts}" if self.attempts else ""
            warn(f"{named(msg)} failed: {describe(error)}. Attempt {attempts}{of}, the next one in {pause:.1f} s")
        self.failures[here.partition] = Failure(here, attempts, time.monotonic() + pause)
        try:
            consumer.pause([here])
            consumer.seek(here)
        except KafkaException as error:  # without it the record would be passed over
            raise RuntimeError(f"{named(msg)} was not put off: {error.args[0].str()}. Start again") from None
        return None

    def pause(self, attempts: int) -> float:
        """Return for how many seconds to wait after so many attempts: exponential backoff, half of it jitter."""
        longest = min(self.max_backoff, self.backoff * 2.0 ** min(attempts - 1, 100))
        return longest * random.uniform(0.5, 1)  # noqa: S311

    def wait(self, consumer: Consumer) -> float:
        """Let the partitions go on that are due; return for how many seconds none will be."""
        if not self.failures:
            return tracker.WAIT
        now = time.monotonic()
        for failure in self.failures.values():
            if failure.due is not None and failure.due <= now:
                consumer.resume([failure.place])
                failure.due = None
        return min([tracker.WAIT, *(f.due - now for f in self.failures.values() if f.due is not None)])


LIST = "See it: python -m next_steps.retries.dead_letters"


def place(msg: Message) -> tuple[str, int, int]:
    """Return the record's topic, partition and offset."""
    return cast(tuple[str, int, int], (msg.topic(), msg.partition(), msg.offset()))


def named(msg: Message) -> str:
    """Return the record's place in words."""
    return "{} [{}] @ {}".format(*place(msg))


def headers(msg: Message) -> list[tuple[str, bytes | None]]:
    """Return the record's headers, none as an empty list."""
    return cast(list[tuple[str, bytes | None]], msg.headers() or [])


def describe(error: Exception) -> str:
    """Return the error in one line that can't drive a terminal."""
    return printable(": ".join(text for text in (type(error).__name__, str(error)[:1000]) if text))


def dead_letter_producer(config: dict[str, Any], topic: str) -> Producer:
    """Return a producer with the tracker's properties, once the topic is there; RuntimeError says why it can't be."""
    try:
        letters = Producer(producer.CONFIG | CONFIG | config)  # it passes over the properties that are a consumer's
    except KafkaException as error:
        raise RuntimeError(f"Dead letters can't be written: {error.args[0].str()}. Check -F and -X") from None
    producer.connect(letters, config["bootstrap.servers"], topic, {}, ())
    return letters


def dead_letter(letters: Producer, topic: str, msg: Message, error: Exception, group: str, attempts: int) -> Message:
    """Return the record's dead letter, confirmed; RuntimeError where Kafka did not confirm it."""
    facts = (type(error).__name__, str(error)[:1000], *place(msg), msg.timestamp()[1], group, attempts)
    why = [(name, str(fact).encode(errors="replace")) for name, fact in zip(HEADERS, facts, strict=True)]
    return confirmed(letters, topic, value=msg.value(), key=msg.key(), headers=[*headers(msg), *why])


def confirmed(letters: Producer, topic: str, **record: Any) -> Message:
    """Send a record and return it as Kafka confirmed it; RuntimeError where Kafka did not."""
    sent: list[tuple[KafkaError | None, Message]] = []
    try:
        letters.produce(topic, **record, on_delivery=lambda err, msg: sent.append((err, msg)))
        letters.flush()
    except KafkaException as error:
        sent.append((error.args[0], Message(topic=topic)))
    err, msg = sent[0]
    if err is not None:
        raise RuntimeError(f"Topic {topic} could not be written: {err.str()}. Mend that and start again")
    return msg


def handler(name: str) -> Callable[[Order], None]:
    """Return the function that MODULE:FUNCTION names; ArgumentTypeError says why there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"no handler {name}: {error}") from None
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise argparse.ArgumentTypeError(f"{name} is no plain function")
    return cast(Callable[[Order], None], found)


def main(argv: Sequence[str] | None = None) -> int:
    """Follow the topic of the command line; return the exit status, SystemExit with 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--handler", type=handler, required=True, metavar="MODULE:FUNCTION", help="what is done with each order")
    add("--attempts", type=int, default=5, metavar="N", help="how often to try an order, 0: for ever (5)")
    add("--backoff", type=float, default=1.0, metavar="S", help="seconds before the second attempt, then doubled (1)")
    add("--max-backoff", type=float, default=60.0, metavar="S", help="seconds before an attempt at most (60)")
    add("--dead-letters", default="orders.DLQ", metavar="TOPIC", help="the topic of dead letters (orders.DLQ)")
    args, further = parser.parse_known_args(argv)
    if args.attempts < 0 or not args.backoff > 0 or not args.max_backoff > 0:
        parser.error("--attempts must be at least 0, --backoff and --max-backoff above 0")
    retries = Retries(args.dead_letters, args.attempts, args.backoff, args.max_backoff)
    return tracker.main(further, handle=args.handler, receive=retries.receive, wait=retries.wait)


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:  # before the handlers were set
        status = 130
    for number in tracker.SIGNALS:  # one that comes while the interpreter ends would change the exit status
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)
