"""QuickBooks: `intuit-signature`. One of two formats nests the changes of several companies.

- HMAC-SHA256 in base64 of the body, with the app's verifier token:
  developer.intuit.com/app/developer/qbo/docs/develop/webhooks [H].
- There is no timestamp: only the events' ids reveal a replayed request. They are signed.
- Since 2026 the body is a list of CloudEvents with `id`, `type` and `intuitaccountid`, the realm; before, it was
  `eventNotifications` of realms with changed entities, without ids [M]. Both are read, and every element is an event,
  whatever it consists of: one that is not known does not cost the others.
- No event reports that a company has disconnected our app [M].
"""

from collections.abc import Iterator
from itertools import islice

from integration_server.domain.webhooks import MAX_EVENTS, ReceivedWebhook, WebhookEvent
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.json_text import JsonText
from integration_server.providers.webhooks.parsing import (
    EventBatch,
    VerifiedRequest,
    build_event,
    first_elements,
    received_events,
)

_CLOUD_EVENT = {"id_path": "id", "type_path": "type", "account_path": "intuitaccountid"}


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = verified.json()
    if isinstance(body.value, list):
        return received_events(first_elements(body), **_CLOUD_EVENT)
    notifications = body.at("eventNotifications")
    if notifications is None:
        return received_events([body], **_CLOUD_EVENT)
    changes = (change for notification in first_elements(notifications) for change in _changes(notification))
    return ReceivedWebhook(EventBatch(list(islice(changes, MAX_EVENTS + 1)), _event))


def _changes(notification: JsonText) -> Iterator[tuple[JsonText | None, JsonText]]:
    """The changed entities, each with its realm; a notification without entities is a change itself."""
    members = {member.name: member.value for member in notification.members()}
    change = members.get("dataChangeEvent")
    entities = change and change.at("entities")
    if entities is None or not isinstance(entities.value, list) or not entities.value:
        yield None, notification
    else:
        yield from ((members.get("realmId"), entity) for entity in entities.elements())


def _event(change: tuple[JsonText | None, JsonText]) -> WebhookEvent:
    realm, entity = change
    fields, payload = entity.value, entity.raw
    if realm is not None and isinstance(fields, dict):
        fields = {"realmId": realm.value, **fields}
        payload = entity.raw_object([f'"realmId":{realm.text}', *(member.text for member in entity.members())])
    return build_event(fields, payload, type_path="name+operation", account_path="realmId")


QUICKBOOKS = HmacScheme("intuit-signature", read=_read, encode=base64_text)
