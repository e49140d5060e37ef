"""Handshakes: how providers verify an address."""

import hmac
import json
from dataclasses import replace

import pytest

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.webhooks.dropbox import DROPBOX
from integration_server.providers.webhooks.google_channel import GOOGLE_CHANNEL
from integration_server.providers.webhooks.meta import META
from integration_server.providers.webhooks.microsoft_graph import MICROSOFT_GRAPH
from integration_server.providers.webhooks.scheme import MalformedWebhook, WebhookScheme
from integration_server.providers.webhooks.slack import SLACK
from integration_server.providers.webhooks.zoom import ZOOM
from tests.unit.providers.webhooks.samples import (
    NOW,
    SAMPLES,
    URL,
    XERO,
    Sample,
    accepts,
    hex_hmac,
    received,
    seconds,
    signed_request,
    with_header,
)

BY_NAME = {sample.name: sample for sample in SAMPLES}


def get(query: str) -> WebhookRequest:
    return WebhookRequest("GET", f"{URL}?{query}", [], b"")


def signed(sample: Sample, body: object) -> WebhookRequest:
    return sample.sign(sample.secret, json.dumps(body).encode(), NOW)


def response_of(scheme: WebhookScheme, request: WebhookRequest, *secrets: str) -> ReceivedWebhook:
    """The result of a handshake: status 200 and no events."""
    result = received(scheme, request, *secrets)
    assert (result.response.status, list(result.events)) == (200, [])
    return result


def test_only_a_signed_handshake_is_verified() -> None:
    slack = signed(BY_NAME["slack"], {"challenge": "3eZbrw1aBm2rZgRN", "type": "url_verification"})
    assert response_of(SLACK, slack, BY_NAME["slack"].secret).response.is_verified
    assert not response_of(DROPBOX, get("challenge=a"), "s").response.is_verified
    graph = replace(get("validationToken=a"), method="POST")
    assert not response_of(MICROSOFT_GRAPH, graph, "s").response.is_verified


# --- Slack


def test_slack_challenge_is_echoed() -> None:
    sample = BY_NAME["slack"]
    request = signed(sample, {"token": "t", "challenge": "3eZbrw1aBm2rZgRN", "type": "url_verification"})
    response = response_of(SLACK, request, sample.secret).response
    assert (response.body, response.headers["Content-Type"]) == (
        b'{"challenge":"3eZbrw1aBm2rZgRN"}',
        "application/json",
    )
    assert not accepts(SLACK, replace(request, headers=[]), sample.secret)


def form(body: bytes, method: str = "POST", url: str = URL) -> WebhookRequest:
    return WebhookRequest(method, url, [("Content-Type", b"application/x-www-form-urlencoded")], body)


@pytest.mark.parametrize(
    "request_",
    [
        form(b"ssl_check=1&token=t"),
        form(b"token=t&ssl_check=1"),
        form(b"ssl_check=1"),
        get("ssl_check=1&token=t"),
        form(b"ssl_check=1&token="),
    ],
)
def test_slack_may_check_the_certificate_without_a_signature(request_: WebhookRequest) -> None:
    response = response_of(SLACK, request_, "s").response
    assert (response.body, response.is_verified) == (b"", False)


@pytest.mark.parametrize(
    "request_",
    [
        form(b"ssl_check=0&token=t"),
        form(b"ssl_check=1&command=/pay&team_id=T1"),
        form(b"ssl_check=1&payload={}"),
        form(b"command=/pay&team_id=T1", url=f"{URL}?ssl_check=1"),
        form(b'{"ssl_check":"1"}'),
        form(b""),
        get("ssl_check=2"),
        form(b"ssl_check=1", method="PUT"),
    ],
)
def test_nothing_else_of_slack_is_accepted_without_a_signature(request_: WebhookRequest) -> None:
    assert not accepts(SLACK, request_, "s")


# --- Zoom


def test_zoom_token_is_returned_with_its_hmac() -> None:
    sample = BY_NAME["zoom"]
    body = {"event": "endpoint.url_validation", "payload": {"plainToken": "qgg8vlvZRS6UYooatFL8Aw"}}
    response = response_of(ZOOM, signed(sample, body), sample.other_secret, sample.secret).response
    assert json.loads(response.body) == {
        "plainToken": "qgg8vlvZRS6UYooatFL8Aw",
        "encryptedToken": hex_hmac(sample.secret, b"qgg8vlvZRS6UYooatFL8Aw"),
    }


