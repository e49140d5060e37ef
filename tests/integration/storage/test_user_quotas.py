"""The quotas of a user on both databases, with replicas that race."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from integration_server.domain.errors import IntegrationNotFound, QuotaExceeded
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.connections.ports import AuthorizationAttempt
from integration_server.storage.connections import SqlAuthorizationAttempts
from integration_server.storage.engine import Database, open_database
from integration_server.storage.tables import authorization_attempts, integrations, user_usage, webhook_events
from integration_server.storage.user_usage import UserQuotas
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from tests.contracts.integration_rows import (
    ANN,
    BOB,
    LATER,
    NOW,
    SqlRows,
    create_connected,
    new_attempt,
    new_credentials,
    new_integration,
)
from tests.contracts.integration_rows import account as account_named
from tests.contracts.webhook_contract import list_all, new_event

REPLICAS = 3
KIB = 1024
QUOTAS = UserQuotas(integrations=5, authorization_attempts=3, webhook_bytes=16 * KIB)
UNLIMITED = UserQuotas(10**6, 10**6, 10**9)


@pytest.fixture
async def replicas(database_url: str, database: Database) -> AsyncIterator[Sequence[Database]]:
    """The database as three replicas have it open."""
    async with open_database(database_url) as second, open_database(database_url) as third:
        yield database, second, third


async def count_rows(database: Database, user_id: UserId) -> int:
    query = select(func.count()).select_from(integrations).where(integrations.c.user_id == user_id)
    return int(await database.fetch_value(query))


# --- integrations ----------------------------------------------------------------------------------------------------


async def connect_key(database: Database, number: int, quotas: UserQuotas, user_id: UserId = ANN) -> object:
    row = new_integration(user_id)
    account = account_named(f"account-{number}")
    return await SqlRows(database, quotas=quotas).add_connected(row, account, new_credentials(), NOW)


async def begin(database: Database, quotas: UserQuotas, user_id: UserId = ANN, **changes: object) -> IntegrationId:
    attempt = new_attempt(user_id, **changes)
    return await SqlAuthorizationAttempts(database, quotas).begin(attempt, new_integration(user_id))


async def race(replicas: Sequence[Database], quotas: UserQuotas) -> int:
    """Both ways to add an integration, concurrently at all replicas. Returns how many succeeded."""
    calls = [
        begin(replicas[number % REPLICAS], quotas)
        if number % 2
        else connect_key(replicas[number % REPLICAS], number, quotas)
        for number in range(24)
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert {type(failure) for failure in failures} <= {QuotaExceeded}
    return len(outcomes) - len(failures)


async def test_racing_replicas_do_not_exceed_the_quota_of_integrations(replicas: Sequence[Database]) -> None:
    quotas = replace(QUOTAS, authorization_attempts=100)
    await connect_key(replicas[0], 0, quotas, BOB)
    # Attempts that replace others succeed too. Only they: not every key has room.
    assert QUOTAS.integrations <= await race(replicas, quotas) < 24
    assert await count_rows(replicas[0], ANN) == QUOTAS.integrations
    assert await connect_key(replicas[0], 1, quotas, BOB)  # another user has a quota of its own


async def test_negative_control_without_a_quota_every_integration_is_stored(replicas: Sequence[Database]) -> None:
    assert await race(replicas, UNLIMITED) == 24


async def test_the_error_names_the_limit_and_does_not_ask_to_wait(database: Database) -> None:
    for number in range(QUOTAS.integrations):
        await connect_key(database, number, QUOTAS)
    for call in (begin(database, QUOTAS), connect_key(database, 99, QUOTAS)):
        with pytest.raises(QuotaExceeded, match="USER_MAX_INTEGRATIONS") as caught:
            await call
        assert caught.value.retry_after is None


@pytest.mark.parametrize("connected", [0, 2, 4])
async def test_a_user_with_little_room_who_denies_again_and_again_is_not_locked_out(
    database: Database, connected: int
) -> None:
    store = SqlAuthorizationAttempts(database, replace(QUOTAS, authorization_attempts=100))
    for number in range(connected):
        await connect_key(database, number, QUOTAS)
    attempts, (others,) = attempts_in_order(12), attempts_in_order(1, BOB)
    for attempt in (others, *attempts):
        await store.begin(attempt, new_integration(attempt.user_id))
    newest = attempts[connected - QUOTAS.integrations :]
    assert await attempt_ids(database) == [attempt.attempt_id for attempt in newest]
    assert await count_rows(database, ANN) == QUOTAS.integrations
    assert await attempt_ids(database, BOB) == [others.attempt_id]


@pytest.mark.parametrize("is_confirmed_later", [True, False])
async def test_only_attempts_that_wait_for_the_browser_make_room(database: Database, is_confirmed_later: bool) -> None:
    store = SqlAuthorizationAttempts(database, QUOTAS)
    first = await connect_key(database, 0, QUOTAS)
    assert isinstance(first, Integration)
    for number in range(1, QUOTAS.integrations - 1):
        await connect_key(database, number, QUOTAS)
    reconnection, arrived, further = attempts_in_order(3)
    await store.begin_reconnection(reconnection, first.integration_id)
    await store.begin(arrived, new_integration())
    if is_confirmed_later:
        await store.store_pending_callback(arrived.attempt_id, b"encrypted", b"outcome", NOW)
    else:
        await store.consume(arrived.attempt_id, b"outcome", NOW)
    with pytest.raises(QuotaExceeded, match="USER_MAX_INTEGRATIONS"):
        await store.begin(further, new_integration())
    assert await attempt_ids(database) == [reconnection.attempt_id, arrived.attempt_id]


async def test_an_integration_that_is_removed_makes_room(database: Database) -> None:
    first = await create_connected(SqlRows(database, quotas=QUOTAS))
    for number in range(1, QUOTAS.integrations):
        await connect_key(database, number, QUOTAS)
    await SqlRows(database).remove(first.integration_id, ANN)
    assert await connect_key(database, 99, QUOTAS)


async def test_an_account_that_is_connected_already_is_still_reported(database: Database) -> None:
    assert await connect_key(database, 1, QUOTAS)
    assert await connect_key(database, 1, QUOTAS) is None


# --- authorization attempts ------------------------------------------------------------------------------------------


async def attempt_ids(database: Database, user_id: UserId = ANN) -> list[str]:
    query = select(authorization_attempts.c.attempt_id).where(authorization_attempts.c.user_id == user_id)
    rows = await database.fetch(query.order_by(authorization_attempts.c.create_time))
    return [row.attempt_id for row in rows]


def attempts_in_order(count: int, user_id: UserId = ANN) -> list[AuthorizationAttempt]:
    return [new_attempt(user_id, create_time=NOW + timedelta(seconds=number)) for number in range(count)]


async def test_a_user_who_begins_again_and_again_keeps_the_newest_attempts(database: Database) -> None:
    store = SqlAuthorizationAttempts(database, QUOTAS)
    attempts, others = attempts_in_order(20), attempts_in_order(2, BOB)
    for attempt in (*others, *attempts):
        await store.begin(attempt, new_integration(attempt.user_id))
    assert await attempt_ids(database) == [attempt.attempt_id for attempt in attempts[-3:]]
    assert await count_rows(database, ANN) == 3  # the pending integrations of the others are gone too
    assert await attempt_ids(database, BOB) == [attempt.attempt_id for attempt in others]
    assert await store.consume(attempts[0].attempt_id, b"outcome", NOW) is None
    assert await store.consume(attempts[-1].attempt_id, b"outcome", NOW)


async def test_negative_control_without_a_quota_every_attempt_stays(database: Database) -> None:
    for attempt in attempts_in_order(20):
        await SqlAuthorizationAttempts(database, UNLIMITED).begin(attempt, new_integration())
    assert len(await attempt_ids(database)) == 20


@pytest.mark.slow
async def test_racing_reconnections_by_device_wait_for_each_other(replicas: Sequence[Database]) -> None:
    """Each ends another attempt of its integration, and makes room for itself."""
    stores = [SqlAuthorizationAttempts(database, replace(QUOTAS, integrations=100)) for database in replicas]
    accounts = [await connect_key(replicas[0], number, UNLIMITED) for number in range(4)]
    ids = [account.integration_id for account in accounts if isinstance(account, Integration)]
    for _ in range(5):
        await asyncio.gather(
            *(
                stores[number % REPLICAS].begin_reconnection(
                    new_attempt(poll_interval_seconds=5.0, create_time=NOW + timedelta(seconds=number % 7)),
                    ids[number % len(ids)],
                )
                for number in range(24)
            )
        )
    assert len(await attempt_ids(replicas[0])) <= QUOTAS.authorization_attempts


async def test_attempts_that_wait_for_their_confirmation_are_replaced_last(database: Database) -> None:
    store = SqlAuthorizationAttempts(database, QUOTAS)
    attempts = attempts_in_order(6)
    await store.begin(attempts[0], new_integration())
    await store.store_pending_callback(attempts[0].attempt_id, b"encrypted", b"outcome", NOW)
    for attempt in attempts[1:]:
        await store.begin(attempt, new_integration())
    assert await attempt_ids(database) == [attempts[number].attempt_id for number in (0, 4, 5)]


async def test_consumed_and_expired_attempts_are_neither_counted_nor_replaced(database: Database) -> None:
    store = SqlAuthorizationAttempts(database, QUOTAS)
    expired = new_attempt(expire_time=NOW)
    consumed, *others = attempts_in_order(4)
    for attempt in (expired, consumed):
        await store.begin(attempt, new_integration())
    assert await store.consume(consumed.attempt_id, b"outcome", NOW)
    for attempt in others:
        await store.begin(
            attempt,
            new_integration(),
        )
    assert set(await attempt_ids(database)) == {attempt.attempt_id for attempt in (expired, consumed, *others)}


async def test_finished_attempts_are_replaced_first(database: Database) -> None:
    """Only their outcome is left, for a repeated callback. A user who connects again and again stores no more."""
    store = SqlAuthorizationAttempts(database, QUOTAS)
    waiting, *finished, last = attempts_in_order(6)
    await store.begin(waiting, new_integration())
    for attempt in finished:
        await store.begin(attempt, new_integration())
        consumed = await store.consume(attempt.attempt_id, b"outcome", NOW)
        assert consumed is not None
        await store.finish(consumed, b"outcome")
    await store.begin(last, new_integration())
    assert await attempt_ids(database) == [attempt.attempt_id for attempt in (waiting, finished[-1], last)]
    assert await count_rows(database, ANN) == 2


async def test_reconnections_count_and_leave_their_integration(database: Database) -> None:
    store, row = SqlAuthorizationAttempts(database, QUOTAS), await create_connected(SqlRows(database))
    for attempt in attempts_in_order(8):
        await store.begin_reconnection(attempt, row.integration_id)
    assert len(await attempt_ids(database)) == 3
    assert await count_rows(database, ANN) == 1
    with pytest.raises(IntegrationNotFound):
        await store.begin_reconnection(new_attempt(BOB), row.integration_id)


@pytest.mark.slow
async def test_racing_replicas_keep_as_many_attempts_as_the_quota(replicas: Sequence[Database]) -> None:
    await asyncio.gather(*(begin(replicas[number % REPLICAS], QUOTAS) for number in range(24)))
    assert len(await attempt_ids(replicas[0])) == QUOTAS.authorization_attempts
    assert await count_rows(replicas[0], ANN) == QUOTAS.authorization_attempts


# --- kept webhook payloads -------------------------------------------------------------------------------------------


async def used_bytes(database: Database, user_id: UserId = ANN) -> int:
    """The maintained count, which equals that of the rows."""
    counted = await database.fetch_value(select(user_usage.c.webhook_bytes).where(user_usage.c.user_id == user_id))
    lengths = select(func.sum(func.length(webhook_events.c.encrypted_payload)))
    assert (counted or 0) == (await database.fetch_value(lengths.where(webhook_events.c.user_id == user_id)) or 0)
    return int(counted or 0)


async def store_events(
    database: Database, integration: Integration, first: int, count: int, quotas: UserQuotas = QUOTAS
) -> None:
    """Store events of one KiB, one by one."""
    inbox = SqlWebhookInbox(database, quotas=quotas)
    for number in range(first, first + count):
        event = new_event(integration, f"e-{number}", receive_time=NOW, encrypted_payload=b"x" * KIB)
        await inbox.add([event])


async def test_payloads_are_counted_however_they_are_deleted(database: Database) -> None:
    store, inbox = SqlRows(database), SqlWebhookInbox(database, quotas=QUOTAS)
    first, second, bobs = [await create_connected(store, user_id) for user_id in (ANN, ANN, BOB)]
    for integration, count in ((first, 3), (second, 2), (bobs, 4)):
        await store_events(database, integration, 0, count)
    assert (await used_bytes(database), await used_bytes(database, BOB)) == (5 * KIB, 4 * KIB)
    await store_events(database, first, 0, 3)  # stored already
    assert await used_bytes(database) == 5 * KIB
    await store.remove(first.integration_id, ANN)
    assert await used_bytes(database) == 2 * KIB
    assert [await inbox.prune(LATER) for _ in range(2)] == [6, 0]
    assert await database.fetch(select(user_usage)) == []  # no user is named who has nothing here
    await store_events(database, second, 0, 2)
    assert await inbox.prune(NOW) == 0
    assert await used_bytes(database) == 2 * KIB


async def test_beyond_the_quota_the_oldest_acknowledged_events_make_room(database: Database) -> None:
    inbox = SqlWebhookInbox(database, quotas=QUOTAS)
    integration = await create_connected(SqlRows(database))
    await store_events(database, integration, 0, 16)
    await inbox.acknowledge(integration, "billing", 10)
    await inbox.acknowledge(integration, "mail", 6)  # events after 6 are not acknowledged by every consumer
    await store_events(database, integration, 16, 6)
    assert [number for number, _ in await list_all(inbox, integration)] == list(range(7, 23))
    with pytest.raises(QuotaExceeded, match="USER_MAX_WEBHOOK_BYTES"):
        await store_events(database, integration, 22, 1)
    assert [number for number, _ in await list_all(inbox, integration)] == list(range(7, 23))
    assert await used_bytes(database) == 16 * KIB


async def test_events_without_a_consumer_are_never_deleted_to_make_room(database: Database) -> None:
    inbox = SqlWebhookInbox(database, quotas=QUOTAS)
    acknowledged, unread, bobs = [await create_connected(SqlRows(database), user_id) for user_id in (ANN, ANN, BOB)]
    await store_events(database, unread, 0, 8)
    await store_events(database, acknowledged, 0, 8)
    await inbox.acknowledge(acknowledged, "billing", 8)
    await store_events(database, bobs, 0, 16)
    await inbox.acknowledge(bobs, "billing", 16)
    await store_events(database, unread, 8, 8)
    assert len(await list_all(inbox, unread)) == 16
    assert len(await list_all(inbox, acknowledged)) == 0
    assert len(await list_all(inbox, bobs)) == 16  # one user's events never make room for another's


async def test_racing_replicas_do_not_exceed_the_quota_of_payloads(replicas: Sequence[Database]) -> None:
    rows = [await create_connected(SqlRows(replicas[0])) for _ in range(REPLICAS)]
    outcomes = await asyncio.gather(
        *(store_events(replicas[number % REPLICAS], rows[number % len(rows)], number, 1) for number in range(24)),
        return_exceptions=True,
    )
    assert [outcome for outcome in outcomes if not isinstance(outcome, QuotaExceeded)] == [None] * 16
    assert await used_bytes(replicas[0]) == 16 * KIB
    inbox = SqlWebhookInbox(replicas[0])
    for row in rows:  # what does not fit uses no number
        numbers = [number for number, _ in await list_all(inbox, row)]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_negative_control_without_a_quota_every_payload_is_stored(database: Database) -> None:
    integration = await create_connected(SqlRows(database))
    await store_events(database, integration, 0, 24, UNLIMITED)
    assert await used_bytes(database) == 24 * KIB


async def test_deletions_and_deliveries_of_the_same_users_do_not_deadlock(replicas: Sequence[Database]) -> None:
    store = SqlRows(replicas[0])
    rows = [await create_connected(store, user_id) for user_id in (ANN, BOB) * 6]
    for row in rows:
        await store_events(replicas[0], row, 0, 2, UNLIMITED)

    async def work(number: int) -> None:
        database, row = replicas[number % REPLICAS], rows[number % len(rows)]
        if number % 3 == 0:
            await SqlWebhookInbox(database).prune(LATER)
        elif number % 3 == 1:
            await store_events(database, row, 100 * number, 3, UNLIMITED)
        else:
            await SqlRows(database).remove(row.integration_id, row.user_id)

    outcomes = await asyncio.gather(*(work(number) for number in range(24)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), IntegrationNotFound}
    assert [await used_bytes(replicas[0], user_id) >= 0 for user_id in (ANN, BOB)] == [True, True]
