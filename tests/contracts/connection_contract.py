"""The contracts of `ConnectionStore` and of `AuthorizationAttemptStore`. A subclass provides the fixtures."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration
from integration_server.service.connections.ports import (
    AuthorizationAttemptStore,
)
from integration_server.service.integrations.ports import (
    IntegrationUpdate,
    NewAccount,
)
from tests.contracts.integration_rows import (
    ANN,
    BOB,
    EXPIRY,
    FAILURE,
    LARGEST_ID,
    LATER,
    NOW,
    OUTCOME,
    IntegrationRows,
    account,
    create_connected,
    create_pending,
    find_stored,
    list_all,
    list_connected,
    new_attempt,
    new_credentials,
    new_integration,
    reload,
    update_settings,
)


class ConnectionStoreContract:
    """The contract of `ConnectionStore`."""

    async def test_finds_an_account(self, integrations: IntegrationRows) -> None:
        integration = await create_connected(integrations, ANN, "a")
        assert await integrations.find_account(ANN, "acme", "a") == StoredIntegration(integration, b"encrypted")
        assert await integrations.find_account(ANN, "acme", "b") is None
        assert await integrations.find_account(ANN, "other", "a") is None

    async def test_an_account_has_one_row_per_user_and_type(self, integrations: IntegrationRows) -> None:
        await create_connected(integrations, ANN, "a")
        duplicate = await integrations.add_connected(new_integration(), account("a"), new_credentials(), NOW)
        assert duplicate is None
        await create_connected(integrations, BOB, "a")
        await create_connected(integrations, ANN, "a", integration_type="other")
        await create_connected(integrations, ANN, "b")
        assert len(await list_connected(integrations, ANN)) == 3

    async def test_unknown_accounts_are_not_the_same(self, integrations: IntegrationRows) -> None:
        await create_connected(integrations, ANN, None)
        await create_connected(integrations, ANN, None)
        assert len(await list_connected(integrations, ANN)) == 2

    async def test_of_concurrent_connections_of_an_account_one_succeeds(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        rows = [await create_pending(integrations, attempts) for _ in range(5)]
        results = await asyncio.gather(
            *(integrations.commit_connection(row, account("a"), new_credentials(), NOW) for row in rows),
            *(integrations.add_connected(new_integration(), account("a"), new_credentials(), NOW) for _ in range(5)),
        )
        (committed,) = [result for result in results if result is not None]
        assert await integrations.find_account(ANN, "acme", "a") == StoredIntegration(committed, b"encrypted")

    # --- committing --------------------------------------------------------------------------------------------------

    async def test_connects_a_pending_integration(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        integration = await create_pending(integrations, attempts)
        assert not integration.is_connected
        committed = await integrations.commit_connection(integration, account("a"), new_credentials(b"new"), LATER)
        assert committed is not None
        assert committed == replace(
            integration,
            account_id="a",
            account_label="a@example.com",
            scopes=("read",),
            missing_scopes=("write",),
            is_renewable=True,
            access_token_expire_time=NOW + timedelta(hours=1),
            connect_time=LATER,
            update_time=LATER,
            version=1,
        )
        assert await integrations.find(integration.integration_id, ANN) == StoredIntegration(committed, b"new")

    async def test_reconnecting_clears_errors_activates_and_keeps_name_and_config(
        self, integrations: IntegrationRows
    ) -> None:
        integration = await create_connected(integrations, ANN, "a", name="Work", config={"k": 1.5})
        await integrations.record_failure(integration, FAILURE, reauthorization_required=True)
        await update_settings(integrations, integration, IntegrationUpdate(is_active=False), NOW)
        committed = await integrations.commit_connection(
            await reload(integrations, integration), NewAccount(None, None), new_credentials(b"new"), LATER
        )
        assert committed == replace(integration, connect_time=LATER, update_time=LATER, version=1, settings_version=1)

    async def test_a_superseded_pending_row_is_removed_in_the_same_commit(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        older = await create_connected(integrations, ANN, "a")
        newer = await create_pending(integrations, attempts)
        committed = await integrations.commit_connection(
            older, account("a"), new_credentials(b"new"), LATER, superseded_id=newer.integration_id
        )
        assert committed is not None
        assert committed.integration_id == older.integration_id
        assert await list_all(integrations, ANN, None, IntegrationId(0), 10) == [committed]

    async def test_only_a_pending_row_of_the_same_user_is_superseded(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        integration = await create_connected(integrations, ANN, "a")
        live = await create_connected(integrations, ANN, "b")
        foreign = await create_pending(integrations, attempts, BOB)
        for other in (live, foreign):
            integration = await reload(integrations, integration)
            assert await integrations.commit_connection(
                integration, account("a"), new_credentials(), LATER, superseded_id=other.integration_id
            )
            assert await reload(integrations, other) == other

    async def test_a_commit_on_an_old_version_changes_nothing(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        older = await create_connected(integrations, ANN, "a")
        newer = await create_pending(integrations, attempts)
        current = await integrations.commit_refresh(older, new_credentials(b"current"), LATER)
        assert current is not None

        late = await integrations.commit_connection(
            older, account("a"), new_credentials(b"late"), LATER, superseded_id=newer.integration_id
        )
        assert late is None
        assert await integrations.commit_refresh(older, new_credentials(b"late"), LATER) is None
        conflict = await integrations.commit_connection(newer, account("a"), new_credentials(b"late"), LATER)
        assert conflict is None

        assert await integrations.find(older.integration_id, ANN) == StoredIntegration(current, b"current")
        assert await integrations.find(newer.integration_id, ANN) == StoredIntegration(newer, None)

    async def test_a_removed_integration_cannot_be_committed(self, integrations: IntegrationRows) -> None:
        integration = await create_connected(integrations)
        await integrations.remove(integration.integration_id, ANN)
        assert await integrations.commit_refresh(integration, new_credentials(), LATER) is None
        assert await integrations.commit_connection(integration, account("a"), new_credentials(), LATER) is None

    # --- errors and checks -------------------------------------------------------------------------------------------

    async def test_reserved_ids_are_not_assigned_to_others(self, integrations: IntegrationRows) -> None:
        first = await integrations.reserve_id()
        second, third = await asyncio.gather(integrations.reserve_id(), integrations.reserve_id())
        assigned = await create_connected(integrations)
        reserved = await create_connected(integrations, integration_id=second)
        last = await create_connected(integrations)
        assert reserved.integration_id == second
        assert len({first, second, third, assigned.integration_id, last.integration_id}) == 5
        assert first < min(second, third) < max(second, third) < assigned.integration_id < last.integration_id


class AttemptStoreContract:
    """The contract of `AuthorizationAttemptStore`."""

    async def test_begin_stores_a_pending_integration(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        new = new_integration(name="Work 🦆", config={"k": ["v"]})
        integration_id = await attempts.begin(new_attempt(), new)
        assert await integrations.find(integration_id, ANN) == StoredIntegration(
            Integration(
                integration_id=integration_id,
                uid=new.uid,
                user_id=ANN,
                integration_type="acme",
                auth_method=AuthMethod.OAUTH2,
                create_time=NOW,
                update_time=NOW,
                name="Work 🦆",
                config={"k": ["v"]},
            ),
            None,
        )

    async def test_consume_returns_the_stored_attempt(self, attempts: AuthorizationAttemptStore) -> None:
        new = new_attempt(encrypted_details=b"\x00\xff")
        integration_id = await attempts.begin(new, new_integration())
        consumed = replace(new, integration_id=integration_id, encrypted_outcome=OUTCOME)
        assert await attempts.consume(new.attempt_id, OUTCOME, NOW) == consumed
        assert await attempts.find(new.attempt_id) == consumed

    async def test_of_concurrent_callbacks_one_consumes_the_attempt(self, attempts: AuthorizationAttemptStore) -> None:
        new = new_attempt()
        await attempts.begin(new, new_integration())
        results = await asyncio.gather(*(attempts.consume(new.attempt_id, OUTCOME, NOW) for _ in range(50)))
        assert sum(result is not None for result in results) == 1
        assert await attempts.consume(new.attempt_id, OUTCOME, NOW) is None
        assert await attempts.store_pending_callback(new.attempt_id, b"callback", OUTCOME, NOW) is None
        assert await attempts.consume_pending_callback(new.attempt_id, NOW) is None

    async def test_of_concurrent_confirmations_one_consumes_the_attempt(
        self, attempts: AuthorizationAttemptStore
    ) -> None:
        new = new_attempt()
        await attempts.begin(new, new_integration())
        assert await attempts.consume_pending_callback(new.attempt_id, NOW) is None
        pending_attempt = await attempts.store_pending_callback(new.attempt_id, b"callback", OUTCOME, NOW)
        assert pending_attempt is not None
        assert pending_attempt.encrypted_callback == b"callback"

        assert await attempts.store_pending_callback(new.attempt_id, b"another", OUTCOME, NOW) is None
        assert await attempts.consume(new.attempt_id, OUTCOME, NOW) is None
        results = await asyncio.gather(*(attempts.consume_pending_callback(new.attempt_id, NOW) for _ in range(50)))
        assert [result for result in results if result is not None] == [pending_attempt]

    async def test_an_attempt_expires_at_its_expire_time(self, attempts: AuthorizationAttemptStore) -> None:
        started, pending_attempt = new_attempt(), new_attempt()
        for attempt in (started, pending_attempt):
            await attempts.begin(attempt, new_integration())
        last_moment = EXPIRY - timedelta(microseconds=1)

        assert await attempts.consume(started.attempt_id, OUTCOME, EXPIRY) is None
        assert await attempts.store_pending_callback(started.attempt_id, b"callback", OUTCOME, EXPIRY) is None
        assert (
            await attempts.store_pending_callback(pending_attempt.attempt_id, b"callback", OUTCOME, last_moment)
            is not None
        )
        assert await attempts.consume_pending_callback(pending_attempt.attempt_id, EXPIRY) is None
        assert await attempts.consume_pending_callback(pending_attempt.attempt_id, last_moment) is not None
        assert await attempts.consume(started.attempt_id, OUTCOME, last_moment) is not None

    async def test_an_unknown_attempt_is_not_found(self, attempts: AuthorizationAttemptStore) -> None:
        assert await attempts.consume("unknown", OUTCOME, NOW) is None
        assert await attempts.store_pending_callback("unknown", b"callback", OUTCOME, NOW) is None
        assert await attempts.consume_pending_callback("unknown", NOW) is None

    async def test_begin_reconnection_does_not_change_the_integration(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        integration = await create_connected(integrations)
        new = new_attempt()
        await attempts.begin_reconnection(new, integration.integration_id)
        consumed = await attempts.consume(new.attempt_id, OUTCOME, NOW)
        assert consumed is not None
        assert consumed.integration_id == integration.integration_id
        await attempts.finish(consumed, b"finished")
        assert await reload(integrations, integration) == integration

    async def test_another_user_cannot_begin_a_reconnection(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        integration = await create_connected(integrations)
        for user_id, integration_id in ((BOB, integration.integration_id), (ANN, LARGEST_ID)):
            new = new_attempt(user_id)
            with pytest.raises(IntegrationNotFound):
                await attempts.begin_reconnection(new, integration_id)
            assert await attempts.consume(new.attempt_id, OUTCOME, NOW) is None

    async def test_finish_removes_the_pending_integration(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        new = new_attempt()
        integration_id = await attempts.begin(new, new_integration())
        other = await create_pending(integrations, attempts)
        consumed = await attempts.consume(new.attempt_id, OUTCOME, NOW)
        assert consumed is not None
        await attempts.finish(consumed, b"finished")
        assert await integrations.find(integration_id, ANN) is None
        assert await reload(integrations, other) == other
        finished = replace(consumed, integration_id=None, encrypted_outcome=b"finished")
        assert await attempts.find(new.attempt_id) == finished
        assert await attempts.consume(new.attempt_id, OUTCOME, NOW) is None

    async def test_finish_deletes_the_pending_callback_and_can_keep_the_outcome(
        self, attempts: AuthorizationAttemptStore
    ) -> None:
        new = new_attempt()
        await attempts.begin(new, new_integration())
        await attempts.store_pending_callback(new.attempt_id, b"callback", OUTCOME, NOW)
        consumed = await attempts.consume_pending_callback(new.attempt_id, NOW)
        assert consumed is not None
        await attempts.finish(consumed, None)
        expected = replace(consumed, integration_id=None, encrypted_callback=None)
        assert await attempts.find(new.attempt_id) == expected
        assert expected.encrypted_outcome == OUTCOME

    async def test_finish_keeps_an_integration_with_another_attempt(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        first, second = new_attempt(), new_attempt()
        integration_id = await attempts.begin(first, new_integration())
        await attempts.begin_reconnection(second, integration_id)
        consumed = await attempts.consume(first.attempt_id, OUTCOME, NOW)
        assert consumed is not None
        await attempts.finish(consumed, b"finished")
        await find_stored(integrations, integration_id)
        assert await attempts.consume(second.attempt_id, OUTCOME, NOW) is not None

    async def test_remove_expired_deletes_expired_attempts_and_their_pending_integrations(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        live = await create_connected(integrations, name="live")
        await attempts.begin_reconnection(new_attempt(), live.integration_id)
        await create_pending(integrations, attempts)
        await create_pending(integrations, attempts, BOB)
        later = new_attempt(expire_time=EXPIRY + timedelta(seconds=1))
        unexpired = await attempts.begin(later, new_integration())
        reconnected = await create_pending(integrations, attempts)
        unexpired_attempt = new_attempt(expire_time=EXPIRY + timedelta(seconds=1))
        await attempts.begin_reconnection(unexpired_attempt, reconnected.integration_id)

        assert await attempts.remove_expired(EXPIRY - timedelta(microseconds=1)) == 0
        assert await attempts.remove_expired(EXPIRY) == 4

        remaining = await list_all(integrations, ANN, None, IntegrationId(0), 10)
        assert [row.integration_id for row in remaining] == [
            live.integration_id,
            unexpired,
            reconnected.integration_id,
        ]
        assert await list_all(integrations, BOB, None, IntegrationId(0), 10) == []
        assert await attempts.consume(later.attempt_id, OUTCOME, EXPIRY) is not None
        assert await attempts.remove_expired(EXPIRY) == 0
