"""The types of the catalogue read what the documentation of their providers prints: tests/catalogue/, by real code."""

import base64
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, OAuthTokens
from integration_server.domain.errors import ProviderError, ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.domain.webhooks import WebhookRequest
from integration_server.providers.base import BaseProvider
from integration_server.providers.built_in import built_in_class
from integration_server.providers.declaration_tables import Errors, TokenResponse
from integration_server.providers.http import HttpResponse
from integration_server.providers.toml_providers import CATALOGUE, declaration_files
from integration_server.service.integrations.ports import NewAccount
from tests.catalogue import ErrorResponse, Fixture, Request, WebhookDelivery, read_fixtures
from tests.unit.providers.support import NOW, FakeTransport, context, registry

FIXTURES = read_fixtures()

WITH_PROFILES_ONLY = {
    *("acuity", "booksy", "custom", "dropbox", "github", "gmail", "google_ads", "google_calendar"),
    *("google_my_business", "hubspot", "instagram", "mailchimp", "meta_business", "microsoft_outlook", "quickbooks"),
    *("salesforce", "sendgrid", "shopify", "slack", "square", "stripe", "stripe_api_key", "twilio", "xero", "zoom"),
}
"""The first types, whose documented responses are in tests/conformance/profiles/ and in test_provider_specifics.py."""

OUR_ID, OUR_SECRET = "our-id", "our-secret"
VALUES = {
    "client_id": OUR_ID,
    "client_secret": OUR_SECRET,
    "basic": base64.b64encode(f"{OUR_ID}:{OUR_SECRET}".encode()).decode(),
    "code": "the-code",
    "redirect_uri": "https://app.example/callback",
    "code_verifier": "v" * 43,
    "refresh_token": "the-refresh-token",
}

with_fixtures = pytest.mark.parametrize("fixture", FIXTURES.values(), ids=FIXTURES)


def provider_of(fixture: Fixture, network: FakeTransport, *, now: datetime = NOW, **mistakes: Any) -> Any:
    """The provider that the catalogue declares, or one with mistakes: other values of its attributes."""
    prefix = fixture.type.upper()
    given = {"CLIENT_ID": OUR_ID, "CLIENT_SECRET": OUR_SECRET, **fixture.settings}
    environment = {f"{prefix}_{name}": value for name, value in given.items()}
    given_context = replace(context(network, environment), clock=lambda: now)
    provider: Any = registry(given_context, built_in_class(fixture.type))[fixture.type]
    provider = provider.with_attributes(**mistakes).for_config(fixture.config)
    return provider.for_callback(fixture.callback) if fixture.callback else provider


def response(documented: Any) -> httpx.Response:
    headers = {"Content-Type": documented.content_type, **documented.headers}
    return httpx.Response(documented.status, headers=headers, content=documented.response.encode())


def key_of(fixture: Fixture) -> ApiKey:
    assert fixture.key is not None, "the fixture needs a key"
    return ApiKey(fixture.key.api_key, fixture.key.api_secret, secret_fields=fixture.key.secret_fields)


async def obtain(provider: Any, fixture: Fixture) -> Credentials:
    """The credentials of a new connection."""
    if provider.has_authorization_page:
        found: Credentials = await provider.exchange_code_for_tokens(
            VALUES["code"], VALUES["redirect_uri"], VALUES["code_verifier"]
        )
        return found
    return await provider.credentials_of(key_of(fixture))  # type: ignore[no-any-return]


async def documented_credentials(fixture: Fixture) -> Credentials:
    """Those that the documented responses lead to."""
    answers = [response(one) for one in (fixture.token, fixture.lookup) if one is not None]
    return await obtain(provider_of(fixture, FakeTransport(*answers)), fixture)


# --- the fixtures are complete ---------------------------------------------------------------------------------------


def test_each_new_type_has_documented_responses() -> None:
    types = {file.name.removesuffix(".toml") for file in declaration_files(CATALOGUE)}
    assert types - WITH_PROFILES_ONLY == set(FIXTURES)


@with_fixtures
def test_a_fixture_is_complete(fixture: Fixture) -> None:
    provider = provider_of(fixture, FakeTransport())
    assert provider.integration_type == fixture.type
    assert (fixture.token is not None) == (provider.auth_method is AuthMethod.OAUTH2)
    assert (fixture.verification is not None) == provider.has_verification
    assert (fixture.lookup is not None) == (provider.lookup is not None)
    assert (fixture.webhook is not None) == provider.supports_webhooks
    assert fixture.errors
    assert (fixture.key is None) == provider.has_authorization_page


# --- requests and responses ------------------------------------------------------------------------------------------


