"""A caller whose time is nearly up is told so if it is the database that does not answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from integration_server.domain.errors import StoreUnavailable
from integration_server.rpc.deadlines import DeadlineInterceptor
from integration_server.service.proxy.call_deadline import time_left, waiting_for_store
from tests.fakes.inmemory_grpc import Details, FakeContext

Behaviour = Callable[[object, object], Awaitable[Any]]


async def call(behaviour: Behaviour, remaining: float | None) -> Any:
    """The answer of a method to a caller who has so many seconds left."""

    async def find(_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(behaviour)

    handler: Any = await DeadlineInterceptor().intercept_service(find, Details("/any"))
    return await handler.unary_unary(None, FakeContext(remaining))


class HangingMethod:
    """A method that waits for ever, for the store or for something else; and for a while when it is cancelled."""

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


async def test_a_call_that_waits_for_the_store_is_refused_in_time_and_ended() -> None:
    hanging = HangingMethod(store=True)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(StoreUnavailable):
        await call(hanging, 0.5)
    assert loop.time() - begun >= 0.4
    async with asyncio.timeout(60):
        await hanging.ended.wait()


async def test_winding_up_is_not_waited_for() -> None:
    gate = asyncio.Event()
    hanging = HangingMethod(store=True, cleanup=gate)
    with pytest.raises(StoreUnavailable):
        await call(hanging, 0.01)
    assert not hanging.ended.is_set()
    gate.set()
    async with asyncio.timeout(60):
        await hanging.ended.wait()


async def test_a_call_that_waits_for_something_else_is_left_to_grpc() -> None:
    hanging = HangingMethod(store=False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):  # as gRPC does when the time is up
            await call(hanging, 0.01)
    async with asyncio.timeout(60):
        await hanging.ended.wait()


async def test_answers_and_errors_pass() -> None:
    async def respond(_request: object, _context: object) -> str:
        return "done"

    async def fail(_request: object, _context: object) -> None:
        raise ZeroDivisionError

    for remaining in (None, 60):
        assert await call(respond, remaining) == "done"
        with pytest.raises(ZeroDivisionError):
            await call(fail, remaining)


@pytest.mark.parametrize(("remaining", "left"), [(0.5, 0.4), (2, 1.6), (8, 7.5), (3600, 3599.5)])
async def test_time_is_kept_for_the_status_to_arrive(remaining: float, left: float) -> None:
    async def respond(_request: object, _context: object) -> float | None:
        return time_left()

    assert await call(respond, remaining) == pytest.approx(left, abs=0.1)
    assert await call(respond, None) is None
    assert time_left() is None
