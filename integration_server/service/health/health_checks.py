"""Health checks of integrations, on demand and in the background."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime, timedelta

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderUnavailable,
    ReauthorizationRequired,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.health import ErrorRate, HealthCheck, HealthReport
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, UserId
from integration_server.service.background.ports import Claim
from integration_server.service.common_types import Aead, Clock
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.health.ports import HealthHistory
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.integrations.ports import IntegrationStore, StoredIntegration
from integration_server.service.provider_port import Providers

RATE_WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=7))

_MAX_CONCURRENT = 8  # checks per provider and call, so that a user with many accounts does not overload it


@dataclass(frozen=True, slots=True)
class HealthCheckPage(Page[HealthCheck]):
    """A page of an integration's checks, newest first, with its error rates."""

    error_rates: Sequence[ErrorRate]


@dataclass(eq=False, repr=False)
class HealthChecker:
    """Checks whether integrations are usable and whether their providers accept the credentials.

    `deadline` is the time for all checks of one provider in a call. Checks are stored for `retention`.
    """

    integrations: IntegrationStore
    history: HealthHistory
    providers: Providers
    credentials: CredentialService
    aead: Aead
    clock: Clock
    schedule: Schedule
    _: KW_ONLY
    deadline: timedelta
    retention: timedelta

    def __post_init__(self) -> None:
        self._pages = PageTokens(self.aead, "health-check-page")
        self._cipher = CredentialCipher(self.aead)

    async def check_health(self, integration_id: IntegrationId, user_id: UserId) -> HealthCheck:
        """Check one integration. Raises `IntegrationNotFound` or `IntegrationPending`."""
        stored = await self.integrations.get(integration_id, user_id)
        stored.integration.require_connected()
        (check,) = await self._check_provider([stored])
        return check

    async def check_due(self, claim: Claim[StoredIntegration]) -> bool:
        """Check a due integration: the handler of the background job. Returns whether the provider is healthy."""
        (check,) = await self._check_provider([claim.item])
        return check.error_class not in {ProviderUnavailable.reason, ProviderMisconfigured.reason}

    async def check_all_health(
        self, user_id: UserId, allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES
    ) -> HealthReport:
        """Check the user's connected integrations of the allowed types, all providers concurrently."""
        start_time = self.clock()
        by_type = defaultdict(list)
        for stored in await self.integrations.list_connected(user_id):
            if allowed_types.allows(stored.integration.integration_type):
                by_type[stored.integration.integration_type].append(stored)
        groups = await asyncio.gather(*map(self._check_provider, by_type.values()))
        checks = [check for group in groups for check in group]
        return HealthReport(tuple(sorted(checks, key=lambda check: check.integration.integration_id)), start_time)

    async def _check_provider(self, rows: Sequence[StoredIntegration]) -> list[HealthCheck]:
        semaphore = asyncio.Semaphore(_MAX_CONCURRENT)
        deadline_at = asyncio.get_running_loop().time() + self.deadline.total_seconds()
        return await asyncio.gather(*(self._check(stored, semaphore, deadline_at) for stored in rows))

    async def _check(self, stored: StoredIntegration, semaphore: asyncio.Semaphore, deadline_at: float) -> HealthCheck:
        # Of a row that was altered, only the identity is used: then the credentials are unreadable too.
        integration = await self._cipher.redacted(stored)
        stored = replace(stored, integration=integration)
        start_time, started = self.clock(), _loop_time()
        if not integration.is_active:
            return HealthCheck(
                integration,
                Status.INACTIVE,
                False,
                start_time,
                timedelta(0),
                None,
                "The integration is switched off",
            )
        error: IntegrationServerError | None = None
        try:
            async with asyncio.timeout_at(deadline_at), semaphore:
                start_time, started = self.clock(), _loop_time()
                integration.require_usable()
                fresh = await self.credentials.fresh(stored)
                integration = fresh.integration
                await self._verify(fresh)
        except TimeoutError:
            error = ProviderUnavailable("the provider did not respond in time")
        except StoreUnavailable:
            raise  # not a fault of the integration
        except IntegrationServerError as failure:
            error = failure
        check = _check_result(integration, error, start_time, timedelta(seconds=_loop_time() - started))
        failures = 0 if check.healthy else integration.error_count + 1
        await self.history.record(check, self.schedule.next_check_time(self.clock(), failures))
        return check

    async def _verify(self, fresh: RefreshResult) -> None:
        """Call the provider with the credentials, and check the scopes. Raises what makes the integration unusable."""
        integration = fresh.integration
        provider = self.providers[integration.integration_type].for_config(integration.config)
        await provider.verify_connection(fresh.credentials)
        if integration.lacks_required_scope:
            raise ScopeMissing(integration.missing_scopes)

    async def list_health_checks(
        self, integration_id: IntegrationId, user_id: UserId, page_size: int, page_token: str
    ) -> HealthCheckPage:
        """List the checks of an integration, newest first. Raises `IntegrationNotFound`."""
        integration = (await self.integrations.get(integration_id, user_id)).integration
        list_id = (user_id, str(integration_id))
        before = await self._pages.read(page_token, list_id)
        rows = await self.history.list(integration, before, page_size + 1)
        rates = await self.history.error_rates(integration, RATE_WINDOWS, self.clock())
        page = rows[:page_size]
        next_page_token = "" if len(rows) == len(page) else await self._pages.make(list_id, page[-1][0])
        return HealthCheckPage([check for _, check in page], next_page_token, rates)

    async def prune(self) -> None:
        """Delete the checks that are older than the retention time."""
        while await self.history.prune(self.clock() - self.retention):
            pass


def _check_result(
    integration: Integration, error: IntegrationServerError | None, start_time: datetime, latency: timedelta
) -> HealthCheck:
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
        message=str(error) if error else "The provider accepts the credentials",
    )


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