@with_fixtures
def test_the_authorization_url_is_the_documented_one(fixture: Fixture) -> None:
    if fixture.authorization is None:
        return
    provider = provider_of(fixture, FakeTransport())
    scopes = provider.required_scopes
    url = provider.authorization_url(
        redirect_uri=VALUES["redirect_uri"], state="the-state", scopes=scopes, code_challenge="the-challenge"
    )
    address, _, query = url.partition("?")
    assert address == fixture.authorization.url
    sent = dict(parse_qsl(query))
    assert sent.pop("state") == "the-state"
    challenge = sent.pop("code_challenge", None), sent.pop("code_challenge_method", None)
    assert challenge == (("the-challenge", "S256") if provider.pkce else (None, None))
    sent.pop(provider.scope_param, None)  # which ones is our choice
    assert sent == filled(fixture.authorization.params)


@with_fixtures
async def test_a_documented_token_response_is_read(fixture: Fixture) -> None:
    await check_token_response(fixture)


async def check_token_response(fixture: Fixture, **mistakes: Any) -> None:
    if fixture.token is None:
        return
    network = FakeTransport(*(response(one) for one in (fixture.token, fixture.lookup) if one is not None))
    provider = provider_of(fixture, network, **mistakes)
    found = await obtain(provider, fixture)
    assert_read(provider, found, fixture.token.expected)
    assert_as_documented(network.requests[0], fixture.token.request)
    if fixture.lookup is not None:
        assert_as_documented(network.requests[1], fixture.lookup.request, found)


@with_fixtures
async def test_a_documented_refresh_is_read(fixture: Fixture) -> None:
    await check_refresh(fixture)


async def check_refresh(fixture: Fixture, **mistakes: Any) -> None:
    if fixture.refresh is None:
        return
    network = FakeTransport(response(fixture.refresh))
    provider = provider_of(fixture, network, **mistakes)
    before = await documented_credentials(fixture)
    assert isinstance(before, OAuthTokens)
    found = await provider.refresh(replace(before, refresh_token=VALUES["refresh_token"]))
    assert_read(provider, found, fixture.refresh.expected)
    assert_as_documented(network.request, fixture.refresh.request)


@with_fixtures
async def test_a_documented_verification_names_the_account(fixture: Fixture) -> None:
    await check_verification(fixture)


async def check_verification(fixture: Fixture, **mistakes: Any) -> None:
    if fixture.verification is None:
        return
    network = FakeTransport(response(fixture.verification))
    provider = provider_of(fixture, network, **mistakes)
    credentials = await documented_credentials(fixture)
    expected = fixture.verification.expected
    found = await provider.verify_connection(credentials)
    assert found == NewAccount(expected.account_id, expected.account_label)
    assert_as_documented(network.request, fixture.verification.request, credentials)


DOCUMENTED_ERRORS = [
    pytest.param(fixture, error, id=f"{fixture.type}-{index}-{error.to}-{error.status}-{error.expected}")
    for fixture in FIXTURES.values()
    for index, error in enumerate(fixture.errors)
]


@pytest.mark.parametrize(("fixture", "error"), DOCUMENTED_ERRORS)
async def test_a_documented_error_has_its_meaning(fixture: Fixture, error: ErrorResponse) -> None:
    assert await meaning_of(fixture, error) == error.expected


async def meaning_of(fixture: Fixture, error: ErrorResponse, **mistakes: Any) -> str:
    provider = provider_of(fixture, FakeTransport(response(error)), **mistakes)
    if error.to == "token":
        request = obtain(provider, fixture)
    else:
        credentials = await documented_credentials(fixture)
        if error.to == "api":
            limits: dict[str, Any] = {"deadline": timedelta(seconds=1), "body_limit": 10_000}
            return meaning_of_response(await provider.call_api(credentials, ApiRequest("GET", "/"), **limits))
        send = provider.refresh if error.to == "refresh" else provider.verify_connection
        request = send(credentials)
    with pytest.raises(ProviderError) as raised:
        await request
    return meaning_of_error(provider, raised.value, error)


def meaning_of_response(found: ApiResponse) -> str:
    if found.is_rate_limited:
        return "wait"
    if found.is_client_fault:
        return "client"
    if found.is_unauthorized:
        return "dead"
    return "transient" if found.status >= 500 else "rejected"


def meaning_of_error(provider: BaseProvider, error: ProviderError, documented: ErrorResponse) -> str:
    if isinstance(error, ProviderUnavailable):
        answer = response(documented)
        headers = dict(answer.headers)
        http = HttpResponse(answer.status_code, headers, answer.content, error.retry_after)
        asks_to_wait = provider.is_rate_limited(http) or error.retry_after is not None
        return "wait" if asks_to_wait else "transient"
    if isinstance(error, ProviderMisconfigured):
        return "client"
    assert isinstance(error, ProviderRejected)
    # A refused refresh ends a grant only with this code; a verification has a status as well.
    return "dead" if error.oauth_error == "invalid_grant" or documented.to == "verify" else "rejected"


@with_fixtures
def test_a_documented_webhook_is_verified_and_read(fixture: Fixture) -> None:
    if fixture.webhook is None:
        return
    delivery, expected = fixture.webhook, fixture.webhook.expected
    now = NOW if delivery.time is None else datetime.fromtimestamp(delivery.time, UTC)
    provider = provider_of(fixture, FakeTransport(), now=now)
    (event,) = provider.receive_webhook(webhook_request(delivery), [delivery.secret]).events
    assert (event.event_type, event.account_id) == (expected.event_type, expected.account_id)
    assert expected.event_id in {None, event.event_id}


