"""The SQL store of webhook endpoints and their secrets: implements the port `WebhookEndpoints`."""

from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import bindparam, delete, insert, select

from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.webhooks.ports import StoredWebhookSecrets, WebhookEndpoint
from integration_server.storage.driver_queries import DriverQuery, Values
from integration_server.storage.engine import Database
from integration_server.storage.integrations import STORED_COLUMNS, replace_credentials, stored_integration_at
from integration_server.storage.tables import integrations, webhook_secrets

_I = integrations.c
_S = webhook_secrets.c

_ID = _S.webhook_secret_id.label("secret_id")
_SECRETS = (_ID, _S.encrypted_secret, _S.secret_set_time, _S.encrypted_previous_secret, _S.previous_expire_time)
_OWNER = ("integration_id", "uid", "user_id", "integration_type")

_ENDPOINT = select(*STORED_COLUMNS, *_SECRETS).select_from(integrations.outerjoin(webhook_secrets))

_FIND = DriverQuery(
    _ENDPOINT.where(
        _I.uid == bindparam("uid"), _I.integration_type == bindparam("integration_type"), _I.connect_time.is_not(None)
    )
)
_FIND_FOR_USER = DriverQuery(
    _ENDPOINT.where(_I.integration_id == bindparam("integration_id"), _I.user_id == bindparam("user_id"))
)


class SqlWebhookEndpoints:
    """`WebhookEndpoints` over a SQL database. Calls `on_change` with each integration that it changes."""

    def __init__(self, database: Database, on_change: Callable[[IntegrationId], None] = lambda _: None) -> None:
        self._database = database
        self._on_change = on_change

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """The connected integration of this type with this uid, of any user."""
        rows = await self._database.read(_FIND, uid=uid, integration_type=integration_type)
        return _endpoint(rows[0]) if rows else None

    async def find_by_id(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint | None:
        """The user's integration, pending or not."""
        rows = await self._database.read(_FIND_FOR_USER, integration_id=integration_id, user_id=user_id)
        return _endpoint(rows[0]) if rows else None

    async def set_secrets(
        self, integration: Integration, secrets: StoredWebhookSecrets, encrypted_credentials: bytes
    ) -> bool:
        """Set the secrets, with credentials that are bound to their id. False if the integration changed meanwhile."""
        bind = replace_credentials(
            integration,
            {
                "settings_version": integration.settings_version + 1,
                "webhook_secret_id": secrets.webhook_secret_id,
                "encrypted_credentials": encrypted_credentials,
            },
        )
        owner = {name: getattr(integration, name) for name in _OWNER}
        try:
            async with self._database.write_transaction() as connection:
                if (await connection.execute(bind)).one_or_none() is None:
                    return False
                # The lock of the row above serializes both statements.
                await connection.execute(delete(webhook_secrets).where(_S.integration_id == integration.integration_id))
                await connection.execute(insert(webhook_secrets).values({**owner, **asdict(secrets)}))
        finally:
            self._on_change(integration.integration_id)
        return True


def _endpoint(row: Values) -> WebhookEndpoint:
    secret_id, encrypted_secret, *rest = row[len(STORED_COLUMNS) :]
    secrets = None if encrypted_secret is None else StoredWebhookSecrets(secret_id, encrypted_secret, *rest)
    return WebhookEndpoint(stored_integration_at(row), secrets)
