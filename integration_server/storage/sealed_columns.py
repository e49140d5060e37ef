"""Every column of sealed values, with the place that each value is sealed for. A test finds those that are missing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Row, Select, Table, Update, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.service.ports import Place
from integration_server.service.sealing import (
    callback_place,
    chain_key_place,
    credentials_place,
    payload_place,
    verifier_place,
    webhook_secret_place,
)
from integration_server.storage.tables import (
    audit_chains,
    connection_attempts,
    data_key_id,
    integrations,
    revocations,
    webhook_events,
    webhook_secrets,
)


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column of sealed values. `owner` is what tells a value's place: uid, user and type, in this order."""

    value: Column[bytes]
    row_id: Column[Any]
    owner: Sequence[Column[str]]
    make_place: Callable[[str, str, str], Place]

    @property
    def name(self) -> str:
        """Table and column."""
        return f"{self.value.table.name}.{self.value.name}"

    @property
    def table(self) -> Table:
        """Its table."""
        return self.row_id.table

    def rows_under(self, key_id: str) -> Select[Any]:
        """The rows whose value is sealed with this data key: `row_id`, `value` and what tells the place."""
        owner = [column.label(f"owner_{number}") for number, column in enumerate(self.owner)]
        return select(self.row_id.label("row_id"), self.value.label("value"), *owner).where(
            data_key_id(self.value) == bytes.fromhex(key_id)
        )

    def place(self, row: Row[Any]) -> Place:
        """Where the value of one of these rows belongs."""
        return self.make_place(row.owner_0, row.owner_1, row.owner_2)

    def replacement(self) -> Update:
        """Puts `new` where `old` is, in the row `id`."""
        return (
            update(self.table)
            .where(self.row_id == bindparam("id"), self.value == bindparam("old"))
            .values({self.value: bindparam("new")})
        )


SEALED_COLUMNS = (
    SealedColumn(
        integrations.c.sealed_credentials,
        integrations.c.integration_id,
        (integrations.c.uid, integrations.c.user_id, integrations.c.integration_type),
        credentials_place,
    ),
    SealedColumn(
        revocations.c.sealed_credentials,
        revocations.c.revocation_id,
        (revocations.c.uid, revocations.c.user_id, revocations.c.integration_type),
        credentials_place,
    ),
    SealedColumn(
        connection_attempts.c.sealed_verifier,
        connection_attempts.c.attempt_id,
        (connection_attempts.c.attempt_id, connection_attempts.c.user_id, connection_attempts.c.integration_type),
        verifier_place,
    ),
    SealedColumn(
        connection_attempts.c.sealed_callback,
        connection_attempts.c.attempt_id,
        (connection_attempts.c.attempt_id, connection_attempts.c.user_id, connection_attempts.c.integration_type),
        callback_place,
    ),
    SealedColumn(
        webhook_secrets.c.sealed_secret,
        webhook_secrets.c.integration_id,
        (webhook_secrets.c.uid, webhook_secrets.c.user_id, webhook_secrets.c.integration_type),
        webhook_secret_place,
    ),
    SealedColumn(
        webhook_secrets.c.sealed_former_secret,
        webhook_secrets.c.integration_id,
        (webhook_secrets.c.uid, webhook_secrets.c.user_id, webhook_secrets.c.integration_type),
        webhook_secret_place,
    ),
    SealedColumn(
        webhook_events.c.sealed_payload,
        webhook_events.c.webhook_event_id,
        (webhook_events.c.uid, webhook_events.c.user_id, webhook_events.c.integration_type),
        payload_place,
    ),
    SealedColumn(
        audit_chains.c.sealed_key,
        audit_chains.c.chain_id,
        (audit_chains.c.chain_id, audit_chains.c.chain_id, audit_chains.c.chain_id),
        chain_key_place,
    ),
)


async def count_values(connection: AsyncConnection, key_id: str) -> Mapping[str, int]:
    """How many values of which column are sealed with this data key; columns without any are left out."""
    counts = {}
    for column in SEALED_COLUMNS:
        query = select(func.count()).select_from(column.rows_under(key_id).subquery())
        counts[column.name] = int(await connection.scalar(query) or 0)
    return {name: count for name, count in counts.items() if count}
