"""Who may do what. Everything that isn't here is forbidden, but for `admin`, who may do all."""

from typing import NamedTuple


class Right(NamedTuple):
    """What a user may do to a topic or a group; to all whose names begin so, where the name ends with *."""

    user: str
    operation: str
    kind: str
    name: str


# READ and WRITE hold DESCRIBE, by which a topic is found.
RIGHTS = [
    Right("producer", "WRITE", "TOPIC", "orders"),
    Right("tracker", "READ", "TOPIC", "orders"),
    Right("tracker", "READ", "GROUP", "order-tracker"),
    Right("retries", "READ", "TOPIC", "orders"),
    Right("retries", "WRITE", "TOPIC", "orders"),
    Right("retries", "READ", "TOPIC", "orders.DLQ"),
    Right("retries", "WRITE", "TOPIC", "orders.DLQ"),
    Right("retries", "READ", "GROUP", "order-tracker"),
    Right("retries", "READ", "GROUP", "dead-letters-*"),
    Right("history", "READ", "TOPIC", "orders"),
    Right("history", "READ", "TOPIC", "order-status"),
    Right("history", "WRITE", "TOPIC", "orders.DLQ"),
    Right("history", "READ", "GROUP", "order-history"),
    Right("web", "READ", "TOPIC", "orders"),
    Right("web", "WRITE", "TOPIC", "orders"),
    Right("web", "READ", "TOPIC", "order-status"),
    Right("web", "WRITE", "TOPIC", "order-status"),
    Right("web", "READ", "TOPIC", "orders.DLQ"),
    Right("web", "WRITE", "TOPIC", "orders.DLQ"),
    Right("web", "READ", "GROUP", "order-history"),
    Right("web", "READ", "GROUP", "dead-letters-*"),
]
USERS = [*dict.fromkeys(right.user for right in RIGHTS), "admin"]
TOPICS = sorted({right.name for right in RIGHTS if right.kind == "TOPIC"})
