"""By when callers must be answered, and who keeps them waiting.

A database that hangs should cost a caller their call, with a status that says so before their deadline. A slow provider
is another matter: there gRPC's own end of the call is the truth. So what is done for a caller carries its `Effort`,
where the store notes that it is being waited for.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass


@dataclass(slots=True)
class Effort:
    """Something that is being done. `answer_by` is on the loop's clock; None where nobody's deadline ends it."""

    answer_by: float | None = None
    store_waits: int = 0

    def context(self) -> Context:
        """This context, with what is done in it counted as this effort."""
        context = copy_context()
        context.run(_effort.set, self)
        return context


_effort: ContextVar[Effort | None] = ContextVar("effort", default=None)


def time_left() -> float | None:
    """Seconds until the caller, for whom this is done, must be answered; None where nobody's deadline ends it."""
    effort = _effort.get()
    if effort is None or effort.answer_by is None:
        return None
    return max(0.0, effort.answer_by - asyncio.get_running_loop().time())


@contextmanager
def waiting_for_store() -> Iterator[None]:
    """In this block, what is being done waits for the store."""
    effort = _effort.get()
    if effort is None:
        yield
        return
    effort.store_waits += 1
    try:
        yield
    finally:
        effort.store_waits -= 1
