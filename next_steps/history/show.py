"""Show the history of orders: a list, the newest first, the life of one of them, or totals.

    python -m next_steps.history.show --user john --status placed
    python -m next_steps.history.show --story 123e4567-e89b-12d3-a456-426614174000
    python -m next_steps.history.show --totals

A table for people, --json (an object a line) or --csv for programs. It reads what `store` writes, and changes nothing.
Exit status: 0 done, 1 the database can't be used or doesn't have that order, 2 wrong usage.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
import tabulate
from sqlalchemy.exc import SQLAlchemyError

import tracker
from next_steps.history.database import add_database, connect, reason, transaction, versions
from next_steps.history.life import NEXT, Row
from next_steps.history.tables import orders, status_changes, totals

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001
LIST = [orders.c[name] for name in ("placed_at", "order_id", "user_name", "item", "quantity", "status", "changed_at")]


def listed(connection: sa.Connection, args: argparse.Namespace) -> list[Row]:
    """Return the orders that the flags ask for, the newest first."""
    key = sa.tuple_(orders.c.placed_at, orders.c.order_id)
    query = sa.select(*LIST).order_by(orders.c.placed_at.desc(), orders.c.order_id.desc()).limit(args.limit)
    query = filtered(query, args)
    if args.order_id:
        query = query.where(orders.c.order_id == args.order_id)
    if args.after:  # by its key: counting off the rows before would take longer with each page
        last = connection.execute(sa.select(orders.c.placed_at).where(orders.c.order_id == args.after)).scalar()
        if last is None:
            sys.exit(f"There is no order {args.after} to go on after. Take one of the list")
        query = query.where(key < sa.tuple_(sa.literal(last, orders.c.placed_at.type), sa.literal(args.after)))
    return rows(connection, query)


def filtered(query: sa.Select[Any], asked: Any) -> sa.Select[Any]:
    """Return the query for the orders of the user, item, status and time that are asked for, each None for any."""
    for name, column in (("user", orders.c.user_name), ("item", orders.c.item), ("status", orders.c.status)):
        if (value := getattr(asked, name)) is not None:
            query = query.where(column == value)
    if asked.since:
        query = query.where(orders.c.placed_at >= asked.since)
    if asked.until:
        query = query.where(orders.c.placed_at < asked.until)
    return query


def story(connection: sa.Connection, order_id: str) -> list[Row]:
    """Return what happened to the order, in sequence; SystemExit where nothing did."""
    life = rows(connection, sa.select(orders).where(orders.c.order_id == order_id))
    events = [
        {"at": order["placed_at"], "status": "placed", "by": order["user_name"], "outcome": "applied"}
        | {"note": f"{order['quantity']} {order['item']}{' ' + order['further'] if order['further'] else ''}"}
        for order in life
    ]
    changes = sa.select(status_changes).where(status_changes.c.order_id == order_id)
    for change in rows(connection, changes.order_by(status_changes.c.log_offset, status_changes.c.log_partition)):
        event = {"at": change["changed_at"], "status": change["status"], "by": change["changed_by"]}
        events.append(event | {"outcome": change["outcome"], "note": change["reason"] or ""})
    if not events:
        sys.exit(f"Nothing is known of order {order_id}. See that the store runs, and look at the list")
    return events


def summed(connection: sa.Connection) -> list[Row]:
    """Return how many orders there are of each item and status, and what they add up to."""
    return rows(connection, sa.select(totals).order_by(totals.c.item, totals.c.status))


def rows(connection: sa.Connection, query: sa.Select[Any]) -> list[Row]:
    """Return what the query finds."""
    return [dict(row) for row in connection.execute(query).mappings()]


def written(value: Any) -> Any:
    """Return the value as it is shown, a time in UTC."""
    return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03}Z" if isinstance(value, datetime) else value


def as_table(names: Sequence[str], found: Sequence[Row]) -> list[str]:
    """Return the lines of a table, in which nothing drives a terminal."""
    cells = [[tracker.printable(str(row[name])) for name in names] for row in found]
    return tabulate.tabulate(cells, names, disable_numparse=True).splitlines()


def as_json(names: Sequence[str], found: Sequence[Row]) -> list[str]:
    """Return a line with an object for each row, in ASCII."""
    return [json.dumps(row) for row in found]


def as_csv(names: Sequence[str], found: Sequence[Row]) -> list[str]:
    """Return the lines of a CSV file that a spreadsheet can open: see harmless()."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([names, *([harmless(row[name]) for name in names] for row in found)])
    return text.getvalue().splitlines()


def harmless(value: object) -> object:
    """Return the value, with an apostrophe before what a spreadsheet would run as a formula (OWASP, CSV injection)."""
    text = tracker.printable(str(value))
    return value if isinstance(value, int) else f"'{text}" if text.startswith(FORMULA) else text


def moment(text: str) -> datetime:
    """Return the moment of a date or time in ISO 8601, in this machine's zone if it has none; ValueError for others."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)


def above_zero(text: str) -> int:
    """Return the whole number; ValueError where it isn't above 0."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_database(parser)
    add, what, how = parser.add_argument, parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    add("--user", metavar="NAME", help="only what this user ordered")
    add("--item", metavar="NAME", help="only orders of this item")
    add("--status", choices=NEXT, help="only orders of this status")
    add("--since", type=moment, metavar="TIME", help="placed then or later: 2026-11-27, or 2026-11-27T18:30")
    add("--until", type=moment, metavar="TIME", help="placed before then")
    add("--order-id", metavar="ORDER_ID", help="only this one")
    add("--limit", type=above_zero, default=20, metavar="N", help="at most N orders (%(default)s)")
    add("--after", metavar="ORDER_ID", help="the next page: those that follow this one in the list")
    what.add_argument("--story", metavar="ORDER_ID", help="all that happened to this order")
    what.add_argument("--totals", action="store_true", help="orders and quantity for each item and status")
    how.add_argument("--json", dest="form", action="store_const", const=as_json, default=as_table)
    how.add_argument("--csv", dest="form", action="store_const", const=as_csv)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Show what the command line asks for; return the exit status, SystemExit says what is wrong."""
    args = command_line().parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # it may lack some letters
    engine = connect(args.database, read_only=True)
    try:
        with transaction(engine) as connection:
            if lack := lacks(connection):
                sys.exit(f"The database {args.database} has {lack}. Start the store, which makes them")
            names, found = asked(connection, args)
    except SQLAlchemyError as error:
        sys.exit(f"The database {engine.url} can't be read: {reason(error)}. Start the store, or check --database")
    found = [{name: written(row[name]) for name in names} for row in found]
    if found or args.form is not as_table:
        tracker.show(args.form(names, found))
    else:
        print("No order is there that was asked for", file=sys.stderr)
    if len(found) == args.limit and args.form is as_table and not args.totals and not args.story:
        print(f"There may be more: --after {found[-1]['order_id']}", file=sys.stderr)
    return 0


def lacks(connection: sa.Connection) -> str | None:
    """Return what the database has in place of the tables that this code needs, None where it has these."""
    current, head = versions(connection)
    if current == head:
        return None
    return f"tables of version {current}, and this needs {head}" if current else "no tables"


def asked(connection: sa.Connection, args: argparse.Namespace) -> tuple[list[str], list[Row]]:
    """Return what the flags ask for: the names of the columns, and the rows."""
    if args.story:
        return ["at", "status", "by", "outcome", "note"], story(connection, args.story)
    if args.totals:
        return list(totals.c.keys()), summed(connection)
    return [column.name for column in LIST], listed(connection, args)


if __name__ == "__main__":
    sys.exit(main())
