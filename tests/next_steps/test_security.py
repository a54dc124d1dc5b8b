"""next_steps/security: who may come in and what each may do, on a real broker with TLS, passwords and rules."""

import functools
import json
import os
import re
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from broker import ROOT, free_port, missing
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBindingFilter,
    AdminClient,
    NewTopic,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from conftest import LIMIT, QUIET, Process, allow, confirmed, examples, posix, put, records, running, same, wait_until
from proxy import Proxy
from secured import COMPOSE_FILE, Secured
from test_compose import COMMANDS, needs_compose
from test_compose import running as engine
from test_web import Site, environment

from next_steps.security import apply, certificates, make_credentials, rights

END_LIMIT = 20  # seconds, of which a command takes 10 at most on a machine that does nothing else
REAUTH = 3  # seconds until a connection has to prove anew who it is
# Two listeners more, as that of clients, each with a certificate that is wrong in another way.
WRONG = {"EXPIRED": "9094", "ELSEWHERE": "9095"}
ORDER_ID = "123e4567-e89b-12d3-a456-426614174000"
SCRAM_LISTENER = "KAFKA_LISTENER_NAME_{}_SCRAM___SHA___512_SASL_JAAS_CONFIG"
SCRAM_MODULE = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


def ran(module, *flags, status=0):
    """Return a command of the step when it has ended with that status."""
    process = Process(sys.executable, "-m", f"next_steps.security.{module}", *flags)
    assert process.wait() == status, process
    return process


def orders_in(secured, topic="orders"):
    """Return the orders in the topic."""
    return [json.loads(r.value()) for r in records(secured.servers, topic, **secured.client("admin"))]


def ends(secured):
    """Return the end of each topic."""
    client = Consumer(secured.client("admin") | {"group.id": "unused"})
    found = {name: client.get_watermark_offsets(TopicPartition(name, 0), LIMIT)[1] for name in rights.TOPICS}
    client.close()
    return found


@pytest.fixture(scope="module")
def secured(tmp_path_factory) -> Iterator[Secured]:
    """A broker that these tests share, as apply has left it."""
    if lacking := missing():
        pytest.skip(f"no broker with settings of its own: install {lacking}")
    folder = tmp_path_factory.mktemp("secrets") / "secrets"
    names = ["HOST", "NETWORK", "CONTROLLER", *WRONG]
    listeners = "".join(f",{name}://:{port}" for name, port in WRONG.items())
    settings = {
        "KAFKA_LISTENERS": "HOST://:9092,NETWORK://:19092,CONTROLLER://localhost:9093" + listeners,
        "KAFKA_ADVERTISED_LISTENERS": "HOST://localhost:9092,NETWORK://localhost:19092"
        + listeners.replace("//", "//localhost"),
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": ",".join(
            f"{name}:{'SSL' if name in ('NETWORK', 'CONTROLLER') else 'SASL_SSL'}" for name in names
        ),
        "KAFKA_CONNECTIONS_MAX_REAUTH_MS": REAUTH * 1000,
    }
    for name in WRONG:
        settings[SCRAM_LISTENER.format(name)] = SCRAM_MODULE
        settings[f"KAFKA_LISTENER_NAME_{name}_SSL_KEYSTORE_LOCATION"] = folder / "broker" / f"{name}.pem"
    made = Secured(folder, **QUIET | settings)
    ca = certificates.read_ca(folder)
    (folder / "broker" / "EXPIRED.pem").write_bytes(certificates.make_certificate(ca, "broker", ["127.0.0.1"], -1))
    (folder / "broker" / "ELSEWHERE.pem").write_bytes(certificates.make_certificate(ca, "broker", ["elsewhere"]))
    (folder / "other.pem").write_bytes(certificates.in_pem(certificates.make_ca().certificate))
    with made.broker:
        made.apply()
        yield made


