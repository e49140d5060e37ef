"""The store of integrations and their encrypted credentials in SQL: implements the port `IntegrationStore`.

`connections.py` connects accounts, and `integration_lists.py` lists integrations.
"""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, fields, make_dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, cast

import asyncpg
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Row,
    and_,
    bindparam,
    case,
    delete,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.associated_data import bound_values_of
from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import Failure, Integration, IntegrationId, StoredIntegration, UserId
from integration_server.service.connections.revocation_ports import OrphanedGrant
from integration_server.service.credentials.credential_cipher import (
    described_by,
)
from integration_server.service.integrations.ports import (
    FoundIntegrations,
    IntegrationTarget,
    IntegrationUpdate,
    NewCredentials,
    NewIntegration,
    RemovalResult,
)
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.driver_queries import (
    DriverConnection,
    DriverQuery,
    UtcDateTime,
    Values,
)
from integration_server.storage.engine import Database, from_row
from integration_server.storage.integration_targets import ANY_USER, find_many_queries
from integration_server.storage.revocations import add_claimed
from integration_server.storage.tables import integrations, refresh_leases

_T = integrations.c

_FAILURE_COLUMNS = ("last_error_class", "last_error_time", "last_error_message")
_NAMES = [
    name
    for field in fields(Integration)
    for name in (_FAILURE_COLUMNS if field.name == "last_error" else (field.name,))
]

PLAINTEXT_COLUMNS = [_T[name] for name in _NAMES]
"""The columns of `integration_of`, in the order of the fields of `Integration`."""

STORED_COLUMNS = [*PLAINTEXT_COLUMNS, _T.encrypted_credentials]
"""The columns of `stored_integration_of`. `stored_integration_at` expects a row that begins with them."""

_FIND = DriverQuery(
    select(*STORED_COLUMNS).where(_T.integration_id == bindparam("integration_id"), _T.user_id == bindparam("user_id"))
)


_ROWS_PER_SLICE = 50  # which are converted in less than a millisecond

_FIND_MANY = find_many_queries(STORED_COLUMNS)

_PROVIDER_CALL_TIME = (
    select(refresh_leases.c.call_time)
    .where(refresh_leases.c.integration_id == bindparam("id"), refresh_leases.c.version == bindparam("version"))
    .with_for_update()
)

NO_FAILURE: Mapping[str, Any] = {
    "last_error_class": None,
    "last_error_time": None,
    "last_error_message": None,
    "error_count": 0,
}

_NO_REFRESH_FAILURE: Mapping[str, Any] = {
    **NO_FAILURE,
    "reauthorization_required": False,
    "refresh_retry_time": None,
    "refresh_failures": 0,
}
"""For new credentials: the failures of the old ones do not concern them."""


_PING = DriverQuery(select(literal(1)).select_from(integrations).limit(1))

_FENCE = ("integration_id", "user_id", "version", "settings_version")
"""The columns of a commit that a refresh names as it has read them."""

_CHECK_TIMES = _T.last_health_check, _T.check_due_time
"""All that a refresh neither sets nor has in its fence: what else it has read is in the row too when it commits."""


def new_parameters(names: Iterable[str]) -> dict[str, BindParameter[Any]]:
    """Parameters for new values of columns, each with the prefix `new_`."""
    return {name: bindparam(f"new_{name}", type_=_T[name].type) for name in names}


COMMIT_CREDENTIALS = (
    update(integrations)
    .where(*(_T[name] == bindparam(f"of_{name}") for name in _FENCE))
    .values(
        **new_parameters(field.name for field in fields(NewCredentials)),
        **_NO_REFRESH_FAILURE,
        update_time=bindparam("now", type_=UtcDateTime),
        version=_T.version + 1,
    )
)
_COMMIT_REFRESH = DriverQuery(COMMIT_CREDENTIALS.returning(*_CHECK_TIMES))
_RESUME = (
    update(integrations)
    .where(_T.integration_id == bindparam("id"), _T.refresh_failures > 0)
    .values(
        refresh_retry_time=None,
        refresh_due_time=case((_T.refresh_due_time.is_not(None), bindparam("due_time", type_=UtcDateTime))),
    )
)


