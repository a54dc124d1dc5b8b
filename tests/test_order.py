"""What an order is, as both scripts see it, and its way through bytes."""

import json
import sys
import uuid

import pytest

import producer
import tracker

ORDER_ID = "123e4567-e89b-12d3-a456-426614174000"


def test_a_new_order_has_a_random_uuid_and_its_fields_in_sequence():
    order, other = (producer.new_order("john", "burger", 5) for _ in range(2))
    assert list(order) == ["order_id", "user", "item", "quantity"]
    assert uuid.UUID(order["order_id"]).version == 4
    assert order["order_id"] != other["order_id"]


def test_the_json_of_an_order_is_the_documented_text():
    order = producer.new_order("john", "burger", 5, ORDER_ID)
    assert producer.to_json(order) == (
        b'{"order_id": "123e4567-e89b-12d3-a456-426614174000", "user": "john", "item": "burger", "quantity": 5}'
    )


@pytest.mark.parametrize(
    "user", ["john", "José 日本 🍔", 'it\'s "quoted" \\ back', "\x1b[2J\x07\x7f", "\u202eevil", "\ud800"]
)
def test_what_the_producer_writes_the_tracker_reads(user):
    order = producer.new_order(user, "burger", 5) | {"note": [1.5, None, {"deep": user}]}
    assert tracker.from_json(producer.to_json(order)) == order


@pytest.mark.parametrize("text", ["\x1b[2J", "\x7f", "\u202e", "\u2028", "\ud800", "\U000e0001", "\x9b"])
def test_json_and_lines_hold_nothing_that_drives_a_terminal(text):
    order = producer.new_order(f"a{text}b", text, 5)
    assert producer.to_json(order).decode().isprintable()
    assert tracker.line_for(order).isprintable()


def test_letters_of_any_script_stay_readable(monkeypatch):
    monkeypatch.setattr(producer, "encode", json.JSONEncoder(ensure_ascii=False).encode)  # as where the output has them
    order = producer.new_order("José", "寿司", 2)
    assert "José" in producer.to_json(order).decode()
    assert tracker.line_for(order) == "Message received: 寿司 2 from José"


NO_ORDERS = [
    ("user", ""),
    ("user", None),
    ("user", 5),
    ("item", ""),
    ("item", ["burger"]),
    ("quantity", 0),
    ("quantity", -2),
    ("quantity", True),
    ("quantity", 1.0),
    ("quantity", "5"),
    ("quantity", None),
    ("order_id", ""),
    ("order_id", "42"),
    ("order_id", 42),
    ("order_id", ORDER_ID + "\n"),
]


@pytest.mark.parametrize(("field", "value"), NO_ORDERS)
def test_both_sides_name_the_field_that_is_wrong(field, value):
    fields = {"order_id": ORDER_ID, "user": "john", "item": "burger", "quantity": 5, field: value}
    with pytest.raises(ValueError, match=f"^{field} must be "):
        producer.new_order(**fields)
    with pytest.raises(ValueError, match=f"^{field} must be "):
        tracker.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize("field", ["order_id", "user", "item", "quantity"])
def test_a_record_without_one_of_the_fields_is_no_order(field):
    order = producer.new_order("john", "burger", 5)
    del order[field]
    with pytest.raises(ValueError, match=f"^{field} must be "):
        tracker.from_json(json.dumps(order).encode())


def test_a_byte_order_mark_and_white_space_are_no_part_of_an_order():
    order = producer.new_order("john", "burger", 5)
    assert tracker.from_json(b"\xef\xbb\xbf" + producer.to_json(order)) == order
    assert tracker.from_json(b"\r\n\t " + producer.to_json(order) + b" \n") == order


def test_an_error_shows_an_excerpt_and_not_a_megabyte():
    with pytest.raises(ValueError, match="user must be") as error:
        producer.new_order(["x" * 1_000_000], "burger", 5)
    assert len(str(error.value)) < 200


def test_a_number_that_json_cannot_hold_is_refused():
    order = producer.new_order("john", "burger", 5) | {"price": float("nan")}
    with pytest.raises(ValueError, match="JSON"):
        producer.to_json(order)


def test_importing_the_scripts_does_nothing(start):
    importing = start(sys.executable, "-c", "import producer, tracker")
    assert (importing.wait(), importing.out, importing.err) == (0, [], [])
