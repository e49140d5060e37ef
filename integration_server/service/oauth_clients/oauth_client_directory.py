"""The providers with the OAuth clients of integrations: implements the port `Providers`.

A client is read from its row, and cached for less than a second, so that every replica has a change within a second.
The row is authenticated: an altered one is not used, and neither is one that is older than another that this process
has read.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

from integration_server.domain.errors import CallerNotAllowed, CredentialsUnreadable, ProviderNotConfigured
from integration_server.domain.oauth_client import OWN_CLIENT, OAuthClient
from integration_server.service.common_types import Aead, AssociatedData
from integration_server.service.connections.revocation_ports import ClientScope
from integration_server.service.credentials.credential_cipher import oauth_client_aad
from integration_server.service.lookup_cache import LookupCache
from integration_server.service.oauth_clients.client_authentication import ClientAuthentication
from integration_server.service.oauth_clients.ports import OAuthClientStore, StoredOAuthClient
from integration_server.service.provider_port import P, Provider, ProviderSet

T = TypeVar("T")

_MAX_CONCURRENT = 16  # lookups for calls of our own callers: thousands of tenants may be active at a time

_TTL = 0.8  # seconds; as `MAX_STALENESS` of integrations, so that a change is known within a second


@dataclass(frozen=True, slots=True)
class ClientSecrets:
    """The decrypted secrets of a client, the newest first; at most two of each kind."""

    client_secrets: tuple[str, ...] = ()
    webhook_secrets: tuple[str, ...] = ()
    webhook_verify_token: str = ""


_SECRETS: TypeAdapter[ClientSecrets] = TypeAdapter(ClientSecrets)


class OAuthClientCipher:
    """Encrypts the secrets of clients, each bound to the other values of its row."""

    def __init__(self, aead: Aead) -> None:
        self._aead = aead

    async def encrypt(self, client: StoredOAuthClient, secrets: ClientSecrets) -> StoredOAuthClient:
        """The client with these secrets."""
        return replace(client, encrypted_secrets=await self._aead.encrypt(_SECRETS.dump_json(secrets), _aad(client)))

    async def decrypt(self, client: StoredOAuthClient) -> ClientSecrets:
        """The secrets of a client. Raises `CredentialsUnreadable` if its row was altered."""
        plaintext = await self._aead.decrypt(client.encrypted_secrets, _aad(client))
        try:
            return _SECRETS.validate_json(plaintext)
        except ValidationError:
            raise CredentialsUnreadable from None  # pydantic's error contains its input

    async def find_secrets(self, client: StoredOAuthClient) -> ClientSecrets | None:
        """The secrets of a client; None if its row was altered."""
        try:
            return await self.decrypt(client)
        except CredentialsUnreadable:
            return None


def _aad(client: StoredOAuthClient) -> AssociatedData:
    return oauth_client_aad(
        client.uid, client.integration_type, client.name, client.client_id, client.callers, client.version
    )


@dataclass(eq=False, repr=False)
class OAuthClientDirectory:
    """Finds the provider of an integration with its OAuth client. `monotonic` is in seconds."""

    registry: ProviderSet
    store: OAuthClientStore
    aead: Aead
    authentication: ClientAuthentication
    monotonic: Callable[[], float]
    _: KW_ONLY
    checks_callers: bool = True
    """Off for negative controls: then every caller may name every client."""

    def __post_init__(self) -> None:
        self._cipher = OAuthClientCipher(self.aead)
        self._newest: dict[tuple[str, str], int] = {}
        # Two caches, so that requests to unknown webhook addresses do not delay refreshes.
        make = partial(LookupCache, self._read, self.monotonic, found_ttl=_TTL, not_found_ttl=_TTL)
        self._used, self._addressed = make(max_concurrent=_MAX_CONCURRENT), make()
        self._log = structlog.get_logger(__name__)

    def __getitem__(self, integration_type: str, /) -> Provider:
        """The provider of a type or alias, with the operator's own client. Raises `UnknownIntegrationType`."""
        return self.registry[integration_type]

    def all(self) -> Sequence[Provider]:
        """All providers, sorted by type."""
        return self.registry.all()

    async def for_client(self, integration_type: str, oauth_client: str) -> Provider:
        """The provider of a type with the client of this name.

        Raises `ProviderNotConfigured` if it does not exist any more, or `CredentialsUnreadable`.
        """
        provider = self.registry[integration_type]
        if oauth_client == OWN_CLIENT:
            return provider
        stored = await self._used.find((provider.integration_type, oauth_client))
        if stored is None:
            missing = f"the OAuth client {oauth_client!r} with PutOAuthClient"
            raise ProviderNotConfigured(provider.integration_type, [missing])
        return await self._with_client(provider, stored)

    async def for_caller(self, integration_type: str, oauth_client: str, caller: str | None) -> Provider:
        """The same for a caller that names the client; None where callers are not authenticated.

        Raises `CallerNotAllowed` for an unknown client and for one that the caller may not name, after the same
        statement: neither error tells whether the client exists.
        """
        provider = self.registry[integration_type]
        if oauth_client == OWN_CLIENT:
            return provider
        stored = await self._read((provider.integration_type, oauth_client))
        may_name = stored is not None and (caller is None or caller in stored.callers or not self.checks_callers)
        if stored is None or not may_name:
            raise CallerNotAllowed
        return await self._with_client(provider, stored)

    async def for_webhooks(self, integration_type: str, oauth_client: str) -> Provider | None:
        """The provider with the client at whose webhook address a request has arrived; None if there is none."""
        provider = self.registry[integration_type]
        if oauth_client == OWN_CLIENT:
            return provider
        stored = await self._addressed.find((provider.integration_type, oauth_client))
        return None if stored is None else await self._with_client(provider, stored)

    async def authenticated(self, provider: P, call: Callable[[P], Awaitable[T]]) -> T:
        """The result of a call that authenticates as the provider's client, with one of its secrets."""
        return await self.authentication.call(provider, call)

    async def _with_client(self, provider: Provider, stored: StoredOAuthClient) -> Provider:
        secrets = await self._cipher.decrypt(stored)
        # After the decryption: a forged version must not make the process refuse the genuine one.
        key = stored.integration_type, stored.name
        if stored.version < self._newest.get(key, 0):
            self._log.error("oauth_client_put_back", integration_type=key[0], oauth_client=key[1])
            raise CredentialsUnreadable
        self._newest[key] = stored.version
        client = OAuthClient(
            stored.client_id,
            secrets.client_secrets,
            stored.name,
            secrets.webhook_secrets,
            secrets.webhook_verify_token,
        )
        return provider.for_client(client)

    async def _read(self, key: tuple[str, str]) -> StoredOAuthClient | None:
        found = await self.store.find(*key)
        if found is None and key in self._newest:
            # It was deleted. The next one has a higher version, so that the deleted row cannot be put back.
            self._newest[key] += 1
        return found

    # --- grants that end together

    async def ended_by(self, provider: Provider) -> Sequence[ClientScope]:
        """The clients whose grants a revocation at the provider ends, if they are of the same account."""
        types = provider.shares_grants_with
        if provider.revocation_ends == "account":
            return [ClientScope(integration_type, None) for integration_type in types]
        return await self._scopes_of(types, provider) if types else ()

    async def ending(self, provider: Provider) -> Sequence[ClientScope]:
        """The clients whose revocations end grants of the provider's client."""
        others = [self.registry[integration_type] for integration_type in provider.grants_ended_by]
        everyone = [one.integration_type for one in others if one.revocation_ends == "account"]
        rest = [one.integration_type for one in others if one.revocation_ends != "account"]
        of_client = await self._scopes_of(rest, provider) if rest else ()
        return [*(ClientScope(integration_type, None) for integration_type in everyone), *of_client]

    async def _scopes_of(self, integration_types: Collection[str], provider: Provider) -> Sequence[ClientScope]:
        """The clients of these types that are the same app as the provider's: those with its client id."""
        client_id, types = provider.oauth_client.client_id, set(integration_types)
        itself = provider.integration_type, provider.oauth_client.name
        found = {itself} if itself[0] in types else set()
        if client_id:
            own = {(one, OWN_CLIENT) for one in types if self.registry[one].oauth_client.client_id == client_id}
            found |= own | set(await self.store.names_of(types, client_id))
        return [ClientScope(*one) for one in sorted(found)]
