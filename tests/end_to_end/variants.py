"""Variants of the server as bootstrap builds it, with one part replaced: without a defence, or with a hanging commit.

The variant "" is the unchanged server. The others are negative controls: without the defence the same test fails.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog

from integration_server.bootstrap import running_server
from integration_server.domain.credentials import RefreshCause
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.lifecycle import stop_signals
from integration_server.logs import configure_logging
from integration_server.providers.factory import ProviderFactory
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.credentials.ports import Lease, LeaseState, RefreshOutcome
from integration_server.service.integrations.ports import NewCredentials
from integration_server.service.webhooks.ports import NewWebhookEvent, WebhookPage
from integration_server.settings import Settings
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from integration_server.wiring.storage import BuildStores, Stores, sql_stores
from tests.signed_webhook_provider import register_signed_webhook_provider

T = TypeVar("T")

AT_THE_COMMIT = "at the commit"
WITH_WEBHOOKS = "with webhooks"
WITHOUT_DEDUPLICATION = "with webhooks, without deduplication"


class AlwaysGrantedLeases:
    """Grants every lease, so that servers refresh concurrently."""

    async def state(self, integration: Integration) -> LeaseState:
        """Always free."""
        del integration
        return LeaseState()

    async def claim(
        self, integration: Integration, owner: str, cause: RefreshCause = RefreshCause.EXPIRY
    ) -> Lease | None:
        """Grant the lease."""
        del cause
        return Lease(integration.integration_id, integration.version, owner, previous_call_age=None)

    async def release(
        self, lease: Lease, *, outcome_known: bool, is_lost: bool = False, failure: str | None = None
    ) -> None:
        """Do nothing."""

    async def record_refusal(self, lease: Lease) -> None:
        """Do nothing."""

    async def latest_outcomes(
        self, integration: Integration, within: timedelta, limit: int
    ) -> Sequence[RefreshOutcome]:
        """None."""
        del integration, within, limit
        return ()


class CallerBoundTasks(DetachedTasks):
    """Cancels a task together with the call that started it."""

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that is cancelled with the caller."""
        task = super().start(work)
        caller = asyncio.current_task()
        assert caller is not None
        caller.add_done_callback(lambda _: task.cancel())
        return task


class UnfencedIntegrations(SqlIntegrations):
    """Commits a refresh whatever the version of the row."""

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Commit with the current version."""
        stored = await self.find(integration.integration_id, integration.user_id)
        assert stored is not None
        return await super().commit_refresh(replace(integration, version=stored.integration.version), credentials, now)


class HangingCommit(SqlIntegrations):
    """Prints `AT_THE_COMMIT` when a refresh is about to be committed, and hangs."""

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Hang."""
        del integration, credentials, now
        print(AT_THE_COMMIT, flush=True)
        await asyncio.Event().wait()
        raise AssertionError


class InboxWithoutDeduplication(SqlWebhookInbox):
    """Stores every delivery as a new event."""

    async def known(
        self, integration_ids: Collection[IntegrationId], event_ids: Collection[str]
    ) -> Collection[tuple[IntegrationId, str]]:
        """No event is known."""
        del integration_ids, event_ids
        return ()

    async def add(self, events: Sequence[NewWebhookEvent]) -> Sequence[NewWebhookEvent]:
        """Add the events with new ids."""
        renamed = [replace(event, event_id=f"{event.event_id} {event.uid}") for event in events]
        return await super().add(renamed)

    async def list(self, integration: Integration, after: int, limit: int, max_bytes: int) -> WebhookPage:
        """The events under the ids that they were encrypted with."""
        page = await super().list(integration, after, limit, max_bytes)
        return replace(page, events=[replace(event, event_id=event.event_id.split()[0]) for event in page.events])


@dataclass(frozen=True, slots=True)
class Variant:
    """The parts that replace those of `running_server`."""

    build_stores: BuildStores = sql_stores
    server_tasks: Callable[[], DetachedTasks] = DetachedTasks
    extra_providers: Sequence[Callable[[ProviderFactory], None]] = ()


def without_lease(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
    """Stores with leases that are always granted."""
    return replace(sql_stores(settings, database, on_change), leases=AlwaysGrantedLeases())


def with_integration_store(kind: type[SqlIntegrations]) -> BuildStores:
    """Stores with another store of integrations."""

    def build(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
        return replace(sql_stores(settings, database, on_change), integrations=kind(database, on_change))

    return build


def without_deduplication(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
    """Stores without deduplication of webhooks."""
    return replace(sql_stores(settings, database, on_change), inbox=InboxWithoutDeduplication(database))


VARIANTS: Mapping[str, Variant] = {
    "": Variant(),
    "without lease": Variant(without_lease),
    "without shield": Variant(server_tasks=CallerBoundTasks),
    "without fence": Variant(with_integration_store(UnfencedIntegrations)),
    "never committing": Variant(with_integration_store(HangingCommit)),
    WITH_WEBHOOKS: Variant(extra_providers=[register_signed_webhook_provider]),
    WITHOUT_DEDUPLICATION: Variant(without_deduplication, extra_providers=[register_signed_webhook_provider]),
}


async def serve(variant: Variant, environment: Mapping[str, str]) -> None:
    """Serve as the command `serve` does, on a migrated database."""
    settings = Settings.from_environment(environment)
    configure_logging(settings.log_level)
    async with (
        stop_signals() as stop,
        running_server(
            settings,
            environment,
            build_stores=variant.build_stores,
            server_tasks=variant.server_tasks,
            extra_providers=variant.extra_providers,
        ) as running,
    ):
        structlog.get_logger(__name__).info("serving", grpc=running.grpc_address, sidecar=running.sidecar_url)
        await stop.wait()
