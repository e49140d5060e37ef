"""Microsoft Graph: `clientState`. Each notification has a secret in the body, and none is signed.

- Nothing is signed. Each notification has the `clientState` that was given when its subscription was created, and that
  must be a secret: learn.microsoft.com/graph/change-notifications-delivery-webhooks [H]. A request has notifications of
  any number of subscriptions [H 2026-11-29]. Each is checked; those without the secret are dropped.
- An address is verified with `?validationToken=…`, which the response repeats as text within ten seconds [H]. Anybody
  can get that response.
- Lifecycle notifications (`reauthorizationRequired`, `subscriptionRemoved`, `missed`) arrive in the same way:
  learn.microsoft.com/graph/change-notifications-lifecycle-events [H]. None of them means that our access has ended.
- A notification's `id` is optional [H]. Without one, the id of a change is its digest, because it has the resource's
  ETag [K]; lifecycle notifications repeat the same bytes, so each delivery of them is an event of its own.
- The account is the user in `resource`, "Users/{id}/…" [H]. The id may have the tenant's after "@" [K 2026-11-29],
  which is removed; resources may also be written as "Users('{id}')/…" [K]. Lifecycle notifications name no user, only
  `subscriptionId` [H 2026-11-29], by which they go to the account that earlier changes of the subscription have named.
"""

import re
from datetime import datetime
from functools import partial

from integration_server.domain.lenient_values import field_at, text_at
from integration_server.domain.webhooks import (
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
)
from integration_server.providers.webhooks.json_text import JsonText
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    EventBatch,
    digest,
    first_elements,
    query_of,
    read_json,
    text_handshake,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook, WebhookKeys, WebhookScheme
from integration_server.providers.webhooks.verification import find_signing_secret, require_post

_GUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_USER = re.compile(
    rf"/?(?:users|communications/presences)(?:/|\(')(?:(?P<guid>{_GUID})@{_GUID}|(?P<id>[^/']+))(?:'\))?(?:/.*)?",
    re.IGNORECASE,
)


class MicrosoftGraphScheme(WebhookScheme):
    """Compares a secret in the body."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        require_post(request)
        token = query_of(request).get("validationToken")
        if token is not None:
            return text_handshake(token)
        try:
            notifications = first_elements(read_json(request).at("value"))
        except MalformedWebhook:
            raise InvalidWebhookSignature from None
        verified = [notification for notification in notifications if _is_verified(notification.value, keys)]
        if not verified:
            raise InvalidWebhookSignature  # each notification has the secret, so without any nothing is verified
        return ReceivedWebhook(EventBatch(verified, partial(_event, now)))


def _is_verified(notification: object, keys: WebhookKeys) -> bool:
    state = field_at(notification, "clientState")
    try:
        find_signing_secret(keys.secrets, [state if isinstance(state, str) else ""], str)
    except InvalidWebhookSignature:
        return False
    return True


def _event(now: datetime, item: JsonText) -> WebhookEvent:
    notification, payload = item.value, item.raw_without("clientState")
    lifecycle = text_at(notification, "lifecycleEvent")
    subscription = text_at(notification, "subscriptionId")
    user = _USER.fullmatch(text_at(notification, "resource") or "")
    return WebhookEvent(
        event_id=text_at(notification, "id") or digest(payload, now.isoformat() if lifecycle else ""),
        event_type=f"lifecycle.{lifecycle}" if lifecycle else text_at(notification, "changeType") or UNKNOWN,
        account_id=(user["guid"] or user["id"]) if user else None,
        payload=payload,
        has_stable_id=not lifecycle,
        route=subscription and f"subscription:{subscription}",
    )


MICROSOFT_GRAPH = MicrosoftGraphScheme()
