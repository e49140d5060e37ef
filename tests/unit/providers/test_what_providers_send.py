"""Facts that decide what a user gets: errors, hosts, scopes and ids as the providers document or send them."""

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from integration_server.domain.credentials import ApiKey, Credentials, OAuthTokens
from integration_server.domain.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.providers.base import BaseProvider
from integration_server.providers.built_in import built_in_class
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.service.integrations.ports import NewAccount
from tests.unit.providers.support import NOW, FakeTransport, build_provider, json_response

AcuityProvider = built_in_class("acuity")
GitHubProvider = built_in_class("github")
GoogleAdsProvider = built_in_class("google_ads")
GoogleCalendarProvider = built_in_class("google_calendar")
GoogleMyBusinessProvider = built_in_class("google_my_business")
HubSpotProvider = built_in_class("hubspot")
InstagramProvider = built_in_class("instagram")
MetaBusinessProvider = built_in_class("meta_business")
MicrosoftOutlookProvider = built_in_class("microsoft_outlook")
SalesforceProvider = built_in_class("salesforce")
SendGridProvider = built_in_class("sendgrid")
ShopifyProvider = built_in_class("shopify")
SlackProvider = built_in_class("slack")
StripeApiKeyProvider = built_in_class("stripe_api_key")
XeroProvider = built_in_class("xero")
ZoomProvider = built_in_class("zoom")

TOKENS = OAuthTokens(
    "at", "rt", NOW + timedelta(hours=1), extras={"instance": "acme.my.salesforce.com", "shop": "acme"}
)
TENANT, OTHER = "11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000"


def credentials_of(provider_class: type[BaseProvider]) -> Credentials:
    return TOKENS if issubclass(provider_class, OAuth2Provider) else ApiKey("k-1", "s")


async def verify(provider_class: type[BaseProvider], response: httpx.Response) -> NewAccount:
    provider = build_provider(provider_class, FakeTransport(response))
    return await provider.verify_connection(credentials_of(provider_class))


async def call(provider_class: type[BaseProvider], response: httpx.Response) -> ApiResponse:
    return await build_provider(provider_class, FakeTransport(response)).call_api(
        credentials_of(provider_class), ApiRequest("GET", "/x"), deadline=timedelta(seconds=9), body_limit=10_000
    )


def google_error(reason: str, status: str = "PERMISSION_DENIED") -> dict[str, Any]:
    """An error of an older API."""
    return {"error": {"code": 403, "status": status, "errors": [{"domain": "usageLimits", "reason": reason}]}}


def google_details(reason: str) -> dict[str, Any]:
    """An error of a newer API (google.rpc.Status)."""
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}
    return {"error": {"code": 403, "status": "PERMISSION_DENIED", "details": [{"@type": "Help"}, info]}}


@pytest.mark.parametrize(
    ("provider_class", "body"),
    [
        (GoogleCalendarProvider, google_error("accessNotConfigured")),
        (GoogleCalendarProvider, google_details("SERVICE_DISABLED")),
        (GoogleMyBusinessProvider, google_details("CONSUMER_SUSPENDED")),
        (GoogleAdsProvider, google_details("API_KEY_SERVICE_BLOCKED")),
    ],
)
async def test_an_error_of_our_app_is_not_the_users(provider_class: type[BaseProvider], body: dict[str, Any]) -> None:
    with pytest.raises(ProviderMisconfigured):
        await verify(provider_class, json_response(body, 403))
    assert (await call(provider_class, json_response(body, 403))).is_client_fault


@pytest.mark.parametrize("reason", ["insufficientPermissions", "accessNotConfigured2", "SERVICE_DISABLED "])
async def test_another_403_of_google_is_not_ours(reason: str) -> None:
    with pytest.raises(ProviderRejected):
        await verify(GoogleCalendarProvider, json_response(google_error(reason), 403))


