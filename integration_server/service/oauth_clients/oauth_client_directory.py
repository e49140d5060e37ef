"""The providers with the OAuth clients of integrations: implements the port `Providers`.

A client is read from its row, and cached for less than a second, so that every replica has a change within a second.
The row is authenticated: an altered one is not used, and neither is one that is older than another that this process
has read.

While a client has two secrets, a call uses the newest one first, and the previous one if it is refused. A provider that
refuses the authentication of a client has spent neither the code nor the refresh token of the request (RFC 6749 §5.2:
`invalid_client`). The same request may therefore be sent again with the other secret.
"""

import hashlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

from integration_server.domain.associated_data import AssociatedData, oauth_client_aad
from integration_server.domain.errors import (
    CallerNotAllowed,
    CredentialsUnreadable,
    InvalidField,
    ProviderMisconfigured,
    ProviderNotConfigured,
    StoreUnavailable,
)
from integration_server.domain.oauth_client import OWN_CLIENT, OAuthClient
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import (
    Aead,
    Record,
    record_nothing,
)
from integration_server.service.connections.revocation_ports import ClientScope
from integration_server.service.lookup_cache import LookupCache
from integration_server.service.oauth_clients.ports import OAuthClientStore, SecretState, StoredOAuthClient
from integration_server.service.provider_port import OAuthProvider, P, Provider, ProviderSet

T = TypeVar("T")

_MAX_CONCURRENT = 16  # lookups for calls of our own callers: thousands of tenants may be active at a time

_TTL = 0.8  # seconds; as `MAX_STALENESS` of integrations, so that a change is known within a second

_RETRY_AFTER = 300.0  # seconds until a refused secret is tried again: a provider takes minutes to know a new one
_REPORT_INTERVAL = 60.0  # seconds between two log lines about one client in the same state


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


# --- client authentication --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _SecretRecord:
    """The refused secrets of a client, and what was last reported about them.

    `retry_times`: when each refused secret is tried again, by its digest. `state` and `report_time` are what was
    reported last; nothing yet, if the time is None.
    """

    retry_times: dict[str, float] = field(default_factory=dict)
    state: SecretState | None = None
    report_time: float | None = None


