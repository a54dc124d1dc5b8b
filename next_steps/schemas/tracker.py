"""Track orders whatever they are written as, record by record: plain JSON, Avro, Protobuf and JSON Schema.

    python -m next_steps.schemas.tracker    all flags of tracker.py, and -r is the schema registry's URL

Its heart is Patient, a consumer that waits for the registry where it has to; deserializer.py reads the records.
Exit status: that of tracker.py, 1 also where no registry serves at the start.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from next_steps.schemas.deserializer import Deserializer, schema_id
from next_steps.schemas.registry import add_url, advice, ask, connect, reason
from tracker import command_line, main, track

RETRY = 5  # seconds from a question that a registry did not answer to the next


class Patient:
    """A consumer of records whose schemas are known: where the registry doesn't answer, their partitions wait."""

    def __init__(self, consumer: Consumer, deserializer: Deserializer, url: str) -> None:
        self._consumer, self._deserializer, self._url = consumer, deserializer, url
        self._waiting: list[TopicPartition] = []
        self._due = 0.0  # when to ask again, on the clock of time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def consume(self, num_messages: int, timeout: float) -> list[Message]:
        """Return what Consumer.consume() does, without the records that wait and what stands behind them."""
        self._deserializer.missing.clear()
        if self._waiting and time.monotonic() > self._due:
            self._consumer.resume(self._waiting)
            self._waiting = []
        ready, put_back = [], set[TopicPartition]()
        for msg in self._consumer.consume(num_messages, timeout):
            number = None if msg.error() else schema_id(msg.value())
            if not put_back and self._deserializer.knows(number):
                ready.append(msg)
                continue
            place = TopicPartition(str(msg.topic()), msg.partition() or 0, msg.offset() or 0)
            if place in put_back:
                continue
            if number is None or self._deserializer.knows(number) or self._learned(number, place):
                ready.append(msg)
            else:
                put_back.add(place)
                self._put_off(place)
        return ready

    def _learned(self, number: int, place: TopicPartition) -> bool:
        """Return whether the registry answered what this schema is; one that did not is left alone until RETRY."""
        if self._waiting:
            return False
        try:
            self._deserializer.learn(number)
            return True
        except Exception as error:  # the registry and the network have one each
            where = f"{place.topic} [{place.partition}] @ {place.offset}"
            why = f"the registry {self._url} did not answer: {reason(error)}. {advice(error)}"
            print(f"{where} waits for its schema {number}, as {why}. Asking again in {RETRY} s", file=sys.stderr)
        self._due = time.monotonic() + RETRY
        return False

    def _put_off(self, place: TopicPartition) -> None:
        """Let the partition wait, and begin with this record then."""
        self._waiting.append(place)
        with contextlib.suppress(KafkaException):  # another member has the partition now
            self._consumer.pause([place])
            self._consumer.seek(place)


def run(consumer: Consumer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Print a line for each order of the topic; return how many records held none."""
    registry = connect(args)
    ask(registry.get_schema_types, f"The schema registry at {args.url} did not answer", stop)
    deserializer = Deserializer(registry)
    return track(cast(Consumer, Patient(consumer, deserializer, args.url)), args, stop, deserializer.order)


if __name__ == "__main__":
    parser = command_line()
    parser.description = __doc__
    add_url(parser)
    sys.exit(main(parser=parser, run=run))
