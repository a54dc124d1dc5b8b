"""What the page asks the database: each page of the list by its key, so that it is as quick behind a million orders."""

import base64
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa

from next_steps.history import show
from next_steps.history.life import NEXT, Row
from next_steps.history.tables import orders, status_changes, totals

MANY = 1000  # of what is newer, no more is counted
MINUTES = 30  # of the chart

# What the list is sorted by; an index of the table serves each of them.
SORTS = {
    "time": [orders.c.placed_at, orders.c.order_id],
    "user": [orders.c.user_name, orders.c.placed_at, orders.c.order_id],
    "item": [orders.c.item, orders.c.placed_at, orders.c.order_id],
    "status": [orders.c.status, orders.c.placed_at, orders.c.order_id],
}


@dataclass(frozen=True)
class Search:
    """What is asked of the list: filters, None for none, how it is sorted, and where the page begins."""

    user: str | None = None
    item: str | None = None
    status: str | None = None
    order_id: str | None = None  # or how it begins
    since: datetime | None = None
    until: datetime | None = None
    sort: str = "time"
    descending: bool = True
    limit: int = 50
    after: str | None = None  # the key of the row before the page
    before: str | None = None  # the key of the row behind it
    top: str | None = None  # the key of the row that the reader has at the top: what came above it is only counted


@dataclass(frozen=True)
class Page:
    """A page of the list, and what is around it."""

    orders: list[Row]
    above: int  # how many rows came above `top`, at most MANY
    first: bool  # nothing is before it
    next: str | None  # the key to go on after, None at the end
    previous: str | None  # the key to go back before, None at the beginning
    top: str | None  # the key of its first row


def cursor(row: Row, sort: str) -> str:
    """Return the key of a row as text for a URL."""
    values = [value.isoformat() if isinstance(value := row[c.name], datetime) else value for c in SORTS[sort]]
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def key(text: str, sort: str) -> sa.ColumnElement[Any]:
    """Return the key that cursor() has written; ValueError where it is none of this way to sort."""
    try:
        values = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        *name, at, order_id = values
        if len(values) != len(SORTS[sort]) or not all(isinstance(value, str) for value in values):
            raise ValueError
        known = [*name, datetime.fromisoformat(at).astimezone(timezone.utc), order_id]
        return sa.tuple_(*(sa.literal(value, column.type) for value, column in zip(known, SORTS[sort], strict=True)))
    except (ValueError, TypeError, OverflowError):
        raise ValueError("the cursor is none of this list") from None


def matching(search: Search, *columns: Any) -> sa.Select[Any]:
    """Return the query for what the filters let through."""
    query = show.filtered(sa.select(*columns), search)
    if search.order_id:  # a range, which the key serves; ~ comes behind all that an id has
        query = query.where(orders.c.order_id >= search.order_id, orders.c.order_id < search.order_id + "~")
    return query


def find(connection: sa.Connection, search: Search) -> Page:
    """Return the page that is asked for; ValueError where a key is none."""
    columns = SORTS[search.sort]
    own = sa.tuple_(*columns)
    top = key(search.top, search.sort) if search.top else None
    down = search.descending == (search.before is None)  # to what is before, it goes backwards
    query = matching(search, *show.LIST).order_by(*[column.desc() if down else column.asc() for column in columns])
    if edge := search.before or search.after:
        at = key(edge, search.sort)
        query = query.where(own < at if down else own > at)
    elif top is not None:
        query = query.where(own <= top if down else own >= top)
    found = show.rows(connection, query.limit(search.limit + 1))
    more, found = len(found) > search.limit, found[: search.limit]
    if search.before is not None:
        if not more:  # the first page, which is filled
            return find(connection, replace(search, before=None, after=None))
        found.reverse()
    above = 0
    if top is not None:
        newer = matching(search, sa.literal(1)).where(own > top if search.descending else own < top)
        above = connection.execute(sa.select(sa.func.count()).select_from(newer.limit(MANY).subquery())).scalar_one()
    first_key, last_key = (cursor(row, search.sort) for row in (found[0], found[-1])) if found else (None, None)
    first = not edge
    return Page(found, above, first, last_key if more else None, None if first else first_key, first_key)


def one(connection: sa.Connection, order_id: str) -> Row | None:
    """Return the order, None where it isn't there."""
    return next(iter(show.rows(connection, sa.select(orders).where(orders.c.order_id == order_id))), None)


def outcome(connection: sa.Connection, order_id: str, status: str, at: datetime, by: str) -> tuple[str, str | None]:
    """Return what became of a change, and the reason where it was refused; it waits while the store is behind."""
    of = status_changes.c
    own = (of.order_id == order_id, of.status == status, of.changed_at == at, of.changed_by == by)
    found = connection.execute(sa.select(of.outcome, of.reason).where(*own)).first()
    return (found.outcome, found.reason) if found else ("waiting", None)


def counts(connection: sa.Connection) -> dict[str, int]:
    """Return how many orders there are of each status."""
    query = sa.select(totals.c.status, sa.func.sum(totals.c.orders)).group_by(totals.c.status)
    known = {status: int(number) for status, number in connection.execute(query)}
    return {status: known.get(status, 0) for status in NEXT}


def in_utc(at: datetime | None) -> datetime | None:
    """Return the moment in UTC, where it names no zone as UTC; OverflowError where there is no such year."""
    return at and (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)


def minute(at: datetime) -> datetime:
    """Return the beginning of its minute."""
    return at.replace(second=0, microsecond=0)


def in_minute(connection: sa.Connection, begin: datetime) -> int:
    """Return how many orders were placed in the minute that begins then."""
    of_then = sa.select(sa.func.count()).select_from(orders).where(orders.c.placed_at >= begin)
    return connection.execute(of_then.where(orders.c.placed_at < begin + timedelta(minutes=1))).scalar_one()
