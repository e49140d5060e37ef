"""The webhook addresses of integrations, and the secrets that verify the requests to them.

Secrets have three sources: the credentials (a Twilio account's token also signs its webhooks), the `webhook_secret` of
a connection by API key, and `SetWebhookSecret`. Of the last two the newer one is current, and the one before it stays
valid for a grace period, in which the provider is given the new secret.
"""

import base64
import hmac
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timedelta

from integration_server.domain.associated_data import AssociatedData, webhook_secret_aad
from integration_server.domain.credentials import ApiKey, Credentials
from integration_server.domain.errors import (
    CredentialsUnreadable,
    IntegrationNotFound,
    InvalidField,
    StoreUnavailable,
    WebhooksNotSupported,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.webhooks import webhook_url
from integration_server.service.common_types import (
    Aead,
    Clock,
    RandomToken,
)
from integration_server.service.credentials.credential_cipher import (
    CredentialCipher,
)
from integration_server.service.provider_port import Provider, Providers
from integration_server.service.webhooks.ports import StoredWebhookSecrets, WebhookEndpoint, WebhookEndpoints

_MAX_GRACE = timedelta(days=30)
_MAX_ATTEMPTS = 5  # to replace the secrets while other callers replace them too


@dataclass(frozen=True, slots=True)
class WebhookAddress:
    """An integration's webhook address, and the state of its secrets.

    `generated_secret` is the secret that the call has generated; empty if it has not.
    """

    url: str
    has_secret: bool
    secret_set_time: datetime | None
    previous_expire_time: datetime | None
    generated_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class _Secrets:
    """The decrypted secrets of an integration. `current` is the newest that was set; `previous` has not expired."""

    current: str | None = field(repr=False)
    previous: str | None = field(repr=False)
    previous_expire_time: datetime | None
    from_credentials: Sequence[str] = field(repr=False)

    def valid(self) -> Sequence[str]:
        """All secrets that verify a request, the newest first."""
        return tuple(dict.fromkeys(filter(None, (self.current, self.previous, *self.from_credentials))))


@dataclass(eq=False, repr=False)
class WebhookSecrets:
    """Reads and sets webhook secrets. A previous secret stays valid for `grace`, unless a call states another time."""

    endpoints: WebhookEndpoints
    providers: Providers
    aead: Aead
    clock: Clock
    random_token: RandomToken
    _: KW_ONLY
    public_url: str
    grace: timedelta

    def __post_init__(self) -> None:
        self._cipher = CredentialCipher(self.aead)

    async def valid(self, endpoint: WebhookEndpoint) -> Sequence[str]:
        """The secrets that verify a request to this address now. Raises `CredentialsUnreadable`."""
        return (await self._decrypted(endpoint, self.clock())).valid()

    async def get_webhook_endpoint(self, integration_id: IntegrationId, user_id: UserId) -> WebhookAddress:
        """The address of the user's integration. Raises `IntegrationNotFound`, `IntegrationPending` or
        `WebhooksNotSupported`.
        """
        endpoint = await self._find(integration_id, user_id)
        return self._address(endpoint, await self._decrypted(endpoint, self.clock()))

    async def set_webhook_secret(
        self, integration_id: IntegrationId, user_id: UserId, secret: str, grace: timedelta | None
    ) -> WebhookAddress:
        """Set the secret, or generate one if it is empty. Setting the current secret again changes nothing.

        Raises `InvalidField` if the secret is malformed, and otherwise as `get_webhook_endpoint`.
        """
        grace = self.grace if grace is None else grace
        if grace > _MAX_GRACE:
            raise InvalidField("previous_ttl", f"is longer than {_MAX_GRACE.days} days")
        for _ in range(_MAX_ATTEMPTS):
            endpoint, now = await self._find(integration_id, user_id), self.clock()
            secrets = await self._decrypted(endpoint, now)
            if secret and secrets.current and hmac.compare_digest(secret.encode(), secrets.current.encode()):
                return self._address(endpoint, secrets)
            generated_secret = "" if secret else self._generate_secret()
            problem = self._provider_of(endpoint).webhook_secret_problem(secret or generated_secret)
            if problem is not None:
                raise InvalidField("webhook_secret", problem)
            integration = endpoint.stored.integration
            new = await self._encrypted(integration, secret or generated_secret, secrets.current, now, grace)
            credentials = await self._cipher.decrypt(endpoint.stored)
            after = replace(
                integration,
                settings_version=integration.settings_version + 1,
                webhook_secret_id=new.webhook_secret_id,
            )
            if await self.endpoints.set_secrets(integration, new, await self._cipher.encrypt(after, credentials)):
                return WebhookAddress(self._url(endpoint), True, now, new.previous_expire_time, generated_secret)
        raise StoreUnavailable

    async def _find(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint:
        endpoint = await self.endpoints.find_by_id(integration_id, user_id)
        if endpoint is None:
            raise IntegrationNotFound
        integration = endpoint.stored.integration
        integration.require_connected()
        if not self._provider_of(endpoint).supports_webhooks:
            raise WebhooksNotSupported(integration.integration_type)
        return endpoint

    def _provider_of(self, endpoint: WebhookEndpoint) -> Provider:
        return self.providers[endpoint.stored.integration.integration_type]

    def _address(self, endpoint: WebhookEndpoint, secrets: _Secrets) -> WebhookAddress:
        stored = _current_secrets(endpoint)
        secret_set_time = None if stored is None else stored.secret_set_time
        return WebhookAddress(self._url(endpoint), bool(secrets.valid()), secret_set_time, secrets.previous_expire_time)

    def _url(self, endpoint: WebhookEndpoint) -> str:
        integration = endpoint.stored.integration
        return webhook_url(self.public_url, integration.integration_type, integration.uid)

    def _generate_secret(self) -> str:
        # The format of Standard Webhooks; other schemes accept any text.
        return f"whsec_{base64.b64encode(self.random_token().encode()).decode()}"

    async def _encrypted(
        self, integration: Integration, secret: str, previous: str | None, now: datetime, grace: timedelta
    ) -> StoredWebhookSecrets:
        new = StoredWebhookSecrets(
            self.random_token(),
            encrypted_secret=b"",
            secret_set_time=now,
            previous_expire_time=None if previous is None else now + grace,
        )
        current_aad, previous_aad = _aads_of(integration, new)
        new = replace(new, encrypted_secret=await self.aead.encrypt(secret.encode(), current_aad))
        if previous is None:
            return new
        return replace(new, encrypted_previous_secret=await self.aead.encrypt(previous.encode(), previous_aad))

    async def _decrypted(self, endpoint: WebhookEndpoint, now: datetime) -> _Secrets:
        integration, stored = endpoint.stored.integration, _current_secrets(endpoint)
        credentials = await self._cipher.decrypt(endpoint.stored)
        provider = self._provider_of(endpoint)
        key_secret = credentials.webhook_secret if isinstance(credentials, ApiKey) else None
        if stored is None:
            return _Secrets(key_secret, None, None, provider.webhook_secrets(credentials))
        current_aad, previous_aad = _aads_of(integration, stored)
        current, previous = (await self.aead.decrypt(stored.encrypted_secret, current_aad)).decode(), None
        until = stored.previous_expire_time
        if key_secret and integration.connect_time is not None and integration.connect_time > stored.secret_set_time:
            current, previous, until = key_secret, current, integration.connect_time + self.grace
        else:
            credentials = _without_secret(credentials)
            if stored.encrypted_previous_secret is not None:
                previous = (await self.aead.decrypt(stored.encrypted_previous_secret, previous_aad)).decode()
        if until is None or until <= now:
            previous = until = None
        return _Secrets(current, previous, until, provider.webhook_secrets(credentials))


def _current_secrets(endpoint: WebhookEndpoint) -> StoredWebhookSecrets | None:
    """The secrets that the integration names. Raises `CredentialsUnreadable` if they were removed or put back."""
    secret_id = endpoint.stored.integration.webhook_secret_id
    if not secret_id:
        return None
    if endpoint.secrets is None or endpoint.secrets.webhook_secret_id != secret_id:
        raise CredentialsUnreadable
    return endpoint.secrets


def _aads_of(integration: Integration, secrets: StoredWebhookSecrets) -> tuple[AssociatedData, AssociatedData]:
    """The associated data of the current and of the previous secret."""
    current, previous = (
        webhook_secret_aad(
            integration.uid,
            integration.user_id,
            integration.integration_type,
            secrets.webhook_secret_id,
            column,
            secrets.secret_set_time,
            secrets.previous_expire_time,
        )
        for column in ("encrypted_secret", "encrypted_previous_secret")
    )
    return current, previous


def _without_secret(credentials: Credentials) -> Credentials:
    return replace(credentials, webhook_secret=None) if isinstance(credentials, ApiKey) else credentials
