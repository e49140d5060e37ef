"""Device authorizations (RFC 8628): the responses of real providers, and hostile ones."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from integration_server.domain.credentials import DecisionPending, DeviceAuthorization, OAuthTokens
from integration_server.domain.errors import ProviderError, ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.providers.declaration_tables import DeviceResponse, Errors
from integration_server.providers.device_authorization import parse_device_authorization
from tests.declarations import declared_types
from tests.unit.providers.support import NOW, FakeTransport, context, json_response

SECOND = timedelta(seconds=1)
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"
TOKENS = {"access_token": "at", "refresh_token": "rt", "expires_in": 3600, "token_type": "Bearer"}
STANDARD: dict[str, Any] = {
    "device_code": "GmRhmhcxhwAzkoEqiMEg_DnyEysNkuNhszIySk9eS",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://example.com/device",
    "verification_uri_complete": "https://example.com/device?user_code=WDJB-MJHT",
    "expires_in": 1800,
    "interval": 5,
}
PAGE = httpx.Response(400, headers={"Content-Type": "text/html"}, text="<h1>Bad request</h1>")


def declared(name: str, *responses: httpx.Response | Exception) -> tuple[Any, FakeTransport]:
    network, prefix = FakeTransport(*responses), name.upper()
    settings = {"CLIENT_ID": "our id", "CLIENT_SECRET": "our:secret", "CLIENT_TOKEN": "tok"}
    given = {f"{prefix}_{setting}": value for setting, value in settings.items()}
    return declared_types().build(context(network, given), only=name)[name], network


async def begin(response: httpx.Response, name: str = "code_on_a_phone") -> DeviceAuthorization:
    provider, _ = declared(name, response)
    begun: DeviceAuthorization = await provider.begin_device_authorization(["a"])
    return begun


async def poll(response: httpx.Response | Exception, name: str = "code_on_a_phone") -> OAuthTokens | DecisionPending:
    provider, _ = declared(name, response)
    answer: OAuthTokens | DecisionPending = await provider.poll_device_authorization("d-1")
    return answer


def with_fields(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**STANDARD, **changes}.items() if value is not None}


# --- requests --------------------------------------------------------------------------------------------------------


async def test_the_requests_of_a_device_authorization() -> None:
    answer = with_fields(
        verification_uri=None, verification_uri_complete=None, verification_url="https://video.example/device"
    )
    provider, network = declared("code_on_a_phone", json_response(answer), json_response(TOKENS))
    assert provider.has_authorization_page
    assert provider.has_device_authorization
    assert provider.missing_settings == []
    begun = await provider.begin_device_authorization(["video.readonly", "email"])
    tokens = await provider.poll_device_authorization(begun.device_code)
    assert (tokens.access_token, tokens.refresh_token, tokens.lifetime) == ("at", "rt", timedelta(hours=1))
    forms = [dict(httpx.QueryParams(request.content.decode())) for request in network.requests]
    assert [str(request.url) for request in network.requests] == [
        "https://oauth.video.example/device/code",
        "https://oauth.video.example/token",
    ]
    assert forms == [
        {"client_id": "our id", "scope": "video.readonly email"},
        {
            "grant_type": GRANT_TYPE,
            "device_code": STANDARD["device_code"],
            "client_id": "our id",
            "client_secret": "our:secret",
        },
    ]
    for text in (repr(begun), repr(tokens)):
        assert STANDARD["device_code"] not in text


async def test_other_names_and_an_app_token() -> None:
    login = {
        "code": "92a2b2e351f2b0b3503b2de251132f47",
        "user_code": "A1NWZ9",
        "uri": "https://social.example/device",
        "uri_with_code": "https://social.example/device?c=A1NWZ9",
        "valid_for": "7 min",
        "every": "7",
    }
    provider, network = declared("numbered_errors", json_response({"login": login}), json_response(TOKENS))
    begun = await provider.begin_device_authorization(["public_profile", "email"])
    assert begun == DeviceAuthorization(
        login["code"], "A1NWZ9", login["uri"], login["uri_with_code"], timedelta(minutes=7), 7 * SECOND
    )
    assert isinstance(await provider.poll_device_authorization(begun.device_code), OAuthTokens)
    forms = [dict(httpx.QueryParams(request.content.decode())) for request in network.requests]
    assert forms == [
        {"access_token": "our id|tok", "scope": "public_profile,email"},
        {"code": login["code"], "access_token": "our id|tok"},
    ]
    assert {request.headers["X-App-Secret"] for request in network.requests} == {"our:secret"}


# --- the response that begins an authorization -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "lifetime", "interval"),
    [
        ({}, 1800, 5),
        ({"interval": None}, 1800, 5),
        ({"interval": "10"}, 1800, 10),
        ({"interval": 0}, 1800, 5),
        ({"interval": -3}, 1800, 5),
        ({"interval": 0.01}, 1800, 1),
        ({"interval": True}, 1800, 5),
        ({"interval": [5]}, 1800, 5),
        ({"interval": 120}, 1800, 120),
        ({"interval": 1e300}, 1800, 900),
        ({"interval": 86_400}, 1800, 900),
        ({"expires_in": None}, 600, 5),
        ({"expires_in": 0}, 600, 5),
        ({"expires_in": -1}, 600, 5),
        ({"expires_in": "soon"}, 600, 5),
        ({"expires_in": "900"}, 900, 5),
        ({"expires_in": 420.5}, 420.5, 5),
        ({"expires_in": 10**30}, 1800, 5),
        ({"expires_in": 4}, 4, 2),
        ({"expires_in": None, "expires_at": "2026-11-22T12:05:00Z"}, 300, 5),
    ],
)
async def test_lifetime_and_interval(fields: dict[str, Any], lifetime: float, interval: float) -> None:
    begun = await begin(json_response(with_fields(**fields)))
    assert (begun.lifetime / SECOND, begun.interval / SECOND) == (lifetime, interval)


async def test_a_response_as_a_form() -> None:
    """As GitHub sends it to clients that do not ask for JSON."""
    response = httpx.Response(
        200,
        headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
        text="device_code=3584d83&expires_in=899&interval=5&user_code=WDJB-MJHT"
        "&verification_uri=https%3A%2F%2Fcode.example%2Flogin%2Fdevice",
    )
    begun = await begin(response)
    assert (begun.user_code, begun.verification_uri) == ("WDJB-MJHT", "https://code.example/login/device")
    assert begun.lifetime == 899 * SECOND


HOSTILE_URIS = [
    "javascript:alert(1)",
    "JavaScript://example.com/%0aalert(1)",
    "data:text/html,<script>alert(1)</script>",
    "http://example.com/device",
    "http://127.0.0.1:8000/device",
    "https://bank.example@evil.example/device",
    "https://example.com/dev ice",
    "https://example.com/\u202eecived",
    "https://example.com/device\nSet-Cookie: a=b",
    'https://example.com/"><script>',
    "//example.com/device",
    "example.com/device",
    "https://" + "a" * 3000 + ".example/",
    "",
    "https://example.com/#<b>",
]


@pytest.mark.parametrize("uri", HOSTILE_URIS)
async def test_no_person_is_sent_to_a_hostile_uri(uri: str) -> None:
    with pytest.raises(ProviderUnavailable):
        await begin(json_response(with_fields(verification_uri=uri)))
    begun = await begin(json_response(with_fields(verification_uri_complete=uri)))
    assert (begun.verification_uri, begun.verification_uri_complete) == (STANDARD["verification_uri"], "")


def test_negative_control_without_the_check_a_hostile_uri_is_shown() -> None:
    fields = with_fields(verification_uri=HOSTILE_URIS[0])
    for checks, expected in ((True, None), (False, HOSTILE_URIS[0])):
        begun = parse_device_authorization(fields, DeviceResponse(), NOW, dev_mode=False, checks_uris=checks)
        assert (begun and begun.verification_uri) == expected


@pytest.mark.parametrize(
    "uri", ["https://example.com/#/activate", "https://example.com:8443/a?b=c", "https://xn--bcher-kva.example/x"]
)
async def test_a_page_may_have_a_query_a_port_and_a_fragment(uri: str) -> None:
    assert (await begin(json_response(with_fields(verification_uri=uri)))).verification_uri == uri


def test_plain_http_is_for_loopback_in_dev_mode_only() -> None:
    for uri, is_shown in (
        ("http://127.0.0.1:8000/d", True),
        ("http://localhost/d", True),
        ("http://a.example/d", False),
    ):
        fields = with_fields(verification_uri=uri)
        assert bool(parse_device_authorization(fields, DeviceResponse(), NOW, dev_mode=True)) == is_shown


@pytest.mark.parametrize(
    "changes",
    [
        {"user_code": None},
        {"user_code": ""},
        {"user_code": "   "},
        {"user_code": "A" * 65},
        {"user_code": "AB\u0000CD"},
        {"user_code": "AB\nCD"},
        {"user_code": "\u202eAB-CD"},
        {"user_code": "AB\u200bCD"},
        {"user_code": ["AB"]},
        {"user_code": 10**400},
        {"device_code": None},
        {"device_code": ""},
        {"device_code": "x" * 5000},
        {"device_code": "\u00e9"},
        {"device_code": {"a": 1}},
        {"verification_uri": 7},
    ],
)
async def test_an_unusable_response(changes: dict[str, Any]) -> None:
    with pytest.raises(ProviderUnavailable):
        await begin(json_response(with_fields(**changes)))


async def test_codes_that_are_numbers_or_not_latin() -> None:
    assert (await begin(json_response(with_fields(user_code=49_102_233)))).user_code == "49102233"
    assert (await begin(json_response(with_fields(user_code=" ЖК-42 ")))).user_code == "ЖК-42"


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (json_response({"error": "unauthorized_client"}, 400), ProviderMisconfigured),
        (json_response({"error": "invalid_client"}, 401), ProviderMisconfigured),
        (json_response({"error": "invalid_scope"}, 400), ProviderRejected),
        (json_response({"error": "device_flow_disabled"}), ProviderRejected),
        (json_response({"error_code": "rate_limit_exceeded"}, 403), ProviderUnavailable),
        (json_response(STANDARD, 500), ProviderUnavailable),
        (json_response(STANDARD, 302), ProviderUnavailable),
        (httpx.Response(200, text="<html>"), ProviderUnavailable),
        (json_response([STANDARD]), ProviderUnavailable),
    ],
)
async def test_an_authorization_that_does_not_begin(response: httpx.Response, error: type[ProviderError]) -> None:
    with pytest.raises(error):
        await begin(response)


# --- responses to requests for the tokens ----------------------------------------------------------------------------

PENDING = DecisionPending()


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (json_response({"error": "authorization_pending"}, 400), PENDING),
        (json_response({"error": "authorization_pending"}), PENDING),
        (json_response({"error": "authorization_pending", "error_description": "Precondition Required"}, 428), PENDING),
        (json_response({"error": "authorization_pending"}, 403), PENDING),
        (json_response({"error": "authorization_pending"}, 401), PENDING),
        (httpx.Response(400), PENDING),
        (httpx.Response(404), PENDING),
        (PAGE, PENDING),
        (json_response({"error": "slow_down"}, 400), DecisionPending(True)),
        (json_response({"error": "slow_down"}, 403), DecisionPending(True)),
        (json_response({"error": "slow_down", "interval": 10}), DecisionPending(True, 10 * SECOND)),
        (json_response({"error": "slow_down", "interval": "absurd"}), DecisionPending(True)),
        (json_response({"error": "slow_down", "interval": 1e9}), DecisionPending(True, 300 * SECOND)),
        (httpx.Response(429, headers={"Retry-After": "30"}), DecisionPending(True, timedelta(0), 30 * SECOND)),
        (json_response({"error_code": "rate_limit_exceeded"}, 403), DecisionPending(True)),
    ],
)
async def test_a_pending_decision(response: httpx.Response, expected: DecisionPending) -> None:
    assert await poll(response) == expected


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (400, "authorization_pending", PENDING),
        (400, "slow_down", DecisionPending(True)),
        (400, "invalid device code", PENDING),  # a text, and no code: it proves nothing
        (418, "", PENDING),
    ],
)
async def test_codes_under_another_name(status: int, message: str, expected: DecisionPending) -> None:
    provider, _ = declared("code_on_a_phone", json_response({"status": status, "message": message}, status))
    provider = provider.with_attributes(errors=Errors(field="message"))
    assert await provider.poll_device_authorization("d-1") == expected


@pytest.mark.parametrize(
    ("subcode", "expected"),
    [(1349174, PENDING), (1349172, DecisionPending(True)), ("1349174", PENDING), (0, PENDING), ({"a": 1}, PENDING)],
)
async def test_numbers_of_errors(subcode: object, expected: DecisionPending) -> None:
    error = {"message": "This request requires the user to take a pending action", "error_subcode": subcode}
    assert await poll(json_response({"error": error}, 400), "numbered_errors") == expected


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (json_response({"error": "access_denied"}, 400), "access_denied"),
        (json_response({"error": "access_denied"}, 403), "access_denied"),
        (json_response({"error": "access_denied"}), "access_denied"),
        (json_response({"error": "expired_token"}, 400), "expired_token"),
        (json_response({"error": "authorization_declined"}, 400), "authorization_declined"),
        (json_response({"error": "bad_verification_code"}, 400), "bad_verification_code"),
        (json_response({"error": "invalid_grant"}, 400), "invalid_grant"),
        (json_response({"error": "incorrect_device_code"}), "incorrect_device_code"),
    ],
)
async def test_the_end_of_an_authorization(response: httpx.Response, code: str) -> None:
    with pytest.raises(ProviderRejected) as raised:
        await poll(response)
    assert raised.value.oauth_error == code


@pytest.mark.parametrize(
    "response",
    [
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.Response(500),
        json_response({"error": "authorization_pending"}, 502),
        json_response({"error": "slow_down"}, 503),
        json_response({}),
        json_response({"access_token": ""}),
        httpx.Response(302, headers={"Location": "https://evil.example/"}),
        httpx.Response(408),
    ],
)
async def test_a_failure_that_says_nothing_about_the_decision(response: httpx.Response | Exception) -> None:
    with pytest.raises(ProviderUnavailable):
        await poll(response)


async def test_tokens_that_cannot_be_completed_are_reported_with_the_error() -> None:
    provider, _ = declared("code_on_a_phone", json_response(TOKENS), httpx.Response(503))
    provider = provider.with_attributes(lookup=provider.verification)
    with pytest.raises(ProviderUnavailable) as raised:
        await provider.poll_device_authorization("d-1")
    assert raised.value.issued_tokens is not None
    assert raised.value.issued_tokens.access_token == "at"
