"""Integrations and their sealed credentials, in SQL: fulfils the port `IntegrationStore`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.health import HealthCheck
from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.service.ports import NewAccount, NewCredentials, NewIntegration, StoredIntegration
from integration_server.storage.engine import Database
from integration_server.storage.tables import health_checks, integrations, refresh_leases

_T = integrations.c

_OPEN_COLUMNS = [column for column in _T if column is not _T.sealed_credentials]

_FIND = select(integrations).where(_T.integration_id == bindparam("integration_id"), _T.user_id == bindparam("user_id"))

_NO_FAILURE: Mapping[str, Any] = {
    "last_error_class": None,
    "last_error_time": None,
    "last_error_message": None,
    "error_count": 0,
}

_NO_SETBACK: Mapping[str, Any] = {
    **_NO_FAILURE,
    "reauthorization_required": False,
    "refresh_retry_time": None,
    "refresh_refusals": 0,
}
"""For new credentials: what befell the old ones says nothing of them."""


class SqlIntegrations:
    """An `IntegrationStore` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""
        async with self._database.reading() as connection:
            row = (
                await connection.execute(_FIND, {"integration_id": integration_id, "user_id": user_id})
            ).one_or_none()
        return None if row is None else _stored(row)

    async def find_account(self, user_id: UserId, integration_type: str, account_id: str) -> Integration | None:
        """The user's connected integration of that account."""
        query = select(*_OPEN_COLUMNS).where(
            _T.user_id == user_id,
            _T.integration_type == integration_type,
            _T.account_id == account_id,
            _T.connect_time.is_not(None),
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else _integration(row)

    async def list(
        self, user_id: UserId, integration_types: Collection[str] | None, after: IntegrationId, limit: int
    ) -> Sequence[Integration]:
        """The user's integrations of these types (None: all) with an id above `after`, in the order of their ids."""
        query = select(*_OPEN_COLUMNS).where(_T.user_id == user_id, _T.integration_id > after)
        if integration_types is not None:
            query = query.where(_T.integration_type.in_(sorted(integration_types)))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.order_by(_T.integration_id).limit(limit))).all()
        return [_integration(row) for row in rows]

    async def list_connected(self, user_id: UserId) -> Sequence[StoredIntegration]:
        """The user's integrations that are not pending, in the order of their ids."""
        query = (
            select(integrations).where(_T.user_id == user_id, _T.connect_time.is_not(None)).order_by(_T.integration_id)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [_stored(row) for row in rows]

    async def shares_grant(self, integration: Integration, integration_types: Iterable[str]) -> bool:
        """Whether another connected integration has the same account, or may have it under another type's name."""
        same_account = _T.account_id == bindparam(None, integration.account_id)  # an unknown one equals none
        named_differently = and_(_T.user_id == integration.user_id, _T.integration_type != integration.integration_type)
        query = select(
            exists().where(
                _T.integration_type.in_(list(integration_types)),
                or_(same_account, named_differently),
                _T.integration_id != integration.integration_id,
                _T.connect_time.is_not(None),
            )
        )
        async with self._database.reading() as connection:
            return bool(await connection.scalar(query))

    async def add_connected(
        self, integration: NewIntegration, account: NewAccount, credentials: NewCredentials, now: datetime
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
                    "connect_time": now,
                }
            )
            .returning(*_OPEN_COLUMNS)
        )
        try:
            async with self._database.writing() as connection:
                row = (await connection.execute(statement)).one()
        except IntegrityError as error:
            if _is_about_account(error):
                return None
            raise
        return _integration(row)

    async def commit_connection(
        self,
        integration: Integration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        instead_of: IntegrationId | None = None,
    ) -> Integration | None:
        """Give a pending or reconnected integration its credentials, and let the pending `instead_of` go.

        What the provider does not tell of the account stays as it was. None, and nothing changed, if the integration
        is gone, its version is another by now, or its account has another row.
        """
        connect = (
            update(integrations)
            .where(*_is_at_version(integration))
            .values(
                {
                    **_credentials_values(credentials),
                    **_NO_SETBACK,
                    "account_id": account.account_id or integration.account_id,
                    "account_label": account.account_label or integration.account_label,
                    "is_active": True,
                    "connect_time": now,
                    "update_time": now,
                    "version": integration.version + 1,
                }
            )
            .returning(*_OPEN_COLUMNS)
        )
        try:
            async with self._database.writing() as connection:
                row = (await connection.execute(connect)).one_or_none()
                if row is not None and instead_of is not None:
                    await connection.execute(
                        delete(integrations).where(*_is_of(instead_of, integration.user_id), _T.connect_time.is_(None))
                    )
        except IntegrityError as error:
            if _is_about_account(error):
                return None
            raise
        return None if row is None else _integration(row)

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Replace the credentials of `integration.version` and clear its errors. None if the version is another."""
        statement = (
            update(integrations)
            .where(*_is_at_version(integration))
            .values(
                {
                    **_credentials_values(credentials),
                    **_NO_SETBACK,
                    "update_time": now,
                    "version": integration.version + 1,
                }
            )
            .returning(*_OPEN_COLUMNS)
        )
        end_lease = delete(refresh_leases).where(
            refresh_leases.c.integration_id == integration.integration_id,
            refresh_leases.c.version == integration.version,
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(statement)).one_or_none()
            if row is not None:
                await connection.execute(end_lease)
        return None if row is None else _integration(row)

    async def record_failure(
        self,
        integration: Integration,
        failure: Failure,
        *,
        reauthorization_required: bool = False,
        retry_time: datetime | None = None,
        refusals: int = 0,
    ) -> None:
        """Set what came of a failed refresh, unless the credentials were replaced since `integration` was read."""
        values = _failure_values(failure) | {"refresh_retry_time": retry_time, "refresh_refusals": refusals}
        if reauthorization_required:
            values["reauthorization_required"] = True
        async with self._database.writing() as connection:
            await connection.execute(update(integrations).where(*_is_at_version(integration)).values(values))

    async def record_check(self, check: HealthCheck) -> None:
        """Keep a health check, and set or clear the integration's last error after it.

        The error stays as it is if the credentials were replaced since they were checked; nothing is kept if the
        integration was removed meanwhile.
        """
        is_same = _is_of(check.integration.integration_id, check.integration.user_id)
        # The lock keeps the row from going before the check refers to it; SQLite's transaction does so by itself.
        lock = select(_T.version).where(*is_same).with_for_update()
        async with self._database.writing() as connection:
            version = await connection.scalar(lock)
            if version is None:
                return
            values: dict[str, Any] = {"last_health_check": check.check_time}
            if version == check.integration.version:
                values |= _outcome_values(check)
            await connection.execute(update(integrations).where(*is_same).values(values))
            await connection.execute(insert(health_checks).values(_check_values(check)))

    async def update(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        now: datetime,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        is_active: bool | None = None,
    ) -> Integration | None:
        """Set what is not None. None if there is no such integration."""
        given = {"name": name, "config": config, "is_active": is_active}
        statement = (
            update(integrations)
            .where(*_is_of(integration_id, user_id))
            .values({"update_time": now, **{key: value for key, value in given.items() if value is not None}})
            .returning(*_OPEN_COLUMNS)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else _integration(row)

    async def remove(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """Delete the integration with all that hangs on it; what it was, or None if there is no such integration."""
        statement = delete(integrations).where(*_is_of(integration_id, user_id)).returning(integrations)
        async with self._database.writing() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else _stored(row)

    async def ping(self) -> None:
        """Return if the database answers and its schema is there."""
        try:
            async with self._database.reading() as connection:
                await connection.execute(select(literal(1)).select_from(integrations).limit(1))
        except (OperationalError, ProgrammingError) as error:  # no such table, in SQLite's and PostgreSQL's words
            raise StoreUnavailable from error


# --- rows to values ----------------------------------------------------------------------------------------------


def _stored(row: Row[Any]) -> StoredIntegration:
    return StoredIntegration(_integration(row), row.sealed_credentials)


def _integration(row: Row[Any]) -> Integration:
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
        refresh_refusals=row.refresh_refusals,
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
        **_NO_SETBACK,
        "create_time": now,
        "update_time": now,
        "version": 0,
    }


def _credentials_values(credentials: NewCredentials) -> dict[str, Any]:
    return {
        "sealed_credentials": credentials.sealed_credentials,
        "scopes": credentials.scopes,
        "missing_scopes": credentials.missing_scopes,
        "lacks_required_scope": credentials.lacks_required_scope,
        "is_renewable": credentials.is_renewable,
        "access_token_expire_time": credentials.access_token_expire_time,
        "refresh_token_expire_time": credentials.refresh_token_expire_time,
    }


def _failure_values(failure: Failure) -> dict[str, Any]:
    return {
        "last_error_class": failure.error_class,
        "last_error_time": failure.time,
        "last_error_message": failure.message,
        "error_count": _T.error_count + 1,
    }


def _outcome_values(check: HealthCheck) -> Mapping[str, Any]:
    if check.error_class is None:
        return _NO_FAILURE
    return _failure_values(Failure(check.error_class, check.check_time, check.message))


def _check_values(check: HealthCheck) -> dict[str, Any]:
    return {
        "integration_id": check.integration.integration_id,
        "status": check.status.value,
        "healthy": check.healthy,
        "check_time": check.check_time,
        "latency_microseconds": check.latency // timedelta(microseconds=1),
        "error_class": check.error_class,
        "message": check.message,
    }


# --- conditions --------------------------------------------------------------------------------------------------


def _is_of(integration_id: IntegrationId, user_id: UserId) -> tuple[ColumnElement[bool], ...]:
    return (_T.integration_id == integration_id, _T.user_id == user_id)


def _is_at_version(integration: Integration) -> tuple[ColumnElement[bool], ...]:
    return (*_is_of(integration.integration_id, integration.user_id), _T.version == integration.version)


def _is_about_account(error: IntegrityError) -> bool:
    # The only unique index with this column; SQLite names the columns, PostgreSQL the index that is named after them.
    return "account_id" in str(error.orig)
