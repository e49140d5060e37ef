"""The quota limits the concurrent calls of one caller and its calls per second, and does not affect other callers."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc_health.v1.health_pb2  # noqa: F401  # describes the methods of the health service
import pytest
from structlog.testing import capture_logs

from integration_server.domain.call_quota import CallCounts, CallRate, item_charge
from integration_server.domain.callers import Permission
from integration_server.domain.errors import QuotaExceeded
from integration_server.rpc.authentication import peer_address
from integration_server.rpc.interceptors import compose, convert_errors, count_items, enforce_quota
from integration_server.rpc.methods import CallerLookup, Method, describe_method
from integration_server.rpc.stream_limits import limit_streams
from integration_server.shared_memory import SharedCounts, SharedMemory
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.inmemory_grpc import FakeContext

ADA, BOB = "ipv4:10.0.0.1:50000", "ipv4:10.0.0.2:50000"
METHOD = Method("/integrations.v1.IntegrationService/GetCredentials", permission=Permission.CREDENTIALS)
HEALTH = Method("/grpc.health.v1.Health/Check", permission=Permission.HEALTH)


class Handlers:
    """Behaviors behind one quota. They count their calls, and respond once `may_respond` is set."""

    def __init__(
        self,
        *,
        concurrency: int = 1000,
        per_second: int = 1000,
        caller_of: CallerLookup = peer_address,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = CallRate(per_second, monotonic=monotonic)
        self.wrap = enforce_quota(caller_of, self.rate, concurrency=concurrency)
        self.started = 0
        self.may_respond = asyncio.Event()

    async def respond(self, request: Any, _context: Any) -> str:
        self.started += 1
        if request == "fail":
            raise RuntimeError
        await self.may_respond.wait()
        return "response"

    async def respond_twice(self, _request: Any, _context: Any) -> AsyncIterator[str]:
        self.started += 1
        yield "first"
        await self.may_respond.wait()
        yield "last"

    def unary(self, method: Method = METHOD) -> Callable[..., Coroutine[Any, Any, Any]]:
        return self.wrap(method, self.respond)

    def stream(self, method: Method = METHOD) -> Callable[..., AsyncIterator[Any]]:
        return self.wrap(replace(method, streams_responses=True), self.respond_twice)

    async def start(self, calls: int) -> list[asyncio.Task[Any]]:
        call = self.unary()
        tasks = [asyncio.create_task(call("", FakeContext(peer=ADA))) for _ in range(calls)]
        while self.started < calls:  # noqa: ASYNC110  # they start in the next iterations of the loop
            await asyncio.sleep(0)
        return tasks


# --- concurrency -----------------------------------------------------------------------------------------------------


async def test_a_call_over_the_concurrency_limit_is_rejected_with_a_retry_time() -> None:
    handlers = Handlers(concurrency=3)
    call = handlers.unary()
    calls = await handlers.start(3)
    with pytest.raises(QuotaExceeded) as rejected:
        await call("", FakeContext(peer=ADA))
    assert rejected.value.retry_after is not None
    assert rejected.value.retry_after > timedelta(0)
    assert handlers.started == 3

    handlers.may_respond.set()
    assert await asyncio.gather(*calls) == ["response"] * 3
    assert await call("", FakeContext(peer=ADA)) == "response"


async def test_negative_control_without_a_limit_all_calls_run() -> None:
    handlers = Handlers()
    calls = await handlers.start(50)
    handlers.may_respond.set()
    assert len(await asyncio.gather(*calls)) == 50


async def test_another_caller_has_its_own_quota() -> None:
    handlers = Handlers(concurrency=1, per_second=1)
    calls = await handlers.start(1)
    handlers.may_respond.set()
    assert await handlers.unary()("", FakeContext(peer=BOB)) == "response"
    await asyncio.gather(*calls)


async def test_a_failed_or_cancelled_call_frees_its_slot() -> None:
    handlers = Handlers(concurrency=1)
    call = handlers.unary()
    with pytest.raises(RuntimeError):
        await call("fail", FakeContext())
    handlers.started = 0
    (cancelled,) = await handlers.start(1)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    handlers.may_respond.set()
    assert await call("", FakeContext()) == "response"


async def test_a_stream_uses_a_slot_until_it_ends() -> None:
    handlers = Handlers(concurrency=1)
    stream, call = handlers.stream(), handlers.unary()
    responses = stream("", FakeContext())
    assert await anext(responses) == "first"
    with pytest.raises(QuotaExceeded):
        await call("", FakeContext())
    with pytest.raises(QuotaExceeded):
        await anext(stream("", FakeContext()))

    handlers.may_respond.set()
    assert [response async for response in responses] == ["last"]
    assert await call("", FakeContext()) == "response"


# --- rate ------------------------------------------------------------------------------------------------------------


async def test_a_call_over_the_rate_is_rejected_until_the_next_second() -> None:
    now = 1_000_000.0
    handlers = Handlers(per_second=5, monotonic=lambda: now)
    handlers.may_respond.set()
    call = handlers.unary()
    for _ in range(5):
        await call("", FakeContext(peer=ADA))
    with pytest.raises(QuotaExceeded) as rejected:
        await call("", FakeContext(peer=ADA))
    assert await call("", FakeContext(peer=BOB)) == "response"

    assert rejected.value.retry_after is not None
    now += rejected.value.retry_after.total_seconds()
    assert await call("", FakeContext(peer=ADA)) == "response"


@pytest.mark.parametrize("begin", [0.0, 59.5, 1_000_000.999])
@pytest.mark.parametrize("pause", [1.0, 1.5, 86_400.0])  # the process may have been suspended
async def test_each_second_has_the_whole_rate_whatever_was_rejected_before(begin: float, pause: float) -> None:
    now = begin
    handlers = Handlers(per_second=5, monotonic=lambda: now)
    handlers.may_respond.set()
    call = handlers.unary()
    for _ in range(3):
        results = await asyncio.gather(*(call("", FakeContext(peer=ADA)) for _ in range(50)), return_exceptions=True)
        assert (results.count("response"), sum(isinstance(result, QuotaExceeded) for result in results)) == (5, 45)
        now += pause


async def test_a_rejection_is_logged() -> None:
    handlers = Handlers(per_second=1)
    handlers.may_respond.set()
    call = convert_errors()(METHOD, handlers.unary())
    await call("", FakeContext())
    context = FakeContext()
    with capture_logs() as lines, pytest.raises(Exception, match="aborted"):
        await call("", context)
    assert lines == [{"event": "rpc_rejected", "log_level": "info", "method": METHOD.path, "reason": "QUOTA_EXCEEDED"}]
    assert context.error is not None
    assert context.error.kinds == ["ErrorInfo", "RetryInfo"]


# --- exemptions ------------------------------------------------------------------------------------------------------


async def test_unary_health_checks_are_exempt() -> None:
    handlers = Handlers(concurrency=1, per_second=1)
    handlers.may_respond.set()
    check = handlers.unary(HEALTH)
    assert [await check("", FakeContext()) for _ in range(100)] == ["response"] * 100


async def test_health_streams_are_not_exempt() -> None:
    watch = Handlers(concurrency=1).stream(HEALTH)
    stream = watch("", FakeContext())
    await anext(stream)
    with pytest.raises(QuotaExceeded):
        await anext(watch("", FakeContext()))


# --- callers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:10.0.0.1:50000", "10.0.0.1"),
        ("ipv6:%5B::1%5D:50000", "::1"),
        ("unix:", "unix"),
    ],
)
def test_an_unauthenticated_caller_is_its_address_without_the_port(peer: str, caller: str) -> None:
    context: Any = FakeContext(peer=peer)
    assert peer_address(context) == caller


async def test_an_authenticated_caller_has_one_quota_for_all_addresses() -> None:
    handlers = Handlers(caller_of=lambda _context: "calendar-sync", concurrency=1)
    await handlers.start(1)
    with pytest.raises(QuotaExceeded):
        await handlers.unary()("", FakeContext(peer=BOB))


# --- streams ---------------------------------------------------------------------------------------------------------

WATCH = describe_method("/integrations.v1.IntegrationService/WatchIntegrations")


class Streams:
    """Streams behind one limit, which stay open."""

    def __init__(self, *, per_caller: int = 1000, per_user: int = 1000, method: Method = WATCH) -> None:
        wrap = limit_streams(peer_address, per_caller=per_caller, per_user=per_user)
        self._behavior = wrap(method, self._respond)

    async def _respond(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        if request.cursor == "fail":
            raise RuntimeError
        while True:
            yield request

    async def open(self, user_id: str = "", peer: str = ADA, cursor: str = "") -> Any:
        """Open a stream and read its first response."""
        request = pb.WatchIntegrationsRequest(user_id=user_id, cursor=cursor)
        stream = self._behavior(request, FakeContext(peer=peer))
        await anext(stream)
        return stream


async def test_streams_for_one_user_are_limited() -> None:
    streams = Streams(per_user=2)
    first, _second = [await streams.open("ada") for _ in range(2)]
    with pytest.raises(QuotaExceeded, match="for this user; at most 2"):
        await streams.open("ada")
    assert await streams.open("grace")
    assert await streams.open()  # for all users
    await first.aclose()
    assert await streams.open("ada")


async def test_streams_of_one_caller_are_limited() -> None:
    streams = Streams(per_caller=3)
    opened = [await streams.open(user_id) for user_id in ("", "ada", "grace")]
    for user_id in ("", "ada", "eve"):
        with pytest.raises(QuotaExceeded, match="at most 3"):
            await streams.open(user_id)
    await opened[0].aclose()
    assert await streams.open("eve")


async def test_another_caller_has_its_own_streams_for_the_same_user() -> None:
    streams = Streams(per_caller=1, per_user=1)
    await streams.open("ada")
    with pytest.raises(QuotaExceeded):
        await streams.open("ada")
    assert await streams.open("ada", peer=BOB)


async def test_a_failed_stream_is_not_counted() -> None:
    streams = Streams(per_caller=1, per_user=1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await streams.open("ada", cursor="fail")
    assert await streams.open("ada")


async def test_negative_control_without_a_limit_one_user_opens_any_number_of_streams() -> None:
    streams = Streams(per_caller=1_000_000, per_user=1_000_000)
    assert len([await streams.open("ada") for _ in range(300)]) == 300


class WatchStreams:
    """Streams of credentials of one caller, which stay open."""

    def __init__(self, limit: int = sys.maxsize, counts: CallCounts | None = None) -> None:
        method = describe_method("/integrations.v1.IntegrationService/WatchCredentials")
        wrap = limit_streams(peer_address, per_caller=99, per_user=99, watched_per_caller=limit, counts=counts)
        self._behavior = wrap(method, self._respond)

    async def _respond(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        while True:
            yield None

    async def open(self, count: int, peer: str = ADA, user_id: str = "") -> Any:
        """Open a stream of `count` integrations."""
        request = pb.WatchCredentialsRequest(integration_ids=range(1, count + 1), user_id=user_id)
        stream = self._behavior(request, FakeContext(peer=peer))
        await anext(stream)
        return stream


async def test_the_integrations_of_all_streams_of_a_caller_are_limited() -> None:
    streams = WatchStreams(1000)
    first, _second = await streams.open(600), await streams.open(400, user_id="ada")
    for user_id in ("", "ada", "eve"):
        with pytest.raises(QuotaExceeded, match=r"integration_ids.*at most 1000.*CALLER_MAX_WATCHED_INTEGRATIONS"):
            await streams.open(1, user_id=user_id)
    assert await streams.open(1000, peer=BOB)
    await first.aclose()
    assert await streams.open(600)


async def test_the_integrations_of_streams_at_other_workers_count() -> None:
    memory = SharedMemory(2)
    workers = [WatchStreams(1000, SharedCounts(memory, number)) for number in range(2)]
    stream = await workers[0].open(700)
    with pytest.raises(QuotaExceeded):
        await workers[1].open(301)
    await stream.aclose()
    assert await workers[1].open(1000)


async def test_negative_control_without_a_limit_a_caller_watches_any_number_of_integrations() -> None:
    streams = WatchStreams()
    assert [await streams.open(5000) for _ in range(50)]


def test_calls_that_are_not_streams_about_users_are_not_counted() -> None:
    wrap = limit_streams(peer_address, per_caller=0, per_user=0)
    handlers = Handlers()
    for path in ("/integrations.v1.IntegrationService/GetCredentials", "/grpc.health.v1.Health/Watch"):
        assert wrap(describe_method(path), handlers.respond_twice) == handlers.respond_twice


# --- items -----------------------------------------------------------------------------------------------------------

BATCH = describe_method("/integrations.v1.IntegrationService/BatchGetCredentials")
WATCH = describe_method("/integrations.v1.IntegrationService/WatchCredentials")


class ItemHandlers:
    """Behaviors whose items are counted, unless `counts_items` is off (negative control)."""

    def __init__(self, per_second: int, *, counts_items: bool = True, max_resumed: int = 0) -> None:
        self.seconds = 100.0
        rate = CallRate(per_second, monotonic=lambda: self.seconds, max_resumed=max_resumed)
        self._wrappers = [enforce_quota(peer_address, rate, concurrency=1000)]
        if counts_items:
            self._wrappers.append(count_items(peer_address, rate))

    async def call(self, items: int, method: Method = BATCH, peer: str = ADA, resumed: int | None = 0) -> None:
        """Make a call with this many items. Raises `QuotaExceeded`.

        A stream resumes `resumed` of them; None: it ends before it knows.
        """

        async def respond(_request: Any, _context: Any) -> str:
            return "response"

        async def stream(_request: Any, _context: Any) -> AsyncIterator[str]:
            charge = item_charge.get()
            if charge is not None and resumed is not None:
                charge.count(resumed)
            yield "response"

        behavior: Any = compose(method, stream if method.streams_responses else respond, self._wrappers)
        values: Any = {method.items_field: items * [{} if method is BATCH else 1]}
        called = behavior(method.request_class(**values), FakeContext(peer=peer))
        if method.streams_responses:
            assert [one async for one in called] == ["response"]
        else:
            assert await called == "response"

    async def batches_in(self, seconds: int, items: int, method: Method = BATCH, resumed: int = 0) -> int:
        """How many batches a caller gets that asks ten times per second."""
        served = 0
        for _ in range(seconds):
            self.seconds += 1
            for _ in range(10):
                with suppress(QuotaExceeded):
                    await self.call(items, method, resumed=resumed)
                    served += 1
        return served


@pytest.mark.parametrize("method", [BATCH, WATCH], ids=lambda method: method.name)
async def test_items_count_as_calls_over_time(method: Method) -> None:
    handlers = ItemHandlers(per_second=100)
    assert await handlers.batches_in(30, items=50, method=method) == pytest.approx(30 * 100 / 50, abs=2)
    assert await handlers.batches_in(100, items=1000, method=method) == pytest.approx(100 * 100 / 1000, abs=2)


async def test_negative_control_uncounted_items_exceed_the_rate_a_thousandfold() -> None:
    handlers = ItemHandlers(per_second=10, counts_items=False)
    assert await handlers.batches_in(10, items=1000) == 100


async def test_a_batch_larger_than_the_rate_works_and_delays_the_next_calls_of_its_caller_only() -> None:
    handlers = ItemHandlers(per_second=100)
    await handlers.call(1000)
    with pytest.raises(QuotaExceeded) as rejected:
        await handlers.call(1)
    assert rejected.value.retry_after == timedelta(seconds=10)
    await handlers.call(1000, peer=BOB)
    handlers.seconds += rejected.value.retry_after.total_seconds() - 1
    with pytest.raises(QuotaExceeded):
        await handlers.call(1)
    handlers.seconds += 1
    await handlers.call(1)


async def test_a_stream_that_ends_before_it_has_counted_its_items_counts_all_of_them() -> None:
    handlers = ItemHandlers(per_second=100, max_resumed=10_000)
    await handlers.call(1000, WATCH, resumed=None)
    with pytest.raises(QuotaExceeded):
        await handlers.call(1)


@pytest.mark.parametrize(("max_resumed", "is_served"), [(100_000, True), (0, False)], ids=["", "negative control"])
async def test_all_streams_of_a_caller_resume_at_once_after_a_restart(max_resumed: int, is_served: bool) -> None:
    handlers = ItemHandlers(per_second=3000, max_resumed=max_resumed)
    served = 0
    for _ in range(20):
        with suppress(QuotaExceeded):
            await handlers.call(5000, WATCH, resumed=4999)
            served += 1
    assert (served == 20) is is_served
    with suppress(QuotaExceeded):
        await handlers.call(1)
        assert is_served, "nor do they take anything from its other calls"


async def test_resumed_items_beyond_the_allowance_count_as_calls() -> None:
    handlers = ItemHandlers(per_second=100, max_resumed=1000)
    await handlers.call(1500, WATCH, resumed=1500)
    with pytest.raises(QuotaExceeded) as rejected:
        await handlers.call(1)
    assert rejected.value.retry_after == timedelta(seconds=5)
    await handlers.call(1500, WATCH, peer=BOB, resumed=1000)  # each caller has its own
    handlers.seconds += 10  # by then the allowance is there again
    await handlers.call(1000, WATCH, resumed=1000)
    await handlers.call(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_resumed", "expected"), [(5000, 2 * 100), (10**9, 10 * 5000)], ids=["", "negative control"]
)
async def test_a_caller_that_resumes_again_and_again_gets_twice_its_rate(max_resumed: int, expected: int) -> None:
    handlers = ItemHandlers(per_second=100, max_resumed=max_resumed)
    seconds = 400
    streams = await handlers.batches_in(seconds, items=5000, method=WATCH, resumed=5000)
    assert streams * 5000 / seconds == pytest.approx(expected, rel=0.1)


async def test_concurrent_batches_that_passed_the_first_check_are_counted_at_the_second() -> None:
    rate = CallRate(100, monotonic=lambda: 0.0)
    for _ in range(50):
        rate.count("ada")
    rate.count_items("ada", 1000)
    for _ in range(49):
        with pytest.raises(QuotaExceeded):
            rate.count_items("ada", 1000)


async def test_rejected_calls_are_no_debt() -> None:
    handlers = ItemHandlers(per_second=5)
    for _ in range(500):
        with suppress(QuotaExceeded):
            await handlers.call(1)
    handlers.seconds += 1
    await handlers.call(1)
