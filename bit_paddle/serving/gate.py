"""What every request passes first: key, limits of the body, time limits, headers of the answer.

A request is refused before its body is read where that is possible. The bytes of a body are counted
while they arrive.
"""

from __future__ import annotations

import functools
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from bit_paddle.serving.batching import Engine
from bit_paddle.serving.bodies import is_image, type_of
from bit_paddle.serving.measures import Measures
from bit_paddle.serving.settings import ServerSettings, is_loopback

Message = MutableMapping[str, Any]

Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]

_STATE = ("/healthz", "/readyz", "/metrics")  # answered while the server starts or stops, too

_OPEN = ("/", "/healthz", "/readyz")  # need no key, and neither does the page's folder

_PAGE = "/page/"

_BODIES = 8  # all bodies in memory together have at most the size of so many largest ones

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        b"object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
]


class Json(JSONResponse):
    """JSON in UTF-8. Half of a surrogate pair, which JSON may contain, stays escaped."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


class Gate:
    """ASGI middleware; ``stopping`` True makes it refuse new requests with status 503."""

    def __init__(self, app: Any, settings: ServerSettings, engine: Engine, measures: Measures):
        self._app, self._settings, self._engine = app, settings, engine
        self._measures, self._held = measures, 0  # bytes of bodies in memory
        self._only_local_names = not settings.key and is_loopback(settings.host)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                close = [(b"connection", b"close")] if scope["app"].state.stopping else []
                message["headers"] = [*message.get("headers", ()), *_HEADERS, *close]
            await send(message)

        headers = Headers(scope=scope)
        body = _Body(self, receive, self._limit(headers))
        try:
            refusal = self._refusal(scope, headers, body.limit)
            if refusal is None:
                await self._app(scope, body.receive, answer)
            else:
                code, sentence, more = refusal
                await Json({"error": sentence}, code, more)(scope, receive, answer)
        finally:
            self._held -= body.size
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._measures.answered(path, status, time.perf_counter() - start)

    def _limit(self, headers: Headers) -> float:
        """Return the most bytes of a body."""
        kind = type_of(headers.get("content-type", ""))
        return 1e6 * (self._settings.image_mb if is_image(kind) else self._settings.body_mb)

    def _refusal(
        self, scope: MutableMapping[str, Any], headers: Headers, limit: float
    ) -> tuple[int, str, dict[str, str]] | None:
        """Return status, sentence and headers for a request that is refused, else None."""
        path = scope["path"]
        if self._only_local_names and not _is_local(headers.get("host", "")):
            sentence = "this server answers only to the names localhost, 127.0.0.1 and [::1]"
            return 403, sentence, {}
        if self._settings.key and path not in _OPEN and not path.startswith(_PAGE):
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, f"Bearer {self._settings.key}".encode()):
                sentence = "the key is missing or wrong; send the header Authorization: Bearer KEY"
                return 401, sentence, {"WWW-Authenticate": "Bearer"}
        if path not in _STATE:
            if scope["app"].state.stopping:
                return 503, "the server is stopping", {"Retry-After": "5"}
            if scope["method"] == "POST" and not self._engine.ready:
                return 503, "the server is starting", {"Retry-After": "5"}
        if headers.get("content-encoding", "identity").lower() != "identity":
            return (
                415,
                "Content-Encoding: compressed bodies are refused; send the body as it is",
                {},
            )
        if int(headers.get("content-length", 0)) > limit:
            return 413, self.too_large(limit), {}
        return None

    # --- The body -------------------------------------------------------------------------------

    @staticmethod
    def too_large(limit: float) -> str:
        """Return the sentence for a body of more than ``limit`` bytes."""
        return f"the body has more than {limit / 1e6:g} MB"

    @property
    def seconds(self) -> float:
        """The time that a body may take."""
        return self._settings.receive_seconds

    def hold(self, size: int) -> bool:
        """Count ``size`` bytes more in memory; return whether there is room for them."""
        self._held += size
        return self._held <= _BODIES * self._settings.body_mb * 1e6


class _Body:
    """The body of one request: counted while it arrives, and cut off if it is too slow."""

    def __init__(self, gate: Gate, receive: Receive, limit: float):
        self._gate, self._receive, self.limit = gate, receive, limit
        self._deadline, self._complete, self.size = time.monotonic() + gate.seconds, False, 0

    async def receive(self) -> Message:
        """Return the next message of the body; raise `HTTPException` beyond a limit."""
        if self._complete:  # what follows is the end of the connection, whenever that is
            return await self._receive()
        try:
            with anyio.fail_after(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            sentence = f"the body took longer than {self._gate.seconds:g} seconds"
            raise HTTPException(408, sentence, {"Connection": "close"}) from None
        self._complete = not message.get("more_body", False)
        size = len(message.get("body", b""))
        self.size += size
        if not self._gate.hold(size):
            raise HTTPException(429, "too many bodies are under way", {"Retry-After": "1"})
        if self.size > self.limit:
            raise HTTPException(413, self._gate.too_large(self.limit))
        return message


# --- Names of this machine ----------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _is_local(host: str) -> bool:
    """Return whether a Host header names this machine.

    A name of a web page does not, even if it leads here: so no page can read the answers.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return is_loopback(name.strip("[]").lower())
