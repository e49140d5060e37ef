"""The composition root: the whole object graph on one page.

`running_server` is the server, `build_service` the use cases, `open_storage` the database with its keyring, which the
commands use too. `wiring/` builds the parts that need selection.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog

from integration_server.domain.due_times import Schedule
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.lifecycle import periodic_job, serving
from integration_server.observability.listener import LocalSource
from integration_server.observability.metrics import METRICS, Metrics, record_calls, record_provider_requests
from integration_server.providers.base import ProviderContext
from integration_server.providers.built_in import register_built_in
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.google_calendar_api import GoogleCalendarApi
from integration_server.providers.http import ProviderHttp
from integration_server.providers.plugins import load_plugins
from integration_server.providers.toml_providers import load_toml_providers
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.health import ServerHealthServicer
from integration_server.rpc.integration_service import UseCases
from integration_server.service.audit.audit_heads import Head
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.background.background_worker import BackgroundWorker, DueJob, WorkerLimits
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.background.ports import DueWork, JobKind
from integration_server.service.calendar.google_calendar import GoogleCalendar
from integration_server.service.common_types import Aead, Clock, Jitter, RandomToken, Record, record_nothing
from integration_server.service.connections.account_linking import AccountLinker
from integration_server.service.connections.api_key_connection import ApiKeyConnectionService
from integration_server.service.connections.attempt_lifecycle import AttemptLifecycle
from integration_server.service.connections.device_polling import DeviceAuthorizationPoller
from integration_server.service.connections.oauth_callback import OAuthCallbackService
from integration_server.service.connections.oauth_connection import OAuthConnectionService
from integration_server.service.connections.ports import AuthorizationAttemptStore
from integration_server.service.connections.redirect_allowlist import RedirectAllowlist
from integration_server.service.connections.revocation import RevocationService, RevocationTimes
from integration_server.service.connections.revocation_ports import RevocationOutbox
from integration_server.service.connections.token_storage import TokenStorage
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.credentials.grant_confirmation import GrantConfirmation
from integration_server.service.credentials.integration_cache import CachedLookup, RaceSafeCache
from integration_server.service.credentials.ports import RefreshJournal, RefreshLeases
from integration_server.service.credentials.refresh_commit import RefreshCommitter
from integration_server.service.credentials.refresh_failures import (
    MASS_FAILURE_COUNT,
    InvalidGrantDetector,
    RefreshFailurePolicy,
)
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.credentials.shared_reads import SharedReads
from integration_server.service.events.change_feed_reader import MIN_POLL_INTERVAL, ChangeFeedReader
from integration_server.service.events.event_stream import EventStream
from integration_server.service.events.ports import ChangeFeed
from integration_server.service.health.health_checks import HealthChecker
from integration_server.service.health.ports import HealthHistory
from integration_server.service.integrations.integration_manager import IntegrationManager
from integration_server.service.integrations.ports import IntegrationLookup, IntegrationStore
from integration_server.service.oauth_clients.client_authentication import ClientAuthentication
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory
from integration_server.service.oauth_clients.oauth_client_manager import OAuthClientManager
from integration_server.service.oauth_clients.ports import OAuthClientStore
from integration_server.service.provider_port import ProviderSet
from integration_server.service.proxy.calls import ApiProxy
from integration_server.service.proxy.rate_limiter import DistributedLimiter, RateLimiters
from integration_server.service.webhooks.ports import UnroutedWebhooks, WebhookEndpoints, WebhookInbox, WebhookRoutes
from integration_server.service.webhooks.unrouted_webhooks import UnroutedWebhookLog
from integration_server.service.webhooks.webhook_delivery import WebhookDelivery
from integration_server.service.webhooks.webhook_ingestion import EndpointCache, WebhookIngestion
from integration_server.service.webhooks.webhook_router import WebhookRouter
from integration_server.service.webhooks.webhook_secrets import WebhookSecrets
from integration_server.settings import Settings
from integration_server.storage.audit import SqlAuditLog
from integration_server.storage.authorization_attempts import SqlAuthorizationAttempts
from integration_server.storage.change_feed import SqlChangeFeed
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.engine import Database, open_database
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.key_encryption import KeyEncryptionKeys
from integration_server.storage.keyring import Keyring, open_keyring
from integration_server.storage.oauth_clients import SqlOAuthClients
from integration_server.storage.refresh_journal import FileRefreshJournal, require_writable
from integration_server.storage.refresh_leases import SqlRefreshLeases
from integration_server.storage.revocations import SqlRevocationOutbox
from integration_server.storage.webhook_endpoints import SqlWebhookEndpoints
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from integration_server.storage.webhook_routing import SqlUnroutedWebhooks, SqlWebhookRoutes, UnroutedLimits
from integration_server.wiring.audit_heads import open_head_recorder
from integration_server.wiring.auth import open_auth_stack
from integration_server.wiring.distributed_limiter import open_distributed_limiter
from integration_server.wiring.grpc_server import CALENDARS_NAME, OPERATOR_NAME, SERVICE_NAME, build_grpc_server
from integration_server.wiring.keys import key_rotation_job, open_key_encryptions
from integration_server.wiring.metrics import (
    SAMPLE_INTERVAL,
    read_cache,
    read_calls,
    read_metrics,
)
from integration_server.wiring.metrics_listener import measured_process, running_metrics_listener
from integration_server.wiring.setting_names import warn_of_unknown_names
from integration_server.wiring.sidecar import SidecarLink, new_sidecar_link, running_sidecar
from integration_server.wiring.system import jitter as secure_jitter
from integration_server.wiring.system import monotonic, random_token, utc_now
from integration_server.wiring.workers import BEAT_INTERVAL, Worker

RegisterProviders = Callable[[ProviderFactory], None]
PeriodicJob = tuple[Callable[[], Awaitable[object]], timedelta]
"""A function and the interval between its calls."""

_SWEEP_INTERVAL = timedelta(seconds=30)  # of the deletion of abandoned authorization attempts
_POLL_INTERVAL = timedelta(seconds=0.5)  # of files that may change
_READINESS_INTERVAL = timedelta(seconds=1)
_DUE_WORK_INTERVAL = timedelta(seconds=1)
_RETENTION_INTERVAL = timedelta(minutes=10)
_MAX_PAGE_BYTES = 1024 * 1024
_REPORT_INTERVAL = timedelta(minutes=1)  # of the numbers of calls that were not served


@dataclass(frozen=True, slots=True)
class ServerAddresses:
    """The addresses at which a running server is reached."""

    grpc_address: str
    sidecar_url: str
    metrics_url: str = ""


@dataclass(frozen=True, slots=True)
class GrpcServer:
    """A running gRPC server. After `drain` the health service reports NOT_SERVING, and event streams end."""

    address: str
    drain: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores that the use cases read and write."""

    integrations: IntegrationStore
    history: HealthHistory
    due_work: DueWork
    attempts: AuthorizationAttemptStore
    leases: RefreshLeases
    revocations: RevocationOutbox
    journal: RefreshJournal
    endpoints: WebhookEndpoints
    inbox: WebhookInbox
    webhook_routes: WebhookRoutes
    unrouted_webhooks: UnroutedWebhooks
    change_feed: ChangeFeed
    oauth_clients: OAuthClientStore


