"""List the dead letters that have not gone back, or send them back to where they came from.

    python -m next_steps.retries.dead_letters                   lists them
    python -m next_steps.retries.dead_letters --replay          sends all of them back
    python -m next_steps.retries.dead_letters --replay 0@3 0@7  sends those of partition 0, offsets 3 and 7, back

The other flags are those of tracker.py, but -t is orders.DLQ, and -c N takes the first N letters. A letter that went
back stays in the topic, and a note after it says so. A replay that is killed may send a letter twice.
Exit status: 0 done, 1 stopped before the end, a record was no letter, or Kafka can't be used, 2 wrong usage.
"""

import argparse
import itertools
import sys
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from confluent_kafka import Consumer, Message

import tracker
from next_steps.retries.dlq import HEADERS, LIMIT, headers, make_dlq_producer, named, send_and_wait

REPLAYED_HEADER = "orders.replayed"  # the only header of a note: the letter's offset in the note's partition
REPLAYS_HEADER = "orders.replays"  # header of an order that went back: how often it did
EXCERPT = 100  # characters of a value

Place = tuple[int, int]  # partition and offset of a letter


def facts(letter: Message) -> dict[str, str]:
    """Return what the last headers of a dead letter say; ValueError where they are others."""
    last = headers(letter)[-len(HEADERS) :]
    why = {name.rpartition(".")[2]: (value or b"").decode(errors="replace") for name, value in last}
    if tuple(name for name, _ in last) != HEADERS or not why["partition"].isdecimal():
        raise ValueError(f"{named(letter)} lacks the headers of a dead letter")
    return why


def line_for(letter: Message) -> str:
    """Return the letter in one line that can't drive a terminal."""
    why = facts(letter)
    when = datetime.fromtimestamp(letter.timestamp()[1] / 1000, timezone.utc).isoformat(timespec="seconds")
    origin = f"{why['topic']} [{why['partition']}] @ {why['offset']}, {why['group']}, attempt {why['attempts']}"
    return tracker.printable(f"{named(letter)} {when} from {origin}: {error(why)}: {excerpt(letter)}")


def error(why: dict[str, str]) -> str:
    """Return what the facts of a letter say of its error."""
    return ": ".join(text for text in (why["exception"], why["message"]) if text)


def excerpt(letter: Message) -> str:
    """Return how the letter's value begins."""
    value = letter.value()
    text = "no value" if value is None else value[: 4 * EXCERPT + 1].decode(errors="replace")
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"


def waiting(consumer: Consumer, args: argparse.Namespace, stop: Sequence[object]) -> tuple[dict[Place, Message], int]:
    """Return the letters that have not gone back, and how many records were neither a letter nor a note."""
    letters: dict[Place, Message] = {}
    skipped = 0
    for records in tracker.follow(consumer, [args.topic], until_end=True, stop=stop):
        for msg in records:
            match headers(msg):
                case [(name, bytes(value))] if name == REPLAYED_HEADER and value.isdigit():
                    letters.pop((msg.partition() or 0, int(value)), None)
                    continue
            try:
                facts(msg)
                letters[msg.partition() or 0, msg.offset() or 0] = msg
            except ValueError as why:
                skipped += 1
                print(f"Skipped {why}", file=sys.stderr)
    return letters, skipped


def run(consumer: Consumer, args: argparse.Namespace, stop: Sequence[object]) -> int:
    """List the letters or send them back; return 0 where all was done and each record was a letter or a note."""
    letters, skipped = waiting(consumer, args, stop)
    if stop:
        return 1  # what else was read could be a note that a letter went back
    if not letters:
        print(f"No dead letter waits in {args.topic}", file=sys.stderr)
    for place in args.replay or ():
        if place not in letters:
            sys.exit(f"{args.topic} [{place[0]}] @ {place[1]} was no letter that waits. List them")
    chosen = itertools.islice((letters[place] for place in args.replay or letters), args.count)
    if args.replay is None:
        tracker.show([line_for(letter) for letter in chosen])
    else:
        replay(consumer, [*chosen], args, stop)
    return skipped + len(stop)


def replay(consumer: Consumer, letters: Sequence[Message], args: argparse.Namespace, stop: Sequence[object]) -> None:
    """Send the letters back until `stop`, each confirmed before the next; SystemExit where one can't go back."""
    partitions = partitions_of({facts(letter)["topic"] for letter in letters}, consumer)
    dlq_producer = make_dlq_producer(args, args.topic, stop)
    for letter in letters:
        if stop:
            break
        why, own = facts(letter), headers(letter)[: -len(HEADERS)]
        before = dict(own).get(REPLAYS_HEADER) or b""
        count = int(before) + 1 if before.isdigit() else 1
        own = [header for header in own if header[0] != REPLAYS_HEADER] + [(REPLAYS_HEADER, str(count).encode())]
        back = {"value": letter.value(), "key": letter.key(), "headers": own}
        where = int(why["partition"])
        gone = where not in partitions[why["topic"]]
        order = send_and_wait(dlq_producer, why["topic"], **back if gone else {**back, "partition": where})
        note = [(REPLAYED_HEADER, str(letter.offset()).encode())]
        send_and_wait(dlq_producer, args.topic, key=letter.key(), partition=letter.partition(), headers=note)
        hint = f" by its key: there is no {why['topic']} [{where}] any more" if gone else ""
        tracker.show([f"{named(letter)} went back as {named(order)}{hint}"])


def partitions_of(topics: Iterable[str], consumer: Consumer) -> dict[str, set[int]]:
    """Return the partitions of each topic; SystemExit where one can't be used."""
    found: dict[str, set[int]] = {}
    for topic in topics:
        metadata = consumer.list_topics(topic, LIMIT).topics[topic]  # which creates none
        if metadata.error:
            sys.exit(f"Topic {topic} can't take its letters back: {metadata.error.str()}. Create it, or choose others")
        found[topic] = set(metadata.partitions)
    return found


def parse_place(text: str) -> Place:
    """Return the place that is written so; ValueError where the text is something else."""
    partition, _, offset = text.partition("@")
    return int(partition), int(offset)


def main(argv: Sequence[str] | None = None) -> int:
    """List or replay what the command line asks for; return the exit status, SystemExit says what is wrong."""
    parser = tracker.command_line()
    parser.description = __doc__
    parser.add_argument("--replay", type=parse_place, nargs="*", metavar="PARTITION@OFFSET", help="send back, or all")
    own_group = f"group.id=dead-letters-{uuid.uuid4()}"
    only_reads = ["enable.auto.commit=false", "allow.auto.create.topics=false", "auto.offset.reset=earliest"]
    parser.set_defaults(topic="orders.DLQ", flags=[own_group], properties=only_reads, exit=True)
    return tracker.main(argv, parser, run)


if __name__ == "__main__":
    sys.exit(main())
