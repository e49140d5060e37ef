"""Square: `x-square-hmacsha256-signature`.

- HMAC-SHA256 in base64 of the notification URL and the body, with the subscription's signature key; the SDK's
  `verify_signature` [H]. The URL is the one that is configured in the subscription, so it must be the URL that we see.
- There is no timestamp [H]: only the event's id reveals a replayed request. The id is in the body, and so is signed.
- Events have `event_id`, `type` and `merchant_id` [H]. `oauth.authorization.revoked`: the merchant, or Square, has
  revoked our access [H].
"""

from integration_server.domain.webhooks import ReceivedWebhook
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import VerifiedRequest, build_event

_ENDS_GRANT = frozenset({"oauth.authorization.revoked"})


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    fields, paths = verified.json_object(), {"id_path": "event_id", "type_path": "type", "account_path": "merchant_id"}
    return ReceivedWebhook([build_event(fields, verified.body, reports_grant_end=_ENDS_GRANT, **paths)])


SQUARE = HmacScheme(
    "x-square-hmacsha256-signature",
    read=_read,
    encode=base64_text,
    message=lambda request, _: request.url.encode() + request.body,
)
