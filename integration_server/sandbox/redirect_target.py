"""Where a redirect leads: remembers what clients that follow one bring along."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from integration_server.sandbox.parameters import Parameters
from integration_server.sandbox.state import Sandbox


class RedirectTarget:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def record(self, request: Request) -> Response:
        parameter_names = set(Parameters.decode(await request.body()).values)
        if "authorization" in request.headers:
            parameter_names.add("authorization")
        self._sandbox.redirected_parameters.append(frozenset(parameter_names))
        return JSONResponse({})
