"""Two secrets of one client: the newest first, and the previous one while the provider refuses it."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.domain.integration import Integration, Status, UserId
from integration_server.domain.oauth_client import OAuthClient
from integration_server.service.oauth_clients.oauth_client_directory import require_oauth
from integration_server.service.oauth_clients.ports import SecretState
from tests.fakes.system import ADA, FakeSystem
from tests.unit.service.oauth_clients.support import client, put_client


@pytest.fixture
async def system() -> FakeSystem:
    system = FakeSystem()
    await put_client(system)
    return system


async def connect(system: FakeSystem, user_id: str = ADA, name: str = "tenant") -> Integration:
    return await system.connect_account(f"a-{user_id}", UserId(user_id), oauth_client=name, caller="backend")


async def refresh(system: FakeSystem, row: Integration) -> None:
    """Force a refresh, after the interval between two."""
    system.clock.advance(timedelta(seconds=31))
    await system.credentials.refresh_token(row.integration_id, row.user_id, force=True)


def used(system: FakeSystem) -> Sequence[str]:
    """The secrets that were sent since the last call."""
    found = [secret for _, secret in system.provider.used_clients]
    system.provider.used_clients.clear()
    return found


async def test_a_new_secret_is_used_first_and_the_previous_one_if_it_is_refused(system: FakeSystem) -> None:
    row = await connect(system)
    await put_client(system, secret="secret-2")
    system.provider.refused_secrets = {"secret-2"}
    used(system)
    await refresh(system, row)
    assert used(system) == ["secret-2", "secret-1"]
    assert len(system.provider.refreshes) == 1  # the refused one has not spent the refresh token
    await refresh(system, row)
    assert used(system) == ["secret-1"]  # remembered
    await connect(system, "bob")  # the exchange of a code too
    assert used(system) == ["secret-1"]
    system.provider.refused_secrets = set()
    system.clock.advance(timedelta(minutes=5))
    await refresh(system, row)
    await refresh(system, row)
    assert used(system) == ["secret-2", "secret-2"]


async def test_the_alarm_names_the_client_until_the_newest_secret_is_accepted(system: FakeSystem) -> None:
    row = await connect(system)
    await put_client(system, secret="secret-2")
    system.provider.refused_secrets = {"secret-2"}
    with capture_logs() as logs:
        await refresh(system, row)
        await refresh(system, row)
    (event,) = [entry for entry in logs if entry["event"] == "client_secret_refused"]
    assert (event["integration_type"], event["oauth_client"]) == ("fake", "tenant")
    alarm = (await client(system, "tenant")).alarm
    assert alarm is not None
    assert alarm.state is SecretState.PREVIOUS_USED
    assert (await client(system, "")).alarm is None
    system.provider.refused_secrets = {"secret-1", "secret-2"}
    with pytest.raises(ProviderMisconfigured):
        await refresh(system, row)
    alarm = (await client(system, "tenant")).alarm
    assert alarm is not None
    assert alarm.state is SecretState.REFUSED
    system.provider.refused_secrets = set()
    system.clock.advance(timedelta(hours=1))
    await refresh(system, row)
    assert (await client(system, "tenant")).alarm is None


@pytest.mark.parametrize("rotates", [True, False], ids=["two secrets", "one secret"])
async def test_a_refused_client_changes_no_status(system: FakeSystem, rotates: bool) -> None:
    row = await connect(system)
    if rotates:
        await put_client(system, secret="secret-2")
    system.provider.refused_secrets = {"secret-1", "secret-2"}
    system.clock.advance(timedelta(hours=2))
    for _ in range(20):
        with pytest.raises(ProviderMisconfigured):
            await refresh(system, row)
        await system.health_checker.check_health(row.integration_id, ADA)
    stored = system.row(row.integration_id)
    assert (stored.status(system.clock()), stored.last_error, stored.error_count) == (Status.ACTIVE, None, 0)


async def test_a_call_sends_at_most_one_request_more_and_one_if_every_secret_is_refused(system: FakeSystem) -> None:
    row = await connect(system)
    await put_client(system, secret="secret-2")
    system.provider.refused_secrets = {"secret-1", "secret-2"}
    used(system)
    counts = []
    for _ in range(8):
        with pytest.raises(ProviderMisconfigured):
            await refresh(system, row)
        counts.append(len(used(system)))
    assert counts == [2, *[1] * 7]
    system.provider.refused_secrets = {"secret-2"}  # the provider accepts the former again
    for _ in range(2):
        try:
            await refresh(system, row)
        except ProviderMisconfigured:
            continue
    await refresh(system, row)
    assert used(system)[-1] == "secret-1"


async def test_a_thousand_refreshes_do_not_each_try_the_refused_secret(system: FakeSystem) -> None:
    await put_client(system, secret="secret-2")
    system.provider.refused_secrets = {"secret-2"}
    providers = system.oauth_connection.providers
    provider = require_oauth(await providers.for_client("fake", "tenant"))
    tokens = OAuthTokens("access", "refresh")
    for _ in range(20):
        await asyncio.gather(*(providers.authenticated(provider, lambda one: one.refresh(tokens)) for _ in range(50)))
    sent = used(system)
    assert sent.count("secret-1") == 1000
    assert sent.count("secret-2") <= 50  # those that began before the first response


async def test_negative_control_without_the_memory_every_refresh_tries_the_refused_secret(system: FakeSystem) -> None:
    row = await connect(system)
    await put_client(system, secret="secret-2")
    system.provider.refused_secrets = {"secret-2"}
    system.use_cases.oauth_connection.providers.authentication.skips_refused = False
    used(system)
    for _ in range(3):
        await refresh(system, row)
    assert used(system) == ["secret-2", "secret-1"] * 3


async def test_negative_control_without_the_previous_secret_a_rotation_fails() -> None:
    system = FakeSystem(options={"uses_previous_secrets": False})
    await put_client(system)
    row = await connect(system)
    await put_client(system, secret="secret-2")
    system.provider.refused_secrets = {"secret-2"}
    with pytest.raises(ProviderMisconfigured):
        await refresh(system, row)


async def test_a_replaced_secret_ends_the_pauses_of_its_client_only(system: FakeSystem) -> None:
    await put_client(system, "other", "other-1")
    rows = [await connect(system, f"user-{number}") for number in range(5)]
    others = [await connect(system, f"other-{number}", "other") for number in range(5)]
    system.provider.refused_secrets = {"secret-1", "other-1"}
    with pytest.raises(ProviderMisconfigured):
        await refresh(system, rows[0])
    for row in (*rows, *others):  # as after many failures
        retry_time = system.clock() + timedelta(hours=1)
        system.alter(row.integration_id, refresh_failures=9, refresh_retry_time=retry_time)

    def paused(group: Sequence[Integration]) -> int:
        times = [system.row(row.integration_id).refresh_retry_time for row in group]
        return sum(time is not None and time > system.clock() for time in times)

    assert (paused(rows), paused(others)) == (5, 5)
    await put_client(system, secret="secret-2")
    assert (paused(rows), paused(others)) == (2, 5)
    system.clock.advance(timedelta(seconds=1))
    probed = next(row for row in rows if system.row(row.integration_id).refresh_retry_time is None)
    await refresh(system, probed)
    assert (paused(rows), paused(others)) == (0, 5)


@pytest.mark.parametrize("error", [ProviderUnavailable(), ProviderRejected("grant", oauth_error="invalid_grant")])
async def test_another_failure_says_nothing_about_a_secret(system: FakeSystem, error: Exception) -> None:
    row = await connect(system)
    await put_client(system, secret="secret-2")
    system.provider.refresh_error = error
    used(system)
    with pytest.raises(Exception, match=r".") as raised:
        await refresh(system, row)
    assert not isinstance(raised.value, ProviderMisconfigured)
    assert used(system) == ["secret-2"]
    assert (await client(system, "tenant")).alarm is None


async def test_a_code_that_was_exchanged_is_not_sent_again(system: FakeSystem) -> None:
    """A later request of the exchange that is refused, such as a lookup, does not repeat it."""
    await put_client(system, secret="secret-2")
    error = ProviderMisconfigured()
    error.issued_tokens = await system.tokens((await connect(system)).integration_id)
    used(system)
    system.provider.exchange_error = error
    attempt = await system.begin(oauth_client="tenant", caller="backend")
    with pytest.raises(ProviderMisconfigured):
        await system.call_back(attempt.state, user_id=ADA)
    assert used(system)[0] == "secret-2"
    assert len(system.provider.exchanges) == 2


async def test_the_operators_own_client_has_two_secrets_too(system: FakeSystem) -> None:
    system.provider.oauth_client = OAuthClient("own-client", ("new", "old"))
    row = await system.connect()
    system.provider.refused_secrets = {"new"}
    used(system)
    await refresh(system, row)
    assert used(system) == ["new", "old"]
    alarm = (await client(system, "")).alarm
    assert alarm is not None
    assert alarm.state is SecretState.PREVIOUS_USED


@pytest.mark.parametrize(
    ("changes", "secrets"),
    [
        ([{}, {"secret": "b"}], ["b", "a"]),
        ([{}, {"secret": "b"}, {"secret": "b"}], ["b", "a"]),  # set again: unchanged
        ([{}, {"secret": "b"}, {"secret": "a"}], ["a", "b"]),  # back to the former
        ([{}, {"secret": "b"}, {"secret": "c"}], ["c", "b"]),
        ([{}, {"secret": "b"}, {"secret": ""}], ["b", "a"]),
        ([{}, {"secret": "b"}, {"secret": "", "ends_rotation": True}], ["b"]),
        ([{}, {"secret": "b", "ends_rotation": True}], ["b"]),
    ],
)
async def test_at_most_two_secrets_are_kept(changes: Sequence[Mapping[str, Any]], secrets: Sequence[str]) -> None:
    system = FakeSystem()
    for change in changes:
        await put_client(system, **{"secret": "a", **change})
    provider = await system.oauth_connection.providers.for_client("fake", "tenant")
    assert list(provider.oauth_client.secrets) == secrets
