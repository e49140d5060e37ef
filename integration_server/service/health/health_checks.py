"""Health checks of integrations, on demand and in the background."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    QuotaExceeded,
    ReauthorizationRequired,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.health import ErrorRate, HealthCheck, HealthCounts
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, StoredIntegration, UserId
from integration_server.service.background.detached_tasks import DetachedTasks, SingleFlight
from integration_server.service.background.ports import Claim
from integration_server.service.common_types import Aead, Clock, loop_time
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.health.check_budget import BURST, CheckBudget
from integration_server.service.health.ports import CompletedCheck, HealthHistory
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.integrations.ports import (
    IntegrationLists,
    IntegrationStore,
)
from integration_server.service.provider_port import Providers

RATE_WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=7))

_MAX_CONCURRENT = 8  # checks of a user at one provider, so that a user with many accounts does not overload it


@dataclass(frozen=True, slots=True)
class HealthReport(Page[HealthCheck]):
    """The checks of a page of a user's integrations, started at `check_time`. `counts` are of all pages together."""

    counts: HealthCounts
    check_time: datetime


@dataclass(frozen=True, slots=True)
class HealthCheckPage(Page[HealthCheck]):
    """A page of an integration's checks, newest first, with its error rates."""

    error_rates: Sequence[ErrorRate]


