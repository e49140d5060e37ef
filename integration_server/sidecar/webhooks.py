"""The webhook endpoint: forwards each request unchanged as one `ReceiveWebhook` RPC."""

from dataclasses import replace
from http import HTTPStatus

import grpc.aio
from starlette.requests import Request
from starlette.responses import Response

from integration_server.sidecar.bodies import BodyReader
from integration_server.sidecar.error_mapping import HttpError, to_http_error
from integration_server.sidecar.error_responses import ErrorResponses
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.middleware import mark_verified
from integrations.v1.integration_service_pb2 import ReceiveWebhookRequest
from integrations.v1.webhook_pb2 import WebhookHeader

# Seconds. Most providers wait no longer, and retry a delivery that got no response.
DEADLINE = 10.0

# Seconds until a provider should retry a delivery that could not be stored.
RETRY_AFTER = 5

_RETRYABLE_STATUSES = frozenset({HTTPStatus.GATEWAY_TIMEOUT, HTTPStatus.SERVICE_UNAVAILABLE})


class WebhookReceiver:
    """Receives webhooks. A delivery that is not stored never gets a success status."""

    def __init__(self, server: ServerClient, errors: ErrorResponses, public_url: str, bodies: BodyReader) -> None:
        self._server = server
        self._errors = errors
        self._bodies = bodies
        self._public_url = public_url.removesuffix("/")

    async def receive(self, request: Request) -> Response:
        """Respond to a delivery or handshake as the server says."""
        try:
            async with self._bodies.read(request) as body:
                rpc_response = await self._server.receive_webhook(self._decode(request, body), timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return self._errors.http_error(request, _to_retryable_error(error))
        if rpc_response.verified:
            mark_verified(request.scope)
        response = Response(rpc_response.body, rpc_response.status_code, media_type="text/plain")
        for header in rpc_response.headers:
            response.headers[header.name] = header.value.decode("latin-1")
        return response

    def _decode(self, request: Request, body: bytes) -> ReceiveWebhookRequest:
        return ReceiveWebhookRequest(
            **request.path_params,
            headers=[WebhookHeader(name=name.decode("latin-1"), value=value) for name, value in request.headers.raw],
            body=body,
            url=self._called_url(request),
            method=request.method,
        )

    def _called_url(self, request: Request) -> str:
        """The URL that the provider called, which it may have signed. A reverse proxy may have changed the host."""
        path, query = request.scope["raw_path"].decode("latin-1"), request.scope["query_string"].decode("latin-1")
        return f"{self._public_url}{path}?{query}" if query else f"{self._public_url}{path}"


def _to_retryable_error(error: grpc.aio.AioRpcError) -> HttpError:
    http_error = to_http_error(error)
    if http_error.status not in _RETRYABLE_STATUSES:
        return http_error
    # Providers retry after 503 with Retry-After; some give up after other statuses.
    retry_after = http_error.retry_after or RETRY_AFTER
    return replace(http_error, status=HTTPStatus.SERVICE_UNAVAILABLE, retry_after=retry_after)
