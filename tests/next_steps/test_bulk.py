"""Orders from files and pipes: what is sent, what is said of the rest, and what is shown meanwhile."""

import contextlib
import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
from broker import ROOT
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient, NewTopic
from conftest import SECURED, allow, as_flags, examples, freeze, login, posix, records, same, thaw, wait_until

from next_steps.bulk.json_lines import KINDS
from producer import delivery_report, new_order, to_json

pytestmark = pytest.mark.spread
ORDER = {"order_id": "123e4567-e89b-12d3-a456-426614174000", "user": "john", "item": "burger", "quantity": 5}
ANA = '{"user": "ana", "item": "pizza", "quantity": 2}\n'
TWO = [{"user": user, "item": "pizza", "quantity": 2} for user in ("Zoë", "bob")]
README = (ROOT / "next_steps" / "bulk" / "README.md").read_text("utf-8")


@pytest.fixture
def file(tmp_path):
    """A path that a test writes its lines to."""
    return tmp_path / "orders.jsonl"


def users(bootstrap, topic):
    """Return who ordered, in the order of the topic."""
    return [json.loads(record.value())["user"] for record in records(bootstrap, topic)]


def test_the_good_lines_of_a_file_are_sent_and_the_bad_ones_named(run_bulk, bootstrap, topic, file):
    file.write_bytes(
        b'\xef\xbb\xbf{"user": "ana", "item": "pizza", "quantity": 2, "note": "hot"}\r\n'
        b"\n"
        b'{"user": "ana", "item": "pizza", "quantity": -2}\n'
        b"pizza\n"
        b"\xff\n"
        b"[1]\n" + b"[" * 100_000 + b"\n"
        b'{"user": "ana", "item": "pizza", "quantity": 1, "price": 1e999}\n'
        b'{"order_id": "42", "user": "ana", "item": "pizza", "quantity": 1}\n'
        b'{"user": "ana", "item": "pizza", "quantity": 1}, \n' + json.dumps(ORDER).encode()
    )
    sending = run_bulk("-l", file)
    assert sending.wait() == 1
    assert [line.split(" was not sent: ")[0] for line in sending.err] == [f"{file}:{n}" for n in range(3, 11)]
    assert sending.err[0] == f"{file}:3 was not sent: quantity must be a whole number of at least 1, got -2"
    assert sending.err[1] == f"{file}:4 was not sent: it is no JSON: 'pizza'"
    first, second = (json.loads(record.value()) for record in records(bootstrap, topic))
    assert second == ORDER
    assert first == {"user": "ana", "item": "pizza", "quantity": 2, "note": "hot", "order_id": first["order_id"]}


@pytest.mark.parametrize("line", ["\x1b[2J\x1b[31mred", "x" * 5000, "tail\u202eevil", '{"\x9b31m": 1', '"\x1b[2J"'])
def test_what_a_bad_line_says_is_short_and_cannot_drive_the_terminal(run_bulk, file, line):
    for text in (ANA + line, line):
        file.write_text(text, "utf-8")
        sending = run_bulk("-l", file, "-q")
        assert sending.wait() == 1
        assert len(sending.err) == 1
        assert sending.err[0].isprintable()
        assert len(sending.err[0]) < 200 + 2 * len(str(file))


def zipped(text):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("orders.jsonl", text)
    return archive.getvalue()


