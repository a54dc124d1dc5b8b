"""What the web page has to do with Kafka: it sends records, looks whether a broker answers, and runs the store."""

import argparse
import asyncio
import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

import producer
import tracker

# Below the properties of -F and -X. An answer comes in time for whoever waits, and what was refused isn't sent later.
CONFIG: dict[str, Any] = {"delivery.timeout.ms": 5_000, "linger.ms": 1}
INTERVAL = 1.0  # seconds between two looks at the broker
LIMIT = 2.0  # seconds for its answer
AGAIN = 5.0  # seconds until what has failed begins anew


class NotConfirmedError(Exception):
    """Kafka did not confirm the record. It may have it all the same, so that a retry must be the same record."""


class Sender:
    """One producer for all requests, replaced where it has failed for good, and the thread that serves its reports."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.refused = False  # by its credentials, which waiting doesn't change
        self._ended = False
        self._config = {
            **producer.CONFIG,
            **CONFIG,
            **config,
            "error_cb": lambda err: producer.error_report(err, 0, []),
        }
        self._client: Producer = Producer(self._config)
        self._thread = threading.Thread(target=self._poll, name="delivery reports", daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        due = math.inf  # when a new client takes the place of one that will never send again
        while not self._ended:
            try:
                self._client.poll(0.1)
            except KafkaException as error:  # a fatal one; the reports of what it still held come after it
                if not self.refused:
                    print(f"Kafka refused this producer: {error.args[0].str()}. {producer.ADVICE}", file=sys.stderr)
                self.refused |= not error.args[0].fatal()
                due = time.monotonic() + AGAIN
            if time.monotonic() > due:
                self._client, due = Producer(self._config), math.inf

    async def send(self, topic: str, key: str, value: bytes) -> None:
        """Return once Kafka has confirmed the record; NotConfirmedError says why it did not."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[KafkaError | None] = loop.create_future()

        def settle(err: KafkaError | None) -> None:
            if not answer.done():  # whoever asked is gone
                answer.set_result(err)

        def on_delivery(err: KafkaError | None, _: Message) -> None:
            loop.call_soon_threadsafe(settle, err)

        try:
            self._client.produce(topic, value, key, on_delivery=on_delivery)
        except BufferError:
            raise NotConfirmedError("too many orders wait for Kafka already") from None
        except KafkaException as error:
            raise NotConfirmedError(error.args[0].str()) from None
        if err := await answer:
            raise NotConfirmedError(err.str())

    def stop(self, limit: float) -> None:
        """Answer all that wait: with what Kafka says within `limit` seconds, then that it was not confirmed."""
        if self._client.flush(limit):
            self._client.purge()
            self._client.flush(1)
        self._ended = True
        self._thread.join(1)
        with contextlib.suppress(KafkaException):  # said before
            self._client.close()  # a thread of its that is in TLS as OpenSSL ends would crash the process


class Broker:
    """Whether a broker answers, and where the partitions end; looked at in a thread of its own."""

    def __init__(self, config: Mapping[str, Any], watched: set[str], on_return: Callable[[], object]) -> None:
        self.up = False
        self.topics: set[str] = set()
        self.ends: dict[tuple[str, int], int] = {}  # of the watched topics' partitions
        self._config, self._watched, self._on_return = config, watched, on_return
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="looks at the broker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its next look."""
        self._ended.set()

    def join(self, limit: float) -> None:
        """Return when it has ended, after `limit` seconds at the latest."""
        self._thread.join(limit)

    def _run(self) -> None:
        failed = False
        while not self._ended.is_set():
            # Not the AdminClient: while a coordinator is away it may abort the process (librdkafka's issue 4605).
            consumer = Consumer({**self._config, "group.id": "unused", "allow.auto.create.topics": False})
            while self._look(consumer) and not self._ended.wait(INTERVAL):
                if failed:
                    failed = False
                    self._on_return()
            consumer.close()
            failed = True
            self._ended.wait(INTERVAL)

    def _look(self, consumer: Consumer) -> bool:
        """Return whether a broker answers; where not, the next look is by a new consumer."""
        try:
            found = consumer.list_topics(timeout=LIMIT).topics
        except KafkaException:
            self.up = False
            return False
        self.up, self.topics = True, set(found)
        with contextlib.suppress(KafkaException):  # a partition's leader may just change
            for topic in self.topics & self._watched:
                for number in found[topic].partitions:
                    _, end = consumer.get_watermark_offsets(TopicPartition(topic, number), LIMIT)
                    self.ends[topic, number] = end
        return True


class StoreThread:
    """The store of next_steps.history in a thread, which begins anew where it had to give up."""

    def __init__(self, args: argparse.Namespace, run: Callable[..., int]) -> None:
        self._args, self._run_store = args, run
        self.refused = False  # for want of a right
        self._stop: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._stop = []
            try:
                attend(self._args, self._run_store, self._stop)
            except SystemExit as error:
                print(error, file=sys.stderr)
                self.refused = "authorization failed" in str(error)
                self._ended.wait(AGAIN)
            except Exception as error:  # it must not end unseen
                print(f"The store failed: {error!r}. It begins anew", file=sys.stderr)
                self._ended.wait(AGAIN)

    def reconnect(self) -> None:
        """Let it begin with a new consumer, as librdkafka may not find a broker that comes back (its issue 5301)."""
        self._stop.append("again")

    def stop(self) -> None:
        """Let it come to its end."""
        self._ended.set()
        self._stop.append("stop")

    def join(self, limit: float) -> None:
        """Return when it has ended, after `limit` seconds at the latest: what it has stored is in the database."""
        self._thread.join(limit)


def attend(args: argparse.Namespace, run: Callable[..., Any], stop: list[str]) -> Any:
    """Return what `run` does with a consumer, as in tracker.main() but in any thread; SystemExit says what is wrong."""
    why = ["no answer came. Check -b, security.protocol and that it is healthy"]
    report = {"error_cb": lambda err: tracker.error_report(err, why, stop)}
    args.running = False
    return tracker.attend(Consumer(report | args.config), args, why, stop, run)