def commands(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Return each command of the project that asks Kafka, with the user whom it is for."""
    orders = folder / "orders.jsonl"
    orders.write_text('{"user": "ana", "item": "tea", "quantity": 1}\n')
    database = ["--database", f"sqlite:///{folder / 'orders.db'}"]
    handler = ["--handler", "builtins:len"]
    return {
        "producer.py": ("producer", []),
        "tracker.py": ("tracker", ["-e"]),
        "next_steps.bulk.producer": ("producer", ["-l", str(orders)]),
        "next_steps.load_balancing.lag": ("tracker", []),
        "next_steps.load_balancing.partitions": ("tracker", ["1"]),
        "next_steps.retries.tracker": ("retries", [*handler, "-e"]),
        "next_steps.retries.dead_letters": ("retries", []),
        "next_steps.history.store": ("history", [*database, "-e"]),
        "next_steps.history.change": ("web", [ORDER_ID, "accepted", "--by", "ana"]),
        "next_steps.web": ("web", [*database, "--port", "0"]),
        "next_steps.schemas.producer": ("producer", ["--format", "avro"]),
        "next_steps.schemas.tracker": ("tracker", ["-e"]),
        "next_steps.security.check": ("tracker", []),
        "next_steps.security.apply": ("admin", ["--directory", str(folder)]),
    }


@pytest.fixture
def run(start):
    """A function that starts a command of the project with a file of properties."""

    def started(name, *flags, file):
        script = [name] if name.endswith(".py") else ["-m", name]
        return start(sys.executable, *script, *flags, "-F", str(file))

    return started


def assert_refused(secured, process, *words, lines=(1, 2), limit=END_LIMIT):
    """The process ends in time, by one or two lines of which one has the words; it showed nothing, and no secret."""
    assert process.wait(limit) == 1, process
    # Besides orders that were not confirmed, and librdkafka's own word of a fatal error.
    said = [line for line in process.err if not line.startswith(("Order ", "%0|"))]
    assert lines[0] <= len(said) <= lines[1], process
    everything = "\n".join(process.out + process.err)
    assert "Traceback" not in everything, process
    assert all(word in "\n".join(said) for word in words), (words, process)
    assert not any(line.startswith("Message") for line in process.out), process
    assert_no_secret(secured, everything)


def assert_no_secret(secured, text):
    assert "PRIVATE KEY" not in text
    assert not [password for password in secured.passwords if password in text]


# The matrix: who is not let in. For each fault all commands of the project at once.

CERTIFICATE = ["certificate verify failed"]
FAULTS = {
    "wrong password": ({"sasl_password": "wrong"}, ["invalid credentials"]),
    "unknown user": ({"sasl_username": "mallory"}, ["invalid credentials"]),
    "PLAIN in place of SCRAM": ({"sasl_mechanism": "PLAIN"}, ["Unsupported SASL mechanism"]),
    "SCRAM-SHA-256 in place of 512": ({"sasl_mechanism": "SCRAM-SHA-256"}, ["Unsupported SASL mechanism"]),
    "another CA": ({"ssl_ca_location": "{other}"}, CERTIFICATE),
    "another host name": ({"bootstrap_servers": "{ELSEWHERE}"}, CERTIFICATE),
    "expired certificate": ({"bootstrap_servers": "{EXPIRED}"}, CERTIFICATE),
    "no credentials": ({"security_protocol": "ssl"}, []),
    "plaintext to the TLS port": ({"security_protocol": "plaintext"}, []),
    "TLS to a plaintext port": ({"bootstrap_servers": "{plain}"}, []),
}


def changes_of(fault, secured, bootstrap):
    """Return what is changed in a user's properties for the fault."""
    places = {name: f"127.0.0.1:{secured.broker.port(port)}" for name, port in WRONG.items()}
    places |= {"other": str(secured.folder / "other.pem"), "plain": bootstrap}
    return {name: value.format(**places) for name, value in FAULTS[fault][0].items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_who_is_not_let_in_is_told_so(secured, run, tmp_path, bootstrap, fault):
    changes, words = changes_of(fault, secured, bootstrap), FAULTS[fault][1]
    before = ends(secured)
    started = {}
    for name, (user, flags) in commands(tmp_path).items():
        if name == "next_steps.web" and not words:
            continue  # it serves before Kafka does, and says that none answers
        started[name] = run(name, *flags, file=secured.changed(user, **changes))
    for name, process in started.items():
        check = "check" in name or "apply" in name
        reason = [] if check else words if words else ["No Kafka broker answered", "Check -b"]
        assert_refused(secured, process, *reason, lines=(1, 1) if name != "next_steps.web" else (1, 2))
        if words == CERTIFICATE and not check:
            assert all(word in process.err[0] for word in ("CA", "host", "date")), process
    assert ends(secured) == before


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong password", ["invalid credentials", "Check sasl.username, sasl.password and sasl.mechanism"]),
        ("PLAIN in place of SCRAM", ["SCRAM-SHA-512", "sasl.mechanism"]),
        ("another CA", ["self-signed certificate in certificate chain", "ca.pem that was made with it"]),
        ("another host name", ["not valid for '127.0.0.1'", "It is for other"]),
        ("expired certificate", ["certificate has expired", "make_credentials --renew"]),
        ("plaintext to the TLS port", ["security.protocol"]),
        ("no credentials", ["security.protocol"]),
        ("TLS to a plaintext port", ["TLS", "security.protocol"]),
    ],
)
def test_check_says_which_fault_it_is(secured, bootstrap, fault, words):
    changes = changes_of(fault, secured, bootstrap)
    checked = ran("check", "-F", str(secured.changed("tracker", **changes)), status=1)
    assert_refused(secured, checked, *words, lines=(1, 1))


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"ssl_ca_location": "/no/such/ca.pem"}, 2, ["ssl.ca.location /no/such/ca.pem can't be read"]),
        ({"bootstrap_servers": "127.0.0.1:1"}, 1, ["refused", "Check -b"]),
        ({"bootstrap_servers": "127.0.0.1:none"}, 2, ["none"]),
        ({"bootstrap_servers": "[::1]:1"}, 1, ["[::1]:1"]),
        ({"no_such": "1"}, 2, ["no.such"]),
        ({"sasl_password": "secret\x1b[31m"}, 1, ["invalid credentials"]),
    ],
)
def test_check_of_a_file_that_makes_no_sense(secured, changes, status, words):
    file = secured.changed("tracker", **changes)
    checked = ran("check", "-F", str(file), status=status)
    assert all(word in checked.err[-1] for word in words), checked
    assert "Traceback" not in str(checked)


