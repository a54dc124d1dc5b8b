"""Who asks, and what each may: the one table of rights for the page and the API.

Without a user (next_steps.web.users) everybody on this machine is `web`, a manager.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from fastapi import HTTPException
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from next_steps.history.database import reason
from next_steps.web.accounts import ROLES, User, Users

ANYONE = "anyone"
NOBODY_YET = User("web", "manager", logged_in=False)
# What isn't here nobody may.
RIGHTS = {
    ("GET", "/login"): ANYONE,
    ("POST", "/login"): ANYONE,
    ("POST", "/logout"): "viewer",
    ("GET", "/"): "viewer",
    ("GET", "/orders"): "viewer",
    ("POST", "/orders"): "manager",
    ("GET", "/orders/{order_id}"): "viewer",
    ("POST", "/orders/{order_id}/status"): "manager",
    ("GET", "/dead-letters"): "viewer",
    ("POST", "/dead-letters"): "manager",
    ("GET", "/state"): "viewer",
    ("GET", "/docs"): "viewer",
    ("GET", "/openapi.json"): "viewer",
    ("POST", "/api/orders"): "manager",
    ("GET", "/api/orders"): "viewer",
    ("GET", "/api/orders/{order_id}"): "viewer",
    ("POST", "/api/orders/{order_id}/status"): "manager",
    ("GET", "/api/events"): "viewer",
    ("GET", "/health"): ANYONE,
    ("GET", "/health/ready"): ANYONE,
    ("GET", "/metrics"): "viewer",
}
LOOK = 1.0  # seconds until it is looked again whether there is a user now
TRIES = {"name": 10, "address": 30}  # failed logins by a name, and from an address, within WINDOW seconds
WINDOW = 300.0
KNOWN = 10_000  # names and addresses that are counted at a time


class Access:
    """The users, and who has tried to log in too often. `secure` says whether browsers come by TLS."""

    def __init__(self, users: Users, secure: bool) -> None:
        self.users, self.secure = users, secure
        self.cookie = "__Host-session" if secure else "session"
        self.hashing = asyncio.Semaphore(2)  # passwords tried at a time: each takes 64 MiB
        self._any, self._looked = False, -LOOK
        self._failed: dict[tuple[str, str], deque[float]] = {}

    async def needed(self) -> bool:
        """Return whether there are users; once there were, they are asked for."""
        if not self._any and time.monotonic() - self._looked > LOOK:
            self._any, self._looked = await run_in_threadpool(self.users.any), time.monotonic()
        return self._any

    async def user(self, request: Request) -> User | None:
        """Return who asks, None for a stranger."""
        if not await self.needed():
            return NOBODY_YET
        token = request.cookies.get(self.cookie)
        return await run_in_threadpool(self.users.of, token) if token else None

    def too_many(self, name: str, address: str) -> bool:
        """Return whether as many logins have failed as may."""
        now = time.monotonic()
        for key in (("name", name), ("address", address)):
            failed = self._failed.get(key, deque())
            while failed and failed[0] < now - WINDOW:
                failed.popleft()
            if len(failed) >= TRIES[key[0]]:
                return True
        return False

    def failed(self, name: str, address: str) -> None:
        """Count a login that failed, or is under way: of many at a time, no more are tried than may fail."""
        for key in (("name", name), ("address", address)):
            self._failed.setdefault(key, deque(maxlen=TRIES[key[0]])).append(time.monotonic())
            if len(self._failed) > KNOWN:
                self._failed.pop(next(iter(self._failed)))

    def succeeded(self, name: str, address: str) -> None:
        """Forget the failed logins by this name, and of the address the one that was counted before it was tried."""
        self._failed.pop(("name", name), None)
        if counted := self._failed.get(("address", address)):
            counted.pop()


class Guarded(APIRoute):
    """A path that asks the table first. As a dependency of all paths it took a tenth of the speed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            await allow(request, RIGHTS.get((request.method, self.path)))
            return await handle(request)

        return guarded


async def allow(request: Request, needed: str | None) -> None:
    """Let a request through whose user has the role; HTTPException sends strangers to the login, and refuses others."""
    try:
        request.state.user = user = await access_of(request).user(request)
    except SQLAlchemyError as error:
        raise HTTPException(503, f"The users can't be read: {reason(error)}", {"Retry-After": "5"}) from None
    if needed == ANYONE:
        return
    if user is None:
        if "text/html" in request.headers.get("accept", ""):
            asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            here = asked if request.method == "GET" else "/"
            raise HTTPException(303, "Log in first", {"Location": f"/login?next={quote(here, safe='')}"})
        raise HTTPException(401, "Log in first: POST name and password to /login")
    if needed is None or ROLES.index(user.role) < ROLES.index(needed):
        raise HTTPException(403, f"A {user.role} may not do this")


def user_of(request: Request) -> str:
    """Return the name of the user who asks, which a change of status is sent with."""
    name: str = request.state.user.name
    return name


def access_of(request: Request) -> Access:
    """Return the users of the application."""
    access: Access = request.app.state.access
    return access


def address_of(request: Request) -> str:
    """Return from where somebody asks."""
    return request.client.host if request.client else ""


async def known_user(request: Request) -> User | None:
    """Return who asks for what isn't in the table, None for a stranger and where it can't be told."""
    try:
        return await access_of(request).user(request)
    except SQLAlchemyError:
        return None


async def still_there(request: Request) -> bool:
    """Return whether the session that a stream was begun in goes on."""
    try:
        return await access_of(request).user(request) is not None
    except SQLAlchemyError:
        return True  # the next look may tell


async def note(request: Request, action: str, target: str = "", name: str | None = None) -> None:
    """Write into the log who did what; where there are no users, nobody is told apart and nothing is written."""
    access, address = access_of(request), address_of(request)
    if not await access.needed():
        return
    name = user_of(request) if name is None else name
    try:
        await run_in_threadpool(access.users.note, name, address, action, target)
    except SQLAlchemyError as error:  # it was done, and can't be taken back
        print(f"The log of the users can't be written: {reason(error)}. {name} {action} {target}", file=sys.stderr)
