"""Show which tracker has which partition of a topic, and how many orders each is behind.

    python -m next_steps.load_balancing.lag                  once
    python -m next_steps.load_balancing.lag --watch          every second, until Ctrl-C
    python -m next_steps.load_balancing.lag --max-lag 1000   for monitoring: exit status 1 where it is more

Exit status: 0 as far behind as it may be, 1 further, or Kafka can't be used, 2 wrong usage.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # lacks in its __all__

import tracker
from tracker import printable, warn

LIMIT = 10  # seconds for each answer
INTERVAL = 1.0  # seconds from one look to the next
# What brokers answer while a group's coordinator or a partition's leader is chosen, as at the first start of a cluster.
MOVING = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
)


class Share(NamedTuple):
    """A partition, and how far the group has read it; None for no owner, or nothing committed."""

    partition: int
    owner: str | None
    committed: int | None
    end: int
    lag: int


def connected(config: dict[str, Any], topic: str) -> AdminClient:
    """Return a client that has found the topic; RuntimeError where Kafka can't be used, ConfigError for the config."""
    # As in tracker.py: that no broker is reachable is nothing new before connect() found one.
    errors = {KafkaError._ALL_BROKERS_DOWN: KafkaError(KafkaError._ALL_BROKERS_DOWN)}
    options = {"allow.auto.create.topics": False, "error_cb": partial(tracker.error_report, errors)}
    try:
        admin = AdminClient(config | options)
    except (KafkaException, TypeError, ValueError) as error:
        raise tracker.ConfigError(error.args[0].str() if isinstance(error, KafkaException) else error) from None
    tracker.connect(cast(Any, admin), config["bootstrap.servers"], topic, errors, ())
    return admin


def shares(admin: AdminClient, topic: str, group: str) -> list[Share]:
    """Return the partitions of the topic in their order, as the group has them; KafkaException says why it can't."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return look(admin, topic, group)
        except KafkaException as error:
            if error.args[0].code() not in MOVING or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def look(admin: AdminClient, topic: str, group: str) -> list[Share]:
    """Return shares() of this moment.

    Where nothing is committed, the lag is what a tracker would read: the whole partition.
    """
    numbers = sorted(admin.list_topics(topic, LIMIT).topics[topic].partitions)
    parts = [TopicPartition(topic, number) for number in numbers]
    description = admin.describe_consumer_groups([group], request_timeout=LIMIT)[group].result()
    asked = [ConsumerGroupTopicPartitions(group, parts)]
    # The offsets before the ends: in the other order, orders that arrive in between could hide a lag.
    offsets = admin.list_consumer_group_offsets(asked, request_timeout=LIMIT)[group].result()

    def list_offsets(spec: OffsetSpec) -> list[int]:
        options = {"isolation_level": IsolationLevel.READ_COMMITTED, "request_timeout": LIMIT}
        answers = admin.list_offsets(dict.fromkeys(parts, spec), **options)
        return [answers[part].result().offset for part in parts]

    firsts, ends = list_offsets(OffsetSpec.earliest()), list_offsets(OffsetSpec.latest())  # type: ignore[no-untyped-call]
    owners = {
        (part.topic, part.partition): owner(member.client_id, member.member_id, member.host)
        for member in description.members
        for part in member.assignment.topic_partitions
    }
    committed = {part.partition: part.offset for part in offsets.topic_partitions if part.offset >= 0}
    return [
        Share(n, owners.get((topic, n)), committed.get(n), end, max(0, end - max(first, committed.get(n, first))))
        for n, first, end in zip(numbers, firsts, ends, strict=True)
    ]


def owner(client_id: str, member_id: str, host: str) -> str:
    """Return a member's name with its host; the classic protocol's member ids begin with the client.id."""
    name = member_id if member_id.startswith(f"{client_id}-") else f"{client_id}-{member_id}"
    return printable(f"{name} {host}")


def table(shares: Sequence[Share], topic: str) -> Iterator[str]:
    """Yield the lines of a table, the last one with the sum."""
    rows = [["partition", "owner", "committed", "end", "lag"]]
    for share in shares:
        committed = "-" if share.committed is None else str(share.committed)
        rows.append([f"{topic} [{share.partition}]", share.owner or "-", committed, str(share.end), str(share.lag)])
    rows.append(["all", "", "", "", str(sum(share.lag for share in shares))])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, who, *numbers in rows:
        yield "  ".join([name.ljust(wide[0]), who.ljust(wide[1]), *map(str.rjust, numbers, wide[2:])])


def watch(arguments: Sequence[str]) -> int:
    """Show the table every INTERVAL until a signal; return the exit status of the last look.

    Each look is a process of its own: while the coordinator of the group is away, which is when one looks, AdminClient
    may abort its process (https://github.com/confluentinc/librdkafka/issues/4605).
    """
    command = [sys.executable, "-m", "next_steps.load_balancing.lag", *arguments]
    status = 0
    for number in tracker.SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    try:
        while status != 2:
            due = time.monotonic() + INTERVAL
            print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), flush=True)
            status = subprocess.run(command, start_new_session=True).returncode  # noqa: S603
            time.sleep(max(0, due - time.monotonic()))
    except KeyboardInterrupt:
        pass
    return status if status >= 0 else 1


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add_property = partial(add, dest="properties", action="append", default=[])
    servers = partial(add_property, type="bootstrap.servers={}".format, metavar="HOST:PORT")
    servers("-b", "--bootstrap-servers", help="brokers to begin with (as for tracker.py)")
    add("-t", "--topic", default="orders", help="(orders)")
    add_property("-g", "--group", type="group.id={}".format, metavar="GROUP", help="(order-tracker)")
    add_property("-X", metavar="PROP=VALUE", help="any librdkafka property")
    add("-F", dest="file", metavar="FILE", help="a file of such properties: the place for passwords")
    add("--max-lag", type=int, metavar="N", help="exit with 1 where all partitions together lag by more")
    add("--watch", action="store_true", help="look every second, until Ctrl-C")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print what the command line asks for; return the exit status, SystemExit with 2 for wrong usage."""
    parser = command_line()
    args = parser.parse_args(argv)
    try:
        file = open(args.file, encoding="utf-8") if args.file is not None else ()
        config = tracker.CONFIG | tracker.properties(file) | tracker.properties(args.properties)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    group = config["group.id"]
    try:
        if args.watch:
            return watch([argument for argument in argv if argument != "--watch"])
        found = shares(connected(config, args.topic), args.topic, group)
        print(*table(found, args.topic), sep="\n", flush=True)
        return 1 if args.max_lag is not None and sum(share.lag for share in found) > args.max_lag else 0
    except tracker.ConfigError as error:
        parser.error(f"{error} (-X or -F)")
    except RuntimeError as error:
        warn(str(error))
    except KafkaException as error:
        warn(f"Kafka did not tell the lag of {group}: {error.args[0].str()}. Check your rights, or try again")
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush would fail too
        warn(f"Standard output could not be written: {error}")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
