"""Calls that do not succeed: a client that is gone is only counted, and the number of log lines is bounded."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from integration_server.domain.errors import InvalidField
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.errors import Unauthenticated
from integration_server.rpc.interceptors import convert_errors
from integration_server.rpc.methods import Method
from tests.fakes.inmemory_grpc import FakeContext

METHOD = Method("/service/Method")
STREAM = Method("/service/Stream", streams_responses=True)


class Calls:
    """Calls of a behavior that raises, over a call log whose time tests set."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.log = CallLog(lambda: self.now)

    async def fail(self, error: BaseException, context: FakeContext, method: Method = METHOD) -> None:
        async def behavior(_request: object, _context: Any) -> None:
            raise error

        await convert_errors(lambda _: "sync", self.log)(method, behavior)(Message(), context)

    async def rejected(self, error: Exception, *, peer: str = "ipv4:10.0.0.1:1", method: Method = METHOD) -> None:
        with pytest.raises(grpc.aio.AbortError):
            await self.fail(error, FakeContext(peer=peer), method)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


# --- clients that are gone -------------------------------------------------------------------------------------------


async def test_an_operation_on_a_call_whose_client_is_gone_is_only_counted(calls: Calls, logs: list[Any]) -> None:
    await calls.fail(grpc.aio.InternalError("Failed"), FakeContext(is_client_gone=True))

    assert calls.log.counts == {"client_gone": 1}
    assert not logs


async def test_a_status_that_cannot_be_sent_is_no_fault(calls: Calls, logs: list[Any]) -> None:
    await calls.fail(InvalidField("request", "is missing"), FakeContext(is_client_gone=True))

    assert calls.log.counts == {"client_gone": 1, "rpc_rejected": 1}
    assert [entry["event"] for entry in logs] == ["rpc_rejected"]


async def test_a_cancelled_call_is_counted_and_stays_cancelled(calls: Calls, logs: list[Any]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await calls.fail(asyncio.CancelledError(), FakeContext())

    assert calls.log.counts == {"client_gone": 1}
    assert not logs


async def test_a_stream_that_its_client_leaves_is_counted(calls: Calls, logs: list[Any]) -> None:
    async def behavior(_request: object, _context: Any) -> AsyncIterator[int]:
        while True:
            yield 1

    async with aclosing(convert_errors(log=calls.log)(STREAM, behavior)(Message(), FakeContext())) as responses:
        await anext(responses)

    assert calls.log.counts == {"client_gone": 1}
    assert not logs


async def test_a_handler_whose_own_status_cannot_be_sent_is_no_fault(calls: Calls, logs: list[Any]) -> None:
    async def behavior(_request: object, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")

    await convert_errors(log=calls.log)(METHOD, behavior)(Message(), FakeContext(is_client_gone=True))

    assert calls.log.counts == {"client_gone": 1}
    assert not logs


@pytest.mark.parametrize("error", [grpc.aio.UsageError("a bug"), RuntimeError("a bug")])
async def test_negative_control_a_bug_is_still_reported(calls: Calls, logs: list[Any], error: Exception) -> None:
    await calls.rejected(error)

    assert calls.log.counts == {"unhandled_exception": 1}
    assert [(entry["event"], entry["kind"]) for entry in logs] == [("unhandled_exception", type(error).__name__)]


@pytest.mark.parametrize(
    ("error", "logged"),
    [(grpc.aio.InternalError("Failed"), 0), (grpc.aio.UsageError("a bug"), 1), (RuntimeError("a bug"), 1)],
)
def test_what_grpc_itself_logs_of_clients_that_are_gone_is_only_counted(
    calls: Calls, caplog: pytest.LogCaptureFixture, error: Exception, logged: int
) -> None:
    def log_error() -> None:
        try:
            raise error
        except Exception:
            logging.getLogger("grpc._cython.cygrpc").exception("raised in core")

    with calls.log.watching_grpc_log():
        log_error()
    assert len(caplog.records) == logged
    assert calls.log.counts == ({} if logged else {"client_gone": 1})
    log_error()  # the negative control: without the filter, every error is logged
    assert len(caplog.records) == logged + 1


def test_metadata_that_is_not_utf_8_is_only_counted(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    def decode(metadata: bytes) -> None:
        try:
            metadata.decode()
        except UnicodeDecodeError:
            logging.getLogger("grpc._cython.cygrpc").exception("Invalid encoding on %s", metadata)  # as gRPC does

    with calls.log.watching_grpc_log():
        decode(b"Bearer \xff")
    assert not caplog.records
    assert calls.log.counts == {"invalid_metadata": 1}
    decode(b"Bearer \xff")  # the negative control: without the filter, what the client sent is in the log
    assert "Bearer" in caplog.text


# --- bounded logs ----------------------------------------------------------------------------------------------------


async def test_an_unknown_peer_is_logged_once_a_minute(calls: Calls, logs: list[Any]) -> None:
    for number in range(100):
        await calls.rejected(Unauthenticated(f"problem {number}"), peer=f"ipv4:10.0.0.1:{number}")
    assert [(entry["peer"], entry["problem"]) for entry in logs] == [("10.0.0.1", "problem 0")]

    calls.now += 60
    await calls.rejected(Unauthenticated("problem"))
    assert logs[-1]["suppressed"] == 99
    assert calls.log.counts == {"unauthenticated": 101}


async def test_many_unknown_peers_do_not_fill_the_log(calls: Calls, logs: list[Any]) -> None:
    for number in range(1_000):
        await calls.rejected(Unauthenticated("problem"), peer=f"ipv6:%5B2001:db8:0:{number:x}::1%5D:1")

    assert sum(len(json.dumps(entry)) for entry in logs) < 60 * 1024  # in a minute: 1 kB/s


async def test_unknown_peers_do_not_hide_other_events(calls: Calls, logs: list[Any]) -> None:
    for number in range(1_000):
        await calls.rejected(Unauthenticated("problem"), peer=f"ipv4:10.0.{number // 250}.{number % 250}:1")
    await calls.rejected(InvalidField("name", "is too long"))
    await calls.rejected(RuntimeError("a bug"))

    assert [entry["event"] for entry in logs[-2:]] == ["rpc_rejected", "unhandled_exception"]


async def test_each_caller_method_and_reason_is_logged_once_a_minute(calls: Calls, logs: list[Any]) -> None:
    for _ in range(100):
        await calls.rejected(InvalidField("name", "is too long"))
        await calls.rejected(InvalidField("name", "is too long"), method=Method("/service/Other"))

    assert [(entry["method"], entry["caller"]) for entry in logs] == [
        ("/service/Method", "sync"),
        ("/service/Other", "sync"),
    ]


async def test_a_bug_that_anybody_can_trigger_does_not_fill_the_log(calls: Calls, logs: list[Any]) -> None:
    for _ in range(100):
        await calls.rejected(RuntimeError("a bug"))

    assert len(logs) == 1
    assert calls.log.counts == {"unhandled_exception": 100}


async def test_the_report_has_the_numbers_since_the_last_one(calls: Calls, logs: list[Any]) -> None:
    await calls.log.report()
    assert not logs
    for _ in range(3):
        await calls.fail(grpc.aio.InternalError("Failed"), FakeContext(is_client_gone=True))
    await calls.log.report()
    await calls.log.report()

    assert logs == [{"event": "calls_not_served", "log_level": "info", "client_gone": 3}]
