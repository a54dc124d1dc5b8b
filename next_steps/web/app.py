"""The application: the pages and the API, behind what guards them."""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from next_steps.history.database import connect
from next_steps.web import api, login, pages
from next_steps.web.access import Access, Guarded, known_user
from next_steps.web.accounts import Users
from next_steps.web.desk import Desk, RefusedError
from next_steps.web.guard import Guard
from next_steps.web.kafka import Broker, NotConfirmedError, Sender
from next_steps.web.letters import Letters
from next_steps.web.live import DatabaseAwayError, Live
from next_steps.web.metrics import Metrics
from next_steps.web.rendering import Kept, render

HERE = Path(__file__).parent
SIZE = 16 * 1024  # bytes of a body
HOSTS = ["localhost", "127.0.0.1"]
AGAIN = {"Retry-After": "5"}


def create_app(args: argparse.Namespace, sender: Sender, broker: Broker) -> FastAPI:
    """Return the application; what it needs is in its `state`."""
    live = Live(connect(args.database, read_only=True), broker)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(live.run())
        yield
        live.stop()
        await looking

    about = "Orders are placed into Kafka, and read from the history that a store makes of it."
    app = FastAPI(
        title="Orders",
        version="1",
        description=about,
        max_body_size=SIZE,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = Guarded
    app.state.access = Access(Users(args.users), args.certificate is not None)
    app.state.live = live
    app.state.desk = Desk(sender, live, args.topic, args.status_topic)
    app.state.letters = Letters(args, broker)
    app.state.metrics = Metrics(live)
    app.state.kept = Kept()
    app.include_router(api.router)
    app.include_router(pages.router)
    app.include_router(login.router)
    app.mount("/static/swagger", StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS, *args.name], www_redirect=False)
    app.add_middleware(Guard, max_rate=args.max_rate, secure=args.certificate is not None)
    app.add_exception_handler(HTTPException, refused_page)
    app.add_exception_handler(RequestValidationError, not_valid)
    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(NotConfirmedError, not_confirmed)
    app.add_exception_handler(DatabaseAwayError, database_away)
    return app


async def refused_page(request: Request, error: Any) -> Response:
    """Answer a browser by a page, which shows nothing to a stranger, and a program by JSON."""
    if not hasattr(request.state, "user"):  # there is no such path
        request.state.user = await known_user(request)
    by_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
    if by_page and request.state.user and error.status_code >= 400:
        title, advice = str(error.detail), "Go back to the list."
        return render(request, "error.html", error.status_code, title=title, advice=advice)
    return await http_exception_handler(request, error)


async def not_valid(request: Request, error: Any) -> Response:
    """Name the fields that are wrong, without what they held: half a letter could not be written back."""
    wrong = [{name: each[name] for name in ("type", "loc", "msg")} for each in error.errors()]
    return JSONResponse({"detail": wrong}, 422)


async def refused(request: Request, error: Any) -> Response:
    """Answer what the desk has refused."""
    wrong = [{"type": "idempotency_key", "loc": ["header", "Idempotency-Key"], "msg": error.detail}]
    return JSONResponse({"detail": wrong if error.status == 422 else error.detail}, error.status)


async def not_confirmed(request: Request, error: Exception) -> Response:
    """Answer what Kafka did not confirm."""
    detail = f"Kafka did not confirm it: {error}. Send it again, with the same Idempotency-Key"
    return JSONResponse({"detail": detail}, 503, AGAIN)


async def database_away(request: Request, error: Exception) -> Response:
    """Answer what the database has to be asked for."""
    return JSONResponse({"detail": f"The database does not answer: {error}. Try again"}, 503, AGAIN)