@pytest.mark.parametrize(
    ("provider_class", "status", "body"),
    [
        (GoogleCalendarProvider, 401, {"error": "deleted_client"}),
        (GoogleCalendarProvider, 400, {"error": "disabled_client"}),
        (
            InstagramProvider,
            400,
            {"error_type": "OAuthException", "code": 400, "error_message": "Invalid platform app"},
        ),
        (InstagramProvider, 400, {"error": {"code": 190, "message": "Invalid Platform App."}}),
        (MetaBusinessProvider, 400, {"error": {"type": "OAuthException", "code": 101}}),
    ],
)
async def test_a_token_error_of_our_client_ends_no_grant(
    provider_class: type[OAuth2Provider], status: int, body: dict[str, Any]
) -> None:
    with pytest.raises(ProviderMisconfigured):
        await build_provider(provider_class, FakeTransport(json_response(body, status))).refresh(TOKENS)


@pytest.mark.parametrize(
    ("provider_class", "status", "body", "headers"),
    [
        (GoogleCalendarProvider, 403, google_error("rateLimitExceeded"), {}),
        (GoogleCalendarProvider, 403, google_error("userRateLimitExceeded"), {}),
        (GoogleMyBusinessProvider, 403, google_details("RATE_LIMIT_EXCEEDED"), {}),
        (MetaBusinessProvider, 400, {"error": {"code": 80004}}, {}),
        (MetaBusinessProvider, 403, {"error": {"code": 341}}, {}),
        (InstagramProvider, 400, {"error": {"code": 368, "error_subcode": 1390008}}, {}),
        (MetaBusinessProvider, 400, {"error": {"code": 17}}, {}),
        (GitHubProvider, 403, {"message": "API rate limit exceeded"}, {"x_ratelimit_remaining": "0"}),
        (GitHubProvider, 403, {"message": "secondary rate limit"}, {"retry_after": "60"}),
        (GitHubProvider, 429, {}, {}),
        (AcuityProvider, 403, {}, {"retry_after": "5"}),
        (StripeApiKeyProvider, 429, {"error": {"type": "rate_limit_error", "code": "rate_limit"}}, {}),
        (SendGridProvider, 403, {}, {"retry_after": "Sun, 22 Nov 2026 12:00:09 GMT"}),
    ],
)
async def test_a_request_to_wait_rejects_nothing(
    provider_class: type[BaseProvider], status: int, body: dict[str, Any], headers: dict[str, str]
) -> None:
    with pytest.raises(ProviderUnavailable):
        await verify(provider_class, json_response(body, status, **headers))
    response = await call(provider_class, json_response(body, status, **headers))
    assert (response.is_rate_limited, response.is_unauthorized) == (True, False)


@pytest.mark.parametrize(
    ("provider_class", "body", "headers"),
    [
        (MetaBusinessProvider, {"error": {"code": 200}}, {}),
        (MetaBusinessProvider, {"error": {"code": 80015}}, {}),
        (GitHubProvider, {"message": "Resource not accessible"}, {"x_ratelimit_remaining": "59"}),
        (AcuityProvider, {}, {"retry_after": "soon"}),
    ],
)
async def test_another_403_is_no_request_to_wait(
    provider_class: type[BaseProvider], body: dict[str, Any], headers: dict[str, str]
) -> None:
    with pytest.raises(ProviderRejected):
        await verify(provider_class, json_response(body, 403, **headers))
    assert not (await call(provider_class, json_response(body, 403, **headers))).is_rate_limited


@pytest.mark.parametrize(
    ("provider_class", "status", "body", "is_dead"),
    [
        (XeroProvider, 401, b'{"Title":"Unauthorized","Status":401,"Detail":"AuthorizationUnsuccessful"}', False),
        (XeroProvider, 401, b'{"Title":"Unauthorized","Status":401,"Detail":"TokenExpired: token expired"}', True),
        (XeroProvider, 401, b"", True),
        (SalesforceProvider, 403, b"Bad_OAuth_Token", True),
        (SalesforceProvider, 403, b"Bad_OAuth_Token\n", True),
        (SalesforceProvider, 403, b'[{"errorCode":"REQUEST_LIMIT_EXCEEDED"}]', False),
        (SalesforceProvider, 403, b"<html>Bad_OAuth_Token</html>", False),
        (MetaBusinessProvider, 401, b"", True),
        (SlackProvider, 401, b"", True),
    ],
)
async def test_only_a_dead_token_is_renewed(
    provider_class: type[OAuth2Provider], status: int, body: bytes, is_dead: bool
) -> None:
    assert (await call(provider_class, httpx.Response(status, content=body))).is_unauthorized is is_dead