# The matrix: who may not do what.


def test_who_has_no_right_is_told_so_by_each_command(secured, run, start, tmp_path):
    new = UserScramCredentialUpsertion("nobody", apply.SCRAM, b"secret-of-nobody")
    secured.admin.alter_user_scram_credentials([new])["nobody"].result(LIMIT)
    file = secured.changed("tracker", sasl_username="nobody", sasl_password="secret-of-nobody")
    secured.passwords.add("secret-of-nobody")
    before = ends(secured)
    page, checked = commands(tmp_path)["next_steps.web"][1][2:], run("next_steps.security.check", file=file)
    started = {
        name: run(name, *flags, file=file)
        for name, (_, flags) in commands(tmp_path).items()
        if name not in ("next_steps.web", "next_steps.security.check")
    }
    with_store = [sys.executable, "-m", "next_steps.web", *page, "-F", file]
    started["next_steps.web"] = start(*with_store, **environment(tmp_path))
    for process in started.values():
        assert_refused(secured, process, "uthorization failed", lines=(1, 2))
    assert checked.wait() == 0, checked
    assert checked.out == ["Kafka takes user nobody, who may", "cluster: nothing", "group order-tracker: nothing"]
    assert ends(secured) == before


RIGHTS = {
    "no WRITE on the topic: the tracker's user produces": ("producer.py", "tracker", []),
    "the same with many orders": ("next_steps.bulk.producer", "tracker", ["-l", "{orders}"]),
    "the same for a status": ("next_steps.history.change", "history", [ORDER_ID, "accepted", "--by", "ana"]),
    "no READ on the topic: the producer's user consumes": ("tracker.py", "producer", ["-e"]),
    "no READ on the group": ("tracker.py", "tracker", ["-e", "-g", "order-history"]),
    "topic creation by a producer": ("producer.py", "producer", ["-t", "new"]),
    "topic creation by a tracker": ("tracker.py", "tracker", ["-t", "new"]),
    "describe of another's group": ("next_steps.load_balancing.lag", "tracker", ["-g", "order-history"]),
    "the topic of the groups": ("tracker.py", "web", ["-t", "__consumer_offsets", "-g", "order-history"]),
    "the topic of metadata and credentials": (
        "tracker.py",
        "web",
        ["-t", "__cluster_metadata", "-g", "order-history"],
    ),
    "more partitions": ("next_steps.load_balancing.partitions", "tracker", ["5"]),
    "dead letters by the tracker's user": ("next_steps.retries.dead_letters", "tracker", []),
    "users and rights": ("next_steps.security.apply", "web", []),
}


def test_who_may_not_do_it_is_told_so(secured, run, tmp_path):
    """All rows at once, each one a command with a user that has no right to it."""
    commands(tmp_path)
    before = ends(secured)
    started = {}
    for row, (name, user, given) in RIGHTS.items():
        flags = [flag.format(orders=tmp_path / "orders.jsonl") for flag in given]
        started[row] = run(name, *flags, file=secured.file(user))
    for process in started.values():
        assert_refused(secured, process, "uthorization failed")
    assert ends(secured) == before
    assert "new" not in secured.admin.list_topics(timeout=LIMIT).topics


def test_no_user_reads_what_the_broker_knows_of_others(secured):
    """Past the project's commands. Asked for passwords without the right, librdkafka 2.16 aborts: no row of its own."""
    admin = AdminClient(secured.client("web"))
    for asked in (
        admin.describe_consumer_groups(["order-tracker"])["order-tracker"],
        admin.create_topics([NewTopic("new", 1)])["new"],
        admin.alter_user_scram_credentials([UserScramCredentialDeletion("tracker", apply.SCRAM.mechanism)])["tracker"],
    ):
        with pytest.raises(KafkaException, match="AUTHORIZATION_FAILED"):
            asked.result(LIMIT)
    assert {*admin.list_topics(timeout=LIMIT).topics} == {"orders", "order-status", "orders.DLQ"}


