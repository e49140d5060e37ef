"""Work that outlives the call that asked for it.

grpc.aio cancels a handler at its client's deadline. An exchange or a refresh that is cut off between the provider's
answer and our commit loses a token for good, so it belongs to the server: the caller only waits for it.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class ServerTasks:
    """Runs coroutines to their end, whatever becomes of those who wait; leaving the context waits for them all."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start the work. Wait for it with `asyncio.shield`, so that giving up the wait does not end it."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Start the work and wait for it."""
        return await asyncio.shield(self.start(work))
