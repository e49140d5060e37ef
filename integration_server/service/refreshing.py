"""Renewing access tokens so that none is lost: docs/refreshing.md draws it.

- The refresh is a task of the server (see `tasks.py`): callers come and go, the answer is kept.
- Within this process callers share one flight; between processes a lease in the database lets one refresh at a time.
- The version is the fence: an answer is committed over the version that it renews or not at all, whoever holds the
  lease by then.
- A lapsed lease tells whoever takes it over that the refresh token may be spent. They wait for the holder, and use the
  token again only if the provider documents that it still works.
- An answer that cannot be committed is spilled to disk, and committed when the database is back.
- An answer for an integration that has been disconnected meanwhile goes into the outbox, to be revoked.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from integration_server.domain.audit import SERVER, SUCCESS, Action, AuditEntry
from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderNotConfigured,
    ProviderUnavailable,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.integration import Failure, Integration, IntegrationId
from integration_server.service.connections import Connections, configured
from integration_server.service.ports import (
    Clock,
    IntegrationStore,
    Jitter,
    Lease,
    NewCredentials,
    OrphanedGrant,
    Provider,
    Providers,
    RandomName,
    RefreshLeases,
    Revocations,
    Spill,
    SpilledRefresh,
    StoredIntegration,
)
from integration_server.service.sealing import Vault
from integration_server.service.setbacks import DeathWatch, Setback, as_our_fault, setback
from integration_server.service.tasks import ServerTasks

_LOOK_EVERY = (
    0.05  # seconds between looks at another's refresh, growing to ten times that: most take some hundreds of ms
)
_SOON = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Renewed:
    """An integration as it is after a refresh, with the tokens that it has now."""

    integration: Integration
    tokens: OAuthTokens = field(repr=False)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for others, before their token is given up; `lease` is how long each has it."""

    lease: timedelta = timedelta(seconds=30)

    @property
    def with_holder(self) -> timedelta:
        """For a holder of the lease to end; after an outage of the database, for spilled answers to be committed."""
        return 1.5 * self.lease

    @property
    def with_lost_call(self) -> timedelta:
        """For one that called the provider, to come back with the answer."""
        return 3 * self.lease


