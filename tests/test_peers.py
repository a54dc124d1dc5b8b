"""What other Kafka tools see of our orders, and what our tracker sees of theirs."""

import json
import shutil
import subprocess

import pytest
from broker import missing, tool
from conftest import LIMIT

ORDER = {"order_id": "123e4567-e89b-12d3-a456-426614174000", "user": "josé", "item": "burger", "quantity": 5}
LINE = json.dumps(ORDER, ensure_ascii=False)


def run(*command, text):
    """Return what a command prints, given the text as its standard input."""
    options = {"capture_output": True, "encoding": "utf-8", "check": True, "timeout": 2 * LIMIT}
    return subprocess.run(command, input=text, **options).stdout


def kcat(*arguments, text=None):
    """Return what kcat prints."""
    if not shutil.which("kcat"):
        pytest.skip("no kcat: apt-get install kcat")
    return run("kcat", *arguments, text=text)


def kafka_tool(name, *arguments, text=None):
    """Return what one of Kafka's own tools prints."""
    if lacking := missing():
        pytest.skip(f"no Kafka tools: install {lacking}")
    return run(*tool(name), *arguments, text=text)


def test_kcat_reads_key_and_json_of_our_order(run_producer, bootstrap, topic):
    sending = run_producer("--user", "josé")
    assert sending.wait() == 0
    seen = kcat("-C", "-b", bootstrap, "-t", topic, "-e", "-q", "-f", "%k %s\n")
    key, _, value = seen.removesuffix("\n").partition(" ")
    assert f"Message delivered {value}" == sending.out[0]
    assert json.loads(value)["order_id"] == key


def test_our_tracker_prints_what_kcat_wrote(run_tracker, bootstrap, topic):
    kcat("-P", "-b", bootstrap, "-t", topic, text=LINE + "\n")
    tracking = run_tracker("-c", "1")
    assert tracking.wait() == 0
    assert tracking.out[1] == "Message received: burger 5 from josé"


def test_the_console_consumer_reads_our_order(run_producer, bootstrap, topic):
    sending = run_producer()
    assert sending.wait() == 0
    seen = kafka_tool(
        "kafka-console-consumer",
        "--bootstrap-server",
        bootstrap,
        "--topic",
        topic,
        "--from-beginning",
        "--max-messages",
        "1",
    )
    assert sending.out == [f"Message delivered {seen.strip()}"]


def test_our_tracker_prints_what_the_console_producer_wrote(run_tracker, bootstrap, topic):
    kafka_tool("kafka-console-producer", "--bootstrap-server", bootstrap, "--topic", topic, text=LINE + "\n")
    tracking = run_tracker("-c", "1")
    assert tracking.wait() == 0
    assert tracking.out[1] == "Message received: burger 5 from josé"


def test_the_group_tool_shows_how_far_our_tracker_has_read(run_producer, run_tracker, bootstrap, topic):
    assert run_producer("-c", "4").wait() == 0
    assert run_tracker("-c", "3").wait() == 0
    seen = kafka_tool("kafka-consumer-groups", "--bootstrap-server", bootstrap, "--describe", "--group", topic)
    row = next(line.split() for line in seen.splitlines() if topic in line and "TOPIC" not in line)
    assert row[:6] == [topic, topic, "0", "3", "4", "1"]  # group, topic, partition, committed, end, lag


def test_the_command_that_a_skipped_line_ends_with_shows_the_record(run_tracker, bootstrap, topic):
    kcat("-P", "-b", bootstrap, "-t", topic, text="no order\n")
    tracking = run_tracker("-e")
    assert tracking.wait() == 1
    command = tracking.err[0].split("Look at it: ")[1]
    assert run(*command.split(), text=None) == "no order\n"
