"""Every verified request becomes events, whatever its text, and their payloads are the bytes that were received."""

import json
from collections.abc import Sequence
from functools import cache
from itertools import islice
from urllib.parse import urlencode

import pytest
from pydantic_core import from_json, to_json

from integration_server.domain.webhooks import MAX_EVENTS, InvalidWebhookSignature, WebhookEvent, WebhookRequest
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.webhooks.json_text import read_json_text
from tests.loop_hold.meter import MAX_HOLD, shortest_time
from tests.unit.providers.support import FakeTransport, build_provider
from tests.unit.providers.webhooks.samples import (
    NOW,
    SAMPLES,
    URL,
    Sample,
    base64_hmac,
    post,
    received,
    with_headers,
)

BY_NAME = {sample.name: sample for sample in SAMPLES}
FORMS = {"twilio", "twilio-sha256", "acuity"}
SIGNED = [sample for sample in SAMPLES if sample.signs_body and sample.name not in FORMS]

each_signed = pytest.mark.parametrize("sample", SIGNED, ids=lambda sample: sample.name)


@cache
def provider_with(name: str) -> ApiKeyProvider:
    """A provider with the scheme of a sample."""
    attributes = {"integration_type": "acme", "verify_url": "https://acme.example/me"}
    scheme = {"webhook_scheme": BY_NAME[name].scheme}
    return build_provider(type("Acme", (ApiKeyProvider,), {**attributes, **scheme}), FakeTransport())


def kept(name: str, body: bytes, content_type: str = "") -> Sequence[WebhookEvent]:
    """The events of a signed request with this body."""
    sample = BY_NAME[name]
    request = sample.sign(sample.secret, body, NOW)
    if content_type:
        request = with_headers(request, lambda headers: [*headers, ("Content-Type", content_type.encode())])
    return kept_of(name, request, sample.secret)


def kept_of(name: str, request: WebhookRequest, secret: str) -> Sequence[WebhookEvent]:
    result = provider_with(name).receive_webhook(request, [secret])
    assert result.response.status == 200
    return list(result.events)


# --- text that strict parsers refuse

ODD_VALUES = {
    "half of a surrogate pair": b'"\\ud83d"',
    "the other half": b'"x\\udc00y"',
    "not UTF-8": b'"caf\xe9"',
    "an encoded surrogate": b'"\xed\xa0\x80"',
    "infinite": b"1e999999",
    "minus infinite": b"-1E+400",
    "a number of 5,000 digits": b"9" * 5000,
    "a fraction of 5,000 digits": b"0." + b"1" * 5000,
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a control character": b'"a\x01\tb"',
    "NUL, escaped": b'"a\\u0000b"',
    "NUL": b'"a\x00b"',
    "depth 10,000": b"[" * 10_000 + b"]" * 10_000,
    "objects of depth 10,000": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "depth inside a deep list": b'{"b":[{"c":' + b"[" * 3000 + b"]" * 3000 + b"}]}",
}

each_odd = pytest.mark.parametrize("odd", ODD_VALUES.values(), ids=ODD_VALUES)

# Name, body with the odd value, and what is read nevertheless: id, type, account.
ROUTED = [
    (
        "stripe",
        b'{"id":"evt_9","data":%s,"type":"charge.failed","account":"acct_9"}',
        "evt_9",
        "charge.failed",
        "acct_9",
    ),
    ("square", b'{"event_id":"e9","type":"t.c","merchant_id":"M9","data":{"x":%s}}', "e9", "t.c", "M9"),
    (
        "slack",
        b'{"type":"event_callback","event":{"blocks":[%s],"type":"message"},"event_id":"Ev9","team_id":"T9"}',
        "Ev9",
        "message",
        "T9",
    ),
    (
        "zoom",
        b'{"event":"meeting.ended","payload":{"object":{"topic":%s,"host_id":"u9"}}}',
        None,
        "meeting.ended",
        "u9",
    ),
    ("standard", b'{"data":{"a":{"b":%s}},"type":"user.created"}', "msg_1", "user.created", None),
]


