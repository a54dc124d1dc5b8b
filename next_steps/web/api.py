"""The API, which /docs describes."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from next_steps.history.life import NEXT, Row
from next_steps.history.show import story
from next_steps.web import models, queries
from next_steps.web.access import Guarded, note, still_there, user_of
from next_steps.web.live import Live, ask
from next_steps.web.metrics import Metrics

STREAMS = 1_000  # open at a time
SESSION = 5.0  # seconds until a stream looks again whether its session goes on

router = APIRouter(route_class=Guarded)
problem: dict[str, Any] = {"model": models.Problem}
Responses = dict[int | str, dict[str, Any]]
READABLE: Responses = {400: problem | {"description": "It can't be read, or its Host header is of another place"}}
UNREADABLE = READABLE | {401: problem | {"description": "It needs a login"}}
UNKNOWN: Responses = {404: problem | {"description": "There is no such order"}}
REFUSED: Responses = UNREADABLE | {
    403: problem | {"description": "It comes from another site, or the user may not do it"},
    413: {"description": "The body is too large"},
    429: problem | {"description": "Too many changes from this address"},
}
UNAVAILABLE: Responses = {
    503: problem | {"description": "Kafka did not confirm it, or the database does not answer: try again"}
}
OrderId = Annotated[str, Path(pattern=models.UUID)]


@router.post(
    "/api/orders",
    status_code=201,
    response_model=models.Placed,
    responses=REFUSED | UNAVAILABLE,
    tags=["orders"],
)
async def place_an_order(
    request: Request,
    order: models.NewOrder,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> Response:
    """Answers once Kafka has confirmed the order. A retry with the same Idempotency-Key gives the same order."""
    begin = time.perf_counter()
    placed = await request.app.state.desk.place(order.user, order.item, order.quantity, idempotency_key)
    metrics: Metrics = request.app.state.metrics
    metrics.confirmed.observe(time.perf_counter() - begin)
    await note(request, "placed", placed["order_id"])
    return JSONResponse(placed, 201)  # it was checked when it came in


def search_of(
    user: Annotated[str | None, Query(max_length=200)] = None,
    item: Annotated[str | None, Query(max_length=200)] = None,
    status: models.Status | None = None,
    order_id: Annotated[str | None, Query(pattern="^[0-9a-fA-F-]{1,36}$", description="or how it begins")] = None,
    since: Annotated[
        models.Moment | None, Query(description="placed then or later; UTC where no zone is given")
    ] = None,
    until: Annotated[models.Moment | None, Query(description="placed before then")] = None,
    sort: Literal["time", "user", "item", "status"] = "time",
    order: Literal["ascending", "descending"] = "descending",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str | None, Query(max_length=1000, description="`next` of the page before")] = None,
    before: Annotated[str | None, Query(max_length=1000, description="`previous` of the page behind")] = None,
) -> queries.Search:
    """Return what the query asks for."""
    try:
        since, until = queries.in_utc(since), queries.in_utc(until)
    except OverflowError:
        raise HTTPException(422, "since and until must be times that UTC has too") from None
    return queries.Search(user, item, status, order_id, since, until, sort, order == "descending", limit, after, before)


@router.get("/api/orders", responses=UNREADABLE | UNAVAILABLE, tags=["orders"])
def list_orders(request: Request, search: Annotated[queries.Search, Depends(search_of)]) -> models.Orders:
    """Returns a page of orders; `next` and `previous` go into `after` and `before` of the pages around it."""
    try:
        page: queries.Page = ask(request.app.state.live, queries.find, search)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    return models.Orders(orders=[order_of(row) for row in page.orders], next=page.next, previous=page.previous)


def order_of(row: Row) -> models.Order:
    """Return a row of the table as the API shows it."""
    return models.Order(user=row["user_name"], **{name: row[name] for name in models.Order.model_fields if name in row})


@router.get("/api/orders/{order_id}", responses=UNREADABLE | UNKNOWN | UNAVAILABLE, tags=["orders"])
def show_an_order(request: Request, order_id: OrderId) -> models.Story:
    """Returns the order, what happened to it, and what may happen next."""
    found = ask(request.app.state.live, whole, order_id)
    if found is None:
        raise HTTPException(404, f"There is no order {order_id}, or the store has not stored it yet")
    row, events = found
    return models.Story(**order_of(row).model_dump(), story=events, possible=list(NEXT[row["status"]]))


def whole(connection: Any, order_id: str) -> tuple[Row, list[Row]] | None:
    """Return the order and its story, None where it isn't there."""
    row = queries.one(connection, order_id)
    return (row, story(connection, row["order_id"])) if row else None


@router.post(
    "/api/orders/{order_id}/status",
    responses=REFUSED | UNAVAILABLE | UNKNOWN | {202: {"model": models.Changed}, 409: problem},
    tags=["orders"],
)
async def change_the_status(
    request: Request, response: Response, order_id: OrderId, change: models.Change
) -> models.Changed:
    """Answers 200 once the change has been applied, 202 where Kafka has it and the store is behind.

    409 where it isn't possible, or somebody was first.
    """
    outcome = await request.app.state.desk.change(order_id, change.status, user_of(request))
    await note(request, change.status, order_id)
    response.status_code = 200 if outcome == "applied" else 202
    return models.Changed(order_id=order_id, status=change.status, outcome=outcome)


async def slot(request: Request) -> AsyncIterator[None]:
    """Count the stream while it is open."""
    live: Live = request.app.state.live
    if live.streams >= STREAMS:
        raise HTTPException(503, "Too many live pages are open", {"Retry-After": "10"})
    live.streams += 1
    try:
        yield
    finally:
        live.streams -= 1


@router.get(
    "/api/events",
    response_class=EventSourceResponse,
    responses=UNREADABLE | UNAVAILABLE,
    dependencies=[Depends(slot)],
    tags=["events"],
)
async def follow_changes(
    request: Request, last_event_id: Annotated[str | None, Header()] = None
) -> AsyncIterator[ServerSentEvent]:
    """Sends an event whenever the orders, or what they need, have changed: then ask for what you show again.

    The id says how far the store is. Whoever comes back with the last id gets an event at once if it has moved since.
    """
    looked = time.monotonic()
    async for version, state in request.app.state.live.events(last_event_id):
        if time.monotonic() - looked > SESSION:
            looked = time.monotonic()
            if not await still_there(request):
                return
        yield ServerSentEvent(id=version, event="change", data=state, retry=1000)


@router.get("/health", responses=UNREADABLE, tags=["operation"])
async def health(request: Request) -> models.Health:
    """Says whether the page serves (live: it answers), and whether all that it needs does (ready)."""
    live: Live = request.app.state.live
    kafka, database = live.broker.up, live.trouble is None
    return models.Health(
        live=True, ready=kafka and database and not live.stopping, kafka=kafka, database=database, lag=live.lag
    )


@router.get("/health/ready", responses=UNREADABLE | {503: {"model": models.Health}}, tags=["operation"])
async def ready(request: Request, response: Response) -> models.Health:
    """Answers 503 where it isn't ready."""
    now = await health(request)
    response.status_code = 200 if now.ready else 503
    return now


@router.get(
    "/metrics",
    response_class=Response,
    responses=UNREADABLE | {200: {"content": {"text/plain": {}}}},
    tags=["operation"],
)
async def metrics(request: Request) -> Response:
    """Returns figures in the text format of Prometheus."""
    text = await run_in_threadpool(generate_latest, request.app.state.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
