"""What benchmark.py --security measures: the pair on the broker of next_steps/security, beside the plain one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark import LIMIT, REPEATS, Row, ours, rate, running
from broker import Broker
from secured import Secured

SECURITY_NOTES = """
Medians (lowest to highest). The last column divides the first row of its section by the row: what is left of the speed.

- The same scripts, machine, Java and topic of one partition, on two brokers that both run all the time; one is as
  docker-compose.yml says, the other as next_steps/security/docker-compose.yml does: TLS 1.3, SCRAM-SHA-512, rules.
- One order: a whole process, from start to the line, read from a pipe. Rates: whole processes, output to a file.
"""


@contextlib.contextmanager
def security(folder: Path, orders: int) -> Iterator[Callable[[], Iterator[Row]]]:
    """Start both brokers, and yield a function that measures everything once."""
    secured = Secured(folder / "secrets")
    with Broker(folder / "plain") as plain, secured.broker:
        secured.apply()
        login = {user: ["-F", str(secured.file(user)), "-b", secured.servers] for user in ("producer", "tracker")}
        brokers = {"plain": (plain.bootstrap, {"producer": [], "tracker": []}), "TLS, SCRAM": (secured.servers, login)}

        def measured() -> Iterator[Row]:
            for name, (servers, flags) in brokers.items():
                producing = ours("producer.py", servers, "orders", 1, *flags["producer"])
                for _ in range(REPEATS):
                    begin = time.perf_counter()
                    with running(producing, PYTHONUNBUFFERED="1") as process:
                        assert process.stdout.readline().startswith(b"Message delivered")
                        yield "One order, ms", name, (time.perf_counter() - begin) * 1000
                        process.wait(LIMIT)
                command = ours("producer.py", servers, "orders", orders, *flags["producer"])
                yield "Producing, orders/s", name, rate(command, orders, orders)
                # One group, which has the right: each time it reads on where the one before has stopped.
                command = ours("tracker.py", servers, "orders", orders, *flags["tracker"])
                yield "Tracking, orders/s", name, rate(command, orders, orders + 1)

        yield measured
