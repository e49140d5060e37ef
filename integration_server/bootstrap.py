"""The whole object graph on one page: the only file that names every concrete class."""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from random import SystemRandom

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from integration_server.domain.errors import ProviderUnavailable, StoreUnavailable
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.lifecycle import AddressTaken, GrpcLimits, repeating, serving, share_of_files
from integration_server.providers import (
    acuity,
    booksy,
    custom,
    dropbox,
    github,
    gmail,
    google_ads,
    google_calendar,
    google_my_business,
    hubspot,
    instagram,
    mailchimp,
    meta_business,
    microsoft_outlook,
    quickbooks,
    salesforce,
    sendgrid,
    shopify,
    slack,
    square,
    stripe,
    stripe_api_key,
    twilio,
    xero,
    zoom,
)
from integration_server.providers.base import ProviderContext
from integration_server.providers.declared import load_declared
from integration_server.providers.entry_points import load_entry_points
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.google_calendar_api import GoogleCalendarApi
from integration_server.providers.http import ProviderHttp
from integration_server.providers.network import CheckedNetwork
from integration_server.providers.urls import origin_of
from integration_server.reloading import Reloaded
from integration_server.rpc.audit import AuditInterceptor
from integration_server.rpc.callers import Kind
from integration_server.rpc.certificates import ServerCertificates
from integration_server.rpc.deadlines import DeadlineInterceptor
from integration_server.rpc.errors import ErrorInterceptor
from integration_server.rpc.google_calendar import GoogleCalendarService
from integration_server.rpc.guard import CallerInterceptor, Confinement, Doorkeeper, caller_of
from integration_server.rpc.health import Health
from integration_server.rpc.integration_service import IntegrationService, UseCases
from integration_server.rpc.limits import CallLimits, peer_of
from integration_server.rpc.policy import read_policy
from integration_server.rpc.tokens import IssuedTokens, Issuer, Keys, KeysAtUrl, KeysInFile, read_key_file
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
from integration_server.service.throttling import NothingShared, SharedBudgets, Throttling
from integration_server.service.upkeep import Pace, Upkeep
from integration_server.service.watching import LOOK_EVERY as LOOK_AT_EVENTS_EVERY
from integration_server.service.watching import Watching
from integration_server.service.webhook_secrets import WebhookSecrets
from integration_server.settings import Address, Settings, SettingsError, is_url
from integration_server.sidecar.connection import Connection, Papers
from integration_server.sidecar.limits import HttpLimits
from integration_server.sidecar.server import run_sidecar
from integration_server.storage.agenda import SqlAgenda
from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.audit import SqlAuditLog
from integration_server.storage.changes import SqlChanges
from integration_server.storage.claims import WorkClaim
from integration_server.storage.engine import Database, open_database
from integration_server.storage.events import SqlEventLog
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.key_encryption import KeyEncryption, KeyEncryptions, KeyringError, LocalKey
from integration_server.storage.keyring import Keyring, open_keyring
from integration_server.storage.leases import SqlRefreshLeases
from integration_server.storage.revocations import SqlRevocations
from integration_server.storage.rotation import Rotation, RotationByAge
from integration_server.storage.spill import SpillDirectory
from integration_server.storage.webhook_endpoints import SqlWebhookEndpoints
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from integrations.v1 import (
    google_calendar_pb2,
    google_calendar_pb2_grpc,
    integration_service_pb2,
    integration_service_pb2_grpc,
)

Register = Callable[[ProviderFactory], None]

SERVICE_NAME = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].full_name
CALENDARS_NAME = google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"].full_name
HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
BUILT_IN = (
    acuity,
    booksy,
    custom,
    dropbox,
    github,
    gmail,
    google_ads,
    google_calendar,
    google_my_business,
    hubspot,
    instagram,
    mailchimp,
    meta_business,
    microsoft_outlook,
    quickbooks,
    salesforce,
    sendgrid,
    shopify,
    slack,
    square,
    stripe,
    stripe_api_key,
    twilio,
    xero,
    zoom,
)