@dataclass(frozen=True, slots=True)
class Service:
    """The use cases and the background work."""

    use_cases: UseCases
    google_calendar: GoogleCalendar
    refresher: TokenRefresher
    device_poller: DeviceAuthorizationPoller
    reader: ChangeFeedReader
    worker: BackgroundWorker
    is_current: Callable[[Integration], bool] | None
    """Whether an integration is in the cache as it is here; None without a cache."""


BuildStores = Callable[[Settings, Database, Callable[[IntegrationId], None]], Stores]
"""Builds the stores over a database. They report each integration that they change to the callback."""


@dataclass(frozen=True, slots=True)
class Storage:
    """An open database, the keyring that encrypts and decrypts its values, and its audit log."""

    database: Database
    keys: KeyEncryptionKeys
    keyring: Keyring
    audit_log: SqlAuditLog

    def heads(self) -> Sequence[Head]:
        """The heads of what this process has written, and of the key set, to be recorded outside the database."""
        return [*self.audit_log.heads(), self.keyring.head]


@asynccontextmanager
async def open_storage(settings: Settings, record_wait: Record = record_nothing) -> AsyncIterator[Storage]:
    """Open the database and its keyring. `record_wait` gets the seconds of each wait for a connection.

    Raises `KeyringError` or `StoreUnavailable`.
    """
    keys = await open_key_encryptions(settings)
    pool_size = settings.database_pool_size
    async with open_database(settings.database_url, pool_size=pool_size, record_wait=record_wait) as database:
        keyring = await open_keyring(database, keys)
        yield Storage(database, keys, keyring, SqlAuditLog(database, keyring))


