"""A fake gRPC server for the sidecar's app."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_status import rpc_status
from starlette.applications import Starlette
from starlette.types import ASGIApp

from integration_server.domain.peers import TrustedProxies, parse_networks
from integration_server.logs import new_access_log
from integration_server.sidecar.app import create_app, create_endpoints
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar.middleware import AnonymousLimits
from integration_server.sidecar.pages import ResultPages
from integrations.v1.integration_service_pb2 import (
    HandleCallbackRequest,
    HandleCallbackResponse,
    ReceiveWebhookRequest,
    ReceiveWebhookResponse,
)
from tests.fakes.limits import LIMITS

PUBLIC_URL = "https://public.example"

_T = TypeVar("_T")


@dataclass
class FakeServer(ServerClient):
    """Returns the configured response of each RPC, or raises it if it is an exception."""

    callback_response: HandleCallbackResponse | Exception = field(
        default_factory=lambda: HandleCallbackResponse(success=True, integration_id=123)
    )
    health_response: HealthCheckResponse | Exception = field(
        default_factory=lambda: HealthCheckResponse(status=HealthCheckResponse.SERVING)
    )
    webhook_response: ReceiveWebhookResponse | Exception = field(
        default_factory=lambda: ReceiveWebhookResponse(status_code=200, verified=True)
    )
    callbacks: list[HandleCallbackRequest] = field(default_factory=list)
    webhooks: list[ReceiveWebhookRequest] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)

    async def handle_callback(self, request: HandleCallbackRequest, *, timeout: float) -> HandleCallbackResponse:
        self.callbacks.append(request)
        self.deadlines.append(timeout)
        return _return_or_raise(self.callback_response)

    async def receive_webhook(self, request: ReceiveWebhookRequest, *, timeout: float) -> ReceiveWebhookResponse:
        self.webhooks.append(request)
        self.deadlines.append(timeout)
        return _return_or_raise(self.webhook_response)

    async def check_health(self, request: HealthCheckRequest, *, timeout: float) -> HealthCheckResponse:
        assert not request.service
        self.deadlines.append(timeout)
        return _return_or_raise(self.health_response)

    async def aclose(self) -> None:
        """There is nothing to close."""

    def app(self, limits: HttpLimits = LIMITS, proxies: str = "", default_return_url: str | None = None) -> ASGIApp:
        """The sidecar's app over this server."""
        anonymous = _anonymous_limits(limits, proxies)
        return create_app(self, limits, PUBLIC_URL, anonymous, default_return_url, access_log=new_access_log())

    def endpoints(self, limits: HttpLimits = LIMITS) -> Starlette:
        """The app without the probes."""
        return create_endpoints(self, limits, PUBLIC_URL, ResultPages(), _anonymous_limits(limits), {})


def _anonymous_limits(limits: HttpLimits, proxies: str = "") -> AnonymousLimits:
    return AnonymousLimits(limits, TrustedProxies(parse_networks(proxies)))


def _return_or_raise(rpc_response: _T | Exception) -> _T:
    if isinstance(rpc_response, Exception):
        raise rpc_response
    return rpc_response


def rpc_error(
    code: grpc.StatusCode,
    reason: str = "",
    message: str = "the message of the server",
    *,
    retry_seconds: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> grpc.aio.AioRpcError:
    """The error of a stub: with details of the server if `reason` is set, else an error of gRPC itself."""
    if not reason:
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), message)
    rich = rich_status(code, reason, message, retry_seconds=retry_seconds, metadata=metadata)
    status = rpc_status.to_status(rich)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), message)


def rich_status(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    retry_seconds: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="integrations.v1", metadata=metadata)
    details: list[Message] = [info]
    if retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_seconds * 1000))
        details.append(retry)
    return status_pb2.Status(code=code.value[0], message=message, details=map(_packed, details))


def _packed(message: Message) -> PackedMessage:
    packed = PackedMessage()
    packed.Pack(message)
    return packed
