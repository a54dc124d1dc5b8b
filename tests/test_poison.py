"""Records that are no order: each is one line on stderr, and each good order around it comes through once."""

import json

import pytest
from conftest import put, records

import producer as producer_script

GOOD = {"order_id": "123e4567-e89b-12d3-a456-426614174000", "user": "john", "item": "burger", "quantity": 5}
POISON = {
    "a tombstone": None,
    "nothing": b"",
    "not UTF-8": b"\xff\xfe\x00",
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "not JSON": b"burger 5 from john",
    "half of the JSON": json.dumps(GOOD).encode()[:40],
    "deep nesting": b"[" * 100_000,
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


def test_the_tracker_skips_each_record_that_is_no_order_and_says_where(tracker, bootstrap, topic):
    for value in POISON.values():
        put(bootstrap, topic, producer_script.to_json(GOOD), value)
    put(bootstrap, topic, producer_script.to_json(GOOD))
    tracking = tracker("-e")
    assert tracking.wait() == 1
    assert tracking.out[1:] == ["Message received: burger 5 from john"] * (len(POISON) + 1)
    for number, line in enumerate(tracking.err):
        place = f"{topic} [0] @ {2 * number + 1}"
        assert line.startswith(f"Skipped {place}: "), line
        assert line.isprintable()
        assert len(line) < 400
    assert len(tracking.err) == len(POISON)


@pytest.mark.parametrize("text", ["\x1b[2J\x1b[31mred", "tail\u202eevil", "line\nbreak\r", "\ud800", "\x9b31m"])
def test_what_a_record_says_cannot_drive_the_terminal(tracker, bootstrap, topic, text):
    put(bootstrap, topic, json.dumps(GOOD | {"user": text, "item": text}).encode())
    tracking = tracker("-e")
    assert tracking.wait() == 0
    assert len(tracking.out) == 2
    assert all(line.isprintable() for line in tracking.out)


def test_further_fields_are_ignored_by_the_tracker_and_kept_by_the_producer(tracker, producer, bootstrap, topic):
    order = GOOD | {"note": "no onions", "table": 7}
    sending = producer("-l", "-")
    sending.write(json.dumps(order) + "\n")
    sending.popen.stdin.close()
    assert sending.wait() == 0
    assert [json.loads(record.value()) for record in records(bootstrap, topic)] == [order]
    tracking = tracker("-c", "1")
    assert tracking.wait() == 0
    assert tracking.out[1] == "Message received: burger 5 from john"
