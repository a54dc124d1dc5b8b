"""Show which tracker has which partition of a topic, and how many records each is behind.

    python -m next_steps.load_balancing.lag                  once
    python -m next_steps.load_balancing.lag --watch          every second, until Ctrl-C
    python -m next_steps.load_balancing.lag --max-lag 1000   for monitoring: exit status 1 where it is more

Its Kafka part is read_lag() and read_to_the_end(). It only reads: the group and the topic stay as they are.
Exit status: 0 as far behind as it may be, 1 further, or Kafka can't be used, 2 wrong usage.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple, cast

from confluent_kafka import Consumer, ConsumerGroupState, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # lacks in its __all__

import tracker
from tracker import printable

LIMIT = 10  # seconds for each answer
INTERVAL = 1.0  # seconds from one look to the next
# They win over -X and -F: a look changes nothing, and fetches no more than it needs.
READ_ONLY = [
    "allow.auto.create.topics=false",
    "enable.auto.commit=false",
    "enable.auto.offset.store=false",
    "queued.min.messages=1",
    "fetch.message.max.bytes=10000",
    "fetch.wait.max.ms=10",
]
# Out of reach of this terminal's Ctrl-C, on POSIX and on Windows.
OWN_GROUP: dict[str, Any] = {
    "start_new_session": True,
    "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
}
NO_COORDINATOR = "See that as many brokers run as offsets.topic.replication.factor says, or try again"
# What brokers answer while a group's coordinator or a partition's leader is chosen, or do not know a new topic yet.
MOVING = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
)


class PartitionLag(NamedTuple):
    """A partition, and how far the group has read it; None for no owner, or nothing committed."""

    partition: int
    owner: str | None
    committed: int | None
    end: int
    lag: int


def read_lag(consumer: Consumer, admin: AdminClient, topic: str, group: str) -> list[PartitionLag]:
    """Return the partitions of the topic in their order, as the group has them; KafkaException says why it can't."""
    numbers = sorted(consumer.list_topics(topic, LIMIT).topics[topic].partitions)
    parts = [TopicPartition(topic, number) for number in numbers]
    owners = read_owners(admin, topic, group)
    # The offsets before the ends: in the other order, orders that arrive in between could hide a lag.
    committed = [part.offset for part in consumer.committed(parts, LIMIT)]
    earliest, latest = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
    firsts = list_offsets(admin, parts, earliest)
    stables = list_offsets(admin, parts, latest, IsolationLevel.READ_COMMITTED)
    ends = list_offsets(admin, parts, latest)
    found, doubtful = [], []
    for number, first, at, stable, end in zip(numbers, firsts, committed, stables, ends, strict=True):
        # Where the partition doesn't hold what was committed, a tracker begins with the first record.
        start = at if first <= at <= end else first
        found.append(PartitionLag(number, owners.get(number), at if at >= 0 else None, end, end - start))
        # The end of a transaction has an offset too, as has what was aborted, and no tracker will read these. An open
        # transaction begins at `stable`, and what is behind will be read once it ends.
        if start < end == stable:
            doubtful.append(TopicPartition(topic, number, start))
    done = read_to_the_end(consumer, doubtful)
    return [each._replace(lag=0) if each.partition in done else each for each in found]