# The matrix: what speaks TLS otherwise, or from elsewhere.


def context(secured, certificate=None):
    made = ssl.create_default_context(cafile=secured.folder / "ca.pem")
    if certificate:
        made.load_cert_chain(certificate)
    return made


def answer(secured, port, context):
    """Return what the broker answers to the question which versions it knows, b"" where it hangs up."""
    question = struct.pack(">hhih", 18, 0, 1, -1)
    with socket.create_connection(("127.0.0.1", secured.broker.port(port)), LIMIT) as line:
        try:
            with context.wrap_socket(line, server_hostname="127.0.0.1") as secure:
                secure.sendall(struct.pack(">i", len(question)) + question)
                return secure.recv(4)
        except (ssl.SSLError, ConnectionError):
            return b""


@pytest.mark.parametrize("port", ["9093", "19092"], ids=["controller", "brokers"])
def test_on_brokers_own_listeners_only_a_certificate_of_the_ca_counts(secured, tmp_path, port):
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(certificates.make_certificate(certificates.make_ca(), "admin"))
    assert answer(secured, port, context(secured, secured.folder / "apply.pem"))
    assert answer(secured, port, context(secured)) == b""
    assert answer(secured, port, context(secured, foreign)) == b""
    with socket.create_connection(("127.0.0.1", secured.broker.port(port)), LIMIT) as line:
        line.sendall(struct.pack(">ihhih", 10, 18, 0, 1, -1))
        assert line.recv(100)[:1] in (b"", b"\x15")  # an alert of TLS, and no answer


def test_a_certificate_of_the_ca_gives_no_more_than_its_users_rights(secured, tmp_path):
    """Who would come to the brokers' listener as the tracker is the tracker there."""
    file = tmp_path / "tracker.pem"
    file.write_bytes(certificates.make_certificate(certificates.read_ca(secured.folder), "tracker"))
    here = {"ssl_certificate_location": str(file), "ssl_key_location": str(file)}
    admin = AdminClient(secured.client("apply", **here))
    assert {*admin.list_topics(timeout=LIMIT).topics} == {"orders"}
    with pytest.raises(KafkaException, match="AUTHORIZATION_FAILED"):
        admin.create_topics([NewTopic("new", 1)])["new"].result(LIMIT)


def test_tls_below_1_2_is_refused(secured):
    old = context(secured)
    assert answer(secured, "9092", old)
    for version, taken in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        old = context(secured)
        old.minimum_version = old.maximum_version = version
        old.set_ciphers("ALL:@SECLEVEL=0")
        assert bool(answer(secured, "9092", old)) is taken


@pytest.mark.skipif(not shutil.which("kcat"), reason="no kcat: apt-get install kcat")
def test_kcat_as_a_stranger_sees_nothing(secured):
    ca = f"ssl.ca.location={secured.folder / 'ca.pem'}"
    for flags in ([], ["-X", "security.protocol=ssl", "-X", ca]):
        asked = subprocess.run(["kcat", "-b", secured.servers, "-L", "-m", "2", *flags], capture_output=True, text=True)
        assert asked.returncode == 1
        assert "orders" not in asked.stdout
    # By certificate: Debian 12's kcat has a librdkafka before 2.6.1, whose SCRAM Kafka 4 refuses (its issue 4895).
    known = subprocess.run(["kcat", "-F", secured.file("apply"), "-L"], capture_output=True, text=True)
    assert 'topic "orders"' in known.stdout


# The matrix: what changes while they run.


@pytest.fixture
def flowing(secured, run, tmp_path):
    """The long-running commands, each at work with its own user; afterwards all is as the table says again."""
    orders = tmp_path / "many.jsonl"
    orders.write_text("".join(f'{{"user": "{tmp_path.name}{n}", "item": "tea", "quantity": 1}}\n' for n in range(5000)))
    database = f"sqlite:///{tmp_path / 'flowing.db'}"
    flags = {
        "producer": ("next_steps.bulk.producer", ["-l", str(orders), "--rate", "100"]),
        "tracker": ("tracker.py", []),
        "retries": ("next_steps.retries.tracker", ["--handler", "builtins:len", "-t", "orders"]),
        "history": ("next_steps.history.store", ["--database", database]),
        "web": ("next_steps.web", ["--port", "0", "--database", database]),
    }
    found = {user: run(name, *given, file=secured.file(user)) for user, (name, given) in flags.items()}
    found["producer"].wait_for("Message delivered", times=20)
    for user in ("tracker", "retries"):  # they share one partition, and the handler of the second says nothing
        found[user].wait_for("Consumer is running")
    found["web"].wait_for("Serving")
    yield found
    for process in running([*found.values()]):
        process.end()
    secured.apply()


