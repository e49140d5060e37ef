"""Requests with many events, and users whose kept events exceed their quota."""

import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES
from integration_server.domain.errors import ProviderRejected
from integration_server.domain.integration import Integration, UserId
from integration_server.domain.webhooks import ReceivedWebhook, WebhookRequest, WebhookResponse
from integration_server.lifecycle import freeze_gc
from integration_server.providers.webhooks.hubspot import HUBSPOT
from integration_server.providers.webhooks.scheme import WebhookKeys
from integration_server.service.webhooks.ports import UnroutedWebhook
from integration_server.service.webhooks.webhook_ingestion import (
    TOO_MANY_EVENTS,
    TOO_MANY_NEW_EVENTS,
    USER_QUOTA_EXCEEDED,
    WebhookIngestion,
)
from tests.fakes.provider import FakeProvider, FakeProviders, wait_until
from tests.fakes.stores import count_calls
from tests.fakes.system import ADA, EVE, FakeSystem
from tests.loop_hold.meter import MAX_HOLD
from tests.signed_webhook_provider import webhook_body
from tests.unit.providers.webhooks.samples import NOW, SAMPLES
from tests.unit.service.webhooks.test_webhook_ingestion import APP_SECRET, SECRET, STORED, request

T = TypeVar("T")

KIB = 1024


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    system.provider.app_secrets = [APP_SECRET]
    return await system.connect_key(webhook_secret=SECRET)


