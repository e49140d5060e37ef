"""QuickBooks: `intuit-signature`.

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

from integration_server.domain.webhooks import MAX_EVENTS, ReceivedWebhook
from integration_server.providers.lenient_values import field_at, text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import VerifiedRequest, as_object, received_events
from integration_server.providers.webhooks.scheme import MalformedWebhook

_CLOUD_EVENT = {"id_path": "id", "type_path": "type", "account_path": "intuitaccountid"}


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = verified.json()
    if isinstance(body, list):
        return received_events(body, **_CLOUD_EVENT)
    if "eventNotifications" not in as_object(body):
        return received_events([body], **_CLOUD_EVENT)
    changes = islice(_changes(body["eventNotifications"]), MAX_EVENTS + 1)
    return received_events(list(changes), type_path="name+operation", account_path="realmId")


def _changes(notifications: object) -> Iterator[object]:
    """The changed entities, each with its realm; a notification without entities is a change itself."""
    if not isinstance(notifications, list):
        raise MalformedWebhook
    for notification in notifications:
        entities, realm = field_at(notification, "dataChangeEvent.entities"), text_at(notification, "realmId")
        if not isinstance(entities, list) or not entities:
            yield notification
        else:
            yield from ({"realmId": realm, **one} if isinstance(one, dict) else one for one in entities)


QUICKBOOKS = HmacScheme("intuit-signature", read=_read, encode=base64_text)
