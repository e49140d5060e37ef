"""GitHub: `X-Hub-Signature-256: sha256=…`. The JSON may be in a form, and a header has one part of the type.

- HMAC-SHA256 in hex of the body, with the webhook's own secret:
  docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries [H]. The header with SHA-1 is not read.
- There is no timestamp, and `X-GitHub-Delivery` and `X-GitHub-Event` are not signed [H]: only the delivery's id reveals
  a replayed request, and an attacker can replay one under another id.
- The body is JSON, or a form with the JSON in `payload`, as the webhook is configured [H].
- A user who revokes their authorization of a GitHub App is `github_app_authorization` with the action "revoked" [H].
  Other events are about a repository or an organization, so only the address identifies the integration.
"""

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.json_text import read_json_text
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, digest, encode_text, read_form


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    form = dict(read_form(verified.body) or ()) if verified.body.startswith(b"payload=") else {}
    body = read_json_text(encode_text(form["payload"])) if form else verified.json()
    fields = {} if body is None else body.value
    name = verified.header("X-GitHub-Event") or UNKNOWN
    action = text_at(fields, "action")
    is_revoked = (name, action) == ("github_app_authorization", "revoked")
    event = WebhookEvent(
        event_id=verified.header("X-GitHub-Delivery") or digest(name, verified.body),
        event_type=f"{name}.{action}" if action else name,
        account_id=text_at(fields, "sender.id") if is_revoked else None,
        payload=verified.body,
        reports_grant_end=is_revoked,
    )
    return ReceivedWebhook([event])


GITHUB = HmacScheme("X-Hub-Signature-256", read=_read, prefix="sha256=")
