"""Say whether Kafka takes the credentials of a properties file, or why not, and which rights they give.

    python -m next_steps.security.check -F next_steps/security/secrets/tracker.properties

Certificates are tried by Python's own TLS first: librdkafka has the same words for each fault of them.
Exit status: 0 Kafka takes them, 1 it doesn't, 2 wrong usage.
"""

import argparse
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

import tracker

LIMIT = 8  # seconds to get in
FAULTS = {  # of a certificate, by OpenSSL's codes (X509_V_ERR_...)
    9: "It is not good yet: compare the clocks",
    10: "It has expired: make_credentials --renew makes another one",
    62: "It is for other names: call the broker by one of those",
    64: "It is for other addresses: call the broker by one of those",
}
ADVICE = {KafkaError._AUTHENTICATION: "Check sasl.username, sasl.password and sasl.mechanism, or run apply"}
SECURITY = "Check -b, and that security.protocol is that of the port"
OTHER_CA = "It is not of the CA in ssl.ca.location: take the ca.pem that was made with it"


def refusal(config: dict[str, Any]) -> KafkaError | None:
    """Return why Kafka doesn't take a client with these properties, None where it does.

    KafkaException says which of them librdkafka doesn't know.
    """
    said: list[KafkaError] = []
    admin = AdminClient(config | {"error_cb": said.append, "log_level": 0})
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and not any(map(final, said)):
        try:
            admin.list_topics(timeout=0.5)
            return None
        except KafkaException:
            admin.poll(0)  # runs error_cb
    reasons = [err for err in said if err.code() != KafkaError._ALL_BROKERS_DOWN]
    return reasons[-1] if reasons else KafkaError(KafkaError._TIMED_OUT, f"no answer came within {LIMIT} s")


def final(err: KafkaError) -> bool:
    """Return whether waiting doesn't change it, as tracker.error_report() has it."""
    try:
        tracker.error_report(err, [], [])
    except KafkaException:
        return True
    return False


def certificate_fault(address: str, config: dict[str, Any]) -> str | None:
    """Return what is wrong with the TLS of the broker at HOST:PORT, None where nothing is or none is asked for.

    ValueError says that the address or the CA can't be read.
    """
    protocol, verifies = config.get("security.protocol", ""), config.get("enable.ssl.certificate.verification", "true")
    if "ssl" not in protocol.lower() or verifies != "true":
        return None
    url = urlsplit(f"//{address.rpartition('://')[2]}")
    host, port = url.hostname or "localhost", url.port or 9092
    ca = config.get("ssl.ca.location")
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(f"ssl.ca.location {ca} can't be read: {error}") from None
    context.check_hostname = config.get("ssl.endpoint.identification.algorithm") != "none"
    try:
        with socket.create_connection((host, port), LIMIT) as line:
            context.wrap_socket(line, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return f"{error.verify_message.rstrip('.')}. {FAULTS.get(error.verify_code, OTHER_CA)}"
    except (ssl.SSLError, ConnectionResetError) as error:
        return f"no TLS: {error}. Check the port, and security.protocol"
    except OSError as error:
        return f"{error}. Check -b, and that the broker runs"
    return None


def rights(admin: AdminClient, group: str) -> Iterator[str]:
    """Yield what these credentials may do: to the cluster, to each topic that they may see, and to the group."""
    cluster = admin.describe_cluster(include_authorized_operations=True, request_timeout=LIMIT).result()
    yield f"cluster: {names(cluster.authorized_operations)}"
    if seen := sorted(admin.list_topics(timeout=LIMIT).topics):
        topics = TopicCollection(seen)
        asked = admin.describe_topics(topics, include_authorized_operations=True, request_timeout=LIMIT)
        for name in seen:
            yield f"topic {name}: {names(asked[name].result().authorized_operations)}"
    asked_group = admin.describe_consumer_groups([group], include_authorized_operations=True, request_timeout=LIMIT)
    try:
        yield f"group {group}: {names(asked_group[group].result().authorized_operations)}"
    except KafkaException as error:
        if error.args[0].code() != KafkaError.GROUP_AUTHORIZATION_FAILED:
            raise
        yield f"group {group}: nothing"


def names(operations: Any) -> str:
    """Return the operations in words."""
    return ", ".join(sorted(each.name for each in operations or [])) or "nothing"


def with_connection(parser: argparse.ArgumentParser, file: Path | None = None) -> argparse.ArgumentParser:
    """Return the parser, given what is about Kafka of tracker.py's."""
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("-b", "--bootstrap-servers", dest="flags", type="bootstrap.servers={}".format, metavar="HOST:PORT", **many)
    add("-X", dest="properties", metavar="PROP=VALUE", help="any librdkafka property", **many)
    add("-F", dest="file", default=file, metavar="FILE", help="a file of such properties: the place for passwords")
    parser.set_defaults(count=None, exit=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print what Kafka says of the credentials; return the exit status, SystemExit says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with_connection(parser)
    add, many = parser.add_argument, dict[str, Any](action="append", metavar="ID")
    add("-g", "--group", dest="flags", type="group.id={}".format, help="whose rights are asked (order-tracker)", **many)
    args = parser.parse_args(argv)
    try:
        config = tracker.read_config(args)
        for address in config["bootstrap.servers"].split(","):
            if fault := certificate_fault(address.strip(), config):
                sys.exit(f"{address.strip()} can't be trusted: {fault}")
        if err := refusal(config):
            sys.exit(f"Kafka refused these credentials: {err.str()}. {ADVICE.get(err.code(), SECURITY)}")
        print(f"Kafka takes user {config.get('sasl.username', 'of the certificate')}, who may", flush=True)
        print(*rights(AdminClient(config), config["group.id"]), sep="\n")
    except KafkaException as error:
        if error.args[0].code() == KafkaError._INVALID_ARG:
            parser.error(error.args[0].str())
        sys.exit(f"Kafka did not tell the rights: {error.args[0].str().rstrip('.')}. Check the broker's log")
    except (OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
