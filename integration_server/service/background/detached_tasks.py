"""Tasks that outlive the call that starts them.

grpc.aio cancels a handler at its client's deadline. A code exchange or a refresh that is cancelled between the
provider's response and the commit loses a token, so it runs as a task of the server: the caller only waits for it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, Self, TypeVar

from integration_server.domain.call_budget import CallBudget, time_left
from integration_server.domain.errors import IntegrationServerError, StoreUnavailable

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class DetachedTasks:
    """Runs coroutines to completion, whatever happens to the callers that wait for them. The exit waits for all."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Any], CallBudget] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task. Wait for it with `outcome`: a caller that is cancelled does not cancel the task."""
        call_budget = CallBudget()  # its own: the deadline of the caller that starts it does not apply
        task = asyncio.get_running_loop().create_task(coroutine, context=call_budget.context())
        self._running[task] = call_budget
        task.add_done_callback(self._running.pop)
        return task

    async def outcome(self, task: asyncio.Task[T]) -> T:
        """The result of a task, or its exception. `StoreUnavailable` if it waits for the store at the deadline."""
        try:
            await asyncio.wait({task}, timeout=time_left())
            if not task.done() and self._running[task].pending_store_calls:
                raise StoreUnavailable
            return await asyncio.shield(task)
        except (asyncio.CancelledError, StoreUnavailable):
            task.add_done_callback(_report_fault)
            raise

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Start a task and wait for it."""
        return await self.outcome(self.start(coroutine))


class SingleFlight(Generic[K, T]):
    """Runs a piece of work once for all callers that ask for the same key while it runs."""

    def __init__(self, tasks: DetachedTasks) -> None:
        self._tasks = tasks
        self._flights: dict[K, asyncio.Task[T]] = {}

    def is_running(self, key: K) -> bool:
        """Whether `run` with this key would join work that is running."""
        return key in self._flights

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work that runs for this key, or of new work."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = self._tasks.start(work())
            flight.add_done_callback(lambda _: self._flights.pop(key))
        return await self._tasks.outcome(flight)


def _report_fault(task: asyncio.Task[Any]) -> None:
    """Report the exception of a task whose caller is gone, unless it is an error that only the caller needs to know."""
    if task.cancelled():
        return
    error = task.exception()  # marks it as retrieved
    if error is not None and not isinstance(error, IntegrationServerError):
        message = "A detached task failed after its caller was gone"
        task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})
