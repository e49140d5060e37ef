"""Alerts fire by their faults and resolve, and dashboards have data, with a real Prometheus on a running server."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn

import asyncpg
import grpc.aio
import httpx
import pytest
import pytest_asyncio

from benchmarks.dashboard_queries import DashboardQuery, Scraper, dashboard_queries
from integration_server.domain.credentials import Credentials
from integration_server.providers.factory import ProviderFactory
from integration_server.sandbox.behaviour import Endpoint, Fault
from integration_server.sandbox.model import Account
from integration_server.service.integrations.ports import NewAccount
from integration_server.storage.schema import migrate
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.authenticated_system import CredentialIssuer, run_authenticated_system
from tests.end_to_end.commands import ROOT
from tests.end_to_end.processes import free_port, run_server_process
from tests.end_to_end.system import System, run_system
from tests.end_to_end.test_database_outages import freeze_server
from tests.end_to_end.test_examples import dev_server
from tests.postgres import PostgresServer, run_postgres
from tests.prometheus import SKIP_REASON, Prometheus, find_programs, run_prometheus
from tests.signed_webhook_provider import (
    APP_SECRET_SETTING,
    SIGNED_WEBHOOK,
    SignedWebhookProvider,
    register_signed_webhook_provider,
    signature_headers,
    webhook_body,
)
from tools.certificates import SERVER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(find_programs() is None, reason=SKIP_REASON),
]

SECRET = token_hex(16)
JSON_BODY = {"Content-Type": "application/json"}


# --- Faults in a server of this process


class BrokenProvider(SignedWebhookProvider):
    """A provider with a bug."""

    integration_type = "broken"

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """Fail."""
        raise RuntimeError("a bug")


def register_providers(factory: ProviderFactory, _: str) -> None:
    """Register a provider with webhooks, and one with a bug."""
    register_signed_webhook_provider(factory)
    factory.register("broken", BrokenProvider)


@dataclass(frozen=True, slots=True)
class Trial:
    """A server, and the Prometheus that scrapes it."""

    system: System
    prometheus: Prometheus

    async def connect_users(self, count: int = 4) -> dict[str, int]:
        """Connect new users, each with an account of their own, without faults."""
        found = {}
        for name in (f"user-{token_hex(4)}" for _ in range(count)):
            self.system.sandbox.accounts[name] = Account(name, f"{name}@example.com", name)
            found[name] = await self.system.connect(name, account=name)
        return found

    async def call(self, method: str, request: Any, timeout: float = 10) -> None:
        """A call that may fail."""
        with suppress(grpc.aio.AioRpcError):
            await getattr(self.system.service, method)(request, timeout=timeout)

    async def refresh(self, users: Mapping[str, int]) -> None:
        """Refresh all."""
        for user, integration_id in users.items():
            request = pb.RefreshTokenRequest(integration_id=integration_id, user_id=user, force=True)
            await self.call("RefreshToken", request)

    async def call_provider(self, users: Mapping[str, int], timeout: float = 20) -> None:
        """Call the provider for all at once."""
        requests = [
            pb.CallProviderRequest(integration_id=integration_id, user_id=user, method="GET", path="/userinfo")
            for user, integration_id in users.items()
        ]
        await asyncio.gather(*(self.call("CallProvider", request, timeout) for request in requests))

    async def send_webhook(self, *, account: str, secret: str = SECRET) -> None:
        """Send an event of an account."""
        body = webhook_body({"id": token_hex(8), "account": account})
        url = f"{self.system.sidecar_url}/api/v1/webhooks/{SIGNED_WEBHOOK}/app"
        await self.system.browser.post(url, content=body, headers=signature_headers(body, secret))

    @asynccontextmanager
    async def provider_fault(self, fault: Fault, *endpoints: Endpoint) -> AsyncIterator[None]:
        """A fault of these endpoints."""
        sandbox = self.system.sandbox
        sandbox.behaviour = replace(sandbox.behaviour, faults=dict.fromkeys(endpoints, fault))
        try:
            yield
        finally:
            sandbox.behaviour = replace(sandbox.behaviour, faults={})

    async def assert_fires_and_resolves(
        self,
        fault: Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[object]]]],
        *names: str,
        within: float = 120,
    ) -> None:
        """Assert that the alerts do not fire before a fault, fire by it, and resolve after it.

        The fault yields what has to be done again and again for it to be seen.
        """
        await self.prometheus.wait_until(lambda firing: not firing & set(names), within)
        async with fault() as drive:
            driving = asyncio.create_task(repeat(drive))
            try:
                fired: set[str] = set()

                def all_fired(firing: set[str]) -> bool:
                    fired.update(firing)
                    return fired >= set(names)

                await self.prometheus.wait_until(all_fired, within)
                await self.prometheus.wait_until_shown(names)
            finally:
                driving.cancel()
                await asyncio.gather(driving, return_exceptions=True)
        await self.prometheus.wait_until(lambda firing: not firing & set(names), within + 60)


async def repeat(drive: Callable[[], Awaitable[object]]) -> NoReturn:
    """Do something again and again."""
    while True:
        with suppress(httpx.TransportError):
            await drive()
        await asyncio.sleep(0.5)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL server for this module, with a migrated database."""
    with run_postgres() as server, server.new_database() as url:
        asyncio.run(migrate(url))
        yield server, url


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the refresh journal."""
    return tmp_path_factory.mktemp("journal")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trial(
    own_postgres: tuple[PostgresServer, str], journal: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Trial]:
    """A server that checks health every two seconds."""
    _, url = own_postgres
    address = f"127.0.0.1:{free_port()}"
    async with (
        run_system(
            url,
            environment={APP_SECRET_SETTING: SECRET},
            extra_providers=[register_providers],
            METRICS_ADDRESS=address,
            HEALTH_CHECK_INTERVAL_SECONDS="2",
            REFRESH_JOURNAL_DIR=str(journal),
        ) as system,
        run_prometheus(tmp_path_factory.mktemp("prometheus"), address) as prometheus,
    ):
        yield Trial(system, prometheus)


async def test_the_outage_of_an_api(trial: Trial) -> None:
    users = await trial.connect_users()

    @asynccontextmanager
    async def outage() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        async with trial.provider_fault(Fault(status=503), "userinfo"):
            yield lambda: trial.call_provider(users)

    await trial.assert_fires_and_resolves(outage, "ProviderUnavailable", "CircuitBreakerOpen")


async def test_the_outage_of_a_token_endpoint(trial: Trial) -> None:
    users = await trial.connect_users(30)  # a refresh that has failed pauses before the next
    one_by_one = cycle(users.items())

    @asynccontextmanager
    async def outage() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        async with trial.provider_fault(Fault(status=503), "token"):
            yield lambda: trial.refresh(dict([next(one_by_one)]))

    await trial.assert_fires_and_resolves(outage, "RefreshesFail")


async def test_a_slow_provider(trial: Trial) -> None:
    users = await trial.connect_users()

    @asynccontextmanager
    async def slow() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        async with trial.provider_fault(Fault(delay=6), "userinfo"):
            yield lambda: trial.call_provider(users)

    await trial.assert_fires_and_resolves(slow, "ProviderSlow")


async def test_a_provider_that_refuses_all_grants(trial: Trial) -> None:
    users = await trial.connect_users(8)

    @asynccontextmanager
    async def refusals() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        fault = Fault(status=400, headers=JSON_BODY, body=b'{"error": "invalid_grant"}')
        async with trial.provider_fault(fault, "token"):
            yield lambda: trial.refresh(users)

    await trial.assert_fires_and_resolves(refusals, "MassInvalidGrants")


async def test_a_provider_that_refuses_the_client_secret(trial: Trial) -> None:
    users = await trial.connect_users()

    @asynccontextmanager
    async def refusals() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        fault = Fault(status=401, headers=JSON_BODY, body=b'{"error": "invalid_client"}')
        async with trial.provider_fault(fault, "token"):
            yield lambda: trial.refresh(users)

    await trial.assert_fires_and_resolves(refusals, "ClientSecretRefused")


async def test_webhooks_with_forged_signatures_and_of_no_integration(trial: Trial) -> None:
    async def unrouted() -> None:
        await trial.send_webhook(account="nobody")

    async def forged() -> None:
        await trial.send_webhook(account="nobody", secret="forged")

    await trial.assert_fires_and_resolves(lambda: only(unrouted), "WebhooksUnrouted")
    await trial.assert_fires_and_resolves(lambda: only(forged), "WebhookSignaturesInvalid")


@asynccontextmanager
async def only(drive: Callable[[], Awaitable[object]]) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """A fault that consists of calls."""
    yield drive


async def test_a_bug(trial: Trial) -> None:
    async def connect() -> None:
        request = pb.ConnectWithApiKeyRequest(user_id="ada", integration_type="broken", api_key="key")
        await trial.call("ConnectWithApiKey", request)

    await trial.assert_fires_and_resolves(lambda: only(connect), "UnhandledExceptions")


async def test_a_caller_over_its_quota(trial: Trial) -> None:
    request = pb.WatchIntegrationsRequest(user_id="ada")

    @asynccontextmanager
    async def too_many_streams() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        streams = [trial.system.service.WatchIntegrations(request) for _ in range(10)]
        for stream in streams:
            await stream.read()

        async def one_more() -> None:
            with suppress(grpc.aio.AioRpcError):
                await trial.system.service.WatchIntegrations(request).read()

        try:
            yield one_more
        finally:
            for stream in streams:
                stream.cancel()

    await trial.assert_fires_and_resolves(too_many_streams, "CallersRefused")


async def test_an_event_loop_that_is_held(trial: Trial) -> None:
    async def hold() -> None:
        time.sleep(1.5)  # noqa: ASYNC251  # the server is in this loop

    await trial.assert_fires_and_resolves(lambda: only(hold), "EventLoopLags")


async def test_an_entry_that_stays_in_the_refresh_journal(trial: Trial, journal: Path) -> None:
    entry = journal / "1-1.refresh"

    async def write() -> None:
        entry.write_bytes(b"unreadable")

    @asynccontextmanager
    async def left() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        yield write
        entry.unlink()

    await trial.assert_fires_and_resolves(left, "RefreshJournalNotEmpty")


@pytest.mark.postgres
async def test_statements_that_wait_for_a_lock(trial: Trial, own_postgres: tuple[PostgresServer, str]) -> None:
    users = await trial.connect_users(1)

    @asynccontextmanager
    async def locked() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        connection = await asyncpg.connect(own_postgres[1])
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE integrations IN ACCESS EXCLUSIVE MODE")

        async def read() -> None:
            ((user, integration_id),) = users.items()
            request = pb.GetIntegrationRequest(integration_id=integration_id, user_id=user)
            calls = (later(number / 5, lambda: trial.call("GetIntegration", request, 4)) for number in range(20))
            await asyncio.gather(*calls)

        try:
            yield read
        finally:
            await transaction.rollback()
            await connection.close()

    await trial.assert_fires_and_resolves(locked, "DatabaseConnectionsWait")


async def later(seconds: float, call: Callable[[], Awaitable[object]]) -> None:
    """Call after some seconds."""
    await asyncio.sleep(seconds)
    await call()


@pytest.mark.postgres
async def test_a_database_that_does_not_respond(trial: Trial, own_postgres: tuple[PostgresServer, str]) -> None:
    users = await trial.connect_users(1)
    ((user, integration_id),) = users.items()
    credentials = pb.GetCredentialsRequest(integration_id=integration_id, user_id=user)
    callback = await trial.system.decide(await trial.system.begin(user), account=user)

    @asynccontextmanager
    async def frozen() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        for _ in range(5):
            await trial.call("GetCredentials", credentials)  # their audit entries are not written yet
        with freeze_server(own_postgres[0]):
            yield lambda: asyncio.gather(
                trial.call("GetCredentials", credentials, 3),
                trial.system.follow(callback),
                trial.send_webhook(account="nobody"),
            )

    await trial.assert_fires_and_resolves(
        frozen,
        "DatabaseUnavailable",
        "FaultBudgetBurnsFast",
        "LatencyBudgetBurnsFast",
        "CallbacksFail",
        "WebhooksNotStored",
        "EventFeedLags",
        "AuditLags",
        within=180,
    )


async def test_calls_over_the_rate_limit_of_a_provider(trial: Trial) -> None:
    """The last one: the server keeps the provider's pause."""
    users = await trial.connect_users()

    @asynccontextmanager
    async def limited() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        async with trial.provider_fault(Fault(status=429, headers={"Retry-After": "5"}), "userinfo"):
            yield lambda: trial.call_provider(users, timeout=1)

    await trial.assert_fires_and_resolves(limited, "ProviderRateLimits")


