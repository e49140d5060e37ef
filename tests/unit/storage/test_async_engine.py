"""Work on a connection that must not stop in the middle."""

import asyncio

import pytest

from integration_server.storage.async_engine import run_to_completion


async def test_work_ends_before_the_cancellation_of_its_caller_is_raised() -> None:
    started, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        await may_end.wait()
        ended.set()

    caller = asyncio.create_task(run_to_completion(work()))
    await started.wait()
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await run_to_completion(work())


async def test_a_cancellation_is_raised_also_if_the_work_fails() -> None:
    """Else a loop that catches the errors of a connection goes on."""
    started, may_end = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        await may_end.wait()
        raise ConnectionResetError

    caller = asyncio.create_task(run_to_completion(work()))
    await started.wait()
    caller.cancel()
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await caller
    assert isinstance(raised.value.__cause__, ConnectionResetError)
