"""Conversion of gRPC statuses to HTTP errors."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# As in google/rpc/code.proto. Any other code is an error of this system, and not of the caller: for example, a browser
# can do nothing about a sidecar that the server does not authenticate.
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error response. `message` is safe to show; `retry_after` is in seconds, None where a retry does not help.

    `redirect_url` is where a browser can continue, `display_name` the provider's name, and `page` the page to show if
    neither the reason nor the status decides it; each is empty if there is none.
    """

    status: HTTPStatus
    reason: str
    message: str
    retry_after: int | None = None
    redirect_url: str = ""
    display_name: str = ""
    page: str = ""


INTERNAL_ERROR = HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL", HTTPStatus.INTERNAL_SERVER_ERROR.phrase)


def to_http_error(error: grpc.aio.AioRpcError) -> HttpError:
    """The HTTP error for a failed RPC.

    Only an error with an `ErrorInfo` of the server keeps its message. gRPC's own messages contain addresses.
    """
    status = _STATUSES.get(error.code(), HTTPStatus.INTERNAL_SERVER_ERROR)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in _error_details(error):
        if not detail.Unpack(info):
            detail.Unpack(retry)
    retry_after = None
    if retry.HasField("retry_delay"):
        # RFC 9110 §10.2.3: Retry-After has no fractions. Rounding down would ask for a retry that is too early.
        retry_after = max(1, math.ceil(retry.retry_delay.ToTimedelta().total_seconds()))
    if info.reason == "CALLER_NOT_ALLOWED":
        return INTERNAL_ERROR  # the server denied permission to the sidecar, not to the browser
    if info.domain == "integrations.v1":
        return HttpError(
            status,
            info.reason,
            error.details() or status.phrase,
            retry_after,
            redirect_url=info.metadata.get("redirect_url", ""),
            display_name=info.metadata.get("display_name", ""),
        )
    return HttpError(status, error.code().name, status.phrase, retry_after)


def _error_details(error: grpc.aio.AioRpcError) -> Iterable[PackedMessage]:
    try:
        # `from_call` is typed for `grpc.Call`. It uses three methods, which `AioRpcError` has too.
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:  # an intermediary has changed the code or the message
        return ()
    return status.details if status else ()