@each_odd
@pytest.mark.parametrize(("name", "body", "event_id", "event_type", "account"), ROUTED, ids=[row[0] for row in ROUTED])
def test_an_event_is_kept_and_routed_whatever_its_text(
    name: str, body: bytes, event_id: str | None, event_type: str, account: str | None, odd: bytes
) -> None:
    (event,) = kept(name, body % odd)
    assert event.payload == body % odd
    assert (event.event_type, event.account_id) == (event_type, account)
    assert event_id in {event.event_id, None}
    assert event.is_readable


@pytest.mark.parametrize("odd", [odd for name, odd in ODD_VALUES.items() if name != "NUL, escaped"])
def test_negative_control_a_strict_parser_loses_the_event_or_its_bytes(odd: bytes) -> None:
    body = b'{"type":"a","data":%s}' % odd
    try:
        assert to_json(from_json(body, allow_inf_nan=False), inf_nan_mode="null") != body
    except ValueError:
        return


@each_odd
@pytest.mark.parametrize("id_member", [b'"id":%s', b'"id":{"x":%s}'])
def test_an_id_that_cannot_be_read_is_replaced_by_a_digest(odd: bytes, id_member: bytes) -> None:
    body = b'{"type":"charge.failed",' + id_member % odd + b"}"
    (first,), (second,), (other,) = kept("stripe", body), kept("stripe", body), kept("stripe", body + b" ")
    if first.event_id.startswith("sha256-"):
        assert first.event_id == second.event_id != other.event_id
    else:  # an id of a number without a fraction
        assert first.event_id == odd.decode()
    assert first.event_type == "charge.failed"


def test_of_repeated_names_the_last_counts() -> None:
    body = b'{"id":"a","type":"x","account":"acct_1","id":"b","account":"acct_2"}'
    (event,) = kept("stripe", body)
    assert (event.event_id, event.account_id, event.payload) == ("b", "acct_2", body)


# --- encodings

ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("name", "body", "event_id", "event_type", "account"), ROUTED, ids=[row[0] for row in ROUTED])
def test_an_event_is_read_in_every_unicode_encoding(
    name: str, body: bytes, event_id: str | None, event_type: str, account: str | None, encoding: str
) -> None:
    encoded = (body % '"Zoë 𝄞"'.encode()).decode().encode(encoding)
    (event,) = kept(name, encoded)
    assert (event.event_type, event.account_id, event.payload) == (event_type, account, encoded)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_elements_of_a_batch_keep_its_encoding(encoding: str) -> None:
    elements = ['{"eventCategory":"A","eventType":"é","tenantId":"t"}', '{ "eventType" : "𝄞" }']
    body = f'{{"events" : [{elements[0]} , {elements[1]}]}}'.encode(encoding)
    events = kept("xero", body)
    assert [event.event_type for event in events] == ["A.é", "unknown.𝄞"]
    without_mark = encoding.replace("-sig", "") if encoding[-2:] in {"le", "be", "ig"} else f"{encoding}-le"
    assert [event.payload for event in events] == [element.encode(without_mark) for element in elements]


@pytest.mark.parametrize(
    ("content_type", "name"),
    [
        ("application/json; charset=ISO-8859-1", "café"),
        ('application/json;charset="windows-1252"', "café"),
        ("application/json; charset=latin1", "café"),
        ("application/json; charset=utf-7", None),
        ("application/json; charset=idna", None),
        ("application/json", None),
    ],
)
def test_a_declared_charset_is_used_for_what_is_not_utf8(content_type: str, name: str | None) -> None:
    body = b'{"id":"1","type":"x","account":"caf\xe9"}'
    (event,) = kept("stripe", body, content_type)
    assert (event.account_id, event.event_type, event.payload) == (name, "x", body)
    (event,) = kept("stripe", body.decode("latin-1").encode(), content_type)
    assert event.account_id == "café"


# --- what cannot be read at all

