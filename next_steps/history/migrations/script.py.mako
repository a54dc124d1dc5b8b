"""${message}."""

import next_steps.history.tables  # noqa: F401
import sqlalchemy as sa  # noqa: F401
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