@dataclass(eq=False, repr=False)
class HealthChecker:
    """Checks whether integrations are usable and whether their providers accept the credentials.

    `deadline` is the time for a check, and for all checks of a call. Checks are stored for `retention`. An integration
    that is checked again and again is checked at its provider once in `min_interval`; see `CheckBudget`. A page has at
    most `max_page_bytes`.
    """

    integrations: IntegrationStore
    lists: IntegrationLists
    history: HealthHistory
    providers: Providers
    credentials: CredentialService
    aead: Aead
    tasks: DetachedTasks
    clock: Clock
    schedule: Schedule
    monotonic: Callable[[], float]
    _: KW_ONLY
    deadline: timedelta
    retention: timedelta
    min_interval: timedelta
    max_page_bytes: int

    def __post_init__(self) -> None:
        self._check_pages = PageTokens(self.aead, "health-check-page", int)
        self._report_pages = PageTokens(self.aead, "health-report-page", int)
        self._cipher = CredentialCipher(self.aead)
        self._reports = SingleFlight[tuple[object, ...], HealthReport](self.tasks)
        self._checks = SingleFlight[tuple[IntegrationId, int], _SharedCheck](self.tasks)
        self._budget = CheckBudget(BURST, self.min_interval, self.monotonic)
        self._slots: WeakValueDictionary[tuple[UserId, str], asyncio.Semaphore] = WeakValueDictionary()

    async def check_health(self, integration_id: IntegrationId, user_id: UserId) -> HealthCheck:
        """Check one integration. Raises `IntegrationNotFound` or `IntegrationPending`."""
        stored = await self.integrations.get(integration_id, user_id)
        stored.integration.require_connected()
        return await self._check(stored, None)

    async def check_due(self, claim: Claim[StoredIntegration]) -> bool:
        """Check a due integration: the handler of the background job. Returns whether the provider is healthy.

        Raises `QuotaExceeded` if the user has so many checks at this provider that it was not checked.
        """
        stored = await self._redacted(claim.item)
        shared = await self._checks.run(_flight_key(stored), lambda: self._check_live(stored, None))
        if all(completed.check is not shared.check for completed in shared.batch.completed):
            raise QuotaExceeded("that check the integrations of one user")
        return shared.check.error_class not in {ProviderUnavailable.reason, ProviderMisconfigured.reason}

    async def check_all_health(
        self,
        user_id: UserId,
        page_size: int,
        page_token: str,
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> HealthReport:
        """Check a page of the user's connected integrations of the allowed types, all concurrently, and count all.

        Equal concurrent calls share one run. The number of statements depends neither on the page nor on the number of
        integrations, apart from refreshes of expired tokens.
        """
        types = allowed_types.integration_types
        return await self._reports.run(
            (user_id, types, page_size, page_token),
            lambda: self._check_page(user_id, types, page_size, page_token),
        )

    async def _check_page(
        self, user_id: UserId, types: Collection[str] | None, page_size: int, page_token: str
    ) -> HealthReport:
        start_time, list_id = self.clock(), (user_id,)
        after = IntegrationId(await self._report_pages.read(page_token, list_id) or 0)
        page = await self.lists.list_connected(user_id, types, after, page_size, self.max_page_bytes)
        checks = await self._check_together(page.items)
        counts = await self.history.counts(user_id, types, self.clock())  # with the outcome of these checks
        token = ""
        if not page.is_last:
            token = await self._report_pages.make(list_id, page.items[-1].integration.integration_id)
        return HealthReport(checks, token, counts, start_time)

    async def _check_together(self, page: Sequence[StoredIntegration]) -> Sequence[HealthCheck]:
        """Check integrations concurrently and store the outcomes together, also those that other calls have begun."""
        batch = _CheckBatch()
        results = await asyncio.gather(*(self._check(stored, batch) for stored in page), return_exceptions=True)
        await self._store(batch)
        for other in batch.joined:
            await other.stored.wait()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, HealthCheck)]

    async def _store(self, batch: "_CheckBatch") -> None:
        try:
            if batch.completed:
                await self.history.record(batch.completed)
        finally:
            batch.stored.set()

    async def _check(self, stored: StoredIntegration, batch: "_CheckBatch | None") -> HealthCheck:
        """Check an integration for a caller: live, unless it is inactive or was checked too often.

        The outcome of a check that this call begins is stored with the batch, or at once without one.
        """
        stored = await self._redacted(stored)
        integration, key = stored.integration, _flight_key(stored)
        if not integration.is_active:
            return _without_check(integration, self.clock(), "The integration is switched off")
        if not self._checks.is_running(key) and not self._budget.take(integration.integration_id):
            return self._last_known(integration)
        shared = await self._checks.run(key, lambda: self._check_live(stored, batch))
        if batch is not None and shared.batch is not batch:
            batch.joined.append(shared.batch)
        return shared.check

    async def _redacted(self, stored: StoredIntegration) -> StoredIntegration:
        """Of a row that was altered, only the identity is used. Then the credentials are unreadable too."""
        return replace(stored, integration=await self._cipher.redacted(stored))

    def _last_known(self, integration: Integration) -> HealthCheck:
        """The stored health of an integration that is not checked now."""
        check_time = integration.last_health_check or integration.connect_time or self.clock()
        check = _without_check(integration, check_time, "The provider accepted the credentials in the last check")
        status = integration.status(self.clock())
        return replace(check, status=status, healthy=status is Status.ACTIVE)

    async def _check_live(self, stored: StoredIntegration, batch: "_CheckBatch | None") -> "_SharedCheck":
        own = batch or _CheckBatch()
        try:
            return _SharedCheck(await self._check_in_turn(stored, own), own)
        finally:
            if batch is None:
                await self._store(own)

    async def _check_in_turn(self, stored: StoredIntegration, batch: "_CheckBatch") -> HealthCheck:
        """Check when the user has fewer than `_MAX_CONCURRENT` checks at this provider."""
        integration = stored.integration
        key = (integration.user_id, integration.integration_type)
        slots = self._slots.setdefault(key, asyncio.Semaphore(_MAX_CONCURRENT))
        deadline_at = loop_time() + self.deadline.total_seconds()
        try:
            # Half of the time remains for the check, so that a wait is not taken for a fault of the provider.
            async with asyncio.timeout_at(deadline_at - self.deadline.total_seconds() / 2):
                await slots.acquire()
        except TimeoutError:
            return self._last_known(integration)
        try:
            return await self._check_at_provider(stored, deadline_at, batch)
        finally:
            slots.release()

    async def _check_at_provider(
        self, stored: StoredIntegration, deadline_at: float, batch: "_CheckBatch"
    ) -> HealthCheck:
        integration = stored.integration
        start_time, started = self.clock(), loop_time()
        error: IntegrationServerError | None = None
        try:
            async with asyncio.timeout_at(deadline_at):
                integration.require_usable()
                fresh = await self.credentials.fresh(stored)
                integration = fresh.integration
                newer = await self._verify_or_refresh(fresh)
                if newer is not None:
                    integration = newer.integration
                    await self._verify(newer)
        except TimeoutError:
            error = ProviderUnavailable("the provider did not respond in time")
        except StoreUnavailable:
            raise  # not a fault of the integration
        except IntegrationServerError as failure:
            error = failure
        message = str(error) if error else self._good_message(integration)
        check = _check_result(integration, error, message, start_time, timedelta(seconds=loop_time() - started))
        failures = 0 if check.healthy else integration.error_count + 1
        batch.completed.append(CompletedCheck(check, self.schedule.next_check_time(self.clock(), failures)))
        return check

    async def _verify_or_refresh(self, fresh: RefreshResult) -> RefreshResult | None:
        """Verify the credentials. If the provider rejects the access token, as it may before its expiry: newer ones.

        Raises the rejection if there are none.
        """
        try:
            await self._verify(fresh)
        except ProviderRejected as error:
            newer = await self.credentials.newer(fresh) if error.needs_new_token else None
            if newer is None:
                raise
            return newer
        return None

    async def _verify(self, fresh: RefreshResult) -> None:
        """Call the provider with the credentials, and check the scopes. Raises what makes the integration unusable."""
        integration = fresh.integration
        provider = await self.providers.for_client(integration.integration_type, integration.oauth_client)
        await provider.for_config(integration.config).verify_connection(fresh.credentials)
        if integration.lacks_required_scope:
            raise ScopeMissing(integration.missing_scopes)

    def _good_message(self, integration: Integration) -> str:
        if self.providers[integration.integration_type].has_verification:
            return "The provider accepts the credentials"
        return "Not verified: the provider has no request that verifies credentials of this type"

    async def list_health_checks(
        self, integration_id: IntegrationId, user_id: UserId, page_size: int, page_token: str
    ) -> HealthCheckPage:
        """List the checks of an integration, newest first. Raises `IntegrationNotFound`."""
        integration = (await self.integrations.get(integration_id, user_id)).integration
        list_id = (user_id, str(integration_id))
        before = await self._check_pages.read(page_token, list_id)
        page = await self.history.list(integration, before, page_size, self.max_page_bytes)
        rates = await self.history.error_rates(integration, RATE_WINDOWS, self.clock())
        next_page_token = "" if page.is_last else await self._check_pages.make(list_id, page.items[-1][0])
        return HealthCheckPage([check for _, check in page.items], next_page_token, rates)

    async def prune(self) -> None:
        """Delete the checks that are older than the retention time."""
        while await self.history.prune(self.clock() - self.retention):
            pass


