"""Device authorizations (RFC 8628) at django-oauth-toolkit, and at a server that allows one request per interval."""

import asyncio
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from integration_server.bootstrap import running_server
from integrations.v1 import event_pb2, integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.dot.project import DEVICE_GRANT
from tests.end_to_end.dot.server import DotServer, running_dot
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.processes import server_environment
from tests.end_to_end.replicas import force_refresh, wait_until
from tests.end_to_end.rpc_errors import expect_rpc_error
from tests.end_to_end.secret_scanner import dump_rows
from tests.end_to_end.small_server import Received, run_small_server
from tests.end_to_end.system import CONFIRMING, Clients, callback_url, clients_of, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="function")


async def result_of(clients: Clients, begun: pb.ConnectResponse) -> pb.HandleCallbackResponse:
    """What the app's backend learns with the state and its signed-in user."""
    return await clients.service.HandleCallback(pb.HandleCallbackRequest(state=begun.state, user_id="ada"))


async def final_result_of(clients: Clients, begun: pb.ConnectResponse) -> pb.HandleCallbackResponse:
    """The same as soon as it is known, a moment after the integration has changed."""
    results: list[pb.HandleCallbackResponse] = []

    async def is_final() -> bool:
        results.append(await result_of(clients, begun))
        return results[-1].reason != "authorization_pending"

    await wait_until(is_final)
    return results[-1]


def is_connected(clients: Clients, integration_id: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return bool((await clients.get(integration_id)).is_connected)

    return check


@asynccontextmanager
async def dot_and_clients(directory: Path, database_url: str) -> AsyncIterator[tuple[DotServer, Clients]]:
    """A django-oauth-toolkit with a client for devices, and a server that asks for confirmations as in production."""
    async with AsyncExitStack() as stack:
        dot = stack.enter_context(running_dot(directory, callback_url("acme"), grant_type=DEVICE_GRANT))
        providers = directory / "providers"
        providers.mkdir()
        (providers / "acme.toml").write_text(dot.device_declaration("acme"))
        environment = {"ACME_CLIENT_ID": dot.options.client_id, "ACME_CLIENT_SECRET": dot.options.client_secret}
        settings = settings_for(database_url, PROVIDERS_DIR=str(providers), **CONFIRMING)
        running = await stack.enter_async_context(running_server(settings, environment))
        yield dot, await stack.enter_async_context(clients_of(running.grpc_address, running.sidecar_url))


@pytest.mark.slow
@pytest.mark.quick_on("sqlite")
async def test_a_code_is_entered_at_django_oauth_toolkit(tmp_path: Path, shared_database_url: str) -> None:
    async with dot_and_clients(tmp_path, shared_database_url) as (dot, clients):
        watching: Any = clients.service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id="ada"))
        await watching.read()
        begun = await clients.begin("ada", "acme")
        assert begun.verification_uri == f"{dot.base_url}/o/device/"
        assert begun.authorization_url == begun.verification_uri_complete
        assert begun.user_code in begun.verification_uri_complete
        assert (await result_of(clients, begun)).reason == "authorization_pending"
        assert (await clients.get(begun.integration_id)).status == integration_pb2.STATUS_PENDING
        with closing(sqlite3.connect(tmp_path / "dot.sqlite3")) as database:
            ((device_code,),) = database.execute("SELECT device_code FROM oauth2_provider_devicegrant")
        assert device_code.encode() not in await dump_rows(shared_database_url)

        await dot.enter_code_and_decide(begun.verification_uri, begun.user_code)
        await wait_until(is_connected(clients, begun.integration_id))
        integration = await clients.get(begun.integration_id)
        assert (integration.status, integration.account_label) == (integration_pb2.STATUS_ACTIVE, "ada@dot.example")
        assert list(integration.scopes) == ["read", "offline_access"]
        connected = await final_result_of(clients, begun)
        assert (connected.success, connected.integration_id) == (True, begun.integration_id)
        async with asyncio.timeout(60):
            event = (await watching.read()).event
            while event.kind != event_pb2.INTEGRATION_EVENT_KIND_STATUS_CHANGED:
                event = (await watching.read()).event
        assert event.status_after == integration_pb2.STATUS_ACTIVE

        before = await clients.bearer_token(begun.integration_id)
        assert await dot.accepts_token(before)
        await force_refresh(clients, begun.integration_id)
        after = await clients.bearer_token(begun.integration_id)
        assert await dot.accepts_token(after)
        assert after != before


