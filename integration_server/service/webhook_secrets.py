"""Integrations' own webhook addresses, and what the requests to them are signed with.

Secrets come from three places: the credentials (a Twilio account's token signs its webhooks too), the `webhook_secret`
of a connection by key, and `SetWebhookSecret`. Of the last two the newer is in force, and the one before it for a while
longer: while a provider is told of a new secret, it signs with either.
"""

import base64
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from integration_server.domain.credentials import ApiKey, Credentials
from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationPending,
    InvalidField,
    StoreUnavailable,
    WebhooksNotSupported,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.ports import (
    Clock,
    Place,
    Provider,
    Providers,
    RandomName,
    Sealer,
    StoredWebhookSecrets,
    WebhookEndpoint,
    WebhookEndpoints,
)
from integration_server.service.sealing import Vault, webhook_secret_place

WEBHOOKS_PATH = "/api/v1/webhooks"

_LONGEST_GRACE = timedelta(days=30)
_LOOKS = 5  # how often to look again when another secret keeps getting in between


@dataclass(frozen=True, slots=True)
class Address:
    """An integration's own webhook address, and how its secrets stand."""

    url: str
    has_secret: bool
    set_time: datetime | None
    former_expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class SecretSet:
    """A secret that is in force now; `made` if it was made here."""

    url: str
    made: str = field(repr=False)
    former_expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class _Secrets:
    """What is set for an integration, opened. `current` is the newer of its two ways to be set."""

    current: str | None = field(repr=False)
    former: str | None = field(repr=False)
    former_expire_time: datetime | None
    of_credentials: Sequence[str] = field(repr=False)

    def valid(self, now: datetime) -> Sequence[str]:
        """All that a request may be signed with, the newest first."""
        given = [self.current] if self.current else []
        if self.former and self.former_expire_time is not None and now < self.former_expire_time:
            given.append(self.former)
        return tuple(dict.fromkeys((*given, *self.of_credentials)))


class WebhookSecrets:
    """Opens and sets them. `grace` is how long a former secret stays good, unless a call says otherwise."""

    def __init__(
        self,
        endpoints: WebhookEndpoints,
        providers: Providers,
        sealer: Sealer,
        clock: Clock,
        random_name: RandomName,
        *,
        public_url: str,
        grace: timedelta,
    ) -> None:
        self._endpoints = endpoints
        self._providers = providers
        self._sealer = sealer
        self._vault = Vault(sealer)
        self._clock = clock
        self._random_name = random_name
        self._public_url = public_url
        self._grace = grace

    async def valid(self, endpoint: WebhookEndpoint) -> Sequence[str]:
        """What a request to this address may be signed with now. Raises `CredentialsUnreadable`."""
        return (await self._opened(endpoint)).valid(self._clock())

    async def get_webhook_endpoint(self, integration_id: IntegrationId, user_id: UserId) -> Address:
        """The user's integration's address. Raises what keeps it from having one."""
        endpoint = await self._find(integration_id, user_id)
        opened, now = await self._opened(endpoint), self._clock()
        set_time = None if endpoint.secrets is None else endpoint.secrets.set_time
        return Address(self._url(endpoint), bool(opened.valid(now)), set_time, _unless_over(opened, now))

    async def set_webhook_secret(
        self, integration_id: IntegrationId, user_id: UserId, secret: str, grace: timedelta | None
    ) -> SecretSet:
        """Set the secret, or make one if it is empty; raises `InvalidField` if the provider's have another form. The
        same once more changes nothing.
        """
        grace = self._grace if grace is None else grace
        if grace > _LONGEST_GRACE:
            raise InvalidField("former_ttl", f"is longer than {_LONGEST_GRACE.days} days")
        for _ in range(_LOOKS):
            endpoint = await self._find(integration_id, user_id)
            opened, now = await self._opened(endpoint), self._clock()
            if secret and opened.current and hmac.compare_digest(secret.encode(), opened.current.encode()):
                return SecretSet(self._url(endpoint), "", _unless_over(opened, now))
            made = "" if secret else self._make()
            problem = self._provider_of(endpoint).webhook_secret_problem(secret or made)
            if problem is not None:
                raise InvalidField("webhook_secret", problem)
            new = await self._sealed(endpoint.stored.integration, secret or made, opened.current, now, grace)
            if await self._endpoints.set_secrets(endpoint.stored.integration, endpoint.secrets, new):
                return SecretSet(self._url(endpoint), made, new.former_expire_time)
        raise StoreUnavailable

    async def _find(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint:
        endpoint = await self._endpoints.find_of(integration_id, user_id)
        if endpoint is None:
            raise IntegrationNotFound
        integration = endpoint.stored.integration
        if not integration.is_connected:
            raise IntegrationPending
        if not self._provider_of(endpoint).takes_webhooks:
            raise WebhooksNotSupported(integration.integration_type)
        return endpoint

    def _provider_of(self, endpoint: WebhookEndpoint) -> Provider:
        return self._providers.get(endpoint.stored.integration.integration_type)

    def _url(self, endpoint: WebhookEndpoint) -> str:
        integration = endpoint.stored.integration
        return f"{self._public_url}{WEBHOOKS_PATH}/{integration.integration_type}/{integration.uid}"

    def _make(self) -> str:
        # The form that Standard Webhooks gives secrets; to other schemes it is a text like any other.
        return f"whsec_{base64.b64encode(self._random_name().encode()).decode()}"

    async def _sealed(
        self, integration: Integration, secret: str, former: str | None, now: datetime, grace: timedelta
    ) -> StoredWebhookSecrets:
        place = _place_of(integration)
        sealed = await self._sealer.seal(secret.encode(), place)
        if former is None:
            return StoredWebhookSecrets(sealed, now)
        return StoredWebhookSecrets(sealed, now, await self._sealer.seal(former.encode(), place), now + grace)

    async def _opened(self, endpoint: WebhookEndpoint) -> _Secrets:
        integration = endpoint.stored.integration
        credentials = await self._vault.open(endpoint.stored)
        provider = self._provider_of(endpoint)
        given = credentials.webhook_secret if isinstance(credentials, ApiKey) else None
        stored = endpoint.secrets
        if stored is None:
            return _Secrets(given, None, None, provider.webhook_secrets(credentials))
        own = await self._open(stored.sealed_secret, integration)
        if given and integration.connect_time is not None and integration.connect_time > stored.set_time:
            until = integration.connect_time + self._grace
            return _Secrets(given, own, until, provider.webhook_secrets(credentials))
        former = None
        if stored.sealed_former_secret is not None:
            former = await self._open(stored.sealed_former_secret, integration)
        return _Secrets(own, former, stored.former_expire_time, provider.webhook_secrets(_without_secret(credentials)))

    async def _open(self, sealed: bytes, integration: Integration) -> str:
        return (await self._sealer.open(sealed, _place_of(integration))).decode()


def _place_of(integration: Integration) -> Place:
    return webhook_secret_place(integration.uid, integration.user_id, integration.integration_type)


def _unless_over(opened: _Secrets, now: datetime) -> datetime | None:
    until = opened.former_expire_time
    return until if until is not None and now < until else None


def _without_secret(credentials: Credentials) -> Credentials:
    return replace(credentials, webhook_secret=None) if isinstance(credentials, ApiKey) else credentials
