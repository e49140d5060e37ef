"""URL parameters: valid values, and the hosts that can be reached with them."""

from typing import Any

import pytest
from pydantic import Field

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import InvalidField, ProviderUnavailable
from integration_server.providers.base import ProviderConfig
from integration_server.providers.built_in import built_in_class
from integration_server.providers.http import DeclaredOrigins, UrlNotAllowed
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.url_templates import fill, template_params
from tests.attack_inputs import similar_urls
from tests.unit.providers.support import FakeTransport, build_provider, json_response

QuickBooksProvider = built_in_class("quickbooks")
SalesforceProvider = built_in_class("salesforce")
ShopifyProvider = built_in_class("shopify")

SHOP = "https://{shop}.shops.example/{version}/token"


def test_fills_all_url_params() -> None:
    assert template_params(SHOP) == ("shop", "version")
    assert fill(SHOP, {"shop": "acme", "version": "v1.2"}) == "https://acme.shops.example/v1.2/token"


def test_templates_with_a_parameter_in_the_host_declare_no_origin() -> None:
    origins = DeclaredOrigins([SHOP, "https://shops.example/{version}"])
    assert "https://shops.example:443" in origins
    assert "https://x.shops.example:443" not in origins


@pytest.mark.parametrize(
    "value", ["", "a/b", "a@b", "a?b", "a#b", "a:1", "..", ".a", "a b", "a%2fb", "a\n", "ä", "{shop}"]
)
def test_a_url_param_is_one_segment(value: str) -> None:
    with pytest.raises(ValueError, match="shop"):
        fill("https://{shop}.shops.example/", {"shop": value})


def test_an_unknown_url_param_raises() -> None:
    with pytest.raises(ValueError, match="shop"):
        fill(SHOP, {})


class ShopConfig(ProviderConfig):
    shop: str = Field(pattern=r"^[a-z0-9-]{1,60}$")


class Shop(OAuth2Provider):
    integration_type = "shop"
    oauth_authorize_url = "https://{shop}.shops.example/authorize"
    oauth_token_url = "https://{shop}.shops.example/token"
    verify_url = "https://{shop}.shops.example/me"
    host_patterns = ("*.shops.example",)
    config_model = ShopConfig


def test_a_config_field_sets_the_url_param_of_its_name() -> None:
    shop = build_provider(Shop, FakeTransport())
    url = shop.for_config({"shop": "acme", "metadata": {"colour": "red"}}).authorization_url(
        redirect_uri="https://app.example/cb", state="st", scopes=[], code_challenge="ch"
    )
    assert url.startswith("https://acme.shops.example/authorize?")
    with pytest.raises(InvalidField) as raised:
        shop.for_config({"shop": "acme.evil"})
    assert raised.value.field == "config.shop"


def test_what_follows_from_declarations_is_computed_once_for_all_accounts_and_anew_for_other_declarations() -> None:
    computed = []

    class Counting(Shop):
        @property
        def oauth_token_url(self) -> str:  # type: ignore[override]  # a declaration may be a property
            computed.append("url")
            return "https://{shop}.shops.example/token"

    shop = build_provider(Counting, FakeTransport())
    first, second = shop.with_url_params(shop="acme"), shop.with_url_params(shop="other")
    computed.clear()
    assert first.url_templates is second.url_templates
    assert (first.values["shop"], second.values["shop"]) == ("acme", "other")
    assert computed == []
    moved = first.with_attributes(verify_url="https://{shop}.shops.example/account")
    assert moved.url_templates["verify_url"] == "https://{shop}.shops.example/account"
    assert shop.url_templates["verify_url"] == "https://{shop}.shops.example/me"


async def test_url_params_are_stored_with_the_tokens() -> None:
    network = FakeTransport(json_response({"access_token": "at", "refresh_token": "rt"}), *[json_response({})] * 2)
    shop = build_provider(Shop, network)
    tokens = await shop.with_url_params(shop="acme").exchange_code_for_tokens("c", "https://app.example/cb", "v" * 43)
    assert tokens.extras == {"shop": "acme"}
    await shop.verify_connection(tokens)
    with pytest.raises(ProviderUnavailable):
        await shop.refresh(tokens)
    assert {request.url.host for request in network.requests} == {"acme.shops.example"}


