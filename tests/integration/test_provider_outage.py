"""An hour in which a provider sends 4xx without an error code: three replicas lose no grant and recover by themselves.

A web application firewall, a wrong route or a maintenance page sends such responses, with any status. The service is
built three times as bootstrap does, over one database whose clock is the test's. Each integration gets one status from
400 to 499 for the whole hour, from the token endpoint and from the API.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from urllib.parse import parse_qs

import asyncpg
import httpx
import pytest
from sqlalchemy import func, select

from integration_server.bootstrap import Service, build_service
from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import IntegrationServerError
from integration_server.domain.integration import Integration, Status, UserId
from integration_server.providers.base import ProviderContext
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.http import ProviderHttp
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.connections.account_linking import AccountLinker, AccountRequest
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import NewAccount
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integrations import PLAINTEXT_COLUMNS, integration_of, is_healthy
from integration_server.storage.tables import integration_changes, integrations
from integration_server.wiring.service_parts import Constants
from integration_server.wiring.storage import sql_stores
from tests.fakes.aead import FakeAead
from tests.fakes.clock import SettableClock
from tests.fakes.database import InMemoryDatabase
from tests.fakes.oauth_clients import own_clients
from tests.fakes.random_tokens import CountingTokens
from tests.fakes.system import BUFFER, RecordingAuditTrail, default_settings
from tests.fakes.workers import is_busy
from tests.postgres import PostgresServer

pytestmark = pytest.mark.slow

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
REPLICAS = 3


class StrictProvider(OAuth2Provider):
    """An ordinary OAuth 2 provider without any grace for a used refresh token."""

    integration_type = "strict"
    display_name = "Strict"
    oauth_authorize_url = "https://strict.example/authorize"
    oauth_token_url = "https://strict.example/token"
    verify_url = "https://strict.example/me"
    account_id_field = "id"


class Endpoints(httpx.AsyncBaseTransport):
    """The provider behind a firewall. While `is_blocked`, each integration gets the status of its number."""

    def __init__(self) -> None:
        self.is_blocked = False
        self.token_calls: Counter[int] = Counter()
        self.statuses: set[int] = set()
        self.generations: Counter[int] = Counter()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response to a refresh, or to a verification."""
        await asyncio.sleep(0)
        is_token_call = request.url.path == "/token"
        token = request.headers["Authorization"]
        if is_token_call:
            token = parse_qs(request.content.decode())["refresh_token"][0]
        number, generation = map(int, token.split("-")[1:])
        self.token_calls[number] += is_token_call
        if self.is_blocked:
            return self.blocked(request, number)
        if not is_token_call:
            return httpx.Response(200, json={"id": f"account-{number}"})
        if generation != self.generations[number]:
            return httpx.Response(400, json={"error": "invalid_grant"})  # a second use
        self.generations[number] += 1
        return httpx.Response(200, json=_token_fields(number, self.generations[number]))

    def blocked(self, request: httpx.Request, number: int) -> httpx.Response:
        """The response while `is_blocked`."""
        status = 400 + number * 7 % 100
        self.statuses.add(status)
        html = status % 2
        return httpx.Response(status, text="<html>Blocked</html>" if html else "{}", headers=_headers(status))


class OddEndpoints(Endpoints):
    """While `is_blocked`, every token call gets the given response, or ends with the given error."""

    def __init__(self, status: int, content: str) -> None:
        super().__init__()
        self._status, self._content = status, content

    def blocked(self, request: httpx.Request, number: int) -> httpx.Response:
        """The response of the token endpoint; the API responds as ever."""
        if request.url.path != "/token":
            return httpx.Response(200, json={"id": f"account-{number}"})
        if not self._status:
            raise httpx.RemoteProtocolError("the peer closed the connection")
        return httpx.Response(self._status, text=self._content, headers={"Location": "https://login.example/"})


def _headers(status: int) -> dict[str, str]:
    return {"Content-Type": "text/html"} | ({"Retry-After": "5"} if status in {403, 429} else {})


def _token_fields(number: int, generation: int) -> dict[str, object]:
    return {
        "access_token": f"access-{number}-{generation}",
        "refresh_token": f"refresh-{number}-{generation}",
        "expires_in": 3600,
    }


@dataclass
class Replica:
    """One replica. Its worker starts at most as many calls in a simulated second as the settings say."""

    next_second: asyncio.Event = field(default_factory=asyncio.Event)
    budget: float = 1.0
    is_paused: bool = False
    service: Service | None = None

    async def pause(self, seconds: float) -> None:
        """Sleep for a part of the simulated second."""
        self.budget -= seconds
        if self.budget > 0:
            await asyncio.sleep(0)
            return
        self.is_paused = True
        await self.next_second.wait()

    async def run_second(self) -> None:
        """The work of one simulated second."""
        assert self.service is not None
        self.budget, self.is_paused = 1.0, False
        self.next_second.set()
        self.next_second = asyncio.Event()
        await self.service.worker.poll()
        async with asyncio.timeout(300):
            while is_busy(self.service.worker) and not self.is_paused:  # noqa: ASYNC110  # the worker sets no event
                await asyncio.sleep(0.001)


