"""Middleware for every request: limits for anonymous clients, security headers, access log, unhandled exceptions.

Limits on times, connections and sizes of heads are enforced below the app, in `http_protocol.py` and `strict_http.py`.
"""

import math
import time
import traceback
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import quote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.sidecar.anonymous_limits import AnonymousLimits, is_verified
from integration_server.sidecar.error_mapping import INTERNAL_ERROR, HttpError
from integration_server.sidecar.responses import Responses

_TOO_MANY_FAILURES = HttpError(
    HTTPStatus.TOO_MANY_REQUESTS, "QUOTA_EXCEEDED", "Too many requests from this address failed"
)


class OuterMiddleware:
    """Refuses senders with too many failures, sets headers on every response, and converts exceptions to 500."""

    def __init__(
        self, app: ASGIApp, responses: Responses, headers: Mapping[str, str], anonymous: AnonymousLimits
    ) -> None:
        self._app = app
        self._responses = responses
        self._headers = headers
        self._anonymous = anonymous
        self._log = structlog.get_logger(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        exchange = _Exchange(scope, receive, send, self._headers)
        sender = self._anonymous.sender_of(scope)
        retry_after = self._anonymous.retry_after(sender)
        try:
            if retry_after is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await self._refuse(scope, exchange, retry_after)
        except ClientDisconnect:
            pass  # in the middle of the body
        except Exception as error:
            # The text of an exception may quote secrets, so only its class and traceback are logged.
            stack = "".join(traceback.format_tb(error.__traceback__))
            self._log.error("unhandled_exception", kind=type(error).__qualname__, stack=stack)
            if not exchange.status:
                response = self._responses.http_error(Request(scope), INTERNAL_ERROR)
                await response(scope, exchange.receive, exchange.send)
        finally:
            self._anonymous.record(sender, scope, exchange.status)
            if is_verified(scope):
                self._log.info("http_request", **exchange.log_fields())

    async def _refuse(self, scope: Scope, exchange: "_Exchange", retry_after: timedelta) -> None:
        response = self._responses.http_error(Request(scope), _TOO_MANY_FAILURES)
        response.headers["Retry-After"] = str(math.ceil(retry_after.total_seconds()))
        await response(scope, exchange.receive, exchange.send)


def announces_body(scope: Scope) -> bool:
    """Whether the head of a request says that a body follows."""
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


class _Exchange:
    """One request and its response. `status` is 0 until the response has started."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = headers
        self._has_unread_body = announces_body(scope)
        self._start = time.perf_counter()

    async def receive(self) -> Message:
        """Receive a message from the client."""
        message = await self._receive()
        self._has_unread_body = self._has_unread_body and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message. A response before the body has been read closes the connection, so that it need not be."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = MutableHeaders(scope=message)
            headers.update(self._headers)
            if self._has_unread_body:
                headers["Connection"] = "close"
        await self._send(message)

    def log_fields(self) -> Mapping[str, object]:
        """The access log's fields. They have no query, because queries contain code and state."""
        milliseconds = round((time.perf_counter() - self._start) * 1000, 1)
        path = quote(self._scope["path"])[:200]
        return {"method": self._scope["method"], "path": path, "status": self.status, "ms": milliseconds}
