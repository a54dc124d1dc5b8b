"""Records that are no order: each is one line on stderr, and each good order around it comes through once."""

import json

import pytest
from conftest import committed, put

import producer

pytestmark = pytest.mark.spread
GOOD = {"order_id": "123e4567-e89b-12d3-a456-426614174000", "user": "john", "item": "burger", "quantity": 5}
POISON = {
    "a tombstone": None,
    "nothing": b"",
    "not UTF-8": b"\xff\xfe\x00",
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "not JSON": b"burger 5 from john",
    "framed for a schema registry": b"\0\0\0\0\1" + json.dumps(GOOD).encode(),
    "half of the JSON": json.dumps(GOOD).encode()[:40],
    "deep nesting": b"[" * 100_000,
    "two orders": 2 * json.dumps(GOOD).encode(),
    "more than an order": json.dumps(GOOD).encode() + b" x",
    "no object": b"[1, 2]",
    "a number": b"42",
    "a huge number": json.dumps(GOOD).encode().replace(b"5}", b"9" * 5000 + b"}"),
    "NaN": json.dumps(GOOD | {"quantity": float("nan")}).encode(),
    "infinity": json.dumps(GOOD).encode().replace(b"5}", b"1e400}"),
    "a field missing": json.dumps({"user": "john"}).encode(),
    "a wrong type": json.dumps(GOOD | {"user": {"name": "john"}}).encode(),
    "a bool for a number": json.dumps(GOOD | {"quantity": True}).encode(),
    "escape sequences": b"\x1b[2J\x1b]0;owned\x07",
    "escape sequences in a field": json.dumps(GOOD | {"quantity": "\x1b[2J\u202e"}, ensure_ascii=False).encode(),
    "a lone surrogate": json.dumps(GOOD | {"order_id": "\ud800"}).encode(),
    "bidi": json.dumps(GOOD | {"quantity": "\u202e5"}, ensure_ascii=False).encode(),
    "text for a number": json.dumps(GOOD | {"quantity": "5"}).encode(),
    "a fraction": json.dumps(GOOD | {"quantity": 5.5}).encode(),
    "a list for text": json.dumps(GOOD | {"item": ["burger"]}).encode(),
    "null for text": json.dumps(GOOD | {"user": None}).encode(),
    "nearly a megabyte": json.dumps(GOOD | {"user": ["x" * 900_000]}).encode(),
}


def test_each_record_that_is_no_order_is_skipped_and_named(run_tracker, bootstrap, topic):
    for value in POISON.values():
        put(bootstrap, topic, producer.to_json(GOOD), value)
    put(bootstrap, topic, producer.to_json(GOOD))
    tracking = run_tracker("-e")
    assert tracking.wait() == 1
    assert tracking.out[1:] == ["Message received: burger 5 from john"] * (len(POISON) + 1)
    for number, line in enumerate(tracking.err):
        place = f"{topic} [0] @ {2 * number + 1}"
        assert line.startswith(f"Skipped {place}: "), line
        assert line.isprintable()
        assert len(line) < 400
    assert len(tracking.err) == len(POISON)


def test_the_command_of_a_skipped_line_reads_this_record(run_tracker, bootstrap, topic):
    put(bootstrap, topic, producer.to_json(GOOD), b"no order")
    tracking = run_tracker("-e")
    assert tracking.wait() == 1
    assert tracking.err[0].endswith(f"Look at it: kcat -C -b {bootstrap} -t {topic} -p 0 -o 1 -c 1")


def test_a_record_of_a_schema_registry_says_who_reads_it(run_tracker, bootstrap, topic):
    put(bootstrap, topic, b"\0\0\0\0\7" + json.dumps(GOOD).encode())
    tracking = run_tracker("-e")
    assert tracking.wait() == 1
    assert "it is framed for a schema registry: next_steps/schemas reads it" in tracking.err[0]


@pytest.mark.parametrize("value", [b"", None])
def test_an_empty_record_at_any_moment(run_tracker, bootstrap, topic, value):
    """librdkafka's Message is false where its value is empty: alone, first, last and in a batch it is a record."""
    tracking = run_tracker()
    tracking.wait_for("Consumer is running")
    for count, values in enumerate([[value], [value, producer.to_json(GOOD)], [producer.to_json(GOOD), value]], 1):
        put(bootstrap, topic, *values)
        tracking.wait_for("Skipped", err=True, times=count)
    tracking.wait_for("Message received", times=2)
    put(bootstrap, topic, value)
    tracking.wait_for(f"Skipped {topic} [0] @ 5", err=True)
    assert tracking.stop() == 1
    assert len(tracking.err) == 4
    assert committed(bootstrap, topic, topic) == 6


@pytest.mark.parametrize("text", ["\x1b[2J\x1b[31mred", "tail\u202eevil", "line\nbreak\r", "\ud800", "\x9b31m"])
def test_what_a_record_says_cannot_drive_the_terminal(run_tracker, bootstrap, topic, text):
    put(bootstrap, topic, json.dumps(GOOD | {"user": text, "item": text}).encode())
    tracking = run_tracker("-e")
    assert tracking.wait() == 0
    assert len(tracking.out) == 2
    assert all(line.isprintable() for line in tracking.out)


def test_further_fields_are_ignored(run_tracker, bootstrap, topic):
    put(bootstrap, topic, json.dumps(GOOD | {"note": "no onions", "table": 7}).encode())
    tracking = run_tracker("-c", "1")
    assert tracking.wait() == 0
    assert tracking.out[1] == "Message received: burger 5 from john"


def test_skipped_records_count_and_make_the_exit_status_1(run_tracker, bootstrap, topic):
    put(bootstrap, topic, b"no order", producer.to_json(GOOD), None, producer.to_json(GOOD))
    first = run_tracker("-c", "3")
    assert (first.wait(), len(first.out), len(first.err)) == (1, 2, 2)
    assert committed(bootstrap, topic, topic) == 3
    rest = run_tracker("-e")  # what was skipped is skipped for good
    assert (rest.wait(), len(rest.out), rest.err) == (0, 2, [])
