"""The launcher, as people without Docker use it."""

import signal
import sys

import pytest
import yaml
from broker import COMPOSE_FILE, Broker, free_port, missing, read_brokers
from conftest import INTERRUPT

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no broker can be started: install {missing()}")


@pytest.fixture
def compose_file(tmp_path):
    """A copy of docker-compose.yml with ports that nobody uses, for the broker that keeps the ports of its file."""
    text = COMPOSE_FILE.read_text("utf-8")
    for port in ("19092", "9092", "9093"):
        text = text.replace(f":{port}", f":{free_port()}")
    file = tmp_path / "other.yml"
    file.write_text(text.replace("  kafka:\n", "  broker-a:\n"), "utf-8")
    return file


@pytest.fixture
def launch(start, compose_file, tmp_path):
    """A function that starts tests/broker.py with that file."""
    options = ["--file", compose_file, "--service", "broker-a", "--directory", tmp_path / "kept"]
    return lambda *command: start(sys.executable, "tests/broker.py", *options, *command)


def test_it_runs_in_the_foreground_keeps_orders_and_stops_on_ctrl_c(launch, start, compose_file):
    port = yaml.safe_load(compose_file.read_text("utf-8"))["services"]["broker-a"]["ports"][0].split(":")[-1]
    here = ["-b", f"localhost:{port}"]
    broker = launch()
    broker.wait_for(f"Kafka 4.3.1 is running at 127.0.0.1:{port}, Ctrl-C stops it", 120)
    assert start(sys.executable, "producer.py", *here).wait() == 0
    assert broker.stop(INTERRUPT, 60) == 0
    broker = launch()
    broker.wait_for("is running", 120)
    tracking = start(sys.executable, "tracker.py", *here, "-e")
    assert tracking.wait() == 0
    assert tracking.out[1:] == ["Message received: burger 5 from john"]
    assert broker.stop(signal.SIGTERM, 60) == 0


def test_it_runs_a_command_with_a_broker_and_hands_on_its_exit_status(launch):
    sending = launch("--", sys.executable, "producer.py", "--user", "ana")
    assert sending.wait(120) == 0
    assert sending.out[0].startswith("Message delivered ")
    assert launch("--", sys.executable, "-c", "raise SystemExit(7)").wait(120) == 7
    assert launch("--", "no-such-command").wait(120) == 1


def test_a_port_that_is_taken_is_said(launch):
    first = launch()
    first.wait_for("is running", 120)
    second = launch()
    assert second.wait(120) == 1
    assert len(second.err) == 1
    assert second.err[0].startswith("Port ")
    assert first.stop(INTERRUPT, 60) == 0


def test_the_settings_of_the_compose_file_reach_the_broker(tmp_path, monkeypatch):
    monkeypatch.setenv("KAFKA_NUM_PARTITIONS", "3")
    broker = Broker(tmp_path)
    assert read_brokers(COMPOSE_FILE)["kafka"]["environment"]["KAFKA_NUM_PARTITIONS"] == 3
    monkeypatch.delenv("KAFKA_NUM_PARTITIONS")
    assert read_brokers(COMPOSE_FILE)["kafka"]["environment"]["KAFKA_NUM_PARTITIONS"] == 1
    with broker:
        properties = (tmp_path / "config" / "server.properties").read_text("utf-8")
    assert "num.partitions=3\n" in properties
    assert "log.retention.ms=-1\n" in properties
    assert (tmp_path / "kafka_kraft" / "meta.properties").exists()
