"""QuickBooks: `intuit-signature`.

- HMAC-SHA256 in base64 of the body, with the app's verifier token:
  developer.intuit.com/app/developer/qbo/docs/develop/webhooks [H].
- There is no timestamp: only the events' ids reveal a replayed request. They are signed.
- Since 2026 the body is a list of CloudEvents with `id`, `type` and `intuitaccountid`, the realm; before, it was
  `eventNotifications` of realms with changed entities, without ids [M]. Both are read.
- No event reports that a company has disconnected our app [M].
"""

from itertools import islice

from integration_server.domain.webhooks import MAX_EVENTS, ReceivedWebhook
from integration_server.providers.lenient_json import field_at, text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import VerifiedRequest, as_object, as_objects, received_events


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = verified.json()
    if isinstance(body, list):
        return received_events(body, id_path="id", type_path="type", account_path="intuitaccountid")
    changes = (
        {"realmId": text_at(notification, "realmId"), **entity}
        for notification in as_objects(as_object(body).get("eventNotifications"))
        for entity in as_objects(field_at(notification, "dataChangeEvent.entities"))
    )
    return received_events(list(islice(changes, MAX_EVENTS + 1)), type_path="name+operation", account_path="realmId")


QUICKBOOKS = HmacScheme("intuit-signature", read=_read, encode=base64_text)
