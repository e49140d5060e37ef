"""The contract of `RevocationOutbox`. A subclass provides the fixtures."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.associated_data import bound_values_of
from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import Integration, UserId
from integration_server.service.background.ports import Claim, DueWork, JobKind
from integration_server.service.connections.ports import (
    AuthorizationAttemptStore,
)
from integration_server.service.connections.revocation_ports import (
    CallDecision,
    GrantProof,
    OrphanedGrant,
    Revocation,
    RevocationInProgress,
    RevocationOutbox,
)
from integration_server.service.integrations.ports import (
    IntegrationUpdate,
)
from tests.contracts.integration_rows import (
    ANN,
    BOB,
    EXPIRED_CLAIM,
    LATER,
    LONG_CLAIM,
    NOW,
    IntegrationRows,
    account,
    create_connected,
    create_pending,
    new_attempt,
    new_credentials,
    new_grant,
    new_integration,
    of_types,
    update_settings,
)


class RevocationOutboxContract:
    """The contract of `RevocationOutbox` and of the claims on its rows.

    A subclass provides the fixtures `integrations`, `attempts`, `revocations` and `due_work`.
    """

    @pytest.fixture
    def outbox(self, revocations: RevocationOutbox, due_work: DueWork) -> "Outbox":
        """The outbox, with the helpers of a test."""
        return Outbox(revocations, due_work)

    async def test_removal_adds_the_credentials_claimed_by_the_remover(
        self, integrations: IntegrationRows, due_work: DueWork
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
        self, integrations: IntegrationRows, due_work: DueWork
    ) -> None:
        integration = await create_connected(integrations, ANN, "a")
        removed = await integrations.remove(integration.integration_id, ANN, claim_duration=EXPIRED_CLAIM)
        assert removed.revocation is not None
        (claim,) = await claim_revocations(due_work)
        assert (claim.row_id, claim.item.grant) == (removed.revocation.row_id, removed.revocation.item.grant)
        assert claim.item.attempts == 1  # the first one has no outcome

    async def test_removal_of_a_pending_integration_adds_nothing(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore, due_work: DueWork
    ) -> None:
        integration = await create_pending(integrations, attempts)
        removed = await integrations.remove(integration.integration_id, ANN)
        assert removed.revocation is None
        assert await list_due_types(due_work, JobKind.REVOCATION) == []

    async def test_removal_by_another_user_adds_nothing(self, integrations: IntegrationRows, due_work: DueWork) -> None:
        integration = await create_connected(integrations, ANN, "a")
        with pytest.raises(IntegrationNotFound):
            await integrations.remove(integration.integration_id, BOB)
        assert await list_due_types(due_work, JobKind.REVOCATION) == []

    async def test_of_concurrent_removals_one_gets_the_revocation(
        self, integrations: IntegrationRows, due_work: DueWork
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
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore, outbox: "Outbox"
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
        integrations: IntegrationRows,
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
        self, integrations: IntegrationRows, outbox: "Outbox"
    ) -> None:
        types = "acme", "sister"
        await create_connected(integrations, BOB, "named differently", integration_type="sister")
        assert await outbox.decide(new_grant(account_id="a"), types) is CallDecision.SEND
        await create_connected(integrations, ANN, "named differently", integration_type="sister")
        assert await outbox.decide(new_grant(account_id="a"), types) is CallDecision.SHARED_WITH_OWN
        decision = await outbox.decide(new_grant(account_id="a"), types, comparable_types=types)
        assert decision is CallDecision.SEND  # it names accounts alike, so that it is another one

    async def test_a_user_who_denies_a_scope_prevents_no_revocation_of_others(
        self, integrations: IntegrationRows, outbox: "Outbox"
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
        integrations: IntegrationRows,
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
        begin = await integrations.now()
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
        self, integrations: IntegrationRows, outbox: "Outbox"
    ) -> None:
        for grant in ({"account_id": "b"}, {"account_id": "a", "integration_type": "stranger"}):
            assert (await outbox.begin(new_grant(**grant, token_fingerprint="token")))[0] is CallDecision.SEND
        credentials = new_credentials(token_fingerprint="new token")
        connected = await integrations.add_connected(
            new_integration(BOB), account("a"), credentials, NOW, proof=GrantProof(LATER, of_types("acme", "sister"))
        )
        assert connected is not None

    async def test_the_call_of_a_crashed_process_delays_connections_until_its_claim_ends(
        self, integrations: IntegrationRows, outbox: "Outbox"
    ) -> None:
        decision, _ = await outbox.begin(new_grant(account_id="a"), claim_duration=EXPIRED_CLAIM)
        assert decision is CallDecision.SEND
        credentials = new_credentials(token_fingerprint="new token")
        new = new_integration(BOB)
        proof = GrantProof(LATER, of_types("acme"))
        assert await integrations.add_connected(new, account("a"), credentials, NOW, proof=proof) is not None

    async def test_of_a_revocation_and_a_connection_at_once_one_sees_the_other(
        self, integrations: IntegrationRows, revocations: RevocationOutbox, due_work: DueWork, outbox: "Outbox"
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