def assert_all_end(secured, flowing, *words, limit):
    """Each ends by itself, and no order was lost: what was confirmed is there, and what was not was named."""
    for user, process in flowing.items():
        assert process.wait(limit) == 1, (user, process)
        assert "Traceback" not in str(process), process
        said = [line for line in process.err if not line.startswith(("%", "Order "))]
        if user == "producer":  # says every 10 s that it tries again: until the refusal has come it may be an outage
            refused = [line for line in said if not line.startswith("Kafka became unreachable")]
            assert len(said) - len(refused) <= 1 + limit // 10, process
            said = refused
        assert 1 <= len(said) <= 2, (user, process)
        assert any(word in line for word in words for line in said), (user, process)
        assert_no_secret(secured, "\n".join(process.out + process.err))
    delivered = confirmed(flowing["producer"])
    written = Counter(order["user"] for order in orders_in(secured))
    assert not [user for user in delivered if written[user] != 1]


def test_users_that_are_removed_are_out_and_say_so(secured, flowing):
    gone = [UserScramCredentialDeletion(user, apply.SCRAM.mechanism) for user in flowing]
    for done in secured.admin.alter_user_scram_credentials(gone).values():
        done.result(LIMIT)
    assert_all_end(secured, flowing, "invalid credentials", limit=REAUTH + END_LIMIT)


def test_users_whose_password_was_changed_are_out_and_say_so(secured, flowing):
    new = [UserScramCredentialUpsertion(user, apply.SCRAM, b"another password") for user in flowing]
    for done in secured.admin.alter_user_scram_credentials(new).values():
        done.result(LIMIT)
    assert_all_end(secured, flowing, "invalid credentials", limit=REAUTH + END_LIMIT)


def test_users_whose_rights_were_taken_away_say_so(secured, flowing):
    """But for the page without a store in it: it shows what the database has, and answers an order by the reason."""
    page = flowing.pop("web")
    for done in secured.admin.delete_acls([apply.ALL_RULES]).values():
        done.result(LIMIT)
    assert_all_end(secured, flowing, "uthorization failed", limit=END_LIMIT)
    assert page.popen.poll() is None, page


# The positive controls: with their rights, and no more, all do their work.


def test_each_user_does_its_work(secured, run, tmp_path):
    begin, started = len(orders_in(secured)), {}
    for name, (user, flags) in commands(tmp_path).items():
        # The schemas need a registry, partitions are admin's, the page and apply have tests of their own.
        if not any(word in name for word in ("schemas", "partitions", "web", "apply")):
            started[name] = run(name, *flags, *["--replay"] * name.endswith("letters"), file=secured.file(user))
    for name, process in started.items():
        assert process.wait() == 0, (name, process)
    assert len(orders_in(secured)) == begin + 2
    assert ran("check", "-F", str(secured.file("admin"))).out[0] == "Kafka takes user admin, who may"
    assert run("next_steps.load_balancing.partitions", "2", "-t", "more", file=secured.file("admin")).wait() == 1
    assert orders_in(secured, "order-status")[-1]["order_id"] == ORDER_ID


def test_a_dead_letter_is_written_by_the_ones_user_and_goes_back(secured, run, tmp_path):
    put(secured.servers, "orders", b"no order", login=secured.client("producer"))
    stored = run(
        "next_steps.history.store", "--database", f"sqlite:///{tmp_path / 'x.db'}", "-e", file=secured.file("history")
    )
    assert stored.wait() == 1, stored
    before = ends(secured)
    back = run("next_steps.retries.dead_letters", "--replay", file=secured.file("retries"))
    assert back.wait() == 0, back
    assert ends(secured)["orders"] == before["orders"] + len(back.out) > before["orders"]
    pass_over_what_is_no_order(secured, run, tmp_path)


def pass_over_what_is_no_order(secured, run, folder):
    """Let the groups be behind the records that are no order, which other tests would hear of."""
    for name in ("tracker.py", "next_steps.history.store"):
        user, flags = commands(folder)[name]
        assert run(name, *flags, file=secured.file(user)).wait() in (0, 1)


def test_the_page_does_all_with_its_users_rights(secured, start, tmp_path):
    command = [sys.executable, "-m", "next_steps.web", "--port", "0", "-F", secured.file("web")]
    site = Site(start(*command, **environment(tmp_path)), secured.servers, "orders")
    placed = site.place("page", "tea", 2)
    site.stored(placed)
    assert site.change(placed, "accepted").status_code == 200
    assert site.client.get("/dead-letters").status_code == 200
    assert site.process.stop() == 0, site.process


