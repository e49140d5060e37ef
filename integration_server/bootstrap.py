"""The whole object graph on one page: the only file that names every concrete class."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import SystemRandom

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from integration_server.domain.errors import StoreUnavailable
from integration_server.lifecycle import AddressTaken, GrpcLimits, repeating, serving, share_of_files
from integration_server.providers import (
    google_calendar,
    google_my_business,
    sendgrid,
    square,
    stripe,
    twilio,
)
from integration_server.providers.base import ProviderContext
from integration_server.providers.declared import load_declared
from integration_server.providers.entry_points import load_entry_points
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.http import ProviderHttp
from integration_server.rpc.errors import ErrorInterceptor
from integration_server.rpc.health import Health
from integration_server.rpc.integration_service import IntegrationService, UseCases
from integration_server.rpc.limits import CallLimits, peer_of
from integration_server.service.connecting import Connecting
from integration_server.service.connecting_by_key import ConnectingByKey
from integration_server.service.connections import Connections
from integration_server.service.credentials import GivingCredentials
from integration_server.service.managing import Managing
from integration_server.service.monitoring import Monitoring
from integration_server.service.ports import (
    Agenda,
    AttemptStore,
    Clock,
    HealthHistory,
    IntegrationStore,
    Providers,
    RefreshLeases,
    Revocations,
    Sealer,
    Spill,
    Work,
)
from integration_server.service.redirects import RedirectPolicy
from integration_server.service.refreshing import Patience, Refreshing
from integration_server.service.revoking import RevocationTimes, Revoking
from integration_server.service.schedule import Schedule
from integration_server.service.sealing import Vault
from integration_server.service.tasks import ServerTasks
from integration_server.service.upkeep import Pace, Upkeep
from integration_server.settings import Address, Settings
from integration_server.sidecar.limits import HttpLimits
from integration_server.sidecar.server import run_sidecar
from integration_server.storage.agenda import SqlAgenda
from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.engine import open_database
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.keyring import Keyring, KeyringError, open_keyring
from integration_server.storage.leases import SqlRefreshLeases
from integration_server.storage.revocations import SqlRevocations
from integration_server.storage.spill import SpillDirectory
from integrations.v1 import integration_service_pb2, integration_service_pb2_grpc

Register = Callable[[ProviderFactory], None]

SERVICE_NAME = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].full_name
HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
BUILT_IN = (google_calendar, google_my_business, sendgrid, square, stripe, twilio)

_SWEEP_EVERY = timedelta(seconds=30)  # abandoned connections go within this time of their end
_LOOK_EVERY = timedelta(seconds=1)  # readiness follows the database, and due work is found, within this time
_PRUNE_EVERY = timedelta(minutes=10)


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


@dataclass(frozen=True, slots=True)
class Service:
    """What the service can do when it is called, and what it does by itself."""

    use_cases: UseCases
    refreshing: Refreshing
    upkeep: Sequence[Upkeep]


def utc_now() -> datetime:
    """The time, aware of its zone."""
    return datetime.now(UTC)


def random_name() -> str:
    """256 bits from the system, in 43 URL-safe characters."""
    return secrets.token_urlsafe(32)


def build_providers(
    settings: Settings,
    environment: Mapping[str, str],
    http: ProviderHttp,
    clock: Clock = utc_now,
    further: Sequence[Register] = (),
) -> ProviderRegistry:
    """All providers that this server knows: built in, from packages, from `PROVIDERS_DIR`, and further ones."""
    factory = ProviderFactory()
    for module in BUILT_IN:
        module.register(factory)
    load_entry_points(factory)
    if settings.providers_dir is not None:
        load_declared(settings.providers_dir, factory, dev_mode=settings.dev_mode)
    for register in further:
        register(factory)
    return factory.build(ProviderContext(http, clock, environment))


@asynccontextmanager
async def running_server(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    key: bytes,
    further_providers: Sequence[Register] = (),
    clock: Clock = utc_now,
) -> AsyncIterator[Running]:
    """The gRPC server and its sidecar, up until left: then NOT_SERVING first, and calls in flight finish."""
    http = ProviderHttp(clock, dev_mode=settings.dev_mode)
    providers = build_providers(settings, environment, http, clock, further_providers)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(http)
        database = await stack.enter_async_context(open_database(settings.database_url))
        keyring = await open_keyring(database, key, settings.encryption_keys_retired, clock=clock)
        tasks = await stack.enter_async_context(ServerTasks())
        integrations = SqlIntegrations(database)
        stores = Stores(
            integrations,
            SqlHealthHistory(database),
            SqlAgenda(database),
            SqlAttempts(database),
            SqlRefreshLeases(database, settings.refresh_lease),
            SqlRevocations(database),
            SpillDirectory(settings.spill_dir),
        )
        service = build_service(settings, stores, providers, keyring, tasks, clock)
        health = Health([SERVICE_NAME])
        server = build_grpc_server(settings, IntegrationService(service.use_cases, clock), health)

        async def look() -> None:
            health.set_ready(await is_ready(integrations, keyring))

        port = await stack.enter_async_context(serving(server, str(settings.grpc_address), settings.shutdown_grace))
        await stack.enter_async_context(repeating(look, _LOOK_EVERY))
        await stack.enter_async_context(repeating(service.refreshing.recover, _LOOK_EVERY))
        await stack.enter_async_context(repeating(service.use_cases.revoking.revoke_due, _LOOK_EVERY))
        for upkeep in service.upkeep:
            await stack.enter_async_context(upkeep)
            await stack.enter_async_context(repeating(upkeep.look, _LOOK_EVERY))
        await stack.enter_async_context(repeating(service.use_cases.connecting.remove_abandoned, _SWEEP_EVERY))
        await stack.enter_async_context(repeating(service.use_cases.monitoring.prune, _PRUNE_EVERY))
        grpc_address = settings.grpc_address._replace(port=port)
        sidecar_url = await stack.enter_async_context(running_sidecar(settings, grpc_address))
        stack.callback(health.drain)
        yield Running(str(grpc_address), sidecar_url)


@asynccontextmanager
async def running_sidecar(settings: Settings, server: Address) -> AsyncIterator[str]:
    """The sidecar on its address, a client of the server's; yields its own URL. Raises `AddressTaken`."""
    listen = settings.sidecar_address
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(
                run_sidecar(
                    grpc_target=str(server), host=listen.host, port=listen.port, limits=http_limits_of(settings)
                )
            )
        except OSError as error:
            raise AddressTaken(f"cannot listen on {listen} (SIDECAR_ADDRESS): {error.strerror}") from error
        yield url


