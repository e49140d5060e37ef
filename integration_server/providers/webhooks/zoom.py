"""Zoom: `x-zm-signature: v0=…`. A handshake returns an HMAC, and an event's type decides where its account is.

- HMAC-SHA256 in hex of "v0:", `x-zm-request-timestamp` (seconds), ":" and body, with the app's secret token:
  developers.zoom.us/docs/api/webhooks [H]. No tolerance is documented; five minutes are assumed, because the header has
  the time of the request and not of the event (`event_ts`), which a retried delivery would repeat.
- An address is verified when it is saved and every 72 hours, with three seconds to respond: `endpoint.url_validation`,
  signed like an event; the response has its `plainToken` and the HMAC of it [H]. That HMAC uses the key that signs
  events, so it is never computed for a text that could be a signed message.
- Events have no id [H]; the digest of the body is one, because the body has the time of the event in milliseconds and
  stays the same when it is retried [K].
- `app_deauthorized`: the user has removed our app [H]; `user_id` is the user.
- The account of an event is a user: of meetings, webinars and recordings the host, `object.host_id`; of events about a
  user (`user.…`) that user, `object.id`; of other events `object.user_id`, or who caused the event, `operator_id`:
  developers.zoom.us/docs/api/users/events and …/meetings/events [M 2026-11-29]. `account_id` is the company's account,
  which many users share.
"""

import re

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, hmac_sha256, v0_message
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, digest, json_handshake
from integration_server.providers.webhooks.scheme import MalformedWebhook

_PLAIN_TOKEN = re.compile(r"[A-Za-z0-9_+/=.-]{1,255}")  # without ":", which every signed message contains


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    fields = verified.json_object()
    event_type = text_at(fields, "event") or UNKNOWN
    if event_type == "endpoint.url_validation":
        token = text_at(fields, "payload.plainToken")
        if token is None or not _PLAIN_TOKEN.fullmatch(token):
            raise MalformedWebhook  # kept, but gets no response that anybody could use
        token_digest = hmac_sha256(verified.secret.encode(), token.encode()).hex()
        return json_handshake({"plainToken": token, "encryptedToken": token_digest})
    is_deauthorized = event_type == "app_deauthorized"
    account_id = _user(event_type, fields.get("payload"))
    event_id = digest(verified.body)
    return ReceivedWebhook(
        [WebhookEvent(event_id, event_type, account_id, verified.body, reports_grant_end=is_deauthorized)]
    )


def _user(event_type: str, payload: object) -> str | None:
    """The user that an event belongs to."""
    if event_type == "app_deauthorized":
        return text_at(payload, "user_id")
    paths: tuple[str, ...] = ("object.host_id", "object.user_id", "operator_id")
    if event_type.startswith("user."):
        paths = ("object.id",)
    return next((user for path in paths if (user := text_at(payload, path)) is not None), None)


ZOOM = HmacScheme(
    "x-zm-signature",
    read=_read,
    prefix="v0=",
    message=v0_message,
    timestamp=Timestamp("x-zm-request-timestamp"),
)
