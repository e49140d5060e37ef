"""OAuth clients as operators manage them; docs/oauth-clients.md describes the steps of a rotation."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.errors import InvalidField, OAuthClientNotFound, StoreUnavailable
from integration_server.domain.oauth_client import OWN_CLIENT, client_key
from integration_server.domain.webhooks import webhook_url
from integration_server.service.common_types import Aead, Clock, RandomToken
from integration_server.service.credentials.credential_cipher import EncryptedTokens
from integration_server.service.integrations.page_tokens import Page
from integration_server.service.oauth_clients.oauth_client_directory import ClientSecrets, OAuthClientCipher
from integration_server.service.oauth_clients.ports import OAuthClientStore, SecretAlarm, StoredOAuthClient
from integration_server.service.provider_port import Provider, ProviderSet

MAX_CLIENTS = 10_000
"""Background work looks for the due rows of each client once a second: with so many, it takes a database some 50 ms."""

_MAX_ATTEMPTS = 5  # while other operators change the client too


@dataclass(frozen=True, slots=True)
class OAuthClientChange:
    """A client to add or change. An empty secret leaves that of a present client unchanged.

    A new secret keeps the one before it as the previous one. `ends_rotation` removes the previous secrets that are
    left after the change.
    """

    integration_type: str
    name: str
    client_id: str
    callers: tuple[str, ...]
    client_secret: str = field(default="", repr=False)
    webhook_secret: str = field(default="", repr=False)
    webhook_verify_token: str = field(default="", repr=False)
    ends_rotation: bool = False


@dataclass(frozen=True, slots=True)
class OAuthClientInfo:
    """A client as operators see it: no secret. The operator's own has no name and no times."""

    integration_type: str
    name: str
    client_id: str
    callers: Sequence[str] = ()
    has_previous_secret: bool = False
    has_webhook_secret: bool = False
    webhook_url: str = ""
    alarm: SecretAlarm | None = None
    is_altered: bool = False
    create_time: datetime | None = None
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class _ClientCursor:
    """The content of a page token: the list, and the last client of the previous page."""

    integration_type: str
    last_type: str
    last_name: str


