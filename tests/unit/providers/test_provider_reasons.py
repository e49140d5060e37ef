"""The provider's machine-readable reason reaches the caller and the log: a declared code, and never free text."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from integration_server.domain.credentials import ApiKey, Credentials, OAuthTokens
from integration_server.domain.errors import (
    IntegrationServerError,
    InvalidField,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
)
from integration_server.domain.proxy_messages import ApiRequest
from integration_server.providers.base import BaseProvider
from integration_server.providers.built_in import built_in_class
from integration_server.providers.google_calendar_api import GoogleCalendarApi
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.errors import provider_reason_of, status_of
from tests.unit.providers.support import FakeTransport, build_provider, json_response

DropboxProvider = built_in_class("dropbox")
GitHubProvider = built_in_class("github")
GoogleCalendarProvider = built_in_class("google_calendar")
HubSpotProvider = built_in_class("hubspot")
MetaBusinessProvider = built_in_class("meta_business")
MicrosoftOutlookProvider = built_in_class("microsoft_outlook")
SlackProvider = built_in_class("slack")
StripeApiKeyProvider = built_in_class("stripe_api_key")
XeroProvider = built_in_class("xero")

TOKENS = OAuthTokens("at", "rt", extras={"tenant_id": "t"})
SECRET = "ya29.s3cret"


def credentials_of(provider_class: type[BaseProvider]) -> Credentials:
    return TOKENS if issubclass(provider_class, OAuth2Provider) else ApiKey("k")


def metadata_of(error: Exception) -> dict[str, str]:
    info = error_details_pb2.ErrorInfo()
    status_of(error).details[0].Unpack(info)
    return dict(info.metadata)


@pytest.mark.parametrize(
    ("provider_class", "status", "body", "reason"),
    [
        (
            GoogleCalendarProvider,
            403,
            {"error": {"errors": [{"reason": "insufficientPermissions"}]}},
            "insufficientPermissions",
        ),
        (GoogleCalendarProvider, 403, {"error": {"details": [{}, {"reason": "SERVICE_DISABLED"}]}}, "SERVICE_DISABLED"),
        (MetaBusinessProvider, 400, {"error": {"code": 190, "error_subcode": 463}}, "463"),
        (MetaBusinessProvider, 400, {"error": {"code": 80004}}, "80004"),
        (HubSpotProvider, 403, {"status": "error", "category": "MISSING_SCOPES"}, "MISSING_SCOPES"),
        (
            MicrosoftOutlookProvider,
            401,
            {"error": {"code": "InvalidAuthenticationToken"}},
            "InvalidAuthenticationToken",
        ),
        (DropboxProvider, 401, {"error": {".tag": "missing_scope"}, "error_summary": "x"}, "missing_scope"),
        (StripeApiKeyProvider, 401, {"error": {"code": "api_key_expired", "type": "x"}}, "api_key_expired"),
        (
            XeroProvider,
            403,
            {"Title": "Forbidden", "Detail": "AuthenticationUnsuccessful"},
            "AuthenticationUnsuccessful",
        ),
        (SlackProvider, 200, {"ok": False, "error": "account_inactive"}, "account_inactive"),
    ],
)
async def test_a_declared_reason_is_in_the_callers_error(
    provider_class: type[BaseProvider], status: int, body: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ProviderError) as raised:
        await build_provider(provider_class, FakeTransport(json_response(body, status))).verify_connection(
            credentials_of(provider_class)
        )
    assert metadata_of(raised.value) == {"provider_reason": reason}


@pytest.mark.parametrize(
    ("provider_class", "body", "reason"),
    [
        (MicrosoftOutlookProvider, {"error": "invalid_grant", "error_codes": [700082]}, "700082"),
        (GitHubProvider, {"error": "bad_refresh_token"}, "bad_refresh_token"),
        (SlackProvider, {"ok": False, "error": "invalid_refresh_token"}, "invalid_refresh_token"),
        (GoogleCalendarProvider, {"error": "invalid_grant"}, "invalid_grant"),
    ],
)
async def test_the_reason_of_a_refresh_is_that_of_the_error_it_causes(
    provider_class: type[OAuth2Provider], body: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ProviderRejected) as raised:
        await build_provider(provider_class, FakeTransport(json_response(body, 400))).refresh(TOKENS)
    error = ReauthorizationRequired()
    error.__cause__ = raised.value
    assert metadata_of(error) == {"provider_reason": reason}


UNDECLARED = [
    {"error": {"errors": [{"reason": SECRET}], "status": SECRET, "details": [{"reason": SECRET}]}},
    {"error": f"The token {SECRET} is bad"},
    {"error": {"errors": [{"reason": "insufficientPermissions " + SECRET}]}},
    {"error": {"message": "insufficientPermissions"}},
    {"error": {"errors": "insufficientPermissions"}},
    {"error": {"errors": [["insufficientPermissions"], 7, None]}},
    [SECRET],
]


@pytest.mark.parametrize("body", UNDECLARED)
async def test_free_text_is_never_a_reason(body: Any) -> None:
    with pytest.raises(ProviderError) as raised:
        await build_provider(GoogleCalendarProvider, FakeTransport(json_response(body, 403))).verify_connection(TOKENS)
    assert metadata_of(raised.value) == {}


class Everything(frozenset[str]):
    def __contains__(self, code: object) -> bool:
        return True


Undeclared: type[BaseProvider] = type("Undeclared", (GoogleCalendarProvider,), {"known_reasons": Everything()})


async def test_negative_control_without_a_list_of_codes_a_token_is_passed_on() -> None:
    provider = build_provider(Undeclared, FakeTransport(json_response(UNDECLARED[0], 403)))
    with pytest.raises(ProviderError) as raised:
        await provider.verify_connection(TOKENS)
    assert metadata_of(raised.value) == {"provider_reason": SECRET}


async def test_errors_of_typed_calls_have_the_reason() -> None:
    body = {"error": {"code": 403, "errors": [{"reason": "forbiddenForNonOrganizer"}]}}
    response = await build_provider(GoogleCalendarProvider, FakeTransport(json_response(body, 403))).call_api(
        TOKENS, ApiRequest("GET", "/calendars/a/events/b"), deadline=timedelta(seconds=1), body_limit=10_000
    )
    with pytest.raises(ProviderRejected) as raised:
        GoogleCalendarApi().read_event(response)
    assert metadata_of(raised.value) == {"provider_reason": "forbiddenForNonOrganizer"}


async def test_a_long_error_is_content_and_has_no_reason() -> None:
    body = b'{"error": {"status": "NOT_FOUND", "x": "' + b"x" * (1 << 16) + b'"}}'
    response = await build_provider(GoogleCalendarProvider, FakeTransport(httpx.Response(404, content=body))).call_api(
        TOKENS, ApiRequest("GET", "/x"), deadline=timedelta(seconds=1), body_limit=1 << 20
    )
    assert response.reason is None


@pytest.mark.parametrize("error", [InvalidField("name", "is long"), ReauthorizationRequired(), ValueError("x")])
def test_other_errors_have_no_reason_of_a_provider(error: Exception) -> None:
    assert provider_reason_of(error) is None
    if isinstance(error, IntegrationServerError):
        assert metadata_of(error) == {}


@pytest.mark.parametrize("reason", ["463", None])
def test_the_reason_is_in_the_log(reason: str | None) -> None:
    with capture_logs() as logs:
        CallLog().rejected("/service/Method", "PROVIDER_REJECTED", "", reason)
    assert [entry.get("provider_reason") for entry in logs] == [reason]


def test_an_error_among_its_own_causes_has_no_reason() -> None:
    first, second = ProviderUnavailable(), ProviderUnavailable()
    first.__cause__, second.__cause__ = second, first
    assert provider_reason_of(first) is None
