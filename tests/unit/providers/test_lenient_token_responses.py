"""Token responses as providers really send them: nothing that can be read is lost."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import urlencode

import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderError, ProviderRejected, ProviderUnavailable
from integration_server.domain.lenient_values import seconds_until
from integration_server.domain.token_response import parse_tokens
from integration_server.providers.declaration_tables import Errors
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider
from tests.loop_hold.meter import MAX_HOLD, shortest_time
from tests.unit.providers.support import NOW, FakeTransport, build_provider, http_response, json_response

HOUR = timedelta(hours=1)
STORED = OAuthTokens("old", "old-refresh", NOW + timedelta(minutes=10), HOUR, scopes=("read",))


class Acme(OAuth2Provider):
    """A provider with an error code of its own."""

    integration_type = "acme"
    oauth_authorize_url = "https://acme.example/authorize"
    oauth_token_url = "https://acme.example/token"
    errors = Errors(dead=["40030", "token_revoked"])


def acme(network: FakeTransport | None = None) -> Acme:
    return build_provider(Acme, network or FakeTransport(), ACME_CLIENT_ID="id", ACME_CLIENT_SECRET="secret")


async def refreshed(**fields: Any) -> OAuthTokens:
    """The stored tokens after a refresh with this response."""
    return STORED.updated_with(await acme(FakeTransport(json_response(fields))).refresh(STORED), NOW)


# --- errors with status 200


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "body",
    [
        {"errcode": 40030, "errmsg": "invalid refresh_token"},
        {"ok": False, "error": "token_revoked"},
        {"error": {"code": 40030}},
        {"error": {"type": "token_revoked", "message": "gone"}},
        {"error": [{"code": "token_revoked"}]},
        {"errors": [{"code": "token_revoked", "detail": "gone"}]},
        {"success": False, "error_code": "40030"},
        {"errorCode": 40030, "access_token": None},
        {"code": 40030, "data": None},
        {"err": "token_revoked", "access_token": ""},
        {"error": {"error": {"code": "40030"}}},
    ],
    ids=str,
)
async def test_an_error_in_any_shape_is_that_error(body: dict[str, Any], status: int) -> None:
    with pytest.raises(ProviderRejected) as raised:
        await acme(FakeTransport(json_response(body, status))).refresh(STORED)
    assert raised.value.oauth_error == "invalid_grant"


@pytest.mark.parametrize(
    "body",
    [
        {"code": 0, "access_token": "at"},
        {"errcode": 0, "errmsg": "ok", "access_token": "at"},
        {"ok": True, "error": None, "access_token": "at"},
        {"errors": [], "access_token": "at"},
        {"code": "authorization code", "access_token": "at"},
        {"status": "failed?", "access_token": "at"},
    ],
    ids=str,
)
async def test_a_response_with_a_token_is_no_error(body: dict[str, Any]) -> None:
    assert (await refreshed(**body)).access_token == "at"


@pytest.mark.parametrize(
    "body",
    [{"ok": False}, {"success": False}, {"error": {}}, {"data": {}}, {"error": {"code": 503}}, {"code": 429}],
    ids=str,
)
async def test_a_response_without_code_and_token_is_transient(body: dict[str, Any]) -> None:
    with pytest.raises(ProviderUnavailable):
        await acme(FakeTransport(json_response(body))).refresh(STORED)


# --- lifetimes

END = NOW + timedelta(hours=2)


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_in": 7200},
        {"expires_in": "7200s"},
        {"expires_in": " 2 hours"},
        {"expires_in": "PT2H"},
        {"expires_in": "120 min"},
        {"expires_in": int(END.timestamp())},
        {"expires_in": int(END.timestamp()) * 1000},
        {"expires_in": END.isoformat()},
        {"expires": 7200},
        {"expires": int(END.timestamp())},
        {"expires_at": f"{END:%Y-%m-%d %H:%M:%S} UTC"},
        {"expires_at": f"{END:%Y/%m/%d %H:%M:%S}"},
        {"expires_at": format_datetime(END)},
        {"expires_at": format_datetime(END, usegmt=True)},
        {"expires_at": END.timestamp() * 1e6},
        {"expiresIn": "7200"},
        {"expiresAt": END.isoformat().replace("+00:00", "Z")},
        {"expires_on": str(int(END.timestamp()))},
        {"ExpirationDate": END.isoformat()},
        {"expiry": END.isoformat()},
        {"access_token_expires_in": 7200.0},
        {"expire-time": END.isoformat()},
        {"expires_in": None, "expires_at": 7200},
        {"expires_in": "soon", "expires": 7200},
    ],
    ids=str,
)
async def test_a_lifetime_is_read_in_any_spelling(fields: dict[str, Any]) -> None:
    tokens = await refreshed(access_token="at", **fields)
    assert tokens.expire_time is not None
    assert abs(tokens.expire_time - END) < timedelta(seconds=1)


async def test_a_lifetime_in_a_form_is_read() -> None:
    body = urlencode({"access_token": "at", "expires": "7200"}).encode()
    response = HttpResponse(200, {"content-type": "text/plain"}, body)
    assert acme().read_tokens(response, "grant").lifetime == timedelta(hours=2)


@pytest.mark.parametrize(
    "value", [1e300, 10**400, "9" * 5000, 2**31 - 1, 1_576_800_000, "P9999999D", "9999-12-31", "inf"]
)
async def test_an_absurd_lifetime_is_bounded(value: object) -> None:
    tokens = await refreshed(access_token="at", expires_in=value)
    assert tokens.lifetime == timedelta(days=3650)


@pytest.mark.parametrize("value", [None, "", "never", True, [7200], {"seconds": 7200}, "NaN", "7200 parsecs", "P"])
async def test_without_a_lifetime_the_last_known_one_applies(value: object) -> None:
    tokens = await refreshed(access_token="at", expires_in=value)
    assert (tokens.access_token, tokens.expire_time, tokens.lifetime) == ("at", NOW + HOUR, HOUR)


@pytest.mark.parametrize("value", ["x" * 100_000, "9" * 100_000, "1 " * 50_000, "P" + "1D" * 50_000, "Mon, " * 20_000])
def test_a_long_text_costs_little(value: str) -> None:
    assert seconds_until(value, datetime(2026, 1, 1, tzinfo=UTC)) in {None, float("inf")}


def test_a_response_with_many_members_holds_the_loop_shortly() -> None:
    fields = {"access_token": "at", "expires": 7200, **{f"member-{number}": 1 for number in range(100_000)}}
    assert shortest_time(lambda: parse_tokens(fields, NOW)) < MAX_HOLD
    assert parse_tokens(fields, NOW).lifetime == timedelta(hours=2)


# --- unexpected values


@pytest.mark.parametrize(
    "fields",
    [
        {"token_type": "mac"},
        {"token_type": "DPoP"},
        {"token_type": 7},
        {"access_token": "a b"},
        {"access_token": "x" * 65_537},
        {"access_token": 5},
        {"access_token": None},
        {"access_token": ["at"]},
        {"access_token": "tok\u00e9n"},
    ],
    ids=lambda fields: str(fields)[:40],
)
async def test_a_rotated_refresh_token_is_kept_whatever_else_is_unexpected(fields: dict[str, Any]) -> None:
    tokens = await refreshed(**{"access_token": "at", "refresh_token": "new-refresh", **fields})
    assert (tokens.access_token, tokens.refresh_token) == ("old", "new-refresh")
    assert tokens.expire_time == STORED.expire_time


@pytest.mark.parametrize("fields", [{"token_type": "mac"}, {"access_token": "a b"}])
async def test_a_code_without_a_usable_access_token_is_not_exchanged(fields: dict[str, Any]) -> None:
    network = FakeTransport(json_response({"access_token": "at", "refresh_token": "rt", **fields}))
    with pytest.raises(ProviderError):
        await acme(network).exchange_code_for_tokens("code", "https://app.example", "verifier")


async def test_a_token_of_64_kib_is_read() -> None:
    assert len((await refreshed(access_token="x" * 65_536)).access_token) == 65_536


# --- scopes


@pytest.mark.parametrize(
    ("requested", "granted"),
    [
        (["read", "write"], "write read"),
        (["Mail.Read"], "mail.read"),
        (["Mail.Read"], "https://graph.microsoft.com/mail.read"),
        (["https://www.googleapis.com/auth/calendar"], "calendar"),
        (["read", "write"], ["write", "read"]),
        (["READ"], "read"),
        (["read"], "read,write"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["scope", "scopes"])
def test_scopes_are_compared_as_the_provider_means_them(requested: list[str], granted: object, name: str) -> None:
    tokens = acme().read_tokens(http_response({"access_token": "at", name: granted}), "code")
    assert acme().missing_scopes(requested, tokens) == []


@pytest.mark.parametrize(
    ("requested", "granted"),
    [
        ("read", "reader"),
        ("https://a.example/read", "https://b.example/read"),
        ("write", "read"),
        ("mail", "mail.read"),
    ],
)
def test_other_scopes_are_missing(requested: str, granted: str) -> None:
    tokens = acme().read_tokens(http_response({"access_token": "at", "scope": granted}), "code")
    assert acme().missing_scopes([requested], tokens) == [requested]
