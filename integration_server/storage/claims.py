"""Claims on work that one server at a time should do: rows with an end, on the database's clock. There is no leader."""

from datetime import timedelta

from sqlalchemy import delete, or_
from sqlalchemy.dialects import postgresql, sqlite

from integration_server.storage.clock import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.tables import work_claims

_W = work_claims.c


class WorkClaim:
    """One owner's claim on a piece of work, good for `duration` after each `renew`."""

    def __init__(self, database: Database, work: str, owner: str, duration: timedelta) -> None:
        self._database = database
        self._work = work
        self._owner = owner
        self._duration = duration

    async def renew(self) -> bool:
        """Claim the work, or keep it. False while it is another's."""
        async with self._database.writing() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            new = insert(work_claims).values(
                work=self._work, owner=self._owner, expire_time=DatabaseTime(self._duration)
            )
            claim = new.on_conflict_do_update(
                index_elements=[_W.work],
                set_={"owner": new.excluded.owner, "expire_time": new.excluded.expire_time},
                where=or_(_W.owner == self._owner, _W.expire_time <= DatabaseTime()),
            ).returning(_W.owner)
            return (await connection.execute(claim)).one_or_none() is not None

    async def release(self) -> None:
        """Let others claim it, if it is ours."""
        async with self._database.writing() as connection:
            await connection.execute(delete(work_claims).where(_W.work == self._work, _W.owner == self._owner))