@pytest.mark.parametrize("lost", [right for right in rights.RIGHTS if right.user in ("tracker", "history", "producer")])
def test_no_right_is_there_in_vain(secured, run, tmp_path, lost):
    """Least rights: without any one of them, the user's command fails."""
    same_rule = AclBindingFilter(*(getattr(apply.rule(lost), name) for name in apply.RULE))
    if lost == ("history", "WRITE", "TOPIC", "orders.DLQ"):
        put(secured.servers, "orders", b"no order", login=secured.client("producer"))
    try:
        for done in secured.admin.delete_acls([same_rule]).values():
            done.result(LIMIT)
        name = {"tracker": "tracker.py", "producer": "producer.py", "history": "next_steps.history.store"}[lost.user]
        process = run(name, *commands(tmp_path)[name][1], file=secured.file(lost.user))
        assert_refused(secured, process, "uthorization failed")
    finally:
        rule = apply.rule(lost)
        secured.admin.create_acls([rule])[rule].result(LIMIT)
        if lost.name == "orders.DLQ":
            pass_over_what_is_no_order(secured, run, tmp_path)


# A connection that is lost while it proves who it is refuses nobody.


@pytest.mark.parametrize("name", ["producer.py", "tracker.py"])
def test_a_connection_that_is_cut_on_its_way_in_is_no_refusal(secured, run, name):
    """As by a broker that stops. librdkafka calls it failed authentication, with words of its own."""
    port = free_port()
    network = Proxy(port, secured.broker.port("9092"))
    network.cuts = [1, 2, *[3] * 6, 4, 5, 6]
    user, flags = commands(secured.folder)[name]
    fast = ["-X", "reconnect.backoff.ms=20", "-X", "reconnect.backoff.max.ms=100"]
    process = run(name, *flags, *fast, "-b", f"127.0.0.1:{port}", file=secured.file(user))
    assert process.wait() == 0, process
    assert network.cuts == []
    network.close()


# No secret gets out, and files are as closed as they can be.


def test_debugging_shows_no_secret(secured, run):
    for name, user in (("producer.py", "producer"), ("tracker.py", "tracker")):
        flags = ["-X", "debug=all", "-X", "log_level=7", *["-e"] * (user == "tracker")]
        process = run(name, *flags, file=secured.file(user))
        assert process.wait() == 0
        assert len(process.err) > 100
        assert_no_secret(secured, "\n".join(process.err))
    keys = run("next_steps.security.check", "-X", "debug=all", "-X", "log_level=7", file=secured.file("apply"))
    assert keys.wait() == 0
    assert_no_secret(secured, "\n".join(keys.err))


@posix
def test_processes_show_no_secret(secured):
    shown = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
    assert str(secured.folder / "broker" / "kafka.pem") in shown  # the broker's environment is among it
    assert_no_secret(secured, shown)


def test_the_compose_file_holds_no_secret_and_mounts_one_folder():
    service = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))["services"]["kafka"]
    assert not [name for name in service["environment"] if "PASSWORD" in name or name == "KAFKA_OPTS"]
    assert service["volumes"] == [
        "kafka_secure:/var/lib/kafka/data",
        "${CREDENTIALS:-./secrets}/broker:/etc/kafka/secrets:ro",
    ]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    ignored = subprocess.run(["git", "check-ignore", "next_steps/security/secrets/x"], cwd=ROOT, capture_output=True)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()


@posix
def test_files_are_closed_to_others_and_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "secrets"
    previous = os.umask(0)
    try:
        make = functools.partial(
            Process, sys.executable, "-m", "next_steps.security.make_credentials", "--directory", folder
        )
        made = make()
        assert made.wait() == 0, made
    finally:
        os.umask(previous)
    mode = lambda path: stat.S_IMODE(path.stat().st_mode)  # noqa: E731
    assert (mode(folder), mode(folder / "ca"), mode(folder / "broker")) == (0o700, 0o700, 0o755)
    assert {mode(file) for file in folder.glob("*") if file.is_file() and file.name != "ca.pem"} == {0o600}
    assert {mode(file) for file in (folder / "broker").iterdir()} == {0o644}
    assert mode(folder / "ca" / "ca.key") == 0o600
    assert re.fullmatch(
        rf"{folder} holds .*\. The certificates expire on 20\d\d-\d\d-\d\d, the CA on 20.*", made.out[0]
    )
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    again = make()
    assert again.wait() == 1
    assert "--renew renews its certificates, --force makes all anew. The certificates expire on 20" in again.err[0]
    (folder / "ca" / "ca.key").rename(tmp_path / "ca.key")  # as the README has it: kept elsewhere
    assert make().wait() == 1
    assert make("--renew").wait() == 1
    (tmp_path / "ca.key").rename(folder / "ca" / "ca.key")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    changed = lambda: {file.name for file, content in before.items() if file.read_bytes() != content}  # noqa: E731
    assert make("--new-password", "web").wait() == 0
    assert changed() == {"web.properties"}
    assert make("--renew").wait() == 0
    assert changed() == {"web.properties", "kafka.pem", "apply.pem"}
    assert make("--force").wait() == 0
    assert changed() == {file.name for file in before} - {"health.properties", "apply.properties"}
    assert not [file for file in folder.rglob("*") if file.name.startswith(".")]


