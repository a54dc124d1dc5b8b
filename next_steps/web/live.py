"""What all pages show alike, and when it has changed: read from the database once, however many pages are open."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from next_steps.history import offsets
from next_steps.history.database import reason, transaction
from next_steps.history.show import lacks
from next_steps.web import queries
from next_steps.web.kafka import Broker

INTERVAL = 0.1  # seconds between two looks at the database
AWAY = 1.0  # seconds until it is asked again where it did not answer
SWEEP = 15.0  # seconds after which all minutes of the chart are counted anew: a store may have been behind
LIMIT = 3.0  # seconds that a question to the database may take


class DatabaseAwayError(Exception):
    """The database doesn't answer, or has no tables."""


class Live:
    """The state that pages show. `serial` rises with each change of it, `version` with each of the tables."""

    def __init__(self, engine: sa.Engine, broker: Broker) -> None:
        self.engine, self.broker = engine, broker
        self.serial = self.version = 0
        self.trouble: str | None = "it was not asked yet"  # why the database can't be asked, None where it can
        self.counts: dict[str, int] = {}
        self.minutes: dict[datetime, int] = {}
        self.lag: dict[str, int] = {}
        self.stopping = False
        self.streams = 0
        self._checked, self._swept = False, 0.0
        self._tick = asyncio.Event()
        self._shown: tuple[Any, ...] = ()

    async def run(self) -> None:
        """Look again and again until stop()."""
        while not self.stopping:
            try:
                await run_in_threadpool(self._look)
                self.trouble = None
            except Exception as error:  # whatever it is: the page says it, and it is asked again
                self.trouble, self._checked = reason(error), False
            shown = (self.version, self.trouble, self.broker.up, self.lag, self.counts, self.minutes)
            if shown != self._shown:
                self._shown = shown
                self.serial += 1
                self._wake()
            await asyncio.sleep(AWAY if self.trouble else INTERVAL)

    def stop(self) -> None:
        """End all streams, and run()."""
        self.stopping = True
        self._wake()

    def _wake(self) -> None:
        self._tick.set()
        self._tick = asyncio.Event()

    async def change(self, limit: float) -> None:
        """Return at the next change, or after `limit` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._tick.wait(), limit)

    def state(self) -> dict[str, Any]:
        """Return what the events say."""
        return {"kafka": self.broker.up, "database": self.trouble is None, "orders": self.counts}

    async def events(self, last: str | None) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield the version of the tables and the state, where the client has another one; it has one slot."""
        seen: tuple[str | None, Any] = (last, None)
        while not self.stopping:
            shown = (self.broker.up, self.trouble, sum(self.lag.values()), max(self.minutes, default=None))
            now, tick = (str(self.version), shown), self._tick
            if now != seen and (now[0] != seen[0] or seen[1] is not None):
                seen = now
                yield now[0], self.state()
                continue
            seen = now
            await tick.wait()

    def _look(self) -> None:
        """Read what has changed in the database."""
        with transaction(self.engine, LIMIT) as connection:
            if not self._checked:
                if lack := lacks(connection):
                    raise DatabaseAwayError(f"it has {lack}")
                self._checked = True
            places = offsets.read(connection)
            version = sum(places.values())
            if version != self.version or not self.counts:
                self.counts = queries.counts(connection)
            self._count_minutes(connection, version != self.version)
            self.version = version
        ends = dict(self.broker.ends)
        self.lag = {f"{t} [{n}]": max(0, end - places.get((t, n), 0)) for (t, n), end in sorted(ends.items())}

    def _count_minutes(self, connection: sa.Connection, changed: bool) -> None:
        now = queries.minute(datetime.now(timezone.utc))
        begins = [now - timedelta(minutes=back) for back in range(queries.MINUTES - 1, -1, -1)]
        if sweep := time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
        again = begins if sweep else begins[-2:] if changed else []
        known = self.minutes | {begin: queries.in_minute(connection, begin) for begin in again}
        self.minutes = {begin: known.get(begin, 0) for begin in begins}


def ask(live: Live, question: Any, *arguments: Any) -> Any:
    """Return the answer of the database to a question, a function of `queries`; DatabaseAwayError where it is away."""
    if live.trouble:  # at once: threads that wait for it would keep all others waiting
        raise DatabaseAwayError(live.trouble)
    try:
        with transaction(live.engine, LIMIT) as connection:
            return question(connection, *arguments)
    except SQLAlchemyError as error:
        raise DatabaseAwayError(reason(error)) from None
