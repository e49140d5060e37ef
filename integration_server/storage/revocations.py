"""SQL implementation of `RevocationOutbox`. `due_work.py` claims and postpones its rows.

A revocation may end grants that others have: of the same token, or of the same account. `begin_call` looks for their
integrations before the provider is called. `connections.py` looks for calls in progress, and for those that have
just ended, before an integration is connected. Both lock the same row, the first exclusively, so that one of them sees
the other.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    delete,
    exists,
    false,
    insert,
    or_,
    select,
    update,
)

from integration_server.service.background.ports import Claim, JobKind
from integration_server.service.connections.revocation_ports import (
    CallDecision,
    ClientScope,
    OrphanedGrant,
    Revocation,
)
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.due_work_claims import is_held, renew
from integration_server.storage.engine import Database, DatabaseTime, from_row
from integration_server.storage.tables import integrations, locks, revocations

_R = revocations.c
_T = integrations.c

# Longer than a connection takes, from the exchange of the code to its commit.
_RECORD_DURATION = timedelta(minutes=5)

REVOCATION_LOCK = select(locks).where(locks.c.lock_name == "revocation")
"""The row that is locked for the decision about a call; SQLite serializes write transactions instead."""


class SqlRevocationOutbox:
    """A `RevocationOutbox` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, grant: OrphanedGrant) -> None:
        """Add a grant that is due at once."""
        await self._database.write(insert(revocations).values(_values(grant, claim_duration=timedelta(0))))

    async def begin_call(
        self,
        claim: Claim[Revocation],
        ended: Collection[ClientScope],
        comparable_types: Collection[str],
        claim_duration: timedelta,
        *,
        keeps_shared_grants: bool = True,
    ) -> tuple[CallDecision, Claim[Revocation]]:
        """Decide whether the revocation may be sent, and claim it anew for the call if so."""
        is_claimed = is_held(claim, _R.revocation_id, _R.due_time)
        async with self._database.write_transaction() as connection:
            await connection.execute(REVOCATION_LOCK.with_for_update())
            if await connection.scalar(select(_R.revocation_id).where(*is_claimed)) is None:
                return CallDecision.NOT_CLAIMED, claim
            if keeps_shared_grants:
                for decision, user_condition in (
                    (CallDecision.SHARED_WITH_OWN, _T.user_id == claim.item.grant.user_id),
                    (CallDecision.SHARED, _T.user_id != claim.item.grant.user_id),
                ):
                    ends_connected = ends_integration(claim.item.grant, ended, comparable_types, user_condition)
                    if await connection.scalar(ends_connected):
                        await connection.execute(delete(revocations).where(*is_claimed))
                        return decision, claim
            due_time = (await connection.execute(select(DatabaseTime(claim_duration)))).scalar_one()
            begin = update(revocations).where(*is_claimed).values(due_time=due_time, call_due_time=due_time)
            if not (await connection.execute(begin)).rowcount:  # another process has claimed it since it was read
                return CallDecision.NOT_CLAIMED, claim
            renewed = claim.renewed(due_time)
            await connection.execute(renew(claim, renewed))
        return CallDecision.SEND, renewed

    async def complete(self, claim: Claim[Revocation]) -> None:
        """Record that the grant is revoked, and delete its credentials."""
        await self._database.write(
            update(revocations)
            .where(_R.revocation_id == claim.row_id)
            .values(encrypted_credentials=b"", revoke_time=DatabaseTime(), due_time=DatabaseTime(_RECORD_DURATION))
        )

    async def remove(self, claim: Claim[Revocation]) -> None:
        """Remove a grant; does nothing if it is gone."""
        await self._database.write(delete(revocations).where(_R.revocation_id == claim.row_id))


def ends_integration(
    grant: OrphanedGrant,
    ended: Collection[ClientScope],
    comparable_types: Collection[str],
    user_condition: ColumnElement[bool],
) -> Select[tuple[bool]]:
    """The query whether the revocation of a grant may end a connected integration of some users."""
    is_connected = _T.connect_time.is_not(None)
    conditions = _ended_integrations(grant, ended, comparable_types)
    return select(or_(false(), *(exists().where(is_connected, user_condition, condition) for condition in conditions)))


def _ended_integrations(
    grant: OrphanedGrant, ended: Collection[ClientScope], comparable_types: Collection[str]
) -> Iterator[ColumnElement[bool]]:
    """The conditions of integrations that the revocation of a grant may end. Each of them has an index."""
    if grant.token_fingerprint is not None:
        yield _T.token_fingerprint == grant.token_fingerprint
    is_own = _T.user_id == grant.user_id
    # For each client apart, so that each condition has an index.
    for scope in ended:
        is_ended = _is_of(scope)
        if grant.account_id is None:
            yield is_ended
            continue
        yield and_(is_ended, _T.account_id == grant.account_id)
        yield and_(is_ended, _T.account_id.is_(None), or_(is_own, _T.lacks_required_scope.is_(False)))
        if scope.integration_type not in {grant.integration_type, *comparable_types}:
            yield and_(is_own, is_ended)


def _is_of(scope: ClientScope) -> ColumnElement[bool]:
    """The condition for the integrations of a client."""
    is_type = _T.integration_type == scope.integration_type
    return is_type if scope.oauth_client is None else and_(is_type, _T.oauth_client == scope.oauth_client)


async def add_claimed(
    connection: AsyncConnection, grant: OrphanedGrant, claim_duration: timedelta
) -> Claim[Revocation]:
    """Add a grant that the caller has claimed, in the caller's transaction."""
    add = (
        insert(revocations)
        .values(_values(grant, claim_duration=claim_duration))
        .returning(*_R, DatabaseTime().label("now"))
    )
    row = (await connection.execute(add)).one()
    return Claim(JobKind.REVOCATION, row.revocation_id, row.due_time, row.due_time, revocation_of(row))


def revocation_of(row: Row[Any]) -> Revocation:
    """The revocation of a row that was selected with the database's time as `now`."""
    return Revocation(
        from_row(OrphanedGrant, row), row.attempts + 1, row.now - row.create_time, row.revoke_time is not None
    )


def _values(grant: OrphanedGrant, *, claim_duration: timedelta) -> Mapping[str, Any]:
    return {
        **asdict(grant),
        "client_key": grant.client_key,
        "create_time": DatabaseTime(),
        "due_time": DatabaseTime(claim_duration),
    }
