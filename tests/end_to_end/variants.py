"""Servers as bootstrap builds them, but for one part: without a defence, or stuck at the worst moment.

"" among the `VARIANTS` is the server as it is. What a defence is worth shows when the same test fails without it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

import structlog

from integration_server.bootstrap import BuildStores, Stores, running_server, sql_stores
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.lifecycle import stop_signals
from integration_server.logs import configure_logging
from integration_server.service.ports import Lease, NewCredentials
from integration_server.service.tasks import ServerTasks
from integration_server.settings import Settings
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations

T = TypeVar("T")

AT_THE_COMMIT = "at the commit"


class LeasesForAll:
    """Without the lease: whoever wants to refresh may."""

    async def is_free(self, integration: Integration) -> bool:
        """Always."""
        del integration
        return True

    async def claim(self, integration: Integration, owner: str) -> Lease | None:
        """Never in vain."""
        return Lease(integration.integration_id, integration.version, owner, called_ago=None)

    async def mark_called(self, lease: Lease) -> bool:
        """Leaves no mark."""
        del lease
        return True

    async def release(self, lease: Lease, *, settled: bool) -> None:
        """Nothing to release."""


class CallersTasks(ServerTasks):
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


class NeverCommitting(SqlIntegrations):
    """Says so when an answer is about to be committed, and stays there."""

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Hang."""
        del integration, credentials, now
        print(AT_THE_COMMIT, flush=True)
        await asyncio.Event().wait()
        raise AssertionError


@dataclass(frozen=True, slots=True)
class Variant:
    """What `running_server` is given in place of its own."""

    build_stores: BuildStores = sql_stores
    server_tasks: Callable[[], ServerTasks] = ServerTasks


def without_lease(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
    """Everybody has one."""
    return replace(sql_stores(settings, database, on_change), leases=LeasesForAll())


def keeping_in(kind: type[SqlIntegrations]) -> BuildStores:
    """Integrations are kept in another kind of store."""

    def build(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
        return replace(sql_stores(settings, database, on_change), integrations=kind(database, on_change))

    return build


VARIANTS: Mapping[str, Variant] = {
    "": Variant(),
    "without lease": Variant(without_lease),
    "without shield": Variant(server_tasks=CallersTasks),
    "without fence": Variant(keeping_in(UnfencedIntegrations)),
    "never committing": Variant(keeping_in(NeverCommitting)),
}


async def serve(variant: Variant, environment: Mapping[str, str]) -> None:
    """What the command `serve` does, on a database that is migrated."""
    settings = Settings.from_environment(environment)
    configure_logging(settings.log_level)
    assert settings.encryption_key is not None
    async with (
        stop_signals() as stop,
        running_server(
            settings,
            environment,
            key=settings.encryption_key,
            build_stores=variant.build_stores,
            server_tasks=variant.server_tasks,
        ) as running,
    ):
        structlog.get_logger(__name__).info("serving", grpc=running.grpc_address, sidecar=running.sidecar_url)
        await stop.wait()
