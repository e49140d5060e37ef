"""Checking integrations: are their credentials good, and does the provider take them?"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationPending,
    IntegrationServerError,
    ProviderUnavailable,
    ReauthorizationRequired,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.health import HealthCheck, HealthReport
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, UserId
from integration_server.domain.reach import EVERYTHING, Reach
from integration_server.service.credentials import FreshCredentials, GivingCredentials
from integration_server.service.ports import Clock, IntegrationStore, Providers, StoredIntegration

_AT_ONCE = 8  # checks of one provider at a time, so that a user with many accounts is no burst to it


class Monitoring:
    """Checks one integration, or all of a user's. `deadline` is what one provider may take for all that it is asked."""

    def __init__(
        self,
        integrations: IntegrationStore,
        providers: Providers,
        credentials: GivingCredentials,
        clock: Clock,
        *,
        deadline: timedelta,
    ) -> None:
        self._integrations = integrations
        self._providers = providers
        self._credentials = credentials
        self._clock = clock
        self._deadline = deadline.total_seconds()

    async def check_health(self, integration_id: IntegrationId, user_id: UserId) -> HealthCheck:
        """Check one integration. Raises `IntegrationNotFound` or `IntegrationPending`."""
        stored = await self._integrations.find(integration_id, user_id)
        if stored is None:
            raise IntegrationNotFound
        if not stored.integration.is_connected:
            raise IntegrationPending
        (check,) = await self._check_provider([stored])
        return check

    async def check_all_health(self, user_id: UserId, reach: Reach = EVERYTHING) -> HealthReport:
        """Check all that is connected and within reach, the providers side by side: none holds up another."""
        begun = self._clock()
        by_type = defaultdict(list)
        for stored in await self._integrations.list_connected(user_id):
            if reach.covers(stored.integration.integration_type):
                by_type[stored.integration.integration_type].append(stored)
        groups = await asyncio.gather(*map(self._check_provider, by_type.values()))
        checks = [check for group in groups for check in group]
        return HealthReport(tuple(sorted(checks, key=lambda check: check.integration.integration_id)), begun)

    async def _check_provider(self, rows: Sequence[StoredIntegration]) -> list[HealthCheck]:
        places = asyncio.Semaphore(_AT_ONCE)
        give_up_at = asyncio.get_running_loop().time() + self._deadline
        return await asyncio.gather(*(self._check(stored, places, give_up_at) for stored in rows))

    async def _check(self, stored: StoredIntegration, places: asyncio.Semaphore, give_up_at: float) -> HealthCheck:
        integration = stored.integration
        begun, started = self._clock(), _elapsed()
        if not integration.is_active:
            return HealthCheck(
                integration,
                Status.INACTIVE,
                False,
                begun,
                timedelta(0),
                None,
                "The integration is switched off",
            )
        error: IntegrationServerError | None = None
        try:
            async with asyncio.timeout_at(give_up_at), places:
                begun, started = self._clock(), _elapsed()
                integration.require_usable()
                fresh = await self._credentials.fresh(stored)
                integration = fresh.integration
                await self._verify(fresh)
        except TimeoutError:
            error = ProviderUnavailable("the provider did not answer in time")
        except StoreUnavailable:
            raise  # says nothing about the integration
        except IntegrationServerError as failure:
            error = failure
        check = _found(integration, error, begun, timedelta(seconds=_elapsed() - started))
        await self._integrations.record_check(check)
        return check

    async def _verify(self, fresh: FreshCredentials) -> None:
        """Have the provider take the credentials, as a backend would."""
        integration = fresh.integration
        await self._providers.get(integration.integration_type).verify_connection(fresh.credentials)
        if integration.lacks_required_scope:
            raise ScopeMissing(integration.missing_scopes)


def _found(
    integration: Integration, error: IntegrationServerError | None, begun: datetime, latency: timedelta
) -> HealthCheck:
    after = replace(
        integration,
        last_error=Failure(error.reason, begun, str(error)) if error else None,
        reauthorization_required=isinstance(error, ReauthorizationRequired),
    )
    return HealthCheck(
        integration=after,
        status=after.status(begun),
        healthy=error is None,
        check_time=begun,
        latency=latency,
        error_class=error.reason if error else None,
        message=str(error) if error else "The provider takes the credentials",
    )


def _elapsed() -> float:
    return asyncio.get_running_loop().time()
