"""The systems under test: servers, their provider and a database, each in its own process, and their integrations."""

import asyncio
import itertools
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from random import SystemRandom
from secrets import token_urlsafe
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc.aio
import psutil
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from sqlalchemy import func, insert, select, text

from benchmarks.harness import Call, cpu_seconds_of
from benchmarks.provider import SCOPES, IssuedGrant, SandboxProcess, running_provider
from integration_server.domain.credentials import AuthMethod, OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.providers.http import ProviderHttp
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import NewAccount, NewCredentials, NewIntegration
from integration_server.settings import Settings
from integration_server.storage.connections import SqlConnections
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integrations import new_integration_values
from integration_server.storage.tables import integrations
from integration_server.wiring.providers import build_providers
from integration_server.wiring.storage import open_storage
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.processes import server_environment, serving
from tests.postgres import run_postgres

if TYPE_CHECKING:
    from integrations.v1.integration_service_pb2_grpc import IntegrationServiceAsyncStub

HEALTHY_TYPE = "healthy"  # the type of the load
TROUBLED_TYPE = "troubled"  # the type that is refreshed meanwhile

_ACCOUNTS_OF_A_USER = 5
_HEALTHY = 100
_INSERTED_ROWS = 2_000  # of one statement, which has to end within the server's time limit
_PART = 10_000  # rows of a transaction
_WEEK = timedelta(days=7)
_DEADLINE = 30.0  # seconds for an RPC; far more than any should need
# Every call is still counted. A benchmark is one caller, which calls as often as its server answers.
_NO_QUOTAS = {
    f"CALLER_MAX_{quota}": "1000000"
    for quota in ("CONCURRENCY", "CALLS_PER_SECOND", "STREAMS", "STREAMS_PER_USER", "WATCHED_INTEGRATIONS")
}


class DatabaseKind(StrEnum):
    """The databases that can be measured."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"


@dataclass(frozen=True, slots=True)
class Seeded:
    """A connected integration, and the expiry of its access token."""

    integration_id: int
    user_id: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Server:
    """One server with its sidecar, and its clients. `processes` are its workers."""

    processes: Sequence[psutil.Process]
    grpc_address: str
    sidecar_url: str
    log: Path
    service: "IntegrationServiceAsyncStub" = field(repr=False)
    health: Any = field(repr=False)  # the stub has no types
    metrics_url: str = ""


@dataclass(frozen=True, slots=True)
class System:
    """Servers on one database, and their provider."""

    servers: Sequence[Server]
    provider: SandboxProcess
    environment: Mapping[str, str] = field(repr=False)

    @property
    def database_url(self) -> str:
        """The URL of the servers' database."""
        return self.environment["DATABASE_URL"]

    def cpu_seconds(self) -> float:
        """The CPU time of the servers since their start."""
        return sum(map(cpu_seconds_of, self._processes()))

    def total_cpu_seconds(self) -> float:
        """The CPU time of the servers, their sidecars and their supervisors since their start."""
        parents = {process.parent() for process in self._processes()}
        processes = [one for parent in parents if parent is not None for one in (parent, *parent.children())]
        return sum(map(cpu_seconds_of, processes))

    def memory_bytes(self) -> int:
        """The resident memory of the servers."""
        return sum(int(process.memory_info().rss) for process in self._processes())

    def log_bytes(self) -> int:
        """The size of the servers' logs."""
        return sum(server.log.stat().st_size for server in self.servers)

    def _processes(self) -> Iterator[psutil.Process]:
        """The servers and the processes that they have started."""
        for server in self.servers:
            for process in server.processes:
                yield from (process, *process.children(recursive=True))


@asynccontextmanager
async def running_system(
    kind: DatabaseKind, *, servers: int = 1, has_quotas: bool = False, **settings: str
) -> AsyncIterator[System]:
    """Run an empty system. `settings` are environment variables of its servers."""
    async with AsyncExitStack() as stack:
        running = running_environment(kind, has_quotas=has_quotas, **settings)
        directory, provider, environment = await stack.enter_async_context(running)
        started = [await stack.enter_async_context(_running_server(directory, environment)) for _ in range(servers)]
        yield System(started, provider, environment)


@asynccontextmanager
async def running_environment(
    kind: DatabaseKind, *, has_quotas: bool = False, **settings: str
) -> AsyncIterator[tuple[Path, SandboxProcess, Mapping[str, str]]]:
    """Run an empty database and a provider; yields a folder, the provider and the environment of servers.

    `has_quotas`: callers have the usual quotas, otherwise any number of calls.
    """
    with TemporaryDirectory(prefix="benchmark-") as folder, new_database(kind, Path(folder)) as database_url:
        async with running_provider() as provider:
            of_provider = _provider_settings(Path(folder), provider)
            quotas = {} if has_quotas else _NO_QUOTAS
            yield Path(folder), provider, server_environment(database_url, **{**of_provider, **quotas, **settings})


