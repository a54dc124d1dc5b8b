"""Each flag of both scripts, files of properties, outputs of any encoding, and each exit status."""

import json
import re
import sys

import pytest
from conftest import committed, create_topic, put, records

import producer
import tracker

pytestmark = pytest.mark.spread
SCRIPTS = {"producer.py": producer, "tracker.py": tracker}
PASSWORD = "s3cret=#\"'"  # noqa: S105
# librdkafka's other names, of its CONFIGURATION.md, with two values for each.
ALIASES = {
    "producer.py": [
        ("linger.ms", "queue.buffering.max.ms", "71", "72"),
        ("compression.type", "compression.codec", "gzip", "lz4"),
        ("acks", "request.required.acks", "1", "0"),
        ("max.in.flight", "max.in.flight.requests.per.connection", "3", "4"),
        ("retries", "message.send.max.retries", "11", "12"),
        ("delivery.timeout.ms", "message.timeout.ms", "61000", "62000"),
        ("sasl.mechanism", "sasl.mechanisms", "PLAIN", "SCRAM-SHA-256"),
    ],
    "tracker.py": [
        ("max.partition.fetch.bytes", "fetch.message.max.bytes", "90001", "90002"),
        ("sasl.mechanism", "sasl.mechanisms", "PLAIN", "SCRAM-SHA-256"),
    ],
}


@pytest.fixture(params=SCRIPTS)
def script(request, start, topic):
    """A function that starts one of the scripts, and then the other, with nothing but the arguments given."""

    def run(*arguments, **options):
        return start(sys.executable, request.param, "-t", topic, *arguments, **options)

    run.name = request.param
    run.once = ["-c", "1"] if request.param == "producer.py" else ["-e"]
    return run


@pytest.fixture
def properties(script, tmp_path):
    """A function that returns what the script reads from a file with this content, without its own settings."""
    module = SCRIPTS[script.name]

    def read(content):
        file = tmp_path / "client.properties"
        file.write_bytes(content)
        args = module.command_line().parse_args(["-F", str(file)])
        own = module.read_config(module.command_line().parse_args([]))
        return {name: value for name, value in module.read_config(args).items() if own.get(name) != value}

    return read


# Where from, where to.


