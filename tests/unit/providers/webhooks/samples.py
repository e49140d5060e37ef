"""One genuine request of each scheme, signed as the provider documents it, without the server's code."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.built_in import built_in_class
from integration_server.providers.webhooks.acuity import ACUITY
from integration_server.providers.webhooks.dropbox import DROPBOX
from integration_server.providers.webhooks.github import GITHUB
from integration_server.providers.webhooks.google_channel import GOOGLE_CHANNEL
from integration_server.providers.webhooks.hubspot import HUBSPOT
from integration_server.providers.webhooks.meta import META
from integration_server.providers.webhooks.microsoft_graph import MICROSOFT_GRAPH
from integration_server.providers.webhooks.quickbooks import QUICKBOOKS
from integration_server.providers.webhooks.scheme import MalformedWebhook, WebhookKeys, WebhookScheme
from integration_server.providers.webhooks.sendgrid import SENDGRID
from integration_server.providers.webhooks.shopify import SHOPIFY
from integration_server.providers.webhooks.slack import SLACK
from integration_server.providers.webhooks.standard import STANDARD
from integration_server.providers.webhooks.stripe import STRIPE
from integration_server.providers.webhooks.twilio import TWILIO
from integration_server.providers.webhooks.zoom import ZOOM


def scheme_of(integration_type: str) -> WebhookScheme:
    """The scheme that a built-in declaration has."""
    scheme = built_in_class(integration_type).webhook_scheme
    assert isinstance(scheme, WebhookScheme)
    return scheme


SQUARE, XERO = scheme_of("square"), scheme_of("xero")

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
URL = "https://hooks.example/api/v1/webhooks/acme/e1"

Headers = Sequence[tuple[str, bytes]]


def post(body: bytes, headers: Mapping[str, str], url: str = URL, method: str = "POST") -> WebhookRequest:
    return WebhookRequest(method, url, [(name, value.encode("latin-1")) for name, value in headers.items()], body)


def received(
    scheme: WebhookScheme,
    request: WebhookRequest,
    *secrets: str,
    now: datetime = NOW,
    verify_tokens: Sequence[str] = (),
) -> ReceivedWebhook:
    return scheme.receive(request, WebhookKeys(secrets, verify_tokens), now)


def accepts(scheme: WebhookScheme, request: WebhookRequest, *secrets: str, now: datetime = NOW) -> bool:
    """Whether a request is verified, even if its body is malformed."""
    try:
        received(scheme, request, *secrets, now=now)
    except InvalidWebhookSignature:
        return False
    except MalformedWebhook:
        return True
    return True


def with_headers(request: WebhookRequest, change: Callable[[list[tuple[str, bytes]]], Headers]) -> WebhookRequest:
    return replace(request, headers=change(list(request.headers)))


def with_header(request: WebhookRequest, name: str, value: bytes) -> WebhookRequest:
    return with_headers(request, lambda headers: [(key, value if key == name else old) for key, old in headers])


def hex_hmac(secret: str, message: bytes, algorithm: str = "sha256") -> str:
    return hmac.new(secret.encode(), message, algorithm).hexdigest()


def base64_hmac(secret: str, message: bytes, algorithm: str = "sha256") -> str:
    return base64.b64encode(hmac.new(secret.encode(), message, algorithm).digest()).decode()


def seconds(at: datetime) -> str:
    return str(int(at.timestamp()))


@dataclass(frozen=True)
class Sample:
    """A scheme with a genuine request. `covered` is the part of the body that is signed or is a secret."""

    name: str
    scheme: WebhookScheme
    secret: str
    other_secret: str
    sign: Callable[[str, bytes, datetime], WebhookRequest]
    body: bytes
    signature_header: str
    timestamp_header: str | None = None
    checks_timestamp: bool = False
    signs_url: bool = False
    signs_body: bool = True
    covered: bytes | None = None
    lists_signatures: bool = False

    @cached_property
    def request(self) -> WebhookRequest:
        return self.sign(self.secret, self.body, NOW)


def _stripe(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    signature = hex_hmac(secret, seconds(at).encode() + b"." + body)
    return post(body, {"Stripe-Signature": f"t={seconds(at)},v1={signature}"})


def _square(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    return post(body, {"x-square-hmacsha256-signature": base64_hmac(secret, URL.encode() + body)})


def _shopify(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    headers = {
        "X-Shopify-Topic": "orders/create",
        "X-Shopify-Shop-Domain": "ada.myshopify.com",
        "X-Shopify-Webhook-Id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
    }
    return post(body, {"X-Shopify-Hmac-Sha256": base64_hmac(secret, body), **headers})


def _github(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    headers = {"X-GitHub-Event": "push", "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"}
    return post(body, {"X-Hub-Signature-256": f"sha256={hex_hmac(secret, body)}", **headers})


def _meta(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    return post(body, {"X-Hub-Signature-256": f"sha256={hex_hmac(secret, body)}"})


def signed_request(secret: str, value: object) -> bytes:
    def encoded(octets: bytes) -> str:
        return base64.urlsafe_b64encode(octets).decode().rstrip("=")

    payload = encoded(json.dumps(value).encode())
    signature = encoded(hmac.new(secret.encode(), payload.encode(), "sha256").digest())
    return f"signed_request={signature}.{payload}".encode()


def _slack(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    signature = hex_hmac(secret, f"v0:{seconds(at)}:".encode() + body)
    return post(body, {"X-Slack-Signature": f"v0={signature}", "X-Slack-Request-Timestamp": seconds(at)})


def _zoom(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    signature = hex_hmac(secret, f"v0:{seconds(at)}:".encode() + body)
    return post(body, {"x-zm-signature": f"v0={signature}", "x-zm-request-timestamp": seconds(at)})


def _hubspot(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    timestamp = f"{seconds(at)}000"
    signature = base64_hmac(secret, b"POST" + URL.encode() + body + timestamp.encode())
    return post(body, {"X-HubSpot-Signature-v3": signature, "X-HubSpot-Request-Timestamp": timestamp})


def _dropbox(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    return post(body, {"X-Dropbox-Signature": hex_hmac(secret, body)})


def _quickbooks(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    return post(body, {"intuit-signature": base64_hmac(secret, body)})


def _xero(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    return post(body, {"x-xero-signature": base64_hmac(secret, body)})


def twilio_message(url: str, body: bytes) -> str:
    """The message that Twilio signs for a form without percent-encoding."""
    pairs = {tuple(part.partition("=")[::2]) for part in body.decode().split("&")}
    return url + "".join(name + value for name, value in sorted(pairs))


def _twilio(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    signature = base64_hmac(secret, twilio_message(URL, body).encode(), "sha1")
    return post(body, {"X-Twilio-Signature": signature, "Content-Type": "application/x-www-form-urlencoded"})


TWILIO_JSON = b'[{"id":"EZ1","type":"com.twilio.messaging.message.sent","data":{"accountSid":"AC1"}}]'


def _twilio_json(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    url = f"{URL}?bodySHA256={hashlib.sha256(body).hexdigest()}"
    headers = {"X-Twilio-Signature": base64_hmac(secret, url.encode(), "sha1"), "Content-Type": "application/json"}
    return post(body, headers, url)


_P256 = [ec.derive_private_key(number, ec.SECP256R1()) for number in (11, 12)]
SENDGRID_KEYS = {
    base64.b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode(): key
    for key in _P256
}


def _sendgrid(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    prefix = "X-Twilio-Email-Event-Webhook"
    # An attacker without the private key has another one.
    key = SENDGRID_KEYS.get(secret, _P256[1])
    signature = base64.b64encode(
        key.sign(seconds(at).encode() + body, ec.ECDSA(SHA256(), deterministic_signing=True))
    ).decode()
    return post(body, {f"{prefix}-Signature": signature, f"{prefix}-Timestamp": seconds(at)})


def _google(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    headers = {
        "X-Goog-Channel-ID": "4ba78bf0-6a47-11e2-bcfd-0800200c9a66",
        "X-Goog-Message-Number": "10",
        "X-Goog-Resource-ID": "ret08u3rv24htgh289g",
        "X-Goog-Resource-State": "exists",
        "X-Goog-Resource-URI": "https://www.googleapis.com/calendar/v3/calendars/primary/events",
    }
    return post(body, {"X-Goog-Channel-Token": secret, **headers})


def _graph(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    return post(body.replace(b"our-client-state", secret.encode()), {})


def _acuity(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    headers = {"X-Acuity-Signature": base64_hmac(secret, body), "Content-Type": "application/x-www-form-urlencoded"}
    return post(body, headers)


def _twilio_sha256(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    headers = {
        "X-Twilio-Signature": base64_hmac(secret, twilio_message(URL, body).encode()),
        "X-Twilio-Webhooks-Signature-Settings": "key=KY1,algorithm=HMAC_SHA256",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    return post(body, headers)


def _svix(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    request = _standard(secret.removeprefix("v1,"), body, at)
    return with_headers(
        request, lambda headers: [(name.replace("webhook-", "svix-"), value) for name, value in headers]
    )


def _standard(secret: str, body: bytes, at: datetime) -> WebhookRequest:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    message = f"msg_1.{seconds(at)}.".encode() + body
    signature = base64.b64encode(hmac.new(key, message, "sha256").digest()).decode()
    return post(
        body,
        {"webhook-id": "msg_1", "webhook-timestamp": seconds(at), "webhook-signature": f"v1,{signature}"},
    )


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


GRAPH_BODY = _json(
    {
        "value": [
            {
                "subscriptionId": "s1",
                "clientState": "our-client-state",
                "changeType": "created",
                "resource": "Users/u1/Messages/m1",
                "tenantId": "t1",
                "resourceData": {"id": "m1", "@odata.etag": 'W/"1"'},
            }
        ]
    }
)

SAMPLES = (
    Sample(
        "stripe",
        STRIPE,
        "whsec_first",
        "whsec_other",
        _stripe,
        _json({"id": "evt_1", "type": "charge.succeeded", "account": "acct_1", "data": {"object": {"name": "Zoë"}}}),
        "Stripe-Signature",
        checks_timestamp=True,
        lists_signatures=True,
    ),
    Sample(
        "square",
        SQUARE,
        "signature-key",
        "other-key",
        _square,
        _json({"merchant_id": "M1", "type": "payment.created", "event_id": "ev1", "data": {"type": "payment"}}),
        "x-square-hmacsha256-signature",
        signs_url=True,
    ),
    Sample(
        "shopify",
        SHOPIFY,
        "client-secret",
        "other-secret",
        _shopify,
        _json({"id": 820982911946154508, "total_price": "403.00"}),
        "X-Shopify-Hmac-Sha256",
    ),
    Sample(
        "github",
        GITHUB,
        "It's a Secret to Everybody",
        "It's another",
        _github,
        _json({"ref": "refs/heads/main", "sender": {"id": 1, "login": "ada"}}),
        "X-Hub-Signature-256",
    ),
    Sample(
        "slack",
        SLACK,
        "8f742231b10e8888abcd99yyyzzz85a5",
        "other",
        _slack,
        _json(
            {"type": "event_callback", "event_id": "Ev1", "team_id": "T1", "event": {"type": "message", "text": "hi"}}
        ),
        "X-Slack-Signature",
        timestamp_header="X-Slack-Request-Timestamp",
        checks_timestamp=True,
    ),
    Sample(
        "zoom",
        ZOOM,
        "secret-token",
        "other-token",
        _zoom,
        _json(
            {"event": "meeting.started", "event_ts": 1, "payload": {"account_id": "A1", "object": {"host_id": "u1"}}}
        ),
        "x-zm-signature",
        timestamp_header="x-zm-request-timestamp",
        checks_timestamp=True,
    ),
    Sample(
        "hubspot",
        HUBSPOT,
        "client-secret",
        "other-secret",
        _hubspot,
        _json([{"eventId": 1, "portalId": 62515, "subscriptionType": "contact.creation", "attemptNumber": 0}]),
        "X-HubSpot-Signature-v3",
        timestamp_header="X-HubSpot-Request-Timestamp",
        checks_timestamp=True,
        signs_url=True,
    ),
    Sample(
        "dropbox",
        DROPBOX,
        "app-secret",
        "other-secret",
        _dropbox,
        _json({"list_folder": {"accounts": ["dbid:AAH4f99"]}, "delta": {"users": [12345678]}}),
        "X-Dropbox-Signature",
    ),
    Sample(
        "quickbooks",
        QUICKBOOKS,
        "verifier-token",
        "other-token",
        _quickbooks,
        _json([{"id": "88cd52aa", "type": "qbo.invoice.created.v1", "intuitaccountid": "310687", "data": {}}]),
        "intuit-signature",
    ),
    Sample(
        "xero",
        XERO,
        "webhook-key",
        "other-key",
        _xero,
        _json({"events": [{"resourceId": "r1", "eventCategory": "INVOICE", "eventType": "UPDATE", "tenantId": "t1"}]}),
        "x-xero-signature",
    ),
    Sample(
        "meta",
        META,
        "app-secret",
        "other-secret",
        _meta,
        _json({"object": "page", "entry": [{"id": "1", "time": 2, "changes": [{"field": "feed", "value": {}}]}]}),
        "X-Hub-Signature-256",
    ),
    Sample(
        "twilio",
        TWILIO,
        "auth-token",
        "other-token",
        _twilio,
        b"MessageSid=SM1&AccountSid=AC1&MessageStatus=delivered",
        "X-Twilio-Signature",
        signs_url=True,
    ),
    Sample(
        "twilio-json",
        TWILIO,
        "auth-token",
        "other-token",
        _twilio_json,
        TWILIO_JSON,
        "X-Twilio-Signature",
        signs_url=True,
    ),
    Sample(
        "twilio-sha256",
        TWILIO,
        "shared-key",
        "other-key",
        _twilio_sha256,
        b"MessageSid=SM1&AccountSid=AC1&MessageStatus=delivered",
        "X-Twilio-Signature",
        signs_url=True,
    ),
    Sample(
        "acuity",
        ACUITY,
        "api-key",
        "other-key",
        _acuity,
        b"action=appointment.rescheduled&id=1&calendarID=2&appointmentTypeID=3",
        "X-Acuity-Signature",
    ),
    Sample(
        "svix",
        STANDARD,
        "v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "v1,whsec_" + base64.b64encode(b"another key of 24 bytes.").decode(),
        _svix,
        _json({"type": "user.created", "data": {"id": 1}}),
        "svix-signature",
        timestamp_header="svix-timestamp",
        checks_timestamp=True,
        lists_signatures=True,
    ),
    Sample(
        "sendgrid",
        SENDGRID,
        next(iter(SENDGRID_KEYS)),
        next(reversed(SENDGRID_KEYS)),
        _sendgrid,
        _json([{"email": "ada@example.com", "event": "dropped", "sg_event_id": "ZHJvcC0x", "timestamp": 1600112492}]),
        "X-Twilio-Email-Event-Webhook-Signature",
        timestamp_header="X-Twilio-Email-Event-Webhook-Timestamp",
    ),
    Sample(
        "google-channel",
        GOOGLE_CHANNEL,
        "channel-token",
        "other-token",
        _google,
        b"",
        "X-Goog-Channel-Token",
        signs_body=False,
    ),
    Sample(
        "microsoft-graph",
        MICROSOFT_GRAPH,
        "our-client-state",
        "other-client-state",
        _graph,
        GRAPH_BODY,
        "",
        signs_body=False,
        covered=b"our-client-state",
    ),
    Sample(
        "standard",
        STANDARD,
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_" + base64.b64encode(b"another key of 24 bytes.").decode(),
        _standard,
        _json({"type": "contact.created", "timestamp": "2026-11-22T12:00:00Z", "data": {"id": 1}}),
        "webhook-signature",
        timestamp_header="webhook-timestamp",
        checks_timestamp=True,
        lists_signatures=True,
    ),
)
