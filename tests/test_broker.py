"""The launcher, as people without Docker use it."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import yaml
from broker import (
    COMPOSE_FILE,
    ROOT,
    Broker,
    DownloadError,
    Resolver,
    fetch,
    free_port,
    image_version,
    missing,
    read_brokers,
    tool,
)
from conftest import INTERRUPT
from jgo.maven import MavenContext

VERSION = image_version(read_brokers(COMPOSE_FILE)["kafka"])
FETCHING = f"Fetching Kafka {VERSION} from Maven Central, once (58 MB)"

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no broker can be started: install {missing()}")


def copy_with_free_ports(file):
    """Return the file, made a copy of docker-compose.yml with ports that nobody uses; the launcher keeps its file's."""
    text = COMPOSE_FILE.read_text("utf-8")
    for port in ("19092", "9092", "9093"):
        text = text.replace(f":{port}", f":{free_port()}")
    file.write_text(text.replace("  kafka:\n", "  broker-a:\n"), "utf-8")
    return file


@pytest.fixture
def compose_file(tmp_path):
    """A Compose file whose broker is called broker-a."""
    return copy_with_free_ports(tmp_path / "other.yml")


@pytest.fixture
def launch(start, compose_file, tmp_path):
    """A function that starts tests/broker.py with that file."""
    options = ["--file", compose_file, "--service", "broker-a", "--directory", tmp_path / "kept"]
    return lambda *command: start(sys.executable, "tests/broker.py", *options, *command)


@pytest.fixture
def new_clone(start, tmp_path):
    """A function that starts the launcher of a clone in which nothing was fetched yet; each has ports of its own."""
    (tmp_path / "tests").mkdir()
    launcher = shutil.copy(ROOT / "tests" / "broker.py", tmp_path / "tests")
    shutil.copy(COMPOSE_FILE, tmp_path)

    def launch(name, **environment):
        options = ["--file", copy_with_free_ports(tmp_path / f"{name}.yml"), "--directory", tmp_path / name]
        command = ["--", sys.executable, "-c", "print('ran')"]
        return start(sys.executable, launcher, *options, *command, env=environment)

    return launch


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


def test_the_settings_of_the_compose_file_and_no_others_reach_the_broker(tmp_path, monkeypatch):
    monkeypatch.setenv("KAFKA_NUM_PARTITIONS", "3")
    monkeypatch.setenv("KAFKA_COMPRESSION_TYPE", "zstd")
    broker = Broker(tmp_path)
    assert read_brokers(COMPOSE_FILE)["kafka"]["environment"]["KAFKA_NUM_PARTITIONS"] == 3
    monkeypatch.delenv("KAFKA_NUM_PARTITIONS")
    assert read_brokers(COMPOSE_FILE)["kafka"]["environment"]["KAFKA_NUM_PARTITIONS"] == 1
    with broker:
        properties = (tmp_path / "config" / "server.properties").read_text("utf-8")
    assert "num.partitions=3\n" in properties
    assert "log.retention.ms=-1\n" in properties
    assert "compression.type" not in properties
    assert (tmp_path / "kafka_kraft" / "meta.properties").exists()


def test_all_jars_of_kafka_have_its_version():
    jars = [jar.name for jar in fetch(VERSION).glob("*.jar")]
    of_kafka = [name for name in jars if name.startswith(("kafka", "connect"))]
    assert {"kafka_2.13", "kafka-clients", "kafka-tools"} <= {name.rsplit("-", 1)[0] for name in of_kafka}
    assert [name for name in of_kafka if not name.endswith(f"-{VERSION}.jar")] == []
    assert len({name.rsplit("-", 1)[0] for name in jars}) == len(jars)  # nothing is there in two versions


def test_in_a_copy_of_the_folder_a_tool_prints_its_output_and_nothing_else(tmp_path, monkeypatch):
    """Its files have other times than those for which Java's class archive was made."""
    shutil.copytree(fetch(VERSION).parent, tmp_path / "jars", copy_function=shutil.copyfile)
    monkeypatch.setattr("broker.HOME", tmp_path)
    done = subprocess.run([*tool("kafka-topics"), "--version"], stdout=subprocess.PIPE, text=True)
    assert done.stdout == f"{VERSION}\n"


@pytest.mark.timeout(600)
def test_of_two_launchers_in_a_new_clone_one_fetches_kafka_for_both(new_clone, tmp_path):
    try:
        socket.create_connection(("repo.maven.apache.org", 443), timeout=10).close()
    except OSError as error:
        pytest.skip(f"Maven Central can't be reached: {error}")
    both = [new_clone("one"), new_clone("two")]
    assert [launcher.wait(500) for launcher in both] == [0, 0]
    assert [launcher.out for launcher in both] == [["ran"], ["ran"]]
    assert both[0].err + both[1].err == [FETCHING]
    fetched = (tmp_path / ".kafka" / "jars" / VERSION).iterdir()
    assert {jar.name for jar in fetched} == {jar.name for jar in fetch(VERSION).iterdir()}


def test_a_fetch_that_fails_is_one_line(new_clone, tmp_path):
    failing = new_clone("one", HTTPS_PROXY=f"http://127.0.0.1:{free_port()}")
    assert failing.wait() == 1
    assert failing.err[0] == FETCHING
    assert failing.err[1].startswith(f"Kafka {VERSION} could not be fetched into {tmp_path / '.kafka'}: ")
    assert len(failing.err) == 2
    assert list((tmp_path / ".kafka" / "jars").iterdir()) == []


@pytest.mark.parametrize("number", [INTERRUPT, signal.SIGTERM])
def test_a_fetch_that_is_interrupted_is_one_line(new_clone, tmp_path, number):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stopped = new_clone("one", HTTPS_PROXY=f"http://127.0.0.1:{silent.getsockname()[1]}")
        silent.accept()
        assert stopped.stop(number) == 130
    assert stopped.err == [FETCHING, "Stopped before Kafka was running"]
    assert list((tmp_path / ".kafka" / "jars").iterdir()) == []


def test_a_pom_that_cannot_be_downloaded_ends_the_fetch(tmp_path):
    folder = tmp_path / "org" / "example" / "a" / "1"
    folder.mkdir(parents=True)
    needed = "<dependency><groupId>org.example</groupId><artifactId>b</artifactId><version>1</version></dependency>"
    (folder / "a-1.pom").write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>org.example</groupId><artifactId>a</artifactId>"
        f"<version>1</version><dependencies>{needed}</dependencies></project>"
    )
    maven = MavenContext(Resolver(), repo_cache=tmp_path / "cache", local_repos=[tmp_path], remote_repos={})
    with pytest.raises(DownloadError, match=r"org\.example:b:pom:1"):
        maven.resolver.resolve([maven.create_dependency("org.example:a:1")])


def test_workers_of_pytest_have_different_ports():
    ports = []
    for worker in ("gw0", "gw1"):
        environment = os.environ | {"PYTEST_XDIST_WORKER": worker, "PYTEST_XDIST_WORKER_COUNT": "2"}
        command = [sys.executable, "-c", "import broker; print(*broker.PORTS)"]
        done = subprocess.run(command, env=environment, cwd=ROOT / "tests", capture_output=True, text=True, check=True)
        ports.append(set(done.stdout.split()))
    assert len(ports[0]) == len(ports[1]) > 5_000
    assert not ports[0] & ports[1]
