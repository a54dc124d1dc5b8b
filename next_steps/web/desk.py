"""Takes orders and changes of their status: each is answered once Kafka has confirmed it."""

import asyncio
import json
import uuid
from collections import OrderedDict
from datetime import datetime, timezone
from typing import Any

from starlette.concurrency import run_in_threadpool

import producer
from next_steps.history.life import objection
from next_steps.web import queries
from next_steps.web.kafka import NotConfirmedError, Sender
from next_steps.web.live import DatabaseAwayError, Live, ask

NAMESPACE = uuid.UUID("6f1d3c1e-6a35-4a0c-9d2b-1f6e1b1a7c52")  # in which a key names an order
KEYS = 10_000  # that are remembered; the database knows the older ones
USED = "Idempotency-Key was used for another order before. Take a new key for each order"
JUDGED = 3.0  # seconds for the store to judge a change


class RefusedError(Exception):
    """What was asked for can't be; the status is HTTP's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Desk:
    """Where orders are placed and changed."""

    def __init__(self, sender: Sender, live: Live, topic: str, status_topic: str) -> None:
        self._sender, self._live, self._topic, self._status_topic = sender, live, topic, status_topic
        self._known: OrderedDict[str, tuple[producer.Order, asyncio.Task[None]]] = OrderedDict()

    async def place(self, user: str, item: str, quantity: int, key: str | None = None) -> producer.Order:
        """Return the order once Kafka has it. With a key it is the same order each time, and RefusedError for another.

        NotConfirmedError, or with a key DatabaseAwayError, says that it has to be sent again.
        """
        if key is None:
            order = producer.new_order(user, item, quantity)
            await self._send(self._topic, order)
            return order
        order = producer.new_order(user, item, quantity, str(uuid.uuid5(NAMESPACE, key)))
        known, task = self._known.get(key, (order, None))
        if known != order:
            raise RefusedError(422, USED)
        if task is None or (task.done() and task.exception()):
            task = asyncio.create_task(self._send_once(order))
            self._known[key] = order, task
            if len(self._known) > KEYS:
                self._known.popitem(last=False)
        try:
            await asyncio.shield(task)
        except (RefusedError, DatabaseAwayError):
            self._known.pop(key, None)  # nothing was sent by it
            raise
        return order

    async def _send_once(self, order: producer.Order) -> None:
        """Send the order where it isn't stored yet."""
        row = await run_in_threadpool(ask, self._live, queries.one, order["order_id"])
        if row is None:
            await self._send(self._topic, order)
        elif (row["user_name"], row["item"], row["quantity"]) != (order["user"], order["item"], order["quantity"]):
            raise RefusedError(422, USED)

    async def change(self, order_id: str, status: str, by: str) -> str:
        """Return "applied", or "waiting" where the store is behind; RefusedError where the change is not possible."""
        row = await run_in_threadpool(ask, self._live, queries.one, order_id)
        if row is None:
            raise RefusedError(404, f"There is no order {order_id}, or the store has not stored it yet")
        if why := objection(row["status"], status):
            raise RefusedError(409, f"The order can't be {status}: {why}")
        at = datetime.now(timezone.utc)
        change = {"order_id": row["order_id"], "status": status, "at": at.isoformat(), "by": by}
        await self._send(self._status_topic, change)
        return await self._judged(row["order_id"], status, at, by)

    async def _judged(self, *change: Any) -> str:
        """Wait until the store has judged the change: of two that came at once, it refuses one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + JUDGED
        while loop.time() < deadline and not self._live.stopping:
            try:
                outcome, why = await run_in_threadpool(ask, self._live, queries.outcome, *change)
            except DatabaseAwayError:
                break
            if outcome == "refused":
                raise RefusedError(409, f"The order can't be {change[1]}: {why}. Somebody was first")
            if outcome == "applied":
                return "applied"
            await self._live.change(0.1)
        return "waiting"

    async def _send(self, topic: str, record: dict[str, Any]) -> None:
        if not self._live.broker.up:
            raise NotConfirmedError("no Kafka broker answers")
        await self._sender.send(topic, record["order_id"], json.dumps(record).encode())
