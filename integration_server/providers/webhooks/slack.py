"""Slack: `X-Slack-Signature: v0=…`.

- HMAC-SHA256 in hex of "v0:", time, ":" and body, with the app's signing secret; `X-Slack-Request-Timestamp`; five
  minutes: docs.slack.dev/authentication/verifying-requests-from-slack [H].
- An address is tried with `url_verification`, signed likewise, whose `challenge` is said back [H].
- Events are JSON with `event_id` and `team_id`; commands and interactions are forms, the latter with JSON in `payload`
  [H].
- `app_uninstalled` ends the team's grant, and so does `tokens_revoked` if bot tokens are among them [H]; those of
  single users leave the bot's. The account is the team, or the enterprise where a whole one has installed the app [H].
"""

from collections.abc import Mapping
from typing import Any

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.lenient_json import field_at, text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, v0_message
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    VerifiedRequest,
    as_payload,
    digest,
    form_of,
    json_object,
    json_response,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = verified.request.body
    if not body.startswith(b"{"):
        return _read_form(body)
    fields = json_object(body)
    if fields.get("type") == "url_verification":
        challenge = fields.get("challenge")
        if not isinstance(challenge, str):
            raise MalformedWebhook
        return ReceivedWebhook(response=json_response({"challenge": challenge}))
    kind = "event.type" if fields.get("type") == "event_callback" else "type"
    event_type = text_at(fields, kind) or UNKNOWN
    event = WebhookEvent(
        event_id=text_at(fields, "event_id") or digest(body),
        event_type=event_type,
        account_id=text_at(fields, "team_id") or text_at(fields, "enterprise_id"),
        payload=body,
        ends_grant=_ends_grant(event_type, fields),
    )
    return ReceivedWebhook([event])


def _ends_grant(event_type: str, fields: Mapping[str, Any]) -> bool:
    return event_type == "app_uninstalled" or (
        event_type == "tokens_revoked" and bool(field_at(fields, "event.tokens.bot"))
    )


def _read_form(body: bytes) -> ReceivedWebhook:
    form = dict(form_of(body) or ())
    if "payload" in form:
        payload = form["payload"].encode()
        fields = json_object(payload)
        event_type, team = text_at(fields, "type"), text_at(fields, "team.id") or text_at(fields, "enterprise.id")
    elif "command" in form:
        payload, event_type = as_payload(form), "slash_command"
        team = text_at(form, "team_id") or text_at(form, "enterprise_id")
    else:
        raise MalformedWebhook
    return ReceivedWebhook([WebhookEvent(digest(body), event_type or UNKNOWN, team, payload)])


SLACK = HmacScheme(
    "X-Slack-Signature",
    read=_read,
    prefix="v0=",
    message=v0_message,
    timestamp=Timestamp("X-Slack-Request-Timestamp"),
)
