"""Behaviour of single providers that no conformance profile covers."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderRejected, ProviderUnavailable
from integration_server.domain.proxy_messages import ApiRequest
from integration_server.providers.built_in import built_in_class
from integration_server.providers.oauth2 import OAuth2Provider
from tests.unit.providers.support import NOW, FakeTransport, build_provider, json_response

GitHubProvider = built_in_class("github")
GoogleAdsProvider = built_in_class("google_ads")
InstagramProvider = built_in_class("instagram")
MetaBusinessProvider = built_in_class("meta_business")
MicrosoftOutlookProvider = built_in_class("microsoft_outlook")
SalesforceProvider = built_in_class("salesforce")
ShopifyProvider = built_in_class("shopify")
SlackProvider = built_in_class("slack")
XeroProvider = built_in_class("xero")

CALLBACK = "https://app.example/cb"
TENANT, OTHER = "11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000"


async def test_slack_uses_the_users_token_if_there_is_no_bot_token() -> None:
    user = {"id": "U1", "scope": "users:read,search:read", "access_token": "xoxp", "token_type": "user"}
    network = FakeTransport(json_response({"ok": True, "team": {"id": "T1"}, "authed_user": user}))
    tokens = await build_provider(SlackProvider, network).exchange_code_for_tokens("c", CALLBACK, "v")
    assert (tokens.access_token, tokens.scopes) == ("xoxp", ("users:read", "search:read"))
    assert tokens.extras == {"installed_team": "T1", "installing_user": "U1"}


async def test_slack_revokes_both_tokens() -> None:
    network = FakeTransport(*[json_response({"ok": True, "revoked": True})] * 2)
    tokens = OAuthTokens("xoxb", extras={"user_access_token": "xoxp"})
    assert await build_provider(SlackProvider, network).revoke_credentials(tokens)
    assert {request.headers["Authorization"] for request in network.requests} == {"Bearer xoxb", "Bearer xoxp"}


async def test_slack_errors_with_http_200_are_provider_unavailable() -> None:
    network = FakeTransport(json_response({"ok": False, "error": "internal_error"}))
    with pytest.raises(ProviderUnavailable):
        await build_provider(SlackProvider, network).verify_connection(OAuthTokens("xoxb"))


async def test_instagram_does_not_renew_a_token_of_the_first_day() -> None:
    network = FakeTransport()
    day = timedelta(days=1)
    young = OAuthTokens("at", "at", NOW + 60 * day - timedelta(hours=1), lifetime=60 * day)
    assert await build_provider(InstagramProvider, network).refresh(young) is young
    assert network.requests == []


@pytest.mark.parametrize(("number", "is_invalid"), [(700082, True), (50173, True), (50076, True), (50196, False)])
async def test_microsoft_error_numbers_distinguish_final_from_transient(number: int, is_invalid: bool) -> None:
    network = FakeTransport(json_response({"error": "invalid_grant", "error_codes": [number]}, 400))
    with pytest.raises(ProviderRejected if is_invalid else ProviderUnavailable) as raised:
        await build_provider(MicrosoftOutlookProvider, network).refresh(OAuthTokens("at", "rt"))
    assert raised.value.oauth_error == ("invalid_grant" if is_invalid else None)


async def test_salesforce_tokens_are_assumed_to_last_an_hour() -> None:
    http_response = {"access_token": "at", "instance_url": "https://acme.my.salesforce.com"}
    tokens = await build_provider(
        SalesforceProvider, FakeTransport(json_response(http_response))
    ).exchange_code_for_tokens("c", CALLBACK, "v")
    assert tokens.expire_time == NOW + timedelta(hours=1)


def tenants(*ids: str) -> Any:
    return json_response([{"tenantId": tenant, "tenantName": tenant[:1]} for tenant in ids])


def xero(network: FakeTransport, **config: str) -> Any:
    return build_provider(XeroProvider, network).for_config(config)


async def test_xero_connects_the_configured_tenant() -> None:
    network = FakeTransport(json_response({"access_token": "at"}), tenants(TENANT, OTHER))
    tokens = await xero(network, tenant_id=OTHER).exchange_code_for_tokens("c", CALLBACK, "v")
    assert tokens.extras["tenant_id"] == OTHER


async def test_xero_connects_the_only_tenant() -> None:
    network = FakeTransport(json_response({"access_token": "at"}), tenants(TENANT))
    tokens = await xero(network).exchange_code_for_tokens("c", CALLBACK, "v")
    assert tokens.extras["tenant_id"] == TENANT


@pytest.mark.parametrize("given", [(), (TENANT, OTHER)])
async def test_xero_does_not_choose_among_several_tenants(given: tuple[str, ...]) -> None:
    network = FakeTransport(json_response({"access_token": "not.a.jwt"}), tenants(*given))
    with pytest.raises(ProviderRejected, match="tenant"):
        await xero(network).exchange_code_for_tokens("c", CALLBACK, "v")


async def test_xero_rejects_a_disconnected_tenant() -> None:
    tokens = OAuthTokens("at", extras={"tenant_id": TENANT})
    with pytest.raises(ProviderRejected):
        await xero(FakeTransport(tenants(OTHER))).verify_connection(tokens)


async def test_github_responses_may_be_forms() -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    network = FakeTransport(
        httpx.Response(200, headers=form, text="access_token=at&scope=read%3Auser%2Crepo&token_type=bearer"),
        httpx.Response(200, headers=form, text="error=bad_refresh_token&error_description=It+has+expired."),
    )
    github = build_provider(GitHubProvider, network)
    assert await github.refresh_access_token("rt") == OAuthTokens("at", scopes=("read:user", "repo"))
    with pytest.raises(ProviderRejected) as raised:
        await github.refresh_access_token("rt")
    assert raised.value.oauth_error == "invalid_grant"


async def test_github_counts_an_unknown_token_as_revoked() -> None:
    network = FakeTransport(json_response({"message": "Not Found"}, 404))
    assert await build_provider(GitHubProvider, network).revoke_credentials(OAuthTokens("at"))
    assert str(network.request.url) == "https://api.github.com/applications/our-id/grant"


@pytest.mark.parametrize(("setting", "sent"), [("dev", "dev"), ("", None), (" ", None)])
def test_google_ads_sends_a_developer_token_only_if_there_is_one(setting: str, sent: str | None) -> None:
    provider = build_provider(GoogleAdsProvider, FakeTransport(), GOOGLE_ADS_DEVELOPER_TOKEN=setting)
    assert provider.missing_settings == []
    assert provider.request_auth(OAuthTokens("at")).headers.get("developer-token") == sent


@pytest.mark.parametrize(
    ("provider", "body", "status", "is_invalid"),
    [
        (SlackProvider, {"ok": False, "error": "token_expired"}, 200, True),
        (SlackProvider, {"ok": False, "error": "channel_not_found"}, 200, False),
        (SlackProvider, {"ok": True, "text": "token_expired"}, 200, False),
        (MetaBusinessProvider, {"error": {"code": 190}}, 400, True),
        (MetaBusinessProvider, {"error": {"code": 100}}, 400, False),
        (GitHubProvider, {"message": "Bad credentials"}, 401, True),
    ],
)
async def test_an_invalid_token_is_detected_whatever_the_status(
    provider: type[OAuth2Provider], body: dict[str, Any], status: int, is_invalid: bool
) -> None:
    network = FakeTransport(json_response(body, status))
    http_response = await build_provider(provider, network).call_api(
        OAuthTokens("at"), ApiRequest("GET", "/things"), deadline=timedelta(seconds=9), body_limit=1000
    )
    assert http_response.is_unauthorized is is_invalid


@pytest.mark.parametrize(
    ("provider", "requested", "granted", "missing"),
    [
        (GitHubProvider, ("read:user", "user"), ("user",), []),
        (GitHubProvider, ("read:org", "repo", "public_repo"), ("admin:org", "repo"), []),
        (GitHubProvider, ("read:user", "user"), ("read:user",), ["user"]),
        (ShopifyProvider, ("read_products", "write_products"), ("write_products",), []),
        (ShopifyProvider, ("read_products", "read_orders"), ("write_products",), ["read_orders"]),
    ],
)
def test_a_wider_scope_includes_the_narrower_ones(
    provider: type[OAuth2Provider], requested: tuple[str, ...], granted: tuple[str, ...], missing: list[str]
) -> None:
    assert (
        build_provider(provider, FakeTransport()).missing_scopes(requested, OAuthTokens("at", scopes=granted))
        == missing
    )