@pytest.mark.parametrize(
    ("provider_class", "subject", "error"),
    [
        (ShopifyProvider, "code", "app_not_installed"),
        (ShopifyProvider, "grant", "invalid_subject_token"),
        (ShopifyProvider, "grant", "app_not_installed"),
    ],
)
async def test_a_declared_error_ends_the_grant(provider_class: type[OAuth2Provider], subject: str, error: str) -> None:
    provider = build_provider(provider_class, FakeTransport(json_response({"error": error}, 400)))
    with pytest.raises(ProviderRejected) as raised:
        await provider.for_credentials(TOKENS).request_tokens({}, subject)
    assert raised.value.oauth_error == "invalid_grant"


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (json_response({"id": "acct_1", "email": "a@b.example"}), NewAccount("acct_1", "a@b.example")),
        (json_response({"error": {"type": "invalid_request_error"}}, 403), NewAccount(None, None)),
        (json_response({"error": {"type": "invalid_request_error"}}, 401), ProviderRejected),
        (httpx.Response(403, text="<html>blocked</html>"), ProviderUnavailable),
        (json_response({"message": "forbidden by the proxy"}, 403), ProviderUnavailable),
    ],
)
async def test_stripes_403_shows_that_a_restricted_key_works(
    response: httpx.Response, outcome: NewAccount | type[ProviderError]
) -> None:
    if isinstance(outcome, NewAccount):
        assert await verify(StripeApiKeyProvider, response) == outcome
    else:
        with pytest.raises(outcome):
            await verify(StripeApiKeyProvider, response)


@pytest.mark.parametrize(
    ("provider_class", "fields", "scopes"),
    [
        (HubSpotProvider, {"scopes": ["oauth", "crm.objects.contacts.read"], "hub_id": 1}, ("oauth", "tickets")),
        (HubSpotProvider, {"scope": "oauth crm.objects.contacts.read"}, ("oauth", "tickets")),
        (MicrosoftOutlookProvider, {"scope": "https://graph.microsoft.com/user.read"}, ("User.Read", "Mail.Read")),
        (XeroProvider, {"scope": "accounting.transactions"}, ("accounting.invoices", "accounting.reports.read")),
    ],
)
async def test_scopes_are_read_in_every_spelling(
    provider_class: type[OAuth2Provider], fields: dict[str, Any], scopes: tuple[str, str]
) -> None:
    network = FakeTransport(json_response({"access_token": "at", "refresh_token": "rt", **fields}))
    provider = build_provider(provider_class, network)
    tokens = await provider.refresh(TOKENS)
    assert provider.missing_scopes(scopes, tokens) == [scopes[1]]


@pytest.mark.parametrize(("config", "host"), [({}, "api"), ({"region": "eu"}, "api.eu"), ({"region": "global"}, "api")])
async def test_sendgrid_has_a_host_for_each_region(config: dict[str, str], host: str) -> None:
    network = FakeTransport(json_response({"scopes": []}))
    provider = build_provider(SendGridProvider, network).for_config(config)
    await provider.verify_connection(ApiKey("SG.x"))
    assert str(network.request.url) == f"https://{host}.sendgrid.com/v3/scopes"
    assert provider.api_url(ApiKey("SG.x")) == f"https://{host}.sendgrid.com"


