"""HubSpot, version 3: `X-HubSpot-Signature-v3`. Parts of the URL are signed decoded, and ids are not unique.

- HMAC-SHA256 in base64 of method, URI, body and timestamp, with the client secret; `X-HubSpot-Request-Timestamp` is in
  milliseconds; five minutes: developers.hubspot.com/docs/apps/legacy-apps/authentication/validating-requests [H].
- Twelve characters of the URI are signed decoded where they arrive percent-encoded [H]; the SDK's own check does not
  decode them, so an address should not contain them.
- Versions 1 and 2, which have no timestamp, are not accepted: requests also carry version 3 [H].
- The body is a list of events. `eventId` is not unique [H], and `attemptNumber` counts the attempts: an event's id is
  the digest of all other fields. `portalId` is the account [H].
- No event reports that an account has removed our app [K].
"""

import re
from dataclasses import replace
from datetime import timedelta

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, base64_text
from integration_server.providers.webhooks.json_text import JsonText
from integration_server.providers.webhooks.parsing import (
    EventBatch,
    VerifiedRequest,
    build_event,
    digest,
    first_elements,
)
from integration_server.providers.webhooks.scheme import SecretSource

# : / ? @ ! $ ' ( ) * , ;
_SIGNED_DECODED = re.compile(r"%(?:3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)


def _signed_message(request: WebhookRequest, timestamp: str) -> bytes:
    uri = _SIGNED_DECODED.sub(lambda found: chr(int(found[0][1:], 16)), request.url)
    return f"{request.method}{uri}".encode() + request.body + timestamp.encode()


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = verified.json()
    return ReceivedWebhook(EventBatch(first_elements(body) if isinstance(body.value, list) else [body], _event))


def _event(item: JsonText) -> WebhookEvent:
    event = build_event(item.value, item.raw, type_path="subscriptionType", account_path="portalId")
    members = sorted(member.text for member in item.members() if member.name != "attemptNumber")
    return replace(event, event_id=digest(*members)) if members else event


HUBSPOT = HmacScheme(
    "X-HubSpot-Signature-v3",
    read=_read,
    encode=base64_text,
    message=_signed_message,
    timestamp=Timestamp("X-HubSpot-Request-Timestamp", unit=timedelta(milliseconds=1)),
    secret_source=SecretSource.CLIENT_SECRET,
)