def build_service(
    settings: Settings,
    stores: Stores,
    providers: Providers,
    sealer: Sealer,
    tasks: ServerTasks,
    clock: Clock,
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
        patience=Patience(with_holder=1.5 * settings.refresh_lease, with_lost_call=3 * settings.refresh_lease),
    )
    credentials = GivingCredentials(integrations, providers, vault, refreshing, clock, buffer=settings.refresh_buffer)
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
    return Service(use_cases, refreshing, upkeep)


def build_grpc_server(settings: Settings, service: IntegrationService, health: Health) -> grpc.aio.Server:
    """The server with its services; in dev mode with reflection, so that grpcurl and the like can explore it."""
    limits = CallLimits(
        peer_of,
        concurrency=settings.caller_max_concurrency,
        per_second=settings.caller_max_calls_per_second,
    )
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(), limits],
        options=grpc_limits_of(settings).options(),
    )
    integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.dev_mode:
        names = (SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
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


async def is_ready(integrations: SqlIntegrations, keyring: Keyring) -> bool:
    """Whether the database answers, and every data key in it can be opened here."""
    try:
        await integrations.ping()
        await keyring.reload()
    except (StoreUnavailable, KeyringError) as error:
        structlog.get_logger(__name__).warning("not_ready", kind=type(error).__name__, message=str(error))
        return False
    return True