# --- negative controls: with a mistake in the declaration, the same checks fail ---------------------------------------


@pytest.mark.parametrize(
    ("integration_type", "mistake"),
    [
        ("notion", {"token_response": TokenResponse()}),
        ("notion", {"token_body": "form"}),
        ("notion", {"token_headers": {}}),
        ("jira", {"token_auth": "client_secret_basic"}),
        ("monday", {"scope_separator": ":"}),
        ("asana", {"oauth_token_url": "https://app.asana.com/oauth_token"}),
        ("airtable", {"pkce": False}),
    ],
)
async def test_a_mistake_in_a_token_request_is_found(integration_type: str, mistake: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, ProviderError)):
        await check_token_response(FIXTURES[integration_type], **mistake)


@pytest.mark.parametrize("mistake", [{"refresh_url": None}, {"refresh_params": {}}])
async def test_a_mistake_in_a_refresh_is_found(mistake: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        await check_refresh(FIXTURES["figma"], **mistake)


@pytest.mark.parametrize(
    ("integration_type", "mistake"),
    [
        ("linear", {"account_id_field": "organization.id"}),
        ("monday", {"request_headers": {}}),
        ("trello", {"request_headers": {"Authorization": "OAuth {api_key}"}}),
    ],
)
async def test_a_mistake_in_a_verification_is_found(integration_type: str, mistake: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        await check_verification(FIXTURES[integration_type], **mistake)


@pytest.mark.parametrize("integration_type", ["clickup", "google_drive", "jira", "linear", "linkedin", "todoist"])
async def test_errors_without_declared_codes_have_other_meanings(integration_type: str) -> None:
    fixture = FIXTURES[integration_type]
    found = [await meaning_of(fixture, error, errors=Errors()) for error in fixture.errors]
    assert found != [error.expected for error in fixture.errors]


# --- helpers ---------------------------------------------------------------------------------------------------------


def assert_read(provider: BaseProvider, found: Credentials, expected: Any) -> None:
    assert isinstance(found, OAuthTokens)
    lifetime = None if found.lifetime is None else found.lifetime.total_seconds()
    scopes = None if found.scopes is None else list(found.scopes)
    kept = {name: value for name, value in found.extras.items() if name in provider.kept_names}
    read = (found.access_token, found.refresh_token, lifetime, scopes, kept)
    wanted = expected.access_token, expected.refresh_token, expected.lifetime_seconds
    assert read == (*wanted, expected.scopes, expected.kept)


def assert_as_documented(
    sent: httpx.Request, documented: Request | None, credentials: Credentials | None = None
) -> None:
    if documented is None:
        return
    values = {**VALUES, **({} if credentials is None else values_of(credentials))}
    parts = urlsplit(str(sent.url))
    assert (sent.method, f"{parts.scheme}://{parts.netloc}{parts.path}") == (documented.method, documented.url)
    query = dict(parse_qsl(parts.query))
    assert {name: query.get(name) for name in documented.query} == filled(documented.query, values)
    headers = filled(documented.headers, values)
    assert {name: sent.headers.get(name) for name in headers} == headers
    if documented.form is not None:
        assert dict(parse_qsl(sent.content.decode(), keep_blank_values=True)) == filled(documented.form, values)
    if documented.json_ is not None:
        assert json.loads(sent.content) == filled(documented.json_, values)


def values_of(credentials: Credentials) -> Mapping[str, str]:
    own = {name: getattr(credentials, name, None) for name in ("access_token", "api_key", "api_secret")}
    return {**credentials.extras, **credentials.secret_fields, **{name: value for name, value in own.items() if value}}


def filled(documented: Mapping[str, Any], values: Mapping[str, str] = VALUES) -> dict[str, Any]:
    """The documented values with those of the test."""
    names = sorted(values, key=len, reverse=True)  # one is the beginning of another
    pattern = re.compile(rf"\$({'|'.join(map(re.escape, names))})")
    return {
        name: pattern.sub(lambda match: values[match[1]], value) if isinstance(value, str) else value
        for name, value in documented.items()
    }


def webhook_request(delivery: WebhookDelivery) -> WebhookRequest:
    signed = delivery.signed.replace("$body", delivery.body).encode()
    digests: dict[str, str] = {}
    for algorithm in ("sha1", "sha256", "sha512"):
        digest = hmac.digest(delivery.secret.encode(), signed, algorithm)
        digests |= {
            f"hmac_{algorithm}_hex": digest.hex(),
            f"hmac_{algorithm}_base64": base64.b64encode(digest).decode(),
        }
    headers = [(name, value.encode()) for name, value in filled(delivery.headers, digests).items()]
    return WebhookRequest(delivery.method, delivery.url, headers, delivery.body.encode())
