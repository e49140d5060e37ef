import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.message import Message
from google.rpc import code_pb2
from grpc_status import rpc_status
from structlog.testing import capture_logs

from integration_server.domain.errors import (
    AccountNotChosen,
    IntegrationServerError,
    InvalidField,
    ProviderRejected,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
    ReauthorizationRequired,
    ServerStopping,
    StoreUnavailable,
)
from integration_server.rpc.errors import Unauthenticated, status_of
from integration_server.rpc.interceptors import convert_errors
from integration_server.rpc.methods import Behavior, Context, Method
from integrations.v1.error_reason_pb2 import ErrorReason
from tests.fakes.errors import EVERY_ERROR, error_classes
from tests.fakes.inmemory_grpc import FakeContext, InMemoryGrpc, RpcError
from tests.fakes.system import FakeSystem
from tests.unit.rpc.requests import good

CODES = {
    "INTEGRATION_NOT_FOUND": "NOT_FOUND",
    "UNKNOWN_INTEGRATION_TYPE": "INVALID_ARGUMENT",
    "PROVIDER_NOT_CONFIGURED": "FAILED_PRECONDITION",
    "STATE_INVALID": "INVALID_ARGUMENT",
    "STATE_EXPIRED": "FAILED_PRECONDITION",
    "STATE_USED": "FAILED_PRECONDITION",
    "REDIRECT_URI_NOT_ALLOWED": "INVALID_ARGUMENT",
    "USER_MISMATCH": "PERMISSION_DENIED",
    "ISSUER_MISMATCH": "INVALID_ARGUMENT",
    "ACCOUNT_MISMATCH": "FAILED_PRECONDITION",
    "CONFIRMATION_INVALID": "INVALID_ARGUMENT",
    "INVALID_FIELD": "INVALID_ARGUMENT",
    "INTEGRATION_PENDING": "FAILED_PRECONDITION",
    "PROVIDER_MISCONFIGURED": "UNAVAILABLE",
    "STORE_UNAVAILABLE": "UNAVAILABLE",
    "QUOTA_EXCEEDED": "RESOURCE_EXHAUSTED",
    "REAUTHORIZATION_REQUIRED": "FAILED_PRECONDITION",
    "SCOPE_MISSING": "FAILED_PRECONDITION",
    "INTEGRATION_INACTIVE": "FAILED_PRECONDITION",
    "PROVIDER_UNAVAILABLE": "UNAVAILABLE",
    "PROVIDER_REJECTED": "FAILED_PRECONDITION",
    "CREDENTIALS_UNREADABLE": "DATA_LOSS",
    "CALLER_NOT_ALLOWED": "PERMISSION_DENIED",
    "CURSOR_EXPIRED": "FAILED_PRECONDITION",
    "WEBHOOKS_NOT_SUPPORTED": "FAILED_PRECONDITION",
    "SERVER_STOPPING": "UNAVAILABLE",
    "API_NOT_DECLARED": "FAILED_PRECONDITION",
    "RATE_LIMITED": "RESOURCE_EXHAUSTED",
    "ANSWER_TOO_LARGE": "RESOURCE_EXHAUSTED",
    "RESOURCE_NOT_FOUND": "NOT_FOUND",
    "RESOURCE_ALREADY_EXISTS": "ALREADY_EXISTS",
    "ETAG_MISMATCH": "ABORTED",
    "SYNC_TOKEN_EXPIRED": "FAILED_PRECONDITION",
    "ACCOUNT_NOT_CHOSEN": "FAILED_PRECONDITION",
    "OAUTH_CLIENT_IN_USE": "FAILED_PRECONDITION",
    "OAUTH_CLIENT_NOT_FOUND": "NOT_FOUND",
}


METHOD = Method("/service/Method")
STREAM = Method("/service/Method", streams_responses=True)


def decode_status(error: IntegrationServerError) -> RpcError:
    """Return the error as a client gets it."""
    status = rpc_status.to_status(status_of(error))
    return RpcError(status.code, status.details, status.trailing_metadata)


async def rejection(error: BaseException, caller: str = "") -> RpcError:
    """Return the status that a client gets when a behavior raises `error`."""

    async def behavior(request: object, context: object) -> None:
        raise error

    context = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await convert_errors(lambda _context: caller)(METHOD, behavior)(Message(), context)
    assert context.error is not None
    return context.error


# --- memory --------------------------------------------------------------------------------------------------------


class Secret:
    """What a call has read."""


