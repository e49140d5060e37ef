"""By when callers must be answered, and who keeps them waiting.

A database that hangs should cost a caller their call, with a status that says so before their deadline. A slow provider
is another matter: there gRPC's own end of the call is the truth. So what is done for a caller carries its `CallBudget`,
where the store notes that it is being waited for.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass


@dataclass(slots=True)
class CallBudget:
    """Something that is being done. `deadline` is on the loop's clock; None where nobody's deadline ends it."""

    deadline: float | None = None
    pending_store_calls: int = 0

    def context(self) -> Context:
        """This context, with what is done in it counted as this effort."""
        context = copy_context()
        context.run(_call_budget.set, self)
        return context


_call_budget: ContextVar[CallBudget | None] = ContextVar("call_budget", default=None)


def time_left() -> float | None:
    """Seconds until the caller, for whom this is done, must be answered; None where nobody's deadline ends it."""
    call_budget = _call_budget.get()
    if call_budget is None or call_budget.deadline is None:
        return None
    return max(0.0, call_budget.deadline - asyncio.get_running_loop().time())


@contextmanager
def waiting_for_store() -> Iterator[None]:
    """In this block, what is being done waits for the store."""
    call_budget = _call_budget.get()
    if call_budget is None:
        yield
        return
    call_budget.pending_store_calls += 1
    try:
        yield
    finally:
        call_budget.pending_store_calls -= 1
