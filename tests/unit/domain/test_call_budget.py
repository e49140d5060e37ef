import asyncio

from integration_server.domain.call_budget import CallBudget, time_left, waiting_for_store


async def waits_of(call_budget: CallBudget) -> list[int]:
    """The pending store calls of a budget before, during and after two waits of the current work."""
    counts = [call_budget.pending_store_calls]
    with waiting_for_store():
        counts.append(call_budget.pending_store_calls)
        with waiting_for_store():
            counts.append(call_budget.pending_store_calls)
    return [*counts, call_budget.pending_store_calls]


async def test_waits_are_counted_in_the_budget_of_the_current_work_only() -> None:
    call_budget = CallBudget()
    assert await waits_of(call_budget) == [0, 0, 0, 0]
    work = asyncio.get_running_loop().create_task(waits_of(call_budget), context=call_budget.context())
    assert await work == [0, 1, 2, 0]


async def test_a_deadline_that_has_passed_leaves_no_time() -> None:
    async def remaining() -> float | None:
        return time_left()

    loop = asyncio.get_running_loop()
    for deadline, left in ((None, None), (loop.time() - 1, 0.0)):
        assert await loop.create_task(remaining(), context=CallBudget(deadline).context()) == left
