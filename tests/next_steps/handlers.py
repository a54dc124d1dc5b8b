"""Handlers that fail, for test_retries.py; each shows the order when it succeeds."""

import os
import random
import time
from collections import Counter

import tracker

attempts: Counter[str] = Counter()


def twice(order):
    """Fail the first two attempts at each order of `slow`."""
    attempts[order["order_id"]] += 1
    if order["user"].startswith("slow") and attempts[order["order_id"]] <= 2:
        raise TimeoutError("the kitchen did not answer")
    tracker.show(order)


def away(order):
    """Fail, for users whose name begins so, as long as there is the file that AWAY names."""
    if order["user"].startswith("away") and os.path.exists(os.environ["AWAY"]):
        raise ConnectionError("the kitchen is closed\x1b[2J")
    tracker.show(order)


def refuse(order):
    """Refuse soup for good, as long as there is the file that AWAY names."""
    if order["item"] == "soup" and os.path.exists(os.environ["AWAY"]):
        raise ValueError("no soup today")
    tracker.show(order)


def moody(order):
    """Fail one attempt in five."""
    if random.random() < 0.2:  # noqa: S311
        raise OSError
    tracker.show(order)


def stuck(order):
    """Say which order it is, and refuse it when the file that AWAY names is gone, if it had been there."""
    if order["user"].startswith("away") and os.path.exists(os.environ["AWAY"]):
        print("Stuck", flush=True)
        while os.path.exists(os.environ["AWAY"]):
            time.sleep(0.02)
        raise ValueError("too late")
    tracker.show(order)


async def later(order):
    """Return before anything was done."""
