"""Microsoft Graph: `clientState`.

- Nothing is signed. Each notification has the `clientState` that was given when its subscription was created, and that
  must be a secret: learn.microsoft.com/graph/change-notifications-delivery-webhooks [H]. All notifications of a request
  are checked.
- An address is verified with `?validationToken=…`, which the response repeats as text within ten seconds [H]. Anybody
  can get that response.
- Lifecycle notifications (`reauthorizationRequired`, `subscriptionRemoved`, `missed`) arrive in the same way:
  learn.microsoft.com/graph/change-notifications-lifecycle-events [H]. None of them means that our access has ended.
- A notification's `id` is optional [H]. Without one, the id of a change is its digest, because it has the resource's
  ETag [K]; lifecycle notifications repeat the same bytes, so each delivery of them is an event of its own.
- The account is the user in `resource`, "Users/{id}/…" [H].
"""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from integration_server.domain.webhooks import (
    MAX_EVENTS,
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
)
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    EventBatch,
    as_objects,
    as_payload,
    digest,
    query_of,
    read_object,
    text_handshake,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook, WebhookKeys, WebhookScheme
from integration_server.providers.webhooks.verification import find_signing_secret, require_post

_USER = re.compile(r"/?users/(?P<id>[^/]+)/.*", re.IGNORECASE)


class MicrosoftGraphScheme(WebhookScheme):
    """Compares a secret in the body."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        require_post(request)
        token = query_of(request).get("validationToken")
        if token is not None:
            return text_handshake(token)
        try:
            notifications = as_objects(read_object(request.body).get("value"))[: MAX_EVENTS + 1]
        except MalformedWebhook:
            raise InvalidWebhookSignature from None
        if not notifications:
            raise InvalidWebhookSignature  # each notification has the secret, so without any nothing is verified
        for notification in notifications:
            state = notification.get("clientState")
            find_signing_secret(keys.secrets, [state if isinstance(state, str) else ""], str)
        return ReceivedWebhook(EventBatch(notifications, partial(_event, now)))


def _event(now: datetime, notification: Mapping[str, Any]) -> WebhookEvent:
    payload = as_payload({name: value for name, value in notification.items() if name != "clientState"})
    lifecycle = text_at(notification, "lifecycleEvent")
    user = _USER.fullmatch(text_at(notification, "resource") or "")
    return WebhookEvent(
        event_id=text_at(notification, "id") or digest(payload, now.isoformat() if lifecycle else ""),
        event_type=f"lifecycle.{lifecycle}" if lifecycle else text_at(notification, "changeType") or UNKNOWN,
        account_id=user["id"] if user else None,
        payload=payload,
        has_stable_id=not lifecycle,
    )


MICROSOFT_GRAPH = MicrosoftGraphScheme()
