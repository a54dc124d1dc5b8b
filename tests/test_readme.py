"""README.md is true: each command runs and prints what stands below it, and each flag and term is named rightly."""

import re
import shlex
import sys

import pytest
from broker import ROOT, Broker
from conftest import examples, same

import producer
import tracker

README = (ROOT / "README.md").read_text("utf-8")
# The commands to paste, a block each.
WITH_DOCKER, WITH_PYTHON, LOOK_INSIDE, TEST = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
(COOK,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
FILES = ("producer.py", "tracker.py", "requirements.txt", "docker-compose.yml")


@pytest.fixture
def copy(tmp_path):
    """An empty folder with what a user downloads."""
    for name in FILES:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "tests").mkdir()
    for file in (ROOT / "tests").glob("*.*"):
        (tmp_path / "tests" / file.name).write_bytes(file.read_bytes())
    (tmp_path / ".kafka").mkdir()
    (tmp_path / ".kafka" / "jars").symlink_to(ROOT / ".kafka" / "jars")  # test_broker.py shows that they are fetched
    return tmp_path


def pasted(start, folder, command, **environment):
    """Return the process of a command that was pasted in the folder."""
    return start("bash", "-c", f"cd {shlex.quote(str(folder))} && {command}", env=environment)


def test_the_two_terminals_print_what_stands_there(new_broker, start):
    environment = {"KAFKA_BOOTSTRAP_SERVERS": new_broker().bootstrap}
    (tracking_command, tracked), (sending_command, sent) = examples("", README)
    tracking = start(sys.executable, *shlex.split(tracking_command)[1:], env=environment)
    tracking.wait_for("Consumer is running")
    sending = start(sys.executable, *shlex.split(sending_command)[1:], env=environment)
    assert sending.wait() == 0
    tracking.wait_for("Message received")
    assert same(sending.out, sent)
    assert tracking.out == tracked
    assert sending.err == tracking.err == []


def test_the_command_with_docker_runs_word_by_word_but_for_the_engine(new_broker, start, copy):
    command = WITH_DOCKER.replace("docker-compose up -d", "true")
    process = pasted(start, copy, command, KAFKA_BOOTSTRAP_SERVERS=new_broker().bootstrap)
    assert process.wait(150) == 0, process
    assert process.out[-1] == "Message received: burger 5 from john"


@pytest.mark.xdist_group("port 9092")
def test_the_command_with_python_alone_runs_word_by_word(start, copy):
    process = pasted(start, copy, WITH_PYTHON)
    assert process.wait(150) == 0, process
    delivered, running, received = process.out[-3:]
    assert delivered.startswith("Message delivered ")
    assert (running, received) == (
        "Consumer is running & subscribed to orders topic",
        "Message received: burger 5 from john",
    )


def test_kafkas_tools_without_docker_show_topic_records_and_group(new_broker, start):
    servers = new_broker().bootstrap
    environment = {"KAFKA_BOOTSTRAP_SERVERS": servers}
    for script in ("producer.py", "tracker.py -e"):
        assert start(sys.executable, *script.split(), env=environment).wait() == 0
    in_container = r"docker-compose exec kafka /opt/kafka/bin/([\w-]+)\.sh"
    commands = re.split(r"\n(?=docker)", re.sub(in_container, r"docker \1", LOOK_INSIDE.replace("\\\n", "")))
    shown = []
    for command in commands:
        _, tool, *arguments = shlex.split(command.replace("localhost:9092", servers))
        looking = start(sys.executable, "tests/broker.py", "--tool", tool, "--", *arguments)
        assert looking.wait() == 0, looking
        shown.append("\n".join(looking.out))
    assert re.search(r"Topic: orders\s.*PartitionCount: 1", shown[0])
    assert re.search(r'^Offset:0\s+[0-9a-f-]{36}\s+\{"order_id"', shown[1])
    assert re.search(r"order-tracker\s+orders\s+0\s+1\s+1\s+0\s", shown[2])


def test_another_use_of_each_order_is_a_short_script(run_producer, start, bootstrap, topic, copy):
    assert run_producer("-c", "2").wait() == 0
    (copy / "cook.py").write_text(COOK, "utf-8")
    command = [sys.executable, copy / "cook.py", "-b", bootstrap, "-t", topic, "-g", topic, "-e"]
    cooking = start(*command)
    assert (cooking.wait(), cooking.out) == (0, ["Cooking 5 burger"] * 2)
    again = start(*command)
    assert (again.wait(), again.out) == (0, [])


def test_ci_runs_the_test_command_of_the_readme():
    assert f"\n{TEST}\n" in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.parametrize("script", [producer, tracker])
def test_the_table_has_every_flag_of_each_script_and_no_other(script):
    column = {"producer": 2, "tracker": 3}[script.__name__]
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| `-")]
    documented = {
        flag for row in rows if row[column].strip() == "x" for flag in re.findall(r"`(--?[a-zA-Z-]+)", row[1])
    }
    flags = {flag for action in script.command_line()._actions for flag in action.option_strings}
    assert documented == flags - {"-h", "--help"}


@pytest.mark.parametrize("script", [producer, tracker])
def test_the_usage_in_each_script_names_real_flags(script):
    flags = {flag for action in script.command_line()._actions for flag in action.option_strings}
    named = re.findall(r" (--?[a-z]+)\b", script.__doc__.split("\n\n")[1])
    assert named
    assert set(named) <= flags


def test_each_line_that_the_readme_explains_is_in_the_code():
    code = "".join((ROOT / name).read_text("utf-8") for name in ("producer.py", "tracker.py", "tests/broker.py"))
    for words in ["No Kafka broker answered at", "Skipped ", "Kafka became unreachable", " was taken"]:
        assert words in README
        assert words in code


def test_a_reader_is_done_in_ten_minutes():
    assert len(README.splitlines()) <= 170
    assert len((ROOT / "producer.py").read_text("utf-8").splitlines()) <= 220
    assert len((ROOT / "tracker.py").read_text("utf-8").splitlines()) <= 260


def test_a_volume_of_another_cluster_stops_the_broker_as_compose_says(tmp_path):
    with Broker(tmp_path):
        pass
    with (
        pytest.raises(RuntimeError, match=r"Invalid cluster\.id"),
        Broker(tmp_path, settings={"CLUSTER_ID": "AAAAAAAAAAAAAAAAAAAAAA"}),
    ):
        pass


def test_the_index_of_the_steps_names_each_folder_and_its_command():
    index = (ROOT / "next_steps" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)/README\.md\) \| .* \| `(.*)` \|$", index, re.MULTILINE)
    folders = {file.parent.name for file in (ROOT / "next_steps").glob("*/README.md")}
    assert {name for name, _, _ in rows} == {folder for _, folder, _ in rows} == folders
    for _, folder, command in rows:
        assert command in (ROOT / "next_steps" / folder / "README.md").read_text("utf-8")