class KeepingContext(FakeContext):
    """Keeps the error that ends the call, as gRPC does, which raises it again."""

    aborted: grpc.aio.AbortError

    async def abort(self, *status: Any) -> None:
        """End the call."""
        try:
            await super().abort(*status)
        except grpc.aio.AbortError as error:
            self.aborted = error
            raise


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only what nothing refers to is freed."""
    gc.disable()
    yield
    gc.enable()


async def frees_what_it_read(call: Callable[[Behavior, Context], Awaitable[object]]) -> bool:
    """Whether what a failed call has read is freed when the call has ended."""
    read: list[weakref.ref[Secret]] = []

    async def load(secret: Secret) -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(KeyError(secret))
        await future

    async def behavior(_request: object, _context: object) -> None:
        secret = Secret()
        read.append(weakref.ref(secret))
        try:
            await load(secret)
        except KeyError as error:
            raise StoreUnavailable from error

    context: Any = KeepingContext()
    with pytest.raises(grpc.aio.AbortError):
        await call(behavior, context)
    assert context.aborted is not None
    return read[0]() is None


@pytest.mark.usefixtures("no_collection")
async def test_what_a_failed_call_has_read_is_freed_with_the_call() -> None:
    assert await frees_what_it_read(lambda behavior, context: convert_errors()(METHOD, behavior)(Message(), context))


@pytest.mark.usefixtures("no_collection")
async def test_negative_control_an_error_that_keeps_its_frames_keeps_what_was_read() -> None:
    async def abort_only(behavior: Behavior, context: Context) -> None:
        try:
            await behavior(Message(), context)
        except StoreUnavailable:
            await context.abort(grpc.StatusCode.UNAVAILABLE)

    assert not await frees_what_it_read(abort_only)


async def test_calls_that_share_an_error_all_report_the_code_of_the_provider() -> None:
    cause = ProviderRejected("the refresh token")
    cause.provider_reason = "consent_revoked"
    cause.__cause__ = KeyError("what a frame has")
    shared = ReauthorizationRequired()
    shared.__cause__ = cause
    reported = [(await rejection(shared)).info.metadata["provider_reason"] for _ in range(2)]
    assert reported == ["consent_revoked"] * 2
    assert [one for one in (shared.__traceback__, cause.__traceback__, cause.__cause__) if one is not None] == []


async def test_an_error_among_its_own_causes_ends_the_call() -> None:
    error, cause = ReauthorizationRequired(), ProviderRejected("the refresh token")
    error.__cause__, cause.__cause__ = cause, error
    assert (await rejection(error)).reason == ReauthorizationRequired.reason


# --- statuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.reason)
def test_an_error_has_its_code_reason_and_domain(error: IntegrationServerError) -> None:
    rejected = decode_status(error)
    assert rejected.code.name == CODES[error.reason]
    assert (rejected.info.reason, rejected.info.domain) == (error.reason, "integrations.v1")
    assert rejected.message == str(error)


def test_the_contract_names_every_reason_and_no_other() -> None:
    named = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert named == {kind.reason for kind in error_classes()} == set(CODES)


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.reason)
def test_an_error_has_only_the_details_that_apply_to_it(error: IntegrationServerError) -> None:
    expected = ["ErrorInfo"]
    if isinstance(error, InvalidField | AccountNotChosen):
        expected.append("BadRequest")
    if isinstance(error, (StoreUnavailable, ProviderUnavailable, QuotaExceeded, ServerStopping, RateLimited)):
        expected.append("RetryInfo")
    assert decode_status(error).kinds == expected


def test_an_invalid_field_is_named_and_described() -> None:
    rejected = decode_status(InvalidField("page_size", "is negative"))
    assert rejected.fields == ["page_size"]
    assert rejected.message == "page_size is negative"


def test_the_fields_with_rejected_credentials_are_named() -> None:
    error = ProviderRejected("credentials")
    assert decode_status(error).kinds == ["ErrorInfo"]
    error.rejected_fields = ("secret_fields.username", "secret_fields.password")
    assert decode_status(error).fields == ["secret_fields.username", "secret_fields.password"]


def test_a_retry_delay_is_reported_where_it_is_known() -> None:
    assert decode_status(StoreUnavailable()).retry.retry_delay.ToTimedelta() == timedelta(seconds=1)
    said = decode_status(ProviderUnavailable(retry_after=timedelta(seconds=7)))
    assert said.retry.retry_delay.ToTimedelta() == timedelta(seconds=7)
    assert decode_status(ProviderUnavailable()).kinds == ["ErrorInfo"]


def test_a_subclass_from_another_package_has_the_status_of_its_base() -> None:
    class Throttled(ProviderUnavailable):
        pass

    assert decode_status(Throttled()).wire == decode_status(ProviderUnavailable()).wire


# --- the interceptor -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.reason)
async def test_an_error_becomes_its_status(error: IntegrationServerError) -> None:
    assert (await rejection(error)).wire == decode_status(error).wire


@pytest.mark.parametrize("error", [RuntimeError("hush-hush"), KeyError("hush-hush"), TimeoutError("hush-hush")])
async def test_an_unhandled_exception_reveals_nothing(error: Exception) -> None:
    error.__cause__ = ValueError("hush-hush")
    structlog.reset_defaults()
    with capture_logs() as logs:
        rejected = await rejection(error)
    assert (rejected.code, rejected.message) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "hush" not in str(rejected.wire)

    (line,) = logs
    assert (line["event"], line["log_level"], line["kind"]) == ("unhandled_exception", "error", type(error).__name__)
    assert line["method"] == "/service/Method"
    assert "test_errors.py" in line["stack"]
    assert "hush" not in str(line)


async def test_a_rejection_is_logged_with_its_reason() -> None:
    structlog.reset_defaults()
    with capture_logs() as logs:
        await rejection(InvalidField("name", "is too long"))
    assert logs == [
        {"event": "rpc_rejected", "log_level": "info", "method": "/service/Method", "reason": "INVALID_FIELD"}
    ]


async def test_a_status_that_a_handler_sets_itself_is_kept() -> None:
    async def behavior(request: object, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")

    structlog.reset_defaults()
    context = FakeContext()
    with capture_logs() as logs, pytest.raises(grpc.aio.AbortError):
        await convert_errors()(METHOD, behavior)(Message(), context)
    assert context.error is not None
    assert context.error.code is grpc.StatusCode.NOT_FOUND
    assert not logs


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("error", [InvalidField("cursor", "is old"), RuntimeError("hush-hush")], ids=repr)
async def test_an_error_ends_a_stream_with_its_status(error: Exception, before: int) -> None:
    closed = []

    async def stream(request: object, context: object) -> AsyncIterator[int]:
        try:
            for number in range(before):
                yield number
            raise error
        finally:
            closed.append(True)

    context = FakeContext()
    responses = convert_errors()(STREAM, stream)(Message(), context)
    assert [await anext(responses) for _ in range(before)] == list(range(before))
    with pytest.raises(grpc.aio.AbortError):
        await anext(responses)
    assert closed
    assert context.error is not None
    is_ours = isinstance(error, InvalidField)
    assert context.error.code is (grpc.StatusCode.INVALID_ARGUMENT if is_ours else grpc.StatusCode.INTERNAL)
    assert "hush" not in str(context.error.wire)


async def test_an_unauthenticated_caller_gets_no_details() -> None:
    structlog.reset_defaults()
    with capture_logs() as logs:
        rejected = await rejection(Unauthenticated("the token is forged"))
    assert rejected.wire == (grpc.StatusCode.UNAUTHENTICATED, "the caller is not known", ())
    assert [(line["event"], line["method"], line["problem"]) for line in logs] == [
        ("unauthenticated", METHOD.path, "the token is forged")
    ]


async def test_a_rejection_names_its_caller_in_the_log() -> None:
    structlog.reset_defaults()
    with capture_logs() as logs:
        await rejection(InvalidField("name", "is too long"), caller="calendar-sync")
    assert logs[0]["caller"] == "calendar-sync"


async def test_a_bug_in_a_provider_is_not_revealed_to_callers(client: InMemoryGrpc, system: FakeSystem) -> None:
    system.provider.exchange_error = RuntimeError("token hush-hush")
    state = (await system.begin()).state
    with pytest.raises(RpcError) as rejected:
        await client.call("HandleCallback", good("HandleCallback", state=state))
    assert rejected.value.code is grpc.StatusCode.INTERNAL
    assert "hush" not in str(rejected.value.wire)


async def test_an_unavailable_database_is_reported_with_a_retry_delay(client: InMemoryGrpc, system: FakeSystem) -> None:
    system.database.is_unavailable = True
    with pytest.raises(RpcError) as rejected:
        await client.call("GetIntegration", good("GetIntegration"))
    assert (rejected.value.code, rejected.value.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert rejected.value.retry.retry_delay.ToTimedelta() > timedelta(0)


def test_a_user_over_a_quota_is_told_the_setting_and_not_to_wait() -> None:
    status = status_of(QuotaExceeded.of_user("USER_MAX_INTEGRATIONS", "this user has 5 integrations"))
    assert (status.code, status.message) == (
        code_pb2.RESOURCE_EXHAUSTED,
        "this user has 5 integrations (USER_MAX_INTEGRATIONS)",
    )
    assert [detail.type_url.rpartition(".")[2] for detail in status.details] == ["ErrorInfo"]
