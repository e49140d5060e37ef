"""Xero: `x-xero-signature`.

- HMAC-SHA256 in base64 of the body, with the webhook's signing key; 401 for an invalid signature; a response within
  five seconds, without a body: developer.xero.com/documentation/webhooks/configuring-your-server [H].
- "Intent to receive" sends several requests without events, some with valid signatures and some not: 200 and 401 are
  the whole handshake [H].
- There is no timestamp: only the events' ids reveal a replayed request.
- Events have no id [H]. A digest of the event is its id: the event has the resource and the time in milliseconds.
  `tenantId` is the organisation [H]. No event reports that it has disconnected our app [K].
"""

from integration_server.domain.webhooks import ReceivedWebhook
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import VerifiedRequest, first_elements, received_events


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    events = first_elements(verified.json().at("events"))
    return received_events(events, type_path="eventCategory+eventType", account_path="tenantId")


XERO = HmacScheme("x-xero-signature", read=_read, encode=base64_text)
