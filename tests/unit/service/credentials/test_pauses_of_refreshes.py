"""Slow and failed refreshes: what callers get meanwhile, and how pauses end after the cause was removed."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import pytest

from integration_server.domain.call_budget import CallBudget
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.domain.integration import Integration, UserId
from integration_server.service.background.ports import JobKind
from tests.fakes.provider import HOUR, wait_until
from tests.fakes.system import FakeSystem

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)


async def connect(system: FakeSystem, size: int) -> list[Integration]:
    """Integrations whose tokens have expired."""
    rows = [await system.connect_account(f"account-{number}", UserId(f"user-{number}")) for number in range(size)]
    system.clock.advance(HOUR)
    return rows


async def get(system: FakeSystem, integration: Integration) -> str:
    """`ok`, or the reason of the error."""
    try:
        await system.credentials.get_usable(integration.integration_id, integration.user_id)
    except IntegrationServerError as error:
        return error.reason
    return "ok"


async def fail_for_an_hour(system: FakeSystem, rows: Sequence[Integration]) -> None:
    for _ in range(20):
        for row in rows:
            await get(system, row)
        system.clock.advance(3 * MINUTE)


async def run_due_refreshes(system: FakeSystem) -> None:
    for claim in await system.due_work.claim(JobKind.REFRESH, "fake", 100, claim_duration=MINUTE):
        with suppress(IntegrationServerError):  # as the worker does
            await system.refresher.refresh_proactively(claim.item)


@pytest.mark.parametrize(
    "error",
    [
        ProviderMisconfigured(),
        ProviderRejected("grant", oauth_error="access_denied"),
        ProviderUnavailable(),
        ProviderUnavailable(retry_after=MINUTE),
        ProviderUnavailable(outcome_unknown=True),
    ],
    ids=["our client", "an unknown code", "unavailable", "asked to wait", "lost"],
)
async def test_the_reason_is_the_same_during_the_pause(system: FakeSystem, error: ProviderError) -> None:
    (row,) = await connect(system, 1)
    system.provider.refresh_error = error
    for _ in range(3):
        assert await get(system, row) == error.reason
    assert error.retry_after is not None  # the failed refresh itself says too when the next one is
    calls = len(system.provider.refreshes)
    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            await system.another_process().use_cases.credentials.get_usable(row.integration_id, row.user_id)
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > timedelta(0)
    assert len(system.provider.refreshes) == calls


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 12])
async def test_a_restart_with_corrected_settings_ends_the_pauses(system: FakeSystem, size: int) -> None:
    """They have grown to half an hour and more."""
    rows = await connect(system, size)
    system.provider.refresh_error = ProviderMisconfigured()
    await fail_for_an_hour(system, rows)
    calls = len(system.provider.refreshes)
    system.provider.refresh_error = None
    await system.another_process().refresher.recover()
    for _ in range(30):
        system.clock.advance(SECOND)
        await run_due_refreshes(system)
    assert [await get(system, row) for row in rows] == ["ok"] * size
    assert len(system.provider.refreshes) == calls + size


@pytest.mark.slow
async def test_a_process_that_restarts_again_and_again_makes_few_calls(system: FakeSystem) -> None:
    rows = await connect(system, 12)
    system.provider.refresh_error = ProviderMisconfigured()
    await fail_for_an_hour(system, rows)
    calls = len(system.provider.refreshes)
    for _ in range(5):
        service = system.another_process()
        for _ in range(3):
            await service.refresher.recover()  # only the first run ends pauses
        system.clock.advance(SECOND)
        await run_due_refreshes(system)
    assert len(system.provider.refreshes) <= calls + 5 * 3


async def test_negative_control_without_a_restart_the_pauses_last(system: FakeSystem) -> None:
    rows = await connect(system, 3)
    system.provider.refresh_error = ProviderMisconfigured()
    await system.refresher.recover()
    await fail_for_an_hour(system, rows)
    system.provider.refresh_error = None
    await system.refresher.recover()
    for _ in range(30):
        system.clock.advance(SECOND)
        await run_due_refreshes(system)
    assert await get(system, rows[0]) == ProviderMisconfigured.reason


# --- callers that cannot wait ----------------------------------------------------------------------------------------


async def get_within(system: FakeSystem, integration: Integration, seconds: float | None) -> str:
    """The access token for a caller with a deadline."""
    deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
    call = system.credentials.get_usable(integration.integration_id, integration.user_id)
    fresh = await asyncio.create_task(call, context=CallBudget(deadline).context())
    return fresh.tokens.access_token


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("left", [timedelta(seconds=1), 4 * MINUTE])
async def test_a_token_that_works_is_served_before_the_callers_deadline(
    system: FakeSystem, seconds: float, left: timedelta
) -> None:
    """The refresh hangs, and runs to its end without the caller."""
    integration = await system.connect()
    system.clock.advance(HOUR - left)
    system.provider.gate = asyncio.Event()
    assert await get_within(system, integration, seconds) == "access-1"
    system.provider.gate.set()
    system.provider.gate = None
    assert await get_within(system, integration, None) == "renewed-access-1"
    assert len(system.provider.refreshes) == 1


async def test_a_caller_without_a_deadline_gets_the_new_token(system: FakeSystem) -> None:
    integration = await system.connect()
    system.clock.advance(HOUR - MINUTE)
    system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(get_within(system, integration, None))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    system.provider.gate.set()
    assert await waiting == "renewed-access-1"


async def test_negative_control_an_expired_token_is_not_served_at_the_deadline(system: FakeSystem) -> None:
    """Then there is nothing to serve: gRPC ends the call at its deadline."""
    integration = await system.connect()
    system.clock.advance(HOUR)
    system.provider.gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await get_within(system, integration, 0.05)
    system.provider.gate.set()


@pytest.mark.slow
async def test_a_token_that_expires_while_the_caller_waits_is_not_served(system: FakeSystem) -> None:
    integration = await system.connect()
    system.clock.advance(HOUR - SECOND)
    system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(get_within(system, integration, 2))
    await wait_until(lambda: system.provider.refreshes)
    system.clock.advance(SECOND)
    with pytest.raises(ProviderUnavailable):
        await waiting
    system.provider.gate.set()
