"""Signatures that the providers have published, in their documentation or their own software's tests.

None with its secret was found for Stripe, Shopify, Dropbox, QuickBooks, Xero, and Meta's events: their documents show
placeholders and their SDKs sign with themselves. Google's channels and Microsoft Graph sign nothing. Those have our own
in test_forgeries.py only, signed apart from the server's code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from integration_server.domain.webhooks import WebhookRequest
from integration_server.providers.webhooks.github import GITHUB
from integration_server.providers.webhooks.hubspot import HUBSPOT
from integration_server.providers.webhooks.meta import META
from integration_server.providers.webhooks.scheme import WebhookScheme
from integration_server.providers.webhooks.sendgrid import SENDGRID
from integration_server.providers.webhooks.slack import SLACK
from integration_server.providers.webhooks.standard import STANDARD
from integration_server.providers.webhooks.twilio import TWILIO
from integration_server.providers.webhooks.zoom import ZOOM
from tests.unit.providers.webhooks.samples import NOW, SQUARE, accepts, hex_hmac, post, received, seconds, with_header


@dataclass(frozen=True)
class Vector:
    """A request with its published signature."""

    source: str
    scheme: WebhookScheme
    secret: str
    body: bytes
    headers: Mapping[str, str]
    url: str = "https://hooks.example/"
    at: datetime = NOW

    @property
    def request(self) -> WebhookRequest:
        return post(self.body, self.headers, self.url)


P256 = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"  # the prefix of every public key of the curve
SENDGRID_BODY = (
    b'[{"email":"hello@world.com","event":"dropped","reason":"Bounced Address",'
    b'"sg_event_id":"ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA",'
    b'"sg_message_id":"LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0",'
    b'"smtp-id":"<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>","timestamp":1600112492}]\r\n'
)
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
SQUARE_BODY = (
    b'{"merchant_id":"MLEFBHHSJGVHD","type":"webhooks.test_notification",'
    b'"event_id":"ac3ac95b-f97d-458c-a6e6-18981597e05f","created_at":"2022-07-13T20:30:59.037339943Z",'
    b'"data":{"type":"webhooks","id":"bc368e64-01aa-407e-b46e-3231809b1129"}}'
)
TWILIO_URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
TWILIO_BODY = b"CallSid=CA1234567890ABCDE&Digits=1234&From=%2B14158675309&To=%2B18005551212&Caller=%2B14158675309"
TWILIO_DIGEST = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"


def _twilio(
    description: str, signature: str, *, url: str = TWILIO_URL, body: bytes = TWILIO_BODY, form: bool = True
) -> Vector:
    media_type = "application/x-www-form-urlencoded" if form else "application/json"
    headers = {"X-Twilio-Signature": signature, "Content-Type": media_type}
    return Vector(f"twilio-python, test_request_validator.py: {description}", TWILIO, "12345", body, headers, url)


VECTORS = [
    Vector(
        "docs.github.com, Validating webhook deliveries",
        GITHUB,
        "It's a Secret to Everybody",
        b"Hello, World!",
        {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
    ),
    Vector(
        "docs.slack.dev, Verifying requests from Slack",
        SLACK,
        "8f742231b10e8888abcd99yyyzzz85a5",
        SLACK_BODY,
        {
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
            "X-Slack-Request-Timestamp": "1531420618",
        },
        at=datetime.fromtimestamp(1531420618, UTC),
    ),
    Vector(
        "square-python-sdk, test_webhooks_helper.py",
        SQUARE,
        "Ibxx_5AKakO-3qeNVR61Dw",
        SQUARE_BODY,
        {"x-square-hmacsha256-signature": "GF4YkrJgGBDZ9NIYbNXBnMzqb2HoL4RW/S6vkZ9/2N4="},
        "https://webhook.site/679a4f3a-dcfa-49ee-bac5-9d0edad886b9",
    ),
    Vector(
        "square-python-sdk, test_webhooks_helper.py: escaped",
        SQUARE,
        "signature-key",
        b'{"data":{"type":"webhooks","id":">id<"}}',
        {"x-square-hmacsha256-signature": "Cxt7+aTi4rKgcA0bC4g9EHdVtLSDWdqccmL5MvihU4U="},
        "https://webhook.site/webhooks",
    ),
    Vector(
        "hubspot-api-python, tests/spec/utils/test_signature.py",
        HUBSPOT,
        "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy",
        b"{'example_field':'example_value'}",
        {
            "X-HubSpot-Signature-v3": "HPW73RUtKmcYoEDADG0s6MmGFWUzWJKAW07r8RDgcQw=",
            "X-HubSpot-Request-Timestamp": "15000000",
        },
        "https://www.example.com/webhook_uri",
        datetime.fromtimestamp(15_000, UTC),
    ),
    _twilio("a form", "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
    _twilio(
        "a field twice",
        "IK+Dwps556ElfBT0I3Rgjkr1wJU=",
        body=b"Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234",
    ),
    _twilio(
        "signed without its port",
        "RSOYDt4T1cUTdK1PDd93/VVr8B8=",
        url=TWILIO_URL.replace(".com", ".com:1234"),
    ),
    _twilio(
        "signed with its port",
        "Zmvh+3yNM1Phv2jhDCwEM3q5ebU=",
        url=TWILIO_URL.replace(".com", ".com:1234").replace("https", "http"),
    ),
    _twilio("signed with port 443", "kvajT1Ptam85bY51eRf/AJRuM3w="),
    _twilio("signed with port 80", "0ZXoZLH/DfblKGATFgpif+LLRf4=", url=TWILIO_URL.replace("https", "http")),
    _twilio(
        "a body of JSON",
        "a9nBmqA0ju/hNViExpshrM61xv4=",
        url=f"{TWILIO_URL}&bodySHA256={TWILIO_DIGEST}",
        body=b'{"property": "value", "boolean": true}',
        form=False,
    ),
    Vector(
        "sendgrid-python, test_eventwebhook.py",
        SENDGRID,
        f"{P256}83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglSI8eNEc6wEA3F+g==",
        SENDGRID_BODY,
        {
            "X-Twilio-Email-Event-Webhook-Signature": "MEUCIGHQVtGj+Y3LkG9fLcxf3qfI10QysgDWmMOVmxG0u6ZUAiEAyBiXDWzM+uOe5W0JuG+luQAbPIqHh89M15TluLtEZtM=",  # noqa: E501
            "X-Twilio-Email-Event-Webhook-Timestamp": "1600112502",
        },
        at=datetime.fromtimestamp(1600112502, UTC),
    ),
    Vector(
        "Standard Webhooks, its libraries' reference",
        STANDARD,
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        b'{"test": 2432232314}',
        {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        at=datetime.fromtimestamp(1614265330, UTC),
    ),
]

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.source)


@each_vector
def test_the_published_signature_is_accepted(vector: Vector) -> None:
    assert accepts(vector.scheme, vector.request, vector.secret, now=vector.at)
    assert accepts(vector.scheme, vector.request, "another", vector.secret, now=vector.at)


@each_vector
def test_a_published_signature_is_bound_to_body_and_secret(vector: Vector) -> None:
    altered = replace(vector.request, body=vector.body[:-1] + b"~")
    assert not accepts(vector.scheme, altered, vector.secret, now=vector.at)
    assert not accepts(vector.scheme, vector.request, vector.secret + "x", now=vector.at)
    for header, value in vector.headers.items():
        if "ignature" in header:
            other = with_header(vector.request, header, value.replace(value[9], "0").encode())
            assert not accepts(vector.scheme, other, vector.secret, now=vector.at)


def test_a_reformatted_published_body_is_rejected() -> None:
    """From the negative tests of square-python-sdk."""
    (vector, _) = [vector for vector in VECTORS if vector.scheme is SQUARE]
    formatted = SQUARE_BODY.replace(b",", b",\n  ")
    assert not accepts(SQUARE, replace(vector.request, body=formatted), vector.secret)


def test_another_published_key_is_rejected() -> None:
    """sendgrid-python, test_eventwebhook.py: test_verify_bad_key, test_verify_bad_signature."""
    (vector,) = [vector for vector in VECTORS if vector.scheme is SENDGRID]
    other = f"{P256}qTxd43gyp8IOEto2LdIfjRQrIbsd4SXZkLW6jDutdhXSJCWHw8REntlo7aNDthvj+y7GjUuFDb/R1NGe1OPzpA=="
    assert not accepts(SENDGRID, vector.request, other)
    signature = b"MEUCIQCtIHJeH93Y+qpYeWrySphQgpNGNr/U+UyUlBkU6n7RAwIgJTz2C+8a8xonZGi6BpSzoQsbVRamr2nlxFDWYNH3j/0="
    altered = with_header(vector.request, "X-Twilio-Email-Event-Webhook-Signature", signature)
    assert not accepts(SENDGRID, altered, vector.secret)


@pytest.mark.parametrize("timestamped", ["slack", "hubspot", "standard"])
def test_a_published_signature_is_too_old_five_minutes_later(timestamped: str) -> None:
    (vector,) = [vector for vector in VECTORS if timestamped in vector.source.lower().replace(" ", "")]
    for later, accepted in ((299, True), (301, False), (-299, True), (-301, False)):
        now = vector.at + timedelta(seconds=later)
        assert accepts(vector.scheme, vector.request, vector.secret, now=now) is accepted


def test_published_signed_request_of_meta() -> None:
    """Facebook's documentation of signed requests, with the secret "secret"; its payload names no user."""
    signed = (
        b"signed_request=vlXgu64BQGFSQrY0ZcJBZASMvYvTHu9GQ0YM9rjPSso"
        b".eyJhbGdvcml0aG0iOiJITUFDLVNIQTI1NiIsIjAiOiJwYXlsb2FkIn0"
    )
    (event,) = received(META, post(signed, {}), "secret").events
    assert event.payload == signed
    assert (event.account_id, event.reports_grant_end) == (None, False)
    assert not accepts(META, post(signed, {}), "Secret")
    assert not accepts(META, post(signed.replace(b".eyJh", b".eyJi"), {}), "secret")
    assert not accepts(META, post(signed.replace(b"=v", b"=w"), {}), "secret")


def test_zoom_challenge_of_another_implementation() -> None:
    """The token is from developers.zoom.us, which omits the secret; secret and digest are from Elastic Beats."""
    body = b'{"payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"},"event":"endpoint.url_validation"}'
    signature = hex_hmac("secretValueTest", f"v0:{seconds(NOW)}:".encode() + body)
    request = post(body, {"x-zm-signature": f"v0={signature}", "x-zm-request-timestamp": seconds(NOW)})
    assert received(ZOOM, request, "secretValueTest").response.body == (
        b'{"plainToken":"qgg8vlvZRS6UYooatFL8Aw",'
        b'"encryptedToken":"70c1f2e2e6ca2d39297490d1f9142c7d701415ea8e6151f6562a08fa657a40ff"}'
    )
