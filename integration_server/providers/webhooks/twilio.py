"""Twilio: `X-Twilio-Signature`. The URL and the sorted fields of a form are signed.

- HMAC-SHA1 in base64, with the account's auth token, of the URL and, for a form, its fields sorted by name, with names
  and values concatenated, one of equal fields; for another body, the query's `bodySHA256` is its SHA-256 in hex, and
  the URL alone is signed: twilio.com/docs/usage/security, and the SDK's `RequestValidator` [H].
- A webhook rule replaces the auth token by a shared key and the algorithm by HMAC-SHA256, announced by
  `X-Twilio-Webhooks-Signature-Settings: key=…,algorithm=HMAC_SHA256` (beta since September 2026); the signed text is
  the same: twilio.com/docs/usage/webhooks/webhook-settings, and the Node SDK [H 2026-11-29]. The shared key is set as
  the webhook secret.
- So the border between a field's name and its value is not signed. Twilio's scheme does not offer more.
- The URL is signed with or without its port; both are tried [H].
- There is no timestamp, and no id: the digest of what is signed is the id. The account is `AccountSid` [H].
- Calls of Event Streams are lists of CloudEvents [M].
- No event reports the end of our access, a new auth token.
"""

import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.webhooks.hmac_scheme import base64_text
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    VerifiedRequest,
    digest,
    encode_text,
    first_elements,
    query_of,
    read_form,
    read_json,
    received_events,
)
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys, WebhookScheme
from integration_server.providers.webhooks.verification import (
    constant_time_equal,
    find_signing_secret,
    header_values,
    single_header,
)

_URL = re.compile(r"(?P<scheme>https?)(?P<host>://[^/?#]*?)(?::[0-9]+)?(?P<rest>[/?#].*)?")
_SETTINGS_HEADER = "X-Twilio-Webhooks-Signature-Settings"
_ALGORITHMS = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}
_STATUSES = {"MessageStatus": "message", "SmsStatus": "message", "CallStatus": "call"}

Fields = Sequence[tuple[str, str]]


class TwilioScheme(WebhookScheme):
    """Verifies forms, and bodies whose digest is in the URL."""

    secret_source = SecretSource.API_SECRET

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        if request.method not in {"GET", "POST"}:
            raise InvalidWebhookSignature
        signature = single_header(request, "X-Twilio-Signature")
        form = _form(request, VerifiedRequest(request, "", now).header("Content-Type") or "")
        expected = query_of(request).get("bodySHA256", "")
        if form is None and not constant_time_equal(sha256(request.body).hexdigest(), expected):
            raise InvalidWebhookSignature
        fields = "".join(name + value for name, value in sorted(set(form or ())))
        messages = [f"{url}{fields}" for url in _with_and_without_port(request.url)]
        candidates = [(secret, message) for message in messages for secret in keys.secrets]
        algorithm = _algorithm(request)
        find_signing_secret(candidates, [signature], lambda candidate: _sign(candidate, algorithm))
        if form is not None:
            return ReceivedWebhook([_form_event(request, form)])
        body = read_json(request)
        items = first_elements(body) if isinstance(body.value, list) else [body]
        return received_events(items, id_path="id", type_path="type", account_path="data.accountSid")


def _form(request: WebhookRequest, content_type: str) -> Fields | None:
    """The fields of the body; None if the body is not a form, and so not part of the signed text."""
    if not request.body and "bodySHA256" not in query_of(request):
        return ()
    if content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        return None
    form = read_form(request.body)
    if form is None:
        raise InvalidWebhookSignature
    return form


def _with_and_without_port(url: str) -> Iterator[str]:
    yield url
    parts = _URL.fullmatch(url)
    if parts is not None:
        port = ":443" if parts["scheme"] == "https" else ":80"
        for middle in ("", port):
            yield f"{parts['scheme']}{parts['host']}{middle}{parts['rest'] or ''}"


def _algorithm(request: WebhookRequest) -> str:
    """The hash function that the request names. The header is not signed, but no choice of it forges a signature."""
    if not header_values(request, _SETTINGS_HEADER):
        return "sha1"
    settings = dict(part.strip().partition("=")[::2] for part in single_header(request, _SETTINGS_HEADER).split(","))
    algorithm = _ALGORITHMS.get(settings.get("algorithm", "").strip(' "').upper())
    if algorithm is None:
        raise InvalidWebhookSignature
    return algorithm


def _sign(candidate: tuple[str, str], algorithm: str) -> str:
    # SHA-1 is Twilio's choice. Its collisions do not break its HMAC (RFC 6194 §3.3).
    secret, message = candidate
    return base64_text(hmac.digest(secret.encode(), encode_text(message), algorithm))


def _form_event(request: WebhookRequest, form: Fields) -> WebhookEvent:
    query = request.url.partition("?")[2]
    fields = dict([*(read_form(query) or ()), *form])
    payload = request.body or encode_text(query)
    return WebhookEvent(digest(request.url, payload), _type(fields), text_at(fields, "AccountSid"), payload)


def _type(fields: Mapping[str, str]) -> str:
    for name, kind in _STATUSES.items():
        if name in fields:
            return f"{kind}.{text_at(fields, name) or UNKNOWN}"
    return UNKNOWN


TWILIO = TwilioScheme()
