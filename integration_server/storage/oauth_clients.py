"""The OAuth clients in SQL: implements the port `OAuthClientStore`.

A change of a client locks its row. A connection that begins with the client locks the row too, shared
(`require_client`), so that no client is deleted, or gets another client id, while an integration of it is added.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, func, insert, literal_column, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.errors import CallerNotAllowed, OAuthClientInUse, QuotaExceeded
from integration_server.domain.oauth_client import client_key
from integration_server.service.oauth_clients.ports import SecretAlarm, SecretState, StoredOAuthClient
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.driver_queries import DriverConnection, DriverQuery
from integration_server.storage.engine import Database, DatabaseTime, from_row
from integration_server.storage.tables import integrations, oauth_client_alarms, oauth_clients, revocations

_C = oauth_clients.c
_A = oauth_client_alarms.c
_I = integrations.c
_R = revocations.c
# SQLite serializes write transactions instead.
_LOCK_CLIENT = DriverQuery(
    select(_C.oauth_client_id)
    .where(_C.integration_type == bindparam("of_type"), _C.name == bindparam("of_name"))
    .with_for_update(read=True)
)
_UPSERTS: Mapping[str, Callable[..., Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class SqlOAuthClients:
    """An `OAuthClientStore` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, integration_type: str, name: str) -> StoredOAuthClient | None:
        """The client of a type with this name."""
        query = select(oauth_clients).where(_C.integration_type == integration_type, _C.name == name)
        row = await self._database.fetch_one(query)
        return None if row is None else _client_of(row)

    async def list(
        self, integration_type: str, allowed_types: AllowedTypes, after: tuple[str, str], limit: int
    ) -> Sequence[StoredOAuthClient]:
        """Clients after a type and a name, in that order."""
        query = (
            select(oauth_clients)
            .where(or_(_C.integration_type > after[0], and_(_C.integration_type == after[0], _C.name > after[1])))
            .order_by(_C.integration_type, _C.name)
            .limit(limit)
        )
        if integration_type:
            query = query.where(_C.integration_type == integration_type)
        if allowed_types.integration_types is not None:
            query = query.where(_C.integration_type.in_(sorted(allowed_types.integration_types)))
        return [_client_of(row) for row in await self._database.fetch(query)]

    async def names_of(self, integration_types: Collection[str], client_id: str) -> Collection[tuple[str, str]]:
        """The type and name of each client of these types with this client id."""
        query = select(_C.integration_type, _C.name).where(
            _C.client_id == client_id, _C.integration_type.in_(sorted(integration_types))
        )
        return [(row.integration_type, row.name) for row in await self._database.fetch(query)]

    async def alarms(self) -> dict[tuple[str, str], SecretAlarm]:
        """The alarms by type and name."""
        rows = await self._database.fetch(select(oauth_client_alarms))
        return {
            (row.integration_type, row.oauth_client): SecretAlarm(SecretState(row.state), row.refuse_time)
            for row in rows
            if row.state in set(SecretState)  # else somebody has altered it
        }

    async def next_version(self, version: int) -> int:
        """A version that is higher than this one and, on the database's clock, than every earlier one."""
        now = await self._database.fetch_value(select(DatabaseTime()))
        return max(version + 1, int(now.timestamp() * 1_000_000))

    async def add(self, client: StoredOAuthClient, max_clients: int) -> bool:
        """Add a client. False if there is one with its type and name. Raises `QuotaExceeded`."""
        try:
            async with self._database.write_transaction() as connection:
                if (await connection.scalar(select(func.count()).select_from(oauth_clients)) or 0) >= max_clients:
                    raise QuotaExceeded.of_user("oauth_clients", f"this server has {max_clients} OAuth clients")
                await connection.execute(insert(oauth_clients).values(asdict(client)))
        except IntegrityError:
            return False
        return True

    async def replace(self, client: StoredOAuthClient, version: int) -> bool:
        """Replace the client that has this version. Raises `OAuthClientInUse`."""
        is_client = _C.uid == client.uid, _C.version == version
        async with self._database.write_transaction() as connection:
            client_id = await connection.scalar(select(_C.client_id).where(*is_client).with_for_update())
            if client_id is None:
                return False
            if client_id != client.client_id:
                await _require_unused(connection, client.integration_type, client.name)
            await connection.execute(update(oauth_clients).where(*is_client).values(asdict(client)))
        return True

    async def delete(self, integration_type: str, name: str) -> bool:
        """Delete a client and its alarm. Raises `OAuthClientInUse`."""
        is_client = _C.integration_type == integration_type, _C.name == name
        async with self._database.write_transaction() as connection:
            if await connection.scalar(select(_C.uid).where(*is_client).with_for_update()) is None:
                return False
            await _require_unused(connection, integration_type, name)
            await connection.execute(delete(oauth_clients).where(*is_client))
            await connection.execute(_without_alarm(integration_type, name))
        return True

    async def set_alarm(self, integration_type: str, name: str, state: SecretState | None) -> None:
        """Record whether the provider refuses secrets of a client."""
        if state is None:
            await self._database.write(_without_alarm(integration_type, name))
            return
        async with self._database.write_transaction() as connection:
            alarm = _UPSERTS[connection.dialect.name](oauth_client_alarms).values(
                integration_type=integration_type, oauth_client=name, state=state.value, refuse_time=DatabaseTime()
            )
            # The time is that of the first refusal in this state.
            await connection.execute(
                alarm.on_conflict_do_update(
                    index_elements=[_A.integration_type, _A.oauth_client],
                    set_={"state": alarm.excluded.state, "refuse_time": alarm.excluded.refuse_time},
                    where=_A.state != alarm.excluded.state,
                )
            )


async def require_client(connection: DriverConnection, integration_type: str, oauth_client: str) -> None:
    """Keep a client until the end of the transaction. Raises `CallerNotAllowed` if it is gone, as if it never was."""
    if oauth_client and not await connection.run(_LOCK_CLIENT, of_type=integration_type, of_name=oauth_client):
        raise CallerNotAllowed


async def _require_unused(connection: AsyncConnection, integration_type: str, name: str) -> None:
    key = client_key(integration_type, name)
    of_integrations = select(func.count()).where(
        _I.integration_type == integration_type,
        _I.oauth_client == name,
        _I.oauth_client != literal_column("''"),  # so that the partial index is used
    )
    waiting = select(func.count()).where(_R.client_key == key, _R.revoke_time.is_(None))
    counts = [await connection.scalar(query) or 0 for query in (of_integrations, waiting)]
    if any(counts):
        raise OAuthClientInUse(*counts)


def _without_alarm(integration_type: str, name: str) -> Any:  # noqa: ANN401  # a statement
    return delete(oauth_client_alarms).where(_A.integration_type == integration_type, _A.oauth_client == name)


def _client_of(row: Row[Any]) -> StoredOAuthClient:
    return from_row(StoredOAuthClient, row, callers=tuple(row.callers))
