"""Work that outlives the call that asked for it.

grpc.aio cancels a handler at its client's deadline. An exchange or a refresh that is cut off between the provider's
answer and our commit loses a token for good, so it belongs to the server: the caller only waits for it.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from integration_server.domain.errors import StoreUnavailable
from integration_server.service.background.call_deadline import CallBudget, time_left

T = TypeVar("T")


class DetachedTasks:
    """Runs coroutines to their end, whatever becomes of those who wait; leaving the context waits for them all."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Any], CallBudget] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start the work. Wait for it with `outcome`, so that giving up the wait does not end it."""
        call_budget = CallBudget()  # of its own: the deadline of the caller who happens to start it is not the work's
        task = asyncio.get_running_loop().create_task(coroutine, context=call_budget.context())
        self._running[task] = call_budget
        task.add_done_callback(self._running.pop)
        return task

    async def outcome(self, task: asyncio.Task[T]) -> T:
        """What the work gives or raises. `StoreUnavailable` if the caller's time is up while it waits for the store."""
        await asyncio.wait({task}, timeout=time_left())
        if not task.done() and self._running[task].pending_store_calls:
            raise StoreUnavailable
        return await asyncio.shield(task)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Start the work and wait for it."""
        return await self.outcome(self.start(coroutine))
