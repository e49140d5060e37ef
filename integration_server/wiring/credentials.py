"""Builds the use cases that keep credentials fresh."""

from dataclasses import dataclass

from integration_server.observability.metrics import METRICS
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.credentials.grant_confirmation import GrantConfirmation
from integration_server.service.credentials.refresh_commit import RefreshCommitter
from integration_server.service.credentials.refresh_failures import InvalidGrantDetector, RefreshFailurePolicy
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.integrations.ports import IntegrationLookup
from integration_server.wiring.service_parts import ServiceParts


@dataclass(frozen=True, slots=True)
class CredentialUseCases:
    """Credentials for callers, and what refreshes them."""

    service: CredentialService
    refresher: TokenRefresher
    failures: RefreshFailurePolicy
    grant_confirmation: GrantConfirmation


def build_credentials(parts: ServiceParts, lookup: IntegrationLookup) -> CredentialUseCases:
    """Build them. `lookup` is the cache of integrations, or their store."""
    settings, stores, metrics, constants = parts.settings, parts.stores, parts.metrics, parts.constants
    providers, tasks, clock = parts.providers, parts.tasks, parts.clock
    failures = RefreshFailurePolicy(
        stores.integrations,
        InvalidGrantDetector(stores.leases, constants.mass_failure_count),
        clock,
        constants.jitter,
        record_mass_failure=metrics.counter(METRICS.mass_invalid_grants),
    )
    refresher = TokenRefresher(
        stores.integrations,
        stores.leases,
        RefreshCommitter(stores.integrations, stores.journal, stores.revocations, parts.cipher, clock, parts.schedule),
        failures,
        providers,
        tasks,
        clock,
        constants.random_token,
        constants.jitter,
        parts.trail.queue.append,
        parts.trail.wait_for_room,
        lease_duration=settings.refresh_lease,
        pause=constants.pause,
        record_call=metrics.counter(METRICS.refresh_calls),
        record_outcome=metrics.counter(METRICS.refreshes),
    )
    service = CredentialService(
        lookup,
        stores.integrations,
        providers.registry,
        providers,
        parts.cipher,
        refresher,
        clock,
        buffer=settings.refresh_buffer,
        max_batch_bytes=settings.grpc_max_message_bytes,
    )
    confirmation = GrantConfirmation(
        stores.integrations,
        service,
        failures,
        providers,
        tasks,
        clock,
        parts.trail.queue.append,
        parts.trail.wait_for_room,
        constants.monotonic,
    )
    return CredentialUseCases(service, refresher, failures, confirmation)