class Refreshing:
    """Renews the tokens of one integration at a time, for all who wait for them."""

    def __init__(
        self,
        integrations: IntegrationStore,
        leases: RefreshLeases,
        spill: Spill,
        revocations: Revocations,
        connections: Connections,
        providers: Providers,
        vault: Vault,
        tasks: ServerTasks,
        clock: Clock,
        random_name: RandomName,
        jitter: Jitter,
        tell: Callable[[AuditEntry], object],
        *,
        patience: Patience,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._integrations = integrations
        self._leases = leases
        self._spill = spill
        self._revocations = revocations
        self._connections = connections
        self._providers = providers
        self._vault = vault
        self._tasks = tasks
        self._clock = clock
        self._random_name = random_name
        self._jitter = jitter
        self._tell = tell
        self._patience = patience
        self._pause = pause
        self._log = structlog.get_logger(__name__)
        self._deaths = DeathWatch()
        self._flights: dict[IntegrationId, asyncio.Task[Renewed]] = {}
        self._unreleased: deque[tuple[Lease, bool]] = deque()
        self._away_until = clock()  # as far as this process knows

    async def refresh(self, seen: Integration, *, force: bool = False) -> Renewed:
        """Tokens newer than those of the integration as it was seen, from a refresh of ours or of somebody else.

        With `force` the provider is asked even during the pause after a failure. Raises `ReauthorizationRequired`,
        `ProviderUnavailable`, `ProviderMisconfigured` or `ProviderRejected`.
        """
        return await self._tasks.outcome(self._flight(seen, None, force=force))

    async def refresh_ahead(self, due: StoredIntegration) -> bool:
        """Refresh what was just read, before anybody has to wait for it, or note that it has ended and cannot be
        refreshed; whether the provider is well, as far as that showed."""
        try:
            await self._tasks.outcome(self._flight(due.integration, due, force=False))
        except (ProviderUnavailable, ProviderMisconfigured, ProviderNotConfigured):
            return False
        except IntegrationServerError:
            return True  # about this integration, and noted there
        return True

    # --- one flight --------------------------------------------------------------------------------------------------

    def _flight(self, seen: Integration, just_read: StoredIntegration | None, *, force: bool) -> asyncio.Task[Renewed]:
        """The one that is under way, or a new one."""
        flight = self._flights.get(seen.integration_id)
        if flight is None:
            flight = self._tasks.start(self._renew(seen, just_read, force=force))
            self._flights[seen.integration_id] = flight
            flight.add_done_callback(lambda _: self._flights.pop(seen.integration_id))
        return flight

    async def _renew(self, seen: Integration, just_read: StoredIntegration | None, *, force: bool) -> Renewed:
        """Look until there are newer tokens, whoever gets them."""
        begun, looks = self._clock(), 0
        current = await (self._current(seen) if just_read is None else self._opened(just_read))
        while True:
            if current.integration.version != seen.version and not current.tokens.has_expired(self._clock()):
                return current
            await self._require_renewable(current, force=force)
            # Who has waited asks first: only those who find it free write.
            if looks == 0 or await self._leases.is_free(current.integration):
                renewed = await self._renew_alone(current)
                if renewed is not None:
                    return renewed
            if self._clock() - begun > self._patience.with_holder:
                raise ProviderUnavailable("another refresh of this integration has not ended", retry_after=_SOON)
            looks += 1
            await self._pause(_LOOK_EVERY * min(looks, 10) * (0.5 + self._jitter()))
            current = await self._current(seen)

    async def _require_renewable(self, current: Renewed, *, force: bool) -> None:
        if current.tokens.refresh_token is None:
            if current.tokens.has_expired(self._clock()):  # only time did that, so nobody has noted it yet
                self._log.warning("token_has_ended", **_names(current.integration))
                met = Setback(ReauthorizationRequired(), reauthorization_required=True)
                await self._record(current.integration, met)
            raise ReauthorizationRequired
        retry_time = current.integration.refresh_retry_time
        if retry_time is not None and retry_time > self._clock() and not force:
            raise ProviderUnavailable(
                "the provider has failed lately, and gets a pause", retry_after=retry_time - self._clock()
            )

    async def _renew_alone(self, current: Renewed) -> Renewed | None:
        """Refresh under a lease. None if there is none to be had, and so something new to look at, or soon."""
        integration = current.integration
        provider = configured(self._providers.get(integration.integration_type))
        begun = self._clock()
        lease = await self._claim(integration)
        if lease is None:
            return None
        settled, version = True, lease.version
        try:
            await self._require_unspent(lease, integration, provider)
            if provider.refresh_token_grace and self._clock() - begun >= self._patience.lease:
                return None  # we slept, and another may have used the token; without a grace our mark keeps all from it
            settled = False
            try:
                answer = await provider.renew(current.tokens)
            except ProviderError as error:
                settled = True
                return await self._after_failure(integration, error)
            renewed, settled = await self._commit(integration, current.tokens.renewed_by(answer))
            version = renewed.integration.version
        finally:
            if version == lease.version:  # otherwise it is void
                await self._release(lease, settled=settled)
        if renewed.tokens.has_expired(self._clock()):  # stored all the same: the refresh token may have rotated
            raise ProviderUnavailable("the provider answered with a token that has expired")
        return renewed

    async def _claim(self, integration: Integration) -> Lease | None:
        """A lease, if it is to be had. One that was given and did not arrive must not look like a lost call."""
        owner = self._random_name()
        try:
            return await self._leases.claim(integration, owner)
        except (StoreUnavailable, asyncio.CancelledError) as error:
            lost = Lease(integration.integration_id, integration.version, owner, called_ago=None)
            if isinstance(error, StoreUnavailable):
                self._unreleased.append((lost, True))
            else:
                await self._release(lost, settled=True)
            raise

    async def _require_unspent(self, lease: Lease, integration: Integration, provider: Provider) -> None:
        """Use a refresh token that another has used, and not come back, only where the provider allows it."""
        if lease.called_ago is None or lease.called_ago < provider.refresh_token_grace:
            return
        since_away = self._clock() - self._away_until  # a call grows old in an outage, in which nobody can come back
        wait = max(self._patience.with_lost_call - lease.called_ago, self._patience.with_holder - since_away)
        if wait > timedelta(0):
            raise ProviderUnavailable("an earlier refresh has not come back yet", retry_after=wait)
        if await self._is_spilled(integration):
            raise ProviderUnavailable("an earlier refresh is about to be stored", retry_after=_SOON)
        self._log.error("refresh_lost", **_names(integration))
        await self._record(integration, Setback(ReauthorizationRequired(), reauthorization_required=True))
        raise ReauthorizationRequired

    async def _is_spilled(self, integration: Integration) -> bool:
        answered = (integration.integration_id, integration.version)
        return any((kept.integration_id, kept.version) == answered for kept in await self._spill.kept())

    async def _release(self, lease: Lease, *, settled: bool) -> None:
        try:
            await self._leases.release(lease, settled=settled)
        except Exception:  # `recover` tries again, and tells
            self._unreleased.append((lease, settled))

    async def _current(self, seen: Integration) -> Renewed:
        stored = await self._integrations.find(seen.integration_id, seen.user_id)
        if stored is None:
            raise IntegrationNotFound
        return await self._opened(stored)

    async def _opened(self, stored: StoredIntegration) -> Renewed:
        stored.integration.require_usable()
        tokens = await self._vault.open(stored)
        if not isinstance(tokens, OAuthTokens):
            raise ReauthorizationRequired  # connected anew with a key; there is nothing to refresh
        return Renewed(stored.integration, tokens)

    # --- success -----------------------------------------------------------------------------------------------------

    async def _commit(self, integration: Integration, tokens: OAuthTokens) -> tuple[Renewed, bool]:
        """Store an answer; whether that settles what became of the call."""
        self._deaths.note(integration.integration_type, died=False, now=self._clock())
        asked = (*integration.scopes, *integration.missing_scopes)
        new = await self._connections.sealed(integration, tokens, asked)
        try:
            committed = await self._integrations.commit_refresh(integration, new, self._clock())
            renewed = await self._overtaken(integration, new) if committed is None else Renewed(committed, tokens)
        except Exception as error:  # whatever it is, the provider gives this answer only once
            if isinstance(error, IntegrationServerError) and not isinstance(error, StoreUnavailable):
                raise  # about what there is by now instead
            await self._keep(integration, new, error)
            return Renewed(replace(integration, scopes=new.scopes), tokens), False
        self._tell(self._entry(integration, SUCCESS))
        self._log.info(
            "refreshed", **_names(integration), expire_time=renewed.tokens.expire_time, overtaken=committed is None
        )
        return renewed, True

    async def _overtaken(self, integration: Integration, new: NewCredentials) -> Renewed:
        """What there is by now instead of an answer; the answer is to be revoked if that is nothing."""
        try:
            return await self._current(integration)
        except IntegrationNotFound:
            await self._revocations.add(_orphaned(integration, new))
            raise

    async def _keep(self, integration: Integration, new: NewCredentials, error: Exception) -> None:
        await self._spill.keep(
            SpilledRefresh(
                integration.integration_id,
                integration.user_id,
                integration.version,
                new,
                integration.uid,
                integration.integration_type,
                integration.account_id,
            )
        )
        self._log.warning("refresh_spilled", **_names(integration), kind=type(error).__qualname__)

    async def recover(self) -> None:
        """Do what could not be done while the database was away: commit what was spilled, also before a restart, and
        release leases. What was overtaken meanwhile is dropped, and revoked if its integration is gone.
        """
        try:
            await self._integrations.ping()
        except StoreUnavailable:
            self._away_until = self._clock()
            raise
        trouble = [error for kept in await self._spill.kept() if (error := await self._recover(kept)) is not None]
        while self._unreleased:
            lease, settled = self._unreleased.popleft()
            try:
                await self._leases.release(lease, settled=settled)
            except Exception:
                self._unreleased.append((lease, settled))
                raise
        if trouble:
            raise ExceptionGroup("spilled refreshes cannot be stored", trouble)

    async def _recover(self, refresh: SpilledRefresh) -> Exception | None:
        """Store an answer and drop it; or what keeps it from being stored, which keeps none of the others back."""
        try:
            is_committed = await self._committed(refresh)
        except StoreUnavailable:
            raise
        except Exception as error:
            return error
        await self._spill.drop(refresh)
        self._log.warning(
            "spilled_refresh_recovered", integration_id=refresh.integration_id, overtaken=not is_committed
        )
        return None

    async def _committed(self, refresh: SpilledRefresh) -> bool:
        stored = await self._integrations.find(refresh.integration_id, refresh.user_id)
        if stored is not None and refresh.uid not in {stored.integration.uid, None}:
            raise LookupError("spilled for an integration of another database")
        if stored is not None and stored.integration.version == refresh.version:
            now = self._clock()
            if await self._integrations.commit_refresh(stored.integration, refresh.credentials, now) is not None:
                return True
            stored = await self._integrations.find(refresh.integration_id, refresh.user_id)
        if stored is None:
            await self._revoke(refresh)
        return False

    async def _revoke(self, refresh: SpilledRefresh) -> None:
        if refresh.uid is None or refresh.integration_type is None:
            self._log.error("grant_left_behind", integration_id=refresh.integration_id, user_id=refresh.user_id)
            return
        sealed = refresh.credentials.sealed_credentials
        await self._revocations.add(
            OrphanedGrant(refresh.uid, refresh.user_id, refresh.integration_type, refresh.account_id, sealed)
        )

    # --- failure -----------------------------------------------------------------------------------------------------

    async def _after_failure(self, integration: Integration, error: ProviderError) -> Renewed:
        """Tokens that somebody else got meanwhile; or raise what the failure means, once it is noted."""
        self._tell(self._entry(integration, error.reason))
        self._log.warning(
            "refresh_failed", **_names(integration), error_class=error.reason, oauth_error=error.oauth_error
        )
        if isinstance(error, ProviderMisconfigured):
            self._log.error("client_refused", integration_type=integration.integration_type)
            raise error  # no user can mend it, so no user's integration is marked
        met = setback(integration, error, self._clock(), self._jitter)
        if met.reauthorization_required:
            # The token may be dead because another replica has renewed it.
            current = await self._current(integration)
            if current.integration.version != integration.version:
                return current
            self._deaths.note(integration.integration_type, died=True, now=self._clock())
            if self._deaths.is_epidemic(integration.integration_type):
                self._log.error("many_grants_refused", integration_type=integration.integration_type)
                met = as_our_fault(integration, self._clock(), self._jitter)
        await self._record(integration, met)
        if met.reauthorization_required:
            self._deaths.believe(integration, self._clock())
        await self._take_back(integration.integration_type)
        raise met.error from error

    async def _take_back(self, integration_type: str) -> None:
        """Have those tried again whose deaths were believed before so many came that none is."""
        now = self._clock()
        for believed in self._deaths.taken_back(integration_type, now):
            retry_time = as_our_fault(believed, now, self._jitter).retry_time
            try:
                await self._integrations.take_back_failure(believed, retry_time)
            except StoreUnavailable:
                self._deaths.believe(believed, now)
                raise
            self._log.warning("death_taken_back", **_names(believed))

    async def _record(self, integration: Integration, met: Setback) -> None:
        now = self._clock()
        is_ours = isinstance(met.error, ProviderMisconfigured)
        await self._integrations.record_failure(
            integration,
            None if is_ours else Failure(met.error.reason, now, str(met.error)),
            reauthorization_required=met.reauthorization_required,
            retry_time=met.retry_time,
            failures=met.failures,
            refusals=met.refusals,
            refresh_due_time=met.retry_time or now + _SOON,
        )

    def _entry(self, integration: Integration, outcome: str) -> AuditEntry:
        return AuditEntry(
            self._clock(),
            SERVER,
            Action.REFRESH,
            integration.user_id,
            integration.integration_id,
            integration.integration_type,
            outcome,
        )


def _orphaned(integration: Integration, new: NewCredentials) -> OrphanedGrant:
    return OrphanedGrant(
        integration.uid,
        integration.user_id,
        integration.integration_type,
        integration.account_id,
        new.sealed_credentials,
    )


def _names(integration: Integration) -> dict[str, object]:
    return {"integration_id": integration.integration_id, "integration_type": integration.integration_type}
