"""Leases on refreshes, in SQL: fulfils the port `RefreshLeases`.

All times are the database's, read when the statement runs. A lease is a row, not a lock: it needs no connection while
the provider is called, and survives a transaction pooler.
"""

from datetime import timedelta

from sqlalchemy import and_, case, delete, exists, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from integration_server.domain.integration import Integration
from integration_server.service.ports import Lease
from integration_server.storage.clock import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.tables import refresh_leases

_L = refresh_leases.c


class SqlRefreshLeases:
    """`RefreshLeases` over a SQL database; each lease is good for `duration`."""

    def __init__(self, database: Database, duration: timedelta) -> None:
        self._database = database
        self._duration = duration

    async def is_free(self, integration: Integration) -> bool:
        """Whether `claim` has a chance."""
        is_held = exists().where(
            _L.integration_id == integration.integration_id,
            _L.version >= integration.version,
            _L.expire_time > DatabaseTime(),
        )
        async with self._database.reading() as connection:
            return not await connection.scalar(select(is_held))

    async def claim(self, integration: Integration, owner: str) -> Lease | None:
        """A lease on this version. A lapsed one is taken over with its mark; one on an older version is void."""
        try:
            async with self._database.writing() as connection:
                insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
                new = insert(refresh_leases).values(
                    integration_id=integration.integration_id,
                    version=integration.version,
                    owner=owner,
                    expire_time=DatabaseTime(self._duration),
                )
                claim = new.on_conflict_do_update(
                    index_elements=[_L.integration_id],
                    set_={
                        "version": new.excluded.version,
                        "owner": new.excluded.owner,
                        "expire_time": new.excluded.expire_time,
                        "call_time": case((_L.version == new.excluded.version, _L.call_time), else_=None),
                    },
                    where=or_(
                        _L.version < new.excluded.version,
                        and_(_L.version == new.excluded.version, _L.expire_time <= DatabaseTime()),
                    ),
                ).returning(_L.call_time, DatabaseTime().label("now"))
                row = (await connection.execute(claim)).one_or_none()
        except IntegrityError:
            return None  # the integration is gone
        if row is None:
            return None
        called_ago = None if row.call_time is None else row.now - row.call_time
        return Lease(integration.integration_id, integration.version, owner, called_ago)

    async def mark_called(self, lease: Lease) -> bool:
        """Note the call. An earlier mark stays: from then on the token may have been spent."""
        mark = (
            update(refresh_leases)
            .where(
                _L.integration_id == lease.integration_id,
                _L.owner == lease.owner,
                _L.expire_time > DatabaseTime(),
            )
            .values(call_time=case((_L.call_time.is_(None), DatabaseTime()), else_=_L.call_time))
        )
        async with self._database.writing() as connection:
            return (await connection.execute(mark)).rowcount == 1

    async def release(self, lease: Lease, *, settled: bool) -> None:
        """Give back a lease, if it is still the owner's."""
        is_ours = (_L.integration_id == lease.integration_id, _L.owner == lease.owner)
        statement = (
            delete(refresh_leases).where(*is_ours)
            if settled
            else update(refresh_leases).where(*is_ours).values(expire_time=DatabaseTime())
        )
        async with self._database.writing() as connection:
            await connection.execute(statement)
