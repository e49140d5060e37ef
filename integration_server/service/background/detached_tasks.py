"""Tasks that continue after the call that started them is cancelled.

grpc.aio cancels a handler at its client's deadline. A cancelled exchange or refresh would lose a token between the
provider's response and our commit, so it is a task of the server: the caller only waits for it.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from integration_server.domain.errors import StoreUnavailable
from integration_server.service.background.call_deadline import CallBudget, time_left

T = TypeVar("T")


class DetachedTasks:
    """Runs coroutines to completion, whatever happens to their callers. Leaving the context waits for all."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Any], CallBudget] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task. Wait for it with `outcome`, so that a cancelled caller does not cancel it."""
        call_budget = CallBudget()  # its own: the deadline of the caller is not the deadline of the task
        task = asyncio.get_running_loop().create_task(coroutine, context=call_budget.context())
        self._running[task] = call_budget
        task.add_done_callback(self._running.pop)
        return task

    async def outcome(self, task: asyncio.Task[T]) -> T:
        """The task's result or exception. `StoreUnavailable` if the deadline passes while it waits for the store."""
        await asyncio.wait({task}, timeout=time_left())
        if not task.done() and self._running[task].pending_store_calls:
            raise StoreUnavailable
        return await asyncio.shield(task)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Start a task and wait for it."""
        return await self.outcome(self.start(coroutine))
