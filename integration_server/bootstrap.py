"""The composition root: the whole object graph on one page.

`running_server` is the whole server in one process, `running_grpc_server` its part with keys and database, and
`build_service` the use cases. `wiring/` builds the groups of objects that are named here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from integration_server.domain.due_times import Schedule
from integration_server.domain.integration_cache import RaceSafeCache
from integration_server.lifecycle import periodic_job, serving
from integration_server.logs import written_access_log
from integration_server.observability.listener import LocalSource
from integration_server.observability.metrics import (
    METRICS,
    Metrics,
    certificate_samples,
    record_calls,
    record_provider_requests,
)
from integration_server.observability.spans import OpenSpan, Tracing
from integration_server.providers.google_calendar_api import GoogleCalendarApi
from integration_server.providers.http import ProviderHttp
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.health import ServerHealthServicer
from integration_server.rpc.integration_service import UseCases
from integration_server.rpc.interceptors import RecordCall
from integration_server.rpc.methods import Method
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.background.background_worker import BackgroundWorker, DueJob
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.calendar.google_calendar import GoogleCalendar
from integration_server.service.common_types import Aead, Clock
from integration_server.service.connections.device_polling import DeviceAuthorizationPoller
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.integration_lookup import CachedLookup, SharedReads
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.events.change_feed_reader import POLL_INTERVAL, ChangeFeedReader
from integration_server.service.events.event_stream import EventStream
from integration_server.service.events.watched_changes import ChangeDispatcher
from integration_server.service.health.health_checks import HealthChecker
from integration_server.service.integrations.integration_manager import IntegrationManager
from integration_server.service.integrations.ports import IntegrationLookup
from integration_server.service.oauth_clients.oauth_client_directory import ClientAuthentication, OAuthClientDirectory
from integration_server.service.oauth_clients.oauth_client_manager import OAuthClientManager
from integration_server.service.operators.audit_log_reader import AuditLogReader
from integration_server.service.operators.due_work_list import DueWorkList
from integration_server.service.operators.integration_search import IntegrationSearch
from integration_server.service.provider_port import ProviderSet
from integration_server.service.proxy.calls import ApiProxy
from integration_server.service.proxy.rate_limiter import DistributedLimiter, RateLimiters
from integration_server.service.webhooks.webhook_router import WebhookRouter
from integration_server.settings import Settings
from integration_server.storage.refresh_journal import require_writable
from integration_server.wiring.audit_heads import open_head_recorder
from integration_server.wiring.auth import open_auth_stack
from integration_server.wiring.background import build_worker
from integration_server.wiring.connections import build_connections
from integration_server.wiring.credentials import build_credentials
from integration_server.wiring.distributed_limiter import open_distributed_limiter
from integration_server.wiring.grpc_server import SERVICE_NAMES, build_grpc_server
from integration_server.wiring.keys import key_rotation_job
from integration_server.wiring.metrics import SAMPLE_INTERVAL, read_cache, read_calls, read_metrics
from integration_server.wiring.metrics_listener import measured_process, running_metrics_listener
from integration_server.wiring.providers import RegisterProviders, build_providers
from integration_server.wiring.service_parts import Constants, ServiceParts
from integration_server.wiring.setting_names import warn_of_unknown_names
from integration_server.wiring.sidecar import SidecarLink, new_sidecar_link, running_sidecar
from integration_server.wiring.storage import (
    BuildStores,
    ReadinessLog,
    Stores,
    open_storage,
    sql_stores,
    why_not_ready,
)
from integration_server.wiring.system import monotonic, utc_now
from integration_server.wiring.traces import opened_tracing, span_functions
from integration_server.wiring.webhooks import build_webhooks
from integration_server.wiring.workers import BEAT_INTERVAL, Worker

PeriodicJob = tuple[Callable[[], Awaitable[object]], timedelta]
"""A function and the interval between its calls."""

_SWEEP_INTERVAL = timedelta(seconds=30)  # of the deletion of expired claims and abandoned authorization attempts
_POLL_INTERVAL = timedelta(seconds=0.5)  # of files that may change
_READINESS_INTERVAL = timedelta(seconds=1)
_DUE_WORK_INTERVAL = timedelta(seconds=1)
_RENEWAL_INTERVAL = timedelta(seconds=1)  # of entries of the cache
_RETENTION_INTERVAL = timedelta(minutes=10)
_REPORT_INTERVAL = timedelta(minutes=1)  # of the numbers of calls that were not served


@dataclass(frozen=True, slots=True)
class ServerAddresses:
    """The addresses at which a running server is reached."""

    grpc_address: str
    sidecar_url: str
    metrics_url: str = ""


@dataclass(frozen=True, slots=True)
class GrpcServer:
    """A running gRPC server. After `drain` the health service reports NOT_SERVING, and calls are served as before."""

    address: str
    drain: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Service:
    """The use cases and the background work."""

    use_cases: UseCases
    google_calendar: GoogleCalendar
    refresher: TokenRefresher
    device_poller: DeviceAuthorizationPoller
    reader: ChangeFeedReader
    worker: BackgroundWorker
    cached: CachedLookup | None
    """The lookup through the cache of `GetCredentials`; None without a cache."""
    reads: SharedReads | None
    """The reads of the store of that lookup."""

    async def aclose(self) -> None:
        """End what runs without a call."""
        if self.reads is not None:
            await self.reads.aclose()


@asynccontextmanager
async def running_server(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    extra_providers: Sequence[RegisterProviders] = (),
    clock: Clock = utc_now,
    build_stores: BuildStores = sql_stores,
    server_tasks: Callable[[], DetachedTasks] = DetachedTasks,
    on_call: RecordCall | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[ServerAddresses]:
    """Run the gRPC server and its sidecar in this process, for development and tests. `serve` runs a process for each.

    `on_call` is called at the end of each RPC.

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
            on_call=on_call,
            tracing=tracing,
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
            sidecar_url = await stack.enter_async_context(
                running_sidecar(settings, link.client(), metrics, tracing=tracing)
            )
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
    on_call: RecordCall | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[GrpcServer]:
    """Run the gRPC server, which a sidecar reaches over the link. On exit streams end, and calls get time to finish.

    `worker` is what this process is among several; None for the only one. `tracing` takes the place of that of the
    settings.

    `settings.encryption_key` is set unless AWS KMS wraps the data keys. Raises `AddressTaken`, `InvalidFile`,
    `KeyringError`, `ProvidersError`, `SettingsError` or `StoreUnavailable`.
    """
    metrics = metrics or Metrics(is_on=False)
    worker = worker or Worker()
    await asyncio.to_thread(require_writable, settings.refresh_journal_dir)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        tracing = await enter(opened_tracing(settings, worker.name, tracing))
        open_span, add_span, open_job_span = span_functions(tracing)
        http = await enter(
            ProviderHttp(clock, dev_mode=settings.dev_mode, deadline=settings.provider_timeout, open_span=open_span)
        )
        record_request = record_provider_requests(metrics)
        providers = build_providers(settings, environment, http, clock, extra_providers, record_request)
        if worker.does_background_work:
            warn_of_unknown_names(providers.all())
        storage = await enter(open_storage(settings, metrics.histogram(METRICS.connection_wait), add_span))
        database, keyring = storage.database, storage.keyring
        head_recorder = await enter(open_head_recorder(settings, storage.heads, clock))
        trail = await enter(AuditTrail(storage.audit_log))
        tasks = await enter(server_tasks())
        cache = RaceSafeCache(settings.credentials_cache_size // 2, monotonic)  # the other half is for responses
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
            open_job_span=open_job_span,
        )
        stack.push_async_callback(service.aclose)
        sampler = read_metrics(
            metrics, settings, providers.all(), database, service.reader, service.worker, trail, clock
        )

        use_cases = service.use_cases
        count_refusal = metrics.counter(METRICS.peers_limited)
        auth = await enter(open_auth_stack(settings, use_cases.integration_manager, clock, link.token, count_refusal))
        health = ServerHealthServicer(SERVICE_NAMES)
        call_log = CallLog(monotonic)
        stack.enter_context(call_log.watching_grpc_log())
        metrics.read(partial(read_calls, call_log), lambda: certificate_samples(auth.validity_periods(), clock()))
        record_call = record_calls(metrics) if on_call is None else _record_both(record_calls(metrics), on_call)
        access_log = stack.enter_context(written_access_log(is_on=settings.access_log))
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
            service.cached.is_current if service.cached else None,
            worker,
            keyring.usable_keys,
            access_log,
            tracing,
        )

        def end_streams() -> None:
            health.stop()
            use_cases.event_stream.stop()
            use_cases.watched_changes.stop()

        port = await enter(
            serving(
                server,
                str(settings.grpc_address),
                settings.shutdown_grace,
                auth.credentials,
                local_target=link.target,
                end_streams=end_streams,
            )
        )

        readiness_log = ReadinessLog()

        async def poll() -> None:
            health.set_ready(readiness_log.note(await why_not_ready(stores.integrations, keyring)))

        jobs: list[PeriodicJob] = [
            (poll, _READINESS_INTERVAL),
            *((reload, _POLL_INTERVAL) for reload in auth.reloaders),
            (service.refresher.recover, _DUE_WORK_INTERVAL),
            (service.reader.poll_when_due, POLL_INTERVAL),
            (service.reader.poll_when_notified, timedelta(0)),
            *([(service.cached.renew, _RENEWAL_INTERVAL)] if service.cached else []),
            *([(head_recorder.record, settings.audit_heads_interval)] if head_recorder else []),
            (call_log.report, _REPORT_INTERVAL),
            (worker.beat, BEAT_INTERVAL),
        ]
        background_jobs: list[PeriodicJob] = [
            (service.worker.poll, _DUE_WORK_INTERVAL),
            (stores.due_work.prune, _SWEEP_INTERVAL),
            (use_cases.oauth_connection.remove_abandoned, _SWEEP_INTERVAL),
            (use_cases.health_checker.prune, _RETENTION_INTERVAL),
            (use_cases.event_stream.prune, _RETENTION_INTERVAL),
            (use_cases.webhook_ingestion.prune, _RETENTION_INTERVAL),
            *([(sampler.poll, SAMPLE_INTERVAL)] if metrics.is_on else []),
        ]
        await enter(service.worker)
        for job, interval in [*jobs, *(background_jobs if worker.does_background_work else [])]:
            await enter(periodic_job(job, interval))
        stack.callback(health.drain)
        yield GrpcServer(str(settings.grpc_address._replace(port=port)), health.drain)


