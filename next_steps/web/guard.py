"""What keeps out who should not write, and tells browsers what the page may do: an ASGI middleware around all of it."""

import time
from collections import Counter
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
KEEPABLE = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
NOT_KEPT = (b"cache-control", b"no-cache")
TLS_ONLY = (b"strict-transport-security", b"max-age=31536000")


class Guard:
    """Refuses what comes from another site or too often, and adds HEADERS to each answer."""

    def __init__(self, app: ASGIApp, max_rate: int, secure: bool) -> None:
        self._app, self._max_rate = app, max_rate
        self._headers = [*KEEPABLE, *[TLS_ONLY] * secure]
        self._second, self._changes = 0, Counter[str]()  # how many came from each address in that second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message["headers"]
                message["headers"] = [*own, *self._headers]
                if not any(name == b"cache-control" for name, _ in own):
                    message["headers"].append(NOT_KEPT)
            await send(message)

        refusal = self._refusal(scope)
        if refusal:
            await refusal(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if scope["method"] in SAFE:
            return None
        headers = Headers(scope=scope)
        if from_another_site(headers):
            return JSONResponse({"detail": "Changes are taken from this page only, not from another site"}, 403)
        if self._too_many((scope.get("client") or ["unknown"])[0]):
            detail = f"More than {self._max_rate} changes a second came from this address. Wait a second"
            return JSONResponse({"detail": detail}, 429, {"Retry-After": "1"})
        return None

    def _too_many(self, address: str) -> bool:
        # A few lines in place of a library: that of `limits` starts a thread for each request that it counts.
        if (now := int(time.monotonic())) != self._second:
            self._second, self._changes = now, Counter()
        self._changes[address] += 1
        return self._changes[address] > self._max_rate


def from_another_site(headers: Headers) -> bool:
    """Return whether a browser says that another site has sent the request.

    What sends neither header is no browser that could be tricked. The rule is that of Go's http.CrossOriginProtection.
    """
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
