"""Webhooks that a declaration describes: the tables of tests/declarations/ and variations of them."""

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.declaration_tables import Webhook
from integration_server.providers.webhooks.declared_scheme import declared_scheme
from integration_server.providers.webhooks.scheme import MalformedWebhook, SecretSource, WebhookKeys
from tests.unit.providers.support import NOW

SECRET = "whs-1"
URL = "https://localhost/api/v1/webhooks/acme/abc"
FULL: Mapping[str, Any] = {
    "signature_header": "X-Signature",
    "signed": "{id}.{timestamp}.{body}",
    "algorithm": "sha512",
    "encoding": "base64",
    "prefix": "sha512=",
    "timestamp_header": "X-Timestamp",
    "timestamp_unit": "milliseconds",
    "tolerance_seconds": 60.0,
    "id_header": "X-Id",
    "type_header": "X-Type",
    "events": "events",
    "event_id": "id",
    "event_type": "kind",
    "account": "site.id",
    "grant_ends": ["app_removed"],
    "handshake": {"field": "challenge"},
}
BODY = json.dumps(
    {"events": [{"id": 1, "kind": "made", "site": {"id": "s1"}}, {"id": 2, "kind": "app_removed"}]}
).encode()


def request(body: bytes, *, method: str = "POST", url: str = URL, **headers: str) -> WebhookRequest:
    given = [(name.replace("_", "-"), value.encode()) for name, value in headers.items()]
    return WebhookRequest(method=method, url=url, headers=given, body=body)


def signed_full(body: bytes, *, age: timedelta = timedelta(), secret: str = SECRET, **headers: str) -> WebhookRequest:
    stamp = str(int((NOW - age).timestamp() * 1000))
    digest = hmac.new(secret.encode(), b"i-1." + stamp.encode() + b"." + body, hashlib.sha512).digest()
    sent = {"X_Signature": "sha512=" + b64encode(digest).decode(), "X_Timestamp": stamp, "X_Id": "i-1", **headers}
    return request(body, **sent)


def receive(webhook: Mapping[str, Any], given: WebhookRequest) -> ReceivedWebhook:
    return declared_scheme(Webhook(**webhook)).receive(given, WebhookKeys([SECRET]), NOW)


def test_events_have_the_declared_ids_types_and_accounts() -> None:
    first, second = receive(FULL, signed_full(BODY)).events
    assert (first.event_id, first.event_type, first.account_id) == ("1", "made", "s1")
    assert (second.event_id, second.event_type, second.account_id) == ("2", "app_removed", None)
    assert (first.reports_grant_end, second.reports_grant_end) == (False, True)
    assert json.loads(first.payload) == {"id": 1, "kind": "made", "site": {"id": "s1"}}


@pytest.mark.parametrize("age", [timedelta(seconds=59), timedelta(seconds=-59)])
def test_a_timestamp_within_the_tolerance_is_accepted(age: timedelta) -> None:
    assert len(receive(FULL, signed_full(BODY, age=age)).events) == 2


@pytest.mark.parametrize(
    "given",
    [
        signed_full(BODY, age=timedelta(seconds=61)),
        signed_full(BODY, age=timedelta(seconds=-61)),
        signed_full(BODY, secret="other"),
        signed_full(BODY, X_Id="i-2"),
        signed_full(BODY, X_Timestamp="1"),
        signed_full(BODY, X_Signature=""),
        request(BODY),
        request(BODY, X_Signature="sha512="),
        request(BODY, method="GET"),
    ],
)
def test_a_forged_or_old_request_is_refused(given: WebhookRequest) -> None:
    with pytest.raises(InvalidWebhookSignature):
        receive(FULL, given)


def test_negative_control_without_a_timestamp_an_old_request_is_accepted() -> None:
    loose = {**FULL, "tolerance_seconds": 86400.0}
    assert len(receive(loose, signed_full(BODY, age=timedelta(hours=2))).events) == 2


def test_a_handshake_repeats_the_challenge() -> None:
    response = receive(FULL, signed_full(b'{"challenge": "c-1"}')).response
    assert json.loads(response.body) == {"challenge": "c-1"}
    query = {"signature_header": "X-S", "handshake": {"query": "challenge"}}
    echoed = receive(query, request(b"", method="GET", url=f"{URL}?challenge=%3Cb%3E"))
    assert (echoed.response.body, echoed.response.is_verified) == (b"<b>", False)
    assert echoed.response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("algorithm", "encoding", "signed"),
    [("sha1", "hex", "{body}"), ("sha256", "base64", "{url}{body}"), ("sha512", "hex", "v0:{method}:{body}")],
)
def test_the_signed_content_is_a_template(algorithm: str, encoding: str, signed: str) -> None:
    webhook = {"signature_header": "X-S", "algorithm": algorithm, "encoding": encoding, "signed": signed}
    body = b'{"type": "x", "raw": "\xff"}'
    message = signed.replace("{url}", URL).replace("{method}", "POST").encode().replace(b"{body}", body)
    digest = hmac.new(SECRET.encode(), message, algorithm).digest()
    signature = digest.hex() if encoding == "hex" else b64encode(digest).decode()
    with suppress(MalformedWebhook):  # verified: only the body cannot be parsed
        receive(webhook, request(body, X_S=signature))
    with pytest.raises(InvalidWebhookSignature):
        receive(webhook, request(body + b" ", X_S=signature))


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"id": "e-1"}', ["e-1"]),
        (b'[{"id": "e-1"}, {"id": "e-2"}, 7]', ["e-1", "e-2", None]),
        (b"id=e-1&type=x", ["e-1"]),
        (b'{"no": "id"}', [None]),
    ],
)
def test_a_body_is_one_event_or_a_list(body: bytes, ids: list[str | None]) -> None:
    webhook = {"signature_header": "X-S", "event_id": "id", "type_header": "X-Type"}
    signature = hmac.new(SECRET.encode(), body, "sha256").hexdigest()
    events = receive(webhook, request(body, X_S=signature, X_Type="sent")).events
    found = [None if event.event_id.startswith("sha256-") else event.event_id for event in events]
    assert found == ids
    assert {event.event_type for event in events} == {"sent"}


@pytest.mark.parametrize("body", [b"", b"text", b'{"events": 7}'])
def test_a_verified_body_of_another_shape_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedWebhook):
        receive(FULL, signed_full(body))


@pytest.mark.parametrize("secret", ["own", "client_secret", "api_secret"])
def test_the_secret_is_declared(secret: str) -> None:
    scheme = declared_scheme(Webhook(signature_header="X-S", secret=secret))  # type: ignore[arg-type]
    assert scheme.secret_source is SecretSource[secret.upper()]