# --- Other servers, and dashboards


async def test_callers_without_a_valid_token(sqlite_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    issuer = CredentialIssuer(tmp_path)
    async with (
        run_system(sqlite_url, METRICS_ADDRESS=address, **issuer.token_settings) as system,
        run_prometheus(folder, address) as prometheus,
    ):
        token = (("authorization", f"Bearer {token_hex(16)}"),)

        async def call() -> None:
            for _ in range(20):
                with suppress(grpc.aio.AioRpcError):
                    request = pb.ListIntegrationsRequest(user_id="ada")
                    await system.service.ListIntegrations(request, metadata=token, timeout=10)

        trial = Trial(system, prometheus)
        await trial.assert_fires_and_resolves(lambda: only(call), "AuthenticationFails", "PeersLimited")


async def test_a_certificate_whose_renewal_is_late(sqlite_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    alerts = {"CertificateEnds", "CertificateEndsSoon"}
    async with (
        run_authenticated_system(sqlite_url, tmp_path, METRICS_ADDRESS=address) as authenticated,
        run_prometheus(folder, address) as prometheus,
    ):
        issuer = authenticated.credential_issuer
        await prometheus.wait_until(lambda firing: not firing & alerts)
        issuer.write("server", issuer.authority.issue(SERVER, lifetime=timedelta(hours=1)))
        await prometheus.wait_until(lambda firing: alerts <= firing)
        await prometheus.wait_until_shown(alerts)
        issuer.write("server", issuer.authority.issue(SERVER))
        await prometheus.wait_until(lambda firing: not firing & alerts)


@pytest.mark.skipif(sys.platform != "linux", reason="stops processes")
async def test_processes_that_do_not_respond_and_servers_that_nobody_scrapes(sqlite_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    async with (
        run_server_process(tmp_path, sqlite_url, METRICS_ADDRESS=address) as system,
        run_prometheus(folder, address) as prometheus,
    ):
        watched = {"ProcessDown", "Down", "Absent"}
        for process, alert in (("sidecar", "ProcessDown"), ("metrics", "Down")):
            await prometheus.wait_until(lambda firing: not firing & watched)
            pid = system.command.pid(process)
            os.kill(pid, signal.SIGSTOP)
            try:
                await prometheus.wait_until(lambda firing, alert=alert: alert in firing)  # type: ignore[misc]
                await prometheus.wait_until_shown([alert])
            finally:
                with suppress(ProcessLookupError):  # the supervisor may have replaced it
                    os.kill(pid, signal.SIGCONT)
        await prometheus.wait_until(lambda firing: not firing & watched)
        prometheus.set_targets()
        await prometheus.wait_until(lambda firing: "Absent" in firing)
        prometheus.set_targets(address)
        await prometheus.wait_until(lambda firing: not firing & watched)


async def test_all_queries_return_data_after_make_run_and_make_load(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    async with (
        dev_server(tmp_path) as (_, environment),
        run_prometheus(folder, environment["METRICS_ADDRESS"]) as prometheus,
    ):
        output = await run_load(
            tmp_path,
            *("--seconds", "40", "--server", environment["GRPC_ADDRESS"]),
            *("--sidecar", f"http://{environment['SIDECAR_ADDRESS']}"),
            *("--sandbox", f"http://{environment['SANDBOX_ADDRESS']}"),
            *("--metrics", environment["METRICS_ADDRESS"]),
        )
        assert "fault: outage" in output
        assert re.search(r"Sent: [\d,]+ ok", output)
        queries = list(dashboard_queries())
        assert len(queries) > 40
        assert f"Dashboards: {len(queries)} of {len(queries)} queries return data." in output
        scraper = Scraper(prometheus.url.removesuffix("/api/v1"), prometheus.client)
        missing = DashboardQuery("", "", "integration_server_no_such_metric")  # the negative control
        assert await scraper.without_data([*queries, missing]) == [missing]
        rules = await prometheus.rules()
        assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
        for rule in rules:
            await prometheus.query(rule["query"])
        for recorded in {rule["name"] for rule in rules if rule["type"] == "recording"}:
            assert await prometheus.query(recorded), recorded


async def test_the_load_goes_on_if_prometheus_does_not_start(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "prometheus"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'cannot map the file' >&2; exit 3\n")
    program.chmod(0o755)
    async with dev_server(tmp_path) as (_, environment):
        output = await run_load(
            tmp_path,
            *("--seconds", "1", "--server", environment["GRPC_ADDRESS"]),
            *("--sidecar", f"http://{environment['SIDECAR_ADDRESS']}"),
            *("--sandbox", f"http://{environment['SANDBOX_ADDRESS']}"),
            *("--metrics", environment["METRICS_ADDRESS"]),
            path=program.parent,
        )
    assert "Prometheus does not run: it ended with code 3: cannot map the file" in output
    assert re.search(r"Sent: [\d,]+ ok", output)


async def run_load(directory: Path, *arguments: str, path: Path | None = None) -> str:
    """The output of `make load`. Programs are also looked for in `path`, first."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.load", *arguments),
        cwd=directory,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", "PATH": f"{path}:{os.environ['PATH']}", "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(180):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("address", ["http://example.com:9090", "http://10.0.0.1", "http://127.0.0.1.example.com"])
async def test_the_load_is_sent_to_this_machine_only(tmp_path: Path, address: str) -> None:
    with pytest.raises(AssertionError, match="is not on this machine"):
        await run_load(tmp_path, "--seconds", "1", "--sandbox", address)
