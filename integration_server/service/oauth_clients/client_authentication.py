"""Client authentication while a client has two secrets: the newest one first, the previous one if it is refused.

A provider that refuses the authentication of a client has spent neither the code nor the refresh token of the request
(RFC 6749 §5.2: `invalid_client`). The same request may therefore be sent again with the other secret.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeVar

import structlog

from integration_server.domain.errors import ProviderMisconfigured, StoreUnavailable
from integration_server.domain.oauth_client import OAuthClient
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Record, record_nothing
from integration_server.service.oauth_clients.ports import OAuthClientStore, SecretState
from integration_server.service.provider_port import P, Provider

T = TypeVar("T")

_RETRY_AFTER = 300.0  # seconds until a refused secret is tried again: a provider takes minutes to know a new one
_REPORT_INTERVAL = 60.0  # seconds between two log lines about one client in the same state


@dataclass(eq=False)
class _Memory:
    """What this process knows about the secrets of a client.

    `retry_times`: when each refused secret is tried again, by its digest. `state` and `report_time` are what was
    reported last; nothing yet, if the time is None.
    """

    retry_times: dict[str, float] = field(default_factory=dict)
    state: SecretState | None = None
    report_time: float | None = None


@dataclass(eq=False, repr=False)
class ClientAuthentication:
    """Makes calls that authenticate as a client, and remembers which of its secrets the provider accepts.

    A call sends at most one request more than it would with one secret. While a secret is known to be refused, no call
    tries it, except one in five minutes. If every secret is refused, a call sends one request. `monotonic` is in
    seconds. Without `remembers`, for negative controls, every call tries the newest secret.
    """

    store: OAuthClientStore
    tasks: DetachedTasks
    monotonic: Callable[[], float]
    _: KW_ONLY
    record_refusal: Record = record_nothing  # integration type, name of the client, "newest" or "previous"
    remembers: bool = True
    uses_previous: bool = True
    """Off for negative controls: then the previous secret is never used."""

    def __post_init__(self) -> None:
        self._memories: dict[tuple[str, str], _Memory] = {}
        self._log = structlog.get_logger(__name__)

    async def call(self, provider: P, call: Callable[[P], Awaitable[T]]) -> T:
        """The result of a call, which gets the provider with the secret to use. Raises what the call raises."""
        client, key = provider.oauth_client, (provider.integration_type, provider.oauth_client.name)
        memory = self._memories.setdefault(key, _Memory())
        *first, last = self._secrets_to_try(client, memory) or [""]
        for secret in first:
            try:
                result = await call(provider.for_client(client.using(secret)))
            except ProviderMisconfigured as error:
                self._refused(provider, memory, secret)
                if error.issued_tokens is not None:
                    raise  # the client was accepted, and the code is spent
            else:
                self._accepted(provider, memory, secret)
                return result
        try:
            result = await call(provider.for_client(client.using(last)) if last else provider)
        except ProviderMisconfigured:
            self._refused(provider, memory, last)
            self._report(provider, memory, SecretState.REFUSED)
            raise
        self._accepted(provider, memory, last)
        return result

    def _secrets_to_try(self, client: OAuthClient, memory: _Memory) -> Sequence[str]:
        """The secrets in the order in which they are tried: those that are not known to be refused first."""
        if not self.uses_previous:
            return client.secrets[:1]
        if not self.remembers:
            return client.secrets
        if len(client.secrets) == 1 and not memory.retry_times:
            return client.secrets
        digests = {secret: _digest(secret) for secret in client.secrets}
        memory.retry_times = {key: time for key, time in memory.retry_times.items() if key in digests.values()}
        now, good, refused = self.monotonic(), [], []
        for secret, digest in digests.items():
            retry_time = memory.retry_times.get(digest)
            if retry_time is None or now >= retry_time:
                good.append(secret)
            else:
                refused.append(secret)
            if retry_time is not None and now >= retry_time:
                memory.retry_times[digest] = now + _RETRY_AFTER  # only this call tries it again
        if good:
            return [*good, *refused]
        return sorted(refused, key=lambda secret: memory.retry_times[digests[secret]])[:1]

    def _refused(self, provider: Provider, memory: _Memory, secret: str) -> None:
        client = provider.oauth_client
        memory.retry_times[_digest(secret)] = self.monotonic() + _RETRY_AFTER
        which = "newest" if secret == client.secret else "previous"
        self.record_refusal(provider.integration_type, client.name, which)

    def _accepted(self, provider: Provider, memory: _Memory, secret: str) -> None:
        if memory.retry_times:
            memory.retry_times.pop(_digest(secret), None)
        self._report(provider, memory, None if secret == provider.oauth_client.secret else SecretState.PREVIOUS_USED)

    def _report(self, provider: Provider, memory: _Memory, state: SecretState | None) -> None:
        """Log the state of a client and store it, if it has changed; while it is bad, also once a minute."""
        now = self.monotonic()
        is_known = memory.report_time is not None and memory.state is state
        if is_known and (state is None or now - (memory.report_time or 0) < _REPORT_INTERVAL):
            return
        memory.state, memory.report_time = state, now
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
            self._memories.pop((integration_type, name), None)  # the next call reports it again


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
