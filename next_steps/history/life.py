"""The life of an order: which change is possible, and what the records of both topics make of an order.

The rules don't ask when a record arrived: they take what is known of an order in the sequence of the log.
"""

import json
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from confluent_kafka import Message

import tracker

Row = dict[str, Any]  # of a table, by the names of its columns

NEXT = {
    "placed": ("accepted", "cancelled"),
    "accepted": ("preparing", "cancelled"),
    "preparing": ("delivered", "cancelled"),
    "delivered": (),
    "cancelled": (),
}
CHANGES = [status for status in NEXT if status != "placed"]


def order_row(msg: Message) -> Row:
    """Return the row of an order as it was placed; ValueError says why the record holds none."""
    order = tracker.from_json(msg.value())
    further = {name: value for name, value in order.items() if name not in ("order_id", "user", "item", "quantity")}
    try:
        at = datetime.fromtimestamp(max(0, msg.timestamp()[1]) / 1000, timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"the record's timestamp is no time: {msg.timestamp()[1]}") from None
    return {
        "order_id": order["order_id"],
        "user_name": order["user"],
        "item": order["item"],
        "quantity": order["quantity"],
        "further": json.dumps(further) if further else None,
        "placed_at": at,
        "status": "placed",
        "changed_at": at,
        "log_partition": msg.partition(),
        "log_offset": msg.offset(),
    }


def change_row(msg: Message) -> Row:
    """Return the row of a change of status, not yet judged; ValueError says why the record holds none."""
    try:
        change = json.loads(msg.value() or b"")
    except (ValueError, RecursionError):
        raise ValueError("the value is no JSON in UTF-8") from None
    if not isinstance(change, dict):
        raise ValueError(f"a change must be a JSON object, got {change!r:.50}")
    order_id, status, at, by = (change.get(field) for field in ("order_id", "status", "at", "by"))
    if not isinstance(order_id, str) or not tracker.UUID.fullmatch(order_id):
        raise ValueError(f"order_id must be a UUID, got {order_id!r:.50}")
    if status not in CHANGES:
        raise ValueError(f"status must be one of {', '.join(CHANGES)}, got {status!r:.50}")
    if not isinstance(by, str) or not by:
        raise ValueError(f"by must be non-empty text, got {by!r:.50}")
    return {
        "order_id": order_id,
        "status": status,
        "changed_at": instant(at),
        "changed_by": by,
        "outcome": "waiting",
        "reason": None,
        "log_partition": msg.partition(),
        "log_offset": msg.offset(),
    }


def instant(text: object) -> datetime:
    """Return the moment that is written in ISO 8601 with its zone, in UTC; ValueError where it isn't."""
    try:
        if not isinstance(text, str):
            raise ValueError
        at = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))  # Python 3.10 doesn't read the Z
        if at.tzinfo is None:
            raise ValueError
        return at.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError(f"at must be a time such as 2026-11-27T18:30:00Z, got {text!r:.50}") from None


def position(row: Row) -> tuple[int, int]:
    """Return where the record of a row stands in the log. Those of an order share a partition: its id is their key."""
    return row["log_offset"], row["log_partition"]


def objection(status: str, new: str) -> str | None:
    """Return why an order of this status can't take the new one, None where it can."""
    if new in NEXT[status]:
        return None
    if new == status or not NEXT[status]:
        return f"it was {status} already"
    return f"it was {status}, and the next is {' or '.join(NEXT[status])}"


def settle(order: Row | None, changes: Iterable[Row]) -> tuple[Row | None, list[Row]]:
    """Return the order, None where it isn't known yet, and its changes as they stand after all of them."""
    judged = []
    if order:
        order = order | {"status": "placed", "changed_at": order["placed_at"]}
    for change in sorted(changes, key=position):
        outcome, reason = "waiting", None
        if order and (reason := objection(order["status"], change["status"])):
            outcome = "refused"
        elif order:
            outcome = "applied"
            order = order | {"status": change["status"], "changed_at": change["changed_at"]}
        judged.append(change | {"outcome": outcome, "reason": reason})
    return order, judged
