"""The database of the history, SQLite or PostgreSQL: where it is, how it is opened, and how its tables are kept."""

import argparse
import contextlib
import re
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from tracker import printable

HERE = Path(__file__).parent
VERSIONS = "order_history_version"  # the table that says which migrations were made
LIMIT = 10  # seconds in which the database has to serve, at the start
HANGS = 20  # seconds after which a transaction is given up: the network or the server froze
# PostgreSQL ends what stands still: a store that was frozen in a transaction would keep all others out.
SESSION = "-c timezone=UTC -c lock_timeout=5s -c idle_in_transaction_session_timeout=10s"
NETWORK = {
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "tcp_user_timeout": 10_000,
}

# It doesn't serve now: it is stopped, starting, locked, full, or only takes questions while another one takes over.
AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError)
ADVICE = "See that it runs, and check --database"


def add_database(parser: argparse.ArgumentParser) -> None:
    """Give the parser the flag --database."""
    parser.add_argument(
        "--database",
        type=address,
        default="sqlite:///orders.db",
        metavar="URL",
        help="where the history is, @FILE: a file with the URL (%(default)s)",
    )


def address(text: str) -> sa.URL:
    """Return the URL, that of a file for @FILE; ArgumentTypeError where it is none, or shows a password."""
    try:
        given = Path(text[1:]).read_text("utf-8-sig").strip() if text.startswith("@") else text
        url = sa.make_url(given)
    except (OSError, ValueError, SQLAlchemyError) as error:
        why = f": {error}" if isinstance(error, OSError) else ""  # another one would show a password
        raise argparse.ArgumentTypeError(
            f"that is no URL such as sqlite:///orders.db, nor @FILE with one{why}"
        ) from None
    if given is text and (url.password or "password" in url.query):
        raise argparse.ArgumentTypeError("a URL shows its password: put it into a file, @FILE, or use PGPASSFILE")
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise argparse.ArgumentTypeError(f"{url.drivername!a} is neither sqlite nor postgresql+psycopg")
    if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
        raise argparse.ArgumentTypeError("a history in memory would be lost: name a file, sqlite:///orders.db")
    return url


def connect(url: sa.URL, read_only: bool = False, schema: str | None = None) -> sa.Engine:
    """Return what connects to the database, in PostgreSQL to a schema, and has not yet."""
    if url.drivername == "sqlite":
        file = Path(str(url.database)).resolve().as_uri() + ("?mode=ro" if read_only else "")
        engine = sa.create_engine(
            url, creator=partial(sqlite3.connect, file, uri=True, timeout=LIMIT / 2, check_same_thread=False)
        )
    else:
        session = SESSION + (f" -c search_path={schema}" if schema else "")
        engine = sa.create_engine(url, connect_args={"options": session} | NETWORK)

    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: object) -> None:
        if url.drivername == "sqlite":
            connection.isolation_level = None  # or the driver would begin by itself, and not before each statement
            if not read_only:
                connection.execute("PRAGMA journal_mode=WAL")  # readers and the writer don't wait for each other
            connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may take the last rows, with their offsets
            connection.execute("PRAGMA cache_size=-65536")  # KiB

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        """Let one writer in at a time: what it reads is then still so when it writes."""
        if url.drivername == "sqlite":
            connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
        elif not read_only:
            connection.exec_driver_sql(
                "SELECT pg_advisory_xact_lock(hashtext('order-history'), hashtext(current_schema()))"
            )

    return engine


@contextlib.contextmanager
def transaction(engine: sa.Engine, limit: float = HANGS) -> Iterator[sa.Connection]:
    """Yield a connection in a transaction, which a server that froze holds for `limit` seconds at most."""
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        watch = threading.Timer(limit, hang_up, [raw])
        watch.daemon = True
        if engine.dialect.name == "postgresql":  # SQLite is no server
            watch.start()
        try:
            with connection.begin():
                yield connection
        finally:
            watch.cancel()


def hang_up(connection: Any) -> None:
    """End the network connection, so that whoever waits for its answer goes on, with an error."""
    with contextlib.suppress(Exception):  # it was closed meanwhile
        line = socket.socket(fileno=connection.pgconn.socket)
        try:
            line.shutdown(socket.SHUT_RDWR)
        finally:
            line.detach()


def reason(error: Exception) -> str:
    """Return what the database said, in a line that can't drive a terminal."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return printable(" ".join(str(said).split())[:300].rstrip(".") or type(said).__name__)


def is_refusal(error: Exception) -> bool:
    """Return whether the database, or its driver, doesn't take one of the rows."""
    cause = error.orig if type(error) is StatementError else error  # which is what it found wrong before it asked
    return isinstance(cause, sa.exc.DataError | sa.exc.IntegrityError | UnicodeError | OverflowError)


def newest() -> str:
    """Return the version of the tables that this code needs: that of the migration which no other one follows.

    Alembic knows it too, but importing it takes a third of the time in which a command starts.
    """
    text = "".join(file.read_text("utf-8") for file in (HERE / "migrations" / "versions").glob("*.py"))
    made, followed = (re.findall(rf"^{name} = ['\"](.+)['\"]", text, re.M) for name in ("revision", "down_revision"))
    (version,) = {*made} - {*followed}
    return str(version)


def versions(connection: sa.Connection) -> tuple[str | None, str]:
    """Return which version the tables have, None for none, and which one this code needs."""
    if not sa.inspect(connection).has_table(VERSIONS):
        return None, newest()
    return connection.scalar(sa.select(sa.column("version_num")).select_from(sa.table(VERSIONS))), newest()


def upgrade(engine: sa.Engine) -> None:
    """Make the tables, or bring older ones up to date; SystemExit where newer code has made them."""
    with engine.begin() as connection:  # which may take its time
        current, head = versions(connection)
        if current == head:
            return
        import alembic.command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config(HERE / "alembic.ini")
        known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
        if current and current not in known:
            sys.exit(f"The database has tables of version {current}, which is newer than this code's {head}. Update it")
        if current:
            print(f"Upgrading the tables of the database from version {current} to {head}", file=sys.stderr)
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def take_samples(engine: sa.Engine) -> None:
    """Let SQLite see how the values are spread, by which it chooses an index; with this limit it takes milliseconds."""
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA analysis_limit=1000")
        connection.exec_driver_sql("ANALYZE")


def ready(engine: sa.Engine, stop: Sequence[object]) -> None:
    """Return once the database answers and has the tables, or at `stop`; SystemExit says what is wrong with it."""
    deadline = time.monotonic() + LIMIT
    while not stop:
        try:
            upgrade(engine)
            break
        except AWAY as error:
            if time.monotonic() > deadline:
                sys.exit(f"The database {engine.url} did not serve within {LIMIT} s: {reason(error)}. {ADVICE}")
        except SQLAlchemyError as error:
            sys.exit(f"The database {engine.url} can't be used: {reason(error)}. {ADVICE}")
        time.sleep(0.2)  # it may just start
