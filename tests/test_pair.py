"""The main job: what a user of the pair types and sees, from the first order to the last."""

import json
import uuid

import producer as producer_script
import tracker as tracker_script
from conftest import create_topic, records


def test_an_order_goes_from_producer_to_tracker_in_the_exact_words(producer, tracker, topic):
    tracking = tracker()
    tracking.wait_for(f"Consumer is running & subscribed to {topic} topic")
    sending = producer()
    assert sending.wait() == 0
    tracking.wait_for("Message received: burger 5 from john")
    assert tracking.stop() == 0
    order = json.loads(sending.out[0].removeprefix("Message delivered "))
    order_id = str(uuid.UUID(order["order_id"]))
    expected = f'{{"order_id": "{order_id}", "user": "john", "item": "burger", "quantity": 5}}'
    assert sending.out == [f"Message delivered {expected}"]
    assert tracking.out == [
        f"Consumer is running & subscribed to {topic} topic",
        "Message received: burger 5 from john",
    ]
    assert sending.err == tracking.err == []
