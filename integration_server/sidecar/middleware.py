"""What holds for every request, wherever it leads: safe headers, an access log, and no fault shown."""

import time
import traceback
from collections.abc import Mapping
from urllib.parse import quote

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.sidecar.error_mapping import INTERNAL_ERROR
from integration_server.sidecar.responses import Responses


def security_headers(policy: str) -> Mapping[str, str]:
    """Headers for every answer. Addresses here have codes and states in them, not to be kept or passed on."""
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Vary": "Accept",
    }


class FixedHeaders:
    """Puts the same headers on every answer."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the headers on the way back."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, with_headers)


class AccessLog:
    """Logs each request without its query, which has code and state in it, and answers for our own faults."""

    def __init__(self, app: ASGIApp, responses: Responses) -> None:
        self._app = app
        self._responses = responses
        self._log = structlog.get_logger(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. The status is logged as 0 where no answer was begun."""
        began = time.perf_counter()
        status = 0

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_record_status)
        except Exception as error:
            self._log_exception(error)
            if not status:
                await self._responses.http_error(Request(scope), INTERNAL_ERROR)(scope, receive, send_and_record_status)
        finally:
            # Quoted, so that nobody writes lines of their own into the log.
            path = quote(scope["path"])[:200]
            milliseconds = round((time.perf_counter() - began) * 1000, 1)
            self._log.info("request", method=scope["method"], path=path, status=status, ms=milliseconds)

    def _log_exception(self, error: Exception) -> None:
        # An exception's text may quote what it choked on, so only its kind and place are logged.
        stack = "".join(traceback.format_tb(error.__traceback__))
        self._log.error("unhandled_exception", kind=type(error).__qualname__, stack=stack)
