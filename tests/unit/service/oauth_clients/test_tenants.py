"""Two tenants with their own apps at one provider: nothing that happens to one of them affects the other.

Each test has a control in which both tenants are one client, and the one does affect the other.
"""

from datetime import timedelta

import pytest

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES as _ALL
from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.domain.integration import Integration, Status, UserId
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, LimitScope, RateLimit
from integration_server.domain.revocation import RevocationState
from integration_server.service.background.ports import JobKind
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.webhooks.webhook_ingestion import NOT_FOUND, UNAUTHORIZED
from tests.fakes.system import FakeSystem
from tests.fakes.workers import is_busy
from tests.signed_webhook_provider import webhook_body
from tests.unit.service.oauth_clients.support import put_client
from tests.unit.service.webhooks.test_webhook_ingestion import APP_SECRET, request

TENANTS = ("acme", "bravo")
APART = pytest.mark.parametrize(
    ("first", "second", "is_apart"),
    [("acme", "bravo", True), ("", "bravo", True), ("acme", "acme", False)],
    ids=["two tenants", "operator and tenant", "negative control: one client"],
)


@pytest.fixture
async def system() -> FakeSystem:
    system = FakeSystem(sleep_advances_clock=False)
    system.provider.app_secrets = [APP_SECRET]
    for name in TENANTS:
        await put_client(system, name, f"secret of {name}", webhook_secret=f"webhook secret of {name}")
    return system


async def connect(system: FakeSystem, user: str, name: str, account: str | None = None) -> Integration:
    return await system.connect_account(account or f"a-{user}", UserId(user), oauth_client=name, caller="backend")


def webhook_secret(name: str) -> str:
    return f"webhook secret of {name}" if name else APP_SECRET


# --- tokens ----------------------------------------------------------------------------------------------------------


@APART
async def test_a_refused_client_stops_only_its_own_refreshes(
    system: FakeSystem, first: str, second: str, is_apart: bool
) -> None:
    rows = [await connect(system, "u1", first), await connect(system, "u2", second)]
    secrets = {"acme": "secret of acme", "": system.provider.oauth_client.secret}
    system.provider.refused_secrets = {secrets[first]}
    system.clock.advance(timedelta(hours=2))
    with pytest.raises(ProviderMisconfigured):
        await system.credentials.get_usable(rows[0].integration_id, rows[0].user_id)
    if is_apart:
        await system.credentials.get_usable(rows[1].integration_id, rows[1].user_id)
    else:
        with pytest.raises(ProviderMisconfigured):
            await system.credentials.get_usable(rows[1].integration_id, rows[1].user_id)
    assert [system.row(row.integration_id).status(system.clock()) for row in rows] == [Status.ACTIVE] * 2


@APART
async def test_a_failing_client_opens_no_circuit_breaker_of_another(
    system: FakeSystem, first: str, second: str, is_apart: bool
) -> None:
    for number in range(8):
        await connect(system, f"u{number}", first)
    row = await connect(system, "other", second)
    system.provider.refused_secrets = {"secret of acme", system.provider.oauth_client.secret}
    system.provider.refused_secrets -= {"secret of bravo"}
    await work(system)
    keys = {key for kind, key in system.worker.open_breakers() if kind is JobKind.REFRESH}
    assert keys == {f"fake/{first}" if first else "fake"}
    refreshed = system.row(row.integration_id).version > row.version
    assert refreshed is is_apart


async def work(system: FakeSystem) -> None:
    """Run the background work on tokens that have almost expired."""
    system.clock.advance(timedelta(minutes=57))
    await system.worker.poll()
    for _ in range(3000):
        if not is_busy(system.worker):
            return
        await system.pause(0)


@APART
async def test_a_mass_failure_is_one_of_a_client(system: FakeSystem, first: str, second: str, is_apart: bool) -> None:
    """Refused grants of one tenant do not make a refused grant of another part of a mass failure."""
    rows = [await connect(system, f"u{number}", first) for number in range(4)]
    other = await connect(system, "other", second)
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="invalid_grant")
    system.clock.advance(timedelta(minutes=57))
    for row in (*rows, other):
        with pytest.raises(Exception, match=r"."):
            await system.credentials.refresh_token(row.integration_id, row.user_id, force=True)
    assert system.row(rows[-1].integration_id).status(system.clock()) is Status.ACTIVE
    ended = system.row(other.integration_id).status(system.clock()) is Status.EXPIRED
    assert ended is is_apart


# --- webhooks --------------------------------------------------------------------------------------------------------


@APART
async def test_an_event_reaches_only_integrations_of_its_client(
    system: FakeSystem, first: str, second: str, is_apart: bool
) -> None:
    rows = [await connect(system, "u1", first, "shared"), await connect(system, "u2", second, "shared")]
    body = webhook_body({"id": "e-1", "account": "shared"})
    endpoint = f"app.{first}" if first else "app"
    receive = system.webhook_ingestion.receive_webhook
    response = await receive("fake", endpoint, request(body, webhook_secret(first)))
    assert response.status == 202
    received = {row.integration_id for row in system.webhook_rows()}
    assert received == ({rows[0].integration_id} if is_apart else {row.integration_id for row in rows})


