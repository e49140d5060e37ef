"""The metrics of `serve`: of all its processes, over HTTP, while processes die and hang and the database is away."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from integration_server.observability.merging import SnapshotMerger
from integration_server.observability.metrics import METRICS, Metric, Metrics
from integration_server.observability.snapshots import take_snapshot
from integration_server.sandbox.model import Account
from integration_server.storage.schema import migrate
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.authenticated_system import run_authenticated_system
from tests.end_to_end.commands import DEADLINE, wait_until_serving
from tests.end_to_end.processes import ProcessSystem, free_port, run_server_process, server_environment, started
from tests.end_to_end.test_database_outages import freeze_server
from tests.postgres import PostgresServer, run_postgres
from tools.certificates import LIFETIME, SERVER

Values = Mapping[str, Mapping[tuple[str, ...], float]]


def parsed(exposition: str) -> Values:
    """The samples by name and labels' values, in the order of the labels' names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found.get(sample.name, {}), sample.name
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


async def scrape(system: ProcessSystem) -> str:
    """The exposition."""
    response = await system.browser.get(system.command.serving["metrics"])
    assert response.status_code == 200
    return response.text


async def wait_for(system: ProcessSystem, is_reached: Callable[[Values], bool]) -> Values:
    """The metrics, once they show what is expected."""
    values: Values = {}
    try:
        async with asyncio.timeout(DEADLINE):
            while not is_reached(values := parsed(await scrape(system))):  # noqa: ASYNC110  # another process's state
                await asyncio.sleep(0.2)
    except TimeoutError:
        pytest.fail(f"not reached: {dict(values)}")
    return values


