"""Google's push channels: `X-Goog-Channel-Token`. A token is compared, and the event is in the headers.

- Nothing is signed. The token is the one that was given when the channel was opened, and must be a secret:
  developers.google.com/workspace/calendar/api/guides/push [H].
- The body is empty; the headers say that something has changed, and `X-Goog-Message-Number` is the number of the
  message in its channel [H]. The payload is the headers as JSON. The numbers may have gaps.
- A channel's first message, "sync", says only that the channel is open [H], and contains no event.
- Channels expire [H]; only the address identifies the integration.
"""

from datetime import datetime

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, as_payload, digest
from integration_server.providers.webhooks.scheme import WebhookKeys, WebhookScheme
from integration_server.providers.webhooks.verification import find_signing_secret, require_post, single_header

_REQUIRED_FIELDS = ("channel_id", "message_number", "resource_state")
_OPTIONAL_FIELDS = ("channel_expiration", "resource_id", "resource_uri", "changed")


class GoogleChannelScheme(WebhookScheme):
    """Compares a token in a header."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        require_post(request)
        secret = find_signing_secret(keys.secrets, [single_header(request, "X-Goog-Channel-Token")], str)
        verified = VerifiedRequest(request, secret, now)
        names = (*_REQUIRED_FIELDS, *_OPTIONAL_FIELDS)
        headers = {name: verified.header(f"X-Goog-{name.replace('_', '-')}") for name in names}
        fields = {name: value for name, value in headers.items() if value is not None}
        if not fields.keys() >= set(_REQUIRED_FIELDS):
            payload = as_payload(fields)
            return ReceivedWebhook([WebhookEvent(digest(payload), UNKNOWN, None, payload, is_readable=False)])
        if fields["resource_state"] == "sync":
            return ReceivedWebhook()
        event_id = f"{fields['channel_id']}:{fields['message_number']}"
        return ReceivedWebhook([WebhookEvent(event_id, fields["resource_state"], None, as_payload(fields))])


GOOGLE_CHANNEL = GoogleChannelScheme()
