"""SQL implementation of `RevocationOutbox`. `due_work.py` claims and postpones its rows."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.service.background.ports import Claim, JobKind
from integration_server.service.connections.revocation_ports import OrphanedGrant, Revocation
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database, from_row
from integration_server.storage.tables import revocations

_R = revocations.c


class SqlRevocationOutbox:
    """A `RevocationOutbox` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, grant: OrphanedGrant) -> None:
        """Add a grant that is due at once."""
        await self._database.write(insert(revocations).values(_values(grant, attempts=0, claim_duration=timedelta(0))))

    async def remove(self, claim: Claim[Revocation]) -> None:
        """Remove a grant; does nothing if it is gone."""
        await self._database.write(delete(revocations).where(_R.revocation_id == claim.row_id))


async def add_claimed(
    connection: AsyncConnection, grant: OrphanedGrant, claim_duration: timedelta
) -> Claim[Revocation]:
    """Add a grant that the caller has claimed, in the caller's transaction."""
    add = (
        insert(revocations)
        .values(_values(grant, attempts=1, claim_duration=claim_duration))
        .returning(*_R, DatabaseTime().label("now"))
    )
    row = (await connection.execute(add)).one()
    return Claim(JobKind.REVOCATION, row.revocation_id, row.due_time, revocation_of(row))


def revocation_of(row: Row[Any]) -> Revocation:
    """The revocation of a row that was selected with the database's time as `now`."""
    return Revocation(from_row(OrphanedGrant, row), row.attempts, row.now - row.create_time)


def _values(grant: OrphanedGrant, *, attempts: int, claim_duration: timedelta) -> Mapping[str, Any]:
    return {
        **asdict(grant),
        "create_time": DatabaseTime(),
        "due_time": DatabaseTime(claim_duration),
        "attempts": attempts,
    }
