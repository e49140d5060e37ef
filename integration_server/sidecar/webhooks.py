"""Where providers tell of what happens by themselves: each request becomes one `ReceiveWebhook`, byte for byte."""

from collections.abc import Awaitable
from dataclasses import replace
from http import HTTPStatus
from typing import Protocol

import grpc.aio
from starlette.requests import Request
from starlette.responses import Response

from integration_server.sidecar.answers import Answers
from integration_server.sidecar.failures import Failure, failure_of
from integrations.v1.integration_service_pb2 import ReceiveWebhookRequest, ReceiveWebhookResponse
from integrations.v1.webhook_pb2 import WebhookHeader

# Seconds. Most providers wait for as long at most, and send again what was not answered.
DEADLINE = 10.0

# Seconds after which to send again what could not be stored.
RETRY_AFTER = 5

_COME_AGAIN = frozenset({HTTPStatus.GATEWAY_TIMEOUT, HTTPStatus.SERVICE_UNAVAILABLE})


class ReceiveWebhook(Protocol):
    """The RPC, as the generated stub has it."""

    def __call__(self, request: ReceiveWebhookRequest, *, timeout: float) -> Awaitable[ReceiveWebhookResponse]:
        """Raises `AioRpcError`. `timeout` is in seconds."""


class WebhookEndpoint:
    """Receives webhooks. What is not stored is never answered with success."""

    def __init__(self, receive_webhook: ReceiveWebhook, answers: Answers, public_url: str) -> None:
        self._receive_webhook = receive_webhook
        self._answers = answers
        self._public_url = public_url.removesuffix("/")

    async def receive(self, request: Request) -> Response:
        """Answer a request with what the server says."""
        try:
            answer = await self._receive_webhook(await self._decoded(request), timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return self._answers.failure(request, _failure_of(error))
        response = Response(answer.body, answer.status_code, media_type="text/plain")
        for header in answer.headers:
            response.headers[header.name] = header.value.decode("latin-1")
        return response

    async def _decoded(self, request: Request) -> ReceiveWebhookRequest:
        return ReceiveWebhookRequest(
            **request.path_params,
            headers=[WebhookHeader(name=name.decode("latin-1"), value=value) for name, value in request.headers.raw],
            body=await request.body(),
            url=self._url_of(request),
            method=request.method,
        )

    def _url_of(self, request: Request) -> str:
        """What the provider called, which may be signed; not what a proxy has made of it."""
        path, query = request.scope["raw_path"].decode("latin-1"), request.scope["query_string"].decode("latin-1")
        return f"{self._public_url}{path}?{query}" if query else f"{self._public_url}{path}"


def _failure_of(error: grpc.aio.AioRpcError) -> Failure:
    failure = failure_of(error)
    if failure.status not in _COME_AGAIN:
        return failure
    # However long the server may be away: a provider that is told to come again does, and others may give up.
    retry_after = failure.retry_after or RETRY_AFTER
    return replace(failure, status=HTTPStatus.SERVICE_UNAVAILABLE, retry_after=retry_after)
