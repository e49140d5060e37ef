"""Grants to be revoked, in SQL: fulfils the port `RevocationOutbox`.

All times are the database's, as with leases: a claim is a due time that has been moved ahead.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.service.connections.revocation_ports import OrphanedGrant, Revocation
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.tables import revocations

_R = revocations.c

_is_due = _R.due_time <= select(DatabaseTime()).scalar_subquery()  # read once, or PostgreSQL could not use the index

_DUE_TYPES = select(_R.integration_type).where(_is_due).distinct()

_NO_WAIT = timedelta(0)


class SqlRevocationOutbox:
    """`RevocationOutbox` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, grant: OrphanedGrant) -> None:
        """Put a grant in, due at once."""
        async with self._database.write_transaction() as connection:
            await connection.execute(insert(revocations).values(_values(grant, attempts=0, claim_duration=_NO_WAIT)))

    async def due_types(self) -> Sequence[str]:
        """The types of which something is due."""
        async with self._database.read_connection() as connection:
            return (await connection.scalars(_DUE_TYPES)).all()

    async def claim_due(self, integration_type: str, limit: int, *, claim_duration: timedelta) -> Sequence[Revocation]:
        """Claim what is due of a type, longest due first. On PostgreSQL those that others are about to are skipped."""
        due = (
            select(_R.revocation_id)
            .where(_is_due, _R.integration_type == integration_type)
            .order_by(_R.due_time)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        async with self._database.write_transaction() as connection:
            ids = (await connection.scalars(due)).all()
            claim = (
                update(revocations)
                .where(_R.revocation_id.in_(ids))
                .values(due_time=DatabaseTime(claim_duration), attempts=_R.attempts + 1)
                .returning(*_R, DatabaseTime().label("now"))
            )
            return [_revocation(row) for row in (await connection.execute(claim)).all()]

    async def postpone(self, revocation: Revocation, pause: timedelta) -> None:
        """Have it due again after the pause, unless another has claimed it by now."""
        statement = (
            update(revocations)
            .where(_R.revocation_id == revocation.revocation_id, _R.attempts == revocation.attempts)
            .values(due_time=DatabaseTime(pause))
        )
        async with self._database.write_transaction() as connection:
            await connection.execute(statement)

    async def remove(self, revocation: Revocation) -> None:
        """Take it out."""
        async with self._database.write_transaction() as connection:
            await connection.execute(delete(revocations).where(_R.revocation_id == revocation.revocation_id))


async def add_claimed(connection: AsyncConnection, grant: OrphanedGrant, claim_duration: timedelta) -> Revocation:
    """Put a grant in within a transaction, already claimed by the caller."""
    add = (
        insert(revocations)
        .values(_values(grant, attempts=1, claim_duration=claim_duration))
        .returning(*_R, DatabaseTime().label("now"))
    )
    return _revocation((await connection.execute(add)).one())


def _values(grant: OrphanedGrant, *, attempts: int, claim_duration: timedelta) -> dict[str, Any]:
    return {
        "uid": grant.uid,
        "user_id": grant.user_id,
        "integration_type": grant.integration_type,
        "account_id": grant.account_id,
        "encrypted_credentials": grant.encrypted_credentials,
        "create_time": DatabaseTime(),
        "due_time": DatabaseTime(claim_duration),
        "attempts": attempts,
    }


def _revocation(row: Row[Any]) -> Revocation:
    grant = OrphanedGrant(row.uid, row.user_id, row.integration_type, row.account_id, row.encrypted_credentials)
    return Revocation(row.revocation_id, grant, row.attempts, row.now - row.create_time)
