"""The dead letters of next_steps.retries: read from their topic when somebody looks, and sent back one by one."""

import argparse
import asyncio
import uuid
from datetime import datetime, timezone
from typing import Any, NamedTuple

from confluent_kafka import Consumer, Message
from starlette.concurrency import run_in_threadpool

from next_steps.retries import dead_letters
from next_steps.web.desk import RefusedError
from next_steps.web.kafka import Broker, NotConfirmedError, attend

MANY = 200  # that are shown
READS_ONLY = {
    "enable.auto.commit": False,
    "allow.auto.create.topics": False,
    "auto.offset.reset": "earliest",
    "enable.partition.eof": True,
}


class Letter(NamedTuple):
    """A dead letter as the page shows it."""

    place: str
    at: datetime
    origin: str
    error: str
    attempts: str
    value: str


class Letters:
    """The topic of dead letters."""

    def __init__(self, args: argparse.Namespace, broker: Broker) -> None:
        self._args, self._broker, self._lock = args, broker, asyncio.Lock()
        self._stop: list[str] = []

    def stop(self) -> None:
        """End what is being read."""
        self._stop.append("stop")

    async def waiting(self) -> tuple[list[Letter], int]:
        """Return the newest MANY letters that have not gone back, and how many there are."""
        found = await self._run(lambda *attending: dead_letters.waiting(*attending)[0]) or {}
        letters = sorted(found.values(), key=lambda letter: letter.timestamp()[1], reverse=True)
        return [shown(letter) for letter in letters[:MANY]], len(letters)

    async def send_back(self, place: str) -> None:
        """Send the letter back to where it came from; RefusedError where it waits no more."""
        try:
            wanted = dead_letters.parse_place(place)
        except ValueError:
            raise RefusedError(404, f"There is no dead letter {place}") from None

        def run(consumer: Consumer, args: argparse.Namespace, stop: list[str]) -> bool:
            letter = dead_letters.waiting(consumer, args, stop)[0].get(wanted)
            if letter:
                dead_letters.replay(consumer, [letter], args, stop)
            return letter is not None

        if not await self._run(run):
            raise RefusedError(409, f"The letter {place} waits no more: somebody has sent it back")

    async def _run(self, run: Any) -> Any:
        """Return what a function returns that gets a consumer; nothing where there is no such topic yet."""
        if not self._broker.up:
            raise NotConfirmedError("no Kafka broker answers")
        if self._args.dead_letters not in self._broker.topics:
            return None
        config = self._args.config | READS_ONLY | {"group.id": f"dead-letters-{uuid.uuid4()}"}
        args = argparse.Namespace(**{**vars(self._args), "topic": self._args.dead_letters, "config": config})

        def attended() -> Any:
            try:
                return attend(args, run, self._stop)
            except SystemExit as error:
                raise NotConfirmedError(str(error)) from None

        async with self._lock:  # of two that send the same one back, the second finds it gone
            return await run_in_threadpool(attended)


def shown(letter: Message) -> Letter:
    """Return what the page shows of a letter."""
    why = dead_letters.facts(letter)
    return Letter(
        f"{letter.partition()}@{letter.offset()}",
        datetime.fromtimestamp(letter.timestamp()[1] / 1000, timezone.utc),
        f"{why['topic']} [{why['partition']}] @ {why['offset']}",
        dead_letters.error(why),
        why["attempts"],
        dead_letters.excerpt(letter),
    )
