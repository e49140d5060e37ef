"""The rate limiter: limits, fairness, and early rejection."""

import asyncio
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from integration_server.domain.errors import ProviderUnavailable, RateLimited
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.proxy_messages import ApiResponse, LimitScope, Quota, RateLimit
from integration_server.service.proxy.rate_limiter import Exhausted, ProviderRateLimiter, RateLimiters
from tests.fakes.system import FakeSystem


def limit(calls: int, seconds: float, scope: LimitScope = LimitScope.APP) -> RateLimit:
    return RateLimit(calls, timedelta(seconds=seconds), scope)


def new_limiter(*limits: RateLimit) -> ProviderRateLimiter:
    return ProviderRateLimiter("acme", limits, None, time.monotonic, lambda: 1.0)


@pytest.fixture
async def sample() -> Integration:
    return await FakeSystem().connect()


def integration_of(sample: Integration, user: str, number: int = 1) -> Integration:
    row = IntegrationId(number)
    return replace(sample, user_id=UserId(user), integration_id=row, account_id=f"account-{number}")


async def acquire(
    limiter: ProviderRateLimiter, integration: Integration, within: float = 60.0, work: float = 0.0
) -> None:
    async with limiter.permit(integration, within, is_retry=False):
        await asyncio.sleep(work)


async def test_a_flood_of_one_user_leaves_other_users_their_share(sample: Integration) -> None:
    limiter, order = new_limiter(limit(10, 0.05)), list[str]()

    async def call(user: str) -> None:
        async with limiter.permit(integration_of(sample, user, len(user)), 60.0, is_retry=False):
            order.append(user)

    flood = [asyncio.create_task(call("ada")) for _ in range(100)]
    while len(order) < 10:  # noqa: ASYNC110  # the limiter sets no event
        await asyncio.sleep(0)
    others = [asyncio.create_task(call(user)) for user in ("grace", "linus") for _ in range(15)]
    await asyncio.sleep(0)  # now all of them wait
    start = len(order)
    await asyncio.gather(*flood, *others)
    shares = Counter(order[start : start + 45])
    print("shares of 45 calls while all three waited:", dict(shares))
    assert max(shares.values()) - min(shares.values()) <= 3


async def test_negative_control_in_a_single_queue_the_flood_goes_first(sample: Integration) -> None:
    """All calls belong to one user, so a later call waits for the whole flood."""
    limiter, order = new_limiter(limit(10, 0.05)), list[str]()

    async def call(user: str) -> None:
        async with limiter.permit(integration_of(sample, "everybody"), 60.0, is_retry=False):
            order.append(user)

    flood = [asyncio.create_task(call("ada")) for _ in range(100)]
    while len(order) < 10:  # noqa: ASYNC110  # the limiter sets no event
        await asyncio.sleep(0)
    others = [asyncio.create_task(call("grace")) for _ in range(15)]
    await asyncio.gather(*flood, *others)
    assert set(order[:100]) == {"ada"}


@pytest.mark.parametrize("calls_at_once", [3, None])
async def test_concurrent_calls_of_an_account_are_limited(sample: Integration, calls_at_once: int | None) -> None:
    limiter = ProviderRateLimiter("acme", [], None, time.monotonic, lambda: 1.0, calls_at_once=calls_at_once)
    in_flight, most = Counter[int](), Counter[int]()

    async def call(number: int) -> None:
        async with limiter.permit(integration_of(sample, "ada", number), 60.0, is_retry=False):
            in_flight[number] += 1
            most[number] = max(most[number], in_flight[number])
            await asyncio.sleep(0.001)
            in_flight[number] -= 1

    await asyncio.gather(*(call(number) for number in (1, 2) for _ in range(20)))
    assert most == dict.fromkeys((1, 2), calls_at_once or 20)


