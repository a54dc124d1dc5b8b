"""Users of the page in a database: passwords, roles, sessions, and a log of who did what."""

import functools
import hashlib
import secrets
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from sqlalchemy.exc import SQLAlchemyError

from next_steps.history.database import connect
from next_steps.history.tables import Instant, Name

ROLES = ("viewer", "manager")  # each may do what those before it may
PASSWORD = (12, 1000)  # characters at least, and at most
NAME = 64  # characters at most
IDLE, LIFE = timedelta(hours=1), timedelta(hours=12)  # a session ends so long after its last request, and its login
TOUCH = timedelta(minutes=1)  # how exactly its last request is kept
HASHER = PasswordHasher()  # Argon2id as RFC 9106 has it for little memory: 64 MiB for each password that is tried

metadata = sa.MetaData()
users = sa.Table(
    "users",
    metadata,
    sa.Column("name", Name, primary_key=True),
    sa.Column("role", Name, nullable=False),
    sa.Column("password_hash", sa.Text, nullable=False),
)
# Of a session's token only a hash is kept: who reads the table can't use the sessions.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("token_hash", Name, primary_key=True),
    sa.Column("name", Name, nullable=False, index=True),
    sa.Column("began_at", Instant, nullable=False),
    sa.Column("used_at", Instant, nullable=False),
)
actions = sa.Table(
    "actions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("name", Name, nullable=False),
    sa.Column("address", Name, nullable=False),
    sa.Column("action", Name, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
)


class User(NamedTuple):
    """Who is logged in."""

    name: str
    role: str
    logged_in: bool = True


class Users:
    """The users of a database, which is made when the first one is added."""

    def __init__(self, url: sa.URL) -> None:
        self._engine, self._reading = connect(url), connect(url, read_only=True)

    def create(self) -> None:
        """Make the tables."""
        metadata.create_all(self._engine)

    def any(self) -> bool:
        """Return whether there is a user; where there is no file, none is made."""
        url = self._reading.url
        if url.drivername == "sqlite" and not Path(str(url.database)).exists():
            return False
        try:
            with self._reading.begin() as connection:
                return connection.execute(sa.select(users.c.name).limit(1)).first() is not None
        except SQLAlchemyError:
            if sa.inspect(self._reading).has_table("users"):
                raise
            return False

    def put(self, name: str, role: str | None = None, password: str | None = None) -> None:
        """Add a user, or change what is given; what may no longer be is ended with it: the user's sessions."""
        given: dict[str, Any] = {"role": role} if role else {}
        if password is not None:
            given["password_hash"] = HASHER.hash(password)
        with self._engine.begin() as connection:
            if not connection.execute(users.update().where(users.c.name == name).values(**given)).rowcount:
                connection.execute(users.insert().values(name=name, **given))
            connection.execute(sessions.delete().where(sessions.c.name == name))

    def remove(self, name: str) -> None:
        """Remove a user, and end the sessions."""
        with self._engine.begin() as connection:
            connection.execute(users.delete().where(users.c.name == name))
            connection.execute(sessions.delete().where(sessions.c.name == name))

    def all(self) -> dict[str, str]:
        """Return the role of each user."""
        with self._reading.begin() as connection:
            return {row.name: row.role for row in connection.execute(sa.select(users).order_by(users.c.name))}

    def verify(self, name: str, password: str) -> bool:
        """Return whether the password is the user's; it takes a tenth of a second, whether there is such a user or not.

        A hash of older parameters is made anew.
        """
        with self._reading.begin() as connection:
            row = connection.execute(sa.select(users).where(users.c.name == name)).first()
        try:
            HASHER.verify(row.password_hash if row else no_password(), password)
        except (Argon2Error, InvalidHashError):
            return False
        if row and HASHER.check_needs_rehash(row.password_hash):
            with self._engine.begin() as connection:
                anew = HASHER.hash(password)
                connection.execute(users.update().where(users.c.name == name).values(password_hash=anew))
        return row is not None

    def begin(self, name: str) -> str:
        """Return the token of a new session; those that are over are forgotten."""
        token, now = secrets.token_urlsafe(32), datetime.now(timezone.utc)
        with self._engine.begin() as connection:
            over = (sessions.c.used_at < now - IDLE) | (sessions.c.began_at < now - LIFE)
            connection.execute(sessions.delete().where(over))
            connection.execute(sessions.insert().values(token_hash=hashed(token), name=name, began_at=now, used_at=now))
        return token

    def end(self, token: str) -> None:
        """End the session."""
        with self._engine.begin() as connection:
            connection.execute(sessions.delete().where(sessions.c.token_hash == hashed(token)))

    def of(self, token: str) -> User | None:
        """Return who has the session, None where it is over."""
        now = datetime.now(timezone.utc)
        mine = sessions.c.token_hash == hashed(token)
        asked = sa.select(sessions, users.c.role).join(users, users.c.name == sessions.c.name).where(mine)
        with self._reading.begin() as connection:
            row = connection.execute(asked).first()
        if row is None or now - row.used_at > IDLE or now - row.began_at > LIFE:
            return None
        if now - row.used_at > TOUCH:
            with self._engine.begin() as connection:
                connection.execute(sessions.update().where(mine).values(used_at=now))
        return User(row.name, row.role)

    def note(self, name: str, address: str, action: str, target: str = "") -> None:
        """Write into the log who did what, from where."""
        now = datetime.now(timezone.utc)
        with self._engine.begin() as connection:
            connection.execute(
                actions.insert().values(at=now, name=name, address=address, action=action, target=target)
            )

    def log(self, limit: int) -> list[Any]:
        """Return the newest of the log, in the order of time."""
        newest = sa.select(actions).order_by(actions.c.number.desc()).limit(limit)
        with self._reading.begin() as connection:
            return [*connection.execute(newest)][::-1]


@functools.cache
def no_password() -> str:
    """Return a hash that no password has: by it an unknown name takes as long as a known one."""
    return HASHER.hash(secrets.token_urlsafe())


def hashed(token: str) -> str:
    """Return what is kept of a token. It is random and long, so that one round is enough."""
    return hashlib.sha256(token.encode()).hexdigest()
