"""The contract of `DueWork`, which every implementation passes."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.background.ports import LONGEST_CLAIM, Claim, DueWork, JobKind
from integration_server.service.connections.ports import AuthorizationAttempt, AuthorizationAttemptStore
from integration_server.service.integrations.ports import IntegrationUpdate, NewCredentials
from tests.contracts.integration_rows import (
    BOB,
    EXPIRED_CLAIM,
    FAILURE,
    LATER,
    LONG_CLAIM,
    NOW,
    IntegrationRows,
    account,
    create_pending,
    find_stored,
    new_attempt,
    new_integration,
    reload,
    update_settings,
)
from tests.contracts.revocation_contract import list_due_types

SECOND = timedelta(seconds=1)
PAST, FUTURE = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


async def add_due(
    integrations: IntegrationRows, due_time: datetime | None, integration_type: str = "acme"
) -> Integration:
    """Store an integration whose refresh and health check are due at this time."""
    integration = await integrations.add_connected(
        new_integration(integration_type=integration_type),
        account(None),
        NewCredentials(b"encrypted", is_renewable=True, refresh_due_time=due_time),
        NOW,
        check_due_time=due_time,
    )
    assert integration is not None
    return integration


@pytest.mark.parametrize("job_kind", [JobKind.REFRESH, JobKind.CHECK])
class DueWorkContract:
    """A subclass provides the fixtures `due_work`, `integrations` and `attempts`, views of one empty store."""

    async def test_claims_the_longest_due_first(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        rows = [await add_due(integrations, PAST - number * SECOND) for number in range(4)]
        claims = await due_work.claim(job_kind, "acme", 2, claim_duration=LONG_CLAIM)
        assert {claim.row_id for claim in claims} == {row.integration_id for row in rows[2:]}
        for claim in claims:
            assert claim.item == await find_stored(integrations, claim.item.integration.integration_id)
            assert getattr(claim.item.integration, f"{job_kind.value}_due_time") == claim.due_time < PAST
            assert claim.expire_time > PAST

    async def test_a_claimed_row_is_due_again_when_the_claim_expires(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        await add_due(integrations, PAST)
        assert len(await due_work.claim(job_kind, "acme", 5, claim_duration=EXPIRED_CLAIM)) == 1
        assert len(await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)) == 1
        assert await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM) == []

    async def test_a_claim_takes_as_many_rows_as_it_asks_for(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        rows = [await add_due(integrations, PAST - number * SECOND) for number in range(80)]
        for expected in (rows[10:], rows[:10], []):  # 70 are more than a statement claims
            claims = await due_work.claim(job_kind, "acme", 70, claim_duration=LONG_CLAIM)
            assert {claim.row_id for claim in claims} == {row.integration_id for row in expected}

    async def test_another_due_time_ends_a_claim(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        await add_due(integrations, PAST)
        (claim,) = await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)
        assert await due_work.postpone(claim, -SECOND) is not None
        assert await list_due_types(due_work, job_kind) == ["acme"]
        (again,) = await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)
        assert again.due_time > claim.due_time
        assert await due_work.postpone(claim, -SECOND) is None
        assert await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM) == []
        assert await due_work.postpone(again, LONG_CLAIM) is not None
        assert await list_due_types(due_work, job_kind) == []

    async def test_claims_are_deleted_when_they_have_expired(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        for _ in range(3):
            await add_due(integrations, PAST)
        assert len(await due_work.claim(job_kind, "acme", 1, claim_duration=LONG_CLAIM)) == 1
        expired = await due_work.claim(job_kind, "acme", 2, claim_duration=-LONG_CLAIM)
        assert [await due_work.prune() for _ in range(2)] == [2, 0]
        again = await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)
        assert {claim.row_id for claim in again} == {claim.row_id for claim in expired}

    async def test_each_claim_without_an_outcome_lengthens_the_next_one(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        """Compares with a row that is claimed for the first time by the same statement."""
        for count in (1, 3, 12):
            row = await add_due(integrations, PAST)
            for number in range(count):
                (claim,) = await due_work.claim(job_kind, "acme", 5, claim_duration=timedelta(0))
                assert claim.expired_claims == number
            assert await due_work.prune() == 0  # the number is still needed
            new = await add_due(integrations, PAST)
            claims = await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)
            by_row = {claim.row_id: claim for claim in claims}
            repeated, first = by_row[row.integration_id], by_row[new.integration_id]
            assert (repeated.expired_claims, first.expired_claims) == (count, 0)
            doubled = min(LONG_CLAIM * 2.0**count, LONGEST_CLAIM)
            duration = repeated.expire_time - first.expire_time + LONG_CLAIM
            assert doubled / 2 - SECOND <= duration <= doubled + SECOND

    async def test_an_outcome_ends_the_count_of_expired_claims(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        await add_due(integrations, PAST)
        for number in range(3):
            claims = await due_work.claim(job_kind, "acme", 5, claim_duration=EXPIRED_CLAIM)
            assert [claim.expired_claims for claim in claims] == [number]
        (claim,) = await due_work.claim(job_kind, "acme", 5, claim_duration=EXPIRED_CLAIM)
        assert await due_work.postpone(claim, -SECOND) is not None
        (claim,) = await due_work.claim(job_kind, "acme", 5, claim_duration=EXPIRED_CLAIM)
        assert claim.expired_claims == 0

    @pytest.mark.parametrize("expired_claims", [1, 3])
    async def test_a_released_claim_does_not_count(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind, expired_claims: int
    ) -> None:
        """Neither for a row that is claimed for the first time nor for one whose claims have expired before."""
        repeated = await add_due(integrations, PAST)
        for _ in range(expired_claims):
            assert len(await due_work.claim(job_kind, "acme", 5, claim_duration=EXPIRED_CLAIM)) == 1
        new = await add_due(integrations, PAST)
        for _ in range(3):
            claims = await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)
            counts = {claim.row_id: claim.expired_claims for claim in claims}
            assert counts == {repeated.integration_id: expired_claims, new.integration_id: 0}
            first, second = sorted(claims, key=lambda claim: claim.expired_claims)
            longer = second.expire_time - first.expire_time + LONG_CLAIM
            longest = min(LONG_CLAIM * 2.0**expired_claims, LONGEST_CLAIM)
            assert longest / 2 - SECOND <= longer <= longest + SECOND
            assert await list_due_types(due_work, job_kind) == []
            await due_work.release(claims)
            assert await list_due_types(due_work, job_kind) == ["acme"]

    async def test_a_release_leaves_the_claim_of_another_process(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        await add_due(integrations, PAST)
        replaced = await due_work.claim(job_kind, "acme", 5, claim_duration=EXPIRED_CLAIM)
        assert len(await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)) == 1
        await due_work.release(replaced)
        assert await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM) == []

    async def test_lists_the_types_with_due_rows(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        for due_time, integration_type in (
            (FUTURE, "a future type"),
            (PAST, "acme"),
            (PAST, "acme"),
            (PAST, "another"),
            (None, "never"),
        ):
            await add_due(integrations, due_time, integration_type)
        assert await list_due_types(due_work, job_kind) == ["acme", "another"]
        await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)
        assert await list_due_types(due_work, job_kind) == ["another"]
        for integration_type in ("a future type", "never", "unknown"):
            assert await due_work.claim(job_kind, integration_type, 5, claim_duration=LONG_CLAIM) == []

    async def test_concurrent_claims_do_not_share_rows(
        self, due_work: DueWork, integrations: IntegrationRows, job_kind: JobKind
    ) -> None:
        rows = [await add_due(integrations, PAST) for _ in range(20)]
        results = await asyncio.gather(
            *(due_work.claim(job_kind, "acme", 3, claim_duration=LONG_CLAIM) for _ in range(10))
        )
        claimed = [claim.row_id for claims in results for claim in claims]
        assert len(claimed) == len(set(claimed))
        while more := await due_work.claim(job_kind, "acme", 3, claim_duration=LONG_CLAIM):
            claimed += [claim.row_id for claim in more]
        assert sorted(map(int, claimed)) == [row.integration_id for row in rows]

    async def test_skips_inactive_expired_and_pending_integrations(
        self, due_work: DueWork, integrations: IntegrationRows, attempts: AuthorizationAttemptStore, job_kind: JobKind
    ) -> None:
        inactive, expired = await add_due(integrations, PAST), await add_due(integrations, PAST)
        await update_settings(integrations, inactive, IntegrationUpdate(is_active=False), NOW)
        await integrations.record_failure(expired, FAILURE, reauthorization_required=True, refresh_due_time=PAST)
        await create_pending(integrations, attempts, BOB)
        assert await list_due_types(due_work, job_kind) == []
        assert await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM) == []
        await update_settings(integrations, inactive, IntegrationUpdate(is_active=True), NOW)
        assert len(await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)) == 1


class DevicePollContract:
    """The polls of device authorizations. A subclass provides the fixtures of `DueWorkContract`."""

    async def test_polls_are_claimed_once_and_postponed_by_the_claim_only(
        self, due_work: DueWork, attempts: AuthorizationAttemptStore
    ) -> None:
        attempt, _ = await begin_device(attempts)
        assert await list_due_types(due_work, JobKind.DEVICE_POLL) == ["acme"]
        results = await asyncio.gather(*(claim_polls(due_work) for _ in range(6)))
        (claim,) = [claim for claims in results for claim in claims]
        assert (claim.row_id, claim.item.poll_interval_seconds) == (attempt.attempt_id, -1)
        postponed = await attempts.postpone_poll(claim, -SECOND, interval=7.5 * SECOND, failures=2)
        assert postponed is not None
        assert await attempts.postpone_poll(claim, SECOND, interval=SECOND, failures=0) is None
        (again,) = await claim_polls(due_work)
        assert (again.item.poll_interval_seconds, again.item.poll_failures) == (7.5, 2)
        assert await claim_polls(due_work) == []

    async def test_a_poll_that_has_begun_is_claimed_until_its_end(
        self, due_work: DueWork, attempts: AuthorizationAttemptStore
    ) -> None:
        await begin_device(attempts)
        (claim,) = await claim_polls(due_work)
        begun = await attempts.begin_poll(claim, LONG_CLAIM)
        assert begun is not None
        assert await attempts.begin_poll(claim, LONG_CLAIM) is None
        assert await attempts.postpone_poll(claim, SECOND, interval=SECOND, failures=0) is None
        assert await claim_polls(due_work) == []
        assert await attempts.postpone_poll(begun, -SECOND, interval=SECOND, failures=0) is not None
        (claim,) = await claim_polls(due_work)
        assert claim.expired_claims == 0

    async def test_a_poll_that_has_begun_and_has_no_outcome_is_counted(
        self, due_work: DueWork, attempts: AuthorizationAttemptStore
    ) -> None:
        await begin_device(attempts)
        for number in range(4):
            (claim,) = await claim_polls(due_work, EXPIRED_CLAIM)
            assert claim.expired_claims == number
            assert await attempts.begin_poll(claim, EXPIRED_CLAIM) is not None
        (claim,) = await claim_polls(due_work)
        assert await attempts.begin_poll(claim, EXPIRED_CLAIM) is not None
        assert await claim_polls(due_work) == []  # it does not end before the claim, which is longer each time

    async def test_an_attempt_is_due_after_its_interval(
        self, due_work: DueWork, attempts: AuthorizationAttemptStore
    ) -> None:
        await begin_device(attempts, interval_seconds=600)
        await attempts.begin(new_attempt(), new_integration())  # with a callback
        assert await claim_polls(due_work) == []

    async def test_the_end_of_an_attempt_ends_its_polls(
        self, due_work: DueWork, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        consumed, finished, removed = [await begin_device(attempts) for _ in range(3)]
        claims = {claim.row_id: claim for claim in await claim_polls(due_work, EXPIRED_CLAIM)}
        assert await attempts.consume(consumed[0].attempt_id, b"outcome", NOW) is not None
        await attempts.finish(finished[0], b"outcome")
        await integrations.remove(removed[1], removed[0].user_id, claim_duration=LONG_CLAIM)
        assert await claim_polls(due_work) == []
        for claim in claims.values():
            assert await attempts.postpone_poll(claim, -SECOND, interval=SECOND, failures=0) is None

    async def test_a_new_reconnection_ends_those_before(
        self, due_work: DueWork, integrations: IntegrationRows, attempts: AuthorizationAttemptStore
    ) -> None:
        integration, other = await add_due(integrations, None), await add_due(integrations, None)
        old, elsewhere, new = (new_attempt(poll_interval_seconds=-1.0) for _ in range(3))
        with_callback = new_attempt()
        await attempts.begin_reconnection(old, integration.integration_id)
        await attempts.begin_reconnection(elsewhere, other.integration_id)
        await attempts.begin_reconnection(with_callback, integration.integration_id)
        await attempts.begin_reconnection(new, integration.integration_id)
        assert {claim.row_id for claim in await claim_polls(due_work)} == {new.attempt_id, elsewhere.attempt_id}
        assert await attempts.find(with_callback.attempt_id) is not None


async def begin_device(
    attempts: AuthorizationAttemptStore, interval_seconds: float = -1
) -> tuple[AuthorizationAttempt, IntegrationId]:
    """Store a device authorization, which is due at once."""
    attempt = new_attempt(poll_interval_seconds=interval_seconds)
    return attempt, await attempts.begin(attempt, new_integration())


async def claim_polls(
    due_work: DueWork, claim_duration: timedelta = LONG_CLAIM
) -> Sequence[Claim[AuthorizationAttempt]]:
    """Claim due polls of the type `acme`."""
    return await due_work.claim(JobKind.DEVICE_POLL, "acme", 10, claim_duration=claim_duration)


class RefreshDueTimeContract:
    """The due time of the next refresh. A subclass provides the fixture `integrations`."""

    async def test_new_credentials_set_the_due_time(self, integrations: IntegrationRows) -> None:
        integration = await add_due(integrations, NOW)
        credentials = NewCredentials(b"new", is_renewable=True, refresh_due_time=LATER)
        committed = await integrations.commit_refresh(integration, credentials, NOW)
        assert committed is not None
        assert (committed.refresh_due_time, committed.check_due_time) == (LATER, NOW)

    async def test_a_failure_changes_only_a_due_time_that_was_set(self, integrations: IntegrationRows) -> None:
        proactive, on_demand = await add_due(integrations, NOW), await add_due(integrations, None)
        for integration in (proactive, on_demand):
            await integrations.record_failure(integration, FAILURE, refresh_due_time=LATER)
        assert (await reload(integrations, proactive)).refresh_due_time == LATER
        assert (await reload(integrations, on_demand)).refresh_due_time is None

    async def test_expiring_integrations_are_listed_by_expiry(self, integrations: IntegrationRows) -> None:
        async def expiring(*, refresh: datetime | None, access: datetime | None, renewable: bool) -> Integration:
            integration = await integrations.add_connected(
                new_integration(),
                account(None),
                NewCredentials(
                    b"encrypted",
                    is_renewable=renewable,
                    refresh_token_expire_time=refresh,
                    access_token_expire_time=access,
                ),
                NOW,
            )
            assert integration is not None
            return integration

        second = await expiring(refresh=NOW + 3 * SECOND, access=NOW, renewable=True)
        first = await expiring(refresh=None, access=NOW + SECOND, renewable=False)
        await expiring(refresh=None, access=NOW + SECOND, renewable=True)
        await expiring(refresh=NOW + 9 * SECOND, access=NOW, renewable=True)
        inactive = await expiring(refresh=NOW, access=NOW, renewable=True)
        await update_settings(integrations, inactive, IntegrationUpdate(is_active=False), NOW)
        assert await integrations.list_expiring(NOW + 5 * SECOND, 10) == [first, second]
        assert await integrations.list_expiring(NOW + 5 * SECOND, 1) == [first]
