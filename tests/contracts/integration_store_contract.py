"""The contract of `IntegrationStore` and `IntegrationLists`. A subclass provides the fixtures."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.service.connections.ports import (
    AuthorizationAttemptStore,
)
from integration_server.service.health.ports import CompletedCheck, HealthHistory
from integration_server.service.integrations.ports import (
    IntegrationTarget,
    IntegrationUpdate,
    NewAccount,
)
from tests.contracts.integration_rows import (
    ANN,
    BOB,
    EXPIRY,
    FAILURE,
    LARGE_PAGE,
    LARGEST_ID,
    LATER,
    NOW,
    OUTCOME,
    IntegrationRows,
    account,
    create_connected,
    create_pending,
    failed_check,
    find_stored,
    list_all,
    list_connected,
    new_attempt,
    new_credentials,
    new_integration,
    reload,
    successful_check,
    update_settings,
)


class IntegrationStoreContract:
    """The contract of `IntegrationStore` and `IntegrationLists`."""

    async def test_stores_every_field(self, integrations: IntegrationRows) -> None:
        new = new_integration(
            name="Grüße 🦆 ' \" \\ %s :x $1",
            auth_method=AuthMethod.API_KEY,
            config={"a": [1, 2.5, None, True, {"ü": "🦆 \u0000 \u2028"}], "": {}, "big": 1e300, "quote": "'\""},
        )
        credentials = new_credentials(
            b"\x00\xff encrypted", refresh_token_expire_time=NOW + timedelta(days=60), lacks_required_scope=True
        )
        integration = await integrations.add_connected(new, account("a"), credentials, NOW)
        assert integration is not None
        assert integration == Integration(
            integration_id=integration.integration_id,
            uid=new.uid,
            user_id=ANN,
            integration_type="acme",
            auth_method=AuthMethod.API_KEY,
            create_time=NOW,
            update_time=NOW,
            name=new.name,
            config=new.config,
            account_id="a",
            account_label="a@example.com",
            scopes=("read",),
            missing_scopes=("write",),
            lacks_required_scope=True,
            is_renewable=True,
            access_token_expire_time=NOW + timedelta(hours=1),
            refresh_token_expire_time=NOW + timedelta(days=60),
            connect_time=NOW,
        )
        assert await integrations.find(integration.integration_id, ANN) == StoredIntegration(
            integration, b"\x00\xff encrypted"
        )

    async def test_times_are_returned_in_utc(self, integrations: IntegrationRows) -> None:
        tokyo_time = datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=timezone(timedelta(hours=9)))
        integration = await integrations.add_connected(
            new_integration(),
            account(None),
            new_credentials(access_token_expire_time=datetime.max.replace(tzinfo=UTC)),
            tokyo_time,
        )
        assert integration is not None
        stored = await reload(integrations, integration)
        assert stored.connect_time == tokyo_time
        assert stored.connect_time.tzinfo == UTC
        assert stored.access_token_expire_time == datetime.max.replace(tzinfo=UTC)

    async def test_another_users_integration_does_not_exist(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        integration = await create_connected(integrations, ANN, "a")
        as_bob = replace(integration, user_id=BOB)
        integration_id = integration.integration_id

        assert await integrations.find(integration_id, BOB) is None
        assert await integrations.find_account(BOB, "acme", "a") is None
        assert await list_all(integrations, BOB, None, IntegrationId(0), 10) == []
        assert await list_connected(integrations, BOB) == []
        with pytest.raises(IntegrationNotFound):
            await integrations.get(integration_id, BOB)
        with pytest.raises(IntegrationNotFound):
            await update_settings(integrations, as_bob, IntegrationUpdate(name="bobs"))
        with pytest.raises(IntegrationNotFound):
            await integrations.remove(integration_id, BOB)
        assert await integrations.commit_refresh(as_bob, new_credentials(b"bobs"), LATER) is None
        assert await integrations.commit_connection(as_bob, account("b"), new_credentials(b"bobs"), LATER) is None
        await integrations.record_failure(as_bob, FAILURE)
        await history.record([CompletedCheck(failed_check(as_bob), None)])

        assert await integrations.find(integration_id, ANN) == StoredIntegration(integration, b"encrypted")

    @pytest.mark.parametrize("integration_id", [0, -1, -(2**63), LARGEST_ID])
    async def test_an_unknown_id_is_not_found(
        self, integrations: IntegrationRows, integration_id: IntegrationId
    ) -> None:
        existing = await create_connected(integrations)
        assert await integrations.find(integration_id, ANN) is None
        with pytest.raises(IntegrationNotFound):
            await integrations.get(integration_id, ANN)
        unknown = replace(existing, integration_id=integration_id)
        assert await integrations.update(unknown, IntegrationUpdate(name="x"), b"", NOW) is None
        with pytest.raises(IntegrationNotFound):
            await integrations.remove(integration_id, ANN)

    async def test_finds_many_of_their_users_in_one_read(self, integrations: IntegrationRows) -> None:
        anns = await create_connected(integrations)
        bobs = await create_connected(integrations, BOB)
        others = await create_connected(integrations, BOB)
        asked: list[IntegrationTarget] = [
            (anns.integration_id, ANN),
            (bobs.integration_id, ANN),  # another user's
            (others.integration_id, None),  # any user's
            (LARGEST_ID, ANN),
            (LARGEST_ID, None),
            (anns.integration_id, ANN),
        ]
        found = await integrations.find_many(asked, LARGE_PAGE)
        assert found.by_id == {
            anns.integration_id: await integrations.find(anns.integration_id, ANN),
            others.integration_id: await integrations.find(others.integration_id, BOB),
        }
        assert found.omitted == set()
        assert found.of((anns.integration_id, ANN)) == found.of((anns.integration_id, None)) is not None
        assert found.of((anns.integration_id, BOB)) is None

    @pytest.mark.parametrize("user_id", ["", "a'b", 'a"b', "ü\u200d", "$[0]", "null", "{}"])
    async def test_finds_nothing_of_an_odd_user(self, integrations: IntegrationRows, user_id: str) -> None:
        row = await create_connected(integrations)
        found = await integrations.find_many([(row.integration_id, UserId(user_id or "x"))], LARGE_PAGE)
        assert not found.by_id

    async def test_what_exceeds_the_bytes_is_omitted_but_the_first_is_found(
        self, integrations: IntegrationRows
    ) -> None:
        rows = [await create_connected(integrations, name=2000 * "n") for _ in range(4)]
        ids = [row.integration_id for row in rows]
        one = await integrations.find_many([(row_id, ANN) for row_id in ids], 1)
        assert (list(one.by_id), one.omitted) == (ids[:1], set(ids[1:]))
        half = await integrations.find_many([(row_id, None) for row_id in ids], 6500)
        assert (list(half.by_id), half.omitted) == (ids[:2], set(ids[2:]))
        assert not (await integrations.find_many([], LARGE_PAGE)).by_id

    async def test_ids_are_never_reused(self, integrations: IntegrationRows) -> None:
        first, second = [await create_connected(integrations) for _ in range(2)]
        for integration in (first, second):
            await integrations.remove(integration.integration_id, ANN)
        third = await create_connected(integrations)
        assert first.integration_id < second.integration_id < third.integration_id

    # --- lists -------------------------------------------------------------------------------------------------------

    async def test_lists_in_pages_ordered_by_id(self, integrations: IntegrationRows) -> None:
        ids = [(await create_connected(integrations)).integration_id for _ in range(5)]
        await create_connected(integrations, BOB)

        first = await list_all(integrations, ANN, None, IntegrationId(0), 3)
        rest = await list_all(integrations, ANN, None, first[-1].integration_id, 3)

        assert [integration.integration_id for integration in (*first, *rest)] == ids
        assert await list_all(integrations, ANN, None, LARGEST_ID, 3) == []
        assert await list_all(integrations, ANN, None, IntegrationId(0), 0) == []

    async def test_lists_one_type(self, integrations: IntegrationRows) -> None:
        await create_connected(integrations)
        other = await create_connected(integrations, integration_type="other")
        assert await list_all(integrations, ANN, ["other"], IntegrationId(0), 10) == [other]

    async def test_lists_pending_integrations_and_list_connected_does_not(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        first = await create_connected(integrations)
        unfinished = await create_pending(integrations, attempts)
        last = await create_connected(integrations)
        assert await list_all(integrations, ANN, None, IntegrationId(0), 10) == [first, unfinished, last]
        assert await list_connected(integrations, ANN) == [first, last]

    @pytest.mark.parametrize(
        ("max_bytes", "pages"),
        [
            (0, [[1], [2], [3], [4], [5]]),  # at least one
            (2_000, [[1], [2], [3, 4], [5]]),
            (60_000, [[1], [2, 3, 4], [5]]),
            (10_000_000, [[1, 2, 3, 4, 5]]),
        ],
    )
    async def test_a_page_is_bounded_in_bytes(
        self, integrations: IntegrationRows, max_bytes: int, pages: list[list[int]]
    ) -> None:
        sizes = (60_000, 4_000, 0, 0, 9_900)  # of the configs; a JSON byte counts six times
        ids = [
            (await create_connected(integrations, config={"text": "x" * size} if size else {})).integration_id
            for size in sizes
        ]
        for list_page in (integrations.list, integrations.list_connected):
            after, found, is_last = IntegrationId(0), list[list[int]](), False
            while not is_last:
                page = await list_page(ANN, None, after, 10, max_bytes)
                rows = [stored.integration for stored in page.items]
                found.append([ids.index(row.integration_id) + 1 for row in rows])
                after, is_last = rows[-1].integration_id, page.is_last
            assert found == pages

    @pytest.mark.parametrize("field", ["name", "config", "scopes", "missing_scopes", "last_error", "account"])
    async def test_every_field_of_variable_length_counts(self, integrations: IntegrationRows, field: str) -> None:
        text = "é" * 3_000  # two bytes each
        for number in range(2):
            named: dict[str, dict[str, Any]] = {"name": {"name": text}, "config": {"config": {"text": text}}}
            fields = named.get(field, {})
            scopes: dict[str, Any] = {field: (text,)} if "scopes" in field else {}
            label = text if field == "account" else None
            row = await integrations.add_connected(
                new_integration(**fields), NewAccount(f"account-{number}", label), new_credentials(**scopes), NOW
            )
            assert row is not None
            if field == "last_error":
                await integrations.record_failure(row, replace(FAILURE, message=text))
        for max_bytes, count in ((12_000, 1), (250_000, 2)):
            page = await integrations.list(ANN, None, IntegrationId(0), 10, max_bytes)
            assert (len(page.items), page.is_last) == (count, count == 2)

    # --- accounts ----------------------------------------------------------------------------------------------------

    async def test_of_concurrent_commits_on_one_version_one_succeeds(self, integrations: IntegrationRows) -> None:
        integration = await create_connected(integrations)
        results = await asyncio.gather(
            *(
                integrations.commit_refresh(integration, new_credentials(f"{number}".encode()), LATER)
                for number in range(20)
            )
        )
        (winner,) = [number for number, result in enumerate(results) if result is not None]
        stored = await find_stored(integrations, integration.integration_id)
        assert stored.encrypted_credentials == f"{winner}".encode()
        assert stored.integration.version == 1

    async def test_a_refresh_clears_errors(self, integrations: IntegrationRows) -> None:
        integration = await create_connected(integrations, ANN, "a")
        await integrations.record_failure(integration, FAILURE, reauthorization_required=True)
        committed = await integrations.commit_refresh(integration, new_credentials(b"new"), LATER)
        assert committed == replace(integration, update_time=LATER, version=1)
        assert await integrations.find(integration.integration_id, ANN) == StoredIntegration(committed, b"new")

    async def test_a_refresh_returns_the_row_as_it_is_then(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        """Also what has changed since the integration was read."""
        before = await create_connected(integrations, ANN, "a")
        await history.record([CompletedCheck(failed_check(before), EXPIRY)])
        await integrations.record_failure(before, FAILURE, retry_time=LATER, failures=2)
        changed = new_credentials(
            b"new",
            scopes=("other",),
            missing_scopes=(),
            lacks_required_scope=True,
            is_renewable=False,
            access_token_expire_time=LATER,
            refresh_token_expire_time=EXPIRY,
            refresh_due_time=EXPIRY,
            token_fingerprint="f",
        )
        committed = await integrations.commit_refresh(before, changed, LATER)
        assert committed == await reload(integrations, before)
        assert committed.last_health_check is not None

    async def test_counts_failures(self, integrations: IntegrationRows) -> None:
        integration = await create_connected(integrations)
        await asyncio.gather(*(integrations.record_failure(integration, FAILURE) for _ in range(10)))
        stored = await reload(integrations, integration)
        assert (stored.last_error, stored.error_count) == (FAILURE, 10)
        assert not stored.reauthorization_required
        await integrations.record_failure(integration, FAILURE, reauthorization_required=True)
        assert (await reload(integrations, integration)).reauthorization_required
        await integrations.record_failure(integration, FAILURE)
        assert (await reload(integrations, integration)).reauthorization_required

    async def test_a_lost_grant_can_be_reverted(self, integrations: IntegrationRows) -> None:
        on_demand = await create_connected(integrations, ANN, "a")
        proactive = await integrations.commit_refresh(
            await create_connected(integrations, ANN, "b"), new_credentials(refresh_due_time=NOW), LATER
        )
        assert proactive is not None
        for integration, due_time in ((on_demand, None), (proactive, EXPIRY)):
            recorded: dict[str, Any] = {"reauthorization_required": True, "failures": 3}
            await integrations.record_failure(integration, FAILURE, **recorded, refresh_due_time=LATER)
            await integrations.revert_failure(integration, EXPIRY)
            assert await reload(integrations, integration) == replace(
                integration, refresh_retry_time=EXPIRY, refresh_due_time=due_time
            )

    async def test_a_failure_can_leave_a_later_due_time(self, integrations: IntegrationRows) -> None:
        on_demand = await create_connected(integrations, ANN, "a")
        proactive = await integrations.commit_refresh(
            await create_connected(integrations, ANN, "b"), new_credentials(refresh_due_time=LATER), LATER
        )
        assert proactive is not None
        for integration, changes in ((proactive, {NOW: LATER, EXPIRY: EXPIRY}), (on_demand, {NOW: None})):
            for due_time, expected in changes.items():
                recorded: dict[str, Any] = {"refresh_due_time": due_time, "may_be_due_earlier": False}
                await integrations.record_failure(integration, FAILURE, **recorded)
                assert (await reload(integrations, integration)).refresh_due_time == expected

    async def test_other_failures_and_those_of_other_credentials_are_not_reverted(
        self, integrations: IntegrationRows
    ) -> None:
        before = await create_connected(integrations)
        await integrations.record_failure(before, FAILURE)
        unchanged = await reload(integrations, before)
        await integrations.revert_failure(before, EXPIRY)
        assert await reload(integrations, before) == unchanged
        current = await integrations.commit_refresh(before, new_credentials(b"new"), LATER)
        assert current is not None
        await integrations.record_failure(current, FAILURE, reauthorization_required=True)
        await integrations.revert_failure(before, EXPIRY)
        assert (await reload(integrations, before)).reauthorization_required

    async def test_a_failure_of_previous_credentials_is_ignored(self, integrations: IntegrationRows) -> None:
        before = await create_connected(integrations)
        current = await integrations.commit_refresh(before, new_credentials(b"new"), LATER)
        await integrations.record_failure(before, FAILURE, reauthorization_required=True)
        assert await reload(integrations, before) == current

    async def test_a_failed_call_is_counted_and_a_successful_one_clears_the_error(
        self, integrations: IntegrationRows
    ) -> None:
        integration = await create_connected(integrations)
        await integrations.record_failure(integration, FAILURE, retry_time=EXPIRY, failures=3)
        before = await reload(integrations, integration)
        other = replace(FAILURE, error_class="PROVIDER_REJECTED", time=LATER)
        await integrations.record_call(integration, other)
        assert await reload(integrations, integration) == replace(before, last_error=other, error_count=2)
        await integrations.record_call(integration, None)
        # A call does not change the backoff of refreshes.
        assert await reload(integrations, integration) == replace(before, last_error=None, error_count=0)

    async def test_a_call_with_previous_credentials_changes_nothing(self, integrations: IntegrationRows) -> None:
        before = await create_connected(integrations)
        current = await integrations.commit_refresh(before, new_credentials(b"new"), LATER)
        await integrations.record_call(before, FAILURE)
        assert await reload(integrations, before) == current

    # --- updating and removing ---------------------------------------------------------------------------------------

    async def test_updates_the_given_fields(self, integrations: IntegrationRows) -> None:
        before = await create_connected(integrations, name="before", config={"a": 1})
        changes: list[dict[str, Any]] = [
            {"name": "after 🦆"},
            {"config": {"b": [None]}},
            {"is_active": False},
            {"name": "", "config": {}, "is_active": True},
            {},
        ]
        expected = before
        for change in changes:
            expected = replace(expected, update_time=LATER, settings_version=expected.settings_version + 1, **change)
            assert await update_settings(integrations, before, IntegrationUpdate(**change)) == expected
            assert await integrations.find(before.integration_id, ANN) == StoredIntegration(expected, b"encrypted")

    async def test_an_update_needs_both_versions_that_it_was_encrypted_for(self, integrations: IntegrationRows) -> None:
        before = await create_connected(integrations)
        renamed = await update_settings(integrations, before, IntegrationUpdate(name="renamed"))
        refreshed = await integrations.commit_refresh(renamed, new_credentials(b"refreshed"), LATER)
        assert refreshed is not None
        for outdated in (before, renamed):
            assert await integrations.update(outdated, IntegrationUpdate(name="late"), b"late", LATER) is None
            assert await integrations.commit_refresh(outdated, new_credentials(b"late"), LATER) is None
            assert await integrations.commit_connection(outdated, account("a"), new_credentials(b"late"), LATER) is None
        only_settings = replace(refreshed, settings_version=before.settings_version)
        assert await integrations.commit_refresh(only_settings, new_credentials(b"late"), LATER) is None
        found = await integrations.find(before.integration_id, ANN)
        assert found == StoredIntegration(refreshed, b"refreshed")

    async def test_removal_deletes_checks_and_attempts(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore, history: HealthHistory
    ) -> None:
        integration = await create_connected(integrations, ANN, "a")
        other = await create_connected(integrations, ANN, "b")
        await history.record([CompletedCheck(successful_check(integration), None)])
        attempt = new_attempt()
        await attempts.begin_reconnection(attempt, integration.integration_id)
        checked = await reload(integrations, integration)

        removed = await integrations.remove(integration.integration_id, ANN)

        assert removed.integration == checked
        with pytest.raises(IntegrationNotFound):
            await integrations.remove(integration.integration_id, ANN)
        assert await attempts.consume(attempt.attempt_id, OUTCOME, NOW) is None
        assert await list_all(integrations, ANN, None, IntegrationId(0), 10) == [other]

    async def test_ping_succeeds(self, integrations: IntegrationRows) -> None:
        assert await integrations.ping() is None  # type: ignore[func-returns-value]  # it raises on failure
