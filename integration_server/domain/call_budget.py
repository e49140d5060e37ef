"""The deadline of a piece of work, and whether it waits for the store.

If the database hangs, a call ends before its deadline with a status that says so. If a provider is slow, gRPC ends the
call at the deadline. So the tasks of a call carry its `CallBudget` in their context, where the store records waits.
"""

import asyncio
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass


@dataclass(slots=True)
class CallBudget:
    """The deadline of a piece of work, on the loop's clock (None without one), and the store calls it waits for.

    Each `with` block of it is a store call.
    """

    deadline: float | None = None
    pending_store_calls: int = 0

    def __enter__(self) -> None:
        self.pending_store_calls += 1

    def __exit__(self, *_: object) -> None:
        self.pending_store_calls -= 1

    def context(self) -> Context:
        """A copy of the current context for a task that belongs to this budget."""
        context = copy_context()
        context.run(_call_budget.set, self)
        return context


_call_budget: ContextVar[CallBudget | None] = ContextVar("call_budget", default=None)


def time_left() -> float | None:
    """Seconds until the deadline of the current work; None without one."""
    call_budget = _call_budget.get()
    if call_budget is None or call_budget.deadline is None:
        return None
    return max(0.0, call_budget.deadline - asyncio.get_running_loop().time())


def waiting_for_store() -> AbstractContextManager[None]:
    """Records in the budget of the current work that it waits for the store."""
    return _call_budget.get() or CallBudget()