def total(values: Values, metric: Metric, *labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(value for key, value in values.get(metric.name, {}).items() if set(labels) <= set(key))


def up(values: Values) -> Mapping[tuple[str, ...], float]:
    """Whether the processes give their metrics."""
    return values[METRICS.process_up.name]


@asynccontextmanager
async def running(directory: Path, database_url: str) -> AsyncIterator[ProcessSystem]:
    """A server with a metrics listener; its gRPC port is the same after a restart."""
    grpc_address = f"127.0.0.1:{free_port()}"
    async with run_server_process(
        directory, database_url, METRICS_ADDRESS="127.0.0.1:0", GRPC_ADDRESS=grpc_address
    ) as system:
        yield system


async def call_as(system: ProcessSystem, name: str) -> None:
    """Send what a user, an account, a caller and strangers choose, everywhere that takes text."""
    system.sandbox.accounts[name] = Account(name, f"{name}@example.com", f"Name {name}")
    integration_id = await system.connect(name, account=name)
    assert await system.bearer_token(integration_id, name)
    await system.service.RefreshToken(pb.RefreshTokenRequest(integration_id=integration_id, user_id=name, force=True))
    metadata = (("x-purpose", name), ("x-request-id", name))
    refused: list[Awaitable[Any]] = [
        system.service.GetIntegration(pb.GetIntegrationRequest(integration_id=999, user_id=name), metadata=metadata),
        system.service.Connect(pb.ConnectRequest(user_id=name, integration_type=name)),
        system.service.HandleCallback(pb.HandleCallbackRequest(state=name, code=name, integration_type=name)),
        system.service.AckWebhookEvents(
            pb.AckWebhookEventsRequest(integration_id=integration_id, user_id=name, consumer=name, through_number=9)
        ),
        system.raw(name)(name.encode()),
    ]
    for result in await asyncio.gather(*refused, return_exceptions=True):
        assert isinstance(result, grpc.aio.AioRpcError)
    for path in (f"/{name}", f"/api/v1/webhooks/{name}/{name}", f"/api/v1/integrations/callback/{name}?state={name}"):
        assert (await system.browser.post(system.sidecar_url + path, content=name)).status_code >= 400


@pytest.fixture
def postgres() -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL server for this test only, with a migrated database."""
    with run_postgres() as server, server.new_database() as url:
        asyncio.run(migrate(url))
        yield server, url


@pytest.mark.slow
async def test_the_processes_add_up_and_a_killed_one_takes_nothing_away(sqlite_url: str, tmp_path: Path) -> None:
    names = [f"user-{token_hex(8)}" for _ in range(3)]
    async with running(tmp_path, sqlite_url) as system:
        for name in names:
            await call_as(system, name)
        method = "IntegrationService/GetCredentials"
        exposition = await scrape(system)
        values = parsed(exposition)
        # From the server's process and from the sidecar's.
        assert total(values, METRICS.rpcs, method, "OK") == 3
        assert values[f"{METRICS.rpc_duration.name}_count"][method,] == 3
        assert total(values, METRICS.rpcs, "NOT_FOUND", "INTEGRATION_NOT_FOUND") >= 3
        assert total(values, METRICS.rpcs, "unknown", "UNIMPLEMENTED") == 3
        assert total(values, METRICS.http_requests, "callback", "200") == 3
        assert total(values, METRICS.refreshes, "sandbox", "success") == 3
        assert total(values, METRICS.refresh_calls, "sandbox") == 3
        assert total(values, METRICS.provider_requests, "sandbox", "2xx") >= 9
        assert total(values, METRICS.webhooks, "unknown", "not_found") == 3
        assert values[METRICS.database_up.name] == {(): 1}
        for state in (
            METRICS.audit_lag,
            METRICS.data_key_age,
            METRICS.due_age,
            METRICS.breakers_open,
            METRICS.feed_lag,
        ):
            assert values[state.name]
        assert values[METRICS.journal_entries.name] == {(): 0}
        assert values[f"{METRICS.connection_wait.name}_count"][()] > 0
        assert total(values, METRICS.cache_lookups) >= 3
        assert total(values, METRICS.fact_remaining, "instagram") > 0
        assert up(values) == {("server",): 1, ("sidecar",): 1}
        assert set(values[METRICS.loop_lag.name]) == {("server",), ("sidecar",)}
        assert not [name for name in names if name in exposition]
        assert METRICS.rpcs.name in exposition  # what is searched is not empty

        os.kill(system.command.pid("server"), signal.SIGKILL)
        await system.command.wait_for_output('"event": "process_restarted"')
        async with asyncio.timeout(DEADLINE):
            await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id=names[0]), wait_for_ready=True)
        restarted = await wait_for(
            system, lambda values: total(values, METRICS.rpcs, "IntegrationService/ListIntegrations") == 1
        )
        assert total(restarted, METRICS.rpcs, method, "OK") == 3
        assert total(restarted, METRICS.refreshes, "sandbox", "success") == 3

        os.kill(system.command.pid("metrics"), signal.SIGKILL)  # its successor has the same address
        await system.command.wait_for_output('"name": "metrics", "pids"')
        again = await wait_for(
            system, lambda values: total(values, METRICS.rpcs, "IntegrationService/ListIntegrations") == 1
        )
        assert up(again) == {("server",): 1, ("sidecar",): 1}
        system.command.send(signal.SIGTERM)
        assert (await system.command.finished()).code == 0


def test_negative_control_the_search_finds_a_name_in_a_label() -> None:
    metrics, name = Metrics(bounds_labels=False), f"user-{token_hex(8)}"
    metrics.counter(METRICS.refresh_calls)(name)
    assert name in SnapshotMerger().exposition({"server": take_snapshot(metrics, "1")}).decode()


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_metrics_are_served_while_a_process_hangs_and_while_the_database_does(
    postgres: tuple[PostgresServer, str], tmp_path: Path
) -> None:
    server, url = postgres
    async with running(tmp_path, url) as system:
        await system.connect("ada")
        values = await wait_for(system, lambda values: METRICS.integrations.name in values)
        calls = total(values, METRICS.rpcs)

        os.kill(system.command.pid("server"), signal.SIGSTOP)
        hung = await wait_for(system, lambda values: not up(values)["server",])
        assert up(hung) == {("server",): 0, ("sidecar",): 1}
        assert total(hung, METRICS.rpcs) == calls
        assert METRICS.integrations.name not in hung
        os.kill(system.command.pid("server"), signal.SIGCONT)
        await wait_for(system, lambda values: up(values)["server",] == 1)

        with freeze_server(server):
            away = await wait_for(system, lambda values: values.get(METRICS.database_up.name) == {(): 0})
            assert METRICS.integrations.name not in away
            assert METRICS.due_age.name not in away
            assert up(away) == {("server",): 1, ("sidecar",): 1}
            assert total(away, METRICS.rpcs) >= calls
        back = await wait_for(system, lambda values: values.get(METRICS.database_up.name) == {(): 1})
        assert total(back, METRICS.integrations, "sandbox") == 1


@pytest.mark.slow
async def test_an_empty_address_switches_the_listener_off(sqlite_url: str, tmp_path: Path) -> None:
    async with run_server_process(tmp_path, sqlite_url) as system:
        assert set(system.command.serving["pids"]) == {"server", "sidecar"}
        assert "metrics" not in system.command.serving


@pytest.mark.slow
async def test_certificates_in_use_are_shown_with_their_time_left(sqlite_url: str, tmp_path: Path) -> None:
    name, day, address = METRICS.certificate_remaining.name, 86400, f"127.0.0.1:{free_port()}"
    async with run_authenticated_system(sqlite_url, tmp_path, METRICS_ADDRESS=address) as authenticated:
        system, issuer = authenticated.system, authenticated.credential_issuer

        async def days_left() -> Mapping[str, int]:
            values = parsed((await system.browser.get(f"http://{address}/metrics")).text)
            return {labels[0]: round(seconds / day) for labels, seconds in values[name].items()}

        assert await days_left() == {"server": LIFETIME.days, "client_ca": LIFETIME.days}
        issuer.write("server", issuer.authority.issue(SERVER, lifetime=timedelta(days=2)))
        async with asyncio.timeout(DEADLINE):
            while (await days_left())["server"] != 2:  # noqa: ASYNC110  # the server polls the files
                await asyncio.sleep(0.2)
        settings = {**issuer.settings, "GRPC_ADDRESS": system.grpc_address, "SIDECAR_ADDRESS": "127.0.0.1:0"}
        environment = server_environment(sqlite_url, **settings, METRICS_ADDRESS="127.0.0.1:0", DEV_MODE="false")
        async with started(tmp_path, environment, "sidecar") as command:  # one that runs alone
            await wait_until_serving(command)
            values = parsed((await system.browser.get(command.serving["metrics"])).text)
        assert {labels[0] for labels in values[name]} == {"sidecar", "sidecar_ca"}
        lifetime = values[METRICS.certificate_lifetime.name]["sidecar",]
        assert round(lifetime / day) == LIFETIME.days + 1
