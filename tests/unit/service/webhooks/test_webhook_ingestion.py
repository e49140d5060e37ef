"""Webhook ingestion: verification, recipients and deduplication."""

import asyncio
import gc
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from integration_server.domain.audit import SERVER, Action
from integration_server.domain.errors import (
    InvalidField,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, Status
from integration_server.domain.webhooks import WebhookRequest, WebhookResponse
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.webhooks.webhook_ingestion import NOT_FOUND, UNAUTHORIZED
from tests.fakes.stores import count_calls, intercept
from tests.fakes.system import ADA, EVE, EVENT_RETENTION, FakeSystem
from tests.loop_hold.meter import MAX_HOLD, HoldRecorder, LoopHolds
from tests.signed_webhook_provider import signature_headers, webhook_body

SECRET, APP_SECRET, WRONG = "an integration's own", "the app's", "another secret"
STORED = WebhookResponse(202, body=b"ok")


def request(body: bytes, secret: str, /, **changes: Any) -> WebhookRequest:
    """A signed request."""
    headers = [(name, value.encode()) for name, value in signature_headers(body, secret).items()]
    return WebhookRequest(
        **{"method": "POST", "url": "https://hooks.example/hook", "headers": headers, "body": body, **changes}
    )


async def deliver(
    system: FakeSystem, integration: Integration, *events: Mapping[str, Any], secret: str = SECRET
) -> WebhookResponse:
    """Send events to an integration's own address."""
    return await system.webhook_ingestion.receive_webhook(
        integration.integration_type, integration.uid, request(webhook_body(*events), secret)
    )


async def deliver_to_app(system: FakeSystem, *events: Mapping[str, Any], secret: str = APP_SECRET) -> WebhookResponse:
    """Send events to our app's address at the OAuth provider."""
    return await system.webhook_ingestion.receive_webhook("fake", "app", request(webhook_body(*events), secret))


async def kept(system: FakeSystem, integration: Integration) -> list[tuple[int, str]]:
    """Number and id of the events that a consumer would get."""
    page = await system.webhook_delivery.list_webhook_events(
        integration.integration_id, integration.user_id, "consumer", 200, ""
    )
    return [(event.number, event.event_id) for event in page.items]


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    system.provider.app_secrets = [APP_SECRET]
    return await system.connect_key(webhook_secret=SECRET)


async def test_a_signed_event_is_stored_and_gets_the_providers_response(
    system: FakeSystem, integration: Integration
) -> None:
    assert await deliver(system, integration, {"id": "a"}, {"id": "b"}) == STORED
    assert await kept(system, integration) == [(1, "a"), (2, "b")]


async def test_a_repeated_delivery_gets_the_same_response_and_is_stored_once(
    system: FakeSystem, integration: Integration
) -> None:
    for _ in range(3):
        assert await deliver(system, integration, {"id": "a"}) == STORED
    await asyncio.gather(*(deliver(system, integration, {"id": "b"}) for _ in range(5)))
    assert await kept(system, integration) == [(1, "a"), (2, "b")]


async def test_an_address_may_have_an_alias_of_the_type(system: FakeSystem, integration: Integration) -> None:
    system.key_provider.aliases = ("pretend_key",)
    signed_request = request(webhook_body({"id": "a"}), SECRET)
    assert await system.webhook_ingestion.receive_webhook("pretend_key", integration.uid, signed_request) == STORED
    assert await kept(system, integration) == [(1, "a")]


async def test_a_forged_request_is_rejected_and_stores_nothing(system: FakeSystem, integration: Integration) -> None:
    for secret in (WRONG, "", APP_SECRET):
        assert await deliver(system, integration, {"id": "a"}, secret=secret) == UNAUTHORIZED
    unsigned = request(webhook_body({"id": "a"}), SECRET, headers=())
    assert await system.webhook_ingestion.receive_webhook("fake_key", integration.uid, unsigned) == UNAUTHORIZED
    altered = request(webhook_body({"id": "a"}), SECRET, body=webhook_body({"id": "b"}))
    assert await system.webhook_ingestion.receive_webhook("fake_key", integration.uid, altered) == UNAUTHORIZED
    assert await deliver_to_app(system, {"id": "a", "account": "account-1"}, secret=SECRET) == UNAUTHORIZED
    assert await kept(system, integration) == []
    assert not [event for event in system.event_rows() if event.webhook_number]


@pytest.mark.slow
@pytest.mark.parametrize("large_body", [64 * 1024, 1024 * 1024 * 1024], ids=["threaded", "negative control"])
async def test_reading_a_large_body_does_not_hold_the_event_loop(
    system: FakeSystem, integration: Integration, large_body: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_request = request(
        webhook_body(*[{"id": str(number), "account": "unknown"} for number in range(300_000)]), APP_SECRET
    )
    handle: Any = asyncio.Handle
    monkeypatch.setattr(handle, "_run", HoldRecorder(tmp_path / "test.hold").measure(handle._run))
    ingestion = replace(system.webhook_ingestion, large_body=large_body)
    await asyncio.sleep(0)  # ends what is not measured
    is_long, may_be_long = True, large_body > len(signed_request.body)
    gc.disable()  # the loop's thread may also be the one that looks through all objects of the other
    try:
        for _ in range(5):  # beside other work, CPU time is longer
            await asyncio.create_task(ingestion.receive_webhook("fake", "app", signed_request))
            is_long = LoopHolds(tmp_path).take().seconds > MAX_HOLD
            if is_long == may_be_long:
                break
    finally:
        gc.enable()
    assert is_long == may_be_long


async def test_an_unknown_address_is_not_found(system: FakeSystem, integration: Integration) -> None:
    pending = system.row((await system.begin()).integration_id)
    good = request(webhook_body({"id": "a"}), SECRET)
    for integration_type, endpoint in (
        ("fake_key", "x" * 43),
        ("fake_key", "../app"),
        ("fake_key", "\0"),
        ("fake_key", ""),
        ("fake_key", "app"),  # no secret of the app is set
        ("unheard_of", integration.uid),
        ("fake", integration.uid),
        ("fake", pending.uid),
    ):
        assert await system.webhook_ingestion.receive_webhook(integration_type, endpoint, good) == NOT_FOUND
    system.key_provider.supports_webhooks = False
    assert await deliver(system, integration, {"id": "a"}) == NOT_FOUND


async def test_an_integration_without_a_secret_accepts_nothing(system: FakeSystem) -> None:
    integration = await system.connect_key()
    assert await deliver(system, integration, {"id": "a"}, secret="") == UNAUTHORIZED


async def test_events_of_the_app_go_to_all_integrations_of_the_account(
    system: FakeSystem, integration: Integration
) -> None:
    adas, eves = await system.connect_account("a-1"), await system.connect_account("a-1", EVE)
    other = await system.connect_account("a-2")
    events = [{"id": "1", "account": "a-1"}, {"id": "2", "account": "a-2"}, {"id": "3", "account": "a-1"}]
    assert await deliver_to_app(system, *events) == STORED
    assert await kept(system, adas) == await kept(system, eves) == [(1, "1"), (2, "3")]
    assert await kept(system, other) == [(1, "2")]
    assert await kept(system, integration) == []


async def test_events_without_a_recipient_are_accepted(system: FakeSystem, integration: Integration) -> None:
    for account in ("a-3", None, "", "\0", "a" * 300):
        assert await deliver_to_app(system, {"id": "1", "account": account}) == STORED


# test_webhook_routing.py has the tests of routes and of unrouted events.


async def test_a_handshake_does_not_read_the_inbox(system: FakeSystem, integration: Integration) -> None:
    query = "challenge=text"
    handshake = request(query.encode(), APP_SECRET, method="GET", url=f"https://hooks.example/hook?{query}", body=b"")
    system.database.is_unavailable = True
    response = await system.webhook_ingestion.receive_webhook("fake", "app", handshake)
    assert (response.status, response.body) == (200, b"text")


async def test_an_event_that_cannot_be_stored_is_not_accepted(system: FakeSystem, integration: Integration) -> None:
    await deliver(system, integration, {"id": "a"})  # its address is cached
    system.database.is_unavailable = True
    with pytest.raises(StoreUnavailable):
        await deliver(system, integration, {"id": "b"})
    system.database.is_unavailable = False
    assert await deliver(system, integration, {"id": "b"}) == STORED
    assert await kept(system, integration) == [(1, "a"), (2, "b")]


async def test_ids_that_cannot_be_stored_are_replaced_by_digests(system: FakeSystem, integration: Integration) -> None:
    names = ["", "a\0b", "n" * 256, "\ud800"]
    for _ in range(2):
        for name in names:
            await deliver(system, integration, {"id": name, "type": "t\0" * 300})
    ids = [event_id for _, event_id in await kept(system, integration)]
    assert len(set(ids)) == len(ids) == len(names)
    assert all(event_id.startswith("sha256:") for event_id in ids)


async def test_an_integration_with_an_invalid_config_accepts_nothing(
    system: FakeSystem, integration: Integration
) -> None:
    system.key_provider.config_problem = InvalidField("config.shop", "is required")
    assert await deliver(system, integration, {"id": "a"}) == UNAUTHORIZED


# --- the end of a grant ----------------------------------------------------------------------------------------------


REJECTED = ProviderRejected("credentials")
BYE = {"id": "bye", "account": "a-1", "reports_grant_end": True}


async def settled(system: FakeSystem, integration: Integration) -> Status:
    """The status of an integration after all detached tasks have ended."""
    await asyncio.gather(*system.tasks._running, return_exceptions=True)
    return system.row(integration.integration_id).status(system.clock())


async def test_an_account_that_revokes_our_access_has_to_connect_again(
    system: FakeSystem, integration: Integration
) -> None:
    ours, theirs = await system.connect_account("a-1"), await system.connect_account("a-2")
    system.provider.verify_error = REJECTED
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="invalid_grant")
    for _ in range(2):
        await deliver_to_app(system, BYE)
    assert await settled(system, ours) is Status.EXPIRED
    assert system.row(ours.integration_id).error_count == 1
    assert await settled(system, theirs) is Status.ACTIVE
    (entry,) = [entry for entry in system.trail.entries if entry.action is Action.LOSE_GRANT]
    assert (entry.caller, entry.integration_id, entry.user_id) == (SERVER, ours.integration_id, ADA)


@pytest.mark.parametrize("endpoint", ["app", "own"])
@pytest.mark.parametrize(
    ("verify_error", "status"),
    [
        (None, Status.ACTIVE),
        (ProviderUnavailable(), Status.ACTIVE),
        (ProviderMisconfigured(), Status.ACTIVE),
        (REJECTED, Status.EXPIRED),
    ],
    ids=repr,
)
async def test_only_the_provider_ends_a_grant(
    system: FakeSystem, verify_error: ProviderError | None, status: Status, endpoint: str
) -> None:
    """Whatever a webhook says, and at whatever address."""
    system.provider.app_secrets = [APP_SECRET]
    system.key_provider.account = NewAccount("a-1", None)
    key = await system.connect_key(webhook_secret=SECRET)
    ours = key if endpoint == "own" else await system.connect_account("a-1")
    system.provider.verify_error = system.key_provider.verify_error = verify_error
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="invalid_grant")
    await (deliver(system, key, BYE) if endpoint == "own" else deliver_to_app(system, BYE))
    assert await settled(system, ours) is status


