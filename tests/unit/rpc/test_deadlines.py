"""A call that waits for the store ends with a status shortly before its deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from integration_server.domain.call_budget import time_left, waiting_for_store
from integration_server.domain.errors import StoreUnavailable
from integration_server.rpc.interceptors import enforce_deadline
from integration_server.rpc.methods import Method
from tests.fakes.inmemory_grpc import FakeContext

Behavior = Callable[[object, object], Awaitable[Any]]


async def call(behavior: Behavior, remaining: float | None) -> Any:
    """Call a behavior with so many seconds until the deadline, and return its response."""
    return await enforce_deadline()(Method("/any"), behavior)(None, FakeContext(remaining=remaining))


class HangingMethod:
    """A method that waits for the store or for something else, and for `cleanup` when it is cancelled."""

    def __init__(self, *, store: bool, cleanup: asyncio.Event | None = None) -> None:
        self.store = store
        self.ended = asyncio.Event()
        self.cleanup = cleanup

    async def __call__(self, _request: object, _context: object) -> None:
        """Wait."""
        try:
            if self.store:
                with waiting_for_store():
                    await asyncio.Event().wait()
            await asyncio.Event().wait()
        finally:
            if self.cleanup is not None:
                await self.cleanup.wait()
            self.ended.set()


async def test_a_call_that_waits_for_the_store_is_rejected_before_its_deadline_and_cancelled() -> None:
    hanging = HangingMethod(store=True)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(StoreUnavailable):
        await call(hanging, 0.5)
    assert loop.time() - started >= 0.4
    async with asyncio.timeout(60):
        await hanging.ended.wait()


async def test_the_response_does_not_wait_for_the_cancellation() -> None:
    gate = asyncio.Event()
    hanging = HangingMethod(store=True, cleanup=gate)
    with pytest.raises(StoreUnavailable):
        await call(hanging, 0.01)
    assert not hanging.ended.is_set()
    gate.set()
    async with asyncio.timeout(60):
        await hanging.ended.wait()


async def test_grpc_ends_a_call_that_waits_for_something_else() -> None:
    hanging = HangingMethod(store=False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):  # as gRPC does when the time is up
            await call(hanging, 0.01)
    async with asyncio.timeout(60):
        await hanging.ended.wait()


async def test_responses_and_errors_pass() -> None:
    async def respond(_request: object, _context: object) -> str:
        return "done"

    async def fail(_request: object, _context: object) -> None:
        raise ZeroDivisionError

    for remaining in (None, 60):
        assert await call(respond, remaining) == "done"
        with pytest.raises(ZeroDivisionError):
            await call(fail, remaining)


@pytest.mark.parametrize(("remaining", "left"), [(0.5, 0.4), (2, 1.6), (8, 7.5), (3600, 3599.5)])
async def test_a_margin_remains_for_the_status_to_arrive(remaining: float, left: float) -> None:
    async def respond(_request: object, _context: object) -> float | None:
        return time_left()

    assert await call(respond, remaining) == pytest.approx(left, abs=0.1)
    assert await call(respond, None) is None
    assert time_left() is None


async def test_a_call_whose_task_is_cancelled_ends_as_cancelled() -> None:
    async def respond(_request: object, _context: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await call(respond, 60)
