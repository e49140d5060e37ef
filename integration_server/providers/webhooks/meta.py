"""Facebook and Instagram: `X-Hub-Signature-256`, `hub.challenge` and `signed_request`. An entry has many events.

- HMAC-SHA256 in hex of the body, with the app's secret, after "sha256=":
  developers.facebook.com/docs/graph-api/webhooks/getting-started [K].
- An address is verified by a GET with `hub.mode=subscribe`, a `hub.challenge` to repeat, and the `hub.verify_token`
  that was entered together with the address [K]: the setting `<TYPE>_WEBHOOK_VERIFY_TOKEN`.
- There is no timestamp.
- The body has entries, and an entry has changes or messages, none with an id [K]: the id is the digest of the change
  with its entry's id and time. The account is the entry's: a page, a user, or an Instagram account.
- The deauthorize callback is a form with `signed_request`: signature and JSON in base64url, the former being the
  HMAC-SHA256 of the latter as written, with the app's secret; it names `user_id` [K], which for Instagram is not the id
  of the account but the user's id in our app [M 2026-11-29]. The data deletion callback has
  the same form and expects another response, so it must not be configured with this address.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import (
    MAX_EVENTS,
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
)
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, hmac_sha256
from integration_server.providers.webhooks.json_text import JsonMember, JsonText, read_json_text
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    EventBatch,
    VerifiedRequest,
    build_event,
    digest,
    first_elements,
    query_of,
    read_form,
    text_handshake,
)
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys
from integration_server.providers.webhooks.verification import constant_time_equal, find_signing_secret, require_post

_BASE64URL = re.compile("[A-Za-z0-9_-]+={0,2}")
_LISTS = ("changes", "messaging", "standby")
# Of an entry without its lists, which each of its events repeats: an id and a time. Another entry is one event.
_MAX_SHARED_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class _Part:
    """An entry without its lists, the name of a list, and one item of it; or a whole entry."""

    topic: JsonText | None
    entry: JsonText
    shared: Sequence[JsonMember]
    list_name: str = ""
    item: JsonText | None = None


class MetaScheme(HmacScheme):
    """Also responds to the challenge, and reads the deauthorize callback."""

    deauthorizes_account = True
    """Whether the deauthorize callback names the account. If not, it names the route `app_user_route`."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        if request.method == "GET":
            return _challenge(query_of(request), keys)
        if request.body.startswith(b"signed_request="):
            require_post(request)
            return ReceivedWebhook([self._deauthorization(request.body, keys)])
        return super().receive(request, keys, now)

    def _deauthorization(self, body: bytes, keys: WebhookKeys) -> WebhookEvent:
        fields = read_form(body) or ()
        signature, dot, encoded_payload = fields[0][1].partition(".") if len(fields) == 1 else ("", "", "")
        if not dot or not signature.isascii():
            raise InvalidWebhookSignature

        def sign(secret: str) -> str:
            return urlsafe_b64encode(hmac_sha256(secret.encode(), encoded_payload.encode())).decode().rstrip("=")

        find_signing_secret(keys.secrets, [signature], sign)
        payload = _decoded(encoded_payload)
        if payload is None or (text_at(payload.value, "algorithm") or "").upper() != "HMAC-SHA256":
            raise InvalidWebhookSignature
        user_id = text_at(payload.value, "user_id")
        return WebhookEvent(
            digest(payload.raw),
            "deauthorize",
            user_id if self.deauthorizes_account else None,
            body,
            reports_grant_end=user_id is not None,
            route=None if user_id is None or self.deauthorizes_account else app_user_route(user_id),
        )


class InstagramScheme(MetaScheme):
    """The deauthorize callback names the user's id in our app, which is not the account."""

    deauthorizes_account = False


def app_user_route(user_id: str) -> str:
    """The route of a user's id in our app."""
    return f"app_user:{user_id}"


def _challenge(query: Mapping[str, str], keys: WebhookKeys) -> ReceivedWebhook:
    challenge = text_at([query.get("hub.challenge")], "0")
    token = query.get("hub.verify_token", "")
    is_known = any(constant_time_equal(expected, token) for expected in keys.verify_tokens)
    if not is_known or query.get("hub.mode") != "subscribe" or challenge is None:
        raise InvalidWebhookSignature
    return text_handshake(challenge)


def _decoded(payload: str) -> JsonText | None:
    """The JSON object in base64url; None if it is anything else."""
    # Python's decoder skips other characters, so that a webhook's signed JSON could be read as a payload.
    if not _BASE64URL.fullmatch(payload):
        return None
    try:
        found = read_json_text(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return None
    return found if found is not None and isinstance(found.value, dict) else None


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    if _decoded(verified.body.decode("latin-1")) is not None:
        raise InvalidWebhookSignature  # the payload of a signed request, which browsers see with its signature
    members = {member.name: member.value for member in verified.json().members()}
    entries = first_elements(members.get("entry"))
    parts = (part for entry in entries for part in _parts(members.get("object"), entry))
    return ReceivedWebhook(EventBatch(list(islice(parts, MAX_EVENTS + 1)), _event))


def _parts(topic: JsonText | None, entry: JsonText) -> Iterator[_Part]:
    """One part for each item of the entry's lists, or one for the whole entry if it has none."""
    members = list(entry.members())
    lists = [
        member
        for member in members
        if member.name in _LISTS and isinstance(member.value.value, list) and member.value.value
    ]
    shared = [member for member in members if member not in lists]
    if not lists or sum(len(member.text) for member in shared) > _MAX_SHARED_LENGTH:
        yield _Part(topic, entry, members)
        return
    for member in lists:
        for item in member.value.elements():
            yield _Part(topic, entry, shared, member.name, item)


def _event(part: _Part) -> WebhookEvent:
    members = [member.text for member in part.shared]
    if part.topic is not None:
        members.insert(0, f'"object":{part.topic.text}')
    if part.item is not None:
        members.append(f'"{part.list_name}":[{part.item.text}]')
    payload = part.entry.raw_object(members) if isinstance(part.entry.value, dict) else part.entry.raw
    topic = text_at([part.topic and part.topic.value], "0") or UNKNOWN
    account_path = "id" if text_at(part.entry.value, "id") else "uid"
    event = build_event(part.entry.value, payload, type_path="object", account_path=account_path)
    field = part.item and (text_at(part.item.value, "field") or part.list_name)
    return replace(event, event_type=f"{topic}.{field}" if field else topic)


META = MetaScheme("X-Hub-Signature-256", read=_read, prefix="sha256=", secret_source=SecretSource.CLIENT_SECRET)
INSTAGRAM = InstagramScheme(
    "X-Hub-Signature-256", read=_read, prefix="sha256=", secret_source=SecretSource.CLIENT_SECRET
)
