"""Integrations' own webhook addresses and their secrets, in SQL: fulfils the port `WebhookEndpoints`."""

from typing import Any

from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.webhooks.ports import StoredWebhookSecrets, WebhookEndpoint
from integration_server.storage.engine import Database
from integration_server.storage.integrations import stored_integration_of
from integration_server.storage.tables import integrations, webhook_secrets

_I = integrations.c
_S = webhook_secrets.c

_SECRETS = (_S.encrypted_secret, _S.secret_set_time, _S.encrypted_previous_secret, _S.previous_expire_time)

_ENDPOINT = select(integrations, *_SECRETS).select_from(integrations.outerjoin(webhook_secrets))

_FIND = _ENDPOINT.where(
    _I.uid == bindparam("uid"), _I.integration_type == bindparam("integration_type"), _I.connect_time.is_not(None)
)

_FIND_OF = _ENDPOINT.where(_I.integration_id == bindparam("integration_id"), _I.user_id == bindparam("user_id"))


class SqlWebhookEndpoints:
    """`WebhookEndpoints` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """The connected integration of this type with this address, whoever's."""
        async with self._database.read_connection() as connection:
            found = await connection.execute(_FIND, {"uid": uid, "integration_type": integration_type})
            row = found.one_or_none()
        return None if row is None else _endpoint(row)

    async def find_by_id(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint | None:
        """The user's integration, pending or not."""
        async with self._database.read_connection() as connection:
            found = await connection.execute(_FIND_OF, {"integration_id": integration_id, "user_id": user_id})
            row = found.one_or_none()
        return None if row is None else _endpoint(row)

    async def set_secrets(
        self, integration: Integration, before: StoredWebhookSecrets | None, secrets: StoredWebhookSecrets
    ) -> bool:
        """Put secrets in the place of those before. False if there are others by now, or the integration is gone."""
        values = {
            "encrypted_secret": secrets.encrypted_secret,
            "secret_set_time": secrets.secret_set_time,
            "encrypted_previous_secret": secrets.encrypted_previous_secret,
            "previous_expire_time": secrets.previous_expire_time,
        }
        if before is None:
            return await self._add(integration, values)
        replace = (
            update(webhook_secrets)
            .where(
                _S.integration_id == integration.integration_id,
                _S.user_id == integration.user_id,
                _S.encrypted_secret == before.encrypted_secret,
            )
            .values(values)
        )
        async with self._database.write_transaction() as connection:
            return (await connection.execute(replace)).rowcount == 1

    async def _add(self, integration: Integration, values: dict[str, Any]) -> bool:
        owner = {
            "integration_id": integration.integration_id,
            "uid": integration.uid,
            "user_id": integration.user_id,
            "integration_type": integration.integration_type,
        }
        try:
            async with self._database.write_transaction() as connection:
                await connection.execute(insert(webhook_secrets).values({**owner, **values}))
        except IntegrityError:  # another was quicker, or the integration is gone
            return False
        return True


def _endpoint(row: Row[Any]) -> WebhookEndpoint:
    secrets = None
    if row.encrypted_secret is not None:
        secrets = StoredWebhookSecrets(
            row.encrypted_secret, row.secret_set_time, row.encrypted_previous_secret, row.previous_expire_time
        )
    return WebhookEndpoint(stored_integration_of(row), secrets)
