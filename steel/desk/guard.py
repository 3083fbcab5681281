"""ASGI middleware that authenticates clients, limits request size and duration, and adds security headers.

It is plain ASGI, so that it covers every path, including those without a route.
"""

import asyncio
import hmac
import re
from ipaddress import ip_address

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Files that a browser loads before it can send a token, and the endpoints of process supervisors.
_PAGES = ("/", "/docs")
_PUBLIC_PATHS = (*_PAGES, "/openapi.json", "/healthz", "/readyz")
_PAGE = "/page/"
_MAX_HEADER_BYTES = 32_768
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_SECURITY_HEADERS = {
    b"content-security-policy": b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"cache-control": b"no-store",
}


class Guard:
    """ASGI application that checks each request before it passes it to another application.

    Args:
        app: The application to protect.
        token: Token that clients must send as `Authorization: Bearer`; None to require none.
        is_local: Accept only requests whose Host is localhost or a loopback address. This keeps out web pages of other
            hosts, which may point their own name to 127.0.0.1 (DNS rebinding).
        max_bytes: Largest size of a request body.
        timeout: Seconds within which the whole body must arrive.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, is_local: bool, max_bytes: int, timeout: float) -> None:
        self._app, self._is_local, self._max_bytes, self._timeout = app, is_local, max_bytes, timeout
        self._token = None if token is None else token.encode(errors="surrogateescape")
        self._too_large = 413, f"request body must have at most {max_bytes:,} bytes; send fewer images per request"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._check(scope)
        if refusal is None:
            await self._app(scope, self._limit_body(receive), _add_headers(send))
            return
        status, sentence = refusal
        response = JSONResponse({"detail": sentence}, status, {"WWW-Authenticate": "Bearer"} if status == 401 else None)
        await response(scope, receive, _add_headers(send))

    def _check(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and sentence if the request is refused, else None."""
        path, headers = scope["path"], dict(scope["headers"])
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEADER_BYTES:
            return 431, f"request headers must have at most {_MAX_HEADER_BYTES:,} bytes; send fewer or shorter headers"
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._is_local and not is_loopback(re.sub(r":\d*$", "", host)):
            return 421, "this service answers only as 127.0.0.1 or localhost; set STEEL_TOKEN to allow other host names"
        if _is_foreign(scope["method"], path, host, headers):
            return 403, "requests from pages of other sites are refused; open the page of this service"
        is_public = path in _PUBLIC_PATHS or path.startswith(_PAGE)
        if self._token is not None and not is_public and not _has_token(headers, self._token):
            return 401, "a valid token is required as `Authorization: Bearer TOKEN`; ask your administrator for it"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:19]) > self._max_bytes:
            return self._too_large
        return None

    def _limit_body(self, receive: Receive) -> Receive:
        """Wrap `receive` so that it raises on a body that is too large, too slow, or cut off."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        num_bytes, is_complete = 0, False

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                sentence = f"the request must arrive within {self._timeout:g} seconds; send it again"
                raise HTTPException(408, sentence) from error
            if message["type"] == "http.disconnect":
                raise hung_up()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(*self._too_large)
            is_complete = not message.get("more_body", False)
            return message

        return receive_limited


def hung_up() -> HTTPException:
    """Return the error of a request whose client hung up. Only the metrics see its status, which is that of nginx."""
    return HTTPException(499, "the client hung up")


def is_loopback(host: str) -> bool:
    """Return whether a host, as in a URL, is this machine by name or address."""
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_foreign(method: str, path: str, host: str, headers: dict[bytes, bytes]) -> bool:
    """Return whether a browser sends the request for a page of another origin; links to the page are harmless."""
    if headers.get(b"sec-fetch-site") == b"cross-site":
        is_link = headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest") == b"document"
        return not (is_link and method == "GET" and path in _PAGES)
    if method in ("GET", "HEAD") or (origin := headers.get(b"origin")) is None:
        return False  # other programs than browsers send no origin
    scheme, _, name = origin.decode("latin-1").lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme, "")
    return name.removesuffix(port) != host.removesuffix(port)


def _has_token(headers: dict[bytes, bytes], expected: bytes) -> bool:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return hmac.compare_digest(token.strip(), expected) and scheme.lower() == b"bearer"


def _add_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            present = {name for name, _ in headers}  # the model card has its own policy
            headers += [pair for pair in _SECURITY_HEADERS.items() if pair[0] not in present]
            message["headers"] = headers
        await send(message)

    return send_with_headers
