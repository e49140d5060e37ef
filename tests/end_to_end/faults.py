"""Ways in which the sandbox can be told to misbehave, beyond those that it knows itself."""

import asyncio
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from integration_server.sandbox import Fault, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Fault):
    """Answers when it is released, and as if nothing were wrong. With `work_first` only the answer is held."""

    arrivals: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def reached_by(self, requests: int) -> None:
        """Wait until so many are held."""
        for _ in range(requests):
            await self.arrivals.get()

    async def answer(self, request: Request, work: Work) -> Response:
        """Tell that the request is here, and wait."""
        done = await work(request) if self.work_first else None
        self.arrivals.put_nowait(None)
        await self.released.wait()
        return done or await work(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(Fault):
    """Answers as if nothing were wrong, and keeps the form that came."""

    forms: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: Request, work: Work) -> Response:
        """Keep the form, then do the work."""
        form = parse_qs((await request.body()).decode())
        self.forms.append({name: values[0] for name, values in form.items()})
        return await work(request)
