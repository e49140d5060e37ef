import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from integration_server.domain.call_budget import CallBudget, time_left, waiting_for_store
from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.service.background.detached_tasks import DetachedTasks


async def test_run_returns_the_result_or_raises_the_exception_of_the_task() -> None:
    async def coroutine(error: Exception | None) -> str:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return "done"

    tasks = DetachedTasks()
    assert await tasks.run(coroutine(None)) == "done"
    with pytest.raises(ZeroDivisionError):
        await tasks.run(coroutine(ZeroDivisionError()))


async def test_exit_waits_for_tasks_of_cancelled_callers() -> None:
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


async def test_exit_ignores_failed_tasks() -> None:
    async def coroutine() -> None:
        raise ZeroDivisionError

    async with DetachedTasks() as tasks:
        task = tasks.start(coroutine())
    assert isinstance(task.exception(), ZeroDivisionError)


async def wait_for_store(gate: asyncio.Event) -> str:
    with waiting_for_store():
        await gate.wait()
    return "done"


def start_with_deadline(coroutine: Coroutine[Any, Any, str], seconds: float) -> asyncio.Task[str]:
    """Run a coroutine as a call with a deadline in `seconds`."""
    call_budget = CallBudget(asyncio.get_running_loop().time() + seconds)
    return asyncio.get_running_loop().create_task(coroutine, context=call_budget.context())


async def test_a_caller_past_its_deadline_does_not_wait_for_the_store_and_the_task_continues() -> None:
    gate = asyncio.Event()
    async with DetachedTasks() as tasks:

        async def call() -> str:
            return await tasks.outcome(task)

        task = tasks.start(wait_for_store(gate))
        with pytest.raises(StoreUnavailable):
            await start_with_deadline(call(), 0.01)
        waiting = start_with_deadline(call(), 60)
        await asyncio.sleep(0)
        gate.set()
        assert await waiting == "done"


async def test_a_caller_past_its_deadline_waits_for_other_calls() -> None:
    gate = asyncio.Event()

    async def slow_provider() -> str:
        await gate.wait()
        return "done"

    async with DetachedTasks() as tasks:
        call = start_with_deadline(tasks.run(slow_provider()), 0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not call.done()
        gate.set()
        assert await call == "done"


async def test_a_task_does_not_inherit_the_deadline_of_the_caller() -> None:
    async def remaining_time() -> float | None:
        return time_left()

    async def call() -> list[float | None]:
        async with DetachedTasks() as tasks:
            # Negative control: a task of the event loop inherits the context of the caller.
            child = asyncio.get_running_loop().create_task(remaining_time())
            return [await tasks.run(remaining_time()), await child, time_left()]

    call_budget = CallBudget(asyncio.get_running_loop().time())
    assert await asyncio.get_running_loop().create_task(call(), context=call_budget.context()) == [None, 0, 0]


async def run_without_waiting(error: Exception) -> list[str]:
    """Fail a task after its caller has been cancelled; what the event loop reports."""
    reports: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, report: reports.append(report["message"]))

    async def coroutine() -> None:
        await asyncio.sleep(0)
        raise error

    async with DetachedTasks() as tasks:
        caller = asyncio.create_task(tasks.run(coroutine()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
    del caller
    await asyncio.sleep(0)
    gc.collect()
    return reports


async def test_an_error_for_a_caller_that_is_gone_is_not_reported() -> None:
    assert await run_without_waiting(IntegrationNotFound()) == []


async def test_a_fault_is_reported_although_its_caller_is_gone() -> None:
    assert await run_without_waiting(ZeroDivisionError()) == ["A detached task failed after its caller was gone"]
