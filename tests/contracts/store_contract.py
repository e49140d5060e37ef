"""The contract of the stores, which tests them through their ports.

A subclass provides the fixtures `integrations`, `attempts` and `revocations`, views of one empty store.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.health import HealthCheck
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, UserId
from integration_server.service.background.ports import Claim, DueWork, JobKind
from integration_server.service.connections.ports import (
    AuthorizationAttempt,
    AuthorizationAttemptStore,
)
from integration_server.service.connections.revocation_ports import (
    CallDecision,
    ClientScope,
    GrantProof,
    OrphanedGrant,
    Revocation,
    RevocationInProgress,
    RevocationOutbox,
)
from integration_server.service.credentials.credential_cipher import bound_values_of
from integration_server.service.health.ports import CompletedCheck, HealthHistory
from integration_server.service.integrations.ports import (
    IntegrationStore,
    IntegrationTarget,
    IntegrationUpdate,
    NewAccount,
    NewCredentials,
    NewIntegration,
    StoredIntegration,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
EXPIRY = NOW + timedelta(minutes=10)
OUTCOME = b"outcome"
ANN, BOB = UserId("ann"), UserId("bob")
LONG_CLAIM, EXPIRED_CLAIM = timedelta(minutes=10), timedelta(seconds=-1)  # longer than any test; expires at once
LARGEST_ID = IntegrationId(2**63 - 1)
LARGE_PAGE = 1024 * 1024 * 1024  # bytes
FAILURE = Failure("PROVIDER_UNAVAILABLE", NOW, "the provider does not respond as expected")

_numbers: Iterator[int] = itertools.count()


def new_integration(user_id: UserId = ANN, **changes: Any) -> NewIntegration:
    """An integration that is not stored yet."""
    defaults = NewIntegration(
        uid=f"uid-{next(_numbers)}",
        user_id=user_id,
        integration_type="acme",
        auth_method=AuthMethod.OAUTH2,
        name="",
        config={},
    )
    return replace(defaults, **changes)


def new_attempt(user_id: UserId = ANN, **changes: Any) -> AuthorizationAttempt:
    """An attempt that is not stored yet and expires at `EXPIRY`."""
    defaults = AuthorizationAttempt(
        attempt_id=f"attempt-{next(_numbers)}",
        user_id=user_id,
        integration_type="acme",
        encrypted_details=b"encrypted details",
        create_time=NOW,
        expire_time=EXPIRY,
    )
    return replace(defaults, **changes)


def new_credentials(encrypted: bytes = b"encrypted", **changes: Any) -> NewCredentials:
    """Credentials whose access token expires in an hour."""
    defaults = NewCredentials(
        encrypted_credentials=encrypted,
        scopes=("read",),
        missing_scopes=("write",),
        lacks_required_scope=False,
        is_renewable=True,
        access_token_expire_time=NOW + timedelta(hours=1),
        refresh_token_expire_time=None,
    )
    return replace(defaults, **changes)


def new_grant(**changes: Any) -> OrphanedGrant:
    """The grant of a removed integration of Ann, with the credentials of `create_connected`."""
    defaults = OrphanedGrant(
        uid="uid", user_id=ANN, integration_type="acme", account_id=None, encrypted_credentials=b"encrypted"
    )
    return replace(defaults, **changes)


def of_types(*integration_types: str) -> Sequence[ClientScope]:
    """The scopes of all clients of these types."""
    return [ClientScope(integration_type, None) for integration_type in integration_types]


def account(account_id: str | None) -> NewAccount:
    """An account with this id."""
    return NewAccount(account_id, None if account_id is None else f"{account_id}@example.com")


def successful_check(integration: Integration, **changes: Any) -> HealthCheck:
    """A check that succeeded."""
    healthy = HealthCheck(
        integration=integration,
        status=Status.ACTIVE,
        healthy=True,
        check_time=LATER,
        latency=timedelta(milliseconds=42),
        error_class=None,
        message="ok",
    )
    return replace(healthy, **changes)


def failed_check(integration: Integration) -> HealthCheck:
    """A check that failed because the provider is unavailable."""
    return successful_check(
        integration,
        status=Status.ERROR,
        healthy=False,
        error_class="PROVIDER_UNAVAILABLE",
        message="the provider does not respond as expected",
    )


async def create_connected(
    integrations: IntegrationStore,
    user_id: UserId = ANN,
    account_id: str | None = None,
    *,
    fingerprint: str | None = None,
    lacks_required_scope: bool = False,
    **changes: Any,
) -> Integration:
    """Store a connected integration."""
    credentials = new_credentials(token_fingerprint=fingerprint, lacks_required_scope=lacks_required_scope)
    integration = await integrations.add_connected(
        new_integration(user_id, **changes), account(account_id), credentials, NOW
    )
    assert integration is not None
    return integration


async def create_pending(
    integrations: IntegrationStore, attempts: AuthorizationAttemptStore, user_id: UserId = ANN
) -> Integration:
    """Store a pending integration."""
    integration_id = await attempts.begin(new_attempt(user_id), new_integration(user_id))
    return (await find_stored(integrations, integration_id, user_id)).integration


async def find_stored(
    integrations: IntegrationStore, integration_id: IntegrationId, user_id: UserId = ANN
) -> StoredIntegration:
    """The stored integration; fails if there is none."""
    stored = await integrations.find(integration_id, user_id)
    assert stored is not None
    return stored


async def update_settings(
    integrations: IntegrationStore, integration: Integration, change: IntegrationUpdate, now: datetime = LATER
) -> Integration:
    """Set fields of an integration; the credentials stay as they are. Raises `IntegrationNotFound`."""
    stored = await integrations.get(integration.integration_id, integration.user_id)
    updated = await integrations.update(stored.integration, change, stored.encrypted_credentials or b"", now)
    assert updated is not None
    return updated


async def reload(integrations: IntegrationStore, integration: Integration) -> Integration:
    """The integration as it is stored now."""
    return (await find_stored(integrations, integration.integration_id, integration.user_id)).integration


async def list_all(
    integrations: IntegrationStore,
    user_id: UserId = ANN,
    types: Sequence[str] | None = None,
    after: IntegrationId = IntegrationId(0),
    limit: int = 10,
) -> Sequence[Integration]:
    """The integrations of a large page."""
    page = await integrations.list(user_id, types, after, limit, LARGE_PAGE)
    return [stored.integration for stored in page.items]


async def list_connected(integrations: IntegrationStore, user_id: UserId = ANN) -> Sequence[Integration]:
    """The connected integrations of a large page."""
    page = await integrations.list_connected(user_id, None, IntegrationId(0), 1000, LARGE_PAGE)
    return [stored.integration for stored in page.items]


class IntegrationStoreContract:
    """The contract of `IntegrationStore`."""

    async def test_stores_every_field(self, integrations: IntegrationStore) -> None:
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

    async def test_times_are_returned_in_utc(self, integrations: IntegrationStore) -> None:
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
        self, integrations: IntegrationStore, history: HealthHistory
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
        self, integrations: IntegrationStore, integration_id: IntegrationId
    ) -> None:
        existing = await create_connected(integrations)
        assert await integrations.find(integration_id, ANN) is None
        with pytest.raises(IntegrationNotFound):
            await integrations.get(integration_id, ANN)
        unknown = replace(existing, integration_id=integration_id)
        assert await integrations.update(unknown, IntegrationUpdate(name="x"), b"", NOW) is None
        with pytest.raises(IntegrationNotFound):
            await integrations.remove(integration_id, ANN)

    async def test_finds_many_of_their_users_in_one_read(self, integrations: IntegrationStore) -> None:
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
    async def test_finds_nothing_of_an_odd_user(self, integrations: IntegrationStore, user_id: str) -> None:
        row = await create_connected(integrations)
        found = await integrations.find_many([(row.integration_id, UserId(user_id or "x"))], LARGE_PAGE)
        assert not found.by_id

    async def test_what_exceeds_the_bytes_is_omitted_but_the_first_is_found(
        self, integrations: IntegrationStore
    ) -> None:
        rows = [await create_connected(integrations, name=2000 * "n") for _ in range(4)]
        ids = [row.integration_id for row in rows]
        one = await integrations.find_many([(row_id, ANN) for row_id in ids], 1)
        assert (list(one.by_id), one.omitted) == (ids[:1], set(ids[1:]))
        half = await integrations.find_many([(row_id, None) for row_id in ids], 6500)
        assert (list(half.by_id), half.omitted) == (ids[:2], set(ids[2:]))
        assert not (await integrations.find_many([], LARGE_PAGE)).by_id

    async def test_ids_are_never_reused(self, integrations: IntegrationStore) -> None:
        first, second = [await create_connected(integrations) for _ in range(2)]
        for integration in (first, second):
            await integrations.remove(integration.integration_id, ANN)
        third = await create_connected(integrations)
        assert first.integration_id < second.integration_id < third.integration_id

    # --- lists -------------------------------------------------------------------------------------------------------

    async def test_lists_in_pages_ordered_by_id(self, integrations: IntegrationStore) -> None:
        ids = [(await create_connected(integrations)).integration_id for _ in range(5)]
        await create_connected(integrations, BOB)

        first = await list_all(integrations, ANN, None, IntegrationId(0), 3)
        rest = await list_all(integrations, ANN, None, first[-1].integration_id, 3)

        assert [integration.integration_id for integration in (*first, *rest)] == ids
        assert await list_all(integrations, ANN, None, LARGEST_ID, 3) == []
        assert await list_all(integrations, ANN, None, IntegrationId(0), 0) == []

    async def test_lists_one_type(self, integrations: IntegrationStore) -> None:
        await create_connected(integrations)
        other = await create_connected(integrations, integration_type="other")
        assert await list_all(integrations, ANN, ["other"], IntegrationId(0), 10) == [other]

    async def test_lists_pending_integrations_and_list_connected_does_not(
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore, max_bytes: int, pages: list[list[int]]
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
    async def test_every_field_of_variable_length_counts(self, integrations: IntegrationStore, field: str) -> None:
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

    async def test_finds_an_account(self, integrations: IntegrationStore) -> None:
        integration = await create_connected(integrations, ANN, "a")
        assert await integrations.find_account(ANN, "acme", "a") == StoredIntegration(integration, b"encrypted")
        assert await integrations.find_account(ANN, "acme", "b") is None
        assert await integrations.find_account(ANN, "other", "a") is None

    async def test_an_account_has_one_row_per_user_and_type(self, integrations: IntegrationStore) -> None:
        await create_connected(integrations, ANN, "a")
        duplicate = await integrations.add_connected(new_integration(), account("a"), new_credentials(), NOW)
        assert duplicate is None
        await create_connected(integrations, BOB, "a")
        await create_connected(integrations, ANN, "a", integration_type="other")
        await create_connected(integrations, ANN, "b")
        assert len(await list_connected(integrations, ANN)) == 3

    async def test_unknown_accounts_are_not_the_same(self, integrations: IntegrationStore) -> None:
        await create_connected(integrations, ANN, None)
        await create_connected(integrations, ANN, None)
        assert len(await list_connected(integrations, ANN)) == 2

    async def test_of_concurrent_connections_of_an_account_one_succeeds(
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore
    ) -> None:
        integration = await create_connected(integrations, ANN, "a", name="Work", config={"k": 1.5})
        await integrations.record_failure(integration, FAILURE, reauthorization_required=True)
        await update_settings(integrations, integration, IntegrationUpdate(is_active=False), NOW)
        committed = await integrations.commit_connection(
            await reload(integrations, integration), NewAccount(None, None), new_credentials(b"new"), LATER
        )
        assert committed == replace(integration, connect_time=LATER, update_time=LATER, version=1, settings_version=1)

    async def test_a_superseded_pending_row_is_removed_in_the_same_commit(
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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

    async def test_of_concurrent_commits_on_one_version_one_succeeds(self, integrations: IntegrationStore) -> None:
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

    async def test_a_refresh_clears_errors(self, integrations: IntegrationStore) -> None:
        integration = await create_connected(integrations, ANN, "a")
        await integrations.record_failure(integration, FAILURE, reauthorization_required=True)
        committed = await integrations.commit_refresh(integration, new_credentials(b"new"), LATER)
        assert committed == replace(integration, update_time=LATER, version=1)
        assert await integrations.find(integration.integration_id, ANN) == StoredIntegration(committed, b"new")

    async def test_a_refresh_returns_the_row_as_it_is_then(
        self, integrations: IntegrationStore, history: HealthHistory
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

    async def test_a_removed_integration_cannot_be_committed(self, integrations: IntegrationStore) -> None:
        integration = await create_connected(integrations)
        await integrations.remove(integration.integration_id, ANN)
        assert await integrations.commit_refresh(integration, new_credentials(), LATER) is None
        assert await integrations.commit_connection(integration, account("a"), new_credentials(), LATER) is None

    # --- errors and checks -------------------------------------------------------------------------------------------

    async def test_counts_failures(self, integrations: IntegrationStore) -> None:
        integration = await create_connected(integrations)
        await asyncio.gather(*(integrations.record_failure(integration, FAILURE) for _ in range(10)))
        stored = await reload(integrations, integration)
        assert (stored.last_error, stored.error_count) == (FAILURE, 10)
        assert not stored.reauthorization_required
        await integrations.record_failure(integration, FAILURE, reauthorization_required=True)
        assert (await reload(integrations, integration)).reauthorization_required
        await integrations.record_failure(integration, FAILURE)
        assert (await reload(integrations, integration)).reauthorization_required

    async def test_a_lost_grant_can_be_reverted(self, integrations: IntegrationStore) -> None:
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

    async def test_a_failure_can_leave_a_later_due_time(self, integrations: IntegrationStore) -> None:
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
        self, integrations: IntegrationStore
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

    async def test_a_failure_of_previous_credentials_is_ignored(self, integrations: IntegrationStore) -> None:
        before = await create_connected(integrations)
        current = await integrations.commit_refresh(before, new_credentials(b"new"), LATER)
        await integrations.record_failure(before, FAILURE, reauthorization_required=True)
        assert await reload(integrations, before) == current

    async def test_a_failed_call_is_counted_and_a_successful_one_clears_the_error(
        self, integrations: IntegrationStore
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

    async def test_a_call_with_previous_credentials_changes_nothing(self, integrations: IntegrationStore) -> None:
        before = await create_connected(integrations)
        current = await integrations.commit_refresh(before, new_credentials(b"new"), LATER)
        await integrations.record_call(before, FAILURE)
        assert await reload(integrations, before) == current

    # --- updating and removing ---------------------------------------------------------------------------------------

    async def test_updates_the_given_fields(self, integrations: IntegrationStore) -> None:
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

    async def test_an_update_needs_both_versions_that_it_was_encrypted_for(
        self, integrations: IntegrationStore
    ) -> None:
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

    async def test_reserved_ids_are_not_assigned_to_others(self, integrations: IntegrationStore) -> None:
        first = await integrations.reserve_id()
        second, third = await asyncio.gather(integrations.reserve_id(), integrations.reserve_id())
        assigned = await create_connected(integrations)
        reserved = await create_connected(integrations, integration_id=second)
        last = await create_connected(integrations)
        assert reserved.integration_id == second
        assert len({first, second, third, assigned.integration_id, last.integration_id}) == 5
        assert first < min(second, third) < max(second, third) < assigned.integration_id < last.integration_id

    async def test_removal_deletes_checks_and_attempts(
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore, history: HealthHistory
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

    async def test_ping_succeeds(self, integrations: IntegrationStore) -> None:
        assert await integrations.ping() is None  # type: ignore[func-returns-value]  # it raises on failure


class RevocationOutboxContract:
    """The contract of `RevocationOutbox` and of the claims on its rows.

    A subclass provides the fixtures `integrations`, `attempts`, `revocations` and `due_work`.
    """

    @pytest.fixture
    def outbox(self, revocations: RevocationOutbox, due_work: DueWork) -> "Outbox":
        """The outbox, with the helpers of a test."""
        return Outbox(revocations, due_work)

    async def test_removal_adds_the_credentials_claimed_by_the_remover(
        self, integrations: IntegrationStore, due_work: DueWork
    ) -> None:
        integration = await create_connected(integrations, ANN, "a")
        removed = await integrations.remove(integration.integration_id, ANN, claim_duration=LONG_CLAIM)
        assert removed.revocation is not None
        grant = new_grant(uid=integration.uid, account_id="a", bound_values=bound_values_of(integration))
        assert removed.revocation.item.grant == grant
        assert removed.revocation.item.attempts == 1
        assert abs(removed.revocation.item.age) < LONG_CLAIM
        assert not removed.is_refreshing
        assert await list_due_types(due_work, JobKind.REVOCATION) == []
        assert await claim_revocations(due_work) == []

    async def test_a_grant_can_be_claimed_again_after_its_claim_expires(
        self, integrations: IntegrationStore, due_work: DueWork
    ) -> None:
        integration = await create_connected(integrations, ANN, "a")
        removed = await integrations.remove(integration.integration_id, ANN, claim_duration=EXPIRED_CLAIM)
        assert removed.revocation is not None
        (claim,) = await claim_revocations(due_work)
        assert (claim.row_id, claim.item.grant) == (removed.revocation.row_id, removed.revocation.item.grant)
        assert claim.item.attempts == 1  # the first one has no outcome

    async def test_removal_of_a_pending_integration_adds_nothing(
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore, due_work: DueWork
    ) -> None:
        integration = await create_pending(integrations, attempts)
        removed = await integrations.remove(integration.integration_id, ANN)
        assert removed.revocation is None
        assert await list_due_types(due_work, JobKind.REVOCATION) == []

    async def test_removal_by_another_user_adds_nothing(
        self, integrations: IntegrationStore, due_work: DueWork
    ) -> None:
        integration = await create_connected(integrations, ANN, "a")
        with pytest.raises(IntegrationNotFound):
            await integrations.remove(integration.integration_id, BOB)
        assert await list_due_types(due_work, JobKind.REVOCATION) == []

    async def test_of_concurrent_removals_one_gets_the_revocation(
        self, integrations: IntegrationStore, due_work: DueWork
    ) -> None:
        integration = await create_connected(integrations, ANN, "a")
        removals = await asyncio.gather(
            *(integrations.remove(integration.integration_id, ANN, claim_duration=EXPIRED_CLAIM) for _ in range(10)),
            return_exceptions=True,
        )
        assert sum(not isinstance(removed, IntegrationNotFound) for removed in removals) == 1
        assert len(await claim_revocations(due_work)) == 1

    async def test_claims_the_longest_due_of_a_type_and_at_most_the_limit(
        self, revocations: RevocationOutbox, due_work: DueWork
    ) -> None:
        grants = [new_grant(uid=f"uid-{number}") for number in range(3)]
        for grant in (*grants, new_grant(integration_type="other")):
            await revocations.add(grant)
        assert await list_due_types(due_work, JobKind.REVOCATION) == ["acme", "other"]
        first, rest = await claim_revocations(due_work, 2), await claim_revocations(due_work, 2)
        assert [{claim.item.grant for claim in claims} for claims in (first, rest)] == [set(grants[:2]), {grants[2]}]
        assert await list_due_types(due_work, JobKind.REVOCATION) == ["other"]

    async def test_concurrent_claims_do_not_share_grants(
        self, revocations: RevocationOutbox, due_work: DueWork
    ) -> None:
        for number in range(5):
            await revocations.add(new_grant(uid=f"uid-{number}"))
        claims = await asyncio.gather(*(claim_revocations(due_work, 1) for _ in range(20)))
        claimed = [claim.item.grant.uid for batch in claims for claim in batch]
        assert len(claimed) == len(set(claimed))
        assert len(claimed) + len(await claim_revocations(due_work)) == 5

    async def test_a_postponed_row_is_due_after_the_delay(
        self, revocations: RevocationOutbox, due_work: DueWork
    ) -> None:
        await revocations.add(new_grant())
        (claim,) = await claim_revocations(due_work)
        postponed = await due_work.postpone(claim, 2 * LONG_CLAIM)
        assert postponed is not None
        assert postponed.due_time > claim.expire_time > claim.due_time
        assert await list_due_types(due_work, JobKind.REVOCATION) == []
        again = await due_work.postpone(postponed, EXPIRED_CLAIM)
        assert again is not None
        assert again.due_time < postponed.due_time
        (claim,) = await claim_revocations(due_work)
        assert claim.item.attempts == 3

    async def test_a_replaced_claim_cannot_postpone(self, revocations: RevocationOutbox, due_work: DueWork) -> None:
        await revocations.add(new_grant())
        (replaced,) = await claim_revocations(due_work, claim_duration=EXPIRED_CLAIM)
        assert len(await claim_revocations(due_work)) == 1
        assert await due_work.postpone(replaced, EXPIRED_CLAIM) is None
        assert await list_due_types(due_work, JobKind.REVOCATION) == []

    async def test_a_removed_grant_is_not_due_and_can_be_removed_twice(
        self, revocations: RevocationOutbox, due_work: DueWork
    ) -> None:
        await revocations.add(new_grant())
        (claim,) = await claim_revocations(due_work, claim_duration=EXPIRED_CLAIM)
        for _ in range(2):
            await revocations.remove(claim)
            assert await list_due_types(due_work, JobKind.REVOCATION) == []
        assert await due_work.postpone(claim, EXPIRED_CLAIM) is None
        assert await list_due_types(due_work, JobKind.REVOCATION) == []

    # --- shared grants -----------------------------------------------------------------------------------------------

    async def test_a_revocation_that_ends_no_integration_is_sent(
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore, outbox: "Outbox"
    ) -> None:
        await create_connected(integrations, ANN, "b")
        await create_connected(integrations, BOB, "b", integration_type="sister")
        await create_connected(integrations, ANN, "a", integration_type="stranger")
        await attempts.begin(new_attempt(), new_integration(integration_type="sister"))
        await create_connected(integrations, BOB, "a", fingerprint="another token")
        await create_pending(integrations, attempts)
        assert await outbox.decide(new_grant(account_id="a", token_fingerprint="token")) is CallDecision.SEND
        sisters = "sister", "cousin"
        assert await outbox.decide(new_grant(account_id="a", token_fingerprint="token"), sisters) is CallDecision.SEND

    @pytest.mark.parametrize(
        ("live", "grant", "ended_types"),
        [
            ({"account_id": "a"}, {"account_id": "a"}, ("acme",)),
            ({"account_id": "a", "integration_type": "sister"}, {"account_id": "a"}, ("acme", "sister")),
            ({"account_id": "a"}, {"account_id": None}, ("acme",)),
            ({"account_id": None}, {"account_id": "a"}, ("acme",)),
            ({"account_id": None}, {"account_id": None}, ("acme",)),
            ({"account_id": "a", "is_active": False}, {"account_id": "a"}, ("acme",)),
            ({"account_id": "b", "fingerprint": "token"}, {"account_id": "a"}, ()),
            ({"account_id": None, "fingerprint": "token"}, {"account_id": None}, ()),
            ({"account_id": "b", "fingerprint": "token", "integration_type": "other"}, {"account_id": "a"}, ("acme",)),
        ],
    )
    @pytest.mark.parametrize(
        ("user_id", "decision"), [(ANN, CallDecision.SHARED_WITH_OWN), (BOB, CallDecision.SHARED)], ids=["own", "other"]
    )
    async def test_a_revocation_that_may_end_an_integration_is_not_sent(
        self,
        integrations: IntegrationStore,
        outbox: "Outbox",
        live: dict[str, Any],
        grant: dict[str, Any],
        ended_types: Sequence[str],
        user_id: UserId,
        decision: CallDecision,
    ) -> None:
        live = dict(live)
        is_active = live.pop("is_active", True)
        connected = await create_connected(integrations, user_id, **live)
        if not is_active:
            await update_settings(integrations, connected, IntegrationUpdate(is_active=False))
        orphaned = new_grant(**grant, token_fingerprint="token")
        assert await outbox.decide(orphaned, ended_types, keeps_shared_grants=False) is CallDecision.SEND
        assert await outbox.decide(orphaned, ended_types) is decision
        await integrations.remove(connected.integration_id, user_id)
        assert await outbox.decide(orphaned, ended_types) is CallDecision.SEND

    async def test_another_type_of_the_user_may_name_the_account_differently(
        self, integrations: IntegrationStore, outbox: "Outbox"
    ) -> None:
        types = "acme", "sister"
        await create_connected(integrations, BOB, "named differently", integration_type="sister")
        assert await outbox.decide(new_grant(account_id="a"), types) is CallDecision.SEND
        await create_connected(integrations, ANN, "named differently", integration_type="sister")
        assert await outbox.decide(new_grant(account_id="a"), types) is CallDecision.SHARED_WITH_OWN
        decision = await outbox.decide(new_grant(account_id="a"), types, comparable_types=types)
        assert decision is CallDecision.SEND  # it names accounts alike, so that it is another one

    async def test_a_user_who_denies_a_scope_prevents_no_revocation_of_others(
        self, integrations: IntegrationStore, outbox: "Outbox"
    ) -> None:
        await create_connected(integrations, BOB, None, lacks_required_scope=True)
        assert await outbox.decide(new_grant(account_id="a"), ["acme"]) is CallDecision.SEND
        assert await outbox.decide(new_grant(account_id=None), ["acme"]) is CallDecision.SHARED

    async def test_a_removed_or_replaced_claim_is_not_sent(
        self, revocations: RevocationOutbox, due_work: DueWork, outbox: "Outbox"
    ) -> None:
        await revocations.add(new_grant())
        (replaced,) = await claim_revocations(due_work, claim_duration=EXPIRED_CLAIM)
        (claim,) = await claim_revocations(due_work)
        assert (await revocations.begin_call(replaced, [], [], LONG_CLAIM))[0] is CallDecision.NOT_CLAIMED
        decision, claim = await revocations.begin_call(claim, [], [], LONG_CLAIM)
        assert decision is CallDecision.SEND
        assert await due_work.postpone(claim, LONG_CLAIM) is not None  # it is the claim that the row has now
        await revocations.remove(claim)
        assert (await revocations.begin_call(claim, [], [], LONG_CLAIM))[0] is CallDecision.NOT_CLAIMED

    @pytest.mark.parametrize(
        ("grant", "fingerprint", "account_id", "ended_by"),
        [
            ({"account_id": "a"}, "new token", "a", ("acme",)),
            ({"account_id": None}, "new token", "a", ("acme",)),
            ({"account_id": "a"}, "new token", None, ("acme",)),
            ({"account_id": "a", "integration_type": "sister"}, "new token", "a", ("acme", "sister")),
            ({"account_id": "b"}, "token", "a", ()),
        ],
    )
    async def test_no_integration_is_connected_while_a_revocation_may_end_it(
        self,
        integrations: IntegrationStore,
        attempts: AuthorizationAttemptStore,
        revocations: RevocationOutbox,
        due_work: DueWork,
        outbox: "Outbox",
        grant: dict[str, Any],
        fingerprint: str,
        account_id: str | None,
        ended_by: Sequence[str],
    ) -> None:
        pending = await create_pending(integrations, attempts, BOB)
        credentials, scopes = new_credentials(token_fingerprint=fingerprint), of_types(*ended_by)
        begin = await revocations.now()
        decision, claim = await outbox.begin(new_grant(**grant, token_fingerprint="token"))
        assert decision is CallDecision.SEND

        async def connect(proof: GrantProof) -> None:
            new = new_integration(BOB)
            added = await integrations.add_connected(new, account(account_id), credentials, NOW, proof=proof)
            assert added is not None
            await integrations.remove(added.integration_id, BOB)

        proof = GrantProof(LATER + timedelta(weeks=10_000), scopes)  # while the call is in progress, none is enough
        with pytest.raises(RevocationInProgress):
            await connect(proof)
        with pytest.raises(RevocationInProgress):
            await integrations.commit_connection(pending, account(account_id), credentials, NOW, proof=proof)
        postponed = await due_work.postpone(claim, LONG_CLAIM)
        assert postponed is not None
        await connect(GrantProof(begin, scopes))  # the call has failed
        await revocations.complete(postponed)
        with pytest.raises(RevocationInProgress):
            await connect(GrantProof(begin, scopes))
        await connect(proof)

    async def test_the_record_of_a_revocation_has_no_credentials_and_is_due_later(
        self, revocations: RevocationOutbox, due_work: DueWork, outbox: "Outbox"
    ) -> None:
        _, claim = await outbox.begin(new_grant())
        await revocations.complete(claim)
        assert await claim_revocations(due_work) == []
        assert await due_work.postpone(claim, EXPIRED_CLAIM) is None

    async def test_a_revocation_of_another_account_delays_no_connection(
        self, integrations: IntegrationStore, outbox: "Outbox"
    ) -> None:
        for grant in ({"account_id": "b"}, {"account_id": "a", "integration_type": "stranger"}):
            assert (await outbox.begin(new_grant(**grant, token_fingerprint="token")))[0] is CallDecision.SEND
        credentials = new_credentials(token_fingerprint="new token")
        connected = await integrations.add_connected(
            new_integration(BOB), account("a"), credentials, NOW, proof=GrantProof(LATER, of_types("acme", "sister"))
        )
        assert connected is not None

    async def test_the_call_of_a_crashed_process_delays_connections_until_its_claim_ends(
        self, integrations: IntegrationStore, outbox: "Outbox"
    ) -> None:
        decision, _ = await outbox.begin(new_grant(account_id="a"), claim_duration=EXPIRED_CLAIM)
        assert decision is CallDecision.SEND
        credentials = new_credentials(token_fingerprint="new token")
        new = new_integration(BOB)
        proof = GrantProof(LATER, of_types("acme"))
        assert await integrations.add_connected(new, account("a"), credentials, NOW, proof=proof) is not None

    async def test_of_a_revocation_and_a_connection_at_once_one_sees_the_other(
        self, integrations: IntegrationStore, revocations: RevocationOutbox, due_work: DueWork, outbox: "Outbox"
    ) -> None:
        credentials = new_credentials(token_fingerprint="new token")
        for number in range(20):
            name = f"account-{number}"
            connecting = integrations.add_connected(
                new_integration(BOB), account(name), credentials, NOW, proof=GrantProof(LATER, of_types("acme"))
            )
            revoking = asyncio.create_task(outbox.begin(new_grant(account_id=name), ["acme"]))
            (connection,) = await asyncio.gather(connecting, return_exceptions=True)
            decision, _ = await revoking
            is_connected = isinstance(connection, Integration)
            assert is_connected or isinstance(connection, RevocationInProgress)
            assert is_connected is (decision is not CallDecision.SEND)


@dataclass
class Outbox:
    """The outbox, for a test that decides about one revocation."""

    revocations: RevocationOutbox
    due_work: DueWork

    async def begin(
        self,
        grant: OrphanedGrant,
        ended_types: Sequence[str] = (),
        *,
        comparable_types: Sequence[str] = (),
        claim_duration: timedelta = LONG_CLAIM,
        **options: Any,
    ) -> tuple[CallDecision, Claim[Revocation]]:
        """Add a revocation, claim it and begin its call."""
        await self.revocations.add(grant)
        claims = await self.due_work.claim(JobKind.REVOCATION, grant.integration_type, 10, claim_duration=LONG_CLAIM)
        (claim,) = (claim for claim in claims if claim.item.grant == grant)
        comparable = comparable_types or [grant.integration_type]
        return await self.revocations.begin_call(claim, of_types(*ended_types), comparable, claim_duration, **options)

    async def decide(self, grant: OrphanedGrant, ended_types: Sequence[str] = (), **options: Any) -> CallDecision:
        """The decision about a revocation, which then leaves the outbox."""
        decision, claim = await self.begin(grant, ended_types, **options)
        await self.revocations.remove(claim)
        return decision


async def list_due_types(due_work: DueWork, job_kind: JobKind) -> list[str]:
    """The integration types with due rows of a job kind."""
    return sorted(job_type for kind, job_type in await due_work.due_types() if kind is job_kind)


async def claim_revocations(
    due_work: DueWork, limit: int = 10, *, claim_duration: timedelta = LONG_CLAIM
) -> Sequence[Claim[Revocation]]:
    """Claim due grants of the type `acme`."""
    return await due_work.claim(JobKind.REVOCATION, "acme", limit, claim_duration=claim_duration)


class AttemptStoreContract:
    """The contract of `AuthorizationAttemptStore`."""

    async def test_begin_stores_a_pending_integration(
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
    ) -> None:
        integration = await create_connected(integrations)
        for user_id, integration_id in ((BOB, integration.integration_id), (ANN, LARGEST_ID)):
            new = new_attempt(user_id)
            with pytest.raises(IntegrationNotFound):
                await attempts.begin_reconnection(new, integration_id)
            assert await attempts.consume(new.attempt_id, OUTCOME, NOW) is None

    async def test_finish_removes_the_pending_integration(
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
        self, integrations: IntegrationStore, attempts: AuthorizationAttemptStore
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
