"""Faults beyond `Fault` itself: answers that are none, and connections that break.

Each is a value for `Behaviour.faults`; `replace(REDIRECT, status=302, work_first=True)` varies one.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from integration_server.sandbox.behaviour import Fault, Work
from integration_server.sandbox.connections import reset, wait_for_end

_JSON: Final = {"Content-Type": "application/json"}

REDIRECT: Final = Fault(status=307, headers={"Location": "/elsewhere"})
"""To an endpoint of the sandbox's own; see `Sandbox.brought_elsewhere`. 307 has clients repeat the whole request."""

# "s3cret" stands for what a client must neither show nor log of a body.
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
    """No answer, not even its headers, until the client leaves or the sandbox stops.

    Of `Fault`'s switches only `work_first` and `delay` mean something here.
    """

    async def answer(self, request: Request, work: Work) -> Response:
        await self.begin(request, work)
        await wait_for_end(request)
        return Response()  # goes nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(Fault):
    """The connection is reset in place of an answer. Needs a real connection: `run_sandbox`.

    Of `Fault`'s switches only `work_first` and `delay` mean something here.
    """

    async def answer(self, request: Request, work: Work) -> Response:
        await self.begin(request, work)
        reset(request)
        await wait_for_end(request)
        return Response()  # goes nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetMidway(Fault):
    """The headers and half of the body, and then a reset. Needs a real connection: `run_sandbox`.

    As with a mere delay, it is the endpoint's own answer that breaks, unless `status` says another.

    Attributes:
        pause: seconds between the half and the reset, which would overtake what is not yet read.
    """

    pause: float = 0.05

    async def answer(self, request: Request, work: Work) -> Response:
        whole = await Fault.answer(self, request, work)

        async def half() -> AsyncIterator[bytes]:
            yield bytes(whole.body[: len(whole.body) // 2])
            await asyncio.sleep(self.pause)
            reset(request)
            await asyncio.Event().wait()  # what streams this ends when it sees that the connection is gone

        return StreamingResponse(half(), whole.status_code, whole.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drip(Fault):
    """The headers at once, and then the body byte by byte.

    It is the endpoint's own answer that drips, unless `status` says another.

    Attributes:
        pause: seconds after each byte.
    """

    pause: float = 1

    async def answer(self, request: Request, work: Work) -> Response:
        whole = await Fault.answer(self, request, work)

        async def drops() -> AsyncIterator[bytes]:
            for byte in bytes(whole.body):
                yield bytes([byte])
                await asyncio.sleep(self.pause)

        return StreamingResponse(drops(), whole.status_code, whole.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bloated(Fault):
    """The body with spaces behind it, which leave JSON what it was.

    It is the endpoint's own answer that is bloated, unless `status` says another.

    Attributes:
        size: bytes of the body as the client should see it.
        gzip: send it compressed, in a thousandth of its size, whether the client accepts that or not.
    """

    size: int = 10 << 20
    gzip: bool = False

    async def answer(self, request: Request, work: Work) -> Response:
        whole = await Fault.answer(self, request, work)
        del whole.headers["Content-Length"]
        body = self._body(bytes(whole.body))
        if self.gzip:
            whole.headers["Content-Encoding"] = "gzip"
            body = _compressed(body)
        return StreamingResponse(body, whole.status_code, whole.headers)

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
