"""Slack: `X-Slack-Signature: v0=…`.

- HMAC-SHA256 in hex of "v0:", timestamp, ":" and body, with the app's signing secret; `X-Slack-Request-Timestamp`; five
  minutes: docs.slack.dev/authentication/verifying-requests-from-slack [H].
- An address is verified with `url_verification`, signed like an event; the response has its `challenge` [H].
- Events are JSON with `event_id` and `team_id`; commands and interactions are forms, the latter with JSON in `payload`
  [H].
- `app_uninstalled` ends the team's grant, and so does `tokens_revoked` if it names bot tokens [H]; a revoked token of a
  single user does not end the bot's grant. The account is the team, or the enterprise if the app is installed in a
  whole enterprise [H].
"""

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.lenient_json import field_at, text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, v0_message
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    VerifiedRequest,
    as_payload,
    digest,
    json_handshake,
    read_form,
    read_object,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    if not verified.body.startswith(b"{"):
        return ReceivedWebhook([_read_form(verified.body)])
    fields = verified.json_object()
    if fields.get("type") == "url_verification":
        challenge = fields.get("challenge")
        if not isinstance(challenge, str):
            raise MalformedWebhook
        return json_handshake({"challenge": challenge})
    event_type = text_at(fields, "event.type" if fields.get("type") == "event_callback" else "type") or UNKNOWN
    bot_tokens = field_at(fields, "event.tokens.bot")
    event = WebhookEvent(
        event_id=text_at(fields, "event_id") or digest(verified.body),
        event_type=event_type,
        account_id=text_at(fields, "team_id") or text_at(fields, "enterprise_id"),
        payload=verified.body,
        reports_grant_end=event_type == "app_uninstalled" or (event_type == "tokens_revoked" and bool(bot_tokens)),
    )
    return ReceivedWebhook([event])


def _read_form(body: bytes) -> WebhookEvent:
    form = dict(read_form(body) or ())
    if "payload" in form:
        payload = form["payload"].encode()
        fields = read_object(payload)
        event_type, team = text_at(fields, "type"), text_at(fields, "team.id") or text_at(fields, "enterprise.id")
    elif "command" in form:
        payload, event_type = as_payload(form), "slash_command"
        team = text_at(form, "team_id") or text_at(form, "enterprise_id")
    else:
        raise MalformedWebhook
    return WebhookEvent(digest(body), event_type or UNKNOWN, team, payload)


SLACK = HmacScheme(
    "X-Slack-Signature",
    read=_read,
    prefix="v0=",
    message=v0_message,
    timestamp=Timestamp("X-Slack-Request-Timestamp"),
)
