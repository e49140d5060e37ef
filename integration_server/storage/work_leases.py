"""Claims on work that one server at a time should do: rows with an end, on the database's clock. There is no leader."""

from datetime import timedelta

from sqlalchemy import delete, or_
from sqlalchemy.dialects import postgresql, sqlite

from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.tables import work_leases

_W = work_leases.c


class WorkLease:
    """One owner's claim on a piece of work, good for `duration` after each `renew`."""

    def __init__(self, database: Database, lease_name: str, owner: str, duration: timedelta) -> None:
        self._database = database
        self._lease_name = lease_name
        self._owner = owner
        self._duration = duration

    async def renew(self) -> bool:
        """Claim the work, or keep it. False while it is another's."""
        async with self._database.write_transaction() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            new = insert(work_leases).values(
                lease_name=self._lease_name, owner=self._owner, expire_time=DatabaseTime(self._duration)
            )
            upsert = new.on_conflict_do_update(
                index_elements=[_W.lease_name],
                set_={"owner": new.excluded.owner, "expire_time": new.excluded.expire_time},
                where=or_(_W.owner == self._owner, _W.expire_time <= DatabaseTime()),
            ).returning(_W.owner)
            return (await connection.execute(upsert)).one_or_none() is not None

    async def release(self) -> None:
        """Let others claim it, if it is ours."""
        async with self._database.write_transaction() as connection:
            await connection.execute(
                delete(work_leases).where(_W.lease_name == self._lease_name, _W.owner == self._owner)
            )
