"""How one comes in, and leaves."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.params import Form
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from next_steps.web.access import Guarded, access_of, address_of, note
from next_steps.web.accounts import NAME, PASSWORD
from next_steps.web.rendering import render

router = APIRouter(route_class=Guarded, include_in_schema=False)
Text = Annotated[str, Form()]
WRONG = "The name or the password is wrong"
LATER = "Too many logins have failed. Try again in 5 minutes"


@router.get("/login")
async def form(request: Request) -> Response:
    """Show the form; where there is nobody who could fill it in, the list."""
    if not await access_of(request).needed():
        return RedirectResponse("/", 303)
    return shown(request, request.query_params.get("next", "/"))


@router.post("/login")
async def login(
    request: Request, name: Text = "", password: Text = "", goal: Annotated[str, Form(alias="next")] = "/"
) -> Response:
    """Begin a session, always a new one, and go where one wanted to."""
    access, address = access_of(request), address_of(request)
    name = name[: NAME + 1]
    if access.too_many(name, address):
        return shown(request, goal, name, LATER, 429)
    access.failed(name, address)
    async with access.hashing:
        right = await run_in_threadpool(access.users.verify, name, password[: PASSWORD[1] + 1])
    if not right:
        await note(request, "login failed", name=name)
        return shown(request, goal, name, WRONG, 401)
    access.succeeded(name, address)
    if old := request.cookies.get(access.cookie):
        await run_in_threadpool(access.users.end, old)
    token = await run_in_threadpool(access.users.begin, name)
    await note(request, "login", name=name)
    answer = RedirectResponse(within(goal), 303)
    answer.set_cookie(access.cookie, token, httponly=True, secure=access.secure, samesite="lax")
    return answer


@router.post("/logout")
async def logout(request: Request) -> Response:
    """End the session."""
    access = access_of(request)
    if token := request.cookies.get(access.cookie):
        await run_in_threadpool(access.users.end, token)
        await note(request, "logout")
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(access.cookie, httponly=True, secure=access.secure, samesite="lax")
    return answer


def shown(request: Request, goal: str, name: str = "", problem: str | None = None, status: int = 200) -> Response:
    """Return the form."""
    return render(request, "login.html", status, goal=within(goal), typed=name, problem=problem)


def within(address: str) -> str:
    """Return the address where it is one of this site, otherwise that of the list."""
    plain = address.isprintable() and address.isascii() and "\\" not in address
    return address if plain and address.startswith("/") and not address.startswith("//") else "/"