async def test_no_url_param_leads_to_an_undeclared_host() -> None:
    network = FakeTransport()
    with pytest.raises(UrlNotAllowed):
        await (
            build_provider(Shop, network)
            .with_url_params(shop="evil.example.x")
            .send("GET", "https://{shop}.shops.example/")
        )
    assert network.requests == []


async def test_negative_control_with_a_host_pattern_the_host_is_reached() -> None:
    network = FakeTransport(json_response({}))
    shop = build_provider(Shop, network).with_attributes(host_patterns=("*.x.shops.example",))
    await shop.with_url_params(shop="evil.x").send("GET", "https://{shop}.shops.example/")
    assert network.request.url.host == "evil.x.shops.example"


# --- Shopify -------------------------------------------------------------------------------

SIGNED = {  # the example of Shopify's documentation, with the secret "hush"
    "code": "0907a61c0c8d55e99db179b68161bc00",
    "shop": "some-shop.myshopify.com",
    "timestamp": "1337178173",
    "hmac": "4712bf92ffc2917d15a2f5a273e39f0116667419aa4b6ac0b3baaf26fa3c4d20",
}


def shopify(shop: str = "some-shop") -> Any:
    provider = build_provider(ShopifyProvider, FakeTransport(), SHOPIFY_CLIENT_SECRET="hush").for_config({"shop": shop})
    assert isinstance(provider, ShopifyProvider)
    return provider


def test_accepts_a_callback_signed_by_shopify() -> None:
    assert shopify().read_callback(SIGNED) == {}


@pytest.mark.parametrize(
    "query",
    [
        {},
        {**SIGNED, "code": "another"},
        {**SIGNED, "more": "1"},
        {**SIGNED, "hmac": ""},
        {**SIGNED, "hmac": SIGNED["hmac"].upper()},
        {**SIGNED, "hmac": "ä"},
        {name: value for name, value in SIGNED.items() if name != "hmac"},
        {"code": f"{SIGNED['code']}&shop={SIGNED['shop']}", **{k: SIGNED[k] for k in ("timestamp", "hmac")}},
    ],
)
def test_rejects_a_callback_that_is_not_signed_by_shopify(query: dict[str, str]) -> None:
    with pytest.raises(InvalidField, match="signed"):
        shopify().read_callback(query)


def test_rejects_a_callback_of_another_shop() -> None:
    with pytest.raises(InvalidField, match="another shop"):
        shopify("my-shop").read_callback(SIGNED)


@pytest.mark.parametrize("shop", ["acme", "ACME", "acme.myshopify.com"])
def test_a_shop_is_a_name_or_a_domain(shop: str) -> None:
    assert shopify(shop).url_params["shop"] == "acme"


@pytest.mark.parametrize(
    "shop", ["", "acme.evil.example", "a/b", "-a", "a.b.myshopify.com", "acme.myshopify.com.evil.example"]
)
def test_rejects_an_invalid_shop(shop: str) -> None:
    with pytest.raises(InvalidField) as raised:
        shopify(shop)
    assert raised.value.field == "config.shop"


# --- other providers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("realm", ["", "12a", "../1", "\uff11\uff12", "1" * 65])
def test_rejects_an_invalid_company(realm: str) -> None:
    with pytest.raises(InvalidField, match="realmId"):
        build_provider(QuickBooksProvider, FakeTransport()).read_callback({"realmId": realm})


@pytest.mark.parametrize(
    "url", [None, 7, "acme.my.salesforce.com", *similar_urls("https://acme.my.salesforce.com/x")[:40]]
)
async def test_rejects_an_instance_that_is_not_a_salesforce_host(url: object) -> None:
    network = FakeTransport(json_response({"access_token": "at", "instance_url": url}))
    provider = build_provider(SalesforceProvider, network)
    try:
        tokens = await provider.exchange_code_for_tokens("c", "https://app.example/cb", "v" * 43)
    except ProviderUnavailable:
        return
    assert tokens.extras["instance"].endswith(".salesforce.com")
    assert str(provider.api_url(tokens)).endswith(".salesforce.com")


def test_credentials_without_a_url_param_have_no_api_url() -> None:
    with pytest.raises(ValueError, match="instance"):
        build_provider(SalesforceProvider, FakeTransport()).api_url(OAuthTokens("at"))
