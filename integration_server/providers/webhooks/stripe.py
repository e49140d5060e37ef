"""Stripe: `Stripe-Signature: t=…,v1=…`. One header has timestamp and signatures, and a path may be the account.

- HMAC-SHA256 in hex of timestamp, "." and body, with the endpoint's `whsec_…` secret as written; 300 s; several `v1`
  during a rotation of the secret; other versions (`v0`) are for tests: docs.stripe.com/webhooks#verify-manually [H].
- Events have an `id`, a `type`, and for connected accounts their `account` [H].
- Thin events (v2) have `context` in place of `account`: a path, whose last segment is the account [M 2026-11-29].
- `account.application.deauthorized`: the account has disconnected our platform:
  docs.stripe.com/connect/standard-accounts [H].
"""

from collections.abc import Sequence
from dataclasses import replace

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp
from integration_server.providers.webhooks.parsing import VerifiedRequest, build_event

_HEADER = "Stripe-Signature"
_ENDS_GRANT = frozenset({"account.application.deauthorized"})


def _values(header: str, name: str) -> Sequence[str]:
    parts = [part.partition("=") for part in header.split(",")]
    return [value for part_name, _, value in parts if part_name == name]


def _timestamp(header: str) -> str:
    times = _values(header, "t")
    if len(times) != 1:  # the checked one might not be the signed one
        raise InvalidWebhookSignature
    return times[0]


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    fields, paths = verified.json_object(), {"id_path": "id", "type_path": "type", "account_path": "account"}
    event = build_event(fields, verified.body, reports_grant_end=_ENDS_GRANT, **paths)
    context = text_at(fields, "context")
    if event.account_id is None and context is not None:
        event = replace(event, account_id=context.rpartition("/")[2] or None)
    return ReceivedWebhook([event])


STRIPE = HmacScheme(
    _HEADER,
    read=_read,
    message=lambda request, timestamp: f"{timestamp}.".encode() + request.body,
    timestamp=Timestamp(_HEADER, extract=_timestamp),
    signatures=lambda header: _values(header, "v1"),
)
