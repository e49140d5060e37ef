"""Mass failures: `invalid_grant` for most grants of a type within minutes ends none of them.

The refreshes of all replicas count together, and a fleet of three is enough.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest
from structlog.testing import capture_logs

from integration_server.domain.credentials import RefreshCause
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.events import EventKind
from integration_server.domain.integration import Integration, Status, UserId
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.integrations.ports import NewAccount
from tests.fakes.provider import HOUR, FakeProvider
from tests.fakes.stores import count_calls, intercept, restore
from tests.fakes.system import FORCED_INTERVAL, FakeSystem

MINUTE = timedelta(minutes=1)
INVALID_GRANT = ProviderRejected("grant", oauth_error="invalid_grant")


async def connect(
    system: FakeSystem,
    size: int,
    integration_type: str = "fake",
    *,
    user: Callable[[int], str] = "user-{}".format,
    account: Callable[[int], str | None] = "account-{}".format,
) -> list[Integration]:
    """Integrations whose tokens have expired, each of another user and account."""
    rows = []
    for number in range(size):
        provider = system.providers[integration_type]
        assert isinstance(provider, FakeProvider)
        provider.account = NewAccount(account(number), None)
        rows.append(await system.connect(UserId(user(number)), integration_type))
    system.clock.advance(HOUR)
    return rows


def replicas(system: FakeSystem, number: int = 3) -> list[TokenRefresher]:
    return [system.another_process().refresher for _ in range(number)]


async def refresh_all(
    system: FakeSystem,
    rows: Sequence[Integration],
    gap: timedelta = timedelta(0),
    *,
    servers: Sequence[TokenRefresher] = (),
) -> Counter[str]:
    """Refresh each at another replica, one after the other. Returns the outcomes."""
    outcomes: Counter[str] = Counter()
    servers = servers or replicas(system)
    for number, row in enumerate(rows):
        try:
            await servers[number % 3].refresh(system.row(row.integration_id))
        except IntegrationServerError as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes["refreshed"] += 1
        system.clock.advance(gap)
    return outcomes


def ended(system: FakeSystem, rows: Sequence[Integration]) -> int:
    return sum(system.row(row.integration_id).reauthorization_required for row in rows)


def token_calls(system: FakeSystem) -> int:
    return len(system.provider.refreshes)


@pytest.mark.parametrize("gap", [timedelta(0), 3 * MINUTE], ids=["at once", "within minutes"])
@pytest.mark.parametrize("size", [3, 4, 7, pytest.param(40, marks=pytest.mark.slow)])
async def test_a_mass_failure_over_replicas_ends_no_grant(system: FakeSystem, size: int, gap: timedelta) -> None:
    rows = await connect(system, size)
    system.provider.refresh_error = INVALID_GRANT
    outcomes = await refresh_all(system, rows, gap)
    assert outcomes == {"ReauthorizationRequired": 2, "ProviderMisconfigured": size - 2}
    assert ended(system, rows) == 0
    for row in rows:
        current = system.row(row.integration_id)
        assert current.last_error is None
        assert current.refresh_retry_time is not None
        assert current.refresh_due_time == current.refresh_retry_time


@pytest.mark.parametrize("size", [3, 5, pytest.param(40, marks=pytest.mark.slow)])
async def test_concurrent_refusals_end_no_grant(system: FakeSystem, size: int) -> None:
    rows = await connect(system, size)
    system.provider.refresh_error = INVALID_GRANT
    servers = replicas(system)
    outcomes = await asyncio.gather(
        *(servers[number % 3].refresh(row) for number, row in enumerate(rows)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} <= {ReauthorizationRequired, ProviderMisconfigured}
    assert ended(system, rows) == 0
    changes = [Status(event.status_after) for event in system.event_rows() if event.kind == EventKind.STATUS_CHANGED]
    assert changes.count(Status.EXPIRED) <= 2


async def test_negative_control_without_the_detector_every_grant_ends() -> None:
    system = FakeSystem(options={"mass_failure_count": 1000})
    async with system.tasks:
        rows = await connect(system, 7)
        system.provider.refresh_error = INVALID_GRANT
        assert await refresh_all(system, rows) == {"ReauthorizationRequired": 7}
        assert ended(system, rows) == 7


@pytest.mark.parametrize("hours", [1, pytest.param(12, marks=pytest.mark.slow)])
async def test_all_recover_by_themselves_after_a_mass_failure(system: FakeSystem, hours: int) -> None:
    rows, servers = await connect(system, 5), replicas(system)
    system.provider.refresh_error = INVALID_GRANT
    for _ in range(hours * 12):
        await refresh_all(system, rows, servers=servers)
        assert ended(system, rows) == 0
        system.clock.advance(5 * MINUTE)
    print(f"{hours} h of invalid_grant for 5 integrations: {token_calls(system)} token calls, 0 grants ended")
    assert token_calls(system) < 5 * (6 + 2 * hours)
    system.provider.refresh_error = None
    for _ in range(60):
        await refresh_all(system, rows, servers=servers)
        system.clock.advance(MINUTE)
        if all(system.row(row.integration_id).version > row.version for row in rows):
            break
    assert {system.row(row.integration_id).status(system.clock()) for row in rows} == {Status.ACTIVE}


async def test_a_restart_in_the_middle_forgets_nothing(system: FakeSystem) -> None:
    """Each refresh is made by a process that has seen nothing before."""
    rows = await connect(system, 6)
    system.provider.refresh_error = INVALID_GRANT
    for row in rows:
        with pytest.raises((ReauthorizationRequired, ProviderMisconfigured)):
            await system.another_process().refresher.refresh(row)
    assert ended(system, rows) == 0


# --- what is no mass failure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
async def test_the_grants_of_one_or_two_end(system: FakeSystem, size: int) -> None:
    """They cannot be told apart from grants that their users have ended."""
    rows = await connect(system, size)
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, rows)
    assert ended(system, rows) == size


@pytest.mark.slow
async def test_grants_that_end_among_many_that_work_end_at_once(system: FakeSystem) -> None:
    """Thirty of many in an hour, as users end them."""
    rows, servers = await connect(system, 150), replicas(system)
    for number, row in enumerate(rows):
        system.provider.refresh_error = None if number % 5 else INVALID_GRANT
        await refresh_all(system, [row], timedelta(seconds=24), servers=servers)
    assert ended(system, rows) == ended(system, rows[::5]) == 30


@pytest.mark.slow
async def test_a_burst_of_ended_grants_among_many_that_work_ends(system: FakeSystem) -> None:
    """An organisation ends fifteen at once; they are spared for as long as they look like a mass failure."""
    rows = await connect(system, 60)
    dead, alive = rows[:15], rows[15:]
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, dead)
    assert ended(system, dead) < 15
    for _ in range(3):
        system.provider.refresh_error = None
        await refresh_all(system, alive, timedelta(seconds=2))
        system.provider.refresh_error = INVALID_GRANT
        await refresh_all(system, [row for row in dead if not system.row(row.integration_id).reauthorization_required])
        system.clock.advance(HOUR)
    assert ended(system, dead) == 15
    assert ended(system, alive) == 0


@pytest.mark.slow
async def test_a_small_fleet_whose_users_have_all_left_ends_after_a_day(system: FakeSystem) -> None:
    rows = await connect(system, 3)
    system.provider.refresh_error = INVALID_GRANT
    for hour in range(30):
        await refresh_all(system, rows)
        assert ended(system, rows) == (0 if hour < 24 else ended(system, rows))
        system.clock.advance(HOUR)
    assert ended(system, rows) == 3
    assert token_calls(system) < 120


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "account"),
    [
        (lambda _: "eve", "account-{}".format),
        (lambda number: f"eve-{number % 2}", "account-{}".format),
        ("user-{}".format, lambda _: "the account of a shop"),
        (lambda _: "eve", lambda _: None),
    ],
    ids=["one user", "two users", "one account of many users", "no account ids"],
)
async def test_grants_that_one_person_can_end_are_no_mass_failure(
    system: FakeSystem, user: Callable[[int], str], account: Callable[[int], str | None]
) -> None:
    """However many they are."""
    rows = await connect(system, 25, user=user, account=account)
    system.provider.refresh_error = INVALID_GRANT
    assert await refresh_all(system, rows) == {"ReauthorizationRequired": 25}
    assert ended(system, rows) == 25


async def test_a_user_who_ends_own_grants_does_not_hide_what_happens_to_another(system: FakeSystem) -> None:
    own, other = await connect(system, 19, user=lambda _: "eve"), await connect(system, 1, account=lambda _: "other")
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, own)
    assert await refresh_all(system, other) == {"ReauthorizationRequired": 1}
    assert ended(system, [*own, *other]) == 20


async def test_negative_control_the_same_grants_of_many_people_are_a_mass_failure(system: FakeSystem) -> None:
    rows = await connect(system, 25)
    system.provider.refresh_error = INVALID_GRANT
    assert (await refresh_all(system, rows))["ProviderMisconfigured"] == 23
    assert ended(system, rows) == 0


async def test_the_successes_of_one_user_do_not_hide_a_mass_failure(system: FakeSystem) -> None:
    busy, rows = await connect(system, 15, user=lambda _: "eve"), await connect(system, 4, account="other-{}".format)
    await refresh_all(system, busy)
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, rows)
    assert ended(system, rows) == 0


async def test_a_spared_refresh_says_when_it_is_repeated(system: FakeSystem) -> None:
    rows = await connect(system, 3)
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, rows[:2])
    with pytest.raises(ProviderMisconfigured) as caught:
        await system.refresher.refresh(rows[2])
    assert caught.value.retry_after is not None
    assert system.row(rows[2].integration_id).refresh_retry_time == system.clock() + caught.value.retry_after


async def test_callers_learn_the_reason_also_during_the_pause(system: FakeSystem) -> None:
    """Each is told to wait, by every replica; none that it has to connect again."""
    rows = await connect(system, 4)
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, rows)
    calls = token_calls(system)
    for row in rows:
        with pytest.raises(ProviderMisconfigured) as caught:
            await system.another_process().use_cases.credentials.get_usable(row.integration_id, row.user_id)
        assert caught.value.retry_after is not None
    assert token_calls(system) == calls


async def test_another_types_refreshes_do_not_count(system: FakeSystem) -> None:
    other_provider = system.add_provider("other")
    rows, others = await connect(system, 2), await connect(system, 2, "other")
    system.provider.refresh_error = other_provider.refresh_error = INVALID_GRANT
    await refresh_all(system, [*rows, *others])
    assert (ended(system, rows), ended(system, others)) == (2, 2)


async def test_other_failures_do_not_count(system: FakeSystem) -> None:
    rows = await connect(system, 10)
    for error in (
        ProviderUnavailable(),
        ProviderMisconfigured(),
        ProviderRejected("grant", oauth_error="access_denied"),
    ):
        system.provider.refresh_error = error
        await refresh_all(system, rows[1:])
        system.clock.advance(MINUTE)
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, rows[:1])
    assert ended(system, rows) == 1


async def test_repeated_refusals_of_the_same_integrations_count_once(system: FakeSystem) -> None:
    rows = await connect(system, 3)
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, rows[:2])
    for _ in range(5):  # dead grants that are forced are no new refusals either
        system.clock.advance(FORCED_INTERVAL)
        for row in rows[:2]:
            with pytest.raises(ReauthorizationRequired):
                await system.refresher.refresh(system.row(row.integration_id), RefreshCause.FORCE)
    await refresh_all(system, rows[2:])
    assert ended(system, rows) == 3


# --- cost, and faults in the middle ----------------------------------------------------------------------------------


async def test_successful_refreshes_read_no_outcomes(system: FakeSystem) -> None:
    await refresh_all(system, await connect(system, 10))
    assert count_calls(system.leases, "latest_outcomes") == count_calls(system.leases, "record_refusal") == 0


async def test_a_failed_revert_is_repeated_at_the_next_refusal(system: FakeSystem) -> None:
    async def unavailable(integration: Integration, retry_time: datetime | None) -> None:
        raise StoreUnavailable

    rows = await connect(system, 4)
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, rows[:2])
    intercept(system.integrations, revert_failure=unavailable)
    with pytest.raises(StoreUnavailable):
        await system.refresher.refresh(rows[2])
    restore(system.integrations)
    assert ended(system, rows) == 2
    with pytest.raises(ProviderMisconfigured):
        await system.refresher.refresh(rows[3])
    assert ended(system, rows) == 0


async def test_a_mass_failure_is_logged(system: FakeSystem) -> None:
    rows = await connect(system, 3)
    system.provider.refresh_error = INVALID_GRANT
    await refresh_all(system, rows[:2])
    with capture_logs() as logs, pytest.raises(ProviderMisconfigured):
        await system.another_process().refresher.refresh(rows[2])
    events = Counter(log["event"] for log in logs)
    assert (events["mass_invalid_grant"], events["reauthorization_reverted"]) == (1, 2)
