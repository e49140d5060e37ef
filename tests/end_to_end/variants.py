"""Servers as bootstrap builds them, but for one part: without a defence, or stuck at the worst moment.

"" among the `VARIANTS` is the server as it is. What a defence is worth shows when the same test fails without it.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

import structlog

from integration_server.bootstrap import BuildStores, Stores, running_server, sql_stores
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.lifecycle import stop_signals
from integration_server.logs import configure_logging
from integration_server.providers.factory import ProviderFactory
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.credentials.ports import Lease
from integration_server.service.integrations.ports import NewCredentials
from integration_server.service.webhooks.ports import NewWebhookEvent
from integration_server.settings import Settings
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from tests.signed_webhook_provider import register_signed_webhook_provider

T = TypeVar("T")

AT_THE_COMMIT = "at the commit"
WITH_WEBHOOKS = "with webhooks"
WITHOUT_DEDUPLICATION = "with webhooks, without deduplication"


class AlwaysGrantedLeases:
    """Without the lease: whoever wants to refresh may."""

    async def is_free(self, integration: Integration) -> bool:
        """Always."""
        del integration
        return True

    async def claim(self, integration: Integration, owner: str) -> Lease | None:
        """Never in vain."""
        return Lease(integration.integration_id, integration.version, owner, previous_call_age=None)

    async def release(self, lease: Lease, *, outcome_known: bool) -> None:
        """Nothing to release."""


class CallerBoundTasks(DetachedTasks):
    """Without the shield: work belongs to the call that began it, and is cancelled with it."""

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Tie the work to the caller."""
        task = super().start(work)
        caller = asyncio.current_task()
        assert caller is not None
        caller.add_done_callback(lambda _: task.cancel())
        return task


class UnfencedIntegrations(SqlIntegrations):
    """Without the fence: an answer is committed over whatever version is there."""

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Commit over the version of the moment."""
        stored = await self.find(integration.integration_id, integration.user_id)
        assert stored is not None
        return await super().commit_refresh(replace(integration, version=stored.integration.version), credentials, now)


class HangingCommit(SqlIntegrations):
    """Says so when an answer is about to be committed, and stays there."""

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Hang."""
        del integration, credentials, now
        print(AT_THE_COMMIT, flush=True)
        await asyncio.Event().wait()
        raise AssertionError


class InboxWithoutDeduplication(SqlWebhookInbox):
    """Without deduplication: every delivery is an event of its own."""

    async def known(
        self, integration_ids: Collection[IntegrationId], event_ids: Collection[str]
    ) -> Collection[tuple[IntegrationId, str]]:
        """Nothing is."""
        del integration_ids, event_ids
        return ()

    async def add(self, events: Sequence[NewWebhookEvent], now: datetime) -> Sequence[NewWebhookEvent]:
        """Add them under names that none had before."""
        renamed = [replace(event, event_id=f"{event.event_id} {event.uid}") for event in events]
        return await super().add(renamed, now)


@dataclass(frozen=True, slots=True)
class Variant:
    """What `running_server` is given in place of its own."""

    build_stores: BuildStores = sql_stores
    server_tasks: Callable[[], DetachedTasks] = DetachedTasks
    extra_providers: Sequence[Callable[[ProviderFactory], None]] = ()


def without_lease(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
    """Everybody has one."""
    return replace(sql_stores(settings, database, on_change), leases=AlwaysGrantedLeases())


def with_integration_store(kind: type[SqlIntegrations]) -> BuildStores:
    """Integrations are kept in another kind of store."""

    def build(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
        return replace(sql_stores(settings, database, on_change), integrations=kind(database, on_change))

    return build


def without_deduplication(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
    """Nothing is known to have come before."""
    return replace(sql_stores(settings, database, on_change), inbox=InboxWithoutDeduplication(database, on_change))


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
    """What the command `serve` does, on a database that is migrated."""
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
