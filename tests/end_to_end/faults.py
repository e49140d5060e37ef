"""Faults for the sandbox, in addition to those in `integration_server.sandbox`."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from integration_server.sandbox.behaviour import OMIT, Behaviour, Fault, Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldResponse(Fault):
    """Delays the normal response until `released` is set. With `handle_first` the request is handled before."""

    arrivals: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_for_requests(self, requests: int) -> None:
        """Wait until this many requests are held. Raises `TimeoutError` after two minutes."""
        async with asyncio.timeout(120):
            for _ in range(requests):
                await self.arrivals.get()

    async def respond(self, request: Request, handler: Handler) -> Response:
        """Record the arrival, and wait for the release."""
        response = await self.run_before_response(request, handler)
        self.arrivals.put_nowait(None)
        await self.released.wait()
        return response or await handler(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedForms(Fault):
    """Responds normally, and records the form of the request."""

    forms: list[dict[str, str]] = field(default_factory=list)

    async def respond(self, request: Request, handler: Handler) -> Response:
        """Record the form, then respond normally."""
        form = parse_qs((await request.body()).decode())
        self.forms.append({name: values[0] for name, values in form.items()})
        return await handler(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultByCase(Fault):
    """The token endpoint has one behaviour for each value of the query parameter `case`."""

    cases: Mapping[str, Behaviour]

    async def respond(self, request: Request, handler: Handler) -> Response:
        """Respond with the behaviour of the case."""
        behaviour = self.cases[request.query_params["case"]]
        fault = behaviour.faults.get("token")
        if fault is not None:
            return await fault.respond(request, handler)
        response = await handler(request)
        members = {**json.loads(bytes(response.body)), **behaviour.token_response}
        changed = {name: value for name, value in members.items() if value is not OMIT}
        return Response(json.dumps(changed), response.status_code, media_type="application/json")