def test_what_make_credentials_cannot_do_is_said(tmp_path):
    make = functools.partial(Process, sys.executable, "-m", "next_steps.security.make_credentials", "--directory")
    (tmp_path / "file").touch()
    for flags, word, status in (
        ([tmp_path / "file"], "could not be filled", 1),
        ([tmp_path], "could not be filled", 1),
        ([tmp_path / "new", "--renew"], "Make them first", 1),
        ([tmp_path / "new", "--new-password", "web"], "Make them first", 1),
        ([tmp_path / "new", "--new-password", "mallory"], "invalid choice", 2),
    ):
        process = make(*flags)
        assert process.wait() == status, process
        assert word in process.err[-1]


# apply


def test_apply_says_what_it_added_and_what_is_there_besides(secured):
    secured.apply("--prune")
    assert secured.apply() == ["It is as the table says"]
    allow(secured.admin, "mallory", "ALL", "TOPIC", "orders")
    new = UserScramCredentialUpsertion("mallory", apply.SCRAM, b"secret")
    secured.admin.alter_user_scram_credentials([new])["mallory"].result(LIMIT)
    gone = UserScramCredentialDeletion("tracker", apply.SCRAM.mechanism)
    secured.admin.alter_user_scram_credentials([gone])["tracker"].result(LIMIT)
    said = secured.apply()
    assert said[0] == "Added user tracker"
    assert said[1] == "Found user mallory (SCRAM_SHA_512)"
    assert said[2].startswith("Found rule TOPIC, orders, LITERAL, User:mallory, *, ALL, ALLOW")
    assert said[3] == "It is as the table says, but for what was found: --prune removes it"
    said = secured.apply("--prune")
    assert [line.split()[0] for line in said] == ["Removed", "Removed", "It"]
    assert secured.apply() == ["It is as the table says"]


def test_apply_without_its_certificate_or_a_broker_is_told_so(secured, tmp_path):
    here = ["--directory", str(secured.folder)]
    for flags, status, word in (
        (["-F", str(secured.file("web"))], 1, "Cluster authorization failed"),
        (["-F", str(secured.file("apply")), "-b", "127.0.0.1:1"], 1, "Connection refused"),
        (["-F", str(tmp_path / "none")], 2, "No such file"),
        (["-F", str(secured.file("apply")), "-X", "no.such=x"], 2, "No such configuration property"),
    ):
        process = ran("apply", *here, *flags, status=status)
        assert word in process.err[-1], process


# Rotation without an outage, as the README has it.


@pytest.mark.skipif(missing() is not None, reason=f"no broker can be started: install {missing()}")
def test_a_password_is_changed_while_orders_flow(run, tmp_path):
    """The new one goes into the file and to Kafka; who runs goes on until it is started again, with the new one.

    On a broker of its own: that of the other tests wants to hear the password again every 3 seconds.
    """
    secured = Secured(tmp_path / "secrets")
    with secured.broker:
        secured.apply()
        change_password(secured, run, tmp_path)


def change_password(secured, run, tmp_path):
    orders = tmp_path / "orders.jsonl"
    orders.write_text("".join(f'{{"user": "pw{n}", "item": "tea", "quantity": 1}}\n' for n in range(800)))
    sending = run("next_steps.bulk.producer", "-l", str(orders), "--rate", "200", file=secured.file("producer"))
    tracking = run("tracker.py", file=secured.file("tracker"))
    tracking.wait_for("from pw")
    secured.run("make_credentials", "--new-password", "tracker")
    secured.adapt(secured.file("tracker"))
    assert "Gave user tracker another password" in secured.apply()
    assert tracking.stop() == 0, tracking
    later = run("tracker.py", file=secured.file("tracker"))
    later.wait_for("Consumer is running")
    assert sending.wait() == 0, sending
    wait_until(lambda: len(received(tracking) + received(later)) >= 800, (tracking, later))
    assert later.stop() == 0, later
    assert sorted(received(tracking) + received(later)) == sorted(f"pw{n}" for n in range(800))
    assert tracking.err == later.err == []


def received(process):
    return [line.rpartition(" ")[2] for line in process.out if "from pw" in line]


