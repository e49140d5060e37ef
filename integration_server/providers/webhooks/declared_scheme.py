"""Webhook schemes as data: the `webhook` table of a declaration."""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.declaration_tables import Webhook
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, base64_text
from integration_server.providers.webhooks.parsing import (
    UNKNOWN,
    EventBatch,
    VerifiedRequest,
    as_payload,
    build_event,
    first_elements,
    json_handshake,
    query_of,
    read_form,
    text_handshake,
)
from integration_server.providers.webhooks.scheme import MalformedWebhook, SecretSource, WebhookKeys
from integration_server.providers.webhooks.verification import single_header

_UNITS = {"seconds": timedelta(seconds=1), "milliseconds": timedelta(milliseconds=1)}
_NAME = re.compile(r"(\{[a-z]+\})")


@dataclass(frozen=True)
class DeclaredScheme(HmacScheme):
    """Also responds to an unsigned handshake: `handshake_query` is the parameter that the response repeats."""

    handshake_query: str | None = None

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        value = query_of(request).get(self.handshake_query) if self.handshake_query else None
        return super().receive(request, keys, now) if value is None else text_handshake(value)


def declared_scheme(webhook: Webhook) -> HmacScheme:
    """The scheme that a declaration describes, with a `signature_header`."""
    timestamp, tolerance = None, timedelta(seconds=webhook.tolerance_seconds)
    if webhook.timestamp_header is not None:
        timestamp = Timestamp(webhook.timestamp_header, _UNITS[webhook.timestamp_unit], tolerance)
    return DeclaredScheme(
        webhook.signature_header or "",
        read=partial(_read, webhook),
        encode=base64_text if webhook.encoding == "base64" else bytes.hex,
        prefix=webhook.prefix,
        message=partial(_signed_message, webhook),
        timestamp=timestamp,
        secret_source=SecretSource[webhook.secret.upper()],
        algorithm=webhook.algorithm,
        handshake_query=webhook.handshake.query if webhook.handshake else None,
    )


def _signed_message(webhook: Webhook, request: WebhookRequest, timestamp: str) -> bytes:
    values = {
        "{body}": request.body,
        "{timestamp}": timestamp.encode(),
        "{method}": request.method.encode(),
        "{url}": request.url.encode(),
        "{id}": single_header(request, webhook.id_header).encode() if webhook.id_header else b"",
    }
    return b"".join(values.get(part, part.encode()) for part in _NAME.split(webhook.signed))


def _read(webhook: Webhook, verified: VerifiedRequest) -> ReceivedWebhook:
    try:
        body = verified.json()
    except MalformedWebhook:
        form = dict(read_form(verified.body) or ())
        if not any(form.values()):
            raise
        return ReceivedWebhook([_event(webhook, verified, form, as_payload(form))])
    path = webhook.handshake.field if webhook.handshake else None
    if path is not None and (value := text_at(body.value, path)) is not None:
        return json_handshake({path.rpartition(".")[2]: value})
    if webhook.events is None and not isinstance(body.value, list):
        return ReceivedWebhook([_event(webhook, verified, body.value, verified.body)])
    items = first_elements(body.at(webhook.events) if webhook.events else body)
    return ReceivedWebhook(
        EventBatch(items, lambda item: _event(webhook, verified, item.value, item.raw, is_only=False))
    )


def _event(
    webhook: Webhook, verified: VerifiedRequest, fields: object, payload: bytes, *, is_only: bool = True
) -> WebhookEvent:
    """An event at the declared paths. Headers have the type of all events of a request, and the id of its only one."""
    event = build_event(
        fields,
        payload,
        id_path=webhook.event_id,
        type_path=webhook.event_type or "",
        account_path=webhook.account,
    )
    event_type = event.event_type
    if event_type == UNKNOWN:
        event_type = verified.header(webhook.type_header or "") or UNKNOWN
    header_id = verified.header(webhook.id_header or "") if is_only and webhook.event_id is None else None
    return replace(
        event,
        event_id=header_id or event.event_id,
        event_type=event_type,
        reports_grant_end=event_type in webhook.grant_ends,
    )
