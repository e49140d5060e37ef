"""The columns with encrypted values, and the associated data of each. A test finds columns that are missing here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Row, Select, Update, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.service.common_types import AssociatedData
from integration_server.service.credentials.credential_cipher import (
    callback_aad,
    chain_key_aad,
    credentials_aad,
    payload_aad,
    verifier_aad,
    webhook_secret_aad,
)
from integration_server.storage.tables import (
    audit_chains,
    authorization_attempts,
    data_key_id,
    integrations,
    revocations,
    webhook_events,
    webhook_secrets,
)


@dataclass(frozen=True, slots=True)
class EncryptedColumn:
    """A column of encrypted values.

    `aad_columns` names the columns that hold the associated data: uid, user and type, in this order.
    """

    value: Column[bytes]
    make_associated_data: Callable[[str, str, str], AssociatedData]
    aad_columns: tuple[str, str, str] = ("uid", "user_id", "integration_type")

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
        """A query for the rows whose value is encrypted with this data key: `row_id`, `value`, the `aad_columns`."""
        columns = [self.value.table.c[name].label(None) for name in self.aad_columns]
        return select(self.row_id.label("row_id"), self.value.label("value"), *columns).where(
            data_key_id(self.value) == bytes.fromhex(key_id)
        )

    def associated_data(self, row: Row[Any]) -> AssociatedData:
        """The associated data of the value in one of these rows."""
        return self.make_associated_data(*list(row)[2:])

    def replacement(self) -> Update:
        """A statement that replaces the value `old` in the row `id` by `new`."""
        return (
            update(self.row_id.table)
            .where(self.row_id == bindparam("id"), self.value == bindparam("old"))
            .values({self.value: bindparam("new")})
        )


_ATTEMPT = ("attempt_id", "user_id", "integration_type")

ENCRYPTED_COLUMNS = (
    EncryptedColumn(integrations.c.encrypted_credentials, credentials_aad),
    EncryptedColumn(revocations.c.encrypted_credentials, credentials_aad),
    EncryptedColumn(authorization_attempts.c.encrypted_verifier, verifier_aad, _ATTEMPT),
    EncryptedColumn(authorization_attempts.c.encrypted_callback, callback_aad, _ATTEMPT),
    EncryptedColumn(webhook_secrets.c.encrypted_secret, webhook_secret_aad),
    EncryptedColumn(webhook_secrets.c.encrypted_previous_secret, webhook_secret_aad),
    EncryptedColumn(webhook_events.c.encrypted_payload, payload_aad),
    EncryptedColumn(audit_chains.c.encrypted_key, chain_key_aad, ("chain_id", "chain_id", "chain_id")),
)


async def count_values(connection: AsyncConnection, key_id: str) -> Mapping[str, int]:
    """The number of values per column that are encrypted with this data key, without columns that have none."""
    counts = {}
    for column in ENCRYPTED_COLUMNS:
        query = select(func.count()).select_from(column.rows_encrypted_with(key_id).subquery())
        counts[column.name] = int(await connection.scalar(query) or 0)
    return {name: count for name, count in counts.items() if count}