def list_offsets(
    admin: AdminClient,
    parts: Sequence[TopicPartition],
    spec: OffsetSpec,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> list[int]:
    """Return the offset of each partition that is asked for."""
    answers = admin.list_offsets(dict.fromkeys(parts, spec), isolation_level=isolation, request_timeout=LIMIT)
    return [answers[part].result().offset for part in parts]


def read_owners(admin: AdminClient, topic: str, group: str) -> dict[int, str]:
    """Return the tracker that has each partition, by name and host; SystemExit where there is no such group."""
    description = admin.describe_consumer_groups([group], request_timeout=LIMIT)[group].result()
    if description.state == ConsumerGroupState.DEAD:
        sys.exit(f"Group {group} doesn't exist, or no longer. Check -g, or start a tracker in it")
    owners = {}
    for member in description.members:
        name = member.member_id  # in the classic protocol it begins with the client.id, in the other it doesn't
        if not name.startswith(f"{member.client_id}-"):
            name = f"{member.client_id}-{name}"
        for part in member.assignment.topic_partitions:
            if part.topic == topic:
                owners[part.partition] = printable(f"{name} {member.host}")
    return owners


def read_to_the_end(consumer: Consumer, places: list[TopicPartition]) -> set[int]:
    """Return the partitions that hold no record at the place or after it; what can't be told holds one."""
    done, deadline = set(), time.monotonic() + LIMIT
    consumer.assign(places)  # without joining the group
    while places and time.monotonic() < deadline:
        for msg in consumer.consume(1, 0.1):
            if (err := msg.error()) and err.code() == KafkaError._PARTITION_EOF:
                done.add(cast(int, msg.partition()))
            consumer.incremental_unassign([place for place in places if place.partition == msg.partition()])
            places = [place for place in places if place.partition != msg.partition()]
    return done


def table(partitions: Sequence[PartitionLag], topic: str) -> Iterator[str]:
    """Yield the lines of a table, the last one with the sum."""
    rows = [["partition", "owner", "committed", "end", "lag"]]
    for each in partitions:
        committed = "-" if each.committed is None else str(each.committed)
        rows.append([f"{topic} [{each.partition}]", each.owner or "-", committed, str(each.end), str(each.lag)])
    rows.append(["all", "", "", "", str(sum(each.lag for each in partitions))])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, who, *numbers in rows:
        yield "  ".join([name.ljust(wide[0]), who.ljust(wide[1]), *map(str.rjust, numbers, wide[2:])])


def look(consumer: Consumer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Print the table, with --watch again and again; return 1 where all partitions together lag by too much."""
    if args.watch:
        return watch(args, stop)
    admin, group = AdminClient(args.config), args.config["group.id"]
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            found = read_lag(consumer, admin, args.topic, group)
            break
        except KafkaException as error:
            if error.args[0].code() not in MOVING or time.monotonic() > deadline:
                advice = NO_COORDINATOR if error.args[0].code() == KafkaError._TIMED_OUT else "Check your rights"
                sys.exit(f"Kafka did not tell the lag of group {group}: {error.args[0].str()}. {advice}")
            time.sleep(0.1)
    tracker.show([*table(found, args.topic)])
    return args.max_lag is not None and sum(each.lag for each in found) > args.max_lag


def watch(args: argparse.Namespace, stop: Sequence[object]) -> int:
    """Print the table every INTERVAL until `stop` holds something; return the exit status of the last look.

    Each look is a process of its own: while the coordinator of the group is away, which is when one looks, AdminClient
    may abort its process (https://github.com/confluentinc/librdkafka/issues/4605).
    """
    command = [sys.executable, "-m", "next_steps.load_balancing.lag", "-t", args.topic, "-F", "-"]
    if args.max_lag is not None:
        command += ["--max-lag", str(args.max_lag)]
    # Through a pipe: a password stays out of `ps`, and -F may name what can be read only once.
    properties = "".join(f'{name}="{value}"\n' for name, value in args.config.items())
    status = 0
    for _ in range(args.count or sys.maxsize):
        due = time.monotonic() + INTERVAL
        tracker.show([time.strftime("%Y-%m-%dT%H:%M:%S%z")])
        with subprocess.Popen(command, stdin=subprocess.PIPE, **OWN_GROUP) as process:  # noqa: S603
            # One that a Ctrl-C still reaches, before it has its own group, has ended without reading them.
            with contextlib.suppress(BrokenPipeError), cast(IO[bytes], process.stdin) as pipe:
                pipe.write(properties.encode())
            while not stop and (process.poll() is None or time.monotonic() < due):
                time.sleep(0.05)
            if process.poll() is None:
                process.kill()  # it only reads
            elif process.returncode != -signal.SIGINT:
                status = int(process.returncode != 0)
        if stop:
            break
    return status


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line: that of tracker.py, but for what is said of a look."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[tracker.command_line()],
        add_help=False,
        conflict_handler="resolve",
    )
    parser.set_defaults(flags=READ_ONLY)
    add = parser.add_argument
    add(
        "-F",
        dest="file",
        metavar="FILE",
        type=lambda name: 0 if name == "-" else name,
        help="a file of such properties, - is standard input: the place for passwords",
    )
    add("-c", "--count", type=int, metavar="N", help="with --watch: stop after N looks")
    add("-e", "--exit", action="store_true", default=True, help=argparse.SUPPRESS)  # it always ends
    add("--max-lag", type=int, metavar="N", help="exit with 1 where all partitions together lag by more")
    add("--watch", action="store_true", help="look every second, until Ctrl-C")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the command line asks for; return the exit status, SystemExit says what is wrong."""
    return tracker.main(argv, command_line(), look)


if __name__ == "__main__":
    sys.exit(main())