def sql_stores(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
    """The stores in SQL, and the refresh journal on disk, which is used while the database is unavailable."""
    return Stores(
        SqlIntegrations(database, on_change, settings.user_quotas),
        SqlHealthHistory(database),
        SqlDueWork(database),
        SqlAuthorizationAttempts(database, settings.user_quotas),
        SqlRefreshLeases(database, settings.refresh_lease, settings.forced_refresh_min_interval),
        SqlRevocationOutbox(database),
        FileRefreshJournal(settings.refresh_journal_dir),
        SqlWebhookEndpoints(database, on_change),
        SqlWebhookInbox(database, settings.user_quotas),
        SqlWebhookRoutes(database),
        SqlUnroutedWebhooks(database, UnroutedLimits(max_bytes=settings.unrouted_webhook_max_bytes)),
        SqlChangeFeed(database),
        SqlOAuthClients(database),
    )


def build_providers(
    settings: Settings,
    environment: Mapping[str, str],
    http: ProviderHttp,
    clock: Clock = utc_now,
    extra: Sequence[RegisterProviders] = (),
    record_request: Record = record_nothing,
) -> ProviderRegistry:
    """The registered providers and the extra ones, configured. Raises `ProvidersError`."""
    factory = registered_providers(settings)
    for register in extra:
        register(factory)
    return factory.build(ProviderContext(http, clock, environment, record_request))


def registered_providers(settings: Settings) -> ProviderFactory:
    """The built-in providers, those of plugins and those of `PROVIDERS_DIR`. Raises `ProvidersError`."""
    factory = ProviderFactory()
    register_built_in(factory)
    load_plugins(factory)
    if settings.providers_dir is not None:
        load_toml_providers(settings.providers_dir, factory, dev_mode=settings.dev_mode)
    return factory


@asynccontextmanager
async def running_server(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    extra_providers: Sequence[RegisterProviders] = (),
    clock: Clock = utc_now,
    build_stores: BuildStores = sql_stores,
    server_tasks: Callable[[], DetachedTasks] = DetachedTasks,
) -> AsyncIterator[ServerAddresses]:
    """Run the gRPC server and its sidecar in this process, for development and tests. `serve` runs a process for each.

    Raises what `running_grpc_server` and `running_sidecar` raise.
    """
    metrics = Metrics(is_on=settings.metrics_address is not None)
    with new_sidecar_link() as link:
        server = running_grpc_server(
            settings,
            environment,
            link,
            extra_providers=extra_providers,
            clock=clock,
            build_stores=build_stores,
            server_tasks=server_tasks,
            metrics=metrics,
        )
        async with AsyncExitStack() as stack:
            metrics_url = ""
            if settings.metrics_address is not None:
                await stack.enter_async_context(measured_process(metrics, "server"))
                sources = {"server": LocalSource(metrics)}
                listener = running_metrics_listener(
                    settings.metrics_address, sources, may_move=settings.metrics_may_move
                )
                metrics_url = await stack.enter_async_context(listener)
            running = await stack.enter_async_context(server)
            sidecar_url = await stack.enter_async_context(running_sidecar(settings, link.client(), metrics))
            stack.callback(running.drain)
            yield ServerAddresses(running.address, sidecar_url, metrics_url)


@asynccontextmanager
async def running_grpc_server(
    settings: Settings,
    environment: Mapping[str, str],
    link: SidecarLink,
    *,
    extra_providers: Sequence[RegisterProviders] = (),
    clock: Clock = utc_now,
    build_stores: BuildStores = sql_stores,
    server_tasks: Callable[[], DetachedTasks] = DetachedTasks,
    metrics: Metrics | None = None,
    worker: Worker | None = None,
) -> AsyncIterator[GrpcServer]:
    """Run the gRPC server, which a sidecar reaches over the link. On exit it drains, and calls get time to finish.

    `worker` is what this process is among several; None for the only one.

    `settings.encryption_key` is set unless AWS KMS wraps the data keys. Raises `AddressTaken`, `InvalidFile`,
    `KeyringError`, `ProvidersError`, `SettingsError` or `StoreUnavailable`.
    """
    metrics = metrics or Metrics(is_on=False)
    worker = worker or Worker()
    await asyncio.to_thread(require_writable, settings.refresh_journal_dir)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        http = await enter(ProviderHttp(clock, dev_mode=settings.dev_mode, deadline=settings.provider_timeout))
        record_request = record_provider_requests(metrics)
        providers = build_providers(settings, environment, http, clock, extra_providers, record_request)
        if worker.does_background_work:
            warn_of_unknown_names(providers.all())
        storage = await enter(open_storage(settings, metrics.histogram(METRICS.connection_wait)))
        database, keyring = storage.database, storage.keyring
        head_recorder = await enter(open_head_recorder(settings, storage.heads, clock))
        trail = await enter(AuditTrail(storage.audit_log))
        tasks = await enter(server_tasks())
        cache = RaceSafeCache(settings.credentials_cache_size, monotonic)
        stores = build_stores(settings, database, cache.invalidate)
        used_cache = cache if settings.credentials_cache_size else None
        limiter = await enter(open_distributed_limiter(settings.rate_limit_redis_url))
        rotation = key_rotation_job(settings, database, keyring, stores.due_work, trail, clock)
        service = build_service(
            settings,
            stores,
            providers,
            keyring,
            tasks,
            trail,
            clock,
            limiter,
            rotation,
            cache=used_cache,
            metrics=metrics,
            process=worker,
        )
        sampler = read_metrics(
            metrics, settings, providers.all(), database, service.reader, service.worker, trail, clock
        )

        use_cases = service.use_cases
        count_refusal = metrics.counter(METRICS.peers_limited)
        auth = await enter(open_auth_stack(settings, use_cases.integration_manager, clock, link.token, count_refusal))
        health = ServerHealthServicer([SERVICE_NAME, CALENDARS_NAME, OPERATOR_NAME])
        call_log = CallLog(monotonic)
        stack.enter_context(call_log.watching_grpc_log())
        metrics.read(partial(read_calls, call_log))
        record_call = record_calls(metrics)
        server = build_grpc_server(
            settings,
            use_cases,
            service.google_calendar,
            health,
            auth,
            trail,
            clock,
            call_log,
            record_call,
            service.is_current,
            worker,
            partial(getattr, keyring, "usable_keys"),
        )
        grpc_address, grace = settings.grpc_address, settings.shutdown_grace
        listening = serving(server, str(grpc_address), grace, auth.credentials, local_target=link.target)
        port = await enter(listening)

        async def poll() -> None:
            health.set_ready(await is_ready(stores.integrations, keyring))

        jobs: list[PeriodicJob] = [
            (poll, _READINESS_INTERVAL),
            *((reload, _POLL_INTERVAL) for reload in auth.reloaders),
            (service.refresher.recover, _DUE_WORK_INTERVAL),
            (service.reader.poll_when_due, MIN_POLL_INTERVAL),
            *([(head_recorder.record, settings.audit_heads_interval)] if head_recorder else []),
            (call_log.report, _REPORT_INTERVAL),
            (worker.beat, BEAT_INTERVAL),
        ]
        background_jobs: list[PeriodicJob] = [
            (service.worker.poll, _DUE_WORK_INTERVAL),
            (use_cases.oauth_connection.remove_abandoned, _SWEEP_INTERVAL),
            (use_cases.health_checker.prune, _RETENTION_INTERVAL),
            (use_cases.event_stream.prune, _RETENTION_INTERVAL),
            (use_cases.webhook_ingestion.prune, _RETENTION_INTERVAL),
            *([(sampler.poll, SAMPLE_INTERVAL)] if metrics.is_on else []),
        ]
        await enter(service.worker)
        for job, interval in [*jobs, *(background_jobs if worker.does_background_work else [])]:
            await enter(periodic_job(job, interval))

        def drain() -> None:
            health.drain()
            use_cases.event_stream.drain()

        stack.callback(drain)
        yield GrpcServer(str(grpc_address._replace(port=port)), drain)


def build_service(
    settings: Settings,
    stores: Stores,
    registry: ProviderSet,
    aead: Aead,
    tasks: DetachedTasks,
    trail: AuditTrail,
    clock: Clock,
    distributed_limiter: DistributedLimiter | None,
    key_rotation: DueJob | None = None,
    *,
    cache: RaceSafeCache | None = None,
    metrics: Metrics | None = None,
    process: Worker | None = None,
    random_token: RandomToken = random_token,
    jitter: Jitter = secure_jitter,
    monotonic: Callable[[], float] = monotonic,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    redirects: RedirectAllowlist | None = None,
    keeps_outcomes: bool = True,
    revocation_wait: timedelta = timedelta(seconds=3),
    heartbeat: timedelta = timedelta(seconds=15),
    mass_failure_count: int = MASS_FAILURE_COUNT,
    keeps_shared_grants: bool = True,
    fences_polls: bool = True,
    checks_client_callers: bool = True,
    uses_previous_secrets: bool = True,
) -> Service:
    """Build the use cases and the background work.

    `cache` is the cache of `GetCredentials`, `process` what this process is among several. The other keyword arguments
    are constants of the server, which tests replace: `revocation_wait` is how long `DisconnectIntegration` waits for
    the provider, `heartbeat` the interval between cursors of a quiet event stream, `mass_failure_count` the smallest
    mass failure of refreshes.
    `checks_client_callers` and `uses_previous_secrets` switch off that only some callers may name an OAuth client, and
    that a previous client secret is used.
    `keeps_shared_grants` switches off that a revocation ends no live integration. Without `keeps_outcomes`, callbacks
    are not repeatable, and without `fences_polls` a device authorization is polled whoever has claimed it (negative
    controls).
    """
    metrics = metrics or Metrics(is_on=False)
    process = process or Worker()
    integrations = stores.integrations
    authentication = ClientAuthentication(
        stores.oauth_clients,
        tasks,
        monotonic,
        record_refusal=metrics.counter(METRICS.client_refusals),
        uses_previous=uses_previous_secrets,
    )
    providers = OAuthClientDirectory(
        registry, stores.oauth_clients, aead, authentication, monotonic, checks_callers=checks_client_callers
    )
    # The rest of a message is for the other fields. A page of a megabyte holds the event loop for some milliseconds.
    max_page_bytes = min(settings.grpc_max_message_bytes * 3 // 4, _MAX_PAGE_BYTES)
    lookup: IntegrationLookup = integrations
    is_current = None
    if cache is not None:
        cached = CachedLookup(cache, SharedReads(cache, integrations, tasks))
        metrics.read(partial(read_cache, cached))
        lookup, is_current = cached, cached.is_current
    reader = ChangeFeedReader(stores.change_feed, cache, monotonic, process.feed)
    cipher = CredentialCipher(aead)
    schedule = Schedule(settings.refresh_buffer, settings.health_check_interval or None, jitter)
    webhook_router = WebhookRouter(stores.webhook_routes, aead, clock, monotonic=monotonic)
    detector = InvalidGrantDetector(stores.leases, mass_failure_count)
    account_linker = AccountLinker(
        integrations,
        providers,
        cipher,
        clock,
        schedule,
        trail.enqueue,
        webhook_router.add,
        waits_for_revocations=keeps_shared_grants,
    )
    failures = RefreshFailurePolicy(
        integrations, detector, clock, jitter, record_mass_failure=metrics.counter(METRICS.mass_invalid_grants)
    )
    refresher = TokenRefresher(
        integrations,
        stores.leases,
        RefreshCommitter(integrations, stores.journal, stores.revocations, cipher, clock, schedule),
        failures,
        providers,
        tasks,
        clock,
        random_token,
        jitter,
        trail.enqueue,
        lease_duration=settings.refresh_lease,
        pause=pause,
        record_call=metrics.counter(METRICS.refresh_calls),
        record_outcome=metrics.counter(METRICS.refreshes),
    )
    credentials = CredentialService(
        lookup,
        integrations,
        providers,
        cipher,
        refresher,
        clock,
        buffer=settings.refresh_buffer,
        max_batch_bytes=settings.grpc_max_message_bytes,
    )
    grant_confirmation = GrantConfirmation(
        integrations, credentials, failures, providers, tasks, clock, trail.enqueue, monotonic
    )
    revocation_service = RevocationService(
        integrations,
        stores.revocations,
        stores.due_work,
        providers,
        cipher,
        tasks,
        jitter,
        times=RevocationTimes(settings.refresh_lease, revocation_wait, settings.revocation_give_up),
        keeps_shared_grants=keeps_shared_grants,
    )
    redirects = redirects or RedirectAllowlist(
        settings.public_url,
        settings.allowed_redirect_uris,
        settings.allowed_return_urls,
        settings.default_return_url,
    )
    lifecycle = AttemptLifecycle(stores.attempts, aead, redirects, clock)
    token_storage = TokenStorage(account_linker, revocation_service, providers, clock, pause=pause)
    health_checker = HealthChecker(
        integrations,
        stores.history,
        providers,
        credentials,
        aead,
        tasks,
        clock,
        schedule,
        monotonic,
        deadline=settings.health_check_timeout,
        retention=settings.health_history,
        min_interval=settings.health_check_min_interval,
        max_page_bytes=max_page_bytes,
    )
    unrouted_webhooks = UnroutedWebhookLog(
        stores.unrouted_webhooks,
        aead,
        clock,
        random_token,
        retention=settings.unrouted_webhook_retention,
        monotonic=monotonic,
    )
    webhook_secrets = WebhookSecrets(
        stores.endpoints,
        providers,
        aead,
        clock,
        random_token,
        public_url=settings.public_url,
        grace=settings.webhook_secret_grace,
    )
    api_proxy = ApiProxy(
        credentials,
        integrations,
        providers,
        RateLimiters(
            distributed_limiter,
            monotonic,
            jitter,
            metrics.histogram(METRICS.rate_limit_wait),
            metrics.counter(METRICS.rate_limit_refusals),
            share=1 / process.count,
        ),
        tasks,
        clock,
        deadline=settings.proxy_timeout,
        max_request_bytes=settings.proxy_max_request_bytes,
        max_response_bytes=settings.max_response_bytes,
        stream_idle_timeout=settings.proxy_stream_idle_timeout,
    )
    use_cases = UseCases(
        oauth_connection=OAuthConnectionService(
            stores.attempts,
            lifecycle,
            integrations,
            account_linker,
            providers,
            cipher,
            redirects,
            clock,
            random_token,
            skip_confirmation=settings.skip_confirmation,
        ),
        oauth_callback=OAuthCallbackService(
            stores.attempts,
            lifecycle,
            integrations,
            token_storage,
            providers,
            cipher,
            redirects,
            tasks,
            clock,
            skip_confirmation=settings.skip_confirmation,
            keeps_outcomes=keeps_outcomes,
            pause=pause,
        ),
        api_key_connection=ApiKeyConnectionService(account_linker, providers, tasks, random_token),
        integration_manager=IntegrationManager(integrations, providers, aead, clock, max_page_bytes=max_page_bytes),
        revocation_service=revocation_service,
        credentials=credentials,
        health_checker=health_checker,
        webhook_ingestion=WebhookIngestion(
            EndpointCache(stores.endpoints, monotonic),
            stores.inbox,
            webhook_router,
            unrouted_webhooks,
            webhook_secrets,
            providers,
            aead,
            clock,
            random_token,
            grant_confirmation.start,
            retention=settings.webhook_retention,
            monotonic=monotonic,
            record_outcome=metrics.counter(METRICS.webhooks),
            record_unrouted=metrics.counter(METRICS.webhooks_unrouted),
        ),
        # The payloads of a page leave room for the other fields of the message.
        webhook_delivery=WebhookDelivery(
            integrations, stores.inbox, aead, max_page_bytes=settings.grpc_max_message_bytes * 3 // 4
        ),
        webhook_secrets=webhook_secrets,
        unrouted_webhooks=unrouted_webhooks,
        event_stream=EventStream(
            stores.change_feed, reader, providers, aead, retention=settings.event_retention, heartbeat=heartbeat
        ),
        api_proxy=api_proxy,
        oauth_clients=OAuthClientManager(
            stores.oauth_clients,
            registry,
            aead,
            clock,
            random_token,
            failures.probe,
            public_url=settings.public_url,
        ),
    )
    device_poller = DeviceAuthorizationPoller(
        lifecycle,
        token_storage,
        stores.attempts,
        integrations,
        providers,
        cipher,
        tasks,
        clock,
        # Longer than a request for the tokens and those that complete them take.
        claim_duration=6 * settings.provider_timeout,
        fences_polls=fences_polls,
        pause=pause,
    )
    jobs = [
        # Longer than waiting for the lease of another process and the refresh take together.
        DueJob(JobKind.REFRESH, lambda claim: refresher.refresh_proactively(claim.item), 3 * settings.refresh_lease),
        DueJob(JobKind.CHECK, health_checker.check_due, 3 * settings.health_check_timeout),
        # Grants of unknown providers are claimed too: they are given up at the time limit.
        DueJob(JobKind.REVOCATION, revocation_service.retry, settings.refresh_lease, needs_provider=False),
        DueJob(JobKind.DEVICE_POLL, device_poller.poll, device_poller.claim_duration),
        *([key_rotation] if key_rotation else []),
    ]
    limits = WorkerLimits(settings.background_calls_per_provider, settings.background_calls_per_second)
    worker = BackgroundWorker(jobs, stores.due_work, providers, clock, jitter, limits=limits, pause=pause)
    google_calendar = GoogleCalendar(credentials, api_proxy, GoogleCalendarApi())
    return Service(use_cases, google_calendar, refresher, device_poller, reader, worker, is_current)


async def is_ready(integrations: IntegrationStore, keyring: Keyring) -> bool:
    """Whether the database responds and this process can unwrap every data key in it."""
    try:
        await integrations.ping()
        await keyring.reload()
    except Exception as error:  # any failure means not ready
        first_line = str(error).partition("\n")[0]
        structlog.get_logger(__name__).warning("not_ready", kind=type(error).__name__, message=first_line)
        return False
    return True
