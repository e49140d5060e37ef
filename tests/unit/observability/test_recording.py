"""What the server does is recorded where it happens, with the outcome that a caller or provider gets."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest

from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
)
from integration_server.domain.integration import Integration, UserId
from integration_server.domain.integration_cache import RaceSafeCache
from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.observability.metrics import (
    METRICS,
    Metric,
    Metrics,
    record_calls,
    record_provider_requests,
    record_requests,
)
from integration_server.observability.snapshots import take_snapshot
from integration_server.providers.base import ProviderContext
from integration_server.providers.built_in import built_in_class
from integration_server.providers.http import ProviderHttp
from integration_server.rpc.errors import Unauthenticated
from integration_server.rpc.interceptors import convert_errors
from integration_server.rpc.methods import UNKNOWN_METHOD, Method
from integration_server.service.events.ports import EventFilter
from integration_server.sidecar.middleware import RecordedApp
from integration_server.wiring.metrics import (
    read_breakers,
    read_events,
    read_facts,
)
from tests.fakes.clock import SettableClock
from tests.fakes.inmemory_grpc import FakeContext, RpcError
from tests.fakes.system import ADA, LEASE, FakeSystem
from tests.unit.service.webhooks.test_webhook_ingestion import APP_SECRET, SECRET, deliver, deliver_to_app

StripeApiKeyProvider = built_in_class("stripe_api_key")

UNARY = Method("/integrations.v1.IntegrationService/GetIntegration")
STREAM = Method("/integrations.v1.IntegrationService/WatchIntegrations", streams_responses=True)


def counts(metrics: Metrics, metric: Metric, suffix: str = "") -> dict[tuple[str, ...], float]:
    """The values of a metric by its labels."""
    name = f"{metric.name}{suffix}"
    values = take_snapshot(metrics, "1").values
    return {tuple(value for _, value in labels): count for (key, labels), count in values.items() if key == name}


@pytest.fixture
def metrics() -> Metrics:
    recorded = Metrics()
    recorded.types.update({"fake", "fake_key"})
    return recorded


@pytest.fixture
def system(metrics: Metrics) -> FakeSystem:
    return FakeSystem(options={"metrics": metrics})


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "OK", ""),
        (IntegrationNotFound(), "NOT_FOUND", "INTEGRATION_NOT_FOUND"),
        (QuotaExceeded("under way"), "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
        (ProviderUnavailable(), "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (Unauthenticated("a token"), "UNAUTHENTICATED", ""),
        (ZeroDivisionError("user ada"), "INTERNAL", ""),
        (grpc.aio.InternalError("gone"), "CANCELLED", ""),
        (asyncio.CancelledError(), "CANCELLED", ""),
    ],
)
async def test_each_call_is_recorded_with_the_status_that_it_gets(
    metrics: Metrics, error: BaseException | None, status: str, reason: str
) -> None:
    async def behavior(_request: object, _context: object) -> str:
        if error is not None:
            raise error
        return "response"

    call = convert_errors(record=record_calls(metrics))(UNARY, behavior)
    context: Any = FakeContext()
    with suppress(grpc.aio.AbortError, asyncio.CancelledError):
        await call("request", context)
    assert counts(metrics, METRICS.rpcs) == {("IntegrationService/GetIntegration", status, reason): 1}
    assert counts(metrics, METRICS.rpc_duration, "_count") == {("IntegrationService/GetIntegration",): 1}
    if status not in {"OK", "CANCELLED"}:
        assert isinstance(context.error, RpcError)
        assert context.error.code.name == status


async def test_a_status_that_a_handler_sets_itself_is_recorded(metrics: Metrics) -> None:
    async def behavior(_request: object, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    context: Any = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await convert_errors(record=record_calls(metrics))(UNKNOWN_METHOD, behavior)("request", context)
    assert counts(metrics, METRICS.rpcs) == {("unknown", "UNIMPLEMENTED", ""): 1}


async def test_a_stream_is_counted_when_it_ends_and_has_no_latency(metrics: Metrics) -> None:
    async def behavior(_request: object, _context: object) -> Any:
        yield 1
        yield 2

    context: Any = FakeContext()
    stream = convert_errors(record=record_calls(metrics))(STREAM, behavior)("request", context)
    assert await anext(stream) == 1
    assert counts(metrics, METRICS.rpcs) == {}
    assert [one async for one in stream] == [2]
    assert counts(metrics, METRICS.rpcs) == {("IntegrationService/WatchIntegrations", "OK", ""): 1}
    assert counts(metrics, METRICS.rpc_duration, "_count") == {}


@pytest.mark.parametrize(
    ("path", "status", "route"),
    [
        ("/healthz", 200, "/healthz"),
        ("/api/v1/integrations/callback/ada", 400, "callback"),
        ("/api/v1/webhooks/ada/uid-1", 202, "webhooks"),
        ("/ada", 404, "other"),
        ("/healthz/ada", 404, "other"),
        ("/api/v1/webhooks/stripe/x", 0, "webhooks"),
    ],
)
async def test_requests_of_the_sidecar_are_recorded_by_route(
    metrics: Metrics, path: str, status: int, route: str
) -> None:
    async def app(_scope: object, _receive: object, send: Callable[[Mapping[str, Any]], Any]) -> None:
        if not status:
            raise ConnectionResetError
        await send({"type": "http.response.start", "status": status})

    async def send(_message: object) -> None: ...

    recorded: Any = RecordedApp(app, record_requests(metrics))  # type: ignore[arg-type]  # a simpler app
    with suppress(ConnectionResetError):
        await recorded({"type": "http", "path": path}, None, send)
    assert counts(metrics, METRICS.http_requests) == {(route, str(status)): 1}


# --- refreshes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "success"),
        (ProviderUnavailable(), "transient"),
        (ProviderUnavailable(outcome_unknown=True), "lost"),
        (ProviderRejected("grant", oauth_error="invalid_request"), "transient"),
        (ProviderRejected("grant", oauth_error="invalid_grant"), "terminal"),
        (ProviderMisconfigured(oauth_error="invalid_client"), "client"),
    ],
)
async def test_a_refresh_is_recorded_with_its_outcome(
    system: FakeSystem, metrics: Metrics, error: Exception | None, outcome: str
) -> None:
    integration = await system.connect()
    system.clock.advance(timedelta(hours=1))
    system.provider.refresh_error = error
    await refresh(system, integration)
    assert counts(metrics, METRICS.refreshes) == {("fake", outcome): 1}
    assert counts(metrics, METRICS.refresh_calls) == {("fake",): 1}
    await refresh(system, integration)  # a pause, or a fresh token: no call
    assert sum(counts(metrics, METRICS.refreshes).values()) == len(system.provider.refreshes)


async def test_a_refresh_that_repeats_one_of_a_crashed_process_counts_it_as_lost(
    system: FakeSystem, metrics: Metrics
) -> None:
    integration = await system.connect()
    system.clock.advance(timedelta(hours=1))
    assert await system.leases.claim(integration, "crashed process") is not None
    system.clock.advance(3 * LEASE)
    await refresh(system, integration)
    assert counts(metrics, METRICS.refreshes) == {("fake", "lost"): 1, ("fake", "success"): 1}
    assert counts(metrics, METRICS.refresh_calls) == {("fake",): 1}


async def refresh(system: FakeSystem, integration: Integration) -> None:
    """Ask for valid credentials."""
    with suppress(IntegrationServerError):
        await system.credentials.refresh_token(integration.integration_id, integration.user_id, force=False)


async def test_mass_failures_and_open_circuit_breakers_are_recorded(system: FakeSystem, metrics: Metrics) -> None:
    rows = [await system.connect_account(f"account-{number}", UserId(f"user-{number}")) for number in range(25)]
    assert all(value == 0 for _, _, value in read_breakers(system.worker))
    system.clock.advance(timedelta(hours=1))
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="invalid_grant")
    for row in rows:
        await refresh(system, row)
    assert counts(metrics, METRICS.mass_invalid_grants)["fake",] >= 1
    assert counts(metrics, METRICS.refreshes)["fake", "terminal"] + counts(metrics, METRICS.refreshes).get(
        ("fake", "client"), 0
    ) == len(rows)


# --- webhooks, waits, cache, events ----------------------------------------------------------------------------------


async def test_webhooks_are_recorded_by_outcome_and_unrouted_ones_apart(system: FakeSystem, metrics: Metrics) -> None:
    system.provider.app_secrets = [APP_SECRET]
    integration = await system.connect_key(webhook_secret=SECRET)
    await deliver(system, integration, {"id": "1"})
    await deliver(system, integration, {"id": "2"}, secret="another")
    await deliver_to_app(system, {"id": "3", "account": "nobody"})
    request: Any = None
    for name in ("ada", "fake/../..", ""):
        await system.webhook_ingestion.receive_webhook(name, "ada", request)
    assert counts(metrics, METRICS.webhooks) == {
        ("fake_key", "accepted"): 1,
        ("fake_key", "invalid_signature"): 1,
        ("fake", "accepted"): 1,
        ("unknown", "not_found"): 2,
        ("", "not_found"): 1,
    }
    assert counts(metrics, METRICS.webhooks_unrouted) == {("fake",): 1}


async def test_waits_for_permits_and_refused_ones_are_recorded(system: FakeSystem, metrics: Metrics) -> None:
    system.provider.rate_limits = [RateLimit(1, timedelta(hours=1), LimitScope.APP)]
    integration = await system.connect()
    limiter = system.api_proxy.rate_limiters.limiter(system.provider)
    async with limiter.permit(integration, 1.0, is_retry=False):
        pass
    with pytest.raises((RateLimited, ProviderUnavailable)):
        async with limiter.permit(integration, 1.0, is_retry=False):
            pass
    assert counts(metrics, METRICS.rate_limit_wait, "_count") == {("fake",): 1}
    assert counts(metrics, METRICS.rate_limit_refusals) == {("fake",): 1}


async def test_lookups_of_the_cache_are_counted(metrics: Metrics) -> None:
    plain = FakeSystem()
    integration = await plain.connect()
    cache = RaceSafeCache(2**20, lambda: plain.clock().timestamp())
    service = plain.another_process_with(metrics=metrics, cache=cache)
    await service.reader.poll()
    for _ in range(3):
        await service.use_cases.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert counts(metrics, METRICS.cache_lookups) == {("hit",): 2, ("miss",): 1}


async def test_the_lag_of_the_feed_and_the_streams_are_read(system: FakeSystem) -> None:
    reader = system.change_reader

    def values() -> dict[str, float]:
        return {metric.name: value for metric, _, value in read_events(reader)}

    assert METRICS.feed_lag.name not in values()  # nobody reads the feed
    await reader.poll()
    system.clock.advance(timedelta(seconds=7))
    assert values() == {METRICS.feed_lag.name: 7, METRICS.streams.name: 0, METRICS.stream_waiting.name: 0}
    with reader.events.subscribed(EventFilter()), reader.events.subscribed(EventFilter(ADA)):
        await system.connect()
        await reader.poll()
        assert values()[METRICS.streams.name] == 2
        assert values()[METRICS.stream_waiting.name] >= 1


@pytest.mark.parametrize(
    ("status", "result"),
    [(200, "2xx"), (204, "2xx"), (302, "3xx"), (404, "4xx"), (429, "4xx"), (503, "5xx"), (0, "no_response")],
)
async def test_requests_to_providers_are_recorded_by_class(metrics: Metrics, status: int, result: str) -> None:
    def respond(_request: httpx.Request) -> httpx.Response:
        if not status:
            raise httpx.ConnectError("ada")
        return httpx.Response(status)

    clock = SettableClock()
    metrics.types.add(StripeApiKeyProvider.integration_type)
    async with ProviderHttp(clock, transport=httpx.MockTransport(respond)) as http:
        provider = StripeApiKeyProvider(ProviderContext(http, clock, {}, record_provider_requests(metrics)))
        try:
            await provider.send("GET", "https://api.stripe.com/v1/account")
        except ProviderUnavailable:
            assert not status
    assert counts(metrics, METRICS.provider_requests) == {(StripeApiKeyProvider.integration_type, result): 1}
    assert counts(metrics, METRICS.provider_duration, "_count") == {(StripeApiKeyProvider.integration_type,): 1}


def test_facts_are_read_with_the_time_that_remains() -> None:
    fact = SimpleNamespace(subject="API v1", end=date(2026, 5, 11))
    provider: Any = SimpleNamespace(integration_type="fake", facts_ending_by=lambda _day: [fact])
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert list(read_facts([provider], lambda: now)) == [
        (METRICS.fact_remaining, ("fake", "API v1"), timedelta(days=10).total_seconds())
    ]
