"""Leases on refreshes, in SQL: fulfils the port `RefreshLeases`.

All times are the database's, read when the statement runs. A lease is a row, not a lock: it needs no connection while
the provider is called, and survives a transaction pooler.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import Executable, and_, bindparam, case, delete, exists, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from integration_server.domain.integration import Integration
from integration_server.service.ports import Lease
from integration_server.storage.clock import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.tables import refresh_leases

_L = refresh_leases.c
_OF_INTEGRATION = _L.integration_id == bindparam("of_integration")
_OURS = and_(_OF_INTEGRATION, _L.owner == bindparam("of_owner"))

_IS_HELD = select(
    exists().where(_OF_INTEGRATION, _L.version >= bindparam("of_version"), _L.expire_time > DatabaseTime())
)
_MARK = (
    update(refresh_leases)
    .where(_OURS, _L.expire_time > DatabaseTime())
    .values(call_time=case((_L.call_time.is_(None), DatabaseTime()), else_=_L.call_time))
)
_END = delete(refresh_leases).where(_OURS)
_LET_LAPSE = update(refresh_leases).where(_OURS).values(expire_time=DatabaseTime())


class SqlRefreshLeases:
    """`RefreshLeases` over a SQL database; each lease is good for `duration`."""

    def __init__(self, database: Database, duration: timedelta) -> None:
        self._database = database
        self._claims = {
            "postgresql": _claim(postgresql.insert(refresh_leases), duration),
            "sqlite": _claim(sqlite.insert(refresh_leases), duration),
        }

    async def is_free(self, integration: Integration) -> bool:
        """Whether `claim` has a chance."""
        version = {"of_integration": integration.integration_id, "of_version": integration.version}
        async with self._database.reading() as connection:
            return not await connection.scalar(_IS_HELD, version)

    async def claim(self, integration: Integration, owner: str) -> Lease | None:
        """A lease on this version. A lapsed one is taken over with its mark; one on an older version is void."""
        new = {"integration_id": integration.integration_id, "version": integration.version, "owner": owner}
        try:
            async with self._database.writing_once() as connection:
                row = (await connection.execute(self._claims[connection.dialect.name], new)).one_or_none()
        except IntegrityError:
            return None  # the integration is gone
        if row is None:
            return None
        called_ago = None if row.call_time is None else row.now - row.call_time
        return Lease(integration.integration_id, integration.version, owner, called_ago)

    async def mark_called(self, lease: Lease) -> bool:
        """Note the call. An earlier mark stays: from then on the token may have been spent."""
        async with self._database.writing_once() as connection:
            return (await connection.execute(_MARK, _ours(lease))).rowcount == 1

    async def release(self, lease: Lease, *, settled: bool) -> None:
        """Give back a lease, if it is still the owner's."""
        async with self._database.writing_once() as connection:
            await connection.execute(_END if settled else _LET_LAPSE, _ours(lease))


def _claim(new: Any, duration: timedelta) -> Executable:  # noqa: ANN401  # the two dialects' inserts have no type in common
    """The statement that claims, by either dialect's insert."""
    new = new.values(
        integration_id=bindparam("integration_id"),
        version=bindparam("version"),
        owner=bindparam("owner"),
        expire_time=DatabaseTime(duration),
    )
    is_same_version = _L.version == new.excluded.version
    claim: Executable = new.on_conflict_do_update(
        index_elements=[_L.integration_id],
        set_={
            "version": new.excluded.version,
            "owner": new.excluded.owner,
            "expire_time": new.excluded.expire_time,
            "call_time": case((is_same_version, _L.call_time), else_=None),
        },
        where=or_(_L.version < new.excluded.version, and_(is_same_version, _L.expire_time <= DatabaseTime())),
    ).returning(_L.call_time, DatabaseTime().label("now"))
    return claim


def _ours(lease: Lease) -> dict[str, object]:
    return {"of_integration": lease.integration_id, "of_owner": lease.owner}