def test_b_wins_over_the_variable_and_the_variable_over_the_default(script, bootstrap):
    assert script(*script.once, env={"KAFKA_BOOTSTRAP_SERVERS": bootstrap}).wait() == 0
    wrong = {"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}
    assert script(*script.once, "--bootstrap-servers", bootstrap, env=wrong).wait() == 0


@pytest.mark.parametrize("name", ["bootstrap.servers", "metadata.broker.list"])
def test_what_is_said_most_specifically_names_the_broker(script, bootstrap, tmp_path, name):
    file = tmp_path / "client.properties"
    file.write_text(f"{name}=localhost:1\n")
    right = ["-X", f"{name}={bootstrap}"]
    for arguments in (["-b", bootstrap, "-F", file], ["-F", file, *right], [*right, "-F", file]):
        assert script(*arguments, *script.once, env={"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}).wait() == 0
    for other in ("bootstrap.servers", "metadata.broker.list"):
        both = script("-b", bootstrap, "-X", f"{other}=localhost:1", *script.once)
        assert both.wait() == 0


def test_the_message_names_the_brokers_that_are_used(script, tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("bootstrap.servers=localhost:2\n")
    processes = {
        "localhost:1": script("-F", file, "-X", "metadata.broker.list=localhost:1"),
        "localhost:2": script("-F", file, env={"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}),
        "localhost:3": script("-F", file, "-X", "metadata.broker.list=localhost:1", "-b", "localhost:3"),
    }
    for servers, process in processes.items():
        assert process.wait() == 1
        assert process.err[0].startswith(f"No Kafka broker answered at {servers} within 9 s: {servers}/"), process.err


@pytest.mark.parametrize("reverse", [False, True])
def test_x_wins_over_the_file_whatever_the_names(script, bootstrap, tmp_path, reverse):
    pairs = [(a, b, *values) if not reverse else (b, a, *values) for a, b, *values in ALIASES[script.name]]
    file = tmp_path / "client.properties"
    file.write_text("".join(f"{alias}={value}\n{name}={value}\n" for name, alias, value, _ in pairs))
    said = [word for _, alias, _, value in pairs for word in ("-X", f"{alias}={value}")]
    free = ["-X", "enable.idempotence=false"] if script.name == "producer.py" else []
    process = script("-b", bootstrap, *script.once, *free, *said, "-F", file, "-X", "debug=conf")
    assert process.wait() == 0
    shown = "\n".join(process.err) + "\n"
    for name, alias, lost, won in pairs:
        names = f"({re.escape(name)}|{re.escape(alias)})"
        assert re.search(f"{names} = {won}\n", shown), (name, alias, shown)
        assert not re.search(f"{names} = {lost}\n", shown), (name, alias, shown)


def test_the_file_wins_over_the_scripts_own(run_producer, tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("# a comment\n\nmessage.timeout.ms = 4321\nlinger.ms=77\n")
    sending = run_producer("-X", "debug=conf", "-X", "linger.ms=78", "-F", file)
    assert sending.wait() == 0
    shown = "\n".join(sending.err)
    assert re.search(r"(delivery|message)\.timeout\.ms = 4321\b", shown)
    assert "timeout.ms = 120000" not in shown
    assert re.search(r"(linger|queue\.buffering\.max)\.ms = 78\b", shown)


def test_t_names_the_topic(start, bootstrap, topic):
    assert start(sys.executable, "producer.py", "-b", bootstrap, "--topic", topic).wait() == 0
    assert len(records(bootstrap, topic)) == 1


def test_g_names_the_group(run_tracker, run_producer, bootstrap, topic):
    assert run_producer().wait() == 0
    assert run_tracker("--group", f"{topic}-other", "-e").wait() == 0
    assert committed(bootstrap, f"{topic}-other", topic) == 1
    assert committed(bootstrap, topic, topic) == -1001


def test_g_wins_over_x(run_tracker, run_producer, bootstrap, topic):
    assert run_producer().wait() == 0
    assert run_tracker("-X", f"group.id={topic}-other", "-e").wait() == 0
    assert committed(bootstrap, topic, topic) == 1


# How much.


def test_c_sends_so_many_orders_and_stops_after_so_many(run_producer, run_tracker, bootstrap, topic):
    assert run_producer("--count", "7").wait() == 0
    assert len(records(bootstrap, topic)) == 7
    tracking = run_tracker("--count", "3")
    assert (tracking.wait(), len(tracking.out)) == (0, 4)
    assert committed(bootstrap, topic, topic) == 3
    rest = run_tracker("-e")
    assert (rest.wait(), len(rest.out)) == (0, 5)


def test_e_stops_at_the_end_even_of_an_empty_topic(run_tracker, topic):
    tracking = run_tracker("--exit")
    assert tracking.wait() == 0
    assert tracking.out == [f"Consumer is running & subscribed to {topic} topic"]


def test_e_stops_at_the_end_of_several_partitions(run_tracker, bootstrap, topic):
    create_topic(bootstrap, topic, partitions=3)
    put(bootstrap, topic, producer.to_json(producer.new_order("ana", "tea", 1)), partition=1)
    tracking = run_tracker("-e")
    assert (tracking.wait(), len(tracking.out)) == (0, 2)


def test_e_ends_a_spare_member(run_tracker, run_producer):
    """Another member has the only partition, so there is nothing for it to read."""
    owner = run_tracker()
    assert run_producer().wait() == 0
    owner.wait_for("Message received")
    spare = run_tracker("-e")
    assert (spare.wait(), len(spare.out)) == (0, 1)
    assert owner.stop() == 0


# Files of properties: what is plainly meant is taken.


@pytest.mark.parametrize(
    "content",
    [
        b"a.b=c d\n",
        b"\xef\xbb\xbfa.b=c d\n",
        b"# x=y\n! x=y\n\n[default]\n  # x\na.b=c d\n",
        b"a.b: c d\n",
        b"  a.b   =   c d  \n",
        b'a.b="c d"\n',
        b"a.b='c d'\r\n",
        b"x=1\nx=2\r\na.b=c d\nx=1",
    ],
)
def test_a_file_means_what_it_plainly_says(properties, content):
    found = properties(content)
    assert found.pop("x", "1") == "1"
    assert found == {"a.b": "c d"}


def test_what_a_file_has_for_a_schema_registry_is_not_for_kafka(properties, script):
    console = (
        b"a.b=c\nschema.registry.url=https://x\nbasic.auth.credentials.source=USER_INFO\nbasic.auth.user.info=k:s\n"
    )
    assert properties(console) == {"a.b": "c"}
    wrong = script("-X", "basic.auth.user.info=k:s")
    assert (wrong.wait(), wrong.out) == (2, [])
    assert 'No such configuration property: "basic.auth.user.info"' in wrong.err[-1]


def test_a_password_may_hold_any_character(properties):
    assert properties(f"sasl.password={PASSWORD}\n".encode()) == {"sasl.password": PASSWORD}
    assert properties(f"sasl.password='{PASSWORD}'\n".encode()) == {"sasl.password": PASSWORD}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"linger.ms=5\nsasl.password s3cret\n", ["client.properties:2"]),
        (b'\n# x\n{"sasl.password" s3cret}\n', ["client.properties:3"]),
        ("sasl.password=s3cret\n".encode("utf-16"), ["client.properties:1", "UTF-8"]),
        ("sasl.password=s3crété\n".encode("latin-1"), ["client.properties:1", "UTF-8"]),
        (b'sasl.jaas.config=org.X required username="s3cret";\n', ["JAAS", "sasl.username"]),
        (b"ssl.truststore.location=/x.jks\nssl.truststore.password=s3cret\n", ["TrustStores", "ssl.ca.location"]),
    ],
    ids=["no PROP=VALUE", "JSON", "UTF-16", "Latin-1", "JAAS", "trust store"],
)
def test_a_file_that_is_none_is_named_and_never_shown(script, tmp_path, content, words):
    file = tmp_path / "client.properties"
    file.write_bytes(content)
    wrong = script("-F", file)
    assert (wrong.wait(), wrong.out) == (2, [])
    assert wrong.err[-1].startswith(f"{script.name}: error: ")
    assert all(word in wrong.err[-1] for word in words), wrong.err[-1]
    assert "s3cr" not in "".join(wrong.err)


def test_a_directory_is_no_file(script, tmp_path):
    wrong = script("-F", tmp_path)
    assert (wrong.wait(), wrong.out) == (2, [])
    assert str(tmp_path) in wrong.err[-1] or "directory" in wrong.err[-1]
    assert "Traceback" not in str(wrong)


# Outputs of any encoding.


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_json_stays_json_on_any_output(run_producer, bootstrap, topic, encoding):
    sending = run_producer("--user", "José 寿司 🍔", env={"PYTHONIOENCODING": encoding})
    assert sending.wait() == 0
    assert json.loads(sending.out[0].removeprefix("Message delivered ")) == json.loads(
        records(bootstrap, topic)[0].value()
    )
    late = run_producer(
        "--user",
        "José 寿司 🍔",
        "-X",
        "message.max.bytes=1000",
        "--item",
        "é" * 2000,
        env={"PYTHONIOENCODING": encoding},
    )
    assert late.wait() == 1
    named = late.err[0].removeprefix("Order ").split(" was not confirmed")[0]
    assert (json.loads(named)["user"], json.loads(named)["item"]) == ("José 寿司 🍔", "é" * 2000)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_the_tracker_escapes_what_its_output_lacks(run_tracker, run_producer, encoding):
    assert run_producer("--user", "寿司").wait() == 0
    tracking = run_tracker("-e", env={"PYTHONIOENCODING": encoding})
    assert tracking.wait() == 0, str(tracking)
    assert tracking.out[1] == r"Message received: burger 5 from \u5bff\u53f8"


# Exit status.


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-flag"],
        ["-X", "no-equals-sign"],
        ["-X", "no.such.property=1"],
        ["-X", "enable.idempotence=perhaps"],
        ["-X", "oauth_cb=text"],
        ["-F", "no-such-file"],
        ["-F", ""],
        ["-c", "0"],
        ["-c", "many"],
        ["argument"],
    ],
)
def test_wrong_usage_exits_2_with_one_line_that_says_what_is_wrong(script, arguments):
    wrong = script(*arguments)
    assert wrong.wait() == 2
    assert wrong.out == []
    assert wrong.err[-1].startswith(f"{script.name}: error: ")
    assert "Traceback" not in "".join(wrong.err)


@pytest.mark.parametrize("arguments", [["-l", "orders.jsonl"], ["--rate", "5"], ["-q"], ["--quantity", "x"]])
def test_wrong_usage_of_the_producers_own_flags_exits_2(run_producer, arguments):
    wrong = run_producer(*arguments)
    assert (wrong.wait(), wrong.out) == (2, [])
    assert "error: " in wrong.err[-1]


def test_a_group_without_a_name_is_wrong_usage(run_tracker):
    wrong = run_tracker("-g", "")
    assert (wrong.wait(), wrong.out) == (2, [])
    assert "error: " in wrong.err[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-X", "group.protocol=consumer", "-X", "group.remote.assignor=unknown"],
        ["-X", "session.timeout.ms=1000"],
        ["-X", "auto.offset.reset=error"],
    ],
)
def test_what_trying_again_cannot_mend_ends_the_tracker(run_tracker, run_producer, arguments):
    assert run_producer().wait() == 0
    refused = run_tracker(*arguments)
    assert refused.wait() == 1
    assert refused.err[-1].startswith("Kafka refused this tracker: ")


@pytest.mark.parametrize(("flag", "value"), [("--user", ""), ("--item", ""), ("--quantity", "0"), ("--quantity", "-2")])
def test_an_order_that_is_not_valid_exits_1_and_is_not_sent(run_producer, flag, value):
    sending = run_producer(flag, value)
    assert (sending.wait(), sending.out) == (1, [])
    assert sending.err[0].startswith(f"{flag.removeprefix('--')} must be ")


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_either_group_protocol_can_be_chosen(run_producer, run_tracker, protocol):
    assert run_producer("-c", "3").wait() == 0
    tracking = run_tracker("-e", "-X", f"group.protocol={protocol}")
    assert tracking.wait() == 0
    assert len(tracking.out) == 4


def test_the_mock_broker_of_librdkafka_is_enough_for_a_smoke_test(start):
    mock = ["-b", "localhost:1", "-X", "test.mock.num.brokers=1"]
    sending = start(sys.executable, "producer.py", *mock)
    assert sending.wait() == 0
    assert sending.out[0].startswith("Message delivered ")
    tracking = start(sys.executable, "tracker.py", *mock)
    tracking.wait_for("Consumer is running & subscribed to orders topic")
    assert tracking.stop() == 0
