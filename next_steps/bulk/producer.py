"""Send many orders: those of a file or a pipe, one JSON object a line, or as many as the flags ask for.

    python -m next_steps.bulk.producer -l orders.jsonl --rate 500    - in place of the file is stdin

Exit status: that of producer.py; 1 also where a line held no order.
"""

import argparse
import contextlib
import json
import math
import os
import queue
import re
import shlex
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from confluent_kafka import Producer

from producer import Order, command_line, main, new_order, send, to_json

CHUNK = 65_536  # bytes that are read at once
LONGEST = 16_000_000  # bytes of a line; Kafka takes orders of 1 MB, where its settings are as they come
SILENCE = 10  # seconds without a confirmation, after which that is said
TICK = 0.02  # seconds between two looks at the input while Kafka's reports are served
# How a first line looks that is no JSON object, what that is, and what makes JSON Lines of it.
KINDS = (
    (rb"\xff\xfe\0\0|\0\0\xfe\xff|\0\0\0|.\0\0\0", "UTF-32", "iconv -f UTF-32 -t UTF-8"),
    (rb"\xff\xfe|\xfe\xff|\0|.\0", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    (rb"\x1f\x8b", "gzip", "gunzip -c"),
    (rb"PK\x03\x04", "a ZIP archive, as an .xlsx is as well", "unzip -p"),
    (rb".*[\0-\x08\x0e-\x1f]", "binary", ""),
    (rb"\[", "a JSON array", "jq -c '.[]'"),
    (rb"\{.*\}\s*,$", "JSON objects with commas between them", "sed 's/, *$//'"),
    (rb"\{.*\}\s*\{", "several JSON objects in a line", "jq -c ."),
    (rb"\{\s*'", "what Python prints of a dict, and no JSON", ""),
    (rb"\{(?!.*\}$)", "a JSON object over several lines", "jq -c ."),
    (rb"---|- |\w+:", "YAML", "yq -o=json -I=0 '.[]'"),
    (rb"[^{<]*[,;\t]", "CSV", "mlr --icsv --ojsonl cat"),
)


def read(file: str | int, chunks: "queue.Queue[bytes | OSError]") -> None:
    """Put the bytes of the file into the queue as they come, b"" at its end, or the error that ended it."""
    try:
        with open(file, "rb", buffering=0, closefd=file != 0) as source:
            while chunk := source.read(CHUNK):
                chunks.put(chunk)
        chunks.put(b"")
    except OSError as error:
        chunks.put(error)


def lines(file: str | int, name: str) -> Iterator[bytes | None]:
    """Yield the lines of the file, and None whenever there is nothing at hand; SystemExit where it can't be read."""
    chunks: queue.Queue[bytes | OSError] = queue.Queue(16)
    threading.Thread(target=read, args=(file, chunks), daemon=True).start()
    begun = bytearray()
    while True:
        try:
            chunk = chunks.get_nowait()
        except queue.Empty:
            yield None
            continue
        if isinstance(chunk, OSError):
            sys.exit(f"{name} could not be read to its end: {chunk.strerror}. The lines before were sent")
        if not chunk:
            break
        first, *others = chunk.split(b"\n")
        begun += first[: LONGEST + 1 - len(begun)]
        for other in others:
            yield bytes(begun)
            begun = bytearray(other)
    if begun:
        yield bytes(begun)


def read_order(line: bytes) -> Order:
    """Return the order in a line of JSON, further fields and all; ValueError where it holds none."""
    if len(line) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST:,} bytes")
    try:
        record = json.loads(line.decode("utf-8-sig"))  # some editors put a byte order mark at the start of a file
    except json.JSONDecodeError:
        raise ValueError(f"it is no JSON: {line.decode('utf-8', 'replace')!r:.50}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"an order must be a JSON object, got {record!r:.50}")
    order = new_order(*(record.get(name) for name in ("user", "item", "quantity", "order_id")))
    order = {**order, **record, "order_id": order["order_id"]}
    to_json(order)  # a further field may be what JSON can't hold, such as NaN
    return order


def check(line: bytes, name: str) -> None:
    """Return if the first line is a JSON object; SystemExit says what the file is instead."""
    text = line.removeprefix(b"\xef\xbb\xbf").strip()
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(json.loads(text.decode()), dict):
            return
    for pattern, kind, command in KINDS:
        if re.match(pattern, text if text.startswith(b"{") else line, re.DOTALL):
            break
    else:
        kind, command = "no JSON", ""
    file = "" if name == "stdin" else f" {shlex.quote(name)}"
    how = f"{command}{file} | python -m next_steps.bulk.producer -l -" if command else "each line has to be an object"
    sys.exit(f"{name} is {kind}: nothing was sent. Make JSON Lines of it: {how}")


def read_orders(file: str | int, rejected: list[int]) -> Iterator[Order | None]:
    """Yield the orders of JSON Lines, and None whenever there is nothing at hand; other lines are named on stderr."""
    name, empty, number = "stdin" if file == 0 else str(file), True, 0
    for line in lines(file, name):
        if line is None:
            yield None
            continue
        number += 1
        if not line.strip():
            continue
        if empty:
            check(line, name)
            empty = False
        try:
            yield read_order(line)
        except ValueError as why:
            rejected.append(number)
            print(f"{name}:{number} was not sent: {why}", file=sys.stderr)
    if empty:
        sys.exit(f"{name} is empty: nothing was sent")


def paced(
    orders: Iterable[Order | None], producer: Producer, args: argparse.Namespace, stop: Sequence[object]
) -> Iterator[Order]:
    """Yield the orders at their rate, and serve the delivery reports while there is none."""
    source, count, due, shown = iter(orders), 0, time.monotonic(), time.monotonic()
    progress = sys.stderr.isatty() and (args.quiet or not sys.stdout.isatty())
    try:
        while not stop and count != args.count:
            now = time.monotonic()
            if progress and now - shown > 1:
                shown = now
                print(f"{count:,} orders", end="\r", file=sys.stderr, flush=True)
            try:
                order = next(source) if now >= due else None
            except StopIteration:
                break
            if order is None:
                sys.stdout.flush()
                producer.poll(min(max(due - now, 0.001), TICK) if now < due else TICK)
                continue
            count += 1
            due = max(due, now - TICK) + 1 / args.rate  # makes up for waiting a little long, not for an outage
            yield order
    finally:
        if progress:
            print(f"{count:,} orders", file=sys.stderr)


def send_many(producer: Producer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Send the orders of the lines, or the one of the flags as often as they say; return how many were not sent."""
    rejected: list[int] = []
    orders: Iterable[Order | None]
    if args.lines is None:
        args.count = args.count or 1
        orders = iter(lambda: new_order(args.user, args.item, args.quantity), None)
    else:
        orders = read_orders(args.lines, rejected)
    with contextlib.closing(paced(orders, producer, args, stop)) as due:
        if args.quiet:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return send(producer, args.topic, due, stop=stop) + len(rejected)


def input_file(name: str) -> str | int:
    """Return what open() takes for the name; ArgumentTypeError where it can't be opened."""
    file: str | int = 0 if name == "-" else name
    try:
        if not stat.S_ISFIFO(os.stat(file).st_mode):  # that may wait for who writes to it
            open(file, "rb", closefd=file != 0).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return file


def rate(text: str) -> float:
    """Return the number; ValueError where it is not above 0."""
    if not (number := float(text)) > 0:
        raise ValueError
    return number


if __name__ == "__main__":
    parser = command_line()
    parser.description = __doc__
    parser.set_defaults(count=None)
    parser.add_argument("-l", dest="lines", type=input_file, metavar="FILE", help="JSON Lines, - for stdin")
    parser.add_argument("--rate", type=rate, default=math.inf, metavar="N", help="at most N orders a second")
    parser.add_argument("-q", "--quiet", action="store_true", help="no line per order")
    sys.exit(main(parser=parser, run=send_many))
