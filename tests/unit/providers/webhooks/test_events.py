"""The events of verified requests: account, type and id."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from integration_server.domain.webhooks import InvalidWebhookSignature, WebhookEvent, WebhookRequest
from integration_server.providers.webhooks.meta import INSTAGRAM, META
from integration_server.providers.webhooks.scheme import MalformedWebhook
from tests.unit.providers.webhooks.samples import (
    NOW,
    SAMPLES,
    Sample,
    hex_hmac,
    post,
    received,
    seconds,
    signed_request,
    with_header,
    with_headers,
)

BY_NAME = {sample.name: sample for sample in SAMPLES}


def request_of(name: str, value: object) -> WebhookRequest:
    sample = BY_NAME[name]
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return sample.sign(sample.secret, body, NOW)


def events_of(name: str, value: object, **headers: str) -> list[WebhookEvent]:
    request = request_of(name, value)
    for header, text in headers.items():
        request = with_header(request, header.replace("_", "-"), text.encode())
    return list(received(BY_NAME[name].scheme, request, BY_NAME[name].secret).events)


def summary_of(event: WebhookEvent) -> tuple[str, str, str | None]:
    return event.event_id, event.event_type, event.account_id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stripe", ("evt_1", "charge.succeeded", "acct_1")),
        ("square", ("ev1", "payment.created", "M1")),
        ("shopify", ("b54557e4-bdd9-4b37-8a5f-bf7d70bcd043", "orders/create", "ada.myshopify.com")),
        ("github", ("72d3162e-cc78-11e3-81ab-4c9367dc0958", "push", None)),
        ("slack", ("Ev1", "message", "T1")),
        ("zoom", (None, "meeting.started", "u1")),
        ("hubspot", (None, "contact.creation", "62515")),
        ("dropbox", (None, "list_folder", "dbid:AAH4f99")),
        ("quickbooks", ("88cd52aa", "qbo.invoice.created.v1", "310687")),
        ("xero", (None, "INVOICE.UPDATE", "t1")),
        ("meta", (None, "page.feed", "1")),
        ("twilio", (None, "message.delivered", "AC1")),
        ("twilio-json", ("EZ1", "com.twilio.messaging.message.sent", "AC1")),
        ("sendgrid", ("ZHJvcC0x", "dropped", None)),
        ("google-channel", ("4ba78bf0-6a47-11e2-bcfd-0800200c9a66:10", "exists", None)),
        ("microsoft-graph", (None, "created", "u1")),
        ("standard", ("msg_1", "contact.created", None)),
    ],
)
def test_event_id_type_and_account(name: str, expected: tuple[str | None, str, str | None]) -> None:
    sample = BY_NAME[name]
    (event,) = received(sample.scheme, sample.request, sample.secret).events
    event_id, event_type, account_id = expected
    assert (event.event_type, event.account_id) == (event_type, account_id)
    if event_id is None:
        assert event.event_id.startswith("sha256-")
    else:
        assert event.event_id == event_id
    if name != "twilio":
        assert isinstance(json.loads(event.payload), dict)


# --- the same again, and another

WITHOUT_IDS = {"dropbox", "acuity"}
"""Their next notification has the same bytes."""

each_repeated = pytest.mark.parametrize(
    "sample", [sample for sample in SAMPLES if sample.name not in WITHOUT_IDS], ids=lambda sample: sample.name
)


@each_repeated
def test_a_repeated_delivery_has_the_same_id(sample: Sample) -> None:
    later = NOW + timedelta(minutes=1)
    first = received(sample.scheme, sample.request, sample.secret)
    second = received(sample.scheme, sample.sign(sample.secret, sample.body, later), sample.secret, now=later)
    assert [event.event_id for event in first.events] == [event.event_id for event in second.events]


@pytest.mark.parametrize("name", sorted(WITHOUT_IDS))
def test_each_delivery_without_an_id_is_an_event(name: str) -> None:
    sample = BY_NAME[name]
    times = [NOW, NOW + timedelta(seconds=1)]
    ids = {received(sample.scheme, sample.request, sample.secret, now=now).events[0].event_id for now in times}
    assert len(ids) == 2


def test_a_retry_of_hubspot_is_the_same_event() -> None:
    event = {"eventId": 1, "portalId": 2, "subscriptionType": "contact.creation", "attemptNumber": 0}
    (first,) = events_of("hubspot", [event])
    (second,) = events_of("hubspot", [{**event, "attemptNumber": 1}])
    (other,) = events_of("hubspot", [{**event, "occurredAt": 3}])
    assert first.event_id == second.event_id != other.event_id


def test_each_lifecycle_notification_of_graph_is_an_event() -> None:
    notification = {"subscriptionId": "s1", "clientState": "our-client-state", "lifecycleEvent": "missed"}
    request = request_of("microsoft-graph", {"value": [notification]})
    scheme, secret = BY_NAME["microsoft-graph"].scheme, BY_NAME["microsoft-graph"].secret
    (first,) = received(scheme, request, secret).events
    (second,) = received(scheme, request, secret, now=NOW + timedelta(seconds=1)).events
    assert first.event_type == "lifecycle.missed"
    assert first.event_id != second.event_id


def test_an_invalid_id_is_replaced_by_a_digest() -> None:
    for odd in ("", "x" * 300, "a\nb", ["a"], {"a": 1}, None, True):
        (event,) = events_of("stripe", {"id": odd, "type": "charge.succeeded"})
        assert event.event_id.startswith("sha256-")


# --- batches


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        (
            "hubspot",
            [
                {"portalId": 1, "subscriptionType": "contact.creation", "eventId": 1},
                {"portalId": 2, "subscriptionType": "deal.deletion", "eventId": 1},
            ],
            [("contact.creation", "1"), ("deal.deletion", "2")],
        ),
        ("dropbox", {"list_folder": {"accounts": ["a", "b", "a"]}}, [("list_folder", "a"), ("list_folder", "b")]),
        (
            "quickbooks",
            {
                "eventNotifications": [
                    {
                        "realmId": "r1",
                        "dataChangeEvent": {
                            "entities": [
                                {"name": "Customer", "id": "1", "operation": "Create", "lastUpdated": "t"},
                                {"name": "Invoice", "id": "1", "operation": "Void", "lastUpdated": "t"},
                            ]
                        },
                    },
                    {"realmId": "r2", "dataChangeEvent": {"entities": [{"name": "Bill", "operation": "Update"}]}},
                ]
            },
            [("Customer.Create", "r1"), ("Invoice.Void", "r1"), ("Bill.Update", "r2")],
        ),
        (
            "xero",
            {
                "events": [
                    {"eventCategory": "CONTACT", "eventType": kind, "tenantId": "t"} for kind in ("CREATE", "UPDATE")
                ]
            },
            [("CONTACT.CREATE", "t"), ("CONTACT.UPDATE", "t")],
        ),
        (
            "meta",
            {
                "object": "page",
                "entry": [
                    {"id": "1", "time": 5, "changes": [{"field": "feed"}, {"field": "mention"}]},
                    {"id": "2", "time": 5, "messaging": [{"message": {"mid": "m"}}]},
                    {"uid": "3", "time": 5, "changed_fields": ["photos"]},
                ],
            },
            [("page.feed", "1"), ("page.mention", "1"), ("page.messaging", "2"), ("page", "3")],
        ),
        (
            "sendgrid",
            [{"event": "open", "sg_event_id": "1"}, {"event": "click", "sg_event_id": "2"}],
            [("open", None), ("click", None)],
        ),
        (
            "microsoft-graph",
            {
                "value": [
                    {"clientState": "our-client-state", "changeType": kind, "resource": "users/u/events/1"}
                    for kind in ("created", "deleted")
                ]
            },
            [("created", "u"), ("deleted", "u")],
        ),
    ],
)
def test_a_batch_is_split_into_events(name: str, body: object, expected: list[tuple[str, str | None]]) -> None:
    events = events_of(name, body)
    assert [(event.event_type, event.account_id) for event in events] == expected
    assert len({event.event_id for event in events}) == len(events) == len({event.payload for event in events})
    assert all(isinstance(json.loads(event.payload), dict) for event in events)


GOOD_NOTIFICATION = {"clientState": "our-client-state", "changeType": "created", "resource": "users/u/events/1"}
BAD_NOTIFICATIONS: list[Any] = [
    {**GOOD_NOTIFICATION, "clientState": "x"},
    {"changeType": "created"},
    {**GOOD_NOTIFICATION, "clientState": ["our-client-state"]},
    {**GOOD_NOTIFICATION, "clientState": None},
    "our-client-state",
    None,
    ["our-client-state"],
]


@pytest.mark.parametrize("bad", BAD_NOTIFICATIONS)
def test_a_graph_batch_is_complete_but_for_what_is_not_verified(bad: Any) -> None:
    other = {**GOOD_NOTIFICATION, "resource": "users/v/events/2", "subscriptionId": "s2"}
    events = events_of("microsoft-graph", {"value": [GOOD_NOTIFICATION, bad, other]})
    assert [event.account_id for event in events] == ["u", "v"]
    for batch in ([], [bad], [bad, bad]):
        with pytest.raises(InvalidWebhookSignature):
            events_of("microsoft-graph", {"value": batch})


@pytest.mark.parametrize("odd", [None, 7, "text", [], {"realmId": "2"}, {"dataChangeEvent": {}}, {"x": {"y": 1}}])
def test_a_quickbooks_batch_is_complete_whatever_one_element_is(odd: Any) -> None:
    entity = {"name": "Customer", "id": "1", "operation": "Create", "lastUpdated": "2026-11-22T12:00:00Z"}
    first = {"realmId": "1", "dataChangeEvent": {"entities": [entity, odd, {**entity, "id": "2"}]}}
    last = {"realmId": "3", "dataChangeEvent": {"entities": [entity]}}
    events = events_of("quickbooks", {"eventNotifications": [first, odd, last]})
    assert [(event.event_type, event.account_id) for event in events if event.event_type != "unknown.unknown"] == [
        ("Customer.Create", "1"),
        ("Customer.Create", "1"),
        ("Customer.Create", "3"),
    ]
    assert len(events) == 5
    cloud = {"id": "e1", "type": "qbo.customer.created.v1", "intuitaccountid": "1"}
    assert [event.event_id for event in events_of("quickbooks", [cloud, odd, {**cloud, "id": "e2"}])][::2] == [
        "e1",
        "e2",
    ]
    assert [event.event_id for event in events_of("quickbooks", cloud)] == ["e1"]


GUIDS = "11111111-2222-4333-8444-555555555555", "66666666-7777-4888-8999-000000000000"


@pytest.mark.parametrize(
    ("user", "account"),
    [
        (f"{GUIDS[0]}@{GUIDS[1]}", GUIDS[0]),
        (GUIDS[0], GUIDS[0]),
        ("ada@example.com", "ada@example.com"),
        (f"{GUIDS[0]}@example.com", f"{GUIDS[0]}@example.com"),
    ],
)
def test_graph_users_have_no_tenant(user: str, account: str) -> None:
    (event,) = events_of("microsoft-graph", {"value": [{**GOOD_NOTIFICATION, "resource": f"Users/{user}/Messages/m"}]})
    assert event.account_id == account


@pytest.mark.parametrize(
    ("fields", "account"),
    [
        ({"context": "acct_1"}, "acct_1"),
        ({"context": "org_1/acct_2"}, "acct_2"),
        ({"context": "org_1/acct_2", "account": "acct_3"}, "acct_3"),
        ({"context": {"id": "acct_1"}}, None),
        ({"context": "org_1/"}, None),
        ({}, None),
    ],
)
def test_thin_events_of_stripe_name_the_account_in_their_context(fields: dict[str, Any], account: str | None) -> None:
    (event,) = events_of("stripe", {"id": "evt_1", "object": "v2.core.event", "type": "v1.billing.meter", **fields})
    assert event.account_id == account


@pytest.mark.parametrize(
    ("resource", "account"),
    [
        (f"Users('{GUIDS[0]}')/messages('m')", GUIDS[0]),
        (f"users/{GUIDS[0]}", GUIDS[0]),
        (f"communications/presences('{GUIDS[0]}')", GUIDS[0]),
        (f"/communications/presences/{GUIDS[0]}", GUIDS[0]),
        ("me/messages", None),
        ("teams/t/channels/c/messages", None),
        ("", None),
    ],
)
def test_graph_changes_are_of_the_user_in_the_resource(resource: str, account: str | None) -> None:
    notification = {**GOOD_NOTIFICATION, "resource": resource, "subscriptionId": "s-1"}
    (event,) = events_of("microsoft-graph", {"value": [notification]})
    assert (event.account_id, event.route) == (account, "subscription:s-1")


@pytest.mark.parametrize("kind", ["reauthorizationRequired", "subscriptionRemoved", "missed"])
def test_graph_lifecycle_notifications_are_of_a_subscription(kind: str) -> None:
    notification = {"clientState": "our-client-state", "lifecycleEvent": kind, "subscriptionId": "s-1", "tenantId": "t"}
    (event,) = events_of("microsoft-graph", {"value": [notification]})
    assert (event.account_id, event.route) == (None, "subscription:s-1")


@pytest.mark.parametrize(
    ("event_type", "payload", "account"),
    [
        ("user.updated", {"object": {"id": "u1"}, "operator_id": "admin"}, "u1"),
        ("user.presence_status_updated", {"object": {"id": "u1", "email": "a@x.example"}}, "u1"),
        ("user.signed_in", {"object": {"id": "u1"}}, "u1"),
        ("user.deleted", {"object": {"email": "a@x.example"}, "operator_id": "admin"}, None),
        ("meeting.participant_joined", {"object": {"host_id": "u1", "participant": {"user_id": "7"}}}, "u1"),
        ("webinar.ended", {"object": {"id": 5, "host_id": "u1"}}, "u1"),
        ("recording.completed", {"object": {"host_id": "u1"}}, "u1"),
        ("phone.voicemail_received", {"object": {"user_id": "u1"}}, "u1"),
        ("chat_message.sent", {"operator_id": "u1", "object": {"id": "m1"}}, "u1"),
        ("meeting.deleted", {"object": {"id": 5}}, None),
        ("app_deauthorized", {"user_id": "u1", "object": {"host_id": "u2"}}, "u1"),
        ("meeting.started", None, None),
    ],
)
def test_zoom_events_are_of_a_user(event_type: str, payload: Any, account: str | None) -> None:
    (event,) = events_of("zoom", {"event": event_type, "payload": payload})
    assert event.account_id == account


OWN, OTHERS, ENTERPRISE = "T0OWN", "T0OTHERS", "E0"


@pytest.mark.parametrize(
    ("body", "account"),
    [
        ({"team_id": OTHERS, "authorizations": [{"team_id": OWN, "enterprise_id": None}]}, OWN),
        ({"team_id": OTHERS, "authorizations": [{"team_id": OWN, "enterprise_id": ENTERPRISE}]}, OWN),
        (
            {
                "team_id": OWN,
                "authorizations": [{"team_id": OWN, "enterprise_id": ENTERPRISE, "is_enterprise_install": True}],
            },
            ENTERPRISE,
        ),
        ({"team_id": OWN, "enterprise_id": ENTERPRISE, "is_enterprise_install": True}, ENTERPRISE),
        ({"team_id": OWN, "enterprise_id": ENTERPRISE, "is_enterprise_install": False}, OWN),
        ({"team_id": None, "enterprise_id": ENTERPRISE}, ENTERPRISE),
        ({"team_id": OWN, "authorizations": []}, OWN),
        ({"team_id": OWN, "authorizations": None}, OWN),
    ],
)
def test_events_of_slack_are_those_of_the_installation(body: dict[str, Any], account: str) -> None:
    (event,) = events_of("slack", {"type": "event_callback", "event": {"type": "message"}, **body})
    assert event.account_id == account


@pytest.mark.parametrize(
    ("payload", "account"),
    [
        ({"team": {"id": OTHERS}, "view": {"app_installed_team_id": OWN}}, OWN),
        ({"team": {"id": OWN}, "enterprise": {"id": ENTERPRISE}, "is_enterprise_install": False}, OWN),
        ({"team": {"id": OWN}, "enterprise": {"id": ENTERPRISE}, "is_enterprise_install": True}, ENTERPRISE),
        ({"team": None, "enterprise": {"id": ENTERPRISE}}, ENTERPRISE),
        ({"team": {"id": OWN}, "view": None}, OWN),
    ],
)
def test_interactions_of_slack_are_those_of_the_installation(payload: dict[str, Any], account: str) -> None:
    body = urlencode({"payload": json.dumps({"type": "view_submission", **payload})}).encode()
    (event,) = events_of("slack", body)
    assert (event.event_type, event.account_id) == ("view_submission", account)


@pytest.mark.parametrize(("flag", "account"), [("true", ENTERPRISE), ("false", OWN)])
def test_commands_of_slack_are_those_of_the_installation(flag: str, account: str) -> None:
    form = {"command": "/x", "team_id": OWN, "enterprise_id": ENTERPRISE, "is_enterprise_install": flag}
    (event,) = events_of("slack", urlencode(form).encode())
    assert event.account_id == account


def test_payloads_of_graph_do_not_contain_the_secret() -> None:
    (event,) = received(
        BY_NAME["microsoft-graph"].scheme, BY_NAME["microsoft-graph"].request, "our-client-state"
    ).events
    assert b"our-client-state" not in event.payload
    assert b'"@odata.etag":"W/\\"1\\""' in event.payload


def test_the_payload_of_a_single_event_is_the_body() -> None:
    for name in ("stripe", "square", "shopify", "github", "slack", "zoom", "standard"):
        sample = BY_NAME[name]
        (event,) = received(sample.scheme, sample.request, sample.secret).events
        assert event.payload == sample.body


def test_large_numbers_in_a_batch_are_preserved() -> None:
    (event,) = events_of("sendgrid", b'[{"event":"open","sg_event_id":"1","n":123456789012345678901234567890}]')
    assert b"123456789012345678901234567890" in event.payload


# --- forms


def test_github_forms_contain_json() -> None:
    body = b"payload=%7B%22action%22%3A%22a%2Bb%22%7D"
    (event,) = events_of("github", body, X_GitHub_Event="ping")
    assert (event.event_type, event.payload) == ("ping.a+b", body)


@pytest.mark.parametrize(
    "text",
    [
        "https://a.example/?a=1&command=/pay&team_id=T_VICTIM&text=now",
        "&payload=%7B%22type%22%3A%22block_actions%22%2C%22team%22%3A%7B%22id%22%3A%22T_VICTIM%22%7D%7D&",
        "x&team_id=T_VICTIM&enterprise_id=E1&is_enterprise_install=true&command=",
    ],
)
@pytest.mark.parametrize("begin", ["", " \n", "\ufeff"])
def test_text_that_somebody_posts_in_slack_is_not_read_as_a_form(text: str, begin: str) -> None:
    """Else anybody who can post a link in one team could make commands for another."""
    body = {"type": "event_callback", "event_id": "Ev1", "team_id": "T1", "event": {"type": "link", "url": text}}
    (event,) = events_of("slack", (begin + json.dumps(body)).encode())
    assert summary_of(event) == ("Ev1", "link", "T1")
    (control,) = events_of("slack", b"a=" + text.encode())
    assert control.account_id in {"T_VICTIM", "E1"}
    deep = json.dumps(body).encode()[:-1] + b',"x":' + b"[" * 100_001  # cannot be read
    with pytest.raises(MalformedWebhook):
        events_of("slack", deep)


@pytest.mark.parametrize("odd", [[], {}, [True], {"true": True}, 1.5, None, "TRUE", ["a", {}]])
def test_a_field_of_slack_may_have_any_type(odd: object) -> None:
    for body in ({"is_enterprise_install": odd}, {"authorizations": odd}, {"authorizations": [odd]}):
        (event,) = events_of("slack", {"type": "event_callback", "event": odd, "team_id": "T1", **body})
        assert event.account_id == "T1"
    payload = {"type": odd, "team": {"id": "T1"}, "is_enterprise_install": odd, "view": odd, "enterprise": odd}
    (event,) = events_of("slack", urlencode({"payload": json.dumps(payload)}).encode())
    assert event.account_id == "T1"


def test_slack_commands_and_interactions_are_forms() -> None:
    body = b"command=%2Fhi&team_id=T1&text=a+b"
    (command,) = events_of("slack", body)
    assert (command.event_type, command.account_id, command.payload) == ("slash_command", "T1", body)
    body = b"payload=%7B%22type%22%3A%22block_actions%22%2C%22team%22%3A%7B%22id%22%3A%22T2%22%7D%7D"
    (press,) = events_of("slack", body)
    assert (press.event_type, press.account_id, press.payload) == ("block_actions", "T2", body)


def test_the_payload_of_a_twilio_form_is_the_form() -> None:
    body = b"CallSid=CA1&CallStatus=completed&AccountSid=AC1"
    (event,) = events_of("twilio", body)
    assert (*summary_of(event)[1:], event.payload) == ("call.completed", "AC1", body)


# --- what ends our access


@pytest.mark.parametrize(
    ("name", "body", "headers", "account_id"),
    [
        ("stripe", {"id": "evt_2", "type": "account.application.deauthorized", "account": "acct_1"}, {}, "acct_1"),
        ("square", {"event_id": "e", "type": "oauth.authorization.revoked", "merchant_id": "M1"}, {}, "M1"),
        (
            "zoom",
            {"event": "app_deauthorized", "event_ts": 1, "payload": {"account_id": "A1", "user_id": "u1"}},
            {},
            "u1",
        ),
        (
            "shopify",
            {"id": 1, "myshopify_domain": "ada.myshopify.com"},
            {"X_Shopify_Topic": "app/uninstalled"},
            "ada.myshopify.com",
        ),
        (
            "github",
            {"action": "revoked", "sender": {"id": 7, "login": "ada"}},
            {"X_GitHub_Event": "github_app_authorization"},
            "7",
        ),
        (
            "slack",
            {"type": "event_callback", "event_id": "E", "team_id": "T1", "event": {"type": "app_uninstalled"}},
            {},
            "T1",
        ),
        (
            "slack",
            {
                "type": "event_callback",
                "event_id": "E",
                "team_id": "T1",
                "event": {"type": "tokens_revoked", "tokens": {"oauth": [], "bot": ["U1"]}},
            },
            {},
            "T1",
        ),
    ],
)
def test_events_that_end_our_access(name: str, body: object, headers: dict[str, str], account_id: str) -> None:
    (event,) = events_of(name, body, **headers)
    assert event.reports_grant_end
    assert event.account_id == account_id


def test_the_deauthorize_callback_of_meta_ends_the_grant() -> None:
    value = {"algorithm": "HMAC-SHA256", "issued_at": 1, "user_id": "218471"}
    (event,) = received(META, post(signed_request("s", value), {}), "s").events
    assert (event.event_type, event.account_id, event.reports_grant_end) == ("deauthorize", "218471", True)
    assert event.payload == signed_request("s", value)


def test_the_deauthorize_callback_of_instagram_names_the_id_in_our_app() -> None:
    value = {"algorithm": "HMAC-SHA256", "user_id": 218471}
    (event,) = received(INSTAGRAM, post(signed_request("s", value), {}), "s").events
    assert (event.account_id, event.route, event.reports_grant_end) == (None, "app_user:218471", True)


@pytest.mark.parametrize(
    ("name", "body", "headers"),
    [
        # The topic is not signed, so the body must name the same shop.
        ("shopify", {"id": 1}, {"X_Shopify_Topic": "app/uninstalled"}),
        ("shopify", {"myshopify_domain": "eve.myshopify.com"}, {"X_Shopify_Topic": "app/uninstalled"}),
        ("shopify", {"myshopify_domain": "ada.myshopify.com"}, {"X_Shopify_Topic": "shop/update"}),
        ("github", {"action": "deleted", "sender": {"id": 7}}, {"X_GitHub_Event": "github_app_authorization"}),
        ("github", {"action": "revoked", "sender": {"id": 7}}, {"X_GitHub_Event": "star"}),
        # The token of a user is not that of the bot.
        (
            "slack",
            {"type": "event_callback", "event": {"type": "tokens_revoked", "tokens": {"oauth": ["U1"], "bot": []}}},
            {},
        ),
        ("slack", {"type": "event_callback", "event": {"type": "message", "text": "app_uninstalled"}}, {}),
        ("stripe", {"id": "evt_3", "type": "account.application.authorized", "account": "acct_1"}, {}),
        ("square", {"type": "payment.created", "data": {"type": "oauth.authorization.revoked"}}, {}),
        ("zoom", {"event": "meeting.ended", "payload": {"event": "app_deauthorized"}}, {}),
    ],
)
def test_events_that_do_not_end_our_access(name: str, body: object, headers: dict[str, str]) -> None:
    (event,) = events_of(name, body, **headers)
    assert not event.reports_grant_end


# --- odd, and not signed


def test_invalid_informational_headers_are_ignored() -> None:
    sample = BY_NAME["shopify"]
    for value in (b"", b"\xff", b"x" * 300, b"a\tb"):
        request = with_header(sample.request, "X-Shopify-Webhook-Id", value)
        (event,) = received(sample.scheme, request, sample.secret).events
        assert event.event_id.startswith("sha256-")
    twice = replace(sample.request, headers=[*sample.request.headers, ("x-shopify-topic", b"app/uninstalled")])
    (event,) = received(sample.scheme, twice, sample.secret).events
    assert event.event_type == "unknown"


def test_bodies_are_not_in_repr() -> None:
    body = b'{"id":"evt_1","type":"t","secret":"hush"}'
    sample = BY_NAME["stripe"]
    request = sample.sign(sample.secret, body, NOW)
    assert "hush" not in repr(request)
    assert "hush" not in repr(received(sample.scheme, request, sample.secret))
    signature = hex_hmac(sample.secret, seconds(NOW).encode() + b"." + body)
    assert signature not in repr(request)


# --- other spellings of the same request


@pytest.mark.parametrize(
    "settings",
    [
        "key=KY1,algorithm=HMAC_SHA256",
        "algorithm=hmac_sha256, key=KY1",
        'key="KY1"; v=1,algorithm="HMAC_SHA256"',
        "algorithm= HMAC_SHA256 ",
        "a,algorithm=HMAC_SHA256,b=",
    ],
)
def test_twilio_names_its_algorithm_in_any_spelling(settings: str) -> None:
    sample = BY_NAME["twilio-sha256"]
    request = with_header(sample.request, "X-Twilio-Webhooks-Signature-Settings", settings.encode())
    assert len(received(sample.scheme, request, sample.secret).events) == 1


@pytest.mark.parametrize("settings", ["key=KY1", "algorithm=", "algorithm=HMAC_MD5", "algorithm=HMAC_SHA1", "", "\xff"])
def test_negative_control_twilio_with_another_algorithm_is_not_verified(settings: str) -> None:
    sample = BY_NAME["twilio-sha256"]
    request = with_header(sample.request, "X-Twilio-Webhooks-Signature-Settings", settings.encode("latin-1"))
    with pytest.raises(InvalidWebhookSignature):
        received(sample.scheme, request, sample.secret)


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title, str.swapcase])
@pytest.mark.parametrize("name", ["standard", "svix", "acuity", "quickbooks"])
def test_names_of_headers_are_in_any_case(name: str, change: Any) -> None:
    sample = BY_NAME[name]
    request = with_headers(sample.request, lambda headers: [(change(key), value) for key, value in headers])
    assert len(received(sample.scheme, request, sample.secret).events) == 1


@pytest.mark.parametrize("prefix", ["", "whsec_", "v1,whsec_", "v1,"])
@pytest.mark.parametrize("ending", ["", "=", "=="])
def test_secrets_of_standard_webhooks_are_accepted_with_and_without_prefix(prefix: str, ending: str) -> None:
    sample = BY_NAME["standard"]
    key = sample.secret.removeprefix("whsec_").rstrip("=")
    assert len(received(sample.scheme, sample.request, f"{prefix}{key}{ending}").events) == 1
