"""Give a topic more partitions, so that more trackers can share it.

    python -m next_steps.load_balancing.partitions 6 -t orders

Exit status: 0 the topic has so many now, 1 it doesn't get them, and Kafka's reason is said, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]  # lacks in its __all__

import tracker

LIMIT = 10  # seconds for the answer


def add_partitions(consumer: Consumer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Return 0 when the topic has as many partitions as the command line says; SystemExit says why it hasn't."""
    admin = AdminClient(args.config)
    try:
        wanted = [NewPartitions(args.topic, args.partitions)]
        admin.create_partitions(wanted, request_timeout=LIMIT)[args.topic].result()
    except (KafkaException, ValueError) as error:
        why = error.args[0].str().rstrip(".") if isinstance(error, KafkaException) else error
        advice = "Ask for more than it has, up to 100000, and check your rights"
        sys.exit(f"Topic {args.topic} did not get {args.partitions} partitions: {why}. {advice}")
    tracker.show([f"Topic {args.topic} has {args.partitions} partitions"])
    return 0


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line: that of tracker.py, and how many partitions."""
    parser = tracker.command_line()
    parser.description = __doc__
    parser.set_defaults(flags=["allow.auto.create.topics=false"])  # a name that is mistyped makes no topic
    parser.add_argument("partitions", type=int, help="how many it shall have")
    return parser


if __name__ == "__main__":
    sys.exit(tracker.main(parser=command_line(), run=add_partitions))
