"""The tables. What makes them, and changes them in a database that is in use, stands in migrations/."""

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
)

# Every constraint has a name, by which a later migration can take it away.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)
# Sorted by its bytes, as SQLite does it: faster than by a language's rules, and the same on every machine.
Name = Text().with_variant(Text(collation="C"), "postgresql")


class Instant(TypeDecorator[datetime]):
    """A moment in UTC: of its own type in PostgreSQL, in SQLite as text that sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.replace(tzinfo=value.tzinfo or timezone.utc)


orders = Table(
    "orders",
    metadata,
    Column("order_id", Name),
    Column("user_name", Name, nullable=False),  # `user` is a word of SQL
    Column("item", Name, nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("further", Text),  # the order's further fields, a JSON object
    Column("placed_at", Instant, nullable=False),  # the time of the record
    Column("status", Name, nullable=False),
    Column("changed_at", Instant, nullable=False),
    Column("log_partition", Integer, nullable=False),
    Column("log_offset", BigInteger, nullable=False),
    PrimaryKeyConstraint("order_id"),
    CheckConstraint("quantity BETWEEN 1 AND 2147483647", "quantity"),
    Index(None, "placed_at", "order_id"),
    Index(None, "user_name", "placed_at", "order_id"),
    Index(None, "item", "placed_at", "order_id"),
    Index(None, "status", "placed_at", "order_id"),
    Index(None, "item", "status", "placed_at", "order_id"),  # many of each there may be, and none of both
)

status_changes = Table(
    "status_changes",
    metadata,
    Column("order_id", Name),
    Column("status", Name),
    Column("changed_at", Instant),
    Column("changed_by", Name),
    Column("outcome", Name, nullable=False),  # applied, refused, or waiting for its order
    Column("reason", Text),  # why it was refused
    Column("log_partition", Integer, nullable=False),
    Column("log_offset", BigInteger, nullable=False),
    # What was sent twice is one change.
    PrimaryKeyConstraint("order_id", "status", "changed_at", "changed_by"),
)

# Kept with each change, as counting a million orders takes a while.
totals = Table(
    "totals",
    metadata,
    Column("item", Name),
    Column("status", Name),
    Column("orders", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    PrimaryKeyConstraint("item", "status"),
)

# The record of each partition that the tables come to next. It moves in the transaction that moves them.
offsets = Table(
    "offsets",
    metadata,
    Column("topic", Name),
    Column("partition", Integer),
    Column("next_offset", BigInteger, nullable=False),
    PrimaryKeyConstraint("topic", "partition"),
)
