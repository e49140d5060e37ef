"""QuickBooks: `intuit-signature`.

- HMAC-SHA256 in base64 of the body, with the app's verifier token:
  developer.intuit.com/app/developer/qbo/docs/develop/webhooks [H].
- There is no timestamp: only the events' ids show that a request was recorded and sent again. They are signed.
- Since 2026 the body is a list of CloudEvents with `id`, `type` and `intuitaccountid`, the realm; before, it was
  `eventNotifications` of realms with changed entities, without ids [M]. Both are read.
- No event tells that a company has disconnected our app [M].
"""

from collections.abc import Iterator, Mapping
from typing import Any

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.lenient_json import field_at, text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    VerifiedRequest,
    as_object,
    as_objects,
    as_payload,
    build_event,
    digest,
    read_json,
)


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = read_json(verified.request.body)
    if isinstance(body, list):
        return ReceivedWebhook([_cloud_event(fields) for fields in as_objects(body)])
    notifications = as_objects(as_object(body).get("eventNotifications"))
    return ReceivedWebhook([event for notification in notifications for event in _changes(notification)])


def _cloud_event(fields: Mapping[str, Any]) -> WebhookEvent:
    return build_event(fields, as_payload(fields), id_path="id", type_path="type", account_path="intuitaccountid")


def _changes(notification: Mapping[str, Any]) -> Iterator[WebhookEvent]:
    realm = text_at(notification, "realmId")
    for entity in as_objects(field_at(notification, "dataChangeEvent.entities")):
        payload = as_payload({"realmId": realm, **entity})
        name = ".".join(text_at(entity, part) or UNKNOWN for part in ("name", "operation"))
        yield WebhookEvent(digest(payload), name, realm, payload)


QUICKBOOKS = HmacScheme("intuit-signature", read=_read, encode=base64_text)