def _record_both(first: RecordCall, second: RecordCall) -> RecordCall:
    def record(method: Method, status: str, reason: str, seconds: float) -> None:
        first(method, status, reason, seconds)
        second(method, status, reason, seconds)

    return record


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
    constants: Constants | None = None,
    open_job_span: OpenSpan | None = None,
) -> Service:
    """Build the use cases and the background work. `open_job_span` opens a span for each item of background work.

    `cache` is the cache of `GetCredentials`, `process` what this process is among several.
    """
    metrics, process, constants = metrics or Metrics(is_on=False), process or Worker(), constants or Constants()
    integrations, monotonic, random_token = stores.integrations, constants.monotonic, constants.random_token
    authentication = ClientAuthentication(
        stores.oauth_clients,
        tasks,
        monotonic,
        record_refusal=metrics.counter(METRICS.client_refusals),
        uses_previous=constants.uses_previous_secrets,
    )
    providers = OAuthClientDirectory(
        registry, stores.oauth_clients, aead, authentication, monotonic, checks_callers=constants.checks_client_callers
    )
    cipher = CredentialCipher(aead)
    schedule = Schedule(settings.refresh_buffer, settings.health_check_interval or None, constants.jitter)
    parts = ServiceParts(settings, stores, providers, aead, cipher, schedule, tasks, trail, clock, metrics, constants)
    reads, cached = None, None
    if cache is not None:
        reads = SharedReads(cache, integrations)
        cached = CachedLookup(cache, reads)
        metrics.read(partial(read_cache, cached))
    lookup: IntegrationLookup = cached or integrations

    reader = ChangeFeedReader(stores.change_feed, cache, monotonic, process.feed)
    webhook_router = WebhookRouter(stores.webhook_routes, aead, clock, monotonic=monotonic)
    credentials = build_credentials(parts, lookup)
    connections = build_connections(parts, webhook_router)
    webhooks = build_webhooks(parts, webhook_router, credentials.grant_confirmation)
    health_checker = HealthChecker(
        integrations,
        stores.integration_lists,
        stores.history,
        providers,
        credentials.service,
        aead,
        tasks,
        clock,
        schedule,
        monotonic,
        deadline=settings.health_check_timeout,
        retention=settings.health_history,
        min_interval=settings.health_check_min_interval,
        max_page_bytes=parts.max_page_bytes,
    )
    rate_limiters = RateLimiters(
        distributed_limiter,
        monotonic,
        constants.jitter,
        metrics.histogram(METRICS.rate_limit_wait),
        metrics.counter(METRICS.rate_limit_refusals),
        share=1 / process.count,
    )
    api_proxy = ApiProxy(
        credentials.service,
        integrations,
        providers,
        rate_limiters,
        tasks,
        clock,
        deadline=settings.proxy_timeout,
        max_request_bytes=settings.proxy_max_request_bytes,
        max_response_bytes=settings.max_response_bytes,
        stream_idle_timeout=settings.proxy_stream_idle_timeout,
    )
    use_cases = UseCases(
        oauth_connection=connections.oauth_connection,
        oauth_callback=connections.oauth_callback,
        api_key_connection=connections.api_key_connection,
        revocation_service=connections.revocation_service,
        integration_manager=IntegrationManager(
            integrations, stores.integration_lists, providers, aead, clock, max_page_bytes=parts.max_page_bytes
        ),
        credentials=credentials.service,
        health_checker=health_checker,
        webhook_ingestion=webhooks.ingestion,
        webhook_delivery=webhooks.delivery,
        webhook_secrets=webhooks.secrets,
        unrouted_webhooks=webhooks.unrouted,
        event_stream=EventStream(
            stores.change_feed,
            reader,
            providers,
            aead,
            retention=settings.event_retention,
            heartbeat=constants.heartbeat,
        ),
        watched_changes=ChangeDispatcher(stores.change_feed, reader, aead, retention=settings.event_retention),
        api_proxy=api_proxy,
        oauth_clients=OAuthClientManager(
            stores.oauth_clients,
            registry,
            aead,
            clock,
            random_token,
            credentials.failures.probe,
            public_url=settings.public_url,
        ),
        integration_search=IntegrationSearch(
            stores.integration_search, providers, aead, clock, max_page_bytes=parts.max_page_bytes
        ),
        due_work_list=DueWorkList(stores.due_work, stores.due_rows, aead),
        audit_log_reader=AuditLogReader(stores.audit_entries, aead),
    )
    worker = build_worker(
        parts,
        credentials.refresher,
        health_checker,
        connections.revocation_service,
        connections.device_poller,
        key_rotation,
        open_job_span,
    )
    google_calendar = GoogleCalendar(credentials.service, api_proxy, GoogleCalendarApi())
    return Service(
        use_cases, google_calendar, credentials.refresher, connections.device_poller, reader, worker, cached, reads
    )