def events(count: int, first: int = 0, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": f"e-{number}", **fields} for number in range(first, first + count)]


async def deliver(
    system: FakeSystem,
    integration: Integration,
    batch: list[dict[str, Any]],
    ingestion: WebhookIngestion | None = None,
) -> WebhookResponse:
    """Send a batch to the integration's own address."""
    signed = request(webhook_body(*batch), SECRET)
    return await (ingestion or system.webhook_ingestion).receive_webhook("fake_key", integration.uid, signed)


def stored_ids(system: FakeSystem, integration: Integration) -> list[str]:
    return [row.event_id for row in system.webhook_rows() if row.integration_id == integration.integration_id]


def unbounded(system: FakeSystem) -> WebhookIngestion:
    return replace(system.webhook_ingestion, max_new_events=10**9)


# --- the number of events --------------------------------------------------------------------------------------------


async def test_the_largest_batch_of_a_provider_is_stored_at_once(system: FakeSystem, integration: Integration) -> None:
    assert await deliver(system, integration, events(1000)) == STORED
    assert len(stored_ids(system, integration)) == 1000


@pytest.mark.slow
async def test_each_delivery_of_a_larger_batch_stores_the_next_events(
    system: FakeSystem, integration: Integration
) -> None:
    batch = events(2500)
    for stored in (1000, 2000):
        assert await deliver(system, integration, batch) == TOO_MANY_NEW_EVENTS
        assert len(stored_ids(system, integration)) == stored
    assert await deliver(system, integration, batch) == STORED
    assert stored_ids(system, integration) == [event["id"] for event in batch]
    assert await deliver(system, integration, batch) == STORED


async def test_negative_control_without_the_bound_one_delivery_stores_everything(
    system: FakeSystem, integration: Integration
) -> None:
    assert await deliver(system, integration, events(2500), unbounded(system)) == STORED


async def test_events_with_new_ids_at_each_delivery_are_stored_at_once(
    system: FakeSystem, integration: Integration
) -> None:
    assert await deliver(system, integration, events(1500, unstable=True)) == STORED
    assert len(stored_ids(system, integration)) == 1500


@pytest.mark.slow
async def test_events_beyond_the_number_that_is_read_are_refused_for_good(
    system: FakeSystem, integration: Integration
) -> None:
    batch = events(50_000)
    ingestion = replace(system.webhook_ingestion, max_events=1250)
    for response, stored in ((TOO_MANY_NEW_EVENTS, 1000), (TOO_MANY_EVENTS, 1250), (TOO_MANY_EVENTS, 1250)):
        lookups = count_calls(system.inbox, "known")
        assert await deliver(system, integration, batch, ingestion) == response
        assert stored_ids(system, integration) == [event["id"] for event in batch[:stored]]
        assert count_calls(system.inbox, "known") - lookups <= 13  # slices of a hundred


@pytest.mark.slow
async def test_the_bound_counts_events_with_a_recipient_only(system: FakeSystem, integration: Integration) -> None:
    row = await system.connect_account("account-1")
    batch = events(3000, account="nobody") + events(500, 3000, account="account-1")
    signed = request(webhook_body(*batch), APP_SECRET)
    assert await system.webhook_ingestion.receive_webhook("fake", "app", signed) == STORED
    assert len(stored_ids(system, row)) == 500


async def test_an_event_reaches_more_recipients_than_one_query_reads(system: FakeSystem) -> None:
    system.provider.app_secrets = [APP_SECRET]
    rows = [await system.connect_account("team", user_id=UserId(f"user-{number}")) for number in range(5)]
    signed = request(webhook_body({"id": "a", "account": "team"}), APP_SECRET)
    ingestion = replace(system.webhook_ingestion, recipients_page=2)
    assert await ingestion.receive_webhook("fake", "app", signed) == STORED
    assert {row.integration_id for row in system.webhook_rows()} == {row.integration_id for row in rows}


# --- the event loop --------------------------------------------------------------------------------------------------


class CpuTimer:
    """Runs an awaitable and measures the longest CPU time between two of its suspensions."""

    longest = 0.0

    def measure(self, awaitable: Awaitable[T]) -> Awaitable[T]:
        return _Measured(self, awaitable)


class _Measured(Awaitable[T]):
    def __init__(self, timer: CpuTimer, awaitable: Awaitable[T]) -> None:
        self._timer = timer
        self._steps = awaitable.__await__()

    def __await__(self) -> Generator[Any, Any, T]:
        while True:
            begin = time.thread_time()
            try:
                suspended = next(self._steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                self._timer.longest = max(self._timer.longest, time.thread_time() - begin)
            yield suspended


async def undisturbed(timer: CpuTimer, work: Callable[[], Awaitable[object]]) -> CpuTimer:
    """The timer, or that of a repetition if it has measured too much: beside other work, CPU time is longer."""
    for _ in range(4):
        if timer.longest < MAX_HOLD:
            break
        timer = CpuTimer()
        await timer.measure(work())
    return timer


@pytest.mark.slow
async def test_a_large_batch_holds_the_event_loop_in_slices_only(system: FakeSystem, integration: Integration) -> None:
    assert await deliver(system, integration, events(200, 10_000)) == STORED  # compiles the statements
    batch = events(5000)
    freeze_gc()  # as a server does: the objects of earlier tests are not scanned during this one
    timer = CpuTimer()
    assert await timer.measure(deliver(system, integration, batch, unbounded(system))) == STORED
    firsts = count(20_000, 5_000)
    timer = await undisturbed(
        timer, lambda: deliver(system, integration, events(5000, next(firsts)), unbounded(system))
    )
    assert timer.longest < MAX_HOLD


class HubspotProvider(FakeProvider):
    """Its events are made from all members of their part of the body, when they are read."""

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """Verify and read a request of HubSpot."""
        return HUBSPOT.receive(request, WebhookKeys(secrets), NOW)


@pytest.mark.slow
@pytest.mark.parametrize("is_threaded", [True, False], ids=["threaded", "negative control"])
@pytest.mark.parametrize(("count", "members"), [(1, 60_000), (100, 600), (7, 9_000)])
async def test_the_events_of_a_large_body_are_made_outside_of_the_event_loop(
    system: FakeSystem, count: int, members: int, is_threaded: bool
) -> None:
    provider = HubspotProvider(system.clock, supports_webhooks=True, app_secrets=[APP_SECRET])
    ingestion = replace(
        system.webhook_ingestion,
        providers=replace(system.webhook_ingestion.providers, registry=FakeProviders(provider)),
    )
    if not is_threaded:
        ingestion = replace(ingestion, large_body=10**9)
    event = b"{" + b",".join(b'"k%d":1' % number for number in range(members)) + b"}"
    body = b"[" + b",".join([event] * count) + b"]"
    signed = next(sample for sample in SAMPLES if sample.name == "hubspot").sign(APP_SECRET, body, NOW)
    freeze_gc()
    timer = CpuTimer()
    response = await timer.measure(ingestion.receive_webhook("fake", "app", signed))
    assert (response.status, len(await list_unrouted(system))) == (200, 1)
    if is_threaded:
        timer = await undisturbed(timer, lambda: ingestion.receive_webhook("fake", "app", signed))
    assert (timer.longest < MAX_HOLD) == is_threaded


async def list_unrouted(system: FakeSystem) -> Sequence[UnroutedWebhook]:
    log = system.use_cases.unrouted_webhooks
    return (await log.list_unrouted_webhooks("", 200, "", ALL_INTEGRATION_TYPES)).items


# --- the quota of kept payloads --------------------------------------------------------------------------------------


@pytest.fixture
async def full(system: FakeSystem) -> FakeSystem:
    """Users of this system keep at most one MiB of payloads."""
    return FakeSystem({"user_max_webhook_bytes": KIB * KIB})


async def test_events_beyond_the_quota_are_refused_until_some_are_acknowledged(full: FakeSystem) -> None:
    async with full.tasks:
        row = await full.connect_key(webhook_secret=SECRET)
        large = [events(1, number, text="x" * 200 * KIB) for number in range(6)]
        with capture_logs() as logs:
            for batch in large[:5]:
                assert await deliver(full, row, batch) == STORED
            for _ in range(3):
                assert await deliver(full, row, large[5]) == USER_QUOTA_EXCEEDED
        assert [line["event"] for line in logs].count("webhook_quota_exceeded") == 1
        assert stored_ids(full, row) == [f"e-{number}" for number in range(5)]  # none is lost
        await full.webhook_delivery.acknowledge_webhook_events(row.integration_id, ADA, "billing", 2)
        assert await deliver(full, row, large[5]) == STORED
        assert stored_ids(full, row) == ["e-2", "e-3", "e-4", "e-5"]


async def test_a_full_user_does_not_keep_events_from_another(full: FakeSystem) -> None:
    async with full.tasks:
        full.provider.app_secrets = [APP_SECRET]
        adas = await full.connect_account("shared")
        large = events(1, account="shared", text="x" * 1000 * KIB)
        signed = request(webhook_body(*large), APP_SECRET)
        assert await full.webhook_ingestion.receive_webhook("fake", "app", signed) == STORED
        eves = await full.connect_account("shared", user_id=EVE)
        batch = events(150, 1, account="shared", text="x" * KIB)
        signed = request(webhook_body(*batch), APP_SECRET)
        assert await full.webhook_ingestion.receive_webhook("fake", "app", signed) == USER_QUOTA_EXCEEDED
        assert stored_ids(full, adas) == ["e-0"]
        assert stored_ids(full, eves) == [event["id"] for event in batch]


async def test_negative_control_without_the_quota_the_events_are_stored(system: FakeSystem) -> None:
    row = await system.connect_key(webhook_secret=SECRET)
    for number in range(8):
        assert await deliver(system, row, events(1, number, text="x" * 200 * KIB)) == STORED


async def test_a_full_user_still_learns_that_a_grant_has_ended(full: FakeSystem) -> None:
    async with full.tasks:
        row = await full.connect_key(webhook_secret=SECRET)
        assert await deliver(full, row, events(1, text="x" * 1000 * KIB)) == STORED
        full.key_provider.verify_error = ProviderRejected("key")
        report = [{"id": "end", "reports_grant_end": True, "text": "x" * 100 * KIB}]
        assert await deliver(full, row, report) == USER_QUOTA_EXCEEDED
        await wait_until(lambda: full.row(row.integration_id).reauthorization_required)
