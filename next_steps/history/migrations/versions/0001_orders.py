"""The tables of the first version."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Instant = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("order_id", Name),
        sa.Column("user_name", Name, nullable=False),
        sa.Column("item", Name, nullable=False),
        sa.Column("quantity", sa.Integer, nullable=False),
        sa.Column("further", sa.Text),
        sa.Column("placed_at", Instant, nullable=False),
        sa.Column("status", Name, nullable=False),
        sa.Column("changed_at", Instant, nullable=False),
        sa.Column("log_partition", sa.Integer, nullable=False),
        sa.Column("log_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_orders")),
        sa.CheckConstraint("quantity BETWEEN 1 AND 2147483647", name=op.f("ck_orders_quantity")),
    )
    for columns in ([], ["user_name"], ["item"], ["status"], ["item", "status"]):
        columns += ["placed_at", "order_id"]
        op.create_index(op.f(f"ix_orders_{'_'.join(columns)}"), "orders", columns)
    op.create_table(
        "status_changes",
        sa.Column("order_id", Name),
        sa.Column("status", Name),
        sa.Column("changed_at", Instant),
        sa.Column("changed_by", Name),
        sa.Column("outcome", Name, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("log_partition", sa.Integer, nullable=False),
        sa.Column("log_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "status", "changed_at", "changed_by", name=op.f("pk_status_changes")),
    )
    op.create_table(
        "totals",
        sa.Column("item", Name),
        sa.Column("status", Name),
        sa.Column("orders", sa.BigInteger, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("item", "status", name=op.f("pk_totals")),
    )
    op.create_table(
        "offsets",
        sa.Column("topic", Name),
        sa.Column("partition", sa.Integer),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_offsets")),
    )
