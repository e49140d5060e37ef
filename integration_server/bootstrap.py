"""The whole object graph on one page: what there is, what it is made of, and what it does by itself.

Parts that take some choosing are put together in `wiring/`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import SystemRandom

import structlog

from integration_server.domain.integration import IntegrationId
from integration_server.lifecycle import repeating, serving
from integration_server.providers.base import ProviderContext
from integration_server.providers.built_in import BUILT_IN
from integration_server.providers.declared import load_declared
from integration_server.providers.entry_points import load_entry_points
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.google_calendar_api import GoogleCalendarApi
from integration_server.providers.http import ProviderHttp
from integration_server.rpc.google_calendar import GoogleCalendarService
from integration_server.rpc.health import Health
from integration_server.rpc.integration_service import IntegrationService, UseCases
from integration_server.service.auditing import AuditTrail
from integration_server.service.calling import CallBounds, Calling
from integration_server.service.connecting import Connecting
from integration_server.service.connecting_by_key import ConnectingByKey
from integration_server.service.connections import Connections
from integration_server.service.consuming import Consuming
from integration_server.service.credentials import GivingCredentials
from integration_server.service.google_calendar import GoogleCalendar
from integration_server.service.managing import Managing
from integration_server.service.monitoring import Monitoring
from integration_server.service.ports import (
    Agenda,
    AttemptStore,
    Clock,
    EventLog,
    HealthHistory,
    IntegrationLookup,
    IntegrationStore,
    Providers,
    RefreshLeases,
    Revocations,
    Sealer,
    Spill,
    WebhookEndpoints,
    WebhookInbox,
    Work,
)
from integration_server.service.receiving import Receiving, RememberedEndpoints
from integration_server.service.redirects import RedirectPolicy
from integration_server.service.refreshing import Patience, Refreshing
from integration_server.service.remembering import LOOK_EVERY, PRUNE_EVERY, Memory, RememberingLookup
from integration_server.service.revoking import RevocationTimes, Revoking
from integration_server.service.schedule import Schedule
from integration_server.service.sealing import Vault
from integration_server.service.tasks import ServerTasks
from integration_server.service.throttling import SharedBudgets, Throttling
from integration_server.service.upkeep import Pace, Upkeep
from integration_server.service.watching import LOOK_EVERY as LOOK_AT_EVENTS_EVERY
from integration_server.service.watching import Watching
from integration_server.service.webhook_secrets import WebhookSecrets
from integration_server.settings import Settings
from integration_server.storage.agenda import SqlAgenda
from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.audit import SqlAuditLog
from integration_server.storage.changes import SqlChanges
from integration_server.storage.engine import Database, open_database
from integration_server.storage.events import SqlEventLog
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.keyring import Keyring, open_keyring
from integration_server.storage.leases import SqlRefreshLeases
from integration_server.storage.revocations import SqlRevocations
from integration_server.storage.spill import SpillDirectory, require_writable
from integration_server.storage.webhook_endpoints import SqlWebhookEndpoints
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from integration_server.wiring.budgets import shared_budgets
from integration_server.wiring.callers import guarding
from integration_server.wiring.grpc_server import CALENDARS_NAME, SERVICE_NAME, Servicers, build_grpc_server
from integration_server.wiring.keys import open_key_encryptions, rotation_by_age
from integration_server.wiring.sidecar import running_sidecar
from integration_server.wiring.world import random_name, seconds_passed, utc_now

Register = Callable[[ProviderFactory], None]
Job = tuple[Callable[[], Awaitable[object]], timedelta]
"""What is done again and again, and how often."""

_SWEEP_EVERY = timedelta(seconds=30)  # abandoned connections go within this time of their end
_LOOK_EVERY = timedelta(seconds=0.5)  # readiness follows the database within this time, and that of a look
_WORK_EVERY = timedelta(seconds=1)  # what is due, or waited for the database, is begun within this time
_FORGET_EVERY = timedelta(minutes=10)  # checks that are too old
_ROTATE_EVERY = timedelta(seconds=30)  # a data key that is too old is seen within this time


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is up, and where."""

    grpc_address: str
    sidecar_url: str


@dataclass(frozen=True, slots=True)
class Stores:
    """Where things are kept."""

    integrations: IntegrationStore
    history: HealthHistory
    agenda: Agenda
    attempts: AttemptStore
    leases: RefreshLeases
    revocations: Revocations
    spill: Spill
    endpoints: WebhookEndpoints
    inbox: WebhookInbox
    events: EventLog


@dataclass(frozen=True, slots=True)
class Service:
    """What the service can do when it is called, and what it does by itself."""

    use_cases: UseCases
    google_calendar: GoogleCalendar
    refreshing: Refreshing
    upkeep: Sequence[Upkeep]