@contextmanager
def new_database(kind: DatabaseKind, directory: Path) -> Iterator[str]:
    """A database on disk, as in production. The server creates its schema."""
    if kind is DatabaseKind.SQLITE:
        yield f"sqlite:///{directory / 'integrations.db'}"
    else:
        with run_postgres(in_memory=False) as postgres:
            yield postgres.url("postgres")


def _provider_settings(directory: Path, provider: SandboxProcess) -> Mapping[str, str]:
    declarations = directory / "providers"
    declarations.mkdir()
    settings = {"PROVIDERS_DIR": str(declarations)}
    for integration_type in (HEALTHY_TYPE, TROUBLED_TYPE):
        (declarations / f"{integration_type}.toml").write_text(f"""\
integration_type = "{integration_type}"
auth_method = "oauth2"
authorize_url = "{provider.url}/oauth/authorize"
token_url = "{provider.url}/oauth/token"
scopes = ["{SCOPES[0]}"]
verify_url = "{provider.url}/userinfo"
account_id_field = "sub"
api_base_url = "{provider.url}"

[webhook]
signature_header = "X-Signature"
event_id = "id"
event_type = "type"
""")
        settings[f"{integration_type.upper()}_CLIENT_ID"] = provider.client.client_id
        settings[f"{integration_type.upper()}_CLIENT_SECRET"] = provider.client.client_secret
    return settings