@dataclass
class Fleet:
    """The replicas, their provider and database, and the integrations."""

    clock: SettableClock
    set_database_clock: Callable[[], Awaitable[object]]
    database: Database
    endpoints: Endpoints
    replicas: Sequence[Replica]
    rows: list[Integration] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    random: Random = field(default_factory=lambda: Random(7))  # the choice of callers

    async def run(self, time: timedelta, *, step: timedelta, callers: int = 0) -> None:
        """Let time pass in steps, in each of which the workers run, and callers ask for credentials at any replica."""
        for _ in range(time // step):
            self.clock.advance(step)
            await self.set_database_clock()
            await self._run_second()
            asking = asyncio.gather(*(self._get_credentials() for _ in range(callers)))
            async with asyncio.timeout(300):
                # A caller may wait for a refresh of another replica, for longer than the rest of its second.
                while not (await asyncio.wait([asking], timeout=0.5))[0]:
                    await self._run_second()
            await asking

    async def _run_second(self) -> None:
        await asyncio.gather(*(replica.run_second() for replica in self.replicas))

    async def _get_credentials(self) -> None:
        row, replica = self.random.choice(self.rows), self.random.choice(self.replicas)
        assert replica.service is not None
        try:
            await replica.service.use_cases.credentials.get_credentials(row.integration_id, row.user_id, None, [])
        except IntegrationServerError as error:
            self.errors[error.reason] += 1

    async def current(self) -> list[Integration]:
        """The rows."""
        return [integration_of(row) for row in await self.database.fetch(select(*PLAINTEXT_COLUMNS))]

    async def refreshed(self) -> int:
        """How many have been refreshed since they were connected, and work."""
        is_new = integrations.c.version > 0
        works = is_new & is_healthy(self.clock()) & (integrations.c.refresh_failures == 0)
        return int(await self.database.fetch_value(select(func.count()).where(works)))


@asynccontextmanager
async def running_fleet(
    size: int, clock: SettableClock, database: Database, directory: Path, endpoints: Endpoints | None = None
) -> AsyncIterator[Fleet]:
    endpoints = endpoints or Endpoints()
    http = ProviderHttp(clock, transport=endpoints)
    settings = default_settings().model_copy(update={"refresh_journal_dir": directory})
    factory = ProviderFactory()
    factory.register("strict", StrictProvider)
    environment = {"STRICT_CLIENT_ID": "id", "STRICT_CLIENT_SECRET": "secret"}
    providers = factory.build(ProviderContext(http, clock, environment))
    async with AsyncExitStack() as stack:
        replicas = []
        for number in range(REPLICAS):
            replica, random = Replica(), Random(number)  # jitter
            replica.service = build_service(
                settings,
                sql_stores(settings, database, lambda _: None),
                providers,
                FakeAead(),
                await stack.enter_async_context(DetachedTasks()),
                RecordingAuditTrail(),
                clock,
                None,
                constants=Constants(
                    random_token=CountingTokens(),
                    jitter=random.random,
                    monotonic=lambda: clock().timestamp(),
                    pause=replica.pause,
                ),
            )
            await stack.enter_async_context(replica.service.worker)
            replicas.append(replica)
        fleet = Fleet(clock, lambda: asyncio.sleep(0), database, endpoints, replicas)
        fleet.rows = await _connect(size, database, providers, clock)
        yield fleet


async def _connect(
    size: int, database: Database, providers: ProviderRegistry, clock: SettableClock
) -> list[Integration]:
    """Connect this many integrations, each of another user."""
    settings = default_settings()
    stores = sql_stores(settings, database, lambda _: None)
    schedule = Schedule(BUFFER, settings.health_check_interval, Random(1).random)  # jitter
    linker = AccountLinker(
        stores.integrations,
        stores.connections,
        own_clients(providers),
        CredentialCipher(FakeAead()),
        clock,
        schedule,
        lambda _: None,
    )
    rows = []
    for number in range(size):
        tokens = OAuthTokens(
            access_token=f"access-{number}-0",
            refresh_token=f"refresh-{number}-0",
            expire_time=clock() + HOUR,
            lifetime=HOUR,
        )
        request = AccountRequest(UserId(f"user-{number}"), "strict")
        new = request.new_integration(providers["strict"], f"uid-{number}")
        rows.append(await linker.commit(new, NewAccount(f"account-{number}", None), tokens))
    return rows


async def survive_an_hour(fleet: Fleet, *, step: timedelta, callers: int) -> None:
    size = len(fleet.rows)
    await fleet.run(45 * MINUTE, step=5 * MINUTE, callers=10)
    assert not fleet.errors
    assert await fleet.refreshed() == 0
    fleet.endpoints.is_blocked = True
    await fleet.run(HOUR, step=step, callers=callers)
    calls, worst = fleet.endpoints.token_calls.total(), max(fleet.endpoints.token_calls.values())
    rows = await fleet.current()
    lost = sum(row.reauthorization_required for row in rows)
    statuses = Counter(row.status(fleet.clock()) for row in rows)
    print(f"an hour of {len(fleet.endpoints.statuses)} statuses for {size} integrations: {calls} token calls,")
    print(f"at most {worst} for one integration; {lost} grants lost; {dict(statuses)}")
    assert fleet.endpoints.statuses == {400 + number * 7 % 100 for number in range(size)}
    assert await fleet.refreshed() == lost == 0
    assert calls <= 20 * size
    assert worst <= 20
    ended = select(func.count()).where(integration_changes.c.status_after == Status.EXPIRED.value)
    assert await fleet.database.fetch_value(ended) == 0

    fleet.endpoints.is_blocked = False
    seconds = 0
    while await fleet.refreshed() < size:
        await fleet.run(SECOND, step=SECOND)
        seconds += 1
        assert seconds <= 60, f"{await fleet.refreshed()} have recovered"
    print(
        f"all have recovered {seconds} s after the provider, with {fleet.endpoints.token_calls.total() - calls} calls"
    )


async def test_a_small_fleet_survives_an_hour_of_4xx_without_an_error_code(tmp_path: Path) -> None:
    clock = SettableClock()
    async with running_fleet(25, clock, InMemoryDatabase(clock), tmp_path) as fleet:
        await survive_an_hour(fleet, step=MINUTE, callers=2)


@pytest.mark.parametrize(
    ("status", "content", "reasons"),
    [
        (302, "", {"PROVIDER_UNAVAILABLE"}),
        (200, "<html>We are back soon</html>", {"PROVIDER_UNAVAILABLE"}),
        pytest.param(
            200, '{"status": "error", "message": "try again"}', {"PROVIDER_UNAVAILABLE"}, marks=pytest.mark.slow
        ),
        (0, "", {"PROVIDER_UNAVAILABLE"}),
        (401, "<html>Sign in</html>", {"PROVIDER_MISCONFIGURED"}),
        pytest.param(
            401,
            '{"status": 401, "error": "Unauthorized", "path": "/token"}',
            {"PROVIDER_MISCONFIGURED"},
            marks=pytest.mark.slow,
        ),
        (409, '{"code": "conflict"}', {"PROVIDER_REJECTED"}),
        pytest.param(
            400,
            '{"error": "invalid_request", "error_description": "The refresh token has expired"}',
            {"PROVIDER_REJECTED"},
            marks=pytest.mark.slow,
        ),
        (503, '{"error": "invalid_grant"}', {"PROVIDER_UNAVAILABLE"}),
    ],
)
async def test_a_small_fleet_survives_an_hour_of_other_responses(
    tmp_path: Path, status: int, content: str, reasons: set[str]
) -> None:
    """Callers get the same reason throughout, and a restart ends the pauses."""
    clock = SettableClock()
    endpoints = OddEndpoints(status, content)
    async with running_fleet(3, clock, InMemoryDatabase(clock), tmp_path, endpoints) as fleet:
        await fleet.run(45 * MINUTE, step=5 * MINUTE)
        fleet.endpoints.is_blocked = True
        await fleet.run(HOUR, step=MINUTE, callers=2)
        assert set(fleet.errors) == reasons
        assert not any(row.reauthorization_required for row in await fleet.current())
        assert max(fleet.endpoints.token_calls.values()) <= 20
        fleet.endpoints.is_blocked = False
        service = fleet.replicas[0].service
        assert service is not None
        await service.refresher.recover()  # its first run
        await fleet.run(MINUTE, step=SECOND)
        assert await fleet.refreshed() == 3


async def test_a_thousand_integrations_survive_an_hour_of_4xx_without_an_error_code(tmp_path: Path) -> None:
    clock = SettableClock()
    async with running_fleet(1000, clock, InMemoryDatabase(clock), tmp_path) as fleet:
        await survive_an_hour(fleet, step=30 * SECOND, callers=10)


@pytest.mark.postgres
async def test_the_same_on_postgresql(postgres_url: str, postgres_server: PostgresServer, tmp_path: Path) -> None:
    """`clock_timestamp()` is a function of the test, which the search path finds first."""
    clock = SettableClock()
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(
            "CREATE SCHEMA simulated; CREATE TABLE simulated.clock (now timestamptz);"
            " INSERT INTO simulated.clock VALUES (NULL);"
            " CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql"
            " AS 'SELECT now FROM simulated.clock';"
            f' ALTER DATABASE "{name}" SET search_path = simulated, pg_catalog, public'
        )

        async def set_clock() -> None:
            await connection.execute("UPDATE simulated.clock SET now = $1", clock())

        await set_clock()
        async with (
            open_database(postgres_url, monitor_timeout=60) as database,
            running_fleet(100, clock, database, tmp_path) as fleet,
        ):
            fleet.set_database_clock = set_clock
            await survive_an_hour(fleet, step=30 * SECOND, callers=5)
    finally:
        await connection.close()