@APART
async def test_a_webhook_secret_is_valid_only_at_the_address_of_its_client(
    system: FakeSystem, first: str, second: str, is_apart: bool
) -> None:
    endpoint = f"app.{first}" if first else "app"
    signed = request(webhook_body({"id": "e-1", "account": "a"}), webhook_secret(second))
    response = await system.webhook_ingestion.receive_webhook("fake", endpoint, signed)
    assert (response is UNAUTHORIZED) is is_apart


@pytest.mark.parametrize(
    "endpoint", ["app.absent", "app.", "app..", "app.a/b", "app.\x00", "app. acme", "apps.acme", "App"]
)
async def test_an_unknown_address_of_a_client_is_not_found(system: FakeSystem, endpoint: str) -> None:
    signed = request(webhook_body({"id": "e-1", "account": "a"}), webhook_secret("acme"))
    assert await system.webhook_ingestion.receive_webhook("fake", endpoint, signed) is NOT_FOUND


async def test_both_webhook_secrets_are_valid_during_a_rotation(system: FakeSystem) -> None:
    await put_client(system, "acme", "", webhook_secret="next")
    for number, (secret, status) in enumerate([("next", 202), (webhook_secret("acme"), 202), ("other", 401)]):
        signed = request(webhook_body({"id": f"e-{number}", "account": "a"}), secret)
        assert (await system.webhook_ingestion.receive_webhook("fake", "app.acme", signed)).status == status


@APART
async def test_unrouted_events_of_one_client_do_not_hide_those_of_another(
    system: FakeSystem, first: str, second: str, is_apart: bool
) -> None:
    for name in (first, second):
        endpoint = f"app.{name}" if name else "app"
        signed = request(webhook_body({"id": "same-id", "account": "nobody"}), webhook_secret(name))
        await system.webhook_ingestion.receive_webhook("fake", endpoint, signed)
    rows = await system.stores.unrouted_webhooks.list("fake", _ALL, None, 10)
    assert sorted(event.oauth_client for _, event in rows) == (sorted([first, second]) if is_apart else [first])


# --- limits ----------------------------------------------------------------------------------------------------------


@APART
async def test_declared_limits_count_the_calls_of_one_client(first: str, second: str, is_apart: bool) -> None:
    system = FakeSystem()
    for name in TENANTS:
        await put_client(system, name, f"secret of {name}")
    system.provider.rate_limits = (RateLimit(2, timedelta(hours=1), LimitScope.APP),)
    rows = [await connect(system, "u1", first), await connect(system, "u2", second)]
    call = ApiRequest("GET", "/")
    for _ in range(2):
        await system.api_proxy.call_provider(rows[0].integration_id, rows[0].user_id, call)
    assert await is_limited(system, rows[0])
    assert await is_limited(system, rows[1]) is not is_apart


@APART
async def test_learned_limits_stop_the_calls_of_one_client(
    system: FakeSystem, first: str, second: str, is_apart: bool
) -> None:
    """Three users of one client are told to wait: then its other users wait too, and those of another client do not."""
    rows = [await connect(system, f"u{number}", first) for number in range(3)]
    other = await connect(system, "other", second)
    for row in rows:
        system.provider.responses = [ApiResponse(429, (), b"", True, timedelta(minutes=30))]
        with pytest.raises(Exception, match=r"."):
            await system.api_proxy.call_provider(row.integration_id, row.user_id, ApiRequest("POST", "/"))
    assert await is_limited(system, other) is not is_apart


async def is_limited(system: FakeSystem, row: Integration) -> bool:
    """Whether a call is refused without being sent."""
    before = len(system.provider.calls)
    try:
        await system.api_proxy.call_provider(row.integration_id, row.user_id, ApiRequest("GET", "/"))
    except Exception:  # whichever of the two errors of a limit
        assert len(system.provider.calls) == before
        return True
    return False


# --- revocation ------------------------------------------------------------------------------------------------------


@APART
async def test_a_revocation_of_one_client_neither_ends_nor_waits_for_grants_of_another(
    system: FakeSystem, first: str, second: str, is_apart: bool
) -> None:
    system.provider.shares_grants_with = ("fake",)
    rows = [await connect(system, "u1", first, "shared"), await connect(system, "u2", second, "shared")]
    state = await system.revocation_service.disconnect_integration(rows[0].integration_id, rows[0].user_id)
    assert (state is RevocationState.REVOKED) is is_apart
    assert (len(system.provider.revocations) == 1) is is_apart
    assert system.row(rows[1].integration_id).is_connected


@APART
async def test_a_connection_waits_only_for_revocations_of_its_client(
    system: FakeSystem, first: str, second: str, is_apart: bool
) -> None:
    system.provider.shares_grants_with = ("fake",)
    gone = await connect(system, "u1", first, "shared")
    await system.revocation_service.disconnect_integration(gone.integration_id, gone.user_id)
    system.provider.refreshes.clear()
    system.provider.account = NewAccount("shared", None)
    row = await connect(system, "u2", second, "shared")
    assert row.is_connected
    assert isinstance(await system.tokens(row.integration_id), OAuthTokens)
    # A grant that a revocation may have ended meanwhile is proven by a refresh; this one began after it.
    assert system.provider.refreshes == []
    system.provider.revoke_error = ProviderUnavailable()
    await system.revocation_service.disconnect_integration(row.integration_id, row.user_id)
    keys = {revocation_row.client_key for revocation_row in system.revocation_rows()}
    assert keys == {f"fake/{second}"}
