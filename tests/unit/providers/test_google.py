from datetime import UTC, datetime

import httpx
import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderRejected, ProviderUnavailable
from integration_server.providers.base import BaseProvider
from integration_server.providers.built_in import built_in_class
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.oauth_clients.oauth_client_directory import require_oauth
from tests.fakes.oauth_clients import shared_grants
from tests.unit.providers.support import FakeTransport, build_provider, context, json_response, registry

GoogleCalendarProvider = built_in_class("google_calendar")
GoogleMyBusinessProvider = built_in_class("google_my_business")

TOKENS = OAuthTokens(access_token="at", refresh_token="rt")
SERVICES = [GoogleCalendarProvider, GoogleMyBusinessProvider]


@pytest.mark.parametrize("service", SERVICES)
def test_requests_offline_access_and_consent(service: type[BaseProvider]) -> None:
    provider = build_provider(service, FakeTransport())
    url = httpx.URL(
        require_oauth(provider).authorization_url(
            redirect_uri="https://app.example/cb", state="st", scopes=provider.required_scopes, code_challenge="ch"
        )
    )
    assert (url.host, url.path) == ("accounts.google.com", "/o/oauth2/v2/auth")
    assert url.params["access_type"] == "offline"
    assert url.params["prompt"] == "consent"
    assert url.params["include_granted_scopes"] == "true"
    assert url.params["code_challenge_method"] == "S256"
    assert url.params["scope"].split() == list(provider.required_scopes)


async def test_a_refresh_returns_no_refresh_token() -> None:
    network = FakeTransport(json_response({"access_token": "at2", "expires_in": 3599, "token_type": "Bearer"}))
    response = await build_provider(GoogleCalendarProvider, network).refresh_access_token("rt")
    assert response.refresh_token is None
    assert TOKENS.updated_with(response, datetime.now(UTC)).refresh_token == "rt"
    assert network.form["client_secret"] == "our-secret"


def test_short_scope_names_match_the_long_ones_in_responses() -> None:
    granted = ("https://www.googleapis.com/auth/userinfo.email", "openid")
    tokens = OAuthTokens(access_token="at", scopes=granted)
    provider = build_provider(GoogleCalendarProvider, FakeTransport())
    assert provider.missing_scopes(["openid", "email", "profile"], tokens) == ["profile"]


async def test_a_calendar_account_is_its_primary_calendar() -> None:
    network = FakeTransport(json_response({"id": "ada@example.com", "summary": "Ada", "primary": True}))
    account = await build_provider(GoogleCalendarProvider, network).verify_connection(TOKENS)
    assert account == NewAccount("ada@example.com", "Ada")
    assert str(network.request.url) == "https://www.googleapis.com/calendar/v3/users/me/calendarList/primary"


async def test_a_business_account_is_the_first_listed() -> None:
    network = FakeTransport(
        json_response({"accounts": [{"name": "accounts/1", "accountName": "Ada's"}, {"name": "x"}]})
    )
    account = await build_provider(GoogleMyBusinessProvider, network).verify_connection(TOKENS)
    assert account == NewAccount("accounts/1", "Ada's")


async def test_an_exhausted_quota_does_not_reject_the_credentials() -> None:
    def refusal(reason: str) -> httpx.Response:
        return json_response({"error": {"code": 403, "errors": [{"reason": reason}]}}, 403)

    provider = build_provider(
        GoogleCalendarProvider, FakeTransport(refusal("rateLimitExceeded"), refusal("insufficientPermissions"))
    )
    with pytest.raises(ProviderUnavailable):
        await provider.verify_connection(TOKENS)
    with pytest.raises(ProviderRejected):
        await provider.verify_connection(TOKENS)


@pytest.mark.parametrize(
    ("business_client", "shared"),
    [("ours", ("google_calendar", "google_my_business")), ("other", ("google_calendar",))],
)
async def test_types_with_the_same_google_client_share_grants(business_client: str, shared: tuple[str, ...]) -> None:
    settings = {"GOOGLE_CALENDAR_CLIENT_ID": "ours", "GOOGLE_MY_BUSINESS_CLIENT_ID": business_client}
    providers = registry(context(FakeTransport(), settings), GoogleCalendarProvider, GoogleMyBusinessProvider)
    assert await shared_grants(providers, "google_calendar") == shared