@asynccontextmanager
async def _running_server(directory: Path, environment: Mapping[str, str]) -> AsyncIterator[Server]:
    async with (
        serving(directory, environment) as command,
        grpc.aio.insecure_channel(command.serving["grpc"], options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        yield Server(
            [psutil.Process(pid) for name, pid in command.serving["pids"].items() if name.startswith("server")],
            command.serving["grpc"],
            command.serving["sidecar"],
            command.err_path,
            IntegrationServiceStub(channel),
            HealthStub(channel),
            command.serving.get("metrics", ""),
        )


# --- integrations ------------------------------------------------------------------------------------------------


async def seed(
    system: System,
    integration_type: str,
    expire_times: Sequence[datetime],
    lifetime: timedelta | None = None,
    *,
    accounts_of_a_user: int = _ACCOUNTS_OF_A_USER,
) -> Sequence[Seeded]:
    """Insert connected integrations whose access tokens expire at these times.

    Their grants are real grants of the provider. The server's own code creates the rows, all in one transaction.
    `lifetime` is the lifetime of the tokens when they were issued; tokens without one are not refreshed proactively.
    """
    grants = await system.provider.issue_grants(integration_type, len(expire_times))
    await _insert(system.environment, integration_type, grants, expire_times, lifetime, accounts_of_a_user)
    return await _seeded(system, integration_type)


async def _seeded(system: System, integration_type: str) -> Sequence[Seeded]:
    query = select(integrations.c.integration_id, integrations.c.user_id, integrations.c.access_token_expire_time)
    async with open_database(system.database_url) as database, database.read_connection() as connection:
        found = await connection.execute(query.where(integrations.c.integration_type == integration_type))
    return [Seeded(*row) for row in found]


async def seed_many(system: System, integration_type: str, count: int) -> Sequence[Seeded]:
    """Insert connected integrations from several processes, without triggers. PostgreSQL only.

    Their access tokens are not the provider's, and expire in a week.
    """
    context = multiprocessing.get_context("spawn")
    parts = [
        (dict(system.environment), integration_type, begin, min(_PART, count - begin))
        for begin in range(0, count, _PART)
    ]
    with context.Pool() as pool:
        await asyncio.to_thread(pool.starmap, _insert_part, parts, 1)
    async with open_database(system.database_url) as database, database.write_transaction() as connection:
        await connection.execute(text("ANALYZE integrations"))
    return await _seeded(system, integration_type)


def _insert_part(environment: Mapping[str, str], integration_type: str, begin: int, count: int) -> None:
    """Insert integrations with numbers from `begin` on; runs in a process of a pool."""
    numbers = range(begin, begin + count)
    grants = [IssuedGrant(f"{integration_type}-{number}", token_urlsafe(32), token_urlsafe(32)) for number in numbers]
    expire_times = [utc_now() + _WEEK] * count
    asyncio.run(_insert(environment, integration_type, grants, expire_times, None, first=begin, with_triggers=False))


async def _insert(
    environment: Mapping[str, str],
    integration_type: str,
    grants: Sequence[IssuedGrant],
    expire_times: Sequence[datetime],
    lifetime: timedelta | None,
    accounts_of_a_user: int = _ACCOUNTS_OF_A_USER,
    *,
    first: int = 0,
    with_triggers: bool = True,
) -> None:
    """Insert an integration for each grant; `first` is the number of the first one."""
    settings = Settings.from_environment(environment)
    providers = build_providers(settings, environment, ProviderHttp(utc_now, dev_mode=True))
    async with open_storage(settings) as storage:
        database = storage.database
        schedule = Schedule(settings.refresh_buffer, None, SystemRandom().random)
        cipher, provider = CredentialCipher(storage.keyring), providers[integration_type]

        async def encrypt(connected: Integration, tokens: OAuthTokens) -> NewCredentials:
            return await cipher.encrypt_new(connected, tokens, provider, SCOPES, schedule)

        ids = await _reserve_ids(database, len(grants))
        rows = [
            await _row(
                encrypt,
                integration_id,
                UserId(f"user-{number // accounts_of_a_user}"),
                integration_type,
                grant,
                expire_time,
                lifetime,
            )
            for number, (integration_id, grant, expire_time) in enumerate(
                zip(ids, grants, expire_times, strict=True), first
            )
        ]
        async with database.write_transaction() as connection:
            if not with_triggers:
                await connection.execute(text("SET LOCAL session_replication_role = replica"))
            for begin in range(0, len(rows), _INSERTED_ROWS):
                await connection.execute(insert(integrations), rows[begin : begin + _INSERTED_ROWS])


async def _reserve_ids(database: Database, number: int) -> Sequence[IntegrationId]:
    if database.has_one_writer:
        store = SqlConnections(database)
        return [await store.reserve_id() for _ in range(number)]
    sequence = func.pg_get_serial_sequence(integrations.name, integrations.c.integration_id.name)
    next_ids = select(func.nextval(sequence)).select_from(func.generate_series(1, number))
    return [IntegrationId(row[0]) for row in await database.fetch(next_ids)]


async def _row(
    encrypt: Callable[[Integration, OAuthTokens], Awaitable[NewCredentials]],
    integration_id: IntegrationId,
    user_id: UserId,
    integration_type: str,
    grant: IssuedGrant,
    expire_time: datetime,
    lifetime: timedelta | None,
) -> Mapping[str, Any]:
    new = NewIntegration(
        token_urlsafe(32), user_id, integration_type, AuthMethod.OAUTH2, grant.account_id, {}, integration_id
    )
    tokens = OAuthTokens(grant.access_token, grant.refresh_token, expire_time, lifetime, scopes=SCOPES)
    now, account = utc_now(), NewAccount(grant.account_id, grant.account_id)
    connected = new.as_stored(now).connected_to(account.account_id, account.account_label, now)
    return {
        **new_integration_values(new, now),
        **_columns(await encrypt(connected, tokens)),
        **_columns(account),
        "connect_time": now,
    }


def _columns(values: NewCredentials | NewAccount) -> Mapping[str, Any]:
    """The fields, which `asdict` would copy in a third of the time that a row takes."""
    return {one.name: getattr(values, one.name) for one in fields(values)}


# --- load --------------------------------------------------------------------------------------------------------


async def healthy_calls(system: System) -> Sequence[Call]:
    """RPCs about integrations with long-lived tokens, in turn over the servers."""
    healthy = await seed(system, HEALTHY_TYPE, [utc_now() + _WEEK] * _HEALTHY)
    return [
        call
        for server, integration in zip(itertools.cycle(system.servers), healthy, strict=False)
        for call in _calls_about(integration, server)
    ]


def _calls_about(integration: Seeded, server: Server) -> Sequence[Call]:
    integration_id, user_id = integration.integration_id, integration.user_id
    credentials = pb.GetCredentialsRequest(integration_id=integration_id, user_id=user_id)
    one = pb.GetIntegrationRequest(integration_id=integration_id, user_id=user_id)
    list_request = pb.ListIntegrationsRequest(user_id=user_id, integration_type=HEALTHY_TYPE)
    service = server.service
    return [
        Call("GetCredentials", partial(service.GetCredentials, credentials, timeout=_DEADLINE)),
        Call("GetIntegration", partial(service.GetIntegration, one, timeout=_DEADLINE)),
        Call("ListIntegrations", partial(service.ListIntegrations, list_request, timeout=_DEADLINE)),
        Call("health Check", partial(server.health.Check, HealthCheckRequest(), timeout=_DEADLINE)),
    ]