@dataclass(eq=False, repr=False)
class OAuthClientManager:
    """Adds, changes, lists and deletes OAuth clients.

    `resume_refreshes` ends a few pauses of the refreshes of clients, given by their keys: a new secret may work.
    """

    store: OAuthClientStore
    providers: ProviderSet
    aead: Aead
    clock: Clock
    random_token: RandomToken
    resume_refreshes: Callable[[Sequence[str]], Awaitable[None]]
    _: KW_ONLY
    public_url: str
    max_clients: int = MAX_CLIENTS

    def __post_init__(self) -> None:
        self._cipher = OAuthClientCipher(self.aead)
        self._pages = EncryptedTokens(self.aead, "oauth-client-page", _ClientCursor)

    async def put_oauth_client(self, change: OAuthClientChange) -> OAuthClientInfo:
        """Add a client, or replace what is stored of it.

        Raises `InvalidField`, `OAuthClientInUse` if its client id changes while it is used, or `QuotaExceeded`.
        """
        provider = self.providers[change.integration_type]
        change = replace(change, integration_type=provider.integration_type)  # it may be an alias
        await self._require_valid(change, provider)
        for _ in range(_MAX_ATTEMPTS):
            stored = await self.store.find(change.integration_type, change.name)
            before = ClientSecrets() if stored is None else await self._cipher.decrypt(stored)
            secrets = _changed(before, change)
            if provider.takes_client_secret and not secrets.client_secrets:
                raise InvalidField("client_secret", "is required for this integration type")
            new = await self._encrypted(change, stored, secrets)
            if stored is None:
                is_stored = await self.store.add(new, self.max_clients)
            else:
                is_stored = await self.store.replace(new, stored.version)
            if is_stored:
                if secrets.client_secrets[:1] != before.client_secrets[:1]:
                    await self.store.set_alarm(new.integration_type, new.name, None)
                    await self.resume_refreshes([client_key(new.integration_type, new.name)])
                return self._info(new, secrets, (await self.store.alarms()).get((new.integration_type, new.name)))
        raise StoreUnavailable

    async def list_oauth_clients(
        self, integration_type: str, page_size: int, page_token: str, allowed_types: AllowedTypes
    ) -> Page[OAuthClientInfo]:
        """The clients of a type, or of all allowed types if it is empty, by type and name; the own ones first."""
        after = ("", "")
        if page_token:
            cursor = await self._pages.read(page_token)
            if cursor is None or cursor.integration_type != integration_type:
                raise InvalidField("page_token", "is not from this list")
            after = cursor.last_type, cursor.last_name
        alarms = await self.store.alarms()
        rows = await self.store.list(integration_type, allowed_types, after, page_size + 1)
        found = [await self._listed(row, alarms.get((row.integration_type, row.name))) for row in rows]
        found += [
            client
            for client in self._own_clients(alarms)
            if allowed_types.allows(client.integration_type)
            and integration_type in ("", client.integration_type)
            and (client.integration_type, OWN_CLIENT) > after
        ]
        found.sort(key=lambda client: (client.integration_type, client.name))
        page = found[:page_size]
        token = ""
        if len(found) > page_size:
            last = page[-1]
            token = await self._pages.make(_ClientCursor(integration_type, last.integration_type, last.name))
        return Page(page, token)

    async def delete_oauth_client(self, integration_type: str, name: str) -> None:
        """Delete a client without integrations. Raises `OAuthClientNotFound` or `OAuthClientInUse`."""
        if not await self.store.delete(self.providers[integration_type].integration_type, name):
            raise OAuthClientNotFound

    async def _require_valid(self, change: OAuthClientChange, provider: Provider) -> None:
        if not provider.has_authorization_page:
            raise InvalidField("integration_type", "has no authorization page, and therefore no OAuth clients")
        if change.client_secret and not provider.takes_client_secret:
            raise InvalidField("client_secret", "is not used by this integration type")
        if change.client_id == provider.oauth_client.client_id:
            raise InvalidField("client_id", "is that of the operator's own client, which has no name")
        for integration_type, name in await self.store.names_of([provider.integration_type], change.client_id):
            if name != change.name:
                raise InvalidField("client_id", f"is that of the client {name!r} of {integration_type}")
        if change.webhook_secret:
            if not provider.supports_webhooks:
                raise InvalidField("webhook_secret", "is not used: the webhooks of this type are not supported")
            if (problem := provider.webhook_secret_problem(change.webhook_secret)) is not None:
                raise InvalidField("webhook_secret", problem)

    async def _encrypted(
        self, change: OAuthClientChange, stored: StoredOAuthClient | None, secrets: ClientSecrets
    ) -> StoredOAuthClient:
        now = self.clock()
        new = StoredOAuthClient(
            uid=self.random_token() if stored is None else stored.uid,
            integration_type=change.integration_type,
            name=change.name,
            client_id=change.client_id,
            callers=change.callers,
            version=await self.store.next_version(0 if stored is None else stored.version),
            encrypted_secrets=b"",
            create_time=now if stored is None else stored.create_time,
            update_time=now,
        )
        return await self._cipher.encrypt(new, secrets)

    async def _listed(self, stored: StoredOAuthClient, alarm: SecretAlarm | None) -> OAuthClientInfo:
        """A stored client; of an altered row, only what identifies it."""
        secrets = await self._cipher.find_secrets(stored)
        if secrets is None:
            return OAuthClientInfo(stored.integration_type, stored.name, "", is_altered=True)
        return self._info(stored, secrets, alarm)

    def _info(self, stored: StoredOAuthClient, secrets: ClientSecrets, alarm: SecretAlarm | None) -> OAuthClientInfo:
        return OAuthClientInfo(
            stored.integration_type,
            stored.name,
            stored.client_id,
            stored.callers,
            has_previous_secret=len(secrets.client_secrets) > 1 or len(secrets.webhook_secrets) > 1,
            has_webhook_secret=bool(secrets.webhook_secrets),
            webhook_url=self._webhook_url(stored.integration_type, stored.name),
            alarm=alarm,
            create_time=stored.create_time,
            update_time=stored.update_time,
        )

    def _own_clients(self, alarms: dict[tuple[str, str], SecretAlarm]) -> Iterator[OAuthClientInfo]:
        for provider in self.providers.all():
            client = provider.oauth_client
            if client.client_id and provider.has_authorization_page:
                yield OAuthClientInfo(
                    provider.integration_type,
                    OWN_CLIENT,
                    client.client_id,
                    has_previous_secret=len(client.secrets) > 1 or len(client.webhook_secrets) > 1,
                    has_webhook_secret=bool(client.webhook_secrets),
                    webhook_url=self._webhook_url(provider.integration_type, OWN_CLIENT),
                    alarm=alarms.get((provider.integration_type, OWN_CLIENT)),
                )

    def _webhook_url(self, integration_type: str, name: str) -> str:
        if not self.providers[integration_type].supports_webhooks:
            return ""
        endpoint = f"app.{name}" if name else "app"
        return webhook_url(self.public_url, integration_type, endpoint)


def _changed(before: ClientSecrets, change: OAuthClientChange) -> ClientSecrets:
    """The secrets after a change. Setting the current secret again changes nothing."""
    client_secrets = _rotated(before.client_secrets, change.client_secret)
    webhook_secrets = _rotated(before.webhook_secrets, change.webhook_secret)
    if change.ends_rotation:
        client_secrets, webhook_secrets = client_secrets[:1], webhook_secrets[:1]
    token = change.webhook_verify_token or before.webhook_verify_token
    return ClientSecrets(client_secrets, webhook_secrets, token)


def _rotated(secrets: tuple[str, ...], new: str) -> tuple[str, ...]:
    return secrets if new in ("", *secrets[:1]) else (new, *secrets[:1])