async def test_a_new_access_token_shows_that_the_grant_has_not_ended(system: FakeSystem) -> None:
    system.provider.app_secrets = [APP_SECRET]
    ours = await system.connect_account("a-1")
    system.provider.rejected_access_tokens = ["access-1"]
    await deliver_to_app(system, BYE)
    assert await settled(system, ours) is Status.ACTIVE
    assert system.row(ours.integration_id).version == ours.version + 1


async def test_the_question_is_not_answered_from_the_interval_of_forced_refreshes(system: FakeSystem) -> None:
    system.provider.app_secrets = [APP_SECRET]
    ours = await system.connect_account("a-1")
    assert (await system.credentials.refresh_token(ours.integration_id, ADA, force=True)).refreshed
    system.provider.rejected_access_tokens = ["access-1", "renewed-access-1"]
    await deliver_to_app(system, BYE)
    assert await settled(system, ours) is Status.ACTIVE
    assert system.row(ours.integration_id).version == ours.version + 2


async def test_a_further_report_after_the_end_records_nothing(system: FakeSystem) -> None:
    system.provider.app_secrets = [APP_SECRET]
    ours = await system.connect_account("a-1")
    system.provider.verify_error = REJECTED
    for number in range(3):
        await deliver_to_app(system, {**BYE, "id": f"bye-{number}"})
        assert await settled(system, ours) is Status.EXPIRED
        system.clock.advance(timedelta(minutes=1))
    assert [entry.action for entry in system.trail.entries].count(Action.LOSE_GRANT) == 1
    assert system.row(ours.integration_id).error_count == 1


