"""Xero: `x-xero-signature`.

- HMAC-SHA256 in base64 of the body, with the webhook's signing key; 401 for a wrong signature; an answer within five
  seconds, without a body: developer.xero.com/documentation/webhooks/configuring-your-server [H].
- "Intent to receive" sends several requests without events, some signed rightly and some not: 200 and 401 are its whole
  handshake [H].
- There is no timestamp: only the events' ids show that a request was recorded and sent again.
- Events have no id [H]. An event's digest is one: it has the resource and the time to the millisecond. `tenantId` is
  the organisation [H]. No event tells that it has disconnected our app [K].
"""

from collections.abc import Mapping
from typing import Any

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    VerifiedRequest,
    as_objects,
    as_payload,
    digest,
    json_object,
)


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    return ReceivedWebhook([_event(fields) for fields in as_objects(json_object(verified.request.body).get("events"))])


def _event(fields: Mapping[str, Any]) -> WebhookEvent:
    payload = as_payload(fields)
    name = ".".join(text_at(fields, part) or UNKNOWN for part in ("eventCategory", "eventType"))
    return WebhookEvent(digest(payload), name, text_at(fields, "tenantId"), payload)


XERO = HmacScheme("x-xero-signature", read=_read, encode=base64_text)
