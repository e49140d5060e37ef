"""The credential service: returns valid credentials, and refreshes them first if necessary."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.call_budget import time_left
from integration_server.domain.credentials import Credentials, OAuthTokens, RefreshCause, RequestAuth
from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationServerError,
    ProviderError,
    ProviderNotConfigured,
    ProviderUnavailable,
    ReauthorizationRequired,
    ResponseTooLarge,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.domain.oauth_client import OWN_CLIENT
from integration_server.service.common_types import Clock
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.integrations.ports import (
    IntegrationLookup,
    IntegrationStore,
    IntegrationTarget,
)
from integration_server.service.provider_port import Providers, ProviderSet

_WAIT_SHARE = 0.75  # of the time until the caller's deadline; the rest is for the response
_MAX_BATCH_WAIT = 30.0  # seconds for the refreshes of a batch, also without a deadline: three slow provider calls
_CONCURRENT_REFRESHES = 32  # of one batch: the lease and the commit of each need a database connection for a moment
_ITEMS_PER_SLICE = 50  # some three milliseconds; other calls run between two slices


class CredentialRequest(NamedTuple):
    """A request for the credentials of an integration. `user_id` is None for any user."""

    integration_id: IntegrationId
    user_id: UserId | None
    min_ttl: timedelta | None = None
    required_scopes: Sequence[str] = ()

    @property
    def target(self) -> IntegrationTarget:
        """The integration and its user."""
        return self.integration_id, self.user_id


@dataclass(frozen=True, slots=True)
class UsableCredentials:
    """Credentials with the data that a caller needs to use them."""

    credentials: Credentials = field(repr=False)
    scopes: tuple[str, ...]
    request_auth: RequestAuth = field(repr=False)
    integration: Integration | None = None
    valid_until: datetime | None = None
    """Until when they last as long as the caller has asked for, while the integration is unchanged. None: always."""


@dataclass(frozen=True, slots=True)
class TokenState:
    """The outcome of `refresh_token`. `expire_time` is None for a token that never expires.

    `retry_after` is set if the provider was not called because the last refresh is too recent.
    """

    refreshed: bool
    expire_time: datetime | None
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class RefreshNeed:
    """A request whose credentials are to be refreshed first."""

    request: CredentialRequest
    as_stored: RefreshResult
    cause: RefreshCause


@dataclass(eq=False, repr=False)
class CredentialService:
    """Reads and decrypts credentials, and has them refreshed where necessary.

    `buffer` is the minimum lifetime where a caller names none. `lookup` may be a cache; `refresh_token` reads the
    store. `own_clients` has the providers with the operator's own OAuth clients, which need no look-up.
    """

    lookup: IntegrationLookup
    integrations: IntegrationStore
    own_clients: ProviderSet
    providers: Providers
    cipher: CredentialCipher
    refresher: TokenRefresher
    clock: Clock
    _: KW_ONLY
    buffer: timedelta
    max_batch_bytes: int = 4 * 1024 * 1024

    async def get_credentials(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        min_ttl: timedelta | None,
        required_scopes: Sequence[str],
    ) -> UsableCredentials:
        """Credentials that last for `min_ttl`; by default the buffer, or half of the token's lifetime if shorter."""
        return await self._usable(await self.get_usable(integration_id, user_id, min_ttl, required_scopes), min_ttl)

    async def get_many(
        self,
        requests: Sequence[CredentialRequest | IntegrationServerError],
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> Sequence[UsableCredentials | Exception]:
        """For each request what `get_credentials` returns or raises. An error in place of a request stays as it is.

        What is not cached is read with one statement. Necessary refreshes run concurrently, until three quarters of the
        caller's time are over: then tokens that still work are returned, and `ProviderUnavailable` for the others.
        """
        remaining = time_left()
        wait = _MAX_BATCH_WAIT if remaining is None else min(remaining * _WAIT_SHARE, _MAX_BATCH_WAIT)
        end = asyncio.get_running_loop().time() + wait
        found = await self.find_many(requests, allowed_types)
        outcomes: list[UsableCredentials | Exception] = []
        due: list[tuple[int, RefreshNeed]] = []
        for index, (request, stored) in enumerate(zip(requests, found, strict=True)):
            outcome = await self.prepare(request, stored)
            if isinstance(outcome, RefreshNeed):
                due.append((index, outcome))
                outcome = ProviderUnavailable("the refresh takes longer than the caller waits")
            outcomes.append(outcome)
            if index % _ITEMS_PER_SLICE == _ITEMS_PER_SLICE - 1:
                await asyncio.sleep(0)
        needs = iter(due)

        async def refresh_next(needs: Iterable[tuple[int, RefreshNeed]]) -> None:
            for index, need in needs:
                outcomes[index] = await self.satisfy(need, max(0.0, end - asyncio.get_running_loop().time()))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(len(due), _CONCURRENT_REFRESHES)):
                group.create_task(refresh_next(needs))
        return outcomes

    async def find_many(
        self,
        requests: Sequence[CredentialRequest | IntegrationServerError],
        allowed_types: AllowedTypes,
        *,
        past_cache: bool = False,
    ) -> Sequence[StoredIntegration | IntegrationServerError]:
        """The integrations of requests, or an error in place of each that cannot be read."""
        targets = {request.target for request in requests if isinstance(request, CredentialRequest)}
        lookup: IntegrationLookup = self.integrations if past_cache else self.lookup
        try:
            found = await lookup.find_many(targets, self.max_batch_bytes, allowed_types)
        except StoreUnavailable as error:
            return [request if isinstance(request, IntegrationServerError) else error for request in requests]
        results: list[StoredIntegration | IntegrationServerError] = []
        for request in requests:
            if isinstance(request, IntegrationServerError):
                results.append(request)
            elif (stored := found.of(request.target)) is not None:
                results.append(stored)
            else:
                results.append(
                    ResponseTooLarge.of_batch() if request.integration_id in found.omitted else IntegrationNotFound()
                )
        return results

    async def prepare(
        self, request: CredentialRequest | IntegrationServerError, stored: StoredIntegration | IntegrationServerError
    ) -> "UsableCredentials | RefreshNeed | Exception":
        """The credentials of an integration that was read for a request, if they need no refresh; or an error."""
        if isinstance(request, IntegrationServerError):
            return request
        if isinstance(stored, IntegrationServerError):
            return stored
        try:
            stored.integration.require_usable()
            _require_scopes(stored.integration, request.required_scopes)
            as_stored = RefreshResult(stored.integration, await self.cipher.decrypt(stored))
            cause = self._necessary_refresh(as_stored, request.min_ttl)
            if cause is None:
                return await self._usable(as_stored, request.min_ttl)
            return RefreshNeed(request, as_stored, cause)
        except Exception as error:  # of this item only: the others have their own results
            return error

    async def satisfy(self, need: "RefreshNeed", wait: float | None) -> UsableCredentials | Exception:
        """The credentials after a refresh, as `get_credentials` returns them; or an error. `wait` is in seconds."""
        try:
            fresh = await self._refreshed_in(need.as_stored, need.cause, wait)
            _require_scopes(fresh.integration, need.request.required_scopes)
            return await self._usable(fresh, need.request.min_ttl)
        except Exception as error:  # of this item only
            return error

    async def _usable(self, fresh: RefreshResult, min_ttl: timedelta | None) -> UsableCredentials:
        integration = fresh.integration
        integration_type, oauth_client = integration.integration_type, integration.oauth_client
        provider = self.own_clients[integration_type]
        if oauth_client != OWN_CLIENT:
            provider = await self.providers.for_client(integration_type, oauth_client)
        return UsableCredentials(
            fresh.credentials,
            integration.scopes,
            provider.request_auth(fresh.credentials),
            integration,
            self.valid_until(fresh.credentials, min_ttl),
        )

    async def get_usable(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        min_ttl: timedelta | None = None,
        required_scopes: Sequence[str] = (),
    ) -> RefreshResult:
        """The credentials of a usable integration, refreshed first where necessary. Raises `ScopeMissing`."""
        stored = await self.lookup.get(integration_id, user_id)
        stored.integration.require_usable()
        _require_scopes(stored.integration, required_scopes)
        fresh = await self.fresh(stored, min_ttl)
        _require_scopes(fresh.integration, required_scopes)  # a refresh may grant less (RFC 6749 §6)
        return fresh

    async def newer(self, rejected: RefreshResult) -> RefreshResult | None:
        """Credentials newer than those whose access token the provider's API has rejected. None if there are none now.

        Raises `ReauthorizationRequired` if the token endpoint has refused the grant.
        """
        try:
            return await self.refreshed(rejected)
        except (ProviderError, ProviderNotConfigured):
            return None  # recorded by the refresher; the rejection is what the caller knows

    async def refreshed(
        self, rejected: RefreshResult, cause: RefreshCause = RefreshCause.REJECTION
    ) -> RefreshResult | None:
        """Credentials newer than rejected ones, from a refresh by any process. None if there are none.

        An API that rejects every token causes one refresh per minimum interval, unless `cause` is another. Raises
        `ProviderUnavailable` during the pause after a failed one.
        """
        credentials = rejected.credentials
        if not isinstance(credentials, OAuthTokens) or not credentials.is_renewable:
            return None
        refreshed = await self.refresher.refresh(rejected.integration, cause)
        return refreshed if refreshed.retry_after is None else None

    async def fresh(self, stored: StoredIntegration, min_ttl: timedelta | None = None) -> RefreshResult:
        """The decrypted credentials of a usable integration, refreshed first where necessary.

        A token that still works is served even if its refresh fails, or takes longer than the caller can wait; an
        expired one never is.
        """
        as_stored = RefreshResult(stored.integration, await self.cipher.decrypt(stored))
        cause = self._necessary_refresh(as_stored, min_ttl)
        if cause is None:
            return as_stored
        remaining = time_left()
        # For an expired token the caller waits as long as it can.
        max_wait = None if remaining is None or self._has_expired(as_stored.credentials) else remaining * _WAIT_SHARE
        return await self._refreshed_in(as_stored, cause, max_wait)

    async def _refreshed_in(self, as_stored: RefreshResult, cause: RefreshCause, wait: float | None) -> RefreshResult:
        """Credentials from a refresh that takes at most `wait` seconds; else the present ones, while they work."""
        try:
            async with asyncio.timeout(wait):
                return await self.refresher.refresh(as_stored.integration, cause)
        except (ProviderError, ProviderNotConfigured, StoreUnavailable, TimeoutError) as error:
            if not self._has_expired(as_stored.credentials):
                return as_stored
            if isinstance(error, TimeoutError):
                raise ProviderUnavailable("the refresh takes longer than the caller waits") from None
            raise

    async def refresh_token(self, integration_id: IntegrationId, user_id: UserId, *, force: bool) -> TokenState:
        """Refresh a token that is about to expire, or any token with `force`, which also revives a grant that works."""
        stored = await self.integrations.get(integration_id, user_id)
        if force:
            stored.integration.require_active()
        else:
            stored.integration.require_usable()
        credentials = await self.cipher.decrypt(stored)
        if not isinstance(credentials, OAuthTokens):
            stored.integration.require_usable()
            return TokenState(refreshed=False, expire_time=None)
        cause = self._refresh_cause(credentials, None)
        if force and (cause is None or not _is_untried(stored.integration)):
            cause = RefreshCause.FORCE
        if cause is None:
            return TokenState(refreshed=False, expire_time=credentials.expire_time)
        if not credentials.is_renewable:
            raise ReauthorizationRequired
        refreshed = await self.refresher.refresh(stored.integration, cause)
        return TokenState(refreshed.retry_after is None, refreshed.tokens.expire_time, refreshed.retry_after)

    def _has_expired(self, credentials: Credentials) -> bool:
        return isinstance(credentials, OAuthTokens) and credentials.has_expired(self.clock())

    def _necessary_refresh(self, as_stored: RefreshResult, min_ttl: timedelta | None) -> RefreshCause | None:
        """Why to refresh credentials before they are returned; None if they are good enough, or cannot be refreshed."""
        credentials = as_stored.credentials
        if not isinstance(credentials, OAuthTokens):
            return None
        if not credentials.is_renewable and not credentials.has_expired(self.clock()):
            return None
        return self._refresh_cause(credentials, min_ttl)

    def _refresh_cause(self, tokens: OAuthTokens, min_ttl: timedelta | None) -> RefreshCause | None:
        """Why to refresh tokens so that they last for `min_ttl`, or for the buffer if None; None if they do.

        No token lasts longer than its lifetime, whatever a caller asks for. One that had expired when it was issued is
        no reason to call the provider more often.
        """
        buffer, now = tokens.buffer(self.buffer), self.clock()
        ttl = buffer if min_ttl is None else min_ttl
        if tokens.is_good_for(self._required_ttl(tokens, min_ttl), now):
            return None
        was_usable = tokens.lifetime is None or tokens.lifetime > timedelta(0)
        if was_usable and not tokens.is_good_for(min(ttl, buffer), now):
            return RefreshCause.EXPIRY
        return RefreshCause.DEMAND

    def _required_ttl(self, tokens: OAuthTokens, min_ttl: timedelta | None) -> timedelta:
        ttl = tokens.buffer(self.buffer) if min_ttl is None else min_ttl
        return ttl if tokens.lifetime is None else min(ttl, tokens.lifetime)

    def valid_until(self, credentials: Credentials, min_ttl: timedelta | None) -> datetime | None:
        """Until when credentials last for `min_ttl` (None: the buffer), or for their lifetime. None: always."""
        if not isinstance(credentials, OAuthTokens) or credentials.expire_time is None:
            return None
        now = self.clock()  # a caller may ask for ten thousand years: more than there are before the expiry
        return credentials.expire_time - min(self._required_ttl(credentials, min_ttl), credentials.expire_time - now)


def ttl_at(credentials: Credentials, time: float) -> float | None:
    """How many seconds credentials last from this time on, in seconds since the epoch; None: always."""
    if not isinstance(credentials, OAuthTokens) or credentials.expire_time is None:
        return None
    return credentials.expire_time.timestamp() - time


def _is_untried(integration: Integration) -> bool:
    """Whether no refresh of these credentials has failed. Otherwise a necessary refresh with `force` is forced too."""
    return integration.is_usable and integration.refresh_retry_time is None and not integration.refresh_failures


def _require_scopes(integration: Integration, scopes: Sequence[str]) -> None:
    missing = scopes and [scope for scope in scopes if scope not in integration.scopes]
    if missing:
        raise ScopeMissing(missing)
