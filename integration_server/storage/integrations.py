"""Integrations and their sealed credentials, in SQL: fulfils the port `IntegrationStore`."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    and_,
    bindparam,
    case,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.service.connections.revocation_ports import OrphanedGrant
from integration_server.service.integrations.ports import (
    NewAccount,
    NewCredentials,
    NewIntegration,
    RemovalResult,
    StoredIntegration,
)
from integration_server.storage.engine import Database
from integration_server.storage.revocations import add_claimed
from integration_server.storage.tables import UtcDateTime, integrations, is_usable, refresh_leases

_T = integrations.c

_PLAINTEXT_COLUMNS = [column for column in _T if column is not _T.encrypted_credentials]

_FIND = select(integrations).where(_T.integration_id == bindparam("integration_id"), _T.user_id == bindparam("user_id"))

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
    "refresh_refusals": 0,
}
"""For new credentials: what befell the old ones says nothing of them."""


class SqlIntegrations:
    """An `IntegrationStore` over a SQL database. `on_change` is told at once what is changed through this one."""

    def __init__(self, database: Database, on_change: Callable[[IntegrationId], None] = lambda _: None) -> None:
        self._database = database
        self._on_change = on_change

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""
        async with self._database.read_connection() as connection:
            row = (
                await connection.execute(_FIND, {"integration_id": integration_id, "user_id": user_id})
            ).one_or_none()
        return None if row is None else stored_integration_of(row)

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        """The user's integration. Raises `IntegrationNotFound`."""
        found = await self.find(integration_id, user_id)
        if found is None:
            raise IntegrationNotFound
        return found

    async def find_account(self, user_id: UserId, integration_type: str, account_id: str) -> Integration | None:
        """The user's connected integration of that account."""
        query = select(*_PLAINTEXT_COLUMNS).where(
            _T.user_id == user_id,
            _T.integration_type == integration_type,
            _T.account_id == account_id,
            _T.connect_time.is_not(None),
        )
        async with self._database.read_connection() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else integration_of(row)

    async def list(
        self, user_id: UserId, integration_types: Collection[str] | None, after: IntegrationId, limit: int
    ) -> Sequence[Integration]:
        """The user's integrations of these types (None: all) with an id above `after`, in the order of their ids."""
        query = select(*_PLAINTEXT_COLUMNS).where(_T.user_id == user_id, _T.integration_id > after)
        if integration_types is not None:
            query = query.where(_T.integration_type.in_(sorted(integration_types)))
        async with self._database.read_connection() as connection:
            rows = (await connection.execute(query.order_by(_T.integration_id).limit(limit))).all()
        return [integration_of(row) for row in rows]

    async def list_connected(self, user_id: UserId) -> Sequence[StoredIntegration]:
        """The user's integrations that are not pending, in the order of their ids."""
        query = (
            select(integrations).where(_T.user_id == user_id, _T.connect_time.is_not(None)).order_by(_T.integration_id)
        )
        async with self._database.read_connection() as connection:
            rows = (await connection.execute(query)).all()
        return [stored_integration_of(row) for row in rows]

    async def shares_grant(self, grant: OrphanedGrant, integration_types: Iterable[str]) -> bool:
        """Whether a connected integration has the same account, or is the same user's and may have it."""
        same_account = _T.account_id == bindparam(None, grant.account_id)  # an unknown one equals none
        may_be_the_same = or_(
            _T.integration_type != grant.integration_type, _T.account_id.is_(None), literal(grant.account_id is None)
        )
        query = select(
            exists().where(
                _T.integration_type.in_(list(integration_types)),
                or_(same_account, and_(_T.user_id == grant.user_id, may_be_the_same)),
                _T.connect_time.is_not(None),
            )
        )
        async with self._database.read_connection() as connection:
            return bool(await connection.scalar(query))

    async def list_expiring(self, before: datetime, limit: int) -> Sequence[Integration]:
        """Everybody's integrations that end before then, the soonest first, unless they are off or dead."""
        grant_expire_time = case(
            (_T.is_renewable.is_(True), _T.refresh_token_expire_time), else_=_T.access_token_expire_time
        )
        query = (
            select(*_PLAINTEXT_COLUMNS)
            .where(is_usable, grant_expire_time < before)
            .order_by(grant_expire_time, _T.integration_id)
        )
        async with self._database.read_connection() as connection:
            rows = (await connection.execute(query.limit(limit))).all()
        return [integration_of(row) for row in rows]

    async def add_connected(
        self,
        integration: NewIntegration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
    ) -> Integration | None:
        """Store an integration that is connected from the start. None if the user's account has a row by now."""
        statement = (
            insert(integrations)
            .values(
                {
                    **new_integration_values(integration, now),
                    **_credentials_values(credentials),
                    "account_id": account.account_id,
                    "account_label": account.account_label,
                    "check_due_time": check_due_time,
                    "connect_time": now,
                }
            )
            .returning(*_PLAINTEXT_COLUMNS)
        )
        try:
            async with self._database.write_transaction() as connection:
                row = (await connection.execute(statement)).one()
        except IntegrityError as error:
            if _is_account_conflict(error):
                return None
            raise
        return integration_of(row)

    async def commit_connection(
        self,
        integration: Integration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
        superseded_id: IntegrationId | None = None,
    ) -> Integration | None:
        """Give a pending or reconnected integration its credentials, and let the pending `superseded_id` go.

        What the provider does not tell of the account stays as it was. None, and nothing changed, if the integration
        is gone, its version is another by now, or its account has another row.
        """
        connect = (
            update(integrations)
            .where(*_is_at_version(integration))
            .values(
                {
                    **_credentials_values(credentials),
                    **_NO_REFRESH_FAILURE,
                    "account_id": account.account_id or integration.account_id,
                    "account_label": account.account_label or integration.account_label,
                    "is_active": True,
                    "check_due_time": check_due_time,
                    "connect_time": now,
                    "update_time": now,
                    "version": integration.version + 1,
                }
            )
            .returning(*_PLAINTEXT_COLUMNS)
        )
        try:
            async with self._change_transaction(integration.integration_id) as connection:
                row = (await connection.execute(connect)).one_or_none()
                if row is not None and superseded_id is not None:
                    await connection.execute(
                        delete(integrations).where(
                            *matches_integration(superseded_id, integration.user_id), _T.connect_time.is_(None)
                        )
                    )
        except IntegrityError as error:
            if _is_account_conflict(error):
                return None
            raise
        return None if row is None else integration_of(row)

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Replace the credentials of `integration.version` and clear its errors. None if the version is another.

        A lease on that version is void from then on.
        """
        statement = (
            update(integrations)
            .where(*_is_at_version(integration))
            .values(
                {
                    **_credentials_values(credentials),
                    **_NO_REFRESH_FAILURE,
                    "update_time": now,
                    "version": integration.version + 1,
                }
            )
            .returning(*_PLAINTEXT_COLUMNS)
        )
        async with self._change_transaction(integration.integration_id, single_statement=True) as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else integration_of(row)

    async def record_failure(
        self,
        integration: Integration,
        failure: Failure | None,
        *,
        reauthorization_required: bool = False,
        retry_time: datetime | None = None,
        failures: int = 0,
        refusals: int = 0,
        refresh_due_time: datetime | None = None,
    ) -> None:
        """Set what came of a failed refresh, unless the credentials were replaced since `integration` was read."""
        values = refresh_failure_values(
            failure,
            reauthorization_required=reauthorization_required,
            retry_time=retry_time,
            failures=failures,
            refusals=refusals,
            refresh_due_time=refresh_due_time,
        )
        async with self._change_transaction(integration.integration_id, single_statement=True) as connection:
            await connection.execute(update(integrations).where(*_is_at_version(integration)).values(values))

    async def revert_failure(self, integration: Integration, retry_time: datetime | None) -> None:
        """Undo that the end of the grant was noted, unless the credentials were replaced since it was."""
        values = {
            **_NO_REFRESH_FAILURE,
            "refresh_retry_time": retry_time,
            "refresh_due_time": _next_due_time(retry_time),
        }
        is_invalidated = (*_is_at_version(integration), _T.reauthorization_required.is_(True))
        async with self._change_transaction(integration.integration_id, single_statement=True) as connection:
            await connection.execute(update(integrations).where(*is_invalidated).values(values))

    async def record_call(self, integration: Integration, failure: Failure | None) -> None:
        """Count and set the last error after a call, or clear it, unless the credentials were replaced since."""
        values = NO_FAILURE if failure is None else failure_values(failure)
        async with self._change_transaction(integration.integration_id, single_statement=True) as connection:
            await connection.execute(update(integrations).where(*_is_at_version(integration)).values(values))

    async def update(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        now: datetime,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        is_active: bool | None = None,
    ) -> Integration:
        """Set what is not None. Raises `IntegrationNotFound`."""
        given = {"name": name, "config": config, "is_active": is_active}
        statement = (
            update(integrations)
            .where(*matches_integration(integration_id, user_id))
            .values({"update_time": now, **{key: value for key, value in given.items() if value is not None}})
            .returning(*_PLAINTEXT_COLUMNS)
        )
        async with self._change_transaction(integration_id, single_statement=True) as connection:
            row = (await connection.execute(statement)).one_or_none()
        if row is None:
            raise IntegrationNotFound
        return integration_of(row)

    async def remove(
        self, integration_id: IntegrationId, user_id: UserId, *, claim_duration: timedelta = timedelta(0)
    ) -> RemovalResult:
        """Delete the integration and put its credentials into the outbox. Raises `IntegrationNotFound`."""
        lock = select(integrations).where(*matches_integration(integration_id, user_id)).with_for_update()
        async with self._change_transaction(integration_id) as connection:
            row = (await connection.execute(lock)).one_or_none()
            if row is None:
                raise IntegrationNotFound
            # The lock keeps a refresh from being claimed between the look and the deletion.
            is_refreshing = await connection.scalar(
                _PROVIDER_CALL_TIME, {"id": row.integration_id, "version": row.version}
            )
            await connection.execute(delete(integrations).where(*matches_integration(integration_id, user_id)))
            revocation = (
                None if row.connect_time is None else await add_claimed(connection, _orphaned(row), claim_duration)
            )
        return RemovalResult(integration_of(row), revocation, is_refreshing is not None)

    async def ping(self) -> None:
        """Return if the database answers and its schema is there."""
        try:
            async with self._database.monitor_connection() as connection:
                await connection.execute(select(literal(1)).select_from(integrations).limit(1))
        except (OperationalError, ProgrammingError) as error:  # no such table, in SQLite's and PostgreSQL's words
            raise StoreUnavailable from error

    @asynccontextmanager
    async def _change_transaction(
        self, integration_id: IntegrationId, *, single_statement: bool = False
    ) -> AsyncIterator[AsyncConnection]:
        """A transaction that may change what a backend is given. To other processes a trigger tells of it.

        With `single_statement` it is for one statement.
        """
        try:
            async with (
                self._database.write_statement()
                if single_statement
                else self._database.write_transaction() as connection
            ):
                yield connection
        finally:
            self._on_change(integration_id)  # also if it failed: a commit may have, after it was done


# --- rows to values ----------------------------------------------------------------------------------------------


def stored_integration_of(row: Row[Any]) -> StoredIntegration:
    """A row with its sealed credentials."""
    return StoredIntegration(integration_of(row), row.encrypted_credentials)


def _orphaned(row: Row[Any]) -> OrphanedGrant:
    return OrphanedGrant(row.uid, row.user_id, row.integration_type, row.account_id, row.encrypted_credentials)


def integration_of(row: Row[Any]) -> Integration:
    """A row without its credentials."""
    return Integration(
        integration_id=row.integration_id,
        uid=row.uid,
        user_id=row.user_id,
        integration_type=row.integration_type,
        auth_method=AuthMethod(row.auth_method),
        create_time=row.create_time,
        update_time=row.update_time,
        name=row.name,
        config=row.config,
        is_active=row.is_active,
        account_id=row.account_id,
        account_label=row.account_label,
        scopes=tuple(row.scopes),
        missing_scopes=tuple(row.missing_scopes),
        lacks_required_scope=row.lacks_required_scope,
        is_renewable=row.is_renewable,
        reauthorization_required=row.reauthorization_required,
        last_error=_failure(row),
        error_count=row.error_count,
        last_health_check=row.last_health_check,
        access_token_expire_time=row.access_token_expire_time,
        refresh_token_expire_time=row.refresh_token_expire_time,
        connect_time=row.connect_time,
        refresh_retry_time=row.refresh_retry_time,
        refresh_failures=row.refresh_failures,
        refresh_refusals=row.refresh_refusals,
        refresh_due_time=row.refresh_due_time,
        check_due_time=row.check_due_time,
        version=row.version,
    )


def _failure(row: Row[Any]) -> Failure | None:
    if row.last_error_class is None:
        return None
    return Failure(row.last_error_class, row.last_error_time, row.last_error_message)


# --- values to rows ----------------------------------------------------------------------------------------------


def new_integration_values(integration: NewIntegration, now: datetime) -> dict[str, Any]:
    """The columns of an integration that is still pending."""
    return {
        "uid": integration.uid,
        "user_id": integration.user_id,
        "integration_type": integration.integration_type,
        "auth_method": integration.auth_method.value,
        "name": integration.name,
        "config": dict(integration.config),
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


def _credentials_values(credentials: NewCredentials) -> dict[str, Any]:
    return {
        "encrypted_credentials": credentials.encrypted_credentials,
        "scopes": credentials.scopes,
        "missing_scopes": credentials.missing_scopes,
        "lacks_required_scope": credentials.lacks_required_scope,
        "is_renewable": credentials.is_renewable,
        "access_token_expire_time": credentials.access_token_expire_time,
        "refresh_token_expire_time": credentials.refresh_token_expire_time,
        "refresh_due_time": credentials.refresh_due_time,
    }


def failure_values(failure: Failure) -> dict[str, Any]:
    """The columns after one more failure."""
    return {
        "last_error_class": failure.error_class,
        "last_error_time": failure.time,
        "last_error_message": failure.message,
        "error_count": _T.error_count + 1,
    }


def refresh_failure_values(
    failure: Failure | None,
    *,
    reauthorization_required: bool,
    retry_time: datetime | None = None,
    failures: int = 0,
    refusals: int = 0,
    refresh_due_time: datetime | None = None,
) -> dict[str, Any]:
    """The columns after a failure that says something of the grant."""
    values = ({} if failure is None else failure_values(failure)) | {
        "refresh_retry_time": retry_time,
        "refresh_failures": failures,
        "refresh_refusals": refusals,
        "refresh_due_time": _next_due_time(refresh_due_time),
    }
    return {**values, "reauthorization_required": True} if reauthorization_required else values


def _next_due_time(due_time: datetime | None) -> ColumnElement[datetime | None]:
    """The next due time; what is never refreshed ahead of need stays so."""
    return case((_T.refresh_due_time.is_not(None), bindparam(None, due_time, UtcDateTime)))


# --- conditions --------------------------------------------------------------------------------------------------


def matches_integration(integration_id: IntegrationId, user_id: UserId) -> tuple[ColumnElement[bool], ...]:
    """The user's integration, and nobody else's."""
    return (_T.integration_id == integration_id, _T.user_id == user_id)


def _is_at_version(integration: Integration) -> tuple[ColumnElement[bool], ...]:
    return (*matches_integration(integration.integration_id, integration.user_id), _T.version == integration.version)


def _is_account_conflict(error: IntegrityError) -> bool:
    # The only unique index with this column; SQLite names the columns, PostgreSQL the index that is named after them.
    return "account_id" in str(error.orig)
