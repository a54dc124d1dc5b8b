"""Send a change of an order's status: accepted, preparing, delivered, or cancelled before that.

    python -m next_steps.history.change 123e4567-e89b-12d3-a456-426614174000 accepted --by ana

Whether it was possible is known once the store has it: see `show --story`.
Exit status: 0 it was confirmed, 1 it was not or was not valid, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from confluent_kafka import Producer

import producer
from next_steps.history.life import CHANGES


def run(client: Producer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Send the change of the flags; return how many Kafka did not confirm."""
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    change = {"order_id": args.order_id, "status": args.status, "at": at, "by": args.by}
    return producer.send(client, args.topic, [change], stop=stop)


def order_id(text: str) -> str:
    """Return the id; ArgumentTypeError where it is none."""
    if not producer.UUID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!a} is no UUID, as the producer prints it")
    return text


def name(text: str) -> str:
    """Return the name; ArgumentTypeError where it is empty."""
    if not text:
        raise argparse.ArgumentTypeError("a name can't be empty")
    return text


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line: of producer.py's, what is about Kafka."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("order_id", type=order_id, metavar="ORDER_ID")
    add("status", choices=CHANGES, metavar="STATUS", help=", ".join(CHANGES))
    add("--by", type=name, required=True, metavar="NAME", help="who changes it")
    add("-b", "--bootstrap-servers", dest="flags", type="bootstrap.servers={}".format, metavar="HOST:PORT", **many)
    add("-t", "--topic", default="order-status", help="(%(default)s)")
    add("-X", dest="properties", metavar="PROP=VALUE", help="any librdkafka property", **many)
    add("-F", dest="file", metavar="FILE", help="a file of such properties: the place for passwords")
    parser.set_defaults(count=1)
    return parser


if __name__ == "__main__":
    sys.exit(producer.main(parser=command_line(), run=run))
