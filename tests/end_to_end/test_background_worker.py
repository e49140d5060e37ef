"""The background worker of two servers on one database: proactive refresh and health checks."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration_server.sandbox.behaviour import Fault
from integrations.v1 import event_pb2, integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import Replicas, run_replicas, wait_until

pytestmark = pytest.mark.slow

LIFETIME = 12  # seconds: a refresh is due after 4.8 to 6
USERS = ("ada", "bob", "eve", "joe", "zoe")


@pytest.fixture
async def pair(tmp_path: Path, database_url: str, prefork: PreforkServer) -> AsyncIterator[Replicas]:
    """Two servers that check health every second."""
    async with run_replicas(
        tmp_path,
        database_url,
        servers=2,
        lease=10,
        start=prefork.serving,
        HEALTH_CHECK_INTERVAL_SECONDS="1",
        BACKGROUND_CALLS_PER_PROVIDER="2",
    ) as running:
        yield running


async def connect_many(pair: Replicas) -> list[int]:
    """Connect one account for each of several users."""
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, access_token_lifetime=LIFETIME)
    return [await pair.clients[number % 2].connect(user_id) for number, user_id in enumerate(USERS)]


async def list_health_checks(pair: Replicas, integration_id: int) -> pb.ListHealthChecksResponse:
    response: pb.ListHealthChecksResponse = await pair.clients[0].service.ListHealthChecks(
        pb.ListHealthChecksRequest(integration_id=integration_id, user_id="ada", page_size=3)
    )
    return response


async def test_either_server_refreshes_tokens_and_checks_health(pair: Replicas) -> None:
    ids = await connect_many(pair)
    assert pair.refreshes() == []

    async def all_refreshed() -> bool:
        rows = [await pair.clients[0].get(*one) for one in zip(ids, USERS, strict=True)]
        return all(row.update_time.ToDatetime() > row.connect_time.ToDatetime() for row in rows)

    await wait_until(all_refreshed, within=60)
    assert set(pair.refreshes()) == {"ok"}

    async def was_checked_often() -> bool:
        return bool((await list_health_checks(pair, ids[0])).next_page_token)

    await wait_until(was_checked_often, within=60)
    found = await list_health_checks(pair, ids[0])
    assert len(found.health_checks) == 3
    assert [check.healthy for check in found.health_checks] == [True, True, True]
    assert [rate.window.seconds for rate in found.error_rates] == [3600, 86_400, 7 * 86_400]
    assert [rate.failures for rate in found.error_rates] == [0, 0, 0]


@pytest.mark.quick_on("postgres")
async def test_the_status_follows_a_provider_that_goes_down_and_recovers(pair: Replicas) -> None:
    (integration_id, *_) = await connect_many(pair)
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={"userinfo": Fault(status=503)})

    async def has_status(status: integration_pb2.Status) -> bool:
        row = await pair.clients[1].get(integration_id)
        return bool(row.status == status)

    await wait_until(lambda: has_status(integration_pb2.STATUS_ERROR), within=60)
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={})
    await wait_until(lambda: has_status(integration_pb2.STATUS_ACTIVE), within=120)
    rates = (await list_health_checks(pair, integration_id)).error_rates
    assert all(0 < rate.rate < 1 and rate.failures < rate.checks for rate in rates)


@pytest.mark.quick_on("postgres")
async def test_the_event_stream_reports_the_expiry_of_a_token_without_refresh_token(pair: Replicas) -> None:
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, access_token_lifetime=3, issue_refresh_token=False)
    stream: Any = pair.clients[0].service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id="ada"))
    await stream.read()
    integration_id = await pair.clients[1].connect()
    changes: list[tuple[int, int]] = []
    async with asyncio.timeout(60):
        while not changes or changes[-1][1] != integration_pb2.STATUS_EXPIRED:
            reported = (await stream.read()).event
            if reported.kind == event_pb2.INTEGRATION_EVENT_KIND_STATUS_CHANGED:
                changes.append((reported.status_before, reported.status_after))
    stream.cancel()
    assert changes[0] == (integration_pb2.STATUS_PENDING, integration_pb2.STATUS_ACTIVE)
    # A check in flight at the expiry may report the rejected token before the expiry is recorded.
    assert changes[-1][0] in {integration_pb2.STATUS_ACTIVE, integration_pb2.STATUS_ERROR}
    assert (await pair.clients[0].get(integration_id)).status == integration_pb2.STATUS_EXPIRED
