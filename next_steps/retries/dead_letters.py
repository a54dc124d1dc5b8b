"""List the dead letters that have not gone back, or send them back to where they came from.

    python -m next_steps.retries.dead_letters                   lists them
    python -m next_steps.retries.dead_letters --replay          sends all of them back
    python -m next_steps.retries.dead_letters --replay 0@3 0@7  sends those of partition 0, offsets 3 and 7, back

A letter that went back stays in the topic, and a note after it says so. A replay that is killed may send a letter
twice. Exit status: 0 done, 1 stopped before the end, a record was no letter, or Kafka can't be used, 2 wrong usage.
"""

import argparse
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from confluent_kafka import Message

import tracker
from next_steps.retries.tracker import HEADERS, confirmed, dead_letter_producer, headers, named, place
from tracker import printable, warn

NOTE = "orders.replayed"  # the only header of a note: the offset of the letter, which is in the note's partition
REPLAYS = "orders.replays"  # header of an order that went back: how often it did
EXCERPT = 100  # characters of a value

Place = tuple[int, int]  # partition and offset of a letter


def facts(letter: Message) -> dict[str, str]:
    """Return what the last headers of a dead letter say; ValueError where they are others."""
    last = headers(letter)[-len(HEADERS) :]
    if tuple(name for name, _ in last) != HEADERS:
        raise ValueError(f"{named(letter)} lacks the headers of a dead letter")
    return {name.rpartition(".")[2]: (value or b"").decode(errors="replace") for name, value in last}


def line(letter: Message) -> str:
    """Return the letter in one line that can't drive a terminal."""
    why = facts(letter)
    when = datetime.fromtimestamp(letter.timestamp()[1] / 1000, timezone.utc).isoformat(timespec="seconds")
    value = letter.value()
    text = "no value" if value is None else value[: 4 * EXCERPT + 1].decode(errors="replace")
    excerpt = text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
    error = ": ".join(text for text in (why["exception"], why["message"]) if text)
    origin = f"{why['topic']} [{why['partition']}] @ {why['offset']}, {why['group']}, attempt {why['attempts']}"
    return printable(f"{named(letter)} {when} from {origin}: {error}: {excerpt}")


def read(config: dict[str, Any], topic: str, stop: Sequence[int]) -> tuple[dict[Place, Message], int]:
    """Return the dead letters of the topic that have not gone back, and how many records are neither letter nor note.

    They may lack some where `stop` holds something. RuntimeError where Kafka can't be used.
    """
    letters: dict[Place, Message] = {}

    def collect(_: object, msg: Message, *__: object) -> bool:
        _, partition, offset = place(msg)
        match headers(msg):
            case [(name, bytes(value))] if name == NOTE and value.isdigit():
                letters.pop((partition, int(value)), None)
                return True
        try:
            facts(msg)
        except ValueError as why:
            warn(f"Skipped {why}")
            return False
        letters[partition, offset] = msg
        return True

    alone = {"group.id": f"dead-letters-{uuid.uuid4()}", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    with contextlib.redirect_stdout(sys.stderr):  # for the line that says it is subscribed
        skipped = tracker.follow(config | alone, topic, until_end=True, stop=stop, receive=collect)
    return letters, skipped


def replay(letters: dict[Place, Message], config: dict[str, Any], topic: str, stop: Sequence[int]) -> None:
    """Send the letters back until `stop` holds something, each confirmed before the next; print the places.

    RuntimeError where one was not confirmed.
    """
    sender = dead_letter_producer(config, topic)
    for (partition, offset), letter in letters.items():
        if stop:
            break
        why = facts(letter)
        own = headers(letter)[: -len(HEADERS)]
        before = dict(own).get(REPLAYS) or b""
        count = int(before) + 1 if before.isdigit() else 1
        own = [header for header in own if header[0] != REPLAYS] + [(REPLAYS, str(count).encode())]
        back = {"value": letter.value(), "key": letter.key(), "partition": int(why["partition"]), "headers": own}
        order = confirmed(sender, why["topic"], **back)
        confirmed(sender, topic, key=letter.key(), partition=partition, headers=[(NOTE, str(offset).encode())])
        print(f"{named(letter)} went back as {named(order)}", flush=True)


def chosen(text: str) -> Place:
    """Return the place that is written so; ValueError where the text is something else."""
    partition, _, offset = text.partition("@")
    return int(partition), int(offset)


def main(argv: Sequence[str] | None = None) -> int:
    """List or replay what the command line asks for; return the exit status, SystemExit with 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-b", "--bootstrap-servers", metavar="HOST:PORT", help="brokers to begin with (as for tracker.py)")
    add("-t", "--topic", default="orders.DLQ", help="the topic of dead letters (orders.DLQ)")
    add("-X", dest="properties", action="append", default=[], metavar="PROP=VALUE", help="any librdkafka property")
    add("-F", dest="file", metavar="FILE", help="a file of such properties: the place for passwords")
    add("--replay", type=chosen, nargs="*", metavar="PARTITION@OFFSET", help="send these back, or all")
    args = parser.parse_args(argv)
    try:
        file = open(args.file, encoding="utf-8") if args.file is not None else ()
        config = tracker.CONFIG | tracker.properties(file) | tracker.properties(args.properties)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.bootstrap_servers:
        config["bootstrap.servers"] = args.bootstrap_servers
    stop: list[int] = []
    for number in tracker.SIGNALS:
        signal.signal(number, lambda number, _: stop.append(number))
    try:
        letters, skipped = read(config, args.topic, stop)
        if stop:
            return 1  # what else was read could be a note that a letter went back
        if args.replay is None:
            for letter in letters.values():
                print(line(letter))
        else:
            for partition, offset in args.replay:
                if (partition, offset) not in letters:
                    raise RuntimeError(f"{args.topic} [{partition}] @ {offset} was no letter that waits. List them")
            replay({at: letters[at] for at in args.replay or letters}, config, args.topic, stop)
        sys.stdout.flush()
        return 1 if skipped or stop else 0
    except tracker.ConfigError as error:
        parser.error(f"{error} (-X or -F)")
    except RuntimeError as error:
        warn(str(error))
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush would fail too
        warn(f"Standard output could not be written: {error}. What went back before that stays so")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
