"""Let brokers show a certificate that was renewed, without a restart."""

import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # lacks in its __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

LIMIT = 10  # seconds for each answer
TIMES = 10  # in turn it has to be shown: each of a broker's network threads, 3 by default, learns it by itself
NAMES = [f"listener.name.{listener}.ssl.keystore.location" for listener in ("host", "network", "controller")]


def take_up(admin: AdminClient, file: Path, address: str) -> Iterator[str]:
    """Let all brokers read their key store anew where the one at HOST:PORT shows another certificate than the file.

    Yield what was done; KafkaException says what Kafka refused, SystemExit that it changed nothing.
    """
    if not file.exists() or shown(address) in file.read_text("utf-8"):
        return
    for broker in admin.list_topics(timeout=LIMIT).brokers:
        asked = ConfigResource(ResourceType.BROKER, str(broker))
        settings = admin.describe_configs([asked], request_timeout=LIMIT)[asked].result()
        # Named as a listener's own, though it is the same file as before, it is read; then the name is taken back.
        for operation in (AlterConfigOpType.SET, AlterConfigOpType.DELETE):
            place = settings["ssl.keystore.location"].value
            entries = [ConfigEntry(name, place, incremental_operation=operation) for name in NAMES]
            change = ConfigResource(ResourceType.BROKER, str(broker), incremental_configs=entries)
            admin.incremental_alter_configs([change], request_timeout=LIMIT)[change].result()
    deadline = time.monotonic() + LIMIT
    while not all(shown(address) in file.read_text("utf-8") for _ in range(TIMES)):
        if time.monotonic() > deadline:
            sys.exit(f"The broker at {address} does not show the certificate in {file}. See that the folder is mounted")
        time.sleep(0.1)
    yield f"The broker shows the certificate in {file.name}"


def shown(address: str) -> str:
    """Return the certificate that is shown to clients at HOST:PORT, in PEM; OSError says why none is."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=LIMIT).strip()
