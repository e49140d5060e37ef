"""Acuity: `X-Acuity-Signature`. Bodies are forms without id and account, so every delivery is an event of its own.

- HMAC-SHA256 in base64 of the body, with the account's API key: developers.acuityscheduling.com/docs/webhooks
  [H 2026-11-29].
- There is no timestamp, and no id. The body is a form with `action` and the ids of the appointment, its calendar and
  its type [H 2026-11-29]. The next change of the same appointment has the same bytes, so every delivery is an event of
  its own, with an id made from its time of arrival.
- A notification names no account, so only the address identifies the integration.
- No event reports the end of our access, a new API key.
"""

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, digest, read_form
from integration_server.providers.webhooks.scheme import SecretSource


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    fields = dict(read_form(verified.body) or ())
    event_id = digest(verified.now.isoformat(), verified.body)
    event_type = text_at(fields, "action") or UNKNOWN
    return ReceivedWebhook([WebhookEvent(event_id, event_type, None, verified.body, has_stable_id=False)])


ACUITY = HmacScheme("X-Acuity-Signature", read=_read, encode=base64_text, secret_source=SecretSource.API_SECRET)