@dataclass(eq=False, repr=False)
class ClientAuthentication:
    """Makes calls that authenticate as a client, with a secret of it that the provider accepts.

    A call sends at most one request more than it would with one secret. While a secret is known to be refused, no call
    tries it, except one in five minutes. If every secret is refused, a call sends one request. `monotonic` is in
    seconds. Without `skips_refused`, for negative controls, every call tries the newest secret.
    """

    store: OAuthClientStore
    tasks: DetachedTasks
    monotonic: Callable[[], float]
    _: KW_ONLY
    record_refusal: Record = record_nothing  # integration type, name of the client, "newest" or "previous"
    skips_refused: bool = True
    uses_previous: bool = True
    """Off for negative controls: then the previous secret is never used."""

    def __post_init__(self) -> None:
        self._records: dict[tuple[str, str], _SecretRecord] = {}
        self._log = structlog.get_logger(__name__)

    async def call(self, provider: P, call: Callable[[P], Awaitable[T]]) -> T:
        """The result of a call, which gets the provider with the secret to use. Raises what the call raises."""
        client, key = provider.oauth_client, (provider.integration_type, provider.oauth_client.name)
        record = self._records.setdefault(key, _SecretRecord())
        *first, last = self._secrets_to_try(client, record) or [""]
        for secret in first:
            try:
                result = await call(provider.for_client(client.using(secret)))
            except ProviderMisconfigured as error:
                self._refused(provider, record, secret)
                if error.issued_tokens is not None:
                    raise  # the client was accepted, and the code is spent
            else:
                self._accepted(provider, record, secret)
                return result
        try:
            result = await call(provider.for_client(client.using(last)) if last else provider)
        except ProviderMisconfigured:
            self._refused(provider, record, last)
            self._report(provider, record, SecretState.REFUSED)
            raise
        self._accepted(provider, record, last)
        return result

    def _secrets_to_try(self, client: OAuthClient, record: _SecretRecord) -> Sequence[str]:
        """The secrets in the order in which they are tried: those that are not known to be refused first."""
        if not self.uses_previous:
            return client.secrets[:1]
        if not self.skips_refused:
            return client.secrets
        if len(client.secrets) == 1 and not record.retry_times:
            return client.secrets
        digests = {secret: _digest(secret) for secret in client.secrets}
        record.retry_times = {key: time for key, time in record.retry_times.items() if key in digests.values()}
        now, good, refused = self.monotonic(), [], []
        for secret, digest in digests.items():
            retry_time = record.retry_times.get(digest)
            if retry_time is None or now >= retry_time:
                good.append(secret)
            else:
                refused.append(secret)
            if retry_time is not None and now >= retry_time:
                record.retry_times[digest] = now + _RETRY_AFTER  # only this call tries it again
        if good:
            return [*good, *refused]
        return sorted(refused, key=lambda secret: record.retry_times[digests[secret]])[:1]

    def _refused(self, provider: Provider, record: _SecretRecord, secret: str) -> None:
        client = provider.oauth_client
        record.retry_times[_digest(secret)] = self.monotonic() + _RETRY_AFTER
        secret_kind = "newest" if secret == client.secret else "previous"
        self.record_refusal(provider.integration_type, client.name, secret_kind)

    def _accepted(self, provider: Provider, record: _SecretRecord, secret: str) -> None:
        if record.retry_times:
            record.retry_times.pop(_digest(secret), None)
        self._report(provider, record, None if secret == provider.oauth_client.secret else SecretState.PREVIOUS_USED)

    def _report(self, provider: Provider, record: _SecretRecord, state: SecretState | None) -> None:
        """Log the state of a client and store it, if it has changed; while it is bad, also once a minute."""
        now = self.monotonic()
        is_known = record.report_time is not None and record.state is state
        if is_known and (state is None or now - (record.report_time or 0) < _REPORT_INTERVAL):
            return
        record.state, record.report_time = state, now
        client = provider.oauth_client
        names = {"integration_type": provider.integration_type, "oauth_client": client.name}
        if state is SecretState.REFUSED:
            self._log.error("invalid_client", **names, client_id=client.client_id)
        elif state is SecretState.PREVIOUS_USED:
            self._log.error("client_secret_refused", **names, client_id=client.client_id)
        self.tasks.start(self._store(provider.integration_type, client.name, state))

    async def _store(self, integration_type: str, name: str, state: SecretState | None) -> None:
        try:
            await self.store.set_alarm(integration_type, name, state)
        except StoreUnavailable:
            self._records.pop((integration_type, name), None)  # the next call reports it again


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


# --- the directory ----------------------------------------------------------------------------------------------------


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
        ending = [self.registry[integration_type] for integration_type in provider.grants_ended_by]
        everyone = [other.integration_type for other in ending if other.revocation_ends == "account"]
        rest = [other.integration_type for other in ending if other.revocation_ends != "account"]
        of_client = await self._scopes_of(rest, provider) if rest else ()
        return [*(ClientScope(integration_type, None) for integration_type in everyone), *of_client]

    async def _scopes_of(self, integration_types: Collection[str], provider: Provider) -> Sequence[ClientScope]:
        """The clients of these types that are the same app as the provider's: those with its client id."""
        client_id, types = provider.oauth_client.client_id, set(integration_types)
        itself = provider.integration_type, provider.oauth_client.name
        found = {itself} if itself[0] in types else set()
        if client_id:
            own = {
                (integration_type, OWN_CLIENT)
                for integration_type in types
                if self.registry[integration_type].oauth_client.client_id == client_id
            }
            found |= own | set(await self.store.names_of(types, client_id))
        return [ClientScope(*scope) for scope in sorted(found)]


def require_oauth(provider: Provider) -> OAuthProvider:
    """The provider with the requests of OAuth 2. Raises `InvalidField` if it has none."""
    if provider.oauth is None:
        raise InvalidField("integration_type", "is connected with ConnectWithApiKey")
    return provider.oauth