async def test_repeated_reports_cause_one_question(system: FakeSystem, integration: Integration) -> None:
    ours = await system.connect_account("a-1")
    before = len(system.provider.verifications)
    for number in range(50):
        await deliver_to_app(system, {**BYE, "id": f"bye-{number}"})
    assert await settled(system, ours) is Status.ACTIVE
    assert len(system.provider.verifications) == before + 1


async def test_negative_control_without_the_question_a_replayed_webhook_ends_the_grant(system: FakeSystem) -> None:
    system.provider.app_secrets = [APP_SECRET]
    ours = await system.connect_account("a-1")
    start: Any = system.webhook_ingestion.confirm_grant_end
    system.webhook_ingestion.confirm_grant_end = replace(start.__self__, requires_rejection=False).start
    await deliver_to_app(system, BYE)
    assert await settled(system, ours) is Status.EXPIRED


@pytest.mark.parametrize(
    ("own", "account", "status"),
    [
        ("a-1", "a-1", Status.EXPIRED),
        ("a-1", None, Status.EXPIRED),
        (None, "a-1", Status.EXPIRED),
        ("a-1", "a-2", Status.ACTIVE),
    ],
)
async def test_at_its_own_address_an_integration_ignores_the_end_of_other_grants(
    system: FakeSystem, own: str | None, account: str | None, status: Status
) -> None:
    system.provider.app_secrets = [APP_SECRET]
    system.key_provider.account = NewAccount(own, None)
    integration = await system.connect_key(webhook_secret=SECRET)
    system.key_provider.verify_error = REJECTED
    await deliver(system, integration, {**BYE, "account": account})
    assert await kept(system, integration) == [(1, "bye")]
    assert await settled(system, integration) is status