def test_zoom_challenge_signs_nothing_for_attackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response uses the signing key, so an arbitrary token would let an attacker sign any event."""
    sample = BY_NAME["zoom"]
    wanted = f'v0:{seconds(NOW)}:{{"event":"app_deauthorized","payload":{{"user_id":"u1"}}}}'
    body = {"event": "endpoint.url_validation", "payload": {"plainToken": wanted}}
    stranger = with_header(signed(sample, body), "x-zm-signature", b"v0=" + b"0" * 64)
    with pytest.raises(InvalidWebhookSignature):
        received(ZOOM, stranger, sample.secret)
    # Even without the check of the signature, a signed message is not a valid token.
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: True)
    with pytest.raises(MalformedWebhook):
        received(ZOOM, stranger, sample.secret)


def test_negative_control_an_unguarded_challenge_signs_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = BY_NAME["zoom"]
    token = "anything-goes"
    with monkeypatch.context() as unguarded:
        unguarded.setattr(hmac, "compare_digest", lambda a, b: True)
        body = {"event": "endpoint.url_validation", "payload": {"plainToken": token}}
        stranger = with_header(signed(sample, body), "x-zm-signature", b"v0=" + b"0" * 64)
        forged_signature = json.loads(received(ZOOM, stranger, sample.secret).response.body)["encryptedToken"]
    assert forged_signature == hex_hmac(sample.secret, token.encode())


# --- Xero


def test_xero_intent_to_receive_gets_200_or_401() -> None:
    """The body is that of developer.xero.com, Configuring your server."""
    sample = BY_NAME["xero"]
    body = {"events": [], "lastEventSequence": 0, "firstEventSequence": 0, "entropy": "S0m3r4Nd0mt3xt"}
    response = response_of(XERO, signed(sample, body), sample.secret).response
    assert (response.body, dict(response.headers)) == (b"", {})
    with pytest.raises(InvalidWebhookSignature):
        received(XERO, signed(sample, body), sample.other_secret)


# --- Dropbox


def test_dropbox_challenge_is_echoed_as_text() -> None:
    response = response_of(DROPBOX, get("challenge=Ab-1%3Cscript%3E"), "s").response
    assert response.body == b"Ab-1<script>"
    assert response.headers == {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}


@pytest.mark.parametrize(
    "query", ["", "challenge=", "challenge=a&challenge=b", "challenge=%0Aa", f"challenge={'x' * 300}", "challenge=%FF"]
)
def test_other_queries_of_dropbox_are_rejected(query: str) -> None:
    with pytest.raises(InvalidWebhookSignature):
        received(DROPBOX, get(query), "s")


# --- Microsoft Graph


def test_graph_validation_token_is_echoed_as_text() -> None:
    request = replace(get("validationToken=Validation%3A+Testing%2Bclient%20%26+%3Cb%3E"), method="POST")
    response = response_of(MICROSOFT_GRAPH, request, "s").response
    assert response.body == b"Validation: Testing+client & <b>"
    assert response.headers["Content-Type"].startswith("text/plain")
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_notification_with_a_validation_token_has_no_events() -> None:
    sample = BY_NAME["microsoft-graph"]
    request = replace(sample.request, url=f"{URL}?validationToken=x")
    assert received(MICROSOFT_GRAPH, request, sample.secret).events == ()


# --- Meta

SUBSCRIBE = "hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=meatyhamhock"


def test_meta_challenge_is_echoed_for_a_valid_verify_token() -> None:
    result = received(META, get(SUBSCRIBE), "app-secret", verify_tokens=["meatyhamhock"])
    assert (result.response.body, result.events) == (b"1158201444", ())


@pytest.mark.parametrize(
    ("query", "tokens"),
    [
        (SUBSCRIBE, []),
        (SUBSCRIBE, ["another"]),
        (SUBSCRIBE.replace("subscribe", "unsubscribe"), ["meatyhamhock"]),
        (SUBSCRIBE.replace("&hub.challenge=1158201444", ""), ["meatyhamhock"]),
        (SUBSCRIBE.replace("meatyhamhock", ""), ["meatyhamhock"]),
        (SUBSCRIBE + "&hub.verify_token=x", ["meatyhamhock"]),
        (SUBSCRIBE.replace("meatyhamhock", "app-secret"), ["meatyhamhock"]),
        ("", ["meatyhamhock"]),
    ],
)
def test_meta_challenge_is_rejected_otherwise(query: str, tokens: list[str]) -> None:
    with pytest.raises(InvalidWebhookSignature):
        received(META, get(query), "app-secret", verify_tokens=tokens)


def test_the_verify_token_does_not_verify_events() -> None:
    """The token is entered in a form and may be short, so it is not a key."""
    sample = BY_NAME["meta"]
    request = sample.sign("meatyhamhock", sample.body, NOW)
    with pytest.raises(InvalidWebhookSignature):
        received(META, request, sample.secret, verify_tokens=["meatyhamhock"])
    request = WebhookRequest("POST", URL, [], signed_request("meatyhamhock", {"algorithm": "HMAC-SHA256"}))
    with pytest.raises(InvalidWebhookSignature):
        received(META, request, sample.secret, verify_tokens=["meatyhamhock"])
    assert received(META, request, "meatyhamhock").events


def test_a_signed_request_must_name_its_algorithm() -> None:
    for algorithm in ("none", "HMAC-SHA1", None, ""):
        request = WebhookRequest("POST", URL, [], signed_request("s", {"algorithm": algorithm, "user_id": "1"}))
        with pytest.raises(InvalidWebhookSignature):
            received(META, request, "s")


@pytest.mark.parametrize(
    "body",
    [
        b"signed_request=",
        b"signed_request=.",
        b"signed_request=a",
        b"signed_request=a.b.c",
        b"signed_request=\xff.a",
        b"signed_request=%C3%A9.a",
        b"signed_request=a.b&signed_request=a.b",
        b"signed_request=a.b&x=y",
    ],
)
def test_a_malformed_signed_request_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidWebhookSignature):
        received(META, WebhookRequest("POST", URL, [], body), "s")
    with pytest.raises(InvalidWebhookSignature):
        received(META, WebhookRequest("PUT", URL, [], body), "s")


# --- Google


def test_the_sync_message_of_google_has_no_events() -> None:
    sample = BY_NAME["google-channel"]
    response_of(GOOGLE_CHANNEL, with_header(sample.request, "X-Goog-Resource-State", b"sync"), sample.secret)
    with pytest.raises(InvalidWebhookSignature):
        received(GOOGLE_CHANNEL, with_header(sample.request, "X-Goog-Resource-State", b"sync"), sample.other_secret)


# --- all others


@pytest.mark.parametrize(
    "sample",
    [sample for sample in SAMPLES if sample.name not in {"dropbox", "meta", "twilio", "twilio-json", "twilio-sha256"}],
    ids=lambda sample: sample.name,
)
def test_other_schemes_reject_get(sample: Sample) -> None:
    assert not accepts(sample.scheme, replace(sample.request, method="GET"), sample.secret)
