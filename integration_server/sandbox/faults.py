"""Faults: malformed responses, slow responses and broken connections.

Each is a value for `Behaviour.faults`. `replace(REDIRECT, status=302, handle_first=True)` makes a variant.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from integration_server.http_serving import reset_connection
from integration_server.sandbox.behaviour import Fault, Handler
from integration_server.sandbox.transport import wait_for_disconnect

_JSON: Final = {"Content-Type": "application/json"}

REDIRECT: Final = Fault(status=307, headers={"Location": "/redirect-target"})
"""A redirect to an endpoint of the sandbox; see `Sandbox.redirected_parameters`. After 307 a client repeats the whole
request."""

# "s3cret" stands for a part of a body that a client must neither show nor log.
HTML: Final = Fault(
    status=200,
    headers={"Content-Type": "text/html"},
    body=b"<!doctype html><title>Sign in</title><p>s3cret: sign in to this network first.",
)
BAD_GATEWAY: Final = replace(HTML, status=502)
EMPTY: Final = Fault(status=200, headers=_JSON)
BAD_JSON: Final = Fault(status=200, headers=_JSON, body=b'{"access_token": "s3cret", "expires_in": ')
JSON_ARRAY: Final = Fault(status=200, headers=_JSON, body=b'[{"access_token": "s3cret"}]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang(Fault):
    """No response until the client disconnects or the sandbox stops.

    Of the attributes of `Fault` only `handle_first` and `delay` apply.
    """

    async def respond(self, request: Request, handler: Handler) -> Response:
        await self.run_before_response(request, handler)
        await wait_for_disconnect(request)
        return Response()  # nobody receives it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(Hang):
    """The connection is reset instead of a response. Needs a real connection: `run_sandbox`.

    Of the attributes of `Fault` only `handle_first` and `delay` apply.
    """

    async def run_before_response(self, request: Request, handler: Handler) -> Response | None:
        response = await Fault.run_before_response(self, request, handler)
        reset_connection(request.state.transport)
        return response


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedFault(Fault):
    """A response whose body `stream` sends in parts. The response is the endpoint's own unless `status` is set."""

    async def respond(self, request: Request, handler: Handler) -> Response:
        response = await Fault.respond(self, request, handler)
        parts = self.stream(request, bytes(response.body))
        return StreamingResponse(parts, response.status_code, response.headers)

    def stream(self, request: Request, body: bytes) -> AsyncIterator[bytes]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetMidway(StreamedFault):
    """The headers and half of the body, then a reset. Needs a real connection: `run_sandbox`.

    Attributes:
        pause: seconds between the half and the reset, in which the client reads the half.
    """

    pause: float = 0.05

    async def stream(self, request: Request, body: bytes) -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        await asyncio.sleep(self.pause)
        reset_connection(request.state.transport)
        await asyncio.Event().wait()  # cancelled when the connection is closed


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowBody(StreamedFault):
    """The headers at once, then the body byte by byte.

    Attributes:
        pause: seconds after each byte.
    """

    pause: float = 1

    async def stream(self, request: Request, body: bytes) -> AsyncIterator[bytes]:
        for byte in body:
            yield bytes([byte])
            await asyncio.sleep(self.pause)


@dataclass(frozen=True, slots=True, kw_only=True)
class OversizedBody(Fault):
    """The body followed by spaces, which do not change its JSON value.

    The response is the endpoint's own unless `status` is set.

    Attributes:
        size: bytes of the decompressed body.
        gzip: send it compressed to a thousandth, whether the client accepts gzip or not.
    """

    size: int = 10 << 20
    gzip: bool = False

    async def respond(self, request: Request, handler: Handler) -> Response:
        response = await Fault.respond(self, request, handler)
        del response.headers["Content-Length"]
        body = self._body(bytes(response.body))
        if self.gzip:
            response.headers["Content-Encoding"] = "gzip"
            body = _compressed(body)
        return StreamingResponse(body, response.status_code, response.headers)

    async def _body(self, start: bytes) -> AsyncIterator[bytes]:
        yield start
        for left in range(self.size - len(start), 0, -_CHUNK):
            yield b" " * min(left, _CHUNK)


_CHUNK: Final = 1 << 16


async def _compressed(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    async for chunk in body:
        yield compressor.compress(chunk)
    yield compressor.flush()
