"""The use of a scheme by its provider, and the providers with schemes."""

from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from integration_server.domain.credentials import ApiKey, Credentials, OAuthTokens
from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.base import BaseProvider
from integration_server.providers.built_in import built_in_class
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.meta import META
from integration_server.providers.webhooks.scheme import WebhookScheme
from integration_server.providers.webhooks.shopify import SHOPIFY
from integration_server.providers.webhooks.standard import STANDARD
from integration_server.service.provider_port import Provider
from tests.unit.providers.support import NOW, FakeTransport, build_provider
from tests.unit.providers.webhooks.samples import SAMPLES, URL, accepts, hex_hmac, post, with_header

AcuityProvider = built_in_class("acuity")
GoogleCalendarProvider = built_in_class("google_calendar")
GoogleMyBusinessProvider = built_in_class("google_my_business")
SendGridProvider = built_in_class("sendgrid")
StripeProvider = built_in_class("stripe")
TwilioProvider = built_in_class("twilio")

SquareProvider = built_in_class("square")

BY_NAME = {sample.name: sample for sample in SAMPLES}


class Shop(OAuth2Provider):
    """Signs with the client secret."""

    integration_type = "shop"
    oauth_authorize_url = "https://shop.example/a"
    oauth_token_url = "https://shop.example/t"
    webhook_scheme: WebhookScheme | None = SHOPIFY


class Pages(Shop):
    """Uses a verify token."""

    integration_type = "pages"
    webhook_scheme = META


class Custom(ApiKeyProvider):
    """Signs with a secret of the account's own."""

    integration_type = "custom"
    verify_url = "https://custom.example/me"
    webhook_scheme = STANDARD


def public_key_of(curve: ec.EllipticCurve) -> str:
    """A new public key in SendGrid's format."""
    key = ec.generate_private_key(curve).public_key()
    return b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


P256, P384 = public_key_of(ec.SECP256R1()), public_key_of(ec.SECP384R1())


@pytest.mark.parametrize(
    ("provider_class", "name"),
    [
        (StripeProvider, "stripe"),
        (SquareProvider, "square"),
        (TwilioProvider, "twilio"),
        (TwilioProvider, "twilio-json"),
        (SendGridProvider, "sendgrid"),
        (GoogleCalendarProvider, "google-channel"),
    ],
)
def test_a_provider_receives_by_its_scheme(provider_class: type[BaseProvider], name: str) -> None:
    provider: Provider = build_provider(provider_class, FakeTransport())
    sample = BY_NAME[name]
    assert provider.supports_webhooks
    request = sample.sign(sample.secret, sample.body, NOW)
    (event,) = provider.receive_webhook(request, [sample.other_secret, sample.secret]).events
    assert event.event_type != "unknown"
    for secrets in ([], [""], [sample.other_secret]):
        with pytest.raises(InvalidWebhookSignature):
            provider.receive_webhook(request, secrets)


def test_timestamps_are_compared_with_the_providers_clock() -> None:
    provider = build_provider(StripeProvider, FakeTransport())
    sample = BY_NAME["stripe"]
    old = sample.sign(sample.secret, sample.body, NOW.replace(year=2025))
    with pytest.raises(InvalidWebhookSignature):
        provider.receive_webhook(old, [sample.secret])


def test_a_provider_without_a_scheme_rejects_webhooks() -> None:
    provider = build_provider(GoogleMyBusinessProvider, FakeTransport(), GOOGLE_MY_BUSINESS_WEBHOOK_SECRET="s")
    assert not provider.supports_webhooks
    assert provider.webhook_secrets(None) == ()
    with pytest.raises(InvalidWebhookSignature):
        provider.receive_webhook(WebhookRequest("POST", URL, [], b"{}"), ["s"])


# --- secrets


@pytest.mark.parametrize(
    ("provider_class", "environment", "expected"),
    [
        (StripeProvider, {}, []),
        (StripeProvider, {"STRIPE_WEBHOOK_SECRET": " whsec_1 "}, ["whsec_1"]),
        (
            StripeProvider,
            {"STRIPE_WEBHOOK_SECRET": "whsec_2", "STRIPE_WEBHOOK_SECRET_RETIRED": "whsec_1"},
            ["whsec_2", "whsec_1"],
        ),
        (StripeProvider, {"STRIPE_WEBHOOK_SECRET": " "}, []),
        (Shop, {}, ["our-secret"]),
        (Shop, {"SHOP_WEBHOOK_SECRET": "own"}, ["own", "our-secret"]),
        (Shop, {"SHOP_WEBHOOK_SECRET_RETIRED": "previous"}, ["previous", "our-secret"]),
        (Shop, {"SHOP_CLIENT_SECRET_PREVIOUS": "former"}, ["our-secret", "former"]),
        (StripeProvider, {"STRIPE_CLIENT_SECRET_PREVIOUS": "former"}, []),
        (Shop, {"SHOP_CLIENT_SECRET": ""}, []),
        (TwilioProvider, {}, []),
    ],
)
def test_secrets_of_the_app_are_settings(
    provider_class: type[BaseProvider], environment: dict[str, str], expected: list[str]
) -> None:
    assert build_provider(provider_class, FakeTransport(), **environment).webhook_secrets(None) == expected


