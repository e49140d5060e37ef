"""Middleware for every request: security headers, access log, unhandled exceptions, size limits (docs/limits.md).

Limits on times and connections are enforced below the app, in `http_timeouts.py`.
"""

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import quote

import structlog
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.sidecar.error_mapping import INTERNAL_ERROR
from integration_server.sidecar.responses import Responses


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The resources that clients can take. A connection is closed when a phase of a request exceeds its time: head,
    body, or response (made and read)."""

    connections: int
    body_bytes: int
    header_timeout: timedelta
    body_timeout: timedelta
    # In whole seconds. Must exceed the time for which clients keep idle connections (load balancers: 60 s), or a
    # request is sent into a connection that is being closed.
    keepalive_timeout: timedelta
    # Longer than callback.DEADLINE.
    response_timeout: timedelta = timedelta(seconds=60)
    head_bytes: int = 16 * 1024
    headers: int = 100
    url_bytes: int = 10 * 1024
    # In bodies of the largest size. A request whose body would exceed the sum gets 503 with Retry-After.
    max_buffered_bodies: int = 64


def security_headers(policy: str) -> Mapping[str, str]:
    """Headers for every response. URLs here contain codes and states, which must not be stored or forwarded."""
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Vary": "Accept",
    }


class OuterMiddleware:
    """Sets headers on every response, converts unhandled exceptions to 500, and writes the access log.

    The log has no queries, because they contain code and state.
    """

    def __init__(self, app: ASGIApp, responses: Responses, headers: Mapping[str, str]) -> None:
        self._app = app
        self._responses = responses
        self._headers = headers
        self._log = structlog.get_logger(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request. The logged status is 0 if no response was started."""
        start = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            # The text of an exception may quote secrets, so only its class and traceback are logged.
            stack = "".join(traceback.format_tb(error.__traceback__))
            self._log.error("unhandled_exception", kind=type(error).__qualname__, stack=stack)
            if not status:
                await self._responses.http_error(Request(scope), INTERNAL_ERROR)(scope, receive, send_with_headers)
        finally:
            # Quoted, so that a path cannot add lines to the log.
            path = quote(scope["path"])[:200]
            milliseconds = round((time.perf_counter() - start) * 1000, 1)
            self._log.info("http_request", method=scope["method"], path=path, status=status, ms=milliseconds)


class RequestLimits:
    """Rejects requests that are too large, and forwards the others with their body already read."""

    def __init__(self, app: ASGIApp, responses: Responses, limits: HttpLimits) -> None:
        self._app = app
        self._responses = responses
        self._limits = limits
        self._buffered_bytes = 0  # bytes of bodies, over all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, unless it is too large or its client disconnects before its body is complete."""
        body = bytearray()
        try:
            self._check_head(Request(scope))
            if await self._read_body(receive, body):
                await self._app(scope, _replay_body(bytes(body), receive), send)
        except HTTPException as error:
            await self._responses.http_exception(Request(scope), error)(scope, receive, send)
        finally:
            self._buffered_bytes -= len(body)

    def _check_head(self, request: Request) -> None:
        limits = self._limits
        # Closing the connection frees the memory that a large head takes.
        close = {"Connection": "close"}
        if len(request.scope["raw_path"]) + len(request.scope["query_string"]) > limits.url_bytes:
            message = f"The URL is longer than {limits.url_bytes} bytes"
            raise HTTPException(HTTPStatus.REQUEST_URI_TOO_LONG, message, close)
        fields = request.headers.raw
        size = sum(len(name) + len(value) + len(": \r\n") for name, value in fields)
        if len(fields) > limits.headers or size > limits.head_bytes:
            message = f"There are more than {limits.headers} headers, or more than {limits.head_bytes} bytes of them"
            raise HTTPException(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, close)
        # The parser ensures that the value is a number, and that the body has no more bytes than it says.
        if int(request.headers.get("content-length", 0)) > limits.body_bytes:
            raise self._body_too_large()

    async def _read_body(self, receive: Receive, body: bytearray) -> bool:
        """Append the body to `body`. False if the client has disconnected."""
        more_body = True
        while more_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk, more_body = message.get("body", b""), message.get("more_body", False)
            if len(body) + len(chunk) > self._limits.body_bytes:
                raise self._body_too_large()
            if self._buffered_bytes + len(chunk) > self._limits.max_buffered_bodies * self._limits.body_bytes:
                raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests at once", {"Retry-After": "1"})
            body += chunk
            self._buffered_bytes += len(chunk)
        return True

    def _body_too_large(self) -> HTTPException:
        message = f"The body is longer than {self._limits.body_bytes} bytes"
        return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """`receive` for an app whose request body has been read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message
