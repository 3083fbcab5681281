"""What stands between the network and the service: who may ask, how much and how slowly, and what is measured of it.

All of it is plain ASGI, so that it holds for every route and for what is no route.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Callable

import h11
from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# What a browser fetches before anyone could give it the token, what says nothing of images, and what a supervisor asks.
_OPEN = ("/", "/docs", "/openapi.json", "/healthz", "/readyz")
_PAGE = "/page/"
_MOST_HEADERS = 32_768  # bytes
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
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
    """Refuses strangers and requests that are too large or too slow, and puts security headers on every answer."""

    def __init__(self, app: ASGIApp, token: str | None, is_local: bool, max_bytes: int, timeout: float) -> None:
        """Wraps an application.

        Args:
            app: What is guarded.
            token: What has to come as `Authorization: Bearer`; None where anybody may ask.
            is_local: Whether only who says one of this machine's own names is answered. It keeps pages of other hosts
                out, which may point a name of theirs to 127.0.0.1 (DNS rebinding).
            max_bytes: Of a request's body.
            timeout: Seconds in which a body has to be here.
        """
        self._app = app
        self._token = None if token is None else token.encode()
        self._is_local = is_local
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or refuses a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if num_bytes > _MOST_HEADERS:
            refusal: tuple[int, str] | None = 431, f"headers have at most {_MOST_HEADERS:,} bytes; send fewer"
        else:
            refusal = self._refuse(scope["path"], dict(scope["headers"]))
        if refusal is None:
            await self._app(scope, self._limit(receive), _add_headers(send))
            return
        status, sentence = refusal
        body = json.dumps({"detail": sentence}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        send = _add_headers(send)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refuse(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._is_local and (host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host) not in _LOCAL:
            return 421, "this service answers to 127.0.0.1 and localhost alone; set STEEL_TOKEN to be called otherwise"
        if headers.get(b"sec-fetch-site") == b"cross-site":
            return 403, "a page of another site asked; open the page of this service"
        is_open = path in _OPEN or path.startswith(_PAGE)
        if self._token is not None and not is_open and not self._knows_token(headers.get(b"authorization", b"")):
            return 401, "a token is needed, as `Authorization: Bearer TOKEN`; ask whoever set STEEL_TOKEN"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:19]) > self._max_bytes:
            return self._too_large
        return None

    def _knows_token(self, authorization: bytes) -> bool:
        scheme, _, token = authorization.partition(b" ")
        assert self._token is not None
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"

    @property
    def _too_large(self) -> tuple[int, str]:
        return 413, f"a request has at most {self._max_bytes:,} bytes, but more came; send fewer images at once"

    def _limit(self, receive: Receive) -> Receive:
        """The same body, as long as it is neither too long nor too late."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        num_bytes, is_whole = 0, False

        async def receive_in_time() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                sentence = f"a request has to be here within {self._timeout:g} seconds; send it again"
                raise HTTPException(408, sentence) from error
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(*self._too_large)
            is_whole = not message.get("more_body", False)
            return message

        return receive_in_time


def _add_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS.items()]
        await send(message)

    return send_with_headers


class Metrics:
    """What is measured, as Prometheus reads it."""

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        """Begins at 0.

        Args:
            num_waiting: Says how many images are on their way.
        """
        self.registry = CollectorRegistry()
        of = self.registry
        self._requests = Counter("steel_requests", "Requests answered.", ["path", "status"], registry=of)
        self._seconds = Histogram(
            "steel_request_seconds", "From a request's headers to its answer.", ["path"], registry=of
        )
        self.images = Counter("steel_images", "Images by decision.", ["decision"], registry=of)
        for decision in ("clean", "defective", "refused"):
            self.images.labels(decision)  # 0 rather than nothing
        self.drifts = Counter("steel_drift_warnings", "Windows of images that were unlike the reference.", registry=of)
        self.batches = Histogram(
            "steel_batch_images", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=of
        )
        Gauge("steel_queue_images", "Images that are on their way.", registry=of).set_function(num_waiting)

    def watch(self, app: ASGIApp) -> ASGIApp:
        """Wraps an application so that its requests are counted and timed."""

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start, status = time.perf_counter(), 500

            async def send_and_see(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await app(scope, receive, send_and_see)
            finally:
                # By route, since strangers must not be able to make up as many names as they like.
                path = getattr(scope.get("route"), "path", "other")
                self._requests.labels(path, status).inc()
                self._seconds.labels(path).observe(time.perf_counter() - start)

        return measured


def build_protocol(timeout: float) -> type[H11Protocol]:
    """Uvicorn's HTTP, closing on a client that does not send the headers of a request in time; itself it waits forever.

    Args:
        timeout: Seconds for the headers.
    """

    class PatientProtocol(H11Protocol):
        _giving_up: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_watching()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def _watch(self) -> None:
            # Also while the rest of a body comes in that was refused.
            if self.conn.their_state is not h11.IDLE and not (self.cycle and self.cycle.response_complete):
                self._stop_watching()
            elif self._giving_up is None:
                self._giving_up = self.loop.call_later(timeout, self._give_up)

        def _stop_watching(self) -> None:
            if self._giving_up is not None:
                self._giving_up.cancel()
                self._giving_up = None

        def _give_up(self) -> None:
            if self.conn.our_state is h11.IDLE:
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    return PatientProtocol