UNREADABLE = {
    "empty": b"",
    "a space": b" ",
    "XML": b"<event><id>1</id></event>",
    "text": b"hello",
    "half an object": b'{"id":"evt_1","type":',
    "half a character": b'\xff\xfe{\x00"',
    "only a mark": b"\xef\xbb\xbf",
    "null": b"null",
    "a number": b"1e999999",
    "a string": b'"text"',
    "too many lists": b"[" + b"[]," * 110_000 + b"[]]",
    "brackets without end": b"[" * 50_000,
    "bytes": bytes(range(256)).replace(b"=", b""),
}

each_unreadable = pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)


@each_signed
@each_unreadable
def test_what_cannot_be_read_is_one_event_with_all_bytes(sample: Sample, body: bytes) -> None:
    (event,) = kept(sample.name, body)
    assert (event.payload, event.account_id or "ada.myshopify.com") == (body, "ada.myshopify.com")
    (again,) = kept(sample.name, body)
    assert again.event_id == event.event_id
    assert not event.reports_grant_end


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("dropbox", b'{"list_folder":{"accounts":"dbid:1"}}'),
        ("dropbox", b"{}"),
        ("xero", b'{"events":{}}'),
        ("quickbooks", b'{"eventNotifications":{"realmId":"1"}}'),
        ("meta", b'{"object":"page"}'),
        ("meta", b"signed request"),
        ("slack", b"a=b"),
        ("slack", b'{"type":"url_verification"}'),
        ("slack", b"payload=x"),
        ("slack", b"payload=%ff&payload=%7B"),
        ("github", b"payload=x"),
        ("github", b"payload="),
        ("zoom", b'{"event":"endpoint.url_validation","payload":{}}'),
        ("zoom", b'{"event":"endpoint.url_validation","payload":{"plainToken":"v0:1:{}"}}'),
        ("acuity", b""),
        ("acuity", b"\xff\xfe"),
    ],
)
def test_an_unexpected_body_is_one_event(name: str, body: bytes) -> None:
    (event,) = kept(name, body)
    assert event.payload == body
    assert len(event.event_id) <= 255


def test_a_google_message_without_its_number_is_an_event() -> None:
    sample = BY_NAME["google-channel"]
    for missing in ("X-Goog-Channel-ID", "X-Goog-Message-Number", "X-Goog-Resource-State"):
        request = with_headers(sample.request, lambda all_, gone=missing: [pair for pair in all_ if pair[0] != gone])  # type: ignore[misc]
        (event,) = kept_of("google-channel", request, sample.secret)
        assert not event.is_readable


# --- batches

