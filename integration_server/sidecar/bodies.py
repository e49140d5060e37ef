"""Reads the bodies of requests, within a memory budget for all of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request

from integration_server.sidecar.http_limits import HttpLimits


class BodyReader:
    """Only an endpoint that uses a body reads it: nothing is read for a request without one, or without a route."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._buffered_bytes = 0  # over all requests

    @asynccontextmanager
    async def read(self, request: Request, max_bytes: int | None = None) -> AsyncIterator[bytes]:
        """Read the body and count it as long as it is used. `max_bytes` is a limit below that of all bodies.

        Raises `HTTPException` if the body is too large or the budget is used up, and `ClientDisconnect`.
        """
        # The parser ensures that the value is a number, and that the body has no more bytes than it says.
        limit = self._limits.body_bytes if max_bytes is None else min(max_bytes, self._limits.body_bytes)
        if int(request.headers.get("content-length", 0)) > limit:
            raise _body_too_large(limit)
        body = bytearray()
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise _body_too_large(limit)
                if self._buffered_bytes + len(chunk) > self._limits.max_buffered_bodies * self._limits.body_bytes:
                    retry = {"Retry-After": "1"}
                    raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests at once", retry)
                body += chunk
                self._buffered_bytes += len(chunk)
            yield bytes(body)
        finally:
            self._buffered_bytes -= len(body)


def _body_too_large(limit: int) -> HTTPException:
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {limit} bytes")
