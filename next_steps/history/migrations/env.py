"""Runs the migrations, in the transaction of whoever asks for them."""

from alembic import context
from sqlalchemy import Connection

from next_steps.history.database import VERSIONS, address, connect, transaction
from next_steps.history.tables import metadata


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=metadata, version_table=VERSIONS, render_as_batch=True
    )  # SQLite can't change a table in place: in batch mode Alembic copies it
    with context.begin_transaction():
        context.run_migrations()


if "connection" in context.config.attributes:
    migrate(context.config.attributes["connection"])
else:  # the command `alembic`
    with transaction(connect(address(context.get_x_argument(as_dictionary=True)["database"]))) as connection:
        migrate(connection)