async def test_a_waiting_integration_does_not_delay_others(sample: Integration) -> None:
    limiter = new_limiter(limit(1, 60, LimitScope.INTEGRATION))
    await acquire(limiter, integration_of(sample, "ada", 1))
    waiting = asyncio.create_task(acquire(limiter, integration_of(sample, "ada", 1), within=90))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await acquire(limiter, integration_of(sample, "ada", 2))
        await acquire(limiter, integration_of(sample, "grace", 3))
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_call_that_cannot_start_in_time_is_rejected_at_once(sample: Integration) -> None:
    limiter = ProviderRateLimiter("acme", [limit(2, 60)], None, lambda: 0.0, lambda: 1.0)
    for _ in range(2):
        await acquire(limiter, sample)
    async with asyncio.timeout(29):  # less than the wait that is permitted
        with pytest.raises(RateLimited) as raised:
            await acquire(limiter, sample, within=30)
    assert raised.value.retry_after == timedelta(seconds=60)


async def test_a_provider_that_asks_for_a_pause_is_unavailable(sample: Integration) -> None:
    limiter = new_limiter()
    async with limiter.permit(sample, 1.0, is_retry=False) as observe:
        observe(ApiResponse(429, (), b"", is_rate_limited=True, retry_after=timedelta(minutes=1)))
    with pytest.raises(ProviderUnavailable):
        await acquire(limiter, sample, within=30)


async def test_a_cancelled_waiter_frees_its_capacity(sample: Integration) -> None:
    limiter = new_limiter(limit(1, 0.1))
    async with limiter.permit(sample, 1.0, is_retry=False):
        late = asyncio.create_task(acquire(limiter, sample, within=0.3))
        gone = asyncio.create_task(acquire(limiter, sample, within=5))
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(RateLimited):
            await late
    async with asyncio.timeout(20):
        await acquire(limiter, sample)
    assert gone.cancelled()


async def test_a_waiter_cancelled_as_capacity_frees_is_skipped(sample: Integration) -> None:
    """The dispatcher runs before the cancelled task does, and must not loop until that task runs."""

    class FakeDistributedLimiter:
        """Counts its calls."""

        calls = 0

        async def acquire(self, counters: object) -> Exhausted | None:
            """Permit the call; the assertion ends a dispatcher that loops."""
            self.calls += 1
            assert self.calls < 10
            return None

    now, shared = 0.0, FakeDistributedLimiter()
    limiter = ProviderRateLimiter("acme", [limit(1, 1)], shared, lambda: now, lambda: 1.0)
    async with limiter.permit(sample, 5.0, is_retry=False):
        gone, remaining = (asyncio.create_task(acquire(limiter, sample)) for _ in range(2))
        await asyncio.sleep(0.01)  # both wait, and so does the dispatcher
    now = 2.0  # the end of the call has woken the dispatcher
    gone.cancel()
    await remaining
    assert gone.cancelled()
    assert shared.calls == 2


async def test_an_exhausted_shared_counter_is_tried_again(sample: Integration) -> None:
    class FakeDistributedLimiter:
        """Exhausted at the first call."""

        calls = 0

        async def acquire(self, counters: object) -> Exhausted | None:
            """Reject once."""
            self.calls += 1
            return Exhausted("acme", 0.05) if self.calls == 1 else None

    shared = FakeDistributedLimiter()
    limiter = ProviderRateLimiter("acme", [limit(5, 1)], shared, time.monotonic, lambda: 1.0)
    begin = time.monotonic()
    await acquire(limiter, sample)
    assert (shared.calls, time.monotonic() - begin >= 0.05) == (2, True)


@pytest.mark.parametrize(("place", "others_wait"), [("acme:1", False), ("acme", True)], ids=["own", "the app's"])
async def test_an_exhausted_shared_counter_delays_only_its_integrations(
    sample: Integration, place: str, others_wait: bool
) -> None:
    class FakeDistributedLimiter:
        """Exhausted once, for integration 1."""

        def __init__(self) -> None:
            self.names_taken: list[str] = []

        async def acquire(self, counters: Sequence[tuple[str, RateLimit]]) -> Exhausted | None:
            """Reject the first call of integration 1."""
            names = [name for name, _ in counters]
            if "acme:1" in names and not self.names_taken:
                self.names_taken = names
                return Exhausted(place, 3600)
            return None

    limits = [limit(5, 1), limit(5, 1, LimitScope.INTEGRATION)]
    shared = FakeDistributedLimiter()
    limiter = ProviderRateLimiter("acme", limits, shared, time.monotonic, lambda: 1.0)
    waiting = asyncio.create_task(acquire(limiter, integration_of(sample, "ada", 1), within=7200))
    while not shared.names_taken:  # noqa: ASYNC110  # in the loop's next rounds
        await asyncio.sleep(0)
    if others_wait:
        with pytest.raises(RateLimited):
            await acquire(limiter, integration_of(sample, "grace", 2))
    else:
        await acquire(limiter, integration_of(sample, "grace", 2))
    with pytest.raises(RateLimited):
        await acquire(limiter, integration_of(sample, "ada", 1))
    waiting.cancel()


