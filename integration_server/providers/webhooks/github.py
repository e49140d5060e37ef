"""GitHub: `X-Hub-Signature-256: sha256=…`.

- HMAC-SHA256 in hex of the body, with the webhook's own secret:
  docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries [H]. The SHA-1 header beside it is not read.
- There is no timestamp, and `X-GitHub-Delivery` and `X-GitHub-Event` are not signed [H]: only the delivery's id shows
  that a request was sent again, and who has recorded one could send it under another.
- The body is JSON, or a form with the JSON in `payload`, as the webhook is set up [H].
- A user who revokes their authorization of a GitHub App is `github_app_authorization` with the action "revoked" [H].
  Other events are about a repository or an organization, so only the address tells whose integration they are for.
"""

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    VerifiedRequest,
    digest,
    form_of,
    header_text,
    json_object,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook


def _json_of(body: bytes) -> bytes:
    if not body.startswith(b"payload="):
        return body
    fields = dict(form_of(body) or ())
    if "payload" not in fields:
        raise MalformedWebhook
    return fields["payload"].encode()


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    payload = _json_of(verified.request.body)
    fields = json_object(payload)
    name = header_text(verified.request, "X-GitHub-Event") or UNKNOWN
    action = text_at(fields, "action")
    revoked = (name, action) == ("github_app_authorization", "revoked")
    event = WebhookEvent(
        event_id=header_text(verified.request, "X-GitHub-Delivery") or digest(name, payload),
        event_type=f"{name}.{action}" if action else name,
        account_id=text_at(fields, "sender.id") if revoked else None,
        payload=payload,
        ends_grant=revoked,
    )
    return ReceivedWebhook([event])


GITHUB = HmacScheme("X-Hub-Signature-256", read=_read, prefix="sha256=")
