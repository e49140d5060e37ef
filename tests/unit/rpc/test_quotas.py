"""One caller's calls at a time and in a second; other callers and health checks do not notice."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any

import grpc
import pytest
import structlog

from integration_server.rpc.quotas import Quotas, peer_address
from tests.fakes.inmemory_grpc import Details, FakeContext, RpcError

ADA, BOB = "ipv4:10.0.0.1:50000", "ipv4:10.0.0.2:50000"
METHOD = "/integrations.v1.IntegrationService/GetCredentials"
HEALTH = "/grpc.health.v1.Health"


class Peer(FakeContext):
    """The context of a call from an address."""

    def __init__(self, address: str = ADA) -> None:
        super().__init__()
        self._address = address

    def peer(self) -> str:
        return self._address


class Handlers:
    """Handlers that begin, and answer when they may."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_respond = asyncio.Event()

    async def response(self, request: Any, context: Any) -> str:
        self.begun += 1
        await self.may_respond.wait()
        return "response"

    async def responses(self, request: Any, context: Any) -> AsyncIterator[str]:
        self.begun += 1
        yield "first"
        await self.may_respond.wait()
        yield "last"


def limits(*, concurrency: int = 1000, per_second: int = 1000) -> Quotas:
    return Quotas(peer_address, concurrency=concurrency, per_second=per_second)


async def wrapped(limits: Quotas, handler: Any, method: str = METHOD) -> Any:
    async def find(details: grpc.HandlerCallDetails) -> Any:
        return handler

    return await limits.intercept_service(find, Details(method))


async def unary(limits: Quotas, handlers: Handlers, method: str = METHOD) -> Callable[..., Coroutine[Any, Any, Any]]:
    handler = await wrapped(limits, grpc.unary_unary_rpc_method_handler(handlers.response), method)
    call: Callable[..., Coroutine[Any, Any, Any]] = handler.unary_unary
    return call


async def stream(limits: Quotas, handlers: Handlers, method: str = METHOD) -> Callable[..., AsyncIterator[Any]]:
    handler = await wrapped(limits, grpc.unary_stream_rpc_method_handler(handlers.responses), method)
    call: Callable[..., AsyncIterator[Any]] = handler.unary_stream
    return call


async def refused(call: Awaitable[Any], context: FakeContext) -> RpcError:
    with pytest.raises(grpc.aio.AbortError):
        await call
    assert context.refused is not None
    return context.refused


async def start_calls(
    call: Callable[..., Coroutine[Any, Any, Any]], handlers: Handlers, calls: int
) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(call("", Peer())) for _ in range(calls)]
    while handlers.begun < calls:  # noqa: ASYNC110  # they begin in the loop's next rounds
        await asyncio.sleep(0)
    return tasks


# --- at a time -----------------------------------------------------------------------------------------------------


async def test_one_call_too_many_at_a_time_is_refused_with_a_time_to_come_back() -> None:
    handlers = Handlers()
    call = await unary(limits(concurrency=3), handlers)
    calls = await start_calls(call, handlers, 3)

    context = Peer()
    refusal = await refused(call("", context), context)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert refusal.retry.retry_delay.ToTimedelta() > timedelta(0)
    assert handlers.begun == 3

    handlers.may_respond.set()
    assert await asyncio.gather(*calls) == ["response"] * 3
    assert await call("", Peer()) == "response"


async def test_without_that_limit_all_of_them_are_under_way() -> None:
    handlers = Handlers()
    calls = await start_calls(await unary(limits(), handlers), handlers, 50)
    handlers.may_respond.set()
    assert len(await asyncio.gather(*calls)) == 50


async def test_another_caller_does_not_notice() -> None:
    handlers = Handlers()
    call = await unary(limits(concurrency=1, per_second=1), handlers)
    calls = await start_calls(call, handlers, 1)
    handlers.may_respond.set()
    assert await call("", Peer(BOB)) == "response"
    await asyncio.gather(*calls)