BuildStores = Callable[[Settings, Database, Callable[[IntegrationId], None]], Stores]
"""Makes the stores over a database; they tell at once which integration they change."""


def sql_stores(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
    """All of them in the database, but for what is kept on disk while it is away."""
    return Stores(
        SqlIntegrations(database, on_change),
        SqlHealthHistory(database),
        SqlAgenda(database),
        SqlAttempts(database),
        SqlRefreshLeases(database, settings.refresh_lease),
        SqlRevocations(database),
        SpillDirectory(settings.spill_dir),
        SqlWebhookEndpoints(database),
        SqlWebhookInbox(database, on_change),
        SqlEventLog(database),
    )


def build_providers(
    settings: Settings,
    environment: Mapping[str, str],
    http: ProviderHttp,
    clock: Clock = utc_now,
    further: Sequence[Register] = (),
) -> ProviderRegistry:
    """All providers that this server knows."""
    factory = registered_providers(settings)
    for register in further:
        register(factory)
    return factory.build(ProviderContext(http, clock, environment))


def registered_providers(settings: Settings) -> ProviderFactory:
    """Those that are built in, from packages, and from `PROVIDERS_DIR`. Raises `ProvidersError`."""
    factory = ProviderFactory()
    for module in BUILT_IN:
        module.register(factory)
    load_entry_points(factory)
    if settings.providers_dir is not None:
        load_declared(settings.providers_dir, factory, dev_mode=settings.dev_mode)
    return factory


@asynccontextmanager
async def running_server(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    key: bytes | None,
    further_providers: Sequence[Register] = (),
    clock: Clock = utc_now,
    build_stores: BuildStores = sql_stores,
    server_tasks: Callable[[], ServerTasks] = ServerTasks,
) -> AsyncIterator[Running]:
    """The gRPC server and its sidecar, up until left: then NOT_SERVING first, and calls in flight finish."""
    await asyncio.to_thread(require_writable, settings.spill_dir)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        http = await enter(ProviderHttp(clock, dev_mode=settings.dev_mode, deadline=settings.provider_timeout))
        providers = build_providers(settings, environment, http, clock, further_providers)
        database = await enter(open_database(settings.database_url, pool_size=settings.database_pool_size))
        keyring = await open_keyring(database, await open_key_encryptions(settings, key))
        trail = await enter(AuditTrail(SqlAuditLog(database, keyring)))
        tasks = await enter(server_tasks())
        memory, changes = Memory(settings.credentials_cache_size, seconds_passed), SqlChanges(database)
        stores = build_stores(settings, database, memory.forget)
        remembering = RememberingLookup(memory, stores.integrations, changes, seconds_passed)
        lookup = remembering if settings.credentials_cache_size else stores.integrations
        budgets = await enter(shared_budgets(settings.rate_limit_url))
        service = build_service(settings, stores, lookup, providers, keyring, tasks, trail, clock, budgets)

        guard = await enter(guarding(settings, service.use_cases.managing, clock))
        health = Health([SERVICE_NAME, CALENDARS_NAME])
        servicers = Servicers(
            IntegrationService(service.use_cases, clock), GoogleCalendarService(service.google_calendar), health
        )
        server = build_grpc_server(settings, servicers, guard, trail, clock)
        port = await enter(serving(server, str(settings.grpc_address), settings.shutdown_grace, guard.credentials))

        async def look() -> None:
            health.set_ready(await is_ready(stores.integrations, keyring))

        use_cases = service.use_cases
        jobs: list[Job] = [
            (look, _LOOK_EVERY),
            *((look_again, _LOOK_EVERY) for look_again in guard.looks),
            (service.refreshing.recover, _WORK_EVERY),
            (use_cases.revoking.revoke_due, _WORK_EVERY),
            *((upkeep.look, _WORK_EVERY) for upkeep in service.upkeep),
            (use_cases.watching.look, LOOK_AT_EVENTS_EVERY),
            (use_cases.connecting.remove_abandoned, _SWEEP_EVERY),
            (use_cases.monitoring.prune, _FORGET_EVERY),
            (use_cases.watching.prune, _FORGET_EVERY),
            (use_cases.receiving.prune, _FORGET_EVERY),
            (changes.prune, PRUNE_EVERY),
        ]
        if settings.credentials_cache_size:
            jobs.append((remembering.follow, LOOK_EVERY))
        if settings.data_key_max_age is not None:
            activation, max_age = settings.data_key_activation, settings.data_key_max_age
            by_age = rotation_by_age(database, keyring, trail, clock, activation, max_age)
            jobs.append((by_age.look, _ROTATE_EVERY))
        for upkeep in service.upkeep:
            await enter(upkeep)
        for work, every in jobs:
            await enter(repeating(work, every))

        grpc_address = settings.grpc_address._replace(port=port)
        sidecar_url = await enter(running_sidecar(settings, grpc_address))
        stack.callback(use_cases.watching.drain)
        stack.callback(health.drain)
        yield Running(str(grpc_address), sidecar_url)


def build_service(
    settings: Settings,
    stores: Stores,
    lookup: IntegrationLookup,
    providers: Providers,
    sealer: Sealer,
    tasks: ServerTasks,
    trail: AuditTrail,
    clock: Clock,
    budgets: SharedBudgets,
) -> Service:
    """What the service can do over these parts, and what it does by itself."""
    integrations = stores.integrations
    vault = Vault(sealer)
    jitter = SystemRandom().random
    schedule = Schedule(settings.refresh_buffer, settings.health_check_interval, jitter)
    connections = Connections(integrations, providers, vault, clock, schedule)
    refreshing = Refreshing(
        integrations,
        stores.leases,
        stores.spill,
        stores.revocations,
        connections,
        providers,
        vault,
        tasks,
        clock,
        random_name,
        jitter,
        trail.note,
        patience=Patience(settings.refresh_lease),
    )
    credentials = GivingCredentials(
        lookup, integrations, providers, vault, refreshing, clock, buffer=settings.refresh_buffer
    )
    revoking = Revoking(
        integrations,
        stores.revocations,
        providers,
        vault,
        tasks,
        jitter,
        times=RevocationTimes(claim=settings.refresh_lease, give_up=settings.revocation_give_up),
    )
    monitoring = Monitoring(
        integrations,
        stores.history,
        providers,
        credentials,
        sealer,
        clock,
        schedule,
        deadline=settings.health_check_timeout,
        keep=settings.health_history,
    )
    webhook_secrets = WebhookSecrets(
        stores.endpoints,
        providers,
        sealer,
        clock,
        random_name,
        public_url=settings.public_url,
        grace=settings.webhook_secret_grace,
    )
    calling = Calling(
        credentials,
        integrations,
        providers,
        Throttling(budgets, seconds_passed, jitter),
        tasks,
        clock,
        CallBounds(
            timedelta(seconds=settings.provider_call_seconds),
            settings.provider_call_max_request_bytes,
            settings.largest_answer,
        ),
    )
    use_cases = UseCases(
        connecting=Connecting(
            stores.attempts,
            integrations,
            connections,
            revoking,
            providers,
            sealer,
            RedirectPolicy(settings.public_url, settings.allowed_redirect_uris, settings.allowed_return_urls),
            tasks,
            clock,
            random_name,
            direct_completion=bool(settings.direct_completion),
        ),
        connecting_by_key=ConnectingByKey(connections, providers, tasks, random_name),
        managing=Managing(integrations, providers, sealer, clock),
        revoking=revoking,
        credentials=credentials,
        monitoring=monitoring,
        receiving=Receiving(
            RememberedEndpoints(stores.endpoints, seconds_passed),
            stores.inbox,
            webhook_secrets,
            providers,
            sealer,
            clock,
            random_name,
            trail.note,
            keep=settings.webhook_retention,
        ),
        # Payloads are most of a message, not all of it.
        consuming=Consuming(integrations, stores.inbox, sealer, largest_page=settings.grpc_max_message_bytes * 3 // 4),
        webhook_secrets=webhook_secrets,
        watching=Watching(stores.events, providers, sealer, keep=settings.event_retention),
        calling=calling,
    )
    pace = Pace(settings.background_calls_per_provider, settings.background_calls_per_second)
    upkeep = [
        Upkeep(work, do, stores.agenda, providers, clock, jitter, pace=pace, hold=hold)
        for work, do, hold in (
            # Longer than waiting for another's refresh, and the refresh, take together.
            (Work.REFRESH, refreshing.refresh_ahead, 3 * settings.refresh_lease),
            (Work.CHECK, monitoring.check_due, 3 * settings.health_check_timeout),
        )
    ]
    google_calendar = GoogleCalendar(credentials, calling, GoogleCalendarApi())
    return Service(use_cases, google_calendar, refreshing, upkeep)


async def is_ready(integrations: IntegrationStore, keyring: Keyring) -> bool:
    """Whether the database answers, and every data key in it can be opened here."""
    try:
        await integrations.ping()
        await keyring.reload()
    except Exception as error:  # whatever it is: who cannot tell is not ready
        first_line = str(error).partition("\n")[0]
        structlog.get_logger(__name__).warning("not_ready", kind=type(error).__name__, message=first_line)
        return False
    return True
