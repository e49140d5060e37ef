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
from integration_server.lifecycle import GRPC_OPTIONS, AddressTaken, repeating, serving
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
from integration_server.service.connecting import Connecting
from integration_server.service.connecting_by_key import ConnectingByKey
from integration_server.service.connections import Connections
from integration_server.service.credentials import GivingCredentials
from integration_server.service.managing import Managing
from integration_server.service.monitoring import Monitoring
from integration_server.service.ports import (
    AttemptStore,
    Clock,
    IntegrationStore,
    Providers,
    RefreshLeases,
    Sealer,
    Spill,
)
from integration_server.service.redirects import RedirectPolicy
from integration_server.service.refreshing import Patience, Refreshing
from integration_server.service.sealing import Vault
from integration_server.service.tasks import ServerTasks
from integration_server.settings import Address, Settings
from integration_server.sidecar.server import run_sidecar
from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.claims import WorkClaim
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.key_encryption import KeyEncryption, KeyEncryptions, KeyringError, LocalKey
from integration_server.storage.keyring import Keyring, open_keyring
from integration_server.storage.leases import SqlRefreshLeases
from integration_server.storage.rotation import Rotation, RotationByAge
from integration_server.storage.spill import SpillDirectory
from integrations.v1 import integration_service_pb2, integration_service_pb2_grpc

Register = Callable[[ProviderFactory], None]

SERVICE_NAME = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].full_name
HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
BUILT_IN = (google_calendar, google_my_business, sendgrid, square, stripe, twilio)

_SWEEP_EVERY = timedelta(seconds=30)  # abandoned connections go within this time of their end
_LOOK_EVERY = timedelta(seconds=1)  # readiness follows the database within this time
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
    attempts: AttemptStore
    leases: RefreshLeases
    spill: Spill


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
) -> AsyncIterator[Running]:
    """The gRPC server and its sidecar, up until left: then NOT_SERVING first, and calls in flight finish."""
    http = ProviderHttp(clock, dev_mode=settings.dev_mode)
    providers = build_providers(settings, environment, http, clock, further_providers)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(http)
        database = await stack.enter_async_context(open_database(settings.database_url))
        keyring = await open_keyring(database, await open_key_encryptions(settings, key))
        tasks = await stack.enter_async_context(ServerTasks())
        integrations = SqlIntegrations(database)
        stores = Stores(
            integrations,
            SqlAttempts(database),
            SqlRefreshLeases(database, settings.refresh_lease),
            SpillDirectory(settings.spill_dir),
        )
        use_cases, refreshing = build_use_cases(settings, stores, providers, keyring, tasks, clock)
        health = Health([SERVICE_NAME])
        server = build_grpc_server(IntegrationService(use_cases, clock), health, reflect=settings.dev_mode)

        async def look() -> None:
            health.set_ready(await is_ready(integrations, keyring))

        port = await stack.enter_async_context(serving(server, str(settings.grpc_address), settings.shutdown_grace))
        await stack.enter_async_context(repeating(look, _LOOK_EVERY))
        await stack.enter_async_context(repeating(refreshing.recover, _LOOK_EVERY))
        await stack.enter_async_context(repeating(use_cases.connecting.remove_abandoned, _SWEEP_EVERY))
        if settings.data_key_max_age is not None:
            by_age = rotation_by_age(database, keyring, settings.data_key_activation, settings.data_key_max_age)
            await stack.enter_async_context(repeating(by_age.look, _ROTATE_EVERY))
        grpc_address = settings.grpc_address._replace(port=port)
        sidecar_url = await stack.enter_async_context(running_sidecar(settings.sidecar_address, grpc_address))
        stack.callback(health.drain)
        yield Running(str(grpc_address), sidecar_url)


@asynccontextmanager
async def running_sidecar(listen: Address, server: Address) -> AsyncIterator[str]:
    """The sidecar on its address, a client of the server's; yields its own URL. Raises `AddressTaken`."""
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(
                run_sidecar(grpc_target=str(server), host=listen.host, port=listen.port)
            )
        except OSError as error:
            raise AddressTaken(f"cannot listen on {listen} (SIDECAR_ADDRESS): {error.strerror}") from error
        yield url


def build_use_cases(
    settings: Settings,
    stores: Stores,
    providers: Providers,
    sealer: Sealer,
    tasks: ServerTasks,
    clock: Clock,
) -> tuple[UseCases, Refreshing]:
    """What the service can do over these parts, and what must be looked after while it does."""
    integrations = stores.integrations
    vault = Vault(sealer)
    connections = Connections(integrations, providers, vault, clock)
    refreshing = Refreshing(
        integrations,
        stores.leases,
        stores.spill,
        connections,
        providers,
        vault,
        tasks,
        clock,
        random_name,
        SystemRandom().random,
        patience=Patience(with_holder=1.5 * settings.refresh_lease, with_lost_call=3 * settings.refresh_lease),
    )
    credentials = GivingCredentials(integrations, providers, vault, refreshing, clock, buffer=settings.refresh_buffer)
    use_cases = UseCases(
        connecting=Connecting(
            stores.attempts,
            integrations,
            connections,
            providers,
            sealer,
            RedirectPolicy(settings.public_url, settings.allowed_redirect_uris, settings.allowed_return_urls),
            tasks,
            clock,
            random_name,
            direct_completion=bool(settings.direct_completion),
        ),
        connecting_by_key=ConnectingByKey(connections, providers, tasks, random_name),
        managing=Managing(integrations, providers, vault, sealer, tasks, clock),
        credentials=credentials,
        monitoring=Monitoring(integrations, providers, credentials, clock, deadline=settings.health_check_timeout),
    )
    return use_cases, refreshing


def build_grpc_server(service: IntegrationService, health: Health, *, reflect: bool) -> grpc.aio.Server:
    """The server with its services; with reflection, so that grpcurl and the like can explore it, if wanted."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=GRPC_OPTIONS)
    integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if reflect:
        names = (SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


async def is_ready(integrations: SqlIntegrations, keyring: Keyring) -> bool:
    """Whether the database answers, and every data key in it can be opened here."""
    try:
        await integrations.ping()
        await keyring.reload()
    except (StoreUnavailable, KeyringError) as error:
        structlog.get_logger(__name__).warning("not_ready", kind=type(error).__name__, message=str(error))
        return False
    return True