# --- floods ----------------------------------------------------------------------------------------------------------


async def test_forged_requests_cause_few_lookups(system: FakeSystem, integration: Integration) -> None:
    await asyncio.gather(*(deliver(system, integration, {"id": "a"}, secret=WRONG) for _ in range(100)))
    forged = request(webhook_body({"id": "a"}), WRONG)
    for _ in range(100):
        await system.webhook_ingestion.receive_webhook("fake_key", "y" * 43, forged)
    assert count_calls(system.endpoints, "find") <= 3  # two lookups of the same address may run at the same time


async def test_negative_control_without_the_cache_every_forged_request_is_looked_up(
    system: FakeSystem, integration: Integration
) -> None:
    """A receiver with a new cache for each request."""
    forged = request(webhook_body({"id": "a"}), WRONG)
    for _ in range(100):
        await system.another_process().use_cases.webhook_ingestion.receive_webhook("fake_key", integration.uid, forged)
    assert count_calls(system.endpoints, "find") == 100


async def test_at_most_two_addresses_are_looked_up_at_a_time(system: FakeSystem) -> None:
    looking, most = 0, 0
    find = system.endpoints.find

    async def counted(integration_type: str, uid: str) -> Any:
        nonlocal looking, most
        looking += 1
        most = max(most, looking)
        try:
            return await find(integration_type, uid)
        finally:
            looking -= 1

    intercept(system.endpoints, find=counted)
    webhook_ingestion = system.another_process().use_cases.webhook_ingestion
    forged = request(b"", WRONG)
    await asyncio.gather(
        *(webhook_ingestion.receive_webhook("fake_key", f"{number:043}", forged) for number in range(50))
    )
    assert most == 2


async def test_cached_endpoints_expire_soon(system: FakeSystem, integration: Integration) -> None:
    assert await deliver(system, integration, {"id": "a"}) == STORED
    await system.integrations.remove(integration.integration_id, ADA)
    system.clock.advance(timedelta(seconds=1))
    assert await deliver(system, integration, {"id": "b"}) == NOT_FOUND


async def test_a_deleted_integration_stores_nothing_although_it_is_cached(
    system: FakeSystem, integration: Integration
) -> None:
    await deliver(system, integration, {"id": "a"})
    await system.integrations.remove(integration.integration_id, ADA)
    before = len(system.event_rows())
    await deliver(system, integration, {"id": "b"})
    assert len(system.event_rows()) == before


# --- retention -------------------------------------------------------------------------------------------------------


async def test_events_are_deduplicated_as_long_as_they_are_kept(system: FakeSystem, integration: Integration) -> None:
    await deliver(system, integration, {"id": "a"})
    system.clock.advance(EVENT_RETENTION)
    await system.webhook_ingestion.prune()
    assert await kept(system, integration) == [(1, "a")]
    system.clock.advance(timedelta(seconds=1))
    await system.webhook_ingestion.prune()
    assert await kept(system, integration) == []
