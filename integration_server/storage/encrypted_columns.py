"""Every column of sealed values, with the place that each value is sealed for. A test finds those that are missing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Row, Select, Table, Update, bindparam, func, select, update
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
    """A column of sealed values. `aad_columns` is what tells a value's place: uid, user and type, in this order."""

    value: Column[bytes]
    row_id: Column[Any]
    aad_columns: Sequence[Column[str]]
    make_associated_data: Callable[[str, str, str], AssociatedData]

    @property
    def name(self) -> str:
        """Table and column."""
        return f"{self.value.table.name}.{self.value.name}"

    @property
    def table(self) -> Table:
        """Its table."""
        return self.row_id.table

    def rows_encrypted_with(self, key_id: str) -> Select[Any]:
        """The rows whose value is sealed with this data key: `row_id`, `value` and what tells the place."""
        aad_columns = [column.label(f"owner_{number}") for number, column in enumerate(self.aad_columns)]
        return select(self.row_id.label("row_id"), self.value.label("value"), *aad_columns).where(
            data_key_id(self.value) == bytes.fromhex(key_id)
        )

    def associated_data(self, row: Row[Any]) -> AssociatedData:
        """Where the value of one of these rows belongs."""
        return self.make_associated_data(row.owner_0, row.owner_1, row.owner_2)

    def replacement(self) -> Update:
        """Puts `new` where `old` is, in the row `id`."""
        return (
            update(self.table)
            .where(self.row_id == bindparam("id"), self.value == bindparam("old"))
            .values({self.value: bindparam("new")})
        )


ENCRYPTED_COLUMNS = (
    EncryptedColumn(
        integrations.c.encrypted_credentials,
        integrations.c.integration_id,
        (integrations.c.uid, integrations.c.user_id, integrations.c.integration_type),
        credentials_aad,
    ),
    EncryptedColumn(
        revocations.c.encrypted_credentials,
        revocations.c.revocation_id,
        (revocations.c.uid, revocations.c.user_id, revocations.c.integration_type),
        credentials_aad,
    ),
    EncryptedColumn(
        authorization_attempts.c.encrypted_verifier,
        authorization_attempts.c.attempt_id,
        (
            authorization_attempts.c.attempt_id,
            authorization_attempts.c.user_id,
            authorization_attempts.c.integration_type,
        ),
        verifier_aad,
    ),
    EncryptedColumn(
        authorization_attempts.c.encrypted_callback,
        authorization_attempts.c.attempt_id,
        (
            authorization_attempts.c.attempt_id,
            authorization_attempts.c.user_id,
            authorization_attempts.c.integration_type,
        ),
        callback_aad,
    ),
    EncryptedColumn(
        webhook_secrets.c.encrypted_secret,
        webhook_secrets.c.integration_id,
        (webhook_secrets.c.uid, webhook_secrets.c.user_id, webhook_secrets.c.integration_type),
        webhook_secret_aad,
    ),
    EncryptedColumn(
        webhook_secrets.c.encrypted_previous_secret,
        webhook_secrets.c.integration_id,
        (webhook_secrets.c.uid, webhook_secrets.c.user_id, webhook_secrets.c.integration_type),
        webhook_secret_aad,
    ),
    EncryptedColumn(
        webhook_events.c.encrypted_payload,
        webhook_events.c.webhook_event_id,
        (webhook_events.c.uid, webhook_events.c.user_id, webhook_events.c.integration_type),
        payload_aad,
    ),
    EncryptedColumn(
        audit_chains.c.encrypted_key,
        audit_chains.c.chain_id,
        (audit_chains.c.chain_id, audit_chains.c.chain_id, audit_chains.c.chain_id),
        chain_key_aad,
    ),
)


async def count_values(connection: AsyncConnection, key_id: str) -> Mapping[str, int]:
    """How many values of which column are sealed with this data key; columns without any are left out."""
    counts = {}
    for column in ENCRYPTED_COLUMNS:
        query = select(func.count()).select_from(column.rows_encrypted_with(key_id).subquery())
        counts[column.name] = int(await connection.scalar(query) or 0)
    return {name: count for name, count in counts.items() if count}
