"""What goes in and out of the API, and through the forms of the page."""

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

LARGEST = 2**31 - 1  # that the column takes
UUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"


def readable(text: str) -> str:
    """Return the text without space around it; ValueError where nothing is left, or it has what no one can read."""
    if not (text := text.strip()):
        raise ValueError("must not be empty")
    if not text.isprintable():
        raise ValueError("must hold only printable characters")
    return text


def written(text: object) -> object:
    """Return the text; ValueError where it is a number, which would be taken for seconds."""
    if not re.match(r"\d{4}-", str(text)):
        raise ValueError("must be a time such as 2026-11-28T18:30:00Z")
    return text


Moment = Annotated[datetime, BeforeValidator(written)]
Name = Annotated[str, Field(max_length=100), AfterValidator(readable)]
Status = Literal["placed", "accepted", "preparing", "delivered", "cancelled"]
NewStatus = Literal["accepted", "preparing", "delivered", "cancelled"]


class NewOrder(BaseModel):
    """An order as it is placed."""

    model_config = ConfigDict(extra="forbid")
    user: Name = Field(examples=["john"])
    item: Name = Field(examples=["burger"])
    quantity: Annotated[int, Field(strict=True, ge=1, le=LARGEST, examples=[5])]


class Placed(BaseModel):
    """An order as Kafka has confirmed it."""

    order_id: str
    user: str
    item: str
    quantity: int


class Order(Placed):
    """An order as the history has it."""

    status: Status
    placed_at: datetime
    changed_at: datetime


class Event(BaseModel):
    """What happened to an order, or was refused."""

    at: datetime
    status: Status
    by: str
    outcome: Literal["applied", "refused", "waiting"]
    note: str


class Story(Order):
    """An order, what happened to it, and what may."""

    story: list[Event]
    possible: list[str]


class Orders(BaseModel):
    """A page of the list, and the cursors of the pages around it."""

    orders: list[Order]
    next: str | None
    previous: str | None


class Change(BaseModel):
    """A change of an order's status."""

    model_config = ConfigDict(extra="forbid")
    status: NewStatus


class Changed(BaseModel):
    """What became of a change: `waiting` where Kafka has it and the store is behind."""

    order_id: str
    status: NewStatus
    outcome: Literal["applied", "waiting"]


class Problem(BaseModel):
    """What was wrong, and what to do about it."""

    detail: str


class Health(BaseModel):
    """Whether the page serves (live), and whether all that it needs does (ready)."""

    live: bool
    ready: bool
    kafka: bool
    database: bool
    lag: dict[str, int] = Field(description="records of each partition that the store has not stored yet")