ITEMS = (
    b'{"\\ud83d":"a"}',
    b'{ "n" : 1.0e5 , "n" : 1E999999 }',
    b'{"e":"\\u00e9\\/","big":' + b"7" * 4400 + b"}",
    b'{"deep":' + b"[" * 5000 + b"]" * 5000 + b"}",
)
BATCHES = {
    "xero": (b'{ "events" :\n[%s ], "entropy":"x"}', b"%s"),
    "sendgrid": (b" [%s]\n", b"%s"),
    "hubspot": (b"[%s]", b"%s"),
    "quickbooks": (b"[ %s]", b"%s"),
    "twilio-json": (b"[%s]", b"%s"),
    "meta": (b'{"object":"page","entry":[{"id":"1","changes":[%s]}]}', b'{"object":"page","id":"1","changes":[%s]}'),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_elements_of_a_batch_are_kept_byte_for_byte(name: str) -> None:
    body, payload = BATCHES[name]
    events = kept(name, body % b" , ".join([*ITEMS, b"7", b"null"]))
    assert [event.payload for event in events] == [payload % item for item in (*ITEMS, b"7", b"null")]
    assert len({event.event_id for event in events}) == len(events)


@pytest.mark.parametrize("item", ITEMS)
def test_negative_control_encoding_an_element_again_changes_it(item: bytes) -> None:
    try:
        assert json.dumps(json.loads(item)).encode() != item
    except (ValueError, RecursionError):
        return


def test_graph_notifications_are_unchanged_but_for_the_secret() -> None:
    secret = BY_NAME["microsoft-graph"].secret.encode()
    items = (
        (b'{ "clientState" : "%s" , "id":"1", "n": 1e999 }', b'{"id":"1", "n": 1e999 }'),
        (b'{"id":"2", "clientState":"%s"}', b'{"id":"2"}'),
        (
            b'{ "id":"3","clientState":"x","x":"\\ud800","clientState":"%s","y":[ ]}',
            b'{ "id":"3","x":"\\ud800","y":[ ]}',
        ),
        (b'{"client\\u0053tate":"%s"}', b"{}"),
        (b'{"a":{"clientState":"kept"},"clientState":"%s"}', b'{"a":{"clientState":"kept"}}'),
    )
    body = b'{"value":[' + b",".join(item % secret for item, _ in items) + b"]}"
    events = kept_of("microsoft-graph", post(body, {}), secret.decode())
    assert [event.payload for event in events] == [payload for _, payload in items]


def test_quickbooks_changes_are_kept_with_their_realm() -> None:
    body = (
        b'{"eventNotifications":[{"realmId":"1","dataChangeEvent":{"entities":[{"name":"A" ,"x":1e999},{}, 7]}},'
        b'{"realmId":"2"}]}'
    )
    payloads = [b'{"realmId":"1","name":"A","x":1e999}', b'{"realmId":"1"}', b"7", b'{"realmId":"2"}']
    assert [event.payload for event in kept("quickbooks", body)] == payloads


# --- forms

REPEATED = b"AccountSid=AC1&MediaUrl=a&MediaUrl=b&Body=x+y&Empty=&MediaUrl=a"


def twilio(fields: str, **request: object) -> WebhookRequest:
    url = str(request.get("url", URL))
    headers = {"X-Twilio-Signature": base64_hmac("s", f"{url}{fields}".encode(errors="surrogateescape"), "sha1")}
    body = request.get("body", REPEATED)
    assert isinstance(body, bytes)
    return post(body, {**headers, "Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}, url)


def test_repeated_fields_of_a_form_are_kept() -> None:
    (event,) = kept_of("twilio", twilio("AccountSidAC1Bodyx yEmptyMediaUrlaMediaUrlb"), "s")
    assert (event.account_id, event.payload) == ("AC1", REPEATED)
    (command,) = kept("slack", b"command=%2Fx&text=a&text=b&team_id=T1")
    assert command.payload == b"command=%2Fx&text=a&text=b&team_id=T1"
    (change,) = kept("acuity", b"action=changed&id=1&id=2")
    assert change.payload == b"action=changed&id=1&id=2"


def test_forms_that_are_not_utf8_are_kept() -> None:
    body = b"AccountSid=AC1&Body=caf%E9&Raw=\xff"
    (event,) = kept_of("twilio", twilio("AccountSidAC1Bodycaf\udce9Raw\udcff", body=body), "s")
    assert (event.account_id, event.payload) == ("AC1", body)
    body = urlencode({"command": "/x", "team_id": "T1"}).encode() + b"&text=%E9%00"
    (command,) = kept("slack", body)
    assert (command.account_id, command.payload) == ("T1", body)


def test_the_payload_of_a_call_without_a_body_is_its_query() -> None:
    (event,) = kept_of("twilio", twilio("", url=f"{URL}?AccountSid=AC1&Digits=1&Digits=2", body=b""), "s")
    assert (event.account_id, event.payload) == ("AC1", b"AccountSid=AC1&Digits=1&Digits=2")


# An error that the parser does not reach at first, because it ends at a deep list before it. Whether the parser reaches
# it later depends on the stack of the caller.
ERROR_AFTER_DEPTH = [
    begin * depth + b"[" * nested + b"]" * nested + error + end * depth
    for depth in range(1, 9)
    for nested in (900, 10_000)
    for begin, error, end in ((b"[", b" x", b"]"), (b'{"a":', b",x", b"}"), (b'{"entities":[', b",{x", b"}]}"))
]
AROUND_AN_ERROR = {
    "hubspot": b'[{"portalId":7},%s]',
    "sendgrid": b"[{},%s]",
    "xero": b'{"events":[{},%s]}',
    "quickbooks": b'{"eventNotifications":[{"dataChangeEvent":%s}]}',
    "meta": b'{"object":"page","entry":[{"id":"1","changes":[%s]}]}',
    "dropbox": b'{"list_folder":{"accounts":["a",%s]}}',
}


@pytest.mark.parametrize("name", AROUND_AN_ERROR)
def test_an_error_after_a_deep_value_costs_no_event(name: str) -> None:
    for odd in ERROR_AFTER_DEPTH:
        body = AROUND_AN_ERROR[name] % odd
        events = kept(name, body)
        assert events
        assert all(event.is_readable or event.payload in body for event in events)


def test_an_error_after_a_deep_value_does_not_reveal_the_client_state() -> None:
    secret = BY_NAME["microsoft-graph"].secret.encode()
    for odd in ERROR_AFTER_DEPTH:
        body = b'{"value":[{"a":%s,"clientState":"%s"}]}' % (odd, secret)
        try:
            events = kept("microsoft-graph", body)
        except InvalidWebhookSignature:
            continue
        assert all(secret not in event.payload for event in events)


# --- cost


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 32_000,
        b"[" * 1001 + b'"' + b'\\"' * 30_000,
        b"[" * 65_000,
        b'{"a":' * 13_000,
        b"[" + b"{}," * 21_000 + b"{}]",
        b"{" + b'"":1,' * 13_000 + b'"":1}',
        b'{"a":' + b'{"x":[],' * 8_000,
        (b'{"b":' + b'"a":1,' * 65 + b'"d":' + b"[" * 1500) * 30,
        b"9" * 65_000,
        b"1" * 200 + b",1" * 100,
        b"[" + b"1," * 32_000 + b"1]",
        b'{"a":' + (b"[" * 2000 + b"]" * 2000 + b",") * 15,
        b'{"value":[[[[' + b"1," * 14_000 + b"[" * 1200 + b"]" * 1200 + b"]]]]}",
        b'{"value":[[[[' + b"1," * 16_000,
        b'{"value":[[[[' + b"[]," * 10_900,
        b'{"value":[' + b'{"":1},' * 4_600,
        b'{"value":[{' + b'"":1,' * 6_500,
        b'{"value":[' + b",".join([b"[" * 1200 + b"]" * 1200] * 13) + b"]}",
    ],
    ids=range(18),
)
def test_a_body_that_is_read_on_the_event_loop_does_not_hold_it(body: bytes) -> None:
    body = body[: 32 * 1024]  # larger ones are read in another thread

    def read() -> None:
        found = read_json_text(body)
        for element in islice(() if found is None else found.elements(), MAX_EVENTS + 1):
            assert element.end <= len(body)

    assert shortest_time(read) < MAX_HOLD


def test_a_body_in_which_too_much_would_be_read_one_by_one_is_one_event() -> None:
    deep = b"[" * 2000 + b"]" * 2000
    assert len(kept("sendgrid", b"[" + b"{}," * 1000 + deep + b"]")) == 1001
    (event,) = kept("sendgrid", b"[" + b"1," * 10_000 + deep + b"]")
    assert not event.is_readable


def test_a_signed_request_of_meta_is_not_a_webhook() -> None:
    """Browsers see signed requests, whose signature is that of a webhook with the payload as body."""
    sample = BY_NAME["meta"]
    for body in (b"eyJhbGdvcml0aG0iOiJITUFDLVNIQTI1NiJ9", b"eyJhIjoxfQ==", b"eyAiPyI6Ij8_In0"):
        with pytest.raises(InvalidWebhookSignature):
            received(sample.scheme, sample.sign(sample.secret, body, NOW), sample.secret)
    (event,) = kept("meta", b"eyJ.x ")
    assert event.payload == b"eyJ.x "
