"""Slack: `X-Slack-Signature: v0=…`. Events, commands and interactions have different bodies and accounts.

- HMAC-SHA256 in hex of "v0:", timestamp, ":" and body, with the app's signing secret; `X-Slack-Request-Timestamp`; five
  minutes: docs.slack.dev/authentication/verifying-requests-from-slack [H].
- An address is verified with `url_verification`, signed like an event; the response has its `challenge` [H].
- Slack checks the certificate of an address with `ssl_check=1`, unsigned, and expects 200 [H 2026-11-29]. Anybody can
  get that response.
- Events are JSON with `event_id` and `team_id`; commands and interactions are forms, the latter with JSON in `payload`
  [H].
- `app_uninstalled` ends the team's grant, and so does `tokens_revoked` if it names bot tokens [H]; a revoked token of a
  single user does not end the bot's grant. The account is the team, or the enterprise if the app is installed in a
  whole enterprise (`is_enterprise_install`) [H]. An event in a channel that organisations share names in
  `authorizations` whose installation it is for [H 2026-11-29], and an interaction with a view in
  `view.app_installed_team_id` [M 2026-11-29].
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from integration_server.domain.lenient_values import field_at, text_at
from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, v0_message
from integration_server.providers.webhooks.json_text import read_json_text
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    VerifiedRequest,
    as_object,
    digest,
    encode_text,
    json_handshake,
    query_of,
    read_form,
    text_handshake,
)
from integration_server.providers.webhooks.scheme import WebhookKeys

_FORM = re.compile(rb"[a-z_]+=")  # the first field of a form; no JSON value begins like that, in any encoding
_MAX_SSL_CHECK = 1024  # bytes; it has two short fields


class SlackScheme(HmacScheme):
    """Also responds to the check of a certificate."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        if _is_ssl_check(request):
            return text_handshake("")
        return super().receive(request, keys, now)


def _is_ssl_check(request: WebhookRequest) -> bool:
    form = query_of(request) if request.method == "GET" else dict(read_form(request.body[:_MAX_SSL_CHECK]) or ())
    return (
        request.method in {"GET", "POST"}
        and form.get("ssl_check") == "1"
        and form.keys() <= {"ssl_check", "token"}
        and len(request.body) < _MAX_SSL_CHECK
    )


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    # Text in a JSON body, such as a link that somebody posts, may contain "&command=…&team_id=…".
    form = dict(read_form(verified.body) or ()) if _FORM.match(verified.body) else {}
    if form.keys() & {"payload", "command"}:
        return ReceivedWebhook([_read_form(form, verified.body)])
    fields = verified.json_object()
    challenge = text_at(fields, "challenge")
    if fields.get("type") == "url_verification" and challenge is not None:
        return json_handshake({"challenge": challenge})
    event_type = text_at(fields, "event.type" if fields.get("type") == "event_callback" else "type") or UNKNOWN
    bot_tokens = field_at(fields, "event.tokens.bot")
    event = WebhookEvent(
        event_id=text_at(fields, "event_id") or digest(verified.body),
        event_type=event_type,
        account_id=_account(field_at(fields, "authorizations.0")) or _account(fields),
        payload=verified.body,
        reports_grant_end=event_type == "app_uninstalled" or (event_type == "tokens_revoked" and bool(bot_tokens)),
    )
    return ReceivedWebhook([event])


def _read_form(form: Mapping[str, str], body: bytes) -> WebhookEvent:
    if "payload" not in form:
        return WebhookEvent(digest(body), "slash_command", _account(form), body)
    interaction = read_json_text(encode_text(form["payload"]))
    fields = {} if interaction is None else as_object(interaction.value)
    return WebhookEvent(digest(body), text_at(fields, "type") or UNKNOWN, _account_of_interaction(fields), body)


def _account(fields: object) -> str | None:
    """The installation that an authorization, an event or a command is for: a team, or a whole enterprise."""
    team, enterprise = text_at(fields, "team_id"), text_at(fields, "enterprise_id")
    return (enterprise or team) if _is_of_enterprise(fields) else (team or enterprise)


def _account_of_interaction(fields: Mapping[str, Any]) -> str | None:
    enterprise = text_at(fields, "enterprise.id")
    if enterprise is not None and _is_of_enterprise(fields):
        return enterprise
    return text_at(fields, "view.app_installed_team_id") or text_at(fields, "team.id") or enterprise


def _is_of_enterprise(fields: object) -> bool:
    return field_at(fields, "is_enterprise_install") in (True, "true")  # JSON and forms


SLACK = SlackScheme(
    "X-Slack-Signature",
    read=_read,
    prefix="v0=",
    message=v0_message,
    timestamp=Timestamp("X-Slack-Request-Timestamp"),
)
