"""Why a request has no good answer: gRPC's statuses in HTTP's terms."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.rpc import error_details_pb2
from grpc_status import rpc_status

DOMAIN = "integrations.v1"

# As google/rpc/code.proto pairs them. What is not here is a fault on our side, whatever it is called: nobody who is
# out there can do anything about this process being unknown to the server.
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
    """What to tell the caller. `message` is safe to show; `retry_after` is seconds, set where waiting helps."""

    status: HTTPStatus
    reason: str
    message: str
    retry_after: int | None = None


INTERNAL_ERROR = HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL", HTTPStatus.INTERNAL_SERVER_ERROR.phrase)


def to_http_error(error: grpc.aio.AioRpcError) -> HttpError:
    """The failure that a failed call means.

    Only what carries an `ErrorInfo` of ours is passed on in its own words; gRPC's own errors name addresses.
    """
    status = _STATUSES.get(error.code(), HTTPStatus.INTERNAL_SERVER_ERROR)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in _error_details(error):
        if not detail.Unpack(info):
            detail.Unpack(retry)
    retry_after = _whole_seconds(retry) if retry.HasField("retry_delay") else None
    if info.reason == "CALLER_NOT_ALLOWED":
        return INTERNAL_ERROR  # it is this process that the policy does not know, not the browser
    if info.domain == DOMAIN:
        return HttpError(status, info.reason, error.details() or status.phrase, retry_after)
    return HttpError(status, error.code().name, status.phrase, retry_after)


def _error_details(error: grpc.aio.AioRpcError) -> Iterable[PackedMessage]:
    try:
        # Made for `grpc.Call`; of its methods it uses three, which an `AioRpcError` has too.
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:  # a proxy between here and the server has changed the code or message
        return ()
    return status.details if status else ()


def _whole_seconds(retry: error_details_pb2.RetryInfo) -> int:
    # RFC 9110 §10.2.3: Retry-After has no fractions; rounded down, it would ask for a call that is too early.
    return max(1, math.ceil(retry.retry_delay.ToTimedelta().total_seconds()))
