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
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body and count it as long as it is used.

        Raises `HTTPException` if the body is too large or the budget is used up, and `ClientDisconnect`.
        """
        # The parser ensures that the value is a number, and that the body has no more bytes than it says.
        if int(request.headers.get("content-length", 0)) > self._limits.body_bytes:
            raise self._body_too_large()
        body = bytearray()
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > self._limits.body_bytes:
                    raise self._body_too_large()
                if self._buffered_bytes + len(chunk) > self._limits.max_buffered_bodies * self._limits.body_bytes:
                    retry = {"Retry-After": "1"}
                    raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests at once", retry)
                body += chunk
                self._buffered_bytes += len(chunk)
            yield bytes(body)
        finally:
            self._buffered_bytes -= len(body)

    def _body_too_large(self) -> HTTPException:
        message = f"The body is longer than {self._limits.body_bytes} bytes"
        return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
