"""The SQL store of webhook endpoints and their secrets: implements the port `WebhookEndpoints`."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Insert, Row, Update, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.webhooks.ports import StoredWebhookSecrets, WebhookEndpoint
from integration_server.storage.engine import Database, from_row
from integration_server.storage.integrations import stored_integration_of
from integration_server.storage.tables import integrations, webhook_secrets

_I = integrations.c
_S = webhook_secrets.c

_SECRETS = (_S.encrypted_secret, _S.secret_set_time, _S.encrypted_previous_secret, _S.previous_expire_time)
_OWNER = ("integration_id", "uid", "user_id", "integration_type")

_ENDPOINT = select(integrations, *_SECRETS).select_from(integrations.outerjoin(webhook_secrets))

_FIND = _ENDPOINT.where(
    _I.uid == bindparam("uid"), _I.integration_type == bindparam("integration_type"), _I.connect_time.is_not(None)
)

_FIND_FOR_USER = _ENDPOINT.where(_I.integration_id == bindparam("integration_id"), _I.user_id == bindparam("user_id"))


class SqlWebhookEndpoints:
    """`WebhookEndpoints` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """The connected integration of this type with this uid, of any user."""
        row = await self._database.fetch_one(_FIND, {"uid": uid, "integration_type": integration_type})
        return None if row is None else _endpoint(row)

    async def find_by_id(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint | None:
        """The user's integration, pending or not."""
        row = await self._database.fetch_one(_FIND_FOR_USER, {"integration_id": integration_id, "user_id": user_id})
        return None if row is None else _endpoint(row)

    async def set_secrets(
        self, integration: Integration, before: StoredWebhookSecrets | None, secrets: StoredWebhookSecrets
    ) -> bool:
        """Replace the secrets `before`. False if they are no longer current, or the integration was deleted."""
        statement: Insert | Update
        if before is None:
            owner = {name: getattr(integration, name) for name in _OWNER}
            statement = insert(webhook_secrets).values({**owner, **asdict(secrets)})
        else:
            statement = (
                update(webhook_secrets)
                .where(_S.integration_id == integration.integration_id, _S.user_id == integration.user_id)
                .where(_S.encrypted_secret == before.encrypted_secret)
                .values(asdict(secrets))
            )
        try:
            return await self._database.write(statement) == 1
        except IntegrityError:  # others were inserted in the meantime, or the integration was deleted
            return False


def _endpoint(row: Row[Any]) -> WebhookEndpoint:
    secrets = None if row.encrypted_secret is None else from_row(StoredWebhookSecrets, row)
    return WebhookEndpoint(stored_integration_of(row), secrets)
