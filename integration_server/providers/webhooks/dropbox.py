"""Dropbox: `X-Dropbox-Signature`.

- HMAC-SHA256 in hex of the body, with the app's secret; a GET with `challenge` is answered with it as text, without
  guessing by browsers: developers.dropbox.com/reference/webhooks [H]. Anybody can have that answer.
- There is no timestamp.
- A notification names accounts, and says no more than that something of theirs has changed [H]. The next one of the
  same accounts is the same bytes, so what came tells nothing apart: every delivery is an event of its own, and its id
  is made from when it came. One that is sent again has the account looked at once more.
- No event tells that an account has removed our app [H].
"""

from datetime import datetime

from integration_server.domain.webhooks import (
    ReceivedWebhook,
    WebhookAnswer,
    WebhookEvent,
    WebhookForged,
    WebhookRequest,
)
from integration_server.providers.json_answers import field_at, text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.reading import (
    Verified,
    as_payload,
    digest,
    json_object,
    plain_text,
    query_of,
)
from integration_server.providers.webhooks.scheme import SecretSource, WebhookUnreadable


def _challenge(request: WebhookRequest) -> WebhookAnswer:
    challenge = text_at(query_of(request), "challenge")
    if challenge is None:
        raise WebhookForged
    return plain_text(challenge)


def _read(verified: Verified) -> ReceivedWebhook:
    accounts = field_at(json_object(verified.request.body), "list_folder.accounts")
    if not isinstance(accounts, list):
        raise WebhookUnreadable
    named = dict.fromkeys(text_at(accounts, str(place)) for place in range(len(accounts)))
    return ReceivedWebhook([_event(account, verified.now) for account in named])


def _event(account: str | None, came: datetime) -> WebhookEvent:
    if account is None:
        raise WebhookUnreadable
    return WebhookEvent(
        digest(came.isoformat(), account), "list_folder", account, as_payload({"list_folder": {"accounts": [account]}})
    )


DROPBOX = HmacScheme("X-Dropbox-Signature", read=_read, answer_get=_challenge, secret_source=SecretSource.CLIENT_SECRET)
