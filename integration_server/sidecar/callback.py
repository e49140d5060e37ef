"""The OAuth callback endpoint: converts the query of a redirect into one `HandleCallback` RPC."""

from http import HTTPStatus

import grpc.aio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from integration_server.sidecar.error_mapping import to_http_error
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.middleware import mark_verified
from integration_server.sidecar.responses import Responses
from integrations.v1.integration_service_pb2 import HandleCallbackRequest

# Seconds. The server gives a provider 10 s to exchange the code and 10 s to name the account. A shorter deadline would
# report a failure for a connection that then succeeds.
DEADLINE = 25.0

# Bytes. Codes and states have some hundred bytes each, rarely one or two thousand.
MAX_QUERY = 8 * 1024

# `user_id` must never be added: it states which user is signed in, and a browser cannot be trusted to state that. An
# attacker who has a victim finish the attacker's flow could put the victim's name in the link and pass the user check.
_PARAMETERS = ("code", "state", "integration_type", "iss", "error", "error_description")


class CallbackReceiver:
    """Receives the redirect with an authorization response (RFC 6749 §4.1.2)."""

    def __init__(self, server: ServerClient, responses: Responses) -> None:
        self._server = server
        self._responses = responses

    async def receive(self, request: Request) -> Response:
        """Handle a GET of the callback path, with or without an integration type at its end."""
        try:
            result = await self._server.handle_callback(decode_callback(request), timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return self._responses.http_error(request, to_http_error(error))
        mark_verified(request.scope)  # the server has decrypted the state
        return self._responses.callback_result(request, result)


def decode_callback(request: Request) -> HandleCallbackRequest:
    """The RPC's request. Raises `HTTPException` if the query is too long or repeats a parameter."""
    query: bytes = request.scope["query_string"]
    if len(query) > MAX_QUERY:
        raise HTTPException(HTTPStatus.REQUEST_URI_TOO_LONG, f"The query is longer than {MAX_QUERY} bytes")
    parameters = {name: _single_value(request, name) for name in _PARAMETERS}
    # The path is registered at the provider, while anybody can write the query.
    parameters.update(request.path_params)
    return HandleCallbackRequest(**parameters, query=query.decode("latin-1"))


def _single_value(request: Request, name: str) -> str:
    values = request.query_params.getlist(name)
    if len(values) > 1:
        # RFC 6749 §3.1: a parameter must not be repeated. Two readers could each take another value.
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"The query has the parameter {name} more than once")
    return values[0] if values else ""