class _CheckBatch:
    """The checks whose outcomes are stored together, for which `stored` is then set.

    `joined` are the batches of checks that other calls had begun and this one has shared.
    """

    def __init__(self) -> None:
        self.completed: list[CompletedCheck] = []
        self.joined: list[_CheckBatch] = []
        self.stored = asyncio.Event()


@dataclass(frozen=True, slots=True)
class _SharedCheck:
    """A check, and the batch with which its outcome is stored."""

    check: HealthCheck
    batch: _CheckBatch


def _check_result(
    integration: Integration,
    error: IntegrationServerError | None,
    message: str,
    start_time: datetime,
    latency: timedelta,
) -> HealthCheck:
    after = integration
    if not isinstance(error, ProviderMisconfigured):  # that is the fault of our client, and not of the integration
        after = replace(
            integration,
            last_error=Failure(error.reason, start_time, str(error)) if error else None,
            reauthorization_required=isinstance(error, ReauthorizationRequired),
        )
    return HealthCheck(
        integration=after,
        status=after.status(start_time),
        healthy=error is None,
        check_time=start_time,
        latency=latency,
        error_class=error.reason if error else None,
        message=message,
    )


def _without_check(integration: Integration, check_time: datetime, message: str) -> HealthCheck:
    """An inactive integration, or one whose stored state is shown."""
    error = integration.last_error if integration.is_active else None
    return HealthCheck(
        integration=integration,
        status=Status.INACTIVE,
        healthy=False,
        check_time=check_time,
        latency=None,
        error_class=error.error_class if error else None,
        message=error.message if error else message,
    )


def _flight_key(stored: StoredIntegration) -> tuple[IntegrationId, int]:
    """New credentials are not checked by a check of the previous ones."""
    return stored.integration.integration_id, stored.integration.version
