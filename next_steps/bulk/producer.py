"""Send many orders to Kafka: those of a file or a pipe, which has a JSON object a line, and not faster than you want.

    python -m next_steps.bulk.producer -l orders.jsonl --rate 500    - in place of the file is stdin
    python -m next_steps.bulk.producer -c 1000 --user ana            a thousand times the order of the flags

Its heart is paced(), a generator of orders for producer.send() that serves Kafka while the next one is not there.
Exit status: that of producer.py, 1 also where a line held no order.
"""

import argparse
import math
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from confluent_kafka import Producer

from next_steps.bulk.json_lines import TICK, read_orders
from producer import Order, command_line, main, new_order, send, show

SILENCE = 10  # seconds in which Kafka may confirm nothing before that is said


def paced(
    orders: Iterator[Order | None], seen: Counter[str], producer: Producer, args: argparse.Namespace, stop: Any
) -> Iterator[Order]:
    """Yield the orders, not faster than --rate, and serve Kafka while the next one is not there or not due."""
    due, watching = time.monotonic(), watch(producer, args, seen)
    while not stop and seen["orders"] != args.count:
        next(watching)
        now = time.monotonic()
        try:
            order = next(orders) if now >= due else None
        except StopIteration:
            break
        if order is None:
            show()
            producer.poll(max(0, min(due - now + 0.001, TICK)))  # runs the delivery reports that have come in
        else:
            seen["orders"] += 1
            due = max(due, now - TICK) + 1 / args.rate  # makes up for waiting a little long, not for an outage
            yield order
    seen["ended"] = not stop


def watch(producer: Producer, args: argparse.Namespace, seen: Counter[str]) -> Iterator[None]:
    """Show each second on a terminal how many orders there were, and say when Kafka confirmed none for SILENCE."""
    confirmed, seconds, looked = 0, 0, time.monotonic()
    while True:
        yield
        if time.monotonic() - looked < 1:
            continue
        looked = time.monotonic()
        if args.progress:
            print(f"{seen['orders']:,} orders", end="\r", file=sys.stderr, flush=True)  # other lines are longer
        waiting = len(producer)
        seconds = seconds + 1 if waiting and confirmed == seen["orders"] - waiting else 0
        confirmed = seen["orders"] - waiting
        if seconds and seconds % SILENCE == 0:
            print(f"Still waiting for Kafka to confirm {waiting} of the orders", file=sys.stderr)


def send_many(producer: Producer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Send the orders of the lines, or that of the flags again and again; return how many lines or orders failed."""
    seen: Counter[str] = Counter()
    name = "stdin" if args.lines == 0 else str(args.lines)
    args.progress = sys.stderr.isatty() and (args.quiet or not sys.stdout.isatty())
    if args.quiet:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    orders: Iterator[Order | None]
    if args.lines is None:
        args.count = args.count or 1
        orders = (new_order(args.user, args.item, args.quantity) for _ in repeat(None))
    else:
        orders = read_orders(args.lines, name, seen)
    try:
        return send(producer, args.topic, paced(orders, seen, producer, args, stop), stop=stop) + seen["bad lines"]
    finally:
        if args.progress:
            print(f"\r{seen['orders']:,} orders", file=sys.stderr)
        if seen["orders"] and args.lines is not None and not seen["ended"]:
            print(f"Stopped after line {seen['lines']} of {name}", file=sys.stderr)


def input_file(name: str) -> str | int:
    """Return what open() takes for the name; ArgumentTypeError where it can't be opened."""
    file: str | int = 0 if name == "-" else name
    try:
        if not stat.S_ISFIFO(os.stat(file).st_mode):  # which would wait here for the process that writes to it
            open(file, "rb", closefd=file != 0).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return file


def rate(text: str) -> float:
    """Return the number; ValueError where it isn't above 0."""
    if not (number := float(text)) > 0:
        raise ValueError
    return number


if __name__ == "__main__":
    parser = command_line()
    parser.description = __doc__
    parser.set_defaults(count=None)
    parser.add_argument("-l", dest="lines", type=input_file, metavar="FILE", help="a file of JSON Lines, - for stdin")
    parser.add_argument("--rate", type=rate, default=math.inf, metavar="N", help="send at most N orders a second")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no line per order")
    sys.exit(main(parser=parser, run=send_many))