@pytest.mark.parametrize(
    ("provider_class", "credentials", "expected"),
    [
        (Custom, ApiKey("k", webhook_secret="whsec_"), ["whsec_"]),
        (Custom, ApiKey("k", api_secret="not this"), []),
        (TwilioProvider, ApiKey("AC1", "auth-token"), ["auth-token"]),
        (TwilioProvider, ApiKey("AC1", "auth-token", "other"), ["other", "auth-token"]),
        (TwilioProvider, ApiKey("AC1", ""), []),
        (Shop, OAuthTokens("at"), []),
    ],
)
def test_secrets_of_an_integration_are_in_its_credentials(
    provider_class: type[BaseProvider], credentials: Credentials, expected: list[str]
) -> None:
    assert build_provider(provider_class, FakeTransport()).webhook_secrets(credentials) == expected


@pytest.mark.parametrize(
    ("provider_class", "secret", "is_good"),
    [
        (Custom, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", True),
        (Custom, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", True),
        (Custom, "whsec_", False),
        (Custom, "correct horse battery staple", False),
        (SendGridProvider, P256, True),
        (SendGridProvider, P384, False),
        (SendGridProvider, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", False),
        (TwilioProvider, "anything", True),
    ],
    ids=range(8),
)
def test_secret_formats_are_checked(provider_class: type[BaseProvider], secret: str, is_good: bool) -> None:
    assert (build_provider(provider_class, FakeTransport()).webhook_secret_problem(secret) is None) == is_good


def test_the_verify_token_is_a_setting() -> None:
    ask = WebhookRequest("GET", f"{URL}?hub.mode=subscribe&hub.challenge=11&hub.verify_token=vt", [], b"")
    assert (
        build_provider(Pages, FakeTransport(), PAGES_WEBHOOK_VERIFY_TOKEN="vt")
        .receive_webhook(ask, ["s"])
        .response.body
        == b"11"
    )
    for environment in ({}, {"PAGES_WEBHOOK_VERIFY_TOKEN": "other"}):
        with pytest.raises(InvalidWebhookSignature):
            build_provider(Pages, FakeTransport(), **environment).receive_webhook(ask, ["s"])


@pytest.mark.parametrize("secret", ["", "whsec_", "not base64!", "whsec_é", "whsec_===="])
def test_a_malformed_standard_secret_verifies_nothing(secret: str) -> None:
    sample = BY_NAME["standard"]
    for signature in (b"v1,", b"v1,AAAA", b"", b","):
        request = WebhookRequest(
            "POST",
            URL,
            [
                ("webhook-id", b"m"),
                ("webhook-timestamp", str(int(NOW.timestamp())).encode()),
                ("webhook-signature", signature),
            ],
            sample.body,
        )
        with pytest.raises(InvalidWebhookSignature):
            build_provider(Custom, FakeTransport()).receive_webhook(request, [secret])
    # It does not affect a valid secret.
    request = sample.sign(sample.secret, sample.body, NOW)
    assert build_provider(Custom, FakeTransport()).receive_webhook(request, [secret, sample.secret]).events


@pytest.mark.parametrize("names", ["standard", "svix"])
@pytest.mark.parametrize("secret_prefix", ["", "whsec_", "v1,whsec_"])
def test_standard_webhooks_have_headers_and_secrets_of_either_name(names: str, secret_prefix: str) -> None:
    sample = BY_NAME[names]
    secret = secret_prefix + sample.secret.removeprefix("v1,").removeprefix("whsec_")
    custom = build_provider(Custom, FakeTransport())
    (event,) = custom.receive_webhook(sample.request, [secret]).events
    assert event.event_id == "msg_1"
    assert custom.webhook_secret_problem(secret) is None


@pytest.mark.parametrize("missing", ["svix-id", "svix-timestamp", "svix-signature"])
@pytest.mark.parametrize("instead", [(), ("webhook",)])
def test_the_headers_of_one_name_are_complete(missing: str, instead: tuple[str, ...]) -> None:
    sample = BY_NAME["svix"]
    value = dict(sample.request.headers)[missing]
    others = [(name, given) for name, given in sample.request.headers if name != missing]
    mixed = [(missing.replace("svix", name), value) for name in instead]
    if missing != "svix-signature" and instead:
        mixed.append((f"webhook-{missing.removeprefix('svix-')}", value))  # twice: one of them may have been checked
    request = replace(sample.request, headers=[*others, *mixed])
    with pytest.raises(InvalidWebhookSignature):
        build_provider(Custom, FakeTransport()).receive_webhook(request, [sample.secret])


@pytest.mark.parametrize(
    ("settings", "accepted"),
    [
        ("key=KY1,algorithm=HMAC_SHA256", True),
        ("algorithm=HMAC_SHA256", True),
        ("key=, algorithm=HMAC_SHA256", True),
        ("key=KY1,algorithm=HMAC_SHA1", False),
        ("key=KY1,algorithm=NONE", False),
        ("key=KY1", False),
        ("", False),
    ],
)
def test_twilio_names_the_algorithm_of_a_shared_key(settings: str, accepted: bool) -> None:
    sample = BY_NAME["twilio-sha256"]
    request = with_header(sample.request, "X-Twilio-Webhooks-Signature-Settings", settings.encode())
    assert accepts(sample.scheme, request, sample.secret) is accepted
    absent = replace(sample.request, headers=[pair for pair in sample.request.headers if "Settings" not in pair[0]])
    assert not accepts(sample.scheme, absent, sample.secret)


def test_webhooks_of_acuity_are_verified_with_the_api_key_of_the_integration() -> None:
    sample = BY_NAME["acuity"]
    acuity = build_provider(AcuityProvider, FakeTransport())
    (event,) = acuity.receive_webhook(sample.request, acuity.webhook_secrets(ApiKey("1001", "api-key"))).events
    assert (event.event_type, event.account_id) == ("appointment.rescheduled", None)
    with pytest.raises(InvalidWebhookSignature):
        acuity.receive_webhook(sample.request, acuity.webhook_secrets(ApiKey("api-key", "1001")))


def test_a_standard_secret_may_lack_prefix_or_padding() -> None:
    sample = BY_NAME["standard"]
    request = sample.sign(sample.secret, sample.body, NOW)
    assert (
        build_provider(Custom, FakeTransport()).receive_webhook(request, [sample.secret.removeprefix("whsec_")]).events
    )
    padded = "whsec_" + "YW5vdGhlciBrZXkgb2YgMjMgYnl0ZXM="
    request = sample.sign(padded, sample.body, NOW)
    assert build_provider(Custom, FakeTransport()).receive_webhook(request, [padded.rstrip("=")]).events


@pytest.mark.parametrize("key", ["", "x", "AAAA", "-----BEGIN PUBLIC KEY-----", "é"])
def test_a_malformed_sendgrid_key_verifies_nothing(key: str) -> None:
    sample = BY_NAME["sendgrid"]
    provider = build_provider(SendGridProvider, FakeTransport())
    with pytest.raises(InvalidWebhookSignature):
        provider.receive_webhook(sample.request, [key])
    request = sample.sign(sample.secret, sample.body, NOW)
    assert provider.receive_webhook(request, [key, sample.secret]).events


def test_every_scheme_is_in_the_table_of_the_docs() -> None:
    table = (Path(__file__).parents[4] / "docs" / "webhooks.md").read_text(encoding="utf-8")
    for sample in SAMPLES:
        for header in (sample.signature_header or "clientState", sample.timestamp_header or ""):
            assert header.replace("X-Twilio-Email-Event-Webhook-Timestamp", "…-Timestamp") in table


class Own(ApiKeyProvider):
    """A provider with a scheme of its own."""

    integration_type = "own"
    verify_url = "https://own.example/me"
    webhook_scheme = HmacScheme(
        "X-Own-Signature", read=lambda verified: ReceivedWebhook([WebhookEvent("1", "t", None, verified.request.body)])
    )


def test_a_custom_scheme_is_declared_by_its_data() -> None:
    request = post(b"any", {"X-Own-Signature": hex_hmac("s", b"any")})
    provider = build_provider(Own, FakeTransport(), OWN_WEBHOOK_SECRET="s")
    (event,) = provider.receive_webhook(request, provider.webhook_secrets(None)).events
    assert event.payload == b"any"
