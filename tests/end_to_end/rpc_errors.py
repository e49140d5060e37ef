"""RPC errors as a client reads them: the status and its standard details."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

DOMAIN = "integrations.v1"

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@dataclass(frozen=True, slots=True)
class RpcError:
    """The error of a failed call. `message` is for people and is not compared."""

    code: grpc.StatusCode
    reason: str
    fields: tuple[str, ...] = ()
    retry_delay: timedelta | None = None
    message: str = field(default="", compare=False)


def invalid(name: str) -> RpcError:
    """The error for an invalid field."""
    return RpcError(INVALID_ARGUMENT, "INVALID_FIELD", (name,))


NOT_FOUND = RpcError(grpc.StatusCode.NOT_FOUND, "INTEGRATION_NOT_FOUND")


async def expect_rpc_error(call: Awaitable[Any]) -> RpcError:
    """The error of the call. The test fails if the call succeeds, or fails without our details."""
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return parse_rpc_error(cast(grpc.aio.AioRpcError, raised.value))  # gRPC's own client raises one that is like it


def parse_rpc_error(error: grpc.aio.AioRpcError) -> RpcError:
    """The error's parts."""
    # Typed for `grpc.Call`; it uses three methods, which an `AioRpcError` has too.
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None, f"no details: {error.code()} {error.details()}"
    info, wrong, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(wrong) or detail.Unpack(retry)
    assert info.domain == DOMAIN
    return RpcError(
        error.code(),
        info.reason,
        tuple(violation.field for violation in wrong.field_violations),
        retry.retry_delay.ToTimedelta() if retry.HasField("retry_delay") else None,
        error.details() or "",
    )
