import asyncio

import pytest

from integration_server.service.tasks import ServerTasks


async def test_hands_on_what_the_work_gives_or_raises() -> None:
    async def work(error: Exception | None) -> str:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return "done"

    tasks = ServerTasks()
    assert await tasks.run(work(None)) == "done"
    with pytest.raises(ZeroDivisionError):
        await tasks.run(work(ZeroDivisionError()))


async def test_leaving_waits_for_work_whose_caller_is_gone() -> None:
    gate, finished = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        finished.set()

    async with ServerTasks() as tasks:
        caller = asyncio.create_task(tasks.run(work()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        gate.set()
        assert not finished.is_set()
    assert finished.is_set()


async def test_leaving_is_not_spoilt_by_work_that_fails() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    async with ServerTasks() as tasks:
        task = tasks.start(work())
    assert isinstance(task.exception(), ZeroDivisionError)
