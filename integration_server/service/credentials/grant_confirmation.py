"""Confirms at the provider that a grant has ended, before it is ended here.

Not everything in a webhook is signed, and a recorded one can be sent again: a webhook is a reason to ask the provider,
and never a proof.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog
from cachetools import TTLCache

from integration_server.domain.audit import Action, AuditEntry, background_entry
from integration_server.domain.credentials import RefreshCause
from integration_server.domain.errors import IntegrationServerError, ProviderRejected, ReauthorizationRequired
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Clock
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.credentials.refresh_failures import RefreshFailurePolicy, grant_lost
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.service.provider_port import Providers

RECHECK_AFTER = timedelta(seconds=60)
"""When the next health check is due after such a webhook: the provider may accept the credentials a little longer, or
may not respond now."""

_MIN_INTERVAL = 30.0  # seconds between confirmations of an integration: webhooks can be repeated without end
_MAX_INTEGRATIONS = 10_000


@dataclass(eq=False, repr=False)
class GrantConfirmation:
    """Asks providers whether grants have ended. `monotonic` is in seconds.

    `requires_rejection` switches the question off, for negative controls: then the report alone ends the grant.
    """

    integrations: IntegrationStore
    credentials: CredentialService
    failures: RefreshFailurePolicy
    providers: Providers
    tasks: DetachedTasks
    clock: Clock
    record_audit: Callable[[AuditEntry], object]
    wait_for_audit: Callable[[Action], Awaitable[None]]
    monotonic: Callable[[], float]
    requires_rejection: bool = True

    def __post_init__(self) -> None:
        self._recent: TTLCache[IntegrationId, None] = TTLCache(_MAX_INTEGRATIONS, _MIN_INTERVAL, self.monotonic)
        self._log = structlog.get_logger(__name__)

    def start(self, integration: Integration) -> None:
        """End the grant if the provider rejects its credentials. The caller does not wait."""
        if integration.integration_id not in self._recent:
            self._recent[integration.integration_id] = None
            self.tasks.start(self._confirm(integration))

    async def _confirm(self, reported: Integration) -> None:
        try:
            await self.wait_for_audit(Action.LOSE_GRANT)
            stored = await self.integrations.get(reported.integration_id, reported.user_id)
            if stored.integration.reauthorization_required or stored.integration.connect_time != reported.connect_time:
                return  # ended already, or connected again since
            stored.integration.require_usable()
            if not await self._has_ended(await self.credentials.fresh(stored)):
                self._log.warning("grant_end_not_confirmed", **reported.log_fields)
                return
        except ReauthorizationRequired:
            pass  # the provider has rejected the refresh token, and the refresher has recorded it
        except IntegrationServerError as error:  # the health check that is due soon finds out
            self._log.warning("grant_end_not_checked", **reported.log_fields, error_class=error.reason)
            return
        self._log.info("grant_revoked_by_account", **reported.log_fields)
        self.record_audit(background_entry(self.clock(), Action.LOSE_GRANT, reported))

    async def _has_ended(self, fresh: RefreshResult) -> bool:
        """Whether the provider rejects the credentials, and newer ones too. Records it."""
        if self.requires_rejection and await self._is_accepted(fresh):
            return False
        # Not a forced refresh: its minimum interval would leave the question open. A repeated report refreshes nothing,
        # because the refresh either ends the grant or gets a token that the provider accepts.
        refreshed = await self.credentials.refreshed(fresh, RefreshCause.EXPIRY) if self.requires_rejection else None
        if refreshed is not None and await self._is_accepted(refreshed):
            return False
        await self.failures.record((refreshed or fresh).integration, grant_lost())
        return True

    async def _is_accepted(self, fresh: RefreshResult) -> bool:
        integration = fresh.integration
        provider = await self.providers.for_client(integration.integration_type, integration.oauth_client)
        try:
            await provider.for_config(integration.config).verify_connection(fresh.credentials)
        except ProviderRejected:
            return False
        return True
