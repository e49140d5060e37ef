"""Twilio: `X-Twilio-Signature`.

- HMAC-SHA1 in base64, with the account's auth token, of the URL and, for a form, its fields sorted by name, names and
  values run together, one of equal values; of another body, the query's `bodySHA256` says the SHA-256 in hex, and the
  URL alone is signed: twilio.com/docs/usage/security, and the SDK's `RequestValidator` [H].
- So where a field's name ends and its value begins is not signed: Twilio's scheme has no more to give.
- The URL is signed with its port or without; both are tried [H].
- There is no timestamp, and no id: the digest of what is signed is one. The account is `AccountSid` [H].
- Calls of Event Streams are lists of CloudEvents [M].
- What ends our access, a new auth token, is told by no event.
"""

import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.hmac_scheme import base64_text
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    as_objects,
    as_payload,
    build_event,
    digest,
    form_of,
    header_text,
    query_of,
    read_form,
    read_json,
)
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys
from integration_server.providers.webhooks.verification import constant_time_equal, find_signing_secret, single_header

_URL = re.compile(r"(?P<scheme>https?)(?P<host>://[^/?#]*?)(?::[0-9]+)?(?P<rest>[/?#].*)?")
_STATUSES = {"MessageStatus": "message", "SmsStatus": "message", "CallStatus": "call"}

Fields = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class TwilioScheme:
    """Forms, and bodies that the URL has the digest of."""

    secret_source: SecretSource = SecretSource.API_SECRET

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read."""
        if request.method not in {"GET", "POST"}:
            raise InvalidWebhookSignature
        given = single_header(request, "X-Twilio-Signature")
        form = _form(request)
        if form is None:
            _require_body_digest(request)
        fields = "".join(name + value for name, value in sorted(set(form or ())))
        for url in _with_and_without_port(request.url):
            if _is_signed(keys, f"{url}{fields}", given):
                return ReceivedWebhook(list(_events(request, form)))
        raise InvalidWebhookSignature


def _form(request: WebhookRequest) -> Fields | None:
    """The fields of the body; None where it is none, or should not be, and so is not in the signature."""
    if not request.body and "bodySHA256" not in query_of(request):
        return ()
    media_type = (header_text(request, "Content-Type") or "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        return None
    form = form_of(request.body)
    if form is None:
        raise InvalidWebhookSignature
    return form


def _require_body_digest(request: WebhookRequest) -> None:
    expected = query_of(request).get("bodySHA256")
    if not expected or not constant_time_equal(sha256(request.body).hexdigest(), expected):
        raise InvalidWebhookSignature


def _with_and_without_port(url: str) -> Iterator[str]:
    yield url
    parts = _URL.fullmatch(url)
    if parts is not None:
        port = "443" if parts["scheme"] == "https" else "80"
        for middle in ("", f":{port}"):
            other = f"{parts['scheme']}{parts['host']}{middle}{parts['rest'] or ''}"
            if other != url:
                yield other


def _is_signed(keys: WebhookKeys, message: str, given: str) -> bool:
    try:
        find_signing_secret(keys.secrets, [given], lambda secret: _hmac_sha1(secret, message))
    except InvalidWebhookSignature:
        return False
    return True


def _hmac_sha1(secret: str, message: str) -> str:
    # Twilio's choice. Collisions, which SHA-1 has, do not break its HMAC (RFC 6194 §3.3).
    return base64_text(hmac.digest(secret.encode(), message.encode(), "sha1"))


def _events(request: WebhookRequest, form: Fields | None) -> Iterator[WebhookEvent]:
    if form is None:
        body = read_json(request.body)
        for item in as_objects(body if isinstance(body, list) else [body]):
            yield _event_of_stream(item)
        return
    fields = dict([*(read_form(request.url.partition("?")[2]) or ()), *form])
    payload = as_payload(fields)
    yield WebhookEvent(digest(request.url, payload), _type(fields), text_at(fields, "AccountSid"), payload)


def _event_of_stream(fields: Mapping[str, Any]) -> WebhookEvent:
    return build_event(fields, as_payload(fields), id_path="id", type_path="type", account_path="data.accountSid")


def _type(fields: Mapping[str, str]) -> str:
    for name, kind in _STATUSES.items():
        if name in fields:
            return f"{kind}.{text_at(fields, name) or UNKNOWN}"
    return UNKNOWN


TWILIO = TwilioScheme()
