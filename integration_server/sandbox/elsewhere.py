"""Where a redirect leads: remembers what clients that follow one bring along."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from integration_server.sandbox.parameters import Parameters
from integration_server.sandbox.state import Sandbox


class Elsewhere:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def note(self, request: Request) -> Response:
        brought = set(Parameters.decode(await request.body()).values)
        if "authorization" in request.headers:
            brought.add("authorization")
        self._sandbox.brought_elsewhere.append(frozenset(brought))
        return JSONResponse({})
