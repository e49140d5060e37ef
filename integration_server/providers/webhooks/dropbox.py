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
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
    WebhookResponse,
)
from integration_server.providers.lenient_json import field_at, text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.parsing import (
    VerifiedRequest,
    as_payload,
    digest,
    json_object,
    query_of,
    text_response,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook, SecretSource


def _challenge(request: WebhookRequest) -> WebhookResponse:
    challenge = text_at(query_of(request), "challenge")
    if challenge is None:
        raise InvalidWebhookSignature
    return text_response(challenge)


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    accounts = field_at(json_object(verified.request.body), "list_folder.accounts")
    if not isinstance(accounts, list):
        raise MalformedWebhook
    named = dict.fromkeys(text_at(accounts, str(index)) for index in range(len(accounts)))
    return ReceivedWebhook([_event(account, verified.now) for account in named])


def _event(account: str | None, receive_time: datetime) -> WebhookEvent:
    if account is None:
        raise MalformedWebhook
    return WebhookEvent(
        digest(receive_time.isoformat(), account),
        "list_folder",
        account,
        as_payload({"list_folder": {"accounts": [account]}}),
    )


DROPBOX = HmacScheme(
    "X-Dropbox-Signature", read=_read, respond_to_get=_challenge, secret_source=SecretSource.CLIENT_SECRET
)
