"""README.md is true: each command runs and prints what stands below it, and each flag and term is named rightly."""

import re
import shlex
import sys

import pytest
from broker import ROOT, Broker

import producer
import tracker

README = (ROOT / "README.md").read_text("utf-8")
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# What starts an engine, installs or runs these tests is run by .ci/run, test_compose.py and test_broker.py.
ELSEWHERE = ("pip install", "docker-compose", "python tests/broker.py")


def examples(start: str, readme: str = README) -> list[tuple[str, list[str]]]:
    """Return the commands of a README's console blocks that begin so, each with the lines printed below it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", readme, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return [(command, lines) for command, lines in found if command.startswith(start)]


def same(printed: list[str], documented: list[str]) -> bool:
    """Return whether the lines are the same but for their UUIDs."""
    return [re.sub(UUID, "UUID", line) for line in printed] == [re.sub(UUID, "UUID", line) for line in documented]


def test_the_examples_print_what_stands_below_them(new_broker, start):
    environment = {"KAFKA_BOOTSTRAP_SERVERS": new_broker().bootstrap}
    pair = [e for e in examples("") if not e[0].startswith(ELSEWHERE)]
    (_, tracked), *sending = pair
    tracking = start(sys.executable, "tracker.py", env=environment)
    tracking.wait_for("Consumer is running")
    for command, lines in sending:
        process = start("bash", "-c", command.replace("python ", f"{shlex.quote(sys.executable)} "), env=environment)
        assert process.wait(60) == 0, command
        assert same(process.out, lines), f"{command}{process}"
        assert process.err == []
        if len(tracking.out) < 2:
            tracking.wait_for("Message received")
            assert tracking.out == tracked
    assert len(pair) >= 6


def test_every_command_of_the_readme_is_run_by_some_test():
    run_here = [command for command, _ in examples("") if not command.startswith(ELSEWHERE)]
    assert all(re.match(r"(echo '.*' \| )?python (producer|tracker)\.py", command) for command in run_here)


def test_ci_runs_the_test_command_of_the_readme():
    (command, _), *_ = [e for e in examples("pip install") if "pytest" in e[0]]
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_set_up_line_works_word_by_word_but_for_the_engine(new_broker, start, tmp_path):
    (command, _), *_ = [e for e in examples("docker-compose") if "venv" in e[0]]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in ("producer.py", "tracker.py", "requirements.txt", "docker-compose.yml"):
        (copy / file).write_bytes((ROOT / file).read_bytes())
    command = command.replace("docker-compose up -d", "true")
    process = start(
        "bash",
        "-c",
        f"cd {shlex.quote(str(copy))} && {command}",
        env={"KAFKA_BOOTSTRAP_SERVERS": new_broker().bootstrap},
    )
    assert process.wait(150) == 0, process
    assert process.out[-1] == "Message received: burger 5 from john"


@pytest.mark.parametrize("script", [producer, tracker])
def test_the_table_has_every_flag_of_each_script_and_no_other(script):
    name = script.__name__
    column = {"producer": 2, "tracker": 3}[name]
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
    assert set(named) <= flags


def test_each_line_that_the_readme_explains_is_in_the_code():
    code = "".join((ROOT / name).read_text("utf-8") for name in ("producer.py", "tracker.py", "tests/broker.py"))
    explained = ["No Kafka broker answered at", "Skipped ", "was not confirmed", "refused the connection"]
    for words in [*explained, "became unreachable", " was taken", "Consumer is running & subscribed to"]:
        assert words in README
        assert words in code


def test_a_volume_of_another_cluster_stops_the_broker_as_the_readme_says(tmp_path):
    with Broker(tmp_path):
        pass
    with (
        pytest.raises(RuntimeError, match=r"Invalid cluster\.id"),
        Broker(tmp_path, settings={"CLUSTER_ID": "AAAAAAAAAAAAAAAAAAAAAA"}),
    ):
        pass