@pytest.mark.parametrize("is_retry", [True, False])
async def test_a_retry_is_not_rejected_because_of_calls_behind_it(sample: Integration, is_retry: bool) -> None:
    limiter = new_limiter(limit(1, 0.1, LimitScope.INTEGRATION))
    await acquire(limiter, sample)
    behind = [asyncio.create_task(acquire(limiter, sample, within=3600)) for _ in range(500)]
    await asyncio.sleep(0)
    if is_retry:
        async with limiter.permit(sample, 20.0, is_retry=True):
            pass
    else:
        with pytest.raises(RateLimited):
            await acquire(limiter, sample, within=20.0)
    for task in behind:
        task.cancel()
    await asyncio.gather(*behind, return_exceptions=True)


# --- learned limits

LIMITED = ApiResponse(429, (), b"", is_rate_limited=True, retry_after=timedelta(days=1))
OK = ApiResponse(200, (), b"")


class ManualTime:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


async def report(limiter: ProviderRateLimiter, integration: Integration, response: ApiResponse) -> None:
    async with limiter.permit(integration, 0.9, is_retry=False) as observe:
        observe(response)


async def is_paused(limiter: ProviderRateLimiter, integration: Integration) -> bool:
    try:
        await report(limiter, integration, OK)
    except ProviderUnavailable:
        return True
    return False


@pytest.mark.parametrize("limits", [(), (limit(1000, 1),), (limit(1000, 1, LimitScope.INTEGRATION),)], ids=str)
@pytest.mark.parametrize(
    "response",
    [
        LIMITED,
        replace(LIMITED, status=503),
        replace(LIMITED, retry_after=None),
        replace(OK, quotas=[Quota(0, timedelta(days=1))]),
        replace(LIMITED, status=403, quotas=[Quota(0, timedelta(days=1))]),
    ],
    ids=str,
)
async def test_one_users_limit_pauses_nobody_else(
    sample: Integration, limits: Sequence[RateLimit], response: ApiResponse
) -> None:
    """However many accounts that user has."""
    limiter = ProviderRateLimiter("acme", limits, None, ManualTime(), lambda: 1.0)
    for number in range(10):
        await report(limiter, integration_of(sample, "eve", number), response)
        assert await is_paused(limiter, integration_of(sample, "eve", number))
    assert not await is_paused(limiter, integration_of(sample, "ada", 100))


async def test_negative_control_one_rejection_pauses_everybody_if_it_counts_for_all(sample: Integration) -> None:
    limiter = ProviderRateLimiter("acme", [], None, ManualTime(), lambda: 1.0, app_limit_users=1)
    await report(limiter, integration_of(sample, "eve", 1), LIMITED)
    assert await is_paused(limiter, integration_of(sample, "ada", 2))


async def test_a_limit_that_several_users_show_pauses_everybody_for_a_minute(sample: Integration) -> None:
    now = ManualTime()
    limiter = ProviderRateLimiter("acme", [], None, now, lambda: 1.0)
    for number, user in enumerate(("ada", "grace", "linus")):
        await report(limiter, integration_of(sample, user, number), LIMITED)
    assert await is_paused(limiter, integration_of(sample, "tim", 9))
    now.seconds += 59
    assert await is_paused(limiter, integration_of(sample, "tim", 9))
    now.seconds += 2
    assert not await is_paused(limiter, integration_of(sample, "tim", 9))
    assert await is_paused(limiter, integration_of(sample, "ada", 0))


@pytest.mark.parametrize("accounts", [("same",) * 4, ("one", "two", "one", "two")], ids=str)
async def test_a_limit_of_accounts_that_many_users_share_is_not_everybodys(
    sample: Integration, accounts: Sequence[str]
) -> None:
    limiter = ProviderRateLimiter("acme", [], None, ManualTime(), lambda: 1.0)
    for number, (user, account) in enumerate(zip(("eve", "mallory", "trudy", "oscar"), accounts, strict=True)):
        await report(limiter, replace(integration_of(sample, user, number), account_id=account), LIMITED)
    assert not await is_paused(limiter, integration_of(sample, "ada", 100))


