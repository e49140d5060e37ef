"""Dropbox: `X-Dropbox-Signature`.

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

from integration_server.domain.webhooks import (
    MAX_EVENTS,
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
)
from integration_server.providers.lenient_values import field_at, text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.parsing import (
    EventBatch,
    VerifiedRequest,
    as_payload,
    digest,
    query_of,
    text_handshake,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook, SecretSource, WebhookKeys


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
    accounts = field_at(verified.json_object(), "list_folder.accounts")
    if not isinstance(accounts, list):
        raise MalformedWebhook
    texts = [text_at([account], "0") for account in accounts[: MAX_EVENTS + 1]]
    if None in texts:
        raise MalformedWebhook
    return ReceivedWebhook(
        EventBatch(list(dict.fromkeys(filter(None, texts))), partial(_event, verified.now.isoformat()))
    )


def _event(time: str, account: str) -> WebhookEvent:
    payload = as_payload({"list_folder": {"accounts": [account]}})
    return WebhookEvent(digest(time, account), "list_folder", account, payload, has_stable_id=False)


DROPBOX = DropboxScheme("X-Dropbox-Signature", read=_read, secret_source=SecretSource.CLIENT_SECRET)
