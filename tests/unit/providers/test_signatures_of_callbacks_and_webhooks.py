"""Signatures of one purpose are not accepted for another, where a provider signs both with the same key."""

import hmac
from base64 import b64encode, urlsafe_b64encode
from datetime import UTC, datetime
from json import dumps
from typing import Any
from urllib.parse import parse_qsl

import pytest

from integration_server.domain.errors import InvalidField
from integration_server.domain.webhooks import InvalidWebhookSignature, WebhookRequest
from integration_server.providers.built_in import built_in_class
from integration_server.providers.shopify import _signature
from integration_server.providers.webhooks.meta import META
from integration_server.providers.webhooks.scheme import MalformedWebhook, WebhookKeys
from integration_server.providers.webhooks.shopify import SHOPIFY
from tests.unit.providers.support import FakeTransport, build_provider

ShopifyProvider = built_in_class("shopify")

SECRET = "the client secret"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SHOP = "ada.myshopify.com"


def shopify() -> Any:
    network = FakeTransport()
    provider = build_provider(ShopifyProvider, network, SHOPIFY_CLIENT_ID="id", SHOPIFY_CLIENT_SECRET=SECRET)
    return provider.with_url_params(shop="ada")


def webhook(body: bytes) -> WebhookRequest:
    signature = b64encode(hmac.digest(SECRET.encode(), body, "sha256"))
    headers = [
        ("X-Shopify-Hmac-Sha256", signature),
        ("X-Shopify-Topic", b"app/uninstalled"),
        ("X-Shopify-Shop-Domain", SHOP.encode()),
    ]
    return WebhookRequest("POST", "https://hooks.example", headers, body)


POLYGLOTS = [
    f'{{"myshopify_domain":"{SHOP}","x":"=1"}}',
    f'{{"a":"&shop={SHOP}&code=1","myshopify_domain":"{SHOP}","x":"=1"}}',
    f'{{"=":1,"shop":"&shop={SHOP}&timestamp=1"}}',
    f'["=",{{"myshopify_domain":"{SHOP}"}}]',
    f' {{"=":"&code=1&shop={SHOP}"}}',
    f'"=&shop={SHOP}"',
    f'\ufeff{{"=":"&shop={SHOP}"}}',
]


@pytest.mark.parametrize("message", POLYGLOTS)
def test_a_signed_webhook_body_is_not_a_callback(message: str) -> None:
    query = dict(parse_qsl(message, keep_blank_values=True))
    query["hmac"] = hmac.new(SECRET.encode(), message.encode(), "sha256").hexdigest()
    with pytest.raises(InvalidField):
        shopify().read_callback({**query, "shop": SHOP} if "shop" not in query else query)


@pytest.mark.parametrize(
    "message", ["code=1&shop=ada.myshopify.com&state=%7B%7D&timestamp=1", "[]=1&shop=x", *POLYGLOTS[3:]]
)
def test_a_signed_callback_is_not_a_webhook(message: str) -> None:
    with pytest.raises((MalformedWebhook, InvalidWebhookSignature)):
        SHOPIFY.receive(webhook(message.encode()), WebhookKeys([SECRET]), NOW)


def test_negative_control_both_verify_with_the_same_key() -> None:
    """Without the rules for names and bodies, one signature would be valid for both."""
    query = {"code": "1", "shop": SHOP, "timestamp": "1"}
    signed = {**query, "hmac": _signature(query, SECRET).decode()}
    assert shopify().read_callback(signed) == {}
    ((name, value),) = parse_qsl(POLYGLOTS[0])
    assert (
        _signature({name: value}, SECRET).decode()
        == hmac.new(SECRET.encode(), POLYGLOTS[0].encode(), "sha256").hexdigest()
    )
    (event,) = SHOPIFY.receive(webhook(POLYGLOTS[0].encode()), WebhookKeys([SECRET]), NOW).events
    assert event.reports_grant_end


def test_metas_signed_webhook_is_not_a_signed_request() -> None:
    """Python's base64 decoder would skip the punctuation of JSON."""
    inner = urlsafe_b64encode(dumps({"algorithm": "HMAC-SHA256", "user_id": "7"}).encode()).decode().rstrip("=")
    for text in (f'{{"":"{inner}"}}', f"{inner}}}", f" {inner}", f"{inner}\n", f'"{inner}"'):
        signature = urlsafe_b64encode(hmac.digest(SECRET.encode(), text.encode(), "sha256")).decode().rstrip("=")
        body = f"signed_request={signature}.{text}".encode()
        with pytest.raises((InvalidWebhookSignature, MalformedWebhook)):
            META.receive(WebhookRequest("POST", "https://hooks.example", [], body), WebhookKeys([SECRET]), NOW)