async def test_a_success_between_shows_that_the_limit_is_not_everybodys(sample: Integration) -> None:
    limiter = ProviderRateLimiter("acme", [], None, ManualTime(), lambda: 1.0)
    for number, user in enumerate(("eve", "mallory", "trudy", "oscar")):
        await report(limiter, integration_of(sample, user, number), LIMITED)
        assert not await is_paused(limiter, integration_of(sample, "ada", 100))


async def kept_after_rejections(sample: Integration, count: int, *, by_resource: bool, app_limit_users: int = 3) -> int:
    """The bytes that a limiter keeps of rejections, each of another user or of another resource, without a success."""
    now = ManualTime()
    limiter = ProviderRateLimiter("acme", [], None, now, lambda: 1.0, app_limit_users=app_limit_users)
    tracemalloc.start()
    try:
        for number in range(count):
            user, resource = ("eve", f"resource-{number}") if by_resource else (f"user-{number}", "")
            async with limiter.permit(integration_of(sample, user), 0.9, is_retry=False, resource=resource) as observe:
                observe(LIMITED)
            now.seconds += 3601  # so that no pause has to be kept
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


async def test_rejected_users_take_bounded_memory(sample: Integration) -> None:
    kept = await kept_after_rejections(sample, 100, by_resource=False)
    assert await kept_after_rejections(sample, 600, by_resource=False) < kept + 20_000


async def test_negative_control_if_every_rejected_user_is_kept_the_memory_grows(sample: Integration) -> None:
    kept = await kept_after_rejections(sample, 100, by_resource=False, app_limit_users=10**9)
    assert await kept_after_rejections(sample, 600, by_resource=False, app_limit_users=10**9) > kept + 40_000


@pytest.mark.slow
async def test_rejected_resources_take_bounded_memory(sample: Integration) -> None:
    kept = await kept_after_rejections(sample, 1000, by_resource=True)
    assert (
        await kept_after_rejections(sample, 2000, by_resource=True) < kept + 300_000
    )  # a dictionary may grow; 1,000 have 700 kB


async def test_an_accounts_pause_is_an_hour_at_most_and_then_one_call_is_tried(sample: Integration) -> None:
    now = ManualTime()
    limiter = ProviderRateLimiter("acme", [], None, now, lambda: 1.0)
    await report(limiter, sample, LIMITED)
    now.seconds += 3599
    assert await is_paused(limiter, sample)
    now.seconds += 2
    async with limiter.permit(sample, 1.0, is_retry=False) as observe:
        with pytest.raises(RateLimited):
            async with limiter.permit(sample, 0.01, is_retry=False):
                pass
        observe(OK)
    assert not await is_paused(limiter, sample)


@pytest.mark.parametrize(
    ("calls", "at_once", "workers", "expected"),
    [(10, None, 1, (10, None)), (10, 8, 2, (5, 4)), (10, 8, 3, (3, 2)), (1, 1, 2, (1, 1)), (600, None, 64, (9, None))],
)
async def test_each_of_several_processes_has_a_share_of_declared_limits_unless_they_count_together(
    calls: int, at_once: int | None, workers: int, expected: tuple[int, int | None]
) -> None:
    """Together they stay within the limit, unless it is less than a call for each of them."""
    system = FakeSystem()
    provider = next(iter(system.providers.all()))
    provider.rate_limits, provider.calls_at_once = [limit(calls, 1)], at_once  # type: ignore[misc]

    class Together:
        async def acquire(self, counters: Sequence[tuple[str, RateLimit]]) -> Exhausted | None:
            """Permit all calls."""
            del counters
            return None

    of_one, of_redis = (
        RateLimiters(shared, time.monotonic, lambda: 1.0, share=1 / workers).limiter(provider)
        for shared in (None, Together())
    )
    assert ([one.calls for one in of_one.limits], of_one.calls_at_once) == ([expected[0]], expected[1])
    assert [one.calls for one in of_redis.limits] == [calls]