@pytest.mark.parametrize("host", ["acme", "acme--dev.sandbox", "acme-dev-ed.develop", "orgfarm-1.free"])
async def test_salesforce_organisations_of_every_kind_are_reached(host: str) -> None:
    url = f"https://{host}.my.salesforce.com"
    network = FakeTransport(json_response({"access_token": "at", "instance_url": url}))
    tokens = await build_provider(SalesforceProvider, network).refresh(OAuthTokens("at", "rt"))
    assert tokens.extras == {"instance": f"https://{host}.my.salesforce.com"}


def tenant(tenant_id: str, connection: str) -> dict[str, str]:
    return {"id": connection, "tenantId": tenant_id, "tenantName": tenant_id[:1]}


async def test_xero_disconnects_one_organisation_and_leaves_the_others() -> None:
    network = FakeTransport(json_response([tenant(OTHER, "c-2"), tenant(TENANT, "c-1")]), httpx.Response(204))
    tokens = OAuthTokens("at", "rt", extras={"tenant_id": TENANT})
    assert await build_provider(XeroProvider, network).revoke_credentials(tokens)
    assert [(request.method, str(request.url)) for request in network.requests] == [
        ("GET", "https://api.xero.com/connections"),
        ("DELETE", "https://api.xero.com/connections/c-1"),
    ]


@pytest.mark.parametrize("left", [[], [tenant(TENANT, "c-1")]])
async def test_xero_revokes_the_refresh_token_with_the_last_organisation(left: list[dict[str, str]]) -> None:
    network = FakeTransport(json_response(left), *[httpx.Response(204)] * len(left), json_response({}))
    tokens = OAuthTokens("at", "rt", extras={"tenant_id": TENANT})
    assert await build_provider(XeroProvider, network).revoke_credentials(tokens)
    assert (str(network.requests[-1].url), b"token=rt" in network.requests[-1].content) == (
        "https://identity.xero.com/connect/revocation",
        True,
    )


async def test_zoom_revokes_the_access_token_and_refreshes_an_expired_one_first() -> None:
    fresh = json_response({"access_token": "new", "refresh_token": "rt2", "expires_in": 3600})
    network = FakeTransport(fresh, json_response({"status": "success"}))
    assert await build_provider(ZoomProvider, network).revoke_credentials(OAuthTokens("old", "rt", NOW))
    assert parse_qs(network.requests[-1].content.decode())["token"] == ["new"]


async def test_slack_revokes_the_users_token_after_its_expiry() -> None:
    network = FakeTransport(
        json_response({"ok": True, "access_token": "xoxp-2", "refresh_token": "r-3", "expires_in": 43200}),
        *[json_response({"ok": True, "revoked": True})] * 2,
    )
    extras = {"user_access_token": "xoxp-1", "user_refresh_token": "r-2"}
    assert await build_provider(SlackProvider, network).revoke_credentials(OAuthTokens("xoxb", extras=extras))
    assert [request.headers.get("Authorization") for request in network.requests[1:]] == [
        "Bearer xoxb",
        "Bearer xoxp-2",
    ]


@pytest.mark.parametrize("config_id", ["", "1234567890"])
def test_facebook_login_for_business_takes_a_configuration_in_place_of_scopes(config_id: str) -> None:
    provider = build_provider(MetaBusinessProvider, FakeTransport(), META_BUSINESS_LOGIN_CONFIG_ID=config_id)
    url = provider.authorization_url(
        redirect_uri="https://a.example/cb", state="s", scopes=["pages_show_list"], code_challenge="c"
    )
    query = parse_qs(urlsplit(url).query)
    assert (query.get("config_id"), query.get("scope")) == (
        ([config_id], None) if config_id else (None, ["pages_show_list"])
    )


@pytest.mark.parametrize(
    ("settings", "secrets"),
    [({}, ["our-secret"]), ({"INSTAGRAM_WEBHOOK_SECRET": "facebook's"}, ["facebook's", "our-secret"])],
)
def test_webhooks_of_instagram_are_verified_with_either_secret(settings: dict[str, str], secrets: list[str]) -> None:
    assert build_provider(InstagramProvider, FakeTransport(), **settings).webhook_secrets(None) == secrets
