"""Handlers that fail, for test_retries.py; each shows the order when it succeeds."""

import json
import os
import random
import ssl
import time
from collections import Counter

import tracker
from next_steps.retries import NotRetriableError

attempts: Counter[str] = Counter()


def show(order):
    """Print the order's line."""
    print(tracker.line_for(order))


def twice(order):
    """Fail the first two attempts at each order of `slow`."""
    attempts[order["order_id"]] += 1
    if order["user"].startswith("slow") and attempts[order["order_id"]] <= 2:
        raise TimeoutError("the kitchen did not answer")
    show(order)


def away(order):
    """Fail, for users whose name begins so, as long as there is the file that AWAY names."""
    if order["user"].startswith("away") and os.path.exists(os.environ["AWAY"]):
        raise ConnectionError("the kitchen is closed\x1b[2J")
    show(order)


def away_later(order):
    """Take a second for the first order, until the others and the end have come, and be away then."""
    time.sleep(order["user"] == "first")
    away(order)


def refuse(order):
    """Refuse soup for good, as long as there is the file that AWAY names."""
    if order["item"] == "soup" and os.path.exists(os.environ["AWAY"]):
        raise NotRetriableError("no soup today")
    show(order)


def moody(order):
    """Fail one attempt in five."""
    if random.random() < 0.2:  # noqa: S311
        raise OSError
    show(order)


def stuck(order):
    """Say which order it is, and refuse it when the file that AWAY names is gone, if it had been there."""
    if order["user"].startswith("away") and os.path.exists(os.environ["AWAY"]):
        print("Stuck", flush=True)
        while os.path.exists(os.environ["AWAY"]):
            time.sleep(0.02)
        raise NotRetriableError("too late")
    show(order)


async def later(order):
    """Return before anything was done."""


def by_lines(order):
    """Yield, so that a call does nothing."""
    yield order


no_function = {}


def buggy(order):
    """Fail in a function of the standard library."""
    json.loads(order["quantity"])


OUTAGES = {
    "SSLCertVerificationError": lambda: ssl.SSLCertVerificationError("certificate has expired"),
    "JSONDecodeError": lambda: json.loads("<html>"),
    "UnicodeDecodeError": lambda: b"\xff".decode(),
    "ValueError": lambda: int("no number"),
}


def outage(order):
    """Fail once with what outages of other services come as."""
    attempts[order["user"]] += 1
    if attempts[order["user"]] == 1:
        failure = OUTAGES[order["user"]]()
        raise failure
    show(order)


def verbose(order):
    """Print more than a buffer holds."""
    print(order["user"] * 100_000)


def flushed(order):
    """Print, and flush as some do to see it at once."""
    print(tracker.line_for(order), flush=True)


def slow(order):
    """Take its time."""
    time.sleep(0.7)
    show(order)
