import asyncio
from collections import Counter

import pytest

from integration_server.service.events.pacer import Pacer


async def turns_per_iteration(pacer: Pacer, waiters: int, sends: int = 1) -> list[int]:
    """How many of the waiters continue in each iteration of the event loop in which any does."""
    loop, iteration, turns = asyncio.get_running_loop(), 0, Counter[int]()

    def count() -> None:
        nonlocal iteration
        iteration += 1
        if turns.total() < waiters:
            loop.call_soon(count)

    async def wait() -> None:
        await pacer.turn(sends)
        turns[iteration] += 1

    loop.call_soon(count)
    await asyncio.gather(*(wait() for _ in range(waiters)))
    return [turns[number] for number in sorted(turns)]


async def test_few_streams_send_in_one_iteration_of_the_loop() -> None:
    assert await turns_per_iteration(Pacer(8), 20) == [8, 8, 4]


async def test_a_turn_allows_several_sends_of_those_of_one_iteration() -> None:
    pacer = Pacer(8)
    turns = await asyncio.gather(*(pacer.turn(sends) for sends in (3, 20, 2, 8, 5)))
    assert turns == [3, 5, 2, 6, 5]


async def test_turns_of_several_sends_are_taken_in_later_iterations() -> None:
    assert await turns_per_iteration(Pacer(8), 3, sends=8) == [1, 1, 1]


async def test_negative_control_without_pacing_all_streams_send_in_one_iteration() -> None:
    assert await turns_per_iteration(Pacer(1_000_000), 1_000) == [1_000]


async def test_turns_are_taken_in_order_and_not_by_streams_that_have_ended() -> None:
    pacer, order = Pacer(2), list[int]()

    async def wait(number: int) -> None:
        await pacer.turn()
        order.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(6)]
    await asyncio.sleep(0)
    for number in (0, 1, 4):
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [2, 3, 5]


@pytest.mark.parametrize("waiters", [1, 3])
async def test_a_pacer_can_be_used_again_after_a_pause(waiters: int) -> None:
    pacer = Pacer(2)
    for _ in range(3):
        assert sum(await turns_per_iteration(pacer, waiters)) == waiters
