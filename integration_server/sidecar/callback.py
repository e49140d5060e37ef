"""Where providers send browsers back to: the redirect's query becomes one `HandleCallback`."""

from collections.abc import Awaitable
from http import HTTPStatus
from typing import Protocol

import grpc.aio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from integration_server.sidecar.error_mapping import to_http_error
from integration_server.sidecar.responses import Responses
from integrations.v1.integration_service_pb2 import HandleCallbackRequest, HandleCallbackResponse

# Seconds. The server gives a provider 10 to trade the code and 10 to name the account: giving up before it does
# would report a connection as failed that is about to be made.
DEADLINE = 25.0

# Bytes. Codes and states take some hundreds each, rarely a thousand or two.
MAX_QUERY = 8 * 1024

# There is no `user_id` among them, and there must never be: it says who is signed in, and that is not for a browser
# to say. Whoever has another finish a flow could put the right name in the link, and pass the finisher check.
_PARAMETERS = ("code", "state", "integration_type", "iss", "error", "error_description")


class HandleCallback(Protocol):
    """The RPC, as the generated stub has it."""

    def __call__(self, request: HandleCallbackRequest, *, timeout: float) -> Awaitable[HandleCallbackResponse]:
        """Raises `AioRpcError`. `timeout` is in seconds."""


class CallbackEndpoint:
    """Receives the redirect of an authorization response (RFC 6749 §4.1.2)."""

    def __init__(self, handle_callback: HandleCallback, responses: Responses) -> None:
        self._handle_callback = handle_callback
        self._responses = responses

    async def receive(self, request: Request) -> Response:
        """Answer a GET of the callback's path, with or without an integration type at its end."""
        try:
            outcome = await self._handle_callback(decode_callback(request), timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return self._responses.http_error(request, to_http_error(error))
        return self._responses.outcome(request, outcome)


def decode_callback(request: Request) -> HandleCallbackRequest:
    """The RPC's request. Raises `HTTPException` for a query that is too long, or repeats what it must not."""
    query: bytes = request.scope["query_string"]
    if len(query) > MAX_QUERY:
        raise HTTPException(HTTPStatus.REQUEST_URI_TOO_LONG, f"The query is longer than {MAX_QUERY} bytes")
    parameters = {name: _only_value(request, name) for name in _PARAMETERS}
    # The path is what the provider has registered; the query can be written by anyone.
    parameters.update(request.path_params)
    return HandleCallbackRequest(**parameters, query=query.decode("latin-1"))


def _only_value(request: Request, name: str) -> str:
    values = request.query_params.getlist(name)
    if len(values) > 1:
        # RFC 6749 §3.1: a parameter must not come more than once. Two readers might each believe another one.
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"The query has the parameter {name} more than once")
    return values[0] if values else ""
