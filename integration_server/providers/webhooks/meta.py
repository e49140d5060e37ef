"""Facebook and Instagram: `X-Hub-Signature-256`, `hub.challenge` and `signed_request`.

- HMAC-SHA256 in hex of the body, with the app's secret, after "sha256=":
  developers.facebook.com/docs/graph-api/webhooks/getting-started [K].
- An address is verified by a GET with `hub.mode=subscribe`, a `hub.challenge` to repeat, and the `hub.verify_token`
  that was entered together with the address [K]: the setting `<TYPE>_WEBHOOK_VERIFY_TOKEN`.
- There is no timestamp.
- The body has entries, and an entry has changes or messages, none with an id [K]: the id is the digest of the change
  with its entry's id and time. The account is the entry's: a page, a user, or an Instagram account.
- The deauthorize callback is a form with `signed_request`: signature and JSON in base64url, the former being the
  HMAC-SHA256 of the latter as written, with the app's secret; it names `user_id` [K]. The data deletion callback has
  the same form and expects another response, so it must not be configured with this address.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from integration_server.domain.webhooks import (
    MAX_EVENTS,
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
)
from integration_server.providers.lenient_values import text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, hmac_sha256
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    EventBatch,
    VerifiedRequest,
    as_objects,
    as_payload,
    build_event,
    digest,
    query_of,
    read_form,
    read_object,
    text_handshake,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook, SecretSource, WebhookKeys
from integration_server.providers.webhooks.verification import constant_time_equal, find_signing_secret, require_post

_BASE64URL = re.compile("[A-Za-z0-9_-]+={0,2}")
_LISTS = ("changes", "messaging", "standby")
_MAX_SHARED_BYTES = 4096  # of an entry without its lists, which each of its events repeats; it has an id and a time

_Part = tuple[Mapping[str, Any], str, Mapping[str, Any]]
"""An entry without its lists, the name of a list, and one item of it."""


class MetaScheme(HmacScheme):
    """Also responds to the challenge, and reads the deauthorize callback."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        if request.method == "GET":
            return _challenge(query_of(request), keys)
        if request.body.startswith(b"signed_request="):
            require_post(request)
            return ReceivedWebhook([_deauthorization(request.body, keys)])
        return super().receive(request, keys, now)


def _challenge(query: Mapping[str, str], keys: WebhookKeys) -> ReceivedWebhook:
    challenge = text_at([query.get("hub.challenge")], "0")
    token = query.get("hub.verify_token", "")
    is_known = any(constant_time_equal(expected, token) for expected in keys.verify_tokens)
    if not is_known or query.get("hub.mode") != "subscribe" or challenge is None:
        raise InvalidWebhookSignature
    return text_handshake(challenge)


def _deauthorization(body: bytes, keys: WebhookKeys) -> WebhookEvent:
    fields = read_form(body) or ()
    signature, dot, encoded_payload = fields[0][1].partition(".") if len(fields) == 1 else ("", "", "")
    # Python's decoder skips other characters, so that a webhook's signed JSON could be read as a payload.
    if not dot or not signature.isascii() or not _BASE64URL.fullmatch(encoded_payload):
        raise InvalidWebhookSignature

    def sign(secret: str) -> str:
        return urlsafe_b64encode(hmac_sha256(secret.encode(), encoded_payload.encode())).decode().rstrip("=")

    find_signing_secret(keys.secrets, [signature], sign)
    try:
        payload = urlsafe_b64decode(encoded_payload + "=" * (-len(encoded_payload) % 4))
    except ValueError:
        raise MalformedWebhook from None
    request = read_object(payload)
    if str(request.get("algorithm")).upper() != "HMAC-SHA256":
        raise InvalidWebhookSignature
    user_id = text_at(request, "user_id")
    return WebhookEvent(digest(payload), "deauthorize", user_id, payload, reports_grant_end=user_id is not None)


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    fields = verified.json_object()
    topic = text_at(fields, "object") or UNKNOWN
    parts = (part for entry in as_objects(fields.get("entry")) for part in _parts(topic, entry))
    return ReceivedWebhook(EventBatch(list(islice(parts, MAX_EVENTS + 1)), _event))


def _parts(topic: str, entry: Mapping[str, Any]) -> Iterator[_Part]:
    """One part for each item of the entry's lists, or one for the whole entry if it has none."""
    shared = {"object": topic, **{name: value for name, value in entry.items() if name not in _LISTS}}
    lists = [name for name in _LISTS if name in entry]
    if not lists:
        yield shared, "", {}
    elif len(as_payload(shared)) > _MAX_SHARED_BYTES:
        raise MalformedWebhook
    for name in lists:
        for item in as_objects(entry[name]):
            yield shared, name, item


def _event(part: _Part) -> WebhookEvent:
    shared, name, item = part
    fields = {**shared, name: [item]} if name else shared
    event = build_event(fields, type_path="object", account_path="id" if text_at(shared, "id") else "uid")
    return replace(event, event_type=f"{event.event_type}.{text_at(item, 'field') or name}") if name else event


META = MetaScheme("X-Hub-Signature-256", read=_read, prefix="sha256=", secret_source=SecretSource.CLIENT_SECRET)