def test_certificates_are_renewed_while_orders_flow(secured, run, tmp_path):
    """The broker takes up the new one at apply, without a restart; nobody else has to do anything."""
    sending = run("producer.py", "-c", "1", file=secured.file("producer"))
    assert sending.wait() == 0
    tracking = run("tracker.py", file=secured.file("tracker"))
    tracking.wait_for("Consumer is running")
    before = serial(secured)
    secured.run("make_credentials", "--renew")
    said = secured.apply()
    assert "The broker shows the certificate in kafka.pem" in said[-2], said
    assert serial(secured) != before
    assert run("producer.py", "--user", "renewed", file=secured.file("producer")).wait() == 0
    tracking.wait_for("from renewed")
    assert tracking.stop() == 0, tracking
    assert tracking.err == []


def serial(secured):
    """Return the number of the certificate that the broker shows to clients."""
    line = socket.create_connection(("127.0.0.1", secured.broker.port("9092")), LIMIT)
    with context(secured).wrap_socket(line, server_hostname="127.0.0.1") as secure:
        return secure.getpeercert()["serialNumber"]


# The README, and the Compose file.

README = (ROOT / "next_steps" / "security" / "README.md").read_text("utf-8")


def test_the_readme_shows_the_table_of_rights_and_is_short():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", README, re.MULTILINE)
    shown = {(user, *each.split(" ")) for user, cell in rows for each in cell.split(", ")}
    assert shown >= {(right.user, right.operation, right.name) for right in rights.RIGHTS}
    assert len(shown) == len(rights.RIGHTS)
    assert len(README.splitlines()) <= 150


@pytest.fixture
def copy(tmp_path):
    """A folder with what a user has, in which credentials can be made."""
    for name in ("producer.py", "tracker.py"):
        shutil.copy(ROOT / name, tmp_path)
    secrets = shutil.ignore_patterns("secrets", "__pycache__")
    shutil.copytree(ROOT / "next_steps", tmp_path / "next_steps", ignore=secrets)
    return tmp_path


@pytest.mark.xdist_group("port 9092")
def test_the_readme_word_by_word(start, copy):
    """But for pip, and the launcher in the place of Docker."""
    here = {"cwd": copy, "env": {"PYTHONPATH": str(copy)}}
    file = copy / "next_steps" / "security" / "docker-compose.yml"
    broker = None
    for command, printed in examples("", README):
        if command.startswith("pip "):
            continue
        if command.startswith("docker-compose "):
            launcher = [ROOT / "tests" / "broker.py", "--file", file, "--directory", copy / "kafka"]
            (copy / "kafka").mkdir()
            broker = start(sys.executable, *launcher, **here)
            broker.wait_for("Kafka 4.3.1 is running", limit=90)
            continue
        done = start(*command.replace("python ", f"{sys.executable} ", 1).split(), **here)
        assert done.wait() == 0, done
        if "..." in printed:
            assert [done.out[0], done.out[-1]] == [printed[0], printed[-1]]
        elif "make_credentials" in command:
            assert re.sub(r"\d", "0", done.out[0]) == re.sub(r"\d", "0", printed[0])
        else:
            assert same(done.out, printed), done
    for command in re.findall(r"`python -m (next_steps.security\S* --[^`]*|next_steps.security.apply)`", README):
        if "FILE" in command:
            continue
        done = start(sys.executable, "-m", *command.split(), **here)
        assert done.wait() == 0, done
    assert broker.stop() == 0


@needs_compose
@pytest.mark.xdist_group("port 9092")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", COMMANDS or [None])
def test_the_compose_file_in_a_docker_engine(command, tmp_path, monkeypatch, run):
    """Healthy by its own certificate; users and rights are in the volume; nothing secret in what Docker shows."""
    folder = tmp_path / "secrets"
    monkeypatch.setenv("CREDENTIALS", str(folder))
    assert make_credentials.main(["--directory", str(folder)]) == 0
    with engine(command, COMPOSE_FILE) as project:
        flags = ["--directory", str(folder), "-F", str(folder / "apply.properties")]
        assert ran("apply", *flags).out[-1] == "It is as the table says"
        assert run("producer.py", file=folder / "producer.properties").wait() == 0
        container = project.container()
        for shown in (
            ["docker", "inspect", container],
            ["docker", "logs", container],
            ["docker", "top", container, "aux"],
        ):
            text = subprocess.run(shown, capture_output=True, text=True, check=True)
            for file in folder.glob("*.properties"):
                for password in re.findall("sasl.password=(.*)", file.read_text()):
                    assert password not in text.stdout + text.stderr
            assert "PRIVATE KEY" not in text.stdout + text.stderr
        project.down()
        project.up()
        assert ran("apply", *flags).out == ["It is as the table says"]
        tracking = run("tracker.py", "-e", file=folder / "tracker.properties")
        assert tracking.wait() == 0
        assert tracking.out[-1] == "Message received: burger 5 from john"
