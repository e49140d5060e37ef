"""The columns with encrypted values, and the associated data of each. A test finds columns that are missing here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from sqlalchemy import Column, LargeBinary, Row, Select, Update, bindparam, func, select, update

from integration_server.domain.associated_data import (
    AssociatedData,
    attempt_aad,
    bound_values_of,
    callback_aad,
    chain_key_aad,
    credentials_aad,
    oauth_client_aad,
    outcome_aad,
    payload_aad,
    route_aad,
    unrouted_payload_aad,
    webhook_secret_aad,
)
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.integrations import integration_of
from integration_server.storage.tables import (
    audit_chains,
    authorization_attempts,
    data_key_id,
    integrations,
    oauth_clients,
    revocations,
    unrouted_webhooks,
    webhook_events,
    webhook_routes,
    webhook_secrets,
)
from integration_server.storage.value_rows import ValueRows


@dataclass(frozen=True, slots=True)
class EncryptedColumn:
    """A column of encrypted values. `associated_data` computes their associated data from a row of their table."""

    value: Column[bytes]
    associated_data: Callable[[Row[Any]], AssociatedData]

    @property
    def name(self) -> str:
        """The names of the table and the column."""
        return f"{self.value.table.name}.{self.value.name}"

    @property
    def row_id(self) -> Column[Any]:
        """The primary key column of the table."""
        (column,) = self.value.table.primary_key
        return column

    def rows_encrypted_with(self, key_id: str) -> Select[Any]:
        """A query for the rows whose value is encrypted with this data key: all columns, `row_id` and `value`."""
        row_id, value = self.row_id.label("row_id"), self.value.label("value")
        return select(*self.row_id.table.columns, row_id, value).where(data_key_id(self.value) == bytes.fromhex(key_id))

    async def replace_values(self, connection: AsyncConnection, changes: Sequence[tuple[Any, bytes, bytes]]) -> int:
        """Replace values. A change has the id of the row, the value that it must still have, and the new value.

        Returns the number of values that were replaced.
        """
        if not changes:
            return 0
        if connection.dialect.name == "sqlite":
            names = ("id", "old", "new")
            parameters = [dict(zip(names, change, strict=True)) for change in changes]
            return (await connection.execute(_replace_one(self), parameters)).rowcount
        rows, statement = _replace_many(self, connection.dialect.name)  # a statement costs more than its row
        return (await connection.execute(statement, rows.parameters(changes, connection.dialect))).rowcount


@cache
def _replace_one(column: EncryptedColumn) -> Update:
    return (
        update(column.row_id.table)
        .where(column.row_id == bindparam("id"), column.value == bindparam("old"))
        .values({column.value: bindparam("new")})
    )


@cache
def _replace_many(column: EncryptedColumn, dialect: str) -> tuple[ValueRows, Update]:
    columns = [Column("id", column.row_id.type), Column("old", LargeBinary), Column("new", LargeBinary)]
    rows = ValueRows("changes", columns, dialect)
    change = rows.subquery.c
    return rows, (
        update(column.row_id.table)
        .where(column.row_id == change.id, column.value == change.old)
        .values({column.value: change.new})
    )


def _names(row: Row[Any]) -> tuple[str, str, str]:
    return row.uid, row.user_id, row.integration_type


def _of_integration(row: Row[Any]) -> AssociatedData:
    return credentials_aad(*_names(row), bound_values_of(integration_of(row)))


def _of_revocation(row: Row[Any]) -> AssociatedData:
    return credentials_aad(*_names(row), row.bound_values)


def _of_attempt(make: Callable[..., AssociatedData], row: Row[Any]) -> AssociatedData:
    return make(row.attempt_id, row.user_id, row.integration_type)


def _of_secret(column: Column[bytes], row: Row[Any]) -> AssociatedData:
    times = row.secret_set_time, row.previous_expire_time
    return webhook_secret_aad(*_names(row), row.webhook_secret_id, column.name, *times)


def _of_event(row: Row[Any]) -> AssociatedData:
    return payload_aad(*_names(row), row.integration_id, row.event_id, row.event_type, row.receive_time)


def _of_route(row: Row[Any]) -> AssociatedData:
    return route_aad(*_names(row), row.route)


def _of_unrouted(row: Row[Any]) -> AssociatedData:
    names = row.uid, row.integration_type, row.oauth_client
    return unrouted_payload_aad(*names, row.event_id, row.event_type, row.receive_time)


def _of_client(row: Row[Any]) -> AssociatedData:
    return oauth_client_aad(row.uid, row.integration_type, row.name, row.client_id, row.callers, row.version)


_SECRETS = (webhook_secrets.c.encrypted_secret, webhook_secrets.c.encrypted_previous_secret)

ENCRYPTED_COLUMNS = (
    EncryptedColumn(integrations.c.encrypted_credentials, _of_integration),
    EncryptedColumn(oauth_clients.c.encrypted_secrets, _of_client),
    EncryptedColumn(revocations.c.encrypted_credentials, _of_revocation),
    EncryptedColumn(authorization_attempts.c.encrypted_details, partial(_of_attempt, attempt_aad)),
    EncryptedColumn(authorization_attempts.c.encrypted_callback, partial(_of_attempt, callback_aad)),
    EncryptedColumn(authorization_attempts.c.encrypted_outcome, partial(_of_attempt, outcome_aad)),
    *(EncryptedColumn(column, partial(_of_secret, column)) for column in _SECRETS),
    EncryptedColumn(webhook_events.c.encrypted_payload, _of_event),
    EncryptedColumn(webhook_routes.c.encrypted_copy, _of_route),
    EncryptedColumn(unrouted_webhooks.c.encrypted_payload, _of_unrouted),
    EncryptedColumn(audit_chains.c.encrypted_key, lambda row: chain_key_aad(row.chain_id)),
)


async def count_values(connection: AsyncConnection, key_id: str) -> Mapping[str, int]:
    """The number of values per column that are encrypted with this data key, without columns that have none."""
    counts = {}
    for column in ENCRYPTED_COLUMNS:
        query = select(func.count()).select_from(column.rows_encrypted_with(key_id).subquery())
        counts[column.name] = int(await connection.scalar(query) or 0)
    return {name: count for name, count in counts.items() if count}
