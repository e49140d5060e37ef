import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from integration_server.domain.errors import StoreUnavailable
from integration_server.service.background.call_deadline import CallBudget, time_left, waiting_for_store
from integration_server.service.background.detached_tasks import DetachedTasks


async def test_hands_on_what_the_work_gives_or_raises() -> None:
    async def coroutine(error: Exception | None) -> str:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return "done"

    tasks = DetachedTasks()
    assert await tasks.run(coroutine(None)) == "done"
    with pytest.raises(ZeroDivisionError):
        await tasks.run(coroutine(ZeroDivisionError()))


async def test_leaving_waits_for_work_whose_caller_is_gone() -> None:
    gate, finished = asyncio.Event(), asyncio.Event()

    async def coroutine() -> None:
        await gate.wait()
        finished.set()

    async with DetachedTasks() as tasks:
        caller = asyncio.create_task(tasks.run(coroutine()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        gate.set()
        assert not finished.is_set()
    assert finished.is_set()


async def test_leaving_is_not_spoilt_by_work_that_fails() -> None:
    async def coroutine() -> None:
        raise ZeroDivisionError

    async with DetachedTasks() as tasks:
        task = tasks.start(coroutine())
    assert isinstance(task.exception(), ZeroDivisionError)


async def held_by_the_store(gate: asyncio.Event) -> str:
    with waiting_for_store():
        await gate.wait()
    return "done"


def as_caller(coroutine: Coroutine[Any, Any, str], seconds: float) -> asyncio.Task[str]:
    """What is done for somebody who must be answered by then."""
    call_budget = CallBudget(asyncio.get_running_loop().time() + seconds)
    return asyncio.get_running_loop().create_task(coroutine, context=call_budget.context())


async def test_a_caller_whose_time_is_up_does_not_wait_for_the_store_and_the_work_goes_on() -> None:
    gate = asyncio.Event()
    async with DetachedTasks() as tasks:

        async def call() -> str:
            return await tasks.outcome(started)

        started = tasks.start(held_by_the_store(gate))
        with pytest.raises(StoreUnavailable):
            await as_caller(call(), 0.01)
        patient = as_caller(call(), 60)
        await asyncio.sleep(0)
        gate.set()
        assert await patient == "done"


async def test_a_caller_whose_time_is_up_waits_for_all_else() -> None:
    gate = asyncio.Event()

    async def slow_provider() -> str:
        await gate.wait()
        return "done"

    async with DetachedTasks() as tasks:
        call = as_caller(tasks.run(slow_provider()), 0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not call.done()
        gate.set()
        assert await call == "done"


async def test_work_is_not_cut_off_by_the_deadline_of_the_caller_who_starts_it() -> None:
    async def seen() -> float | None:
        return time_left()

    async def call() -> list[float | None]:
        async with DetachedTasks() as tasks:
            own = asyncio.get_running_loop().create_task(seen())  # as it would be, if it inherited the caller's
            return [await tasks.run(seen()), await own, time_left()]

    call_budget = CallBudget(asyncio.get_running_loop().time())
    assert await asyncio.get_running_loop().create_task(call(), context=call_budget.context()) == [None, 0, 0]