_SWEEP_EVERY = timedelta(seconds=30)  # abandoned connections go within this time of their end
_LOOK_EVERY = timedelta(seconds=0.5)  # readiness follows the database within this time, and that of a look
_WORK_EVERY = timedelta(seconds=1)  # what is due, or waited for the database, is begun within this time
_FORGET_EVERY = timedelta(minutes=10)  # checks that are too old
_ROTATE_EVERY = timedelta(seconds=30)  # a data key that is too old is seen within this time
_ROTATION_SHARE = 0.1  # of the time: calls should not notice
_ROTATION_CLAIM = timedelta(minutes=1)  # longer than any step of a rotation; a crashed server's is free after it


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


@dataclass(frozen=True, slots=True)
class Servicers:
    """What answers calls."""

    integrations: IntegrationService
    google_calendar: GoogleCalendarService
    health: Health


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


def utc_now() -> datetime:
    """The time, aware of its zone."""
    return datetime.now(UTC)


def random_name() -> str:
    """256 bits from the system, in 43 URL-safe characters."""
    return secrets.token_urlsafe(32)


def anywhere(_address: object) -> bool:
    """Any address may be reached."""
    return True


def seconds_passed() -> float:
    """Seconds since some moment, those included for which the machine slept where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


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


async def open_key_encryptions(settings: Settings, key: bytes | None) -> KeyEncryptions:
    """The key-encryption keys: AWS KMS wraps where it is set up, else `key` does, the local one; the others unwrap.

    Raises `KeyringError` or `StoreUnavailable`.
    """
    local = [LocalKey(one) for one in (key, *settings.encryption_keys_retired) if one is not None]
    kms = await _open_kms([one for one in (settings.kms_key_id, *settings.kms_key_ids_retired) if one is not None])
    current, *former = [*kms, *local] if settings.kms_key_id is not None else [*local, *kms]
    return KeyEncryptions(current, former)


async def _open_kms(key_ids: Sequence[str]) -> Sequence[KeyEncryption]:
    if not key_ids:
        return ()
    try:
        # An optional extra, and a tenth of a second that others should not pay.
        from integration_server.storage.aws_kms import open_aws_kms  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise KeyringError("AWS KMS needs the extra `aws`: pip install 'integration-server[aws]'") from error
    return await open_aws_kms(key_ids)


def rotation_by_age(database: Database, keyring: Keyring, activation: timedelta, max_age: timedelta) -> RotationByAge:
    """What replaces data keys that are too old, in the background."""
    return RotationByAge(
        database,
        Rotation(database, keyring, activation=activation),
        WorkClaim(database, "data key rotation", random_name(), _ROTATION_CLAIM),
        max_age=max_age,
        share=_ROTATION_SHARE,
    )


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
    http = ProviderHttp(clock, dev_mode=settings.dev_mode, deadline=settings.provider_timeout)
    providers = build_providers(settings, environment, http, clock, further_providers)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(http)
        database = await stack.enter_async_context(
            open_database(settings.database_url, pool_size=settings.database_pool_size)
        )
        keyring = await open_keyring(database, await open_key_encryptions(settings, key))
        trail = await stack.enter_async_context(AuditTrail(SqlAuditLog(database, keyring)))
        tasks = await stack.enter_async_context(server_tasks())
        memory, changes = Memory(settings.credentials_cache_size, seconds_passed), SqlChanges(database)
        stores = build_stores(settings, database, memory.forget)
        remembering = RememberingLookup(memory, stores.integrations, changes, seconds_passed)
        lookup = remembering if settings.credentials_cache_size else stores.integrations
        budgets = await stack.enter_async_context(shared_budgets(settings.rate_limit_url))
        service = build_service(settings, stores, lookup, providers, keyring, tasks, trail, clock, budgets)
        health = Health([SERVICE_NAME, CALENDARS_NAME])
        # Named by the operator, and mostly inside.
        keys_http = ProviderHttp(clock, dev_mode=settings.dev_mode, network=CheckedNetwork(anywhere))
        await stack.enter_async_context(keys_http)
        guard = build_guard(settings, keys_http, service.use_cases.managing, clock)
        servicers = Servicers(
            IntegrationService(service.use_cases, clock), GoogleCalendarService(service.google_calendar), health
        )
        server = build_grpc_server(settings, servicers, guard, trail, clock)

        async def look() -> None:
            health.set_ready(await is_ready(stores.integrations, keyring))

        port = await stack.enter_async_context(
            serving(server, str(settings.grpc_address), settings.shutdown_grace, guard.credentials)
        )
        for look_again in guard.looks:
            await stack.enter_async_context(repeating(look_again, _LOOK_EVERY))
        await stack.enter_async_context(repeating(look, _LOOK_EVERY))
        await stack.enter_async_context(repeating(service.refreshing.recover, _WORK_EVERY))
        await stack.enter_async_context(repeating(service.use_cases.revoking.revoke_due, _WORK_EVERY))
        for upkeep in service.upkeep:
            await stack.enter_async_context(upkeep)
            await stack.enter_async_context(repeating(upkeep.look, _WORK_EVERY))
        await stack.enter_async_context(repeating(service.use_cases.connecting.remove_abandoned, _SWEEP_EVERY))
        await stack.enter_async_context(repeating(service.use_cases.monitoring.prune, _FORGET_EVERY))
        if settings.credentials_cache_size:
            await stack.enter_async_context(repeating(remembering.follow, LOOK_EVERY))
        watching = service.use_cases.watching
        await stack.enter_async_context(repeating(watching.look, LOOK_AT_EVENTS_EVERY))
        await stack.enter_async_context(repeating(watching.prune, _FORGET_EVERY))
        await stack.enter_async_context(repeating(service.use_cases.receiving.prune, _FORGET_EVERY))
        await stack.enter_async_context(repeating(changes.prune, PRUNE_EVERY))
        if settings.data_key_max_age is not None:
            by_age = rotation_by_age(database, keyring, settings.data_key_activation, settings.data_key_max_age)
            await stack.enter_async_context(repeating(by_age.look, _ROTATE_EVERY))
        grpc_address = settings.grpc_address._replace(port=port)
        sidecar_url = await stack.enter_async_context(running_sidecar(settings, grpc_address))
        stack.callback(watching.drain)
        stack.callback(health.drain)
        yield Running(str(grpc_address), sidecar_url)


@asynccontextmanager
async def running_sidecar(settings: Settings, server: Address) -> AsyncIterator[str]:
    """The sidecar on its address, a client of the server's; yields its own URL. Raises `AddressTaken`."""
    listen = settings.sidecar_address
    papers = Papers(
        authorities=settings.sidecar_tls_ca_file,
        certificate=settings.sidecar_tls_cert_file,
        key=settings.sidecar_tls_key_file,
        token=settings.sidecar_token_file,
        server_name=settings.sidecar_tls_server_name,
    )
    connection = Connection(str(reachable(server)), papers)
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(
                run_sidecar(
                    server=connection,
                    host=listen.host,
                    port=listen.port,
                    limits=http_limits_of(settings),
                    public_url=settings.public_url,
                )
            )
        except OSError as error:
            raise AddressTaken(f"cannot listen on {listen} (SIDECAR_ADDRESS): {error.strerror}") from error
        await stack.enter_async_context(repeating(connection.look, _LOOK_EVERY))
        yield url


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands before the servicers, and what must be looked at again and again for it."""

    interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    credentials: grpc.ServerCredentials | None = None
    looks: Sequence[Callable[[], Awaitable[None]]] = ()


def build_guard(settings: Settings, http: ProviderHttp, managing: Managing, clock: Clock) -> Guard:
    """What knows the callers; empty where none are to be known. Raises `Unusable` with what is wrong in its files."""
    certificates = None
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        certificates = ServerCertificates(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
    credentials = None if certificates is None else certificates.credentials()
    looks = [] if certificates is None else [certificates.look]
    if settings.policy_file is None:
        return Guard((), credentials, looks)
    policy = Reloaded("policy", [settings.policy_file], lambda contents: read_policy(contents, managing.own_name))
    issuers = build_issuers(settings, http, clock)
    tokens = IssuedTokens(issuers, settings.jwt_algorithms, settings.jwt_leeway, clock) if issuers else None

    async def type_of(integration_id: IntegrationId, user_id: UserId) -> str:
        return (await managing.get_integration(integration_id, user_id)).integration_type

    doorkeeper = Doorkeeper(lambda: policy.value, tokens, clock, health_is_open=settings.health_open)
    looks += [policy.look, *(issuer.keys.look for issuer in issuers)]
    return Guard([CallerInterceptor(doorkeeper, Confinement(type_of, managing.own_name))], credentials, looks)


@asynccontextmanager
async def shared_budgets(url: str | None) -> AsyncIterator[SharedBudgets]:
    """What counts calls to providers for all servers that name the same storage; without one each counts its own."""
    if url is None:
        yield NothingShared()
        return
    try:
        from integration_server.storage.budgets import RedisBudgets  # noqa: PLC0415  # an optional extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            ["RATE_LIMIT_URL: needs the extra `redis`: pip install 'integration-server[redis]'"]
        ) from error
    async with RedisBudgets(url) as budgets:
        yield budgets


def build_issuers(settings: Settings, http: ProviderHttp, clock: Clock) -> Sequence[Issuer]:
    """Whose tokens are taken: the issuer of services', and that of users'."""

    def keys(place: str) -> Keys:
        if not is_url(place):
            return KeysInFile(Reloaded("keys", [Path(place)], read_key_file))

        async def fetch() -> bytes:
            answer = await http.request("GET", place, allowed_origins=[origin_of(place)])
            if not answer.is_success:
                raise ProviderUnavailable
            return answer.body

        return KeysAtUrl(fetch, clock)

    given = (
        (Kind.TOKEN, settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks),
        (Kind.USER, settings.user_jwt_issuer, settings.user_jwt_audience, settings.user_jwt_jwks),
    )
    return [
        Issuer(kind, issuer, audience, keys(place))
        for kind, issuer, audience, place in given
        if issuer is not None and audience is not None and place is not None
    ]


def reachable(server: Address) -> Address:
    """Where a server that listens there can be reached from this machine."""
    try:
        address = ip_address(server.host)
    except ValueError:
        return server
    if not address.is_unspecified:
        return server
    return server._replace(host="127.0.0.1" if address.version == 4 else "::1")


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
        patience=Patience(with_holder=1.5 * settings.refresh_lease, with_lost_call=3 * settings.refresh_lease),
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


def build_grpc_server(
    settings: Settings,
    servicers: Servicers,
    guard: Guard,
    trail: AuditTrail,
    clock: Clock,
) -> grpc.aio.Server:
    """The server with its services; where it may be, with reflection, so that grpcurl and the like can explore it."""
    who = caller_of if guard.interceptors else peer_of
    limits = CallLimits(
        who,
        concurrency=settings.caller_max_concurrency,
        per_second=settings.caller_max_calls_per_second,
    )
    server = grpc.aio.server(
        interceptors=[
            ErrorInterceptor(),
            DeadlineInterceptor(),
            *guard.interceptors,
            limits,
            AuditInterceptor(trail, who, clock),
        ],
        options=grpc_limits_of(settings).options(),
    )
    integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server(servicers.integrations, server)
    google_calendar_pb2_grpc.add_GoogleCalendarServiceServicer_to_server(servicers.google_calendar, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicers.health, server)
    # Behind a guard the policy says who may explore the server.
    if settings.dev_mode or settings.authenticates_callers:
        names = (SERVICE_NAME, CALENDARS_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def grpc_limits_of(settings: Settings) -> GrpcLimits:
    """What clients can take of the gRPC server: half of the open files at most."""
    return GrpcLimits(
        connections=share_of_files(settings.grpc_max_connections, 1 / 2, setting="GRPC_MAX_CONNECTIONS"),
        streams_per_connection=settings.grpc_max_streams_per_connection,
        message_bytes=settings.grpc_max_message_bytes,
        metadata_bytes=settings.grpc_max_metadata_bytes,
        handshake=timedelta(seconds=settings.grpc_handshake_seconds),
        connection_idle=timedelta(seconds=settings.grpc_connection_idle_seconds),
        connection_age=timedelta(seconds=settings.grpc_connection_age_seconds),
    )


def http_limits_of(settings: Settings) -> HttpLimits:
    """What clients can take of the sidecar: a quarter of the open files at most."""
    return HttpLimits(
        connections=share_of_files(settings.sidecar_max_connections, 1 / 4, setting="SIDECAR_MAX_CONNECTIONS"),
        body_bytes=settings.sidecar_max_body_bytes,
        head_time=timedelta(seconds=settings.sidecar_head_seconds),
        body_time=timedelta(seconds=settings.sidecar_body_seconds),
    )


async def is_ready(integrations: IntegrationStore, keyring: Keyring) -> bool:
    """Whether the database answers, and every data key in it can be opened here."""
    try:
        await integrations.ping()
        await keyring.reload()
    except (StoreUnavailable, KeyringError) as error:
        structlog.get_logger(__name__).warning("not_ready", kind=type(error).__name__, message=str(error))
        return False
    return True
