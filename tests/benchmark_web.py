"""What benchmark.py --web measures: the page of next_steps/web, beside the bare framework."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import peers
from benchmark import LIMIT, REPEATS, ROOT, Broker, Row, new_topic, peer, rate, running, stores, various
from broker import free_port
from confluent_kafka import Producer

CONNECTIONS, LIVE_PAGES = 32, 500
PER_SECOND, SECONDS = 50, 10  # orders that arrive while a browser looks
WEB_NOTES = f"""
Medians (lowest to highest). The last column divides the first row of its section, ours, by the row.

- POST: {CONNECTIONS} connections, each with one order after the other, by a client in a process of its own; an order is
  answered once Kafka has confirmed it. Ours has no store in its process; "with store" has, and it stores these orders.
- Bare framework: FastAPI on the same server, with one Producer and a thread for its reports. It checks types only, has
  no header, no limit and no key, and looks neither at the database nor at the broker.
- A page: GET / from a server that is running, by another address each time, so that none was kept.
- On screen: from the delivery report of an order to its row in Chromium, {PER_SECOND} orders a second for {SECONDS} s.
- Memory: resident, with {LIVE_PAGES} open streams of events, and before.
"""


@contextlib.contextmanager
def web(folder: Path, orders: int) -> Iterator[Callable[[], Iterator[Row]]]:
    """Start a broker, store so many orders, and yield a function that measures everything once."""
    with Broker(folder / "broker") as broker:
        servers = broker.bootstrap
        full, topic = f"sqlite:///{folder / 'full.db'}", new_topic(servers)
        various(servers, topic, orders)
        rate(stores(servers, topic, orders, topic, full), orders, 0)
        posts = max(orders // 15, CONNECTIONS)

        def measured() -> Iterator[Row]:
            where, port = new_topic(servers), free_port()
            pages = {
                "next_steps.web": page(servers, where, port, "--database", full),
                "bare framework": peer(peers.bare_web, servers, where, port),
                "next_steps.web with store": page(servers, where, port),
            }
            for name, command in pages.items():
                with served(command, port, folder / uuid.uuid4().hex):
                    load(port, CONNECTIONS * 10)
                    seconds, took = load(port, posts)
                yield f"POST of {posts:,} orders, orders/s", name, len(took) / seconds
                yield "POST, p99, ms", name, statistics.quantiles(took, n=100)[98]
            with served(page(servers, topic, port, "--database", full), port, folder) as child:
                for _ in range(REPEATS):
                    start = time.perf_counter()
                    assert b"<tbody>" in get(port, f"/?n={uuid.uuid4()}")[1]
                    yield f"The first page out of {orders:,}, ms", "GET /", (time.perf_counter() - start) * 1000
                yield from memory_of_pages(port, child.pid)
            yield from on_screen(servers, folder)

        yield measured


def page(servers: str, topic: str, port: int, *flags: str) -> list[str]:
    """Return the command for the page."""
    topics = ["-t", topic, "--status-topic", f"{topic}.status", "--dead-letters", f"{topic}.DLQ", "-g", topic]
    own = ["--port", str(port), "--max-rate", "1000000"]
    return [sys.executable, "-m", "next_steps.web", "-b", servers, *topics, *own, *flags]


@contextlib.contextmanager
def served(command: list[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a folder until the block ends."""
    folder.mkdir(exist_ok=True)
    with (folder / "err").open("wb") as err:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": err, "stdin": subprocess.DEVNULL}
        child = subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, **quiet)
    try:
        deadline = time.monotonic() + LIMIT
        while True:
            with contextlib.suppress(OSError):
                if get(port, "/health/ready")[0] == 200:
                    break
            assert time.monotonic() < deadline, (folder / "err").read_text()
            time.sleep(0.05)
        yield child
    finally:
        child.terminate()
        child.wait()


def get(port: int, path: str) -> tuple[int, bytes]:
    """Return the status and the body that the server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def load(port: int, count: int) -> tuple[float, list[float]]:
    """Return the seconds that so many orders took, and the milliseconds of each."""
    with running(peer(peers.http_load, port, count, CONNECTIONS)) as child:
        said = json.loads(child.stdout.read())
    return said["seconds"], said["took"]


def memory_of_pages(port: int, pid: int) -> Iterator[Row]:
    """Yield the memory of the server without live pages, and with them."""

    def resident() -> float:
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) * 1024 / 1e6

    yield "Memory, MB", "no live page", resident()
    with contextlib.ExitStack() as stack:
        for _ in range(LIVE_PAGES):
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=LIMIT))
            opened.sendall(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert opened.recv(12) == b"HTTP/1.1 200"
        yield "Memory, MB", f"{LIVE_PAGES} live pages", resident()


def on_screen(servers: str, folder: Path) -> Iterator[Row]:
    """Yield two percentiles of the time from a delivery report to the row in a browser, None without a browser."""
    chromium, name = shutil.which("chromium-headless-shell") or shutil.which("chromium"), "next_steps.web with store"
    if not chromium:
        yield "Delivered to on screen, p50, ms", name, None
        return
    from playwright.sync_api import sync_playwright

    topic, port, delivered = new_topic(servers), free_port(), dict[str, float]()
    with served(page(servers, topic, port), port, folder / uuid.uuid4().hex), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        looking = browser.new_page()
        looking.goto(f"http://127.0.0.1:{port}/")
        looking.evaluate("""() => {
            window.seen = {};
            new MutationObserver(() => {
                for (const row of document.querySelectorAll("tbody tr")) window.seen[row.id.slice(2)] ??= Date.now();
            }).observe(document.body, { subtree: true, childList: true });
        }""")
        sending = threading.Thread(target=pace, args=[servers, topic, delivered])
        sending.start()
        sending.join()
        looking.wait_for_timeout(2000)
        seen, ended = looking.evaluate("seen"), time.time() * 1000
        browser.close()
    # One that 50 others had pushed off the page before it was drawn was never on the screen: it is late until the end.
    percentiles = statistics.quantiles([seen.get(key, ended) - at * 1000 for key, at in delivered.items()], n=100)
    yield "Delivered to on screen, p50, ms", name, percentiles[49]
    yield "Delivered to on screen, p99, ms", name, percentiles[98]


def pace(servers: str, topic: str, delivered: dict[str, float]) -> None:
    """Send PER_SECOND orders a second for SECONDS, and note when each was delivered."""
    client, start = Producer({"bootstrap.servers": servers, "linger.ms": 0, "log_level": 2}), time.monotonic()
    for number in range(PER_SECOND * SECONDS):
        while (rest := start + number / PER_SECOND - time.monotonic()) > 0:
            client.poll(rest)
        order = {"order_id": str(uuid.uuid4()), "user": "john", "item": "burger", "quantity": number + 1}
        key = str(order["order_id"])
        report = lambda err, msg: delivered.setdefault(msg.key().decode(), time.time())  # noqa: E731
        client.produce(topic, json.dumps(order), key, on_delivery=report)
    client.flush(LIMIT)