class SqlIntegrations:
    """An `IntegrationStore`. `on_change` is called at once with the id of each integration that this store changes."""

    def __init__(self, database: Database, on_change: Callable[[IntegrationId], None] = lambda _: None) -> None:
        self._database = database
        self._on_change = on_change

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""
        rows = await self._database.read(_FIND, integration_id=integration_id, user_id=user_id)
        return stored_integration_at(rows[0]) if rows else None

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        """The user's integration. Raises `IntegrationNotFound`."""
        found = await self.find(integration_id, user_id)
        if found is None:
            raise IntegrationNotFound
        return found

    async def find_many(
        self,
        targets: Collection[IntegrationTarget],
        max_bytes: int,
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> FoundIntegrations:
        """The integrations of the targets, read with one statement, up to `max_bytes`."""
        if not targets:
            return FoundIntegrations({})
        distinct_targets = sorted({(integration_id, user_id or ANY_USER) for integration_id, user_id in targets})
        found: dict[IntegrationId, StoredIntegration] = {}
        omitted: set[IntegrationId] = set()
        name = self._database.dialect_name
        parameters: dict[str, Any] = {"max_bytes": max_bytes}
        if name == "postgresql":
            parameters |= {
                "ids": [target[0] for target in distinct_targets],
                "user_ids": [target[1] for target in distinct_targets],
            }
        else:
            parameters["targets"] = json.dumps(distinct_targets)
        for index, row in enumerate(await self._database.read(_FIND_MANY[name], **parameters)):
            if row[0] is None:
                omitted.add(IntegrationId(row[-1]))
            elif allowed_types.allows(row[_INTEGRATION_TYPE]):
                found[IntegrationId(row[-1])] = stored_integration_at(row)
            if index % _ROWS_PER_SLICE == _ROWS_PER_SLICE - 1:
                await asyncio.sleep(0)
        return FoundIntegrations(found, omitted)

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Replace the credentials of `integration.version` and clear its errors. None if a version is another.

        The commit voids a lease on that version.
        """
        parameters = commit_parameters(integration, credential_values(credentials), now)
        try:
            rows = await self._database.run(_COMMIT_REFRESH, **parameters)
        finally:
            self._on_change(integration.integration_id)
        if not rows:
            return None
        last_health_check, check_due_time = rows[0]
        return replace(
            described_by(credentials, integration),
            last_error=None,
            error_count=0,
            reauthorization_required=False,
            refresh_retry_time=None,
            refresh_failures=0,
            refresh_due_time=credentials.refresh_due_time,
            last_health_check=last_health_check,
            check_due_time=check_due_time,
            update_time=now,
            version=integration.version + 1,
        )

    async def record_failure(
        self,
        integration: Integration,
        failure: Failure | None,
        *,
        reauthorization_required: bool = False,
        retry_time: datetime | None = None,
        failures: int = 0,
        refresh_due_time: datetime | None = None,
        may_be_due_earlier: bool = True,
    ) -> None:
        """Record a failed refresh, unless the credentials were replaced since `integration` was read."""
        values = {
            **({} if failure is None else failure_values(failure)),
            **({"reauthorization_required": True} if reauthorization_required else {}),
            "refresh_retry_time": retry_time,
            "refresh_failures": failures,
            "refresh_due_time": _next_due_time(refresh_due_time, may_be_earlier=may_be_due_earlier),
        }
        await self._write(integration.integration_id, _update_version(integration, values))

    async def resume_refreshes(self, client_key: str, due_times: Sequence[datetime]) -> int:
        """End the pauses of integrations of a client whose last refresh failed; each is due at one of the times."""
        paused = (
            select(_T.integration_id)
            .where(_T.client_key == client_key, _T.refresh_failures > 0)
            .where(_T.refresh_retry_time > max(due_times))
            .order_by(_T.refresh_retry_time)
            .limit(len(due_times))
        )
        async with self._database.write_transaction() as connection:
            ids = (await connection.scalars(paused)).all()
            rows = [{"id": row_id, "due_time": due_time} for row_id, due_time in zip(ids, due_times, strict=False)]
            if rows:
                await connection.execute(_RESUME, rows)
        for row_id in ids:
            self._on_change(IntegrationId(row_id))
        return len(ids)

    async def revert_failure(self, integration: Integration, retry_time: datetime | None) -> None:
        """Undo the end of a grant, unless the credentials were replaced since `integration` was read."""
        values = {
            **_NO_REFRESH_FAILURE,
            "refresh_retry_time": retry_time,
            "refresh_due_time": _next_due_time(retry_time),
        }
        revert = _update_version(integration, values).where(_T.reauthorization_required.is_(True))
        await self._write(integration.integration_id, revert)

    async def record_call(self, integration: Integration, failure: Failure | None) -> None:
        """Record or clear the last error after an API call, unless the credentials were replaced meanwhile."""
        values = NO_FAILURE if failure is None else failure_values(failure)
        await self._write(integration.integration_id, _update_version(integration, values))

    async def update(
        self, integration: Integration, change: IntegrationUpdate, encrypted_credentials: bytes, now: datetime
    ) -> Integration | None:
        """Set the fields of an update, with the credentials that are bound to them. None if a version is another."""
        values = {
            "settings_version": integration.settings_version + 1,
            "encrypted_credentials": encrypted_credentials,
            "update_time": now,
            **change.fields,
        }
        return await self._write(integration.integration_id, replace_credentials(integration, values))

    async def remove(
        self, integration_id: IntegrationId, user_id: UserId, *, claim_duration: timedelta = timedelta(0)
    ) -> RemovalResult:
        """Delete the integration and put its credentials into the outbox. Raises `IntegrationNotFound`."""
        lock = select(integrations).where(*matches_integration(integration_id, user_id)).with_for_update()
        async with self._change_transaction(integration_id) as connection:
            row = (await connection.execute(lock)).one_or_none()
            if row is None:
                raise IntegrationNotFound
            # The lock prevents a claim of the refresh lease between this read and the deletion.
            call_time = await connection.scalar(_PROVIDER_CALL_TIME, {"id": row.integration_id, "version": row.version})
            await connection.execute(delete(integrations).where(*matches_integration(integration_id, user_id)))
            revocation = None
            if row.connect_time is not None:
                grant = from_row(OrphanedGrant, row, bound_values=bound_values_of(integration_of(row)))
                revocation = await add_claimed(connection, grant, claim_duration)
        return RemovalResult(integration_of(row), revocation, is_refreshing=call_time is not None)

    async def ping(self) -> None:
        """Return if the database responds and has the schema. Raises `StoreUnavailable`."""
        try:
            await self._database.monitor(_PING)
        except (asyncpg.PostgresError, sqlite3.Error) as error:  # "no such table"
            raise StoreUnavailable from error

    async def _write(self, integration_id: IntegrationId, statement: ReturningUpdate[Any]) -> Integration | None:
        """Run one statement that changes an integration and returns its plaintext columns."""
        try:
            row = await self._database.write_one(statement)
        finally:
            self._on_change(integration_id)
        return None if row is None else integration_of(row)

    @asynccontextmanager
    async def _change_transaction(self, integration_id: IntegrationId) -> AsyncIterator[AsyncConnection]:
        """A transaction that changes an integration, and a call of `on_change`, also if its outcome is unknown."""
        try:
            async with self._database.write_transaction() as connection:
                yield connection
        finally:
            self._on_change(integration_id)


# --- rows to values ----------------------------------------------------------------------------------------------


_plaintext_values = attrgetter(*_NAMES)
_AUTH_METHOD, _SCOPES, _MISSING_SCOPES = map(_NAMES.index, ("auth_method", "scopes", "missing_scopes"))
_INTEGRATION_TYPE = _NAMES.index("integration_type")
_FAILURE = slice(_NAMES.index(_FAILURE_COLUMNS[0]), _NAMES.index(_FAILURE_COLUMNS[-1]) + 1)
_AUTH_METHODS = {auth_method.value: auth_method for auth_method in AuthMethod}


def stored_integration_of(row: Row[Any]) -> StoredIntegration:
    """The integration in a row, with its encrypted credentials."""
    return StoredIntegration(integration_of(row), row.encrypted_credentials)


def integration_of(row: Row[Any]) -> Integration:
    """The integration in a row."""
    return integration_at(_plaintext_values(row))


def stored_integration_at(row: Values) -> StoredIntegration:
    """The integration in a row that begins with `STORED_COLUMNS`, which is several times faster than by name."""
    return StoredIntegration(integration_at(row[: len(_NAMES)]), row[len(_NAMES)])


# A frozen dataclass calls a function for each of its fields. This class has the same slots, so that its objects can
# become those of `Integration`: that takes a fifth of the time, for each row of a list.
_Unfrozen = make_dataclass("_Unfrozen", [field.name for field in fields(Integration)], slots=True)


def integration_at(row: Values) -> Integration:
    """The integration in a row of `PLAINTEXT_COLUMNS`."""
    values = list(row)
    values[_AUTH_METHOD] = _AUTH_METHODS[values[_AUTH_METHOD]]
    for index in (_SCOPES, _MISSING_SCOPES):
        values[index] = tuple(values[index])
    error_class, time, message = values[_FAILURE]
    values[_FAILURE] = [None if error_class is None else Failure(error_class, time, message)]
    integration: Any = _Unfrozen(*values)
    integration.__class__ = Integration
    return cast("Integration", integration)


# --- values to rows ----------------------------------------------------------------------------------------------


def new_integration_values(integration: NewIntegration, now: datetime) -> dict[str, Any]:
    """The columns of a pending integration."""
    values = asdict(integration)
    if not integration.integration_id:
        del values["integration_id"]  # the database assigns one
    return {
        **values,
        "client_key": integration.client_key,
        "auth_method": integration.auth_method.value,
        "is_active": True,
        "scopes": (),
        "missing_scopes": (),
        "lacks_required_scope": False,
        "is_renewable": False,
        **_NO_REFRESH_FAILURE,
        "create_time": now,
        "update_time": now,
        "version": 0,
    }


def credential_values(credentials: NewCredentials) -> dict[str, Any]:
    return {field.name: getattr(credentials, field.name) for field in fields(credentials)}


def commit_parameters(integration: Integration, values: Mapping[str, Any], now: datetime) -> Mapping[str, Any]:
    """The parameters of a commit of new values over an integration as it was read."""
    fence = {f"of_{name}": getattr(integration, name) for name in _FENCE}
    return {**fence, **{f"new_{name}": value for name, value in values.items()}, "now": now}


def failure_values(failure: Failure) -> dict[str, Any]:
    """The columns after one more failure."""
    return {
        "last_error_class": failure.error_class,
        "last_error_time": failure.time,
        "last_error_message": failure.message,
        "error_count": _T.error_count + 1,
    }


def _next_due_time(due_time: datetime | None, *, may_be_earlier: bool = True) -> ColumnElement[datetime | None]:
    """The next due time. NULL stays NULL: such an integration is never refreshed proactively."""
    new = bindparam(None, due_time, UtcDateTime)
    is_replaced = _T.refresh_due_time.is_not(None) if may_be_earlier else _T.refresh_due_time <= new
    return case((is_replaced, new), else_=_T.refresh_due_time)


async def insert_integration(connection: DriverConnection, values: Mapping[str, Any]) -> Integration:
    """Insert a row of these columns, and return the integration in it."""
    parameters = {f"new_{name}": value for name, value in values.items()}
    ((*row,),) = await connection.run(_insert_of(tuple(values)), **parameters)
    return integration_at(row)


@lru_cache(maxsize=8)
def _insert_of(names: tuple[str, ...]) -> DriverQuery:
    """The insert of these columns. Cached, because building one takes milliseconds."""
    return DriverQuery(insert(integrations).values(new_parameters(names)).returning(*PLAINTEXT_COLUMNS))


# --- statements --------------------------------------------------------------------------------------------------


def is_healthy(now: datetime) -> ColumnElement[bool]:
    """The condition for an active integration that works, as far as is stored: `Integration.status` in SQL."""
    never_expires = or_(_T.is_renewable.is_(True), _T.access_token_expire_time.is_(None))
    return and_(
        _T.last_error_class.is_(None),
        _T.reauthorization_required.is_(False),
        _T.lacks_required_scope.is_(False),
        or_(never_expires, _T.access_token_expire_time > now),
    )


def matches_integration(integration_id: IntegrationId, user_id: UserId) -> tuple[ColumnElement[bool], ...]:
    """The condition for the user's integration."""
    return (_T.integration_id == integration_id, _T.user_id == user_id)


def _update_version(integration: Integration, values: Mapping[str, Any]) -> ReturningUpdate[Any]:
    """An update of the integration, unless it has another version; returns the plaintext columns."""
    return (
        update(integrations)
        .where(*matches_integration(integration.integration_id, integration.user_id))
        .where(_T.version == integration.version)
        .values(values)
        .returning(*PLAINTEXT_COLUMNS)
    )


def replace_credentials(integration: Integration, values: Mapping[str, Any]) -> ReturningUpdate[Any]:
    """An update of the credentials, or of what they are bound to, unless the row has changed in either."""
    return _update_version(integration, values).where(_T.settings_version == integration.settings_version)
