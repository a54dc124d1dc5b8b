"""How a page is made: from what its address asks for, by a template, and kept while nothing has changed."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from next_steps.history.life import NEXT
from next_steps.history.show import written
from next_steps.web import queries

KEY = "KEY-OF-THE-FORM"  # in a page that was kept: each reader gets a key of his own
ACTIONS = {"accepted": "Accept", "preparing": "Prepare", "delivered": "Deliver", "cancelled": "Cancel"}
FILTERS = ("user", "item", "status", "order_id", "since", "until")
FIELDS = {"user": "User", "item": "Item", "quantity": "Quantity"}

templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.globals.update(statuses=list(NEXT), actions=ACTIONS, fields=FIELDS, many=queries.MANY)
templates.filters["utc"] = written


class Kept:
    """The list as it was made for a state of all pages: whoever asks for it in the same state gets it as it is."""

    def __init__(self) -> None:
        self._serial, self._pages = -1, dict[str, str]()

    def get(self, serial: int, query: str) -> str | None:
        """Return the page of a query, None where the state is another one."""
        return self._pages.get(query) if serial == self._serial else None

    def put(self, serial: int, query: str, page: str) -> None:
        """Keep a page, of the newest state only."""
        if serial != self._serial:
            self._serial, self._pages = serial, {}
        if len(self._pages) < 100:
            self._pages[query] = page


def render(request: Request, name: str, status: int = 200, **context: Any) -> Response:
    """Return a page."""
    user = getattr(request.state, "user", None)
    return answer(templates.get_template(name).render(live=request.app.state.live, user=user, **context), status)


def answer(page: str, status: int = 200) -> Response:
    """Return the page for one reader, whose form gets a key of its own."""
    return HTMLResponse(page.replace(KEY, uuid.uuid4().hex), status)


def search_from(query: Mapping[str, str]) -> tuple[queries.Search, dict[str, str]]:
    """Return what the address of a page asks for, and what is wrong with its fields; these are passed over."""
    given = {name: value.strip() for name, value in query.items() if value.strip()}
    wrong: dict[str, str] = {}
    times: dict[str, datetime | None] = {}
    for name in ("since", "until"):
        try:
            text = given.get(name, "").replace("Z", "+00:00")
            times[name] = queries.in_utc(datetime.fromisoformat(text)) if text else None
        except (ValueError, OverflowError):
            wrong[name] = "must be a time such as 2026-11-28T18:30"
    if (status := given.get("status")) not in (None, *NEXT):
        wrong["status"], status = f"must be one of {', '.join(NEXT)}", None
    sort = given.get("sort", "-time")
    if sort.removeprefix("-") not in queries.SORTS:
        sort = "-time"
    keys = {name: given.get(name) for name in ("after", "before", "top")}
    for name, value in keys.items():
        try:
            if value:
                queries.key(value, sort.removeprefix("-"))
        except ValueError:
            keys[name] = None
    search = queries.Search(
        given.get("user"),
        given.get("item"),
        status,
        given.get("order_id"),
        times.get("since"),
        times.get("until"),
        sort.removeprefix("-"),
        sort.startswith("-"),
        **keys,  # type: ignore[arg-type]
    )
    return search, wrong
