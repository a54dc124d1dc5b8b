"""What a list of records makes of the tables: read what is known of their orders, settle it, write what has changed."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from next_steps.history.life import Row, position, settle
from next_steps.history.tables import orders, status_changes, totals


def write(connection: sa.Connection, new_orders: Iterable[Row], new_changes: Iterable[Row]) -> Counter[str]:
    """Bring the tables to what they are with these rows too, which may have come before; return how many are new."""
    order_ids = list({row["order_id"] for row in (*new_orders, *new_changes)})
    known = {row["order_id"]: row for row in rows_of(connection, orders, order_ids)}
    known_changes = {key_of(row): row for row in rows_of(connection, status_changes, order_ids)}
    placed = first_in_log(known, new_orders, lambda row: row["order_id"])
    lives: dict[str, list[Row]] = {}
    for change in first_in_log(known_changes, new_changes, key_of).values():
        lives.setdefault(change["order_id"], []).append(change)
    judged = []
    for order_id, changes in lives.items():
        order, settled = settle(placed.get(order_id), changes)
        judged += settled
        if order:
            placed[order_id] = order
    changed = [row for order_id, row in placed.items() if row != known.get(order_id)]
    upsert(connection, orders, changed)
    upsert(connection, status_changes, [row for row in judged if row != known_changes.get(key_of(row))])
    add_up(connection, known, changed)
    more = [row["outcome"] for row in judged if key_of(row) not in known_changes]
    counts = {"orders": len(placed) - len(known), "status changes": len(more)}
    return Counter(counts | {outcome: more.count(outcome) for outcome in ("refused", "waiting")})


def key_of(change: Row) -> tuple[Any, ...]:
    """Return what a change has in common with its repetitions."""
    return change["order_id"], change["status"], change["changed_at"], change["changed_by"]


def first_in_log(known: dict[Any, Row], new: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, Row]:
    """Return one row for each key: of those that say the same, the one whose record comes first in the log."""
    found = dict(known)
    for row in new:
        other = found.setdefault(key(row), row)
        if position(row) < position(other):
            found[key(row)] = row
    return found


def add_up(connection: sa.Connection, known: dict[str, Row], changed: Iterable[Row]) -> None:
    """Take the orders out of the totals that they were in, and put them into those that they are in now."""
    more: dict[tuple[str, str], Row] = {}
    for row in changed:
        for order, sign in ((known.get(row["order_id"]), -1), (row, 1)):
            if order:
                key = order["item"], order["status"]
                total = more.setdefault(key, {"item": key[0], "status": key[1], "orders": 0, "quantity": 0})
                total["orders"] += sign
                total["quantity"] += sign * order["quantity"]
    upsert(connection, totals, [more[key] for key in sorted(more)], add=True)
    if less := [key[0] for key, total in more.items() if total["orders"] < 0]:
        connection.execute(sa.delete(totals).where(totals.c.item.in_(less), totals.c.orders == 0))


def rows_of(connection: sa.Connection, table: sa.Table, order_ids: Sequence[str]) -> list[Row]:
    """Return the table's rows of these orders."""
    if connection.dialect.name == "postgresql":
        ids: Any = order_ids
        among = table.c.order_id == sa.any_(sa.bindparam("ids", type_=postgresql.ARRAY(sa.Text)))
    else:
        ids = json.dumps(order_ids)
        among = table.c.order_id.in_(sa.select(sa.func.json_each(sa.bindparam("ids")).table_valued("value").c.value))
    return [dict(row) for row in connection.execute(sa.select(table).where(among), {"ids": ids}).mappings()]


def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row], add: bool = False) -> None:
    """Write the rows, one for each key, over those that are there; `add` adds their numbers to them."""
    if not rows:
        return
    statement: Any = sqlite.insert(table)
    parameters: Any = rows
    if connection.dialect.name == "postgresql":  # one statement, with an array a column: executemany sends one a row
        kinds = {c.name: sa.Text() if isinstance(c.type, sa.Text) else c.type for c in table.c}  # without collation
        arrays = [sa.bindparam(name, type_=postgresql.ARRAY(kind)) for name, kind in kinds.items()]
        columns = [sa.column(name, kind) for name, kind in kinds.items()]
        each = sa.func.unnest(*arrays).table_valued(*columns).render_derived()
        statement = postgresql.insert(table).from_select(list(kinds), sa.select(each))
        parameters = {name: [row[name] for row in rows] for name in kinds}
    new = {
        c.name: c + statement.excluded[c.name] if add else statement.excluded[c.name]
        for c in table.c
        if not c.primary_key
    }
    keys = list(table.primary_key.columns)
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=new), parameters)
