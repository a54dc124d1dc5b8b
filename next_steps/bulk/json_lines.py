"""The orders of a file or a pipe that has a JSON object a line, and what such a file is where it hasn't."""

import json
import queue
import re
import shlex
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

from producer import Order, new_order, to_json

CHUNK, CHUNKS = 65_536, 16  # bytes that are read at once, and how many such pieces wait in memory
LONGEST = 16_000_000  # bytes of a line that are kept; Kafka takes orders of 1 MB unless it is told otherwise
BLANK = b" \t\r\n\xef\xbb\xbf"  # the last three are the byte order mark that some editors put at the start
TICK = 0.02  # seconds between two looks for the next line or order
# How a first line begins that is no JSON object, what that is, and the command that makes JSON Lines of it.
KINDS = (
    (rb"\xff\xfe\0\0|\0\0\xfe\xff|\0\0\0[ -~]|[ -~]\0\0\0", "UTF-32", "iconv -f UTF-32 -t UTF-8"),
    (rb"\xff\xfe|\xfe\xff|\0[ -~]|[ -~]\0", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    (rb"\x1f\x8b", "gzip", "gzip -cd"),
    (rb"PK\x03\x04", "a ZIP archive, which .xlsx is too", "unzip -p"),
    (rb".*[\0-\x08\x0e-\x1f]", "binary", ""),
    (rb"\[(?![\w. -]+\]$)", "a JSON array", "jq -c '.[]'"),
    (rb"\{.*\}\s*,$", "JSON objects with commas between them", "sed 's/,[[:space:]]*$//'"),
    (rb"\{.*\}\s*\{", "several JSON objects in a line", "jq -c ."),
    (rb"\{\s*(\"[^\"]*\"\s*:.*[^}])?$", "a JSON object over several lines", "jq -c ."),
    (rb"---|- |\w+:(\s|$)", "YAML", "yq -c '.[]'"),
    (rb"[^{<]*[,;\t]", "CSV", "mlr --icsv --ojsonl cat"),
)


def read(file: str | int, chunks: "queue.Queue[bytes | OSError]") -> None:
    """Put the bytes of the file into the queue as they come, then b"", or the error that ended it."""
    try:
        with open(file, "rb", buffering=0, closefd=file != 0) as source:
            while chunk := source.read(CHUNK):
                chunks.put(chunk)
        chunks.put(b"")
    except OSError as error:
        chunks.put(error)


def lines(file: str | int, name: str) -> Iterator[bytes | None]:
    """Yield the lines of the file, and None while the next is not there; SystemExit where it can't be read.

    A thread waits for them: nothing else that works on every system waits for a pipe and for Kafka at once.
    """
    chunks: queue.Queue[bytes | OSError] = queue.Queue(CHUNKS)
    threading.Thread(target=read, args=(file, chunks), daemon=True).start()
    line = bytearray()
    while True:
        try:
            chunk = chunks.get(timeout=TICK)
        except queue.Empty:
            yield None
            continue
        if isinstance(chunk, OSError):
            sys.exit(f"{name} could not be read to its end: {chunk.strerror}")
        if not chunk:
            break
        first, *others = chunk.split(b"\n")
        line += first[: LONGEST + 1 - len(line)]
        for other in others:
            yield bytes(line)
            line = bytearray(other)
    if line:
        yield bytes(line)


def read_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object in the line; ValueError says what it holds instead."""
    if len(line) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST:,} bytes")
    try:
        record = json.loads(line.strip(BLANK).decode())
    except UnicodeDecodeError:
        text = line.decode("utf-8", "replace")
        raise ValueError(f"it is no UTF-8, which iconv can make of it: {text!r:.50}") from None
    except json.JSONDecodeError:
        raise ValueError(f"it is no JSON: {line.strip(BLANK).decode()!r:.50}") from None
    except RecursionError:
        raise ValueError("it is JSON with too many levels") from None
    if not isinstance(record, dict):
        raise ValueError(f"an order must be a JSON object, got {record!r:.50}")
    return record


def read_order(line: bytes) -> Order:
    """Return the order in a line of JSON, further fields and all; ValueError where it holds none."""
    record = read_object(line)
    fields: Order = {name: record.get(name) for name in ("user", "item", "quantity", "order_id")}
    order = new_order(**fields)
    order = {**order, **record, "order_id": order["order_id"]}
    to_json(order)  # a further field may be what JSON can't hold, such as NaN
    return order


def check(line: bytes, name: str) -> None:
    """Return if the first line is a JSON object; SystemExit says what the file is instead."""
    try:
        read_object(line)
    except ValueError as why:
        for pattern, kind, command in KINDS:
            if re.match(pattern, line.strip(BLANK), re.DOTALL):
                how = f"{command} {'' if name == 'stdin' else shlex.quote(name)}".strip()
                how = f"{how} | python -m next_steps.bulk.producer -l -" if command else "write an object a line"
                sys.exit(f"{name} is {kind} and no JSON Lines, nothing was sent. To send it: {how}")
        sys.exit(f"{name} is no JSON Lines, nothing was sent. Its first line: {why}")


def read_orders(file: str | int, name: str, seen: Counter[str]) -> Iterator[Order | None]:
    """Yield the orders of JSON Lines, and None in place of anything else; bad lines are counted and named."""
    checked = False
    for line in lines(file, name):
        order = None
        if line is not None and line.strip(BLANK):
            if not checked:
                check(line, name)
            checked = True
            try:
                order = read_order(line)
            except ValueError as why:
                seen["bad lines"] += 1
                print(f"{name}:{seen['lines'] + 1} was not sent: {why}", file=sys.stderr)
        seen["lines"] += line is not None
        yield order
    if not checked:
        sys.exit(f"{name} is empty, nothing was sent")