async def test_a_call_that_fails_or_is_given_up_is_over() -> None:
    class Failing(Handlers):
        async def response(self, request: Any, context: Any) -> str:
            if request == "fail":
                raise RuntimeError
            return await super().response(request, context)

    handlers = Failing()
    call = await unary(limits(concurrency=1), handlers)
    with pytest.raises(RuntimeError):
        await call("fail", Peer())
    (given_up,) = await start_calls(call, handlers, 1)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    handlers.may_respond.set()
    assert await call("", Peer()) == "response"


async def test_a_stream_is_under_way_until_it_ends() -> None:
    handlers = Handlers()
    both = limits(concurrency=1)
    streaming, call = await stream(both, handlers), await unary(both, handlers)
    responses = streaming("", Peer())
    assert await anext(responses) == "first"

    context, streamed = Peer(), Peer()
    assert (await refused(call("", context), context)).reason == "QUOTA_EXCEEDED"
    assert (await refused(anext(streaming("", streamed)), streamed)).reason == "QUOTA_EXCEEDED"

    handlers.may_respond.set()
    assert [response async for response in responses] == ["last"]
    assert await call("", Peer()) == "response"


# --- in a second ---------------------------------------------------------------------------------------------------


async def test_one_call_too_many_in_a_second_is_refused_until_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    handlers = Handlers()
    handlers.may_respond.set()
    call = await unary(limits(per_second=5), handlers)
    for _ in range(5):
        await call("", Peer())
    context = Peer()
    refusal = await refused(call("", context), context)
    assert (refusal.reason, refusal.kinds) == ("QUOTA_EXCEEDED", ["ErrorInfo", "RetryInfo"])
    assert await call("", Peer(BOB)) == "response"

    now += refusal.retry.retry_delay.ToTimedelta().total_seconds()
    assert await call("", Peer()) == "response"


async def test_a_refusal_is_logged() -> None:
    structlog.reset_defaults()
    call = await unary(limits(per_second=1), handlers := Handlers())
    handlers.may_respond.set()
    await call("", Peer())
    context = Peer()
    with structlog.testing.capture_logs() as lines:
        await refused(call("", context), context)
    assert lines == [{"event": "rpc_rejected", "log_level": "info", "method": METHOD, "reason": "QUOTA_EXCEEDED"}]


# --- what is not limited -------------------------------------------------------------------------------------------


async def test_health_checks_are_not_counted() -> None:
    handlers = Handlers()
    handlers.may_respond.set()
    check = await unary(limits(concurrency=1, per_second=1), handlers, f"{HEALTH}/Check")
    assert [await check("", Peer()) for _ in range(100)] == ["response"] * 100


async def test_streams_of_health_are() -> None:
    watch = await stream(limits(concurrency=1), Handlers(), f"{HEALTH}/Watch")
    watching = watch("", Peer())
    await anext(watching)
    context = Peer()
    assert (await refused(anext(watch("", context)), context)).reason == "QUOTA_EXCEEDED"


async def test_an_unknown_method_is_left_alone() -> None:
    assert await wrapped(limits(), None) is None


# --- who calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:10.0.0.1:50000", "ipv4:10.0.0.1"),
        ("ipv6:%5B::1%5D:50000", "ipv6:%5B::1%5D"),
        ("unix:", "unix"),
    ],
)
def test_a_caller_without_a_name_is_an_address_whatever_its_port(peer: str, caller: str) -> None:
    context: Any = Peer(peer)
    assert peer_address(context) == caller


async def test_a_name_counts_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # all within one second
    handlers = Handlers()
    handlers.may_respond.set()
    call = await unary(Quotas(lambda _context: "calendar-sync", concurrency=10, per_second=1), handlers)
    await call("", Peer(ADA))
    context = Peer(BOB)
    assert (await refused(call("", context), context)).reason == "QUOTA_EXCEEDED"
