"""A PostgreSQL server of one's own, in a folder that is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from broker import START_LIMIT, Server, free_port

if TYPE_CHECKING:
    from typing import Self

# The server refuses to be root's. Debian's package brings this user along.
USER = "postgres" if hasattr(os, "geteuid") and os.geteuid() == 0 else None


def programs() -> Path | None:
    """Return the folder of the server's programs, None where it isn't installed."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), default=None)


class Postgres(Server):
    """A server with its data in the folder, or in one of its own; anyone on this machine may do anything in it.

    What it has confirmed is on the disk, as by default.
    """

    stop_signal = signal.SIGINT  # ends all connections; otherwise it waits for them to be ended

    def __init__(self, directory: Path | None = None) -> None:
        self._stack = contextlib.ExitStack()
        # Not in a folder of pytest, which nobody but its own user may look into.
        own = directory or Path(self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        super().__init__(own)
        self.port = free_port()
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        self.data = self.directory / "data"

    def launch(self) -> None:
        if not (bin_ := programs()):
            raise RuntimeError("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
        if USER:
            shutil.chown(self.directory, USER)
        if not self.data.exists():
            initdb = [bin_ / "initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "-E", "UTF8"]
            if self._run(initdb, user=USER).wait():
                raise RuntimeError(f"initdb failed:\n{self._end_of_log()}")
        listen = ["-h", "127.0.0.1", "-p", str(self.port), "-k", self.directory]
        self.process = self._run([bin_ / "postgres", "-D", self.data, *listen], user=USER)

    def wait(self) -> Self:
        deadline = time.monotonic() + START_LIMIT
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self._connect().close()
                return self
            except psycopg.OperationalError as error:
                if "password" in str(error):  # it asks for one, so it serves
                    return self
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL does not answer:\n{self._end_of_log()}")

    def _connect(self) -> psycopg.Connection:
        own = {"host": "127.0.0.1", "port": self.port, "user": "postgres", "connect_timeout": 5}
        return psycopg.connect(**own, autocommit=True)

    def new_database(self, options: str = "") -> str:
        """Return the URL of an empty database, which was made with these options of CREATE DATABASE."""
        name = f"orders_{uuid.uuid4().hex[:12]}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name} {options}")
        return self.url.rpartition("/")[0] + f"/{name}"

    def kill(self) -> None:
        """End all processes of the server at once, as a crash of the machine does."""
        self._send(signal.SIGKILL)
        if self.process:
            self.process.wait()

    def freeze(self) -> None:
        """Let all processes of the server do nothing."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        """Send a signal to the server and to its children, which have process groups of their own."""
        if not self.process or self.process.poll() is not None:
            return
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        for pid in [self.process.pid, *(pid for pid, parent in pairs if parent == self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._stack.close()
