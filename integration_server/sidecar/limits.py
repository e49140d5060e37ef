"""How much one request may be, and how long one connection may take. docs/limits.md says what clients see.

Sizes are kept here, in front of the app; times and the number of connections are kept in `protocol.py`, below it.
"""

from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.sidecar.responses import Responses

# Ends the connection, and with it what the large head takes in memory.
_CLOSE_CONNECTION = {"Connection": "close"}


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What clients can take of the sidecar. A client is cut off when a phase of its request takes longer than its time:
    head, body, or waiting for the answer to be made and read."""

    connections: int
    body_bytes: int
    header_timeout: timedelta
    body_timeout: timedelta
    # Between two requests, in whole seconds. It has to be longer than whoever calls keeps connections, or a request is
    # sent into one that is just being closed: load balancers keep theirs for 60 s.
    keepalive_timeout: timedelta
    # Most wait for one answer of a provider: callback.DEADLINE.
    response_timeout: timedelta = timedelta(seconds=60)
    head_bytes: int = 16 * 1024
    headers: int = 100
    url_bytes: int = 10 * 1024
    # Of the largest size, in memory together; a request that would be one more is told to come again.
    max_buffered_bodies: int = 64


class RequestLimits:
    """Refuses requests that are too large, and hands on the others with their body read."""

    def __init__(self, app: ASGIApp, responses: Responses, limits: HttpLimits) -> None:
        self._app = app
        self._responses = responses
        self._limits = limits
        self._buffered_bytes = 0  # bytes of bodies, over all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless it is too large, or its client leaves before it is there."""
        body = bytearray()
        try:
            self._check_head(Request(scope))
            if await self._read_body(receive, body):
                await self._app(scope, _replay_body(bytes(body), receive), send)
        except HTTPException as http_exception:
            await self._responses.http_exception(Request(scope), http_exception)(scope, receive, send)
        finally:
            self._buffered_bytes -= len(body)

    def _check_head(self, request: Request) -> None:
        if len(request.scope["raw_path"]) + len(request.scope["query_string"]) > self._limits.url_bytes:
            raise HTTPException(
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"The address is longer than {self._limits.url_bytes} bytes",
                _CLOSE_CONNECTION,
            )
        fields = request.headers.raw
        if len(fields) > self._limits.headers or sum(map(_length, fields)) > self._limits.head_bytes:
            raise HTTPException(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"There are more than {self._limits.headers} headers, or more than {self._limits.head_bytes} bytes",
                _CLOSE_CONNECTION,
            )
        # The parser has made sure that it is a number, and that the body is no longer than it says.
        if int(request.headers.get("content-length", 0)) > self._limits.body_bytes:
            raise self._too_large()

    async def _read_body(self, receive: Receive, body: bytearray) -> bool:
        """Fill in the body. False if the client has left."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) + len(chunk) > self._limits.body_bytes:
                raise self._too_large()
            if self._buffered_bytes + len(chunk) > self._limits.max_buffered_bodies * self._limits.body_bytes:
                raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests at once", {"Retry-After": "1"})
            body += chunk
            self._buffered_bytes += len(chunk)
        return True

    def _too_large(self) -> HTTPException:
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {self._limits.body_bytes} bytes"
        )


def _length(field: tuple[bytes, bytes]) -> int:
    name, value = field
    return len(name) + len(value) + len(b": \r\n")


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """`receive` for an app whose body has been read."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