@pytest.mark.slow
async def test_a_denial_at_django_oauth_toolkit(tmp_path: Path, sqlite_url: str) -> None:
    async with dot_and_clients(tmp_path, sqlite_url) as (dot, clients):
        begun = await clients.begin("ada", "acme")
        await dot.enter_code_and_decide(begun.verification_uri, begun.user_code, allow=False)

        async def is_over() -> bool:
            listed = await clients.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"))
            return not listed.integrations

        await wait_until(is_over)
        assert (await expect_rpc_error(final_result_of(clients, begun))).reason == "PROVIDER_REJECTED"


INTERVAL = 1
USERS = 6
POLLS = 2


@dataclass
class StrictServer:
    """Approves each code at the second request for its tokens, and records when each code was asked for."""

    begun: int = 0
    times: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    at_request: Callable[[], None] = lambda: None

    def __call__(self, request: Received) -> tuple[int, Any]:
        """Respond to a request."""
        if request.path == "/device":
            self.begun += 1
            uri = "https://strict.example/device"
            codes = {"device_code": f"d-{self.begun}", "user_code": f"u-{self.begun}", "verification_uri": uri}
            return 200, {**codes, "expires_in": 600, "interval": INTERVAL}
        times = self.times[request.form["device_code"]]
        times.append(time.monotonic())
        self.at_request()
        if len(times) < POLLS:
            return 400, {"error": "authorization_pending"}
        if len(times) > POLLS:
            return 400, {"error": "invalid_grant"}
        return 200, {"access_token": f"at-{request.form['device_code']}", "expires_in": 3600}


def strict_declaration(url: str) -> str:
    """The declaration of a `StrictServer`."""
    return (
        f'integration_type = "strict"\nauth_method = "oauth2"\ngrant = "device_code"\ntoken_auth = "none"\n'
        f'device_authorization_url = "{url}/device"\ntoken_url = "{url}/token"\n'
    )


@pytest.mark.slow
async def test_another_process_goes_on_after_one_was_killed_during_a_request(
    prefork: PreforkServer, tmp_path: Path, sqlite_url: str
) -> None:
    server, timeout = StrictServer(), 1
    async with run_small_server(server) as small:
        (tmp_path / "providers").mkdir()
        (tmp_path / "providers" / "strict.toml").write_text(strict_declaration(small.url))
        environment = server_environment(
            sqlite_url,
            PROVIDERS_DIR=str(tmp_path / "providers"),
            STRICT_CLIENT_ID="id",
            PROVIDER_TIMEOUT_SECONDS=str(timeout),
            REFRESH_JOURNAL_DIR=str(tmp_path / "refresh-journal"),
        )
        async with prefork.serving(tmp_path, environment) as killed:
            server.at_request = lambda: killed.send(signal.SIGKILL)
            async with clients_of(killed.serving["grpc"], killed.serving["sidecar"]) as clients:
                begun = await clients.begin("ada", "strict")
            await killed.finished()
        server.at_request = lambda: None
        async with (
            prefork.serving(tmp_path, environment) as command,
            clients_of(command.serving["grpc"], command.serving["sidecar"]) as clients,
        ):
            await wait_until(is_connected(clients, begun.integration_id))
            assert (await final_result_of(clients, begun)).success
    (times,) = server.times.values()
    assert len(times) == POLLS
    assert times[1] - times[0] >= 6 * timeout - 0.01  # the claim of the killed process


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
async def test_three_replicas_ask_once_per_interval(tmp_path: Path, shared_database_url: str) -> None:
    server = StrictServer()
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(run_small_server(server))
        (tmp_path / "strict.toml").write_text(strict_declaration(small.url))
        settings = settings_for(shared_database_url, PROVIDERS_DIR=str(tmp_path))
        running = [
            await stack.enter_async_context(running_server(settings, {"STRICT_CLIENT_ID": "id"})) for _ in range(3)
        ]
        clients = [await stack.enter_async_context(clients_of(one.grpc_address, one.sidecar_url)) for one in running]
        begun = [await clients[n % 3].begin("ada", "strict") for n in range(USERS)]
        for one in begun:
            await wait_until(is_connected(clients[0], one.integration_id))
    assert {len(times) for times in server.times.values()} == {POLLS}
    assert len(server.times) == USERS
    pauses = [later - earlier for times in server.times.values() for earlier, later in pairwise(times)]
    assert min(pauses) >= INTERVAL - 0.01  # SQLite's clock has milliseconds
