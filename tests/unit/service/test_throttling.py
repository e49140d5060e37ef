"""Turns: within budgets, in fairness, and told at once where they come too late."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from integration_server.domain.calls import ApiAnswer, LimitScope, RateLimit
from integration_server.domain.errors import ProviderUnavailable, RateLimited
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.throttling import Full, Gate, NothingShared
from tests.fakes.system import FakeSystem


def limit(calls: int, seconds: float, scope: LimitScope = LimitScope.APP) -> RateLimit:
    return RateLimit(calls, timedelta(seconds=seconds), scope)


def gate(*limits: RateLimit) -> Gate:
    return Gate("acme", limits, NothingShared(), time.monotonic, lambda: 1.0)


@pytest.fixture
async def sample() -> Integration:
    return await FakeSystem().connect()


def of(sample: Integration, user: str, number: int = 1) -> Integration:
    return replace(sample, user_id=UserId(user), integration_id=IntegrationId(number))


async def take(at: Gate, integration: Integration, within: float = 5.0, work: float = 0.0) -> None:
    async with at.turn(integration, within, again=False):
        await asyncio.sleep(work)


async def test_a_flood_of_one_user_leaves_others_their_share(sample: Integration) -> None:
    at, order = gate(limit(10, 0.05)), list[str]()

    async def call(user: str) -> None:
        async with at.turn(of(sample, user, len(user)), 5.0, again=False):
            order.append(user)

    flood = [asyncio.create_task(call("ada")) for _ in range(100)]
    await asyncio.sleep(0.02)
    others = [asyncio.create_task(call(user)) for user in ("grace", "linus") for _ in range(15)]
    await asyncio.gather(*flood, *others)
    after_the_flood_began = Counter(order[10:55])
    print("shares of 45 turns while all three waited:", dict(after_the_flood_began))
    assert max(after_the_flood_began.values()) - min(after_the_flood_began.values()) <= 3


async def test_in_one_queue_for_all_the_flood_would_go_first(sample: Integration) -> None:
    """The twin: with everybody taken for one user, who comes later waits for all of the flood."""
    at, order = gate(limit(10, 0.05)), list[str]()

    async def call(user: str) -> None:
        async with at.turn(of(sample, "everybody"), 5.0, again=False):
            order.append(user)

    flood = [asyncio.create_task(call("ada")) for _ in range(100)]
    await asyncio.sleep(0.02)
    others = [asyncio.create_task(call("grace")) for _ in range(15)]
    await asyncio.gather(*flood, *others)
    assert set(order[:100]) == {"ada"}


@pytest.mark.parametrize("calls_at_once", [3, None])
async def test_an_account_gets_no_more_calls_at_a_time_than_its_api_takes(
    sample: Integration, calls_at_once: int | None
) -> None:
    at = Gate("acme", [], NothingShared(), time.monotonic, lambda: 1.0, calls_at_once=calls_at_once)
    under_way, most = Counter[int](), Counter[int]()

    async def call(number: int) -> None:
        async with at.turn(of(sample, "ada", number), 5.0, again=False):
            under_way[number] += 1
            most[number] = max(most[number], under_way[number])
            await asyncio.sleep(0.001)
            under_way[number] -= 1

    await asyncio.gather(*(call(number) for number in (1, 2) for _ in range(20)))
    assert most == dict.fromkeys((1, 2), calls_at_once or 20)


async def test_an_integration_that_must_wait_holds_up_no_other(sample: Integration) -> None:
    at = gate(limit(1, 60, LimitScope.INTEGRATION))
    await take(at, of(sample, "ada", 1))
    waiting = asyncio.create_task(take(at, of(sample, "ada", 1), within=90))
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await take(at, of(sample, "ada", 2))
        await take(at, of(sample, "grace", 3))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_who_comes_too_late_is_told_at_once(sample: Integration) -> None:
    at = gate(limit(2, 60))
    for _ in range(2):
        await take(at, sample)
    async with asyncio.timeout(1):
        with pytest.raises(RateLimited) as refused:
            await take(at, sample, within=30)
    assert refused.value.retry_after is not None
    assert 59 < refused.value.retry_after.total_seconds() <= 60


async def test_a_provider_that_wants_no_calls_is_told_as_such(sample: Integration) -> None:
    at = gate()
    async with at.turn(sample, 1.0, again=False) as turn:
        turn.answered(ApiAnswer(429, (), b"", asks_to_wait=True, retry_after=timedelta(minutes=1)))
    with pytest.raises(ProviderUnavailable):
        await take(at, sample, within=30)


async def test_who_gives_up_leaves_no_hole(sample: Integration) -> None:
    at = gate(limit(1, 0.1))
    async with at.turn(sample, 1.0, again=False):
        late = asyncio.create_task(take(at, sample, within=0.3))
        gone = asyncio.create_task(take(at, sample, within=5))
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(RateLimited):
            await late
    async with asyncio.timeout(1):
        await take(at, sample)
    assert gone.cancelled()


async def test_who_is_cancelled_as_a_place_gets_free_is_passed_over(sample: Integration) -> None:
    """The pump goes on before the task that was cancelled does; it never came back to let that one go on."""

    class Shared:
        """Counts how often it is asked."""

        asked = 0

        async def take(self, places: object) -> Full | None:
            """Let go, at once: a pump that asks for ever is ended by this."""
            self.asked += 1
            assert self.asked < 10
            return None

    now, shared = 0.0, Shared()
    at = Gate("acme", [limit(1, 1)], shared, lambda: now, lambda: 1.0)
    async with at.turn(sample, 5.0, again=False):
        gone, stays = (asyncio.create_task(take(at, sample)) for _ in range(2))
        await asyncio.sleep(0.01)  # both wait, and the pump for a place
    now = 2.0  # the turn's end has woken the pump
    gone.cancel()
    await stays
    assert gone.cancelled()
    assert shared.asked == 2


async def test_a_full_shared_budget_is_asked_again(sample: Integration) -> None:
    class Shared:
        """Full at first."""

        asked = 0

        async def take(self, places: object) -> Full | None:
            """Once no."""
            self.asked += 1
            return Full("acme", 0.05) if self.asked == 1 else None

    shared = Shared()
    at = Gate("acme", [limit(5, 1)], shared, time.monotonic, lambda: 1.0)
    begin = time.monotonic()
    await take(at, sample)
    assert (shared.asked, time.monotonic() - begin >= 0.05) == (2, True)


@pytest.mark.parametrize(("place", "others_wait"), [("acme/1", False), ("acme", True)], ids=["own", "the app's"])
async def test_a_shared_budget_that_is_full_holds_up_those_whose_it_is(
    sample: Integration, place: str, others_wait: bool
) -> None:
    class Shared:
        """Full for Ada's integration, once."""

        def __init__(self) -> None:
            self.said: list[str] = []

        async def take(self, places: Sequence[tuple[str, RateLimit]]) -> Full | None:
            """No more calls of hers."""
            names = [name for name, _ in places]
            if "acme/1" in names and not self.said:
                self.said = names
                return Full(place, 3600)
            return None

    limits = [limit(5, 1), limit(5, 1, LimitScope.INTEGRATION)]
    shared = Shared()
    at = Gate("acme", limits, shared, time.monotonic, lambda: 1.0)
    waiting = asyncio.create_task(take(at, of(sample, "ada", 1), within=7200))
    while not shared.said:  # noqa: ASYNC110  # in the loop's next rounds
        await asyncio.sleep(0)
    if others_wait:
        with pytest.raises(RateLimited):
            await take(at, of(sample, "grace", 2))
    else:
        await take(at, of(sample, "grace", 2))
    with pytest.raises(RateLimited):
        await take(at, of(sample, "ada", 1))
    waiting.cancel()


@pytest.mark.parametrize("again", [True, False])
async def test_a_call_that_goes_in_front_is_not_refused_for_those_behind_it(sample: Integration, again: bool) -> None:
    at = gate(limit(1, 0.1, LimitScope.INTEGRATION))
    await take(at, sample)
    behind = [asyncio.create_task(take(at, sample, within=3600)) for _ in range(500)]
    await asyncio.sleep(0)
    if again:
        async with at.turn(sample, 20.0, again=True):
            pass
    else:
        with pytest.raises(RateLimited):
            await take(at, sample, within=20.0)
    for task in behind:
        task.cancel()
    await asyncio.gather(*behind, return_exceptions=True)
