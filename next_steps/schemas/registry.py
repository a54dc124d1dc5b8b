"""The schema registry of both commands: where it is, and what is said when it can't serve.

What it needs beyond its address comes from the file of -F, as the consoles of clouds hand it out: schema.registry.url,
basic.auth.user.info, and with `schema.registry.` before them the properties of confluent-kafka's SchemaRegistryClient.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from tracker import printable

INSTALL = "pip install -r next_steps/schemas/requirements.txt"
try:
    from confluent_kafka.schema_registry import SchemaRegistryClient as SchemaRegistryClient
    from confluent_kafka.schema_registry import SchemaRegistryError as SchemaRegistryError
except ImportError as missing:
    raise SystemExit(f"{missing}. Install what this step needs: {INSTALL}") from None

URL = os.environ.get("SCHEMA_REGISTRY_URL") or "http://localhost:8081/apis/ccompat/v7"
TIMEOUT = 2  # seconds for an answer while other partitions have to be read; the client itself would wait for ever
LIMIT = 6  # seconds in which the first one has to come
SOURCE = "basic.auth.credentials.source"


def add_url(parser: argparse.ArgumentParser) -> None:
    """Give the parser the flag -r."""
    parser.add_argument(
        "-r", "--registry", dest="url", type=address, metavar="URL", help=f"the schema registry ({URL})"
    )


def address(text: str) -> str:
    """Return the URL, or several with commas; ArgumentTypeError where one is none, or shows a password."""
    if "@" in text:
        raise argparse.ArgumentTypeError("a URL shows its password: put basic.auth.user.info into a file, see -F")
    for url in map(urlsplit, text.split(",")):
        if url.scheme not in ("http", "https") or not url.hostname:
            raise argparse.ArgumentTypeError(f"{text!a} is no URL such as {URL}")
    return text


def connect(args: argparse.Namespace, timeout: float = TIMEOUT) -> SchemaRegistryClient:
    """Return a client of the registry, which is not asked yet; SystemExit says which property is wrong."""
    given: dict[str, Any] = {name.removeprefix("schema.registry."): value for name, value in args.registry.items()}
    try:
        if given.pop(SOURCE, "USER_INFO") != "USER_INFO":
            raise ValueError(f"{SOURCE} can only be USER_INFO")
        args.url = args.url or address(given.get("url", URL))
        return SchemaRegistryClient(given | {"url": args.url, "timeout": timeout, "max.retries": 0})
    except (ValueError, TypeError, OSError, argparse.ArgumentTypeError) as error:
        sys.exit(f"The schema registry's address or its properties can't be used: {error}")


def ask(question: Callable[[], Any], otherwise: str, stop: Sequence[object]) -> Any:
    """Return what the registry answers, None at `stop`; SystemExit where it refuses, or has none within LIMIT."""
    deadline = time.monotonic() + LIMIT
    while not stop:
        try:
            return question()
        except ImportError as missing:
            sys.exit(f"{missing}. Install what this step needs: {INSTALL}")
        except Exception as error:  # the registry, the network, TLS and a proxy's page have one each
            status = getattr(error, "http_status_code", 0)
            refused = 400 <= status < 500 and status not in (408, 429)  # these two mean that it is busy
            if refused or time.monotonic() > deadline:
                sys.exit(f"{otherwise}: {reason(error)}. {advice(error)}")
        time.sleep(0.2)  # it may just start, and is slow at first
    return None


def reason(error: Exception) -> str:
    """Return what went wrong, in a line, which a web page would not be."""
    text = str(error)
    if isinstance(error, SchemaRegistryError):
        text = f"HTTP status {error.http_status_code}, {error.error_message}"
    return printable(" ".join(text.split())[:300].rstrip(".") or type(error).__name__)


def advice(error: Exception) -> str:
    """Return what to do about it."""
    if "refused" in str(error):
        return "Start one as next_steps/schemas/README.md says; it may be starting"
    advices = {
        401: "Check basic.auth.user.info in the file of -F",
        403: "Check the rights of basic.auth.user.info in the file of -F",
        404: "Check -r: the address of Apicurio ends in /apis/ccompat/v7",
        409: "Keep the fields as they are, and give a new one a default or make it optional",
        422: "Keep the fields as they are, and give a new one a default or make it optional",
    }
    return advices.get(getattr(error, "http_status_code", 0), "See that it is healthy, and check -r and -F")
