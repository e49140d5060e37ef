"""Zoom: `x-zm-signature: v0=…`.

- HMAC-SHA256 in hex of "v0:", `x-zm-request-timestamp` (seconds), ":" and body, with the app's secret token:
  developers.zoom.us/docs/api/webhooks [H]. No tolerance is documented; five minutes are assumed, as the header is the
  request's time and not the event's, which a repeated delivery would keep (`event_ts`).
- An address is tried when it is saved and every 72 hours, with three seconds to answer: `endpoint.url_validation`,
  signed like an event, whose `plainToken` is said back with its HMAC [H]. That HMAC has the key of our signatures, so
  it is never made for what could be a message to sign.
- Events have no id [H]; the digest of the body is one, since the body has the time of the event in milliseconds and
  stays when it is sent again [K].
- `app_deauthorized`: the user has removed our app [H]; `user_id` is theirs. Events of meetings are their host's.
"""

import re

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, hmac_sha256, v0_message
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, digest, json_object, json_response
from integration_server.providers.webhooks.scheme import MalformedWebhook

_PLAIN_TOKEN = re.compile(r"[A-Za-z0-9_+/=.-]{1,255}")  # without ":", which every signed message has


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = verified.request.body
    fields = json_object(body)
    event_type = text_at(fields, "event") or UNKNOWN
    if event_type == "endpoint.url_validation":
        token = text_at(fields, "payload.plainToken")
        if token is None or not _PLAIN_TOKEN.fullmatch(token):
            raise MalformedWebhook
        token_digest = hmac_sha256(verified.secret.encode(), token.encode()).hex()
        return ReceivedWebhook(response=json_response({"plainToken": token, "encryptedToken": token_digest}))
    is_deauthorized = event_type == "app_deauthorized"
    account_id = text_at(fields, "payload.user_id" if is_deauthorized else "payload.object.host_id")
    return ReceivedWebhook([WebhookEvent(digest(body), event_type, account_id, body, ends_grant=is_deauthorized)])


ZOOM = HmacScheme(
    "x-zm-signature",
    read=_read,
    prefix="v0=",
    message=v0_message,
    timestamp=Timestamp("x-zm-request-timestamp"),
)
