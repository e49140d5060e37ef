"""Dropbox: `X-Dropbox-Signature`. A notification is a list of accounts, each of which is an event.

- HMAC-SHA256 in hex of the body, with the app's secret; the response to a GET with `challenge` is the challenge as
  text, which browsers must not sniff: developers.dropbox.com/reference/webhooks [H]. Anybody can get that response.
- There is no timestamp.
- A notification names accounts, and says only that something of theirs has changed [H]. The next notification for the
  same accounts has the same bytes, so every delivery is an event of its own, with an id made from its time of arrival.
  A retried delivery causes one more look at the account.
- No event reports that an account has removed our app [H].
"""

from datetime import datetime
from functools import partial

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import (
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
)
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.json_text import JsonText
from integration_server.providers.webhooks.parsing import (
    EventBatch,
    VerifiedRequest,
    digest,
    first_elements,
    query_of,
    text_handshake,
)
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys


class DropboxScheme(HmacScheme):
    """Also responds to the challenge."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        if request.method != "GET":
            return super().receive(request, keys, now)
        challenge = text_at(query_of(request), "challenge")
        if challenge is None:
            raise InvalidWebhookSignature
        return text_handshake(challenge)


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    accounts = {account.text: account for account in first_elements(verified.json().at("list_folder.accounts"))}
    return ReceivedWebhook(EventBatch(list(accounts.values()), partial(_event, verified.now.isoformat())))


def _event(time: str, account: JsonText) -> WebhookEvent:
    payload = account.raw_object([f'"list_folder":{{"accounts":[{account.text}]}}'])
    account_id = text_at([account.value], "0")
    return WebhookEvent(digest(time, payload), "list_folder", account_id, payload, has_stable_id=False)


DROPBOX = DropboxScheme("X-Dropbox-Signature", read=_read, secret_source=SecretSource.CLIENT_SECRET)