LINES = "".join(json.dumps(order, ensure_ascii=False) + "\n" for order in TWO)
ARRAY = json.dumps(TWO, ensure_ascii=False)
FOREIGN = {
    "[, objects with commas, ]": ("a JSON array", "[\n" + ",\n".join(LINES.splitlines()) + "\n]\n"),
    "array in a line": ("a JSON array", ARRAY),
    "array, pretty": ("a JSON array", "\ufeff" + json.dumps(TWO, indent=2)),
    "object over lines": ("a JSON object over several lines", "\r\n" + json.dumps(TWO[0], indent=2) + "\r\n", "Zoë"),
    "objects over lines": ("a JSON object over several lines", "".join(json.dumps(o, indent=2) for o in TWO)),
    "object that goes on": (
        "a JSON object over several lines",
        '{"user": "ana",\n"item": "x", "quantity": 1}\n',
        "ana",
    ),
    "objects in a line": ("several JSON objects in a line", LINES.replace("\n", " ")),
    "commas": ("JSON objects with commas between them", LINES.replace("\n", " , \n")),
    "UTF-16": ("UTF-16", LINES.encode("utf-16")),
    "UTF-16 without a mark": ("UTF-16", LINES.encode("utf-16-le")),
    "UTF-32": ("UTF-32", LINES.encode("utf-32")),
    "gzip": ("gzip", gzip.compress(LINES.encode())),
    "ZIP": ("a ZIP archive, which .xlsx is too", zipped(LINES)),
    "binary": ("binary", bytes(range(256))),
    "YAML": ("YAML", "- user: Zoë\n  item: pizza\n  quantity: 2\n- {user: bob, item: pizza, quantity: 2}\n"),
    "CSV": ("CSV", "user,item,quantity\nZoë,pizza,2\nbob,pizza,2\n"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_recognised_and_sent_by_the_command_that_is_given(
    run_bulk, start, bootstrap, topic, file, kind
):
    file = file.with_name("my orders")
    what, content, *senders = FOREIGN[kind]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    recognised = run_bulk("-l", file)
    assert (recognised.wait(), recognised.out, len(recognised.err)) == (1, [], 1)
    says, command = recognised.err[0].split(" To send it: ")
    assert says == f"{file} is {what} and no JSON Lines, nothing was sent."
    assert users(bootstrap, topic) == []
    if shutil.which(command.split()[0]) and kind != "binary":  # what is no part of this project need not be everywhere
        command = command.replace("python", shlex.quote(sys.executable))
        assert start("bash", "-c", f"{command} -b {bootstrap} -t {topic}").wait() == 0
        assert users(bootstrap, topic) == (senders or ["Zoë", "bob"])


def test_a_pipe_of_another_kind_is_recognised_as_well(run_bulk, bootstrap, topic):
    sending = run_bulk("-l", "-")
    sending.write("\n[")
    sending.write(ARRAY[1:])
    sending.popen.stdin.close()
    assert (sending.wait(), sending.out, len(sending.err)) == (1, [], 1)
    assert sending.err[0].startswith(
        "stdin is a JSON array and no JSON Lines, nothing was sent. To send it: jq -c '.[]' | "
    )
    assert users(bootstrap, topic) == []


def test_each_kind_that_is_recognised_is_tried():
    assert {what for what, *_ in FOREIGN.values()} == {what for _, what, _ in KINDS}


@pytest.mark.parametrize(
    "content", [b"pizza\n", b"\xe9t\xe9\n", b"{'user': 'ana'}\n", b"42\n", b"<order/>\n", b"[kafka]\n"]
)
def test_any_other_first_line_that_is_no_object_is_shown_and_nothing_sent(run_bulk, bootstrap, topic, file, content):
    file.write_bytes(content + ANA.encode())
    sending = run_bulk("-l", file)
    assert (sending.wait(), sending.out, len(sending.err)) == (1, [], 1)
    assert sending.err[0].startswith(f"{file} is no JSON Lines, nothing was sent. Its first line: ")
    assert users(bootstrap, topic) == []


@pytest.mark.parametrize("content", [b"", b"\r\n \n", b"\xef\xbb\xbf\r\n"])
def test_an_empty_file_is_said_to_be_empty(run_bulk, file, content):
    file.write_bytes(content)
    sending = run_bulk("-l", file)
    assert (sending.wait(), sending.err) == (1, [f"{file} is empty, nothing was sent"])


def test_lines_of_stdin_are_confirmed_as_they_come(run_bulk):
    sending = run_bulk("-l", "-")
    for number in range(3):
        sending.write(json.dumps(ORDER | {"user": f"u{number}"}) + "\n")
        sending.wait_for(f'"user": "u{number}"')
    sending.popen.stdin.close()
    assert sending.wait() == 0
    assert len(sending.out) == 3


def test_a_line_that_comes_in_pieces_and_has_no_end_is_one(run_bulk, bootstrap, topic):
    sending = run_bulk("-l", "-")
    sending.write(ANA + ANA[:20])
    sending.wait_for("Message delivered")
    sending.write(ANA[20:-1])
    sending.popen.stdin.close()
    assert (sending.wait(), len(sending.out)) == (0, 2)


@posix
def test_a_fifo_a_process_substitution_and_dev_stdin_are_read(start, bootstrap, topic, file):
    os.mkfifo(file)
    bulk = f"{sys.executable} -m next_steps.bulk.producer -b {bootstrap} -t {topic} -l"
    line = f"echo '{ANA.strip()}'"
    started = start(
        "bash", "-c", f"{bulk} {file} & {bulk} <({line}); {line} | {bulk} /dev/stdin; {line} > {file}; wait %1"
    )
    assert (started.wait(), len(started.out), started.err) == (0, 3, [])


@posix
@pytest.mark.parametrize("fifo", [True, False])
def test_a_signal_ends_the_wait_for_the_next_line(run_bulk, file, fifo):
    os.mkfifo(file)
    sending = run_bulk("-l", file if fifo else "-")
    if fifo:
        wait_until(lambda: b"next_steps" in Path(f"/proc/{sending.popen.pid}/cmdline").read_bytes(), "its start")
    writer = open(file, "w") if fifo else sending.popen.stdin
    writer.write(json.dumps(ORDER) + "\n")
    writer.flush()
    sending.wait_for("Message delivered")
    assert sending.stop(limit=3) == 0
    assert sending.err == [f"Stopped after line 1 of {file if fifo else 'stdin'}"]


@posix
def test_a_signal_ends_the_wait_for_a_fifo_that_nobody_writes_to(run_bulk, file, bootstrap, topic):
    os.mkfifo(file)
    sending = run_bulk("-l", file, "-X", "debug=generic")
    sending.wait_for("", err=True)  # librdkafka's first word: the handlers stand soon after
    wait_until(lambda: topic in AdminClient({"bootstrap.servers": bootstrap}).list_topics().topics, "the topic")
    assert sending.stop(signal.SIGTERM, limit=5) == 0


def test_c_limits_the_orders_of_a_file(run_bulk, file):
    file.write_text((json.dumps(ORDER) + "\n") * 9)
    sending = run_bulk("-l", file, "-c", "4")
    assert (sending.wait(), len(sending.out), sending.err) == (0, 4, [])


def test_without_a_file_the_order_of_the_flags_is_sent_once_or_c_times(run_bulk, bootstrap, topic):
    assert run_bulk("--user", "ana").wait() == run_bulk("--user", "bob", "-c", "3").wait() == 0
    assert users(bootstrap, topic) == ["ana", "bob", "bob", "bob"]
    assert len({record.key() for record in records(bootstrap, topic)}) == 4


def test_q_prints_no_line_per_order_but_names_those_that_were_not_confirmed(run_bulk, file):
    file.write_text("".join(json.dumps(ORDER | {"user": user}) + "\n" for user in ("ana", "x" * 1_100_000, "bob")))
    sending = run_bulk("-q", "-l", file)
    assert (sending.wait(), sending.out, len(sending.err)) == (1, [], 1)
    assert "was not confirmed" in sending.err[0]


def test_an_order_over_a_megabyte_is_named_and_the_others_are_sent(run_bulk, bootstrap, topic, file):
    file.write_text("".join(json.dumps(ORDER | {"user": user}) + "\n" for user in ("ana", "x" * 1_100_000, "bob")))
    sending = run_bulk("-l", file)
    assert (sending.wait(), len(sending.err)) == (1, 1)
    assert "was not confirmed" in sending.err[0]
    assert users(bootstrap, topic) == ["ana", "bob"]


def test_rate_limits_the_orders_a_second(run_bulk):
    sending = run_bulk("-c", "20", "--rate", "20")
    sending.wait_for("Message delivered")
    started = time.monotonic()
    assert sending.wait() == 0
    assert time.monotonic() - started > 0.8  # 19 more orders, 1/20 s apart
    assert len(sending.out) == 20


def test_a_high_rate_is_reached(run_bulk):
    started = time.monotonic()
    sending = run_bulk("-c", "20000", "--rate", "10000")
    assert sending.wait() == 0
    assert 1.9 < time.monotonic() - started < 15  # 2 s and the start; 20 s where a wait too long is not made up for
    assert sending.err == []  # no count where stderr is no terminal


def test_a_signal_ends_the_wait_for_a_slow_rate(run_bulk):
    sending = run_bulk("-c", "2", "--rate", "0.001")
    sending.wait_for("Message delivered")
    assert sending.stop(limit=3) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@posix
def test_the_line_after_which_it_stopped_is_said_truly(run_bulk, bootstrap, topic, orders, number):
    file = orders(100_000)
    sending = run_bulk("-l", file)
    sending.wait_for("Message delivered", times=100)
    assert sending.stop(number) == 0
    count = len(sending.out)
    assert sending.err == [f"Stopped after line {count} of {file}"]
    assert users(bootstrap, topic) == [f"u{n}" for n in range(count)]


@pytest.mark.parametrize(
    "arguments", [["-l", "no-such-file"], ["-l", ""], ["-l", "/"], ["--rate", "0"], ["--rate", "nan"], ["-c", "0"]]
)
def test_wrong_usage_exits_2(run_bulk, arguments):
    wrong = run_bulk("-b", "localhost:1", *arguments)
    assert (wrong.wait(), wrong.out) == (2, [])
    assert "error: " in wrong.err[-1]


@posix
def test_a_closed_stdin_is_wrong_usage(start):
    wrong = start("bash", "-c", f"{sys.executable} -m next_steps.bulk.producer -b localhost:1 -l - <&-")
    assert wrong.wait() == 2
    assert wrong.err[-1].endswith("error: argument -l: [Errno 9] Bad file descriptor: 0")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and can't be read")
def test_a_file_that_cannot_be_read_to_its_end_exits_1(run_bulk):
    sending = run_bulk("-l", "/proc/self/mem")
    assert sending.wait() == 1
    assert sending.err == ["/proc/self/mem could not be read to its end: Input/output error"]


MEASURED = """
import atexit, runpy, sys
peak = lambda: print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0], file=sys.stderr)
atexit.register(peak)
runpy.run_module("next_steps.bulk.producer", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def peak(start, bootstrap, topic):
    """A function that sends the lines of a file, and returns the most memory that it took, in MB."""

    def run(file, pipe=False, status=0):
        arguments = ["-b", bootstrap, "-t", topic, "-q", "-l", "-" if pipe else file]
        with subprocess.Popen(["cat", file], stdout=subprocess.PIPE) as cat:
            sending = start(sys.executable, "-c", MEASURED, *arguments, stdin=cat.stdout if pipe else None)
            cat.stdout.close()
            assert sending.wait(60) == status, sending
        return int(re.search(r"VmHWM:\s*(\d+) kB", sending.err[-2])[1]) / 1000

    return run


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize("pipe", [False, True])
def test_memory_does_not_grow_with_the_input(peak, file, pipe):
    line = json.dumps({"user": "ana", "item": "pizza", "quantity": 2, "note": "x" * 4000}) + "\n"
    file.write_text(line * 5_000)
    small = peak(file, pipe)
    file.write_text(line * 20_000)
    assert peak(file, pipe) - small < 40  # of 60 MB that came in more; the 5,000 orders that may wait have 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
def test_a_line_of_any_length_is_named_and_takes_no_more_memory_than_the_longest(peak, file):
    file.write_text(ANA)
    small = peak(file)
    with file.open("r+b") as lines:
        lines.truncate(300_000_000)
    assert peak(file, status=1) - small < 80


def test_a_producer_whose_output_is_gone_while_it_waits_says_so_and_leaves_no_order_unnamed(run_bulk, bootstrap, topic):
    reading, writing = os.pipe()
    os.close(reading)
    sending = run_bulk("-l", "-", stdout=writing)
    os.close(writing)
    sending.write(ANA * 3)
    assert sending.wait() == 1
    gone, stopped = sorted(sending.err)
    assert gone.startswith("Standard output could not be written: ")
    assert stopped == "Stopped after line 3 of stdin"
    assert len(users(bootstrap, topic)) == 3


def test_a_fatal_error_while_it_waits_names_each_order(new_broker, run_bulk, topic):
    broker = new_broker(client=login("admin"), **SECURED)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap} | login("admin"))
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    allow(admin, "john", "READ", "TOPIC", topic)  # who sees then that it is there, and no more
    sending = run_bulk("-b", broker.bootstrap, *as_flags(login("john")), "-l", "-")
    lines = [json.dumps(new_order(f"u{number}", "x", 1)) for number in range(2)]
    sending.write("\n".join(lines) + "\n")
    assert sending.wait() == 1
    assert sending.out == []
    # None where Kafka's refusal was known before the first order, as on a machine that is busy.
    taken = sum(int(line.split()[3]) for line in sending.err if line.startswith("Stopped after line "))
    named = [sum(line in said for said in sending.err) for line in lines]
    assert named == [1] * taken + [0] * (2 - taken), sending
    assert any(line.startswith("Kafka refused this producer: ") for line in sending.err)
    assert "Traceback" not in "".join(sending.err)


@posix
def test_a_frozen_broker_is_said_within_some_10_s_while_the_next_line_is_waited_for(new_broker, run_bulk):
    broker = new_broker()
    sending = run_bulk("-b", broker.bootstrap, "-l", "-")
    sending.write(ANA)
    sending.wait_for("Message delivered")
    freeze(broker.process)
    sending.write(ANA)
    sending.wait_for("Still waiting for Kafka to confirm 1 of the orders", err=True, limit=13)
    thaw(broker.process)
    sending.wait_for("Message delivered", times=2)
    sending.popen.stdin.close()
    assert sending.wait() == 0


@pytest.fixture
def terminal(start, bootstrap, topic):
    """A function that starts the producer, or a command, with a terminal as stderr, and one that returns its text."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
    ours, theirs = pty.openpty()
    written = []

    def run(*arguments, begin=None, **streams):
        command = [sys.executable, "-m", "next_steps.bulk.producer", "-b", bootstrap, "-t", topic]
        process = (begin or partial(start, *command))(*arguments, stderr=theirs, **streams)
        os.close(theirs)
        threading.Thread(target=read, daemon=True).start()
        return process

    def read():
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while data := os.read(ours, 1000):
                written.append(data.decode())
        written.append(None)

    def text(ended=False):
        if ended:
            wait_until(lambda: None in written, "the end of what is written to the terminal")
        return "".join(filter(None, written))

    yield run, text
    os.close(ours)


def screen(text):
    """Return the lines that one sees: what comes after a carriage return is written over what was there."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown)
    return lines


@pytest.mark.parametrize("flags", [["-q"], []])
def test_a_terminal_shows_each_second_how_many_there_were_and_at_the_end_how_many(terminal, flags):
    run, text = terminal
    sending = run("-c", "2500", "--rate", "1000", *flags)
    assert sending.wait() == 0
    counts = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) orders\r", text(ended=True))]
    assert len(counts) >= 2
    assert counts == sorted(counts)
    assert screen(text()) == ["2,500 orders", ""]


@pytest.mark.parametrize("flags", [[], ["--rate", "2000"]])
def test_the_last_line_on_a_terminal_is_whole_after_a_signal(terminal, flags):
    run, text = terminal
    sending = run("-q", "-c", "10000000", *flags)
    wait_until(lambda: " orders\r" in text(), "a count")
    assert sending.stop() == 0
    last, after = screen(text(ended=True))
    assert re.fullmatch(r"[\d,]+ orders", last)
    assert after == ""


def test_error_lines_on_a_terminal_do_not_run_into_the_count(terminal):
    run, text = terminal
    sending = run("-q", "-l", "-")
    sending.write(ANA * 1234)
    wait_until(lambda: "1,234 orders\r" in text(), "the count")
    sending.write("x\n")
    wait_until(lambda: "no JSON" in text(), "the error")
    counted = text().count("1,234 orders\r")
    wait_until(lambda: text().count("1,234 orders\r") > counted, "the count below it")
    assert sending.stop() == 1
    error = "stdin:1235 was not sent: it is no JSON: 'x'"
    assert screen(text(ended=True)) == [error, "1,234 orders", "Stopped after line 1235 of stdin", ""]


def test_no_count_is_shown_where_the_orders_are_on_the_same_terminal(terminal):
    run, text = terminal
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    sending = run("-c", "3", "--rate", "2", stdout=theirs)
    assert sending.wait() == 0
    assert text(ended=True) == ""
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def paste(new_broker, start, tmp_path):
    """A function that runs a command of the README in an empty folder, with a broker of its own."""
    environment = {"KAFKA_BOOTSTRAP_SERVERS": new_broker().bootstrap, "PYTHONPATH": str(ROOT)}
    python = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}; cd {shlex.quote(str(tmp_path))}; '

    def run(command, **streams):
        return start("bash", "-c", python + command, env=environment, **streams)

    return run


@posix
def test_the_commands_of_the_readme_print_what_stands_below_them(paste, terminal, tmp_path, capsys):
    order = to_json(new_order("eve", "salad", 1))
    delivery_report([], KafkaError(KafkaError._MSG_TIMED_OUT), None, order)
    (tmp_path / "errors.txt").write_text(f"Kafka became unreachable\n{capsys.readouterr().err}")
    run, text = terminal
    shown = examples("", README)
    assert len(shown) == 8
    for command, lines in shown:
        counted = lines == ["1,500 orders"]
        process = run(command, begin=paste) if counted else paste(command)
        process.wait()
        assert same(screen(text(ended=True))[:-1] if counted else process.out + process.err, lines), command


@posix
def test_the_command_of_the_readme_for_the_rest_of_a_file_sends_it(paste, orders, tmp_path):
    (last,) = re.findall(r"`Stopped after line (\d+) of orders.jsonl`", README)
    (command,) = re.findall(r"`(tail [^`]* orders.jsonl [^`]*)`", README)
    orders(int(last) + 2, "orders")
    process = paste(command)
    assert (process.wait(), len(process.out)) == (0, 2)


def test_the_readme_names_each_flag_of_the_step():
    shown = subprocess.run(
        [sys.executable, "-m", "next_steps.bulk.producer", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    ours = set(re.findall(r"^  (-[lcq]|--rate)\b", shown, re.MULTILINE))
    assert ours == {"-l", "-c", "-q", "--rate"}
    assert all(re.search(rf"^\| `{flag}\b", README, re.MULTILINE) for flag in ours)
