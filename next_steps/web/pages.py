"""The pages. Each works as it comes from here; static/page.js makes it live by asking for it again."""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.params import Form
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, RedirectResponse, Response

from next_steps.history.life import CHANGES, NEXT
from next_steps.web import models, queries
from next_steps.web.access import Guarded, note, user_of
from next_steps.web.accounts import User
from next_steps.web.api import whole
from next_steps.web.desk import RefusedError
from next_steps.web.kafka import NotConfirmedError
from next_steps.web.live import DatabaseAwayError, Live, ask
from next_steps.web.rendering import FILTERS, KEY, Kept, answer, render, search_from, templates

router = APIRouter(route_class=Guarded, include_in_schema=False)
Text = Annotated[str, Form()]


@router.get("/")
async def index(request: Request) -> Response:
    """Show the list, with the form for an order."""
    live: Live = request.app.state.live
    kept: Kept = request.app.state.kept
    user: User = request.state.user
    serial, query = live.serial, f"{user.name} {user.role} {request.url.query}"
    if page := kept.get(serial, query):
        return answer(page)
    page = await run_in_threadpool(listed, request, {}, {})
    if live.trouble:
        return answer(page, 503)
    kept.put(serial, query, page)
    return answer(page)


def listed(request: Request, form: Mapping[str, str], errors: Mapping[str, str], **context: Any) -> str:
    """Return the page with the list; the fields of its form keep what was typed, with what is wrong beside them."""
    live: Live = request.app.state.live
    query = dict(request.query_params)
    search, wrong = search_from(query)
    version = live.version
    try:
        page = ask(live, queries.find, search)
    except DatabaseAwayError:
        page = None

    def link(**changes: str | None) -> str:
        """Return the address of the list as it is asked for, with changes."""
        keep = {name: query.get(name) for name in (*FILTERS, "sort")}
        given = {name: value for name, value in {**keep, **changes}.items() if value}
        return "/?" + urlencode(given) if given else "/"

    return templates.get_template("orders.html").render(
        live=live,
        user=request.state.user,
        page=page,
        search=search,
        query=query,
        wrong=wrong,
        searched=any(query.get(name) for name in FILTERS),
        link=link,
        version=version,
        form=form,
        errors=errors,
        **{"problem": None, "placed": query.get("placed"), "key": KEY, **context},
    )


@router.post("/orders")
async def place(request: Request, user: Text = "", item: Text = "", quantity: Text = "", key: Text = "") -> Response:
    """Place the order of the form."""
    form: dict[str, Any] = {"user": user, "item": item, "quantity": quantity}
    try:
        is_number = quantity.strip().isdecimal() and len(quantity) < 20
        order = models.NewOrder(**form | {"quantity": int(quantity) if is_number else quantity})
    except ValidationError as error:
        errors = {str(each["loc"][0]): each["msg"].removeprefix("Value error, ") for each in error.errors()}
        return await again(request, 422, form, errors)
    try:
        # With what it is for: sent once more it is the same order, and corrected it is another one.
        whole_key = f"{key} {order.user} {order.item} {order.quantity}" if key else None
        placed = await request.app.state.desk.place(order.user, order.item, order.quantity, whole_key)
    except NotConfirmedError as error:
        problem = f"The order was not confirmed: {error}. Send it again, which doesn't make it two"
        return await again(request, 503, form, {}, problem=problem, key=key)
    except DatabaseAwayError as error:
        problem = f"The order was not sent, as the database does not answer: {error}. Send it again in a moment"
        return await again(request, 503, form, {}, problem=problem, key=key)
    await note(request, "placed", placed["order_id"])
    return RedirectResponse(f"/?placed={placed['order_id']}", 303)


async def again(request: Request, status: int, form: Any, errors: Any, key: str = KEY, **context: Any) -> Response:
    """Return the list with the form as it was filled in."""
    return answer(await run_in_threadpool(lambda: listed(request, form, errors, key=key or KEY, **context)), status)


@router.get("/orders")
async def back() -> Response:
    """Lead to the list whoever reloads what a form has answered."""
    return RedirectResponse("/", 303)


@router.get("/orders/{order_id}")
async def show(request: Request, order_id: str) -> Response:
    """Show an order and its story."""
    return await order_page(request, order_id)


@router.post("/orders/{order_id}/status")
async def change(request: Request, order_id: str, status: Text = "") -> Response:
    """Change the status of an order by a button."""
    if status not in CHANGES:
        return await order_page(request, order_id, 422, f"The status must be one of {', '.join(CHANGES)}")
    try:
        await request.app.state.desk.change(order_id, status, user_of(request))
    except RefusedError as error:
        return await order_page(request, order_id, error.status, f"{error}. This is how it stands now")
    except NotConfirmedError as error:
        return await order_page(request, order_id, 503, f"The change was not confirmed: {error}. Try again in a moment")
    except DatabaseAwayError as error:
        return await order_page(request, order_id, 503, f"The database does not answer: {error}. Try again in a moment")
    await note(request, status, order_id)
    return RedirectResponse(f"/orders/{order_id}", 303)


async def order_page(request: Request, order_id: str, status: int = 200, problem: str | None = None) -> Response:
    """Return the page of an order, with what went wrong."""
    live: Live = request.app.state.live
    version = live.version
    try:
        found = await run_in_threadpool(ask, live, whole, order_id)
    except DatabaseAwayError:
        return render(
            request, "error.html", 503, title="The database does not answer", advice="Look again in a moment."
        )
    if found is None:
        advice = "Check the id. A new order is here as soon as the store has it."
        return render(request, "error.html", 404, title="There is no such order", advice=advice)
    order, story = found
    possible = NEXT[order["status"]]
    context = {"order": order, "story": story, "possible": possible, "problem": problem, "version": version}
    return render(request, "order.html", status, **context)


@router.get("/dead-letters")
async def dead_letters(request: Request) -> Response:
    """Show the dead letters that wait."""
    return await letters_page(request)


@router.post("/dead-letters")
async def send_back(request: Request, place: Text = "") -> Response:
    """Send a dead letter back."""
    try:
        await request.app.state.letters.send_back(place)
    except RefusedError as error:
        return await letters_page(request, error.status, str(error))
    except NotConfirmedError as error:
        return await letters_page(request, 503, f"It was not sent back: {error}. Try again in a moment")
    await note(request, "sent back", place)
    return RedirectResponse(f"/dead-letters?back={urlencode({'': place})[1:]}", 303)


async def letters_page(request: Request, status: int = 200, problem: str | None = None) -> Response:
    """Return the page of the dead letters, with what went wrong."""
    letters, total = [], 0
    try:
        letters, total = await request.app.state.letters.waiting()
    except NotConfirmedError as error:
        status, problem = 503, problem or f"The dead letters can't be read: {error}. Look again in a moment"
    back = request.query_params.get("back")
    return render(request, "letters.html", status, letters=letters, total=total, problem=problem, back=back)


@router.get("/state")
async def state(request: Request) -> Response:
    """Show what all pages have at their top."""
    return render(request, "state.html")


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """Return the description of the API."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Show the description of the API."""
    return render(request, "docs.html")
