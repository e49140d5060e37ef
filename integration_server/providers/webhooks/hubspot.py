"""HubSpot, version 3: `X-HubSpot-Signature-v3`.

- HMAC-SHA256 in base64 of method, URI, body and time, with the client secret; `X-HubSpot-Request-Timestamp` is in
  milliseconds; five minutes: developers.hubspot.com/docs/apps/legacy-apps/authentication/validating-requests [H].
- Twelve characters of the URI are signed as themselves where they came percent-encoded [H]; the SDK's own check leaves
  them as they came, so an address is best without them.
- Versions 1 and 2, which have no timestamp, are not taken: requests carry version 3 beside them [H].
- The body is a list of events. `eventId` is not unique [H], and `attemptNumber` counts the tries: an event's id is the
  digest of all the rest. `portalId` is the account [H].
- No event tells that an account has removed our app [K].
"""

import re
from collections.abc import Mapping
from typing import Any

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, base64_text
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    VerifiedRequest,
    as_objects,
    as_payload,
    digest,
    read_json,
)
from integration_server.providers.webhooks.scheme import SecretSource
from integration_server.providers.webhooks.verification import MILLISECOND

# : / ? @ ! $ ' ( ) * , ;
_SIGNED_DECODED = re.compile(r"%(?:3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)


def _signed_message(request: WebhookRequest, timestamp: str) -> bytes:
    uri = _SIGNED_DECODED.sub(lambda found: chr(int(found[0][1:], 16)), request.url)
    return f"{request.method}{uri}".encode() + request.body + timestamp.encode()


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = read_json(verified.request.body)
    return ReceivedWebhook([_event(fields) for fields in as_objects(body if isinstance(body, list) else [body])])


def _event(fields: Mapping[str, Any]) -> WebhookEvent:
    stable_fields = sorted((name, value) for name, value in fields.items() if name != "attemptNumber")
    return WebhookEvent(
        event_id=digest(as_payload(stable_fields)),
        event_type=text_at(fields, "subscriptionType") or UNKNOWN,
        account_id=text_at(fields, "portalId"),
        payload=as_payload(fields),
    )


HUBSPOT = HmacScheme(
    "X-HubSpot-Signature-v3",
    read=_read,
    encode=base64_text,
    message=_signed_message,
    timestamp=Timestamp("X-HubSpot-Request-Timestamp", unit=MILLISECOND),
    secret_source=SecretSource.CLIENT_SECRET,
)
