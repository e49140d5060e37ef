"""Builds the background worker with its jobs."""

from dataclasses import replace
from functools import partial
from typing import Any

from integration_server.domain.audit import Action
from integration_server.observability.spans import OpenSpan
from integration_server.service.background.background_worker import BackgroundWorker, DueJob, WorkerLimits
from integration_server.service.background.ports import Claim, JobKind
from integration_server.service.connections.device_polling import DeviceAuthorizationPoller
from integration_server.service.connections.revocation import RevocationService
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.health.health_checks import HealthChecker
from integration_server.wiring.service_parts import ServiceParts


def build_worker(
    parts: ServiceParts,
    refresher: TokenRefresher,
    health_checker: HealthChecker,
    revocation_service: RevocationService,
    device_poller: DeviceAuthorizationPoller,
    key_rotation: DueJob | None,
    open_span: OpenSpan | None = None,
) -> BackgroundWorker:
    """Build it. A claim lasts longer than its work. `open_span` opens a span for each item; None without traces."""
    settings = parts.settings
    jobs = [
        # Longer than waiting for the lease of another process and the refresh take together.
        DueJob(JobKind.REFRESH, lambda claim: refresher.refresh_proactively(claim.item), 3 * settings.refresh_lease),
        DueJob(JobKind.CHECK, health_checker.check_due, 3 * settings.health_check_timeout),
        # Grants of unknown providers are claimed too: they are given up at the time limit.
        DueJob(JobKind.REVOCATION, revocation_service.retry, settings.refresh_lease, needs_provider=False),
        DueJob(JobKind.DEVICE_POLL, device_poller.poll, device_poller.claim_duration),
        *([key_rotation] if key_rotation else []),
    ]
    return BackgroundWorker(
        jobs if open_span is None else [_traced(job, open_span) for job in jobs],
        parts.stores.due_work,
        parts.providers,
        parts.clock,
        parts.constants.jitter,
        limits=WorkerLimits(settings.background_calls_per_provider, settings.background_calls_per_second),
        wait_for_audit=partial(parts.trail.wait_for_room, Action.REFRESH),
        pause=parts.constants.pause,
    )


def _traced(job: DueJob, open_span: OpenSpan) -> DueJob:
    async def handle(claim: Claim[Any]) -> bool:
        with open_span(f"job {job.kind.value}", {"job": job.kind.value}):
            return await job.handler(claim)

    return replace(job, handler=handle)
