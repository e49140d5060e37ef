import base64
import hmac
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from integration_server.domain.webhooks import InvalidWebhookSignature, WebhookRequest
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.scheme import WebhookKeys, WebhookScheme
from integration_server.providers.webhooks.sendgrid import SendGridScheme
from tests.unit.providers.webhooks.forgeries import content_forgeries, forgeries, time_forgeries
from tests.unit.providers.webhooks.samples import (
    NOW,
    SAMPLES,
    URL,
    Sample,
    accepts,
    base64_hmac,
    post,
    received,
    seconds,
    twilio_message,
    with_header,
)

each_scheme = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
each_with_time = pytest.mark.parametrize(
    "sample", [sample for sample in SAMPLES if sample.checks_timestamp], ids=lambda sample: sample.name
)


# --- forged ones: none is taken


def test_no_forgery_is_accepted() -> None:
    tried = [(sample, name, request) for sample in SAMPLES for name, request in forgeries(sample)]
    accepted = [
        f"{sample.name}: {name}" for sample, name, request in tried if accepts(sample.scheme, request, sample.secret)
    ]
    print(f"forged webhooks accepted: {len(accepted)} of {len(tried)}, over {len(SAMPLES)} schemes")
    assert accepted == []
    assert len(tried) > 500


@each_scheme
def test_a_genuine_request_is_accepted(sample: Sample) -> None:
    (event,) = received(sample.scheme, sample.request, sample.secret).events
    assert event.event_id
    assert event.event_type != "unknown"
    assert not event.reports_grant_end


class AcceptAnySignature:
    """Disables the comparison of signatures for the duration of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hmac, "compare_digest", lambda a, b: True)

    @staticmethod
    def accepting(scheme: WebhookScheme) -> WebhookScheme:
        return AcceptingSendGridScheme() if isinstance(scheme, SendGridScheme) else scheme


class AcceptingSendGridScheme(SendGridScheme):
    """Accepts any signature."""

    def is_signed(self, key: str, signature: bytes, message: bytes) -> bool:
        return True


@each_scheme
def test_negative_control_without_comparison_forgeries_are_accepted(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_any_signature = AcceptAnySignature(monkeypatch).accepting(sample.scheme)
    tried = list(content_forgeries(sample))
    accepted = [name for name, request in tried if accepts(accept_any_signature, request, sample.secret)]
    assert "signed with another secret" in accepted
    # All of them, except altered bodies that no longer state their type.
    assert len(accepted) >= len(tried) // 2


# --- time


@each_with_time
@pytest.mark.parametrize("off", [-299, -1, 0, 1, 299])
def test_is_accepted_within_five_minutes(sample: Sample, off: int) -> None:
    request = sample.sign(sample.secret, sample.body, NOW + timedelta(seconds=off))
    assert accepts(sample.scheme, request, sample.secret)


@each_with_time
@pytest.mark.parametrize("off", [-301, 301, -86_400, 86_400])
def test_is_rejected_beyond_five_minutes_in_either_direction(sample: Sample, off: int) -> None:
    request = sample.sign(sample.secret, sample.body, NOW + timedelta(seconds=off))
    assert not accepts(sample.scheme, request, sample.secret)


@each_with_time
def test_negative_control_with_a_wide_tolerance_old_requests_are_accepted(sample: Sample) -> None:
    tried = list(time_forgeries(sample))
    assert [name for name, request in tried if accepts(_tolerant(sample.scheme), request, sample.secret)] == [
        name for name, _ in tried
    ]


def _tolerant(scheme: WebhookScheme) -> WebhookScheme:
    year = timedelta(days=365)
    assert isinstance(scheme, HmacScheme)
    assert scheme.timestamp is not None
    return replace(scheme, timestamp=replace(scheme.timestamp, tolerance=year))


def test_without_a_documented_tolerance_a_late_delivery_is_accepted() -> None:
    """SendGrid retries for a day, and does not document a new signature. The ids of its events are signed."""
    (sample,) = (sample for sample in SAMPLES if sample.name == "sendgrid")
    late = sample.sign(sample.secret, sample.body, NOW - timedelta(hours=20))
    assert accepts(sample.scheme, late, sample.secret)
    again = sample.sign(sample.secret, sample.body, NOW)
    ids = {received(sample.scheme, request, sample.secret).events[0].event_id for request in (late, again)}
    assert len(ids) == 1


# --- secrets


@each_scheme
def test_both_secrets_are_valid_during_a_rotation(sample: Sample) -> None:
    for secrets in ((sample.secret, sample.other_secret), (sample.other_secret, sample.secret)):
        assert accepts(sample.scheme, sample.request, *secrets)
        assert accepts(sample.scheme, sample.sign(sample.other_secret, sample.body, NOW), *secrets)
    assert not accepts(sample.scheme, sample.request, sample.other_secret)


@each_scheme
@pytest.mark.parametrize("secrets", [(), ("",), ("", "")], ids=["none", "an empty one", "two empty ones"])
def test_without_a_secret_nothing_is_accepted(sample: Sample, secrets: tuple[str, ...]) -> None:
    assert not accepts(sample.scheme, sample.request, *secrets)
    assert not accepts(sample.scheme, sample.sign("", sample.body, NOW), *secrets)


def test_negative_control_an_empty_secret_accepts_forgeries() -> None:
    """Without the check of `WebhookKeys`, a request signed with an empty secret is accepted."""
    unguarded = object.__new__(WebhookKeys)
    object.__setattr__(unguarded, "secrets", ("",))
    object.__setattr__(unguarded, "verify_tokens", ())
    accepting_schemes = [
        sample.name for sample in SAMPLES if _receives(sample.scheme, sample.sign("", sample.body, NOW), unguarded)
    ]
    assert len(accepting_schemes) >= 12


def _receives(scheme: WebhookScheme, request: WebhookRequest, keys: WebhookKeys) -> bool:
    try:
        scheme.receive(request, keys, NOW)
    except InvalidWebhookSignature:
        return False
    return True


def test_secrets_are_not_in_repr() -> None:
    assert "hush" not in repr(WebhookKeys(["hush"], ["hush"]))


# --- forms in which there is more than one to read


def test_a_stripe_timestamp_must_occur_once() -> None:
    """Otherwise the checked timestamp might not be the signed one."""
    sample = next(sample for sample in SAMPLES if sample.name == "stripe")
    old = sample.sign(sample.secret, sample.body, NOW - timedelta(days=1))
    recorded = dict(old.headers)["Stripe-Signature"]
    for value in (f"t={seconds(NOW)},".encode() + recorded, recorded + f",t={seconds(NOW)}".encode()):
        assert not accepts(sample.scheme, with_header(old, "Stripe-Signature", value), sample.secret)
    twice = dict(sample.request.headers)["Stripe-Signature"] + f",t={seconds(NOW)}".encode()
    assert not accepts(sample.scheme, with_header(sample.request, "Stripe-Signature", twice), sample.secret)


def test_one_v1_signature_of_stripe_must_match() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "stripe")
    time, signature = dict(sample.request.headers)["Stripe-Signature"].split(b",")

    def accepted(*parts: bytes) -> bool:
        request = with_header(sample.request, "Stripe-Signature", b",".join(parts))
        return accepts(sample.scheme, request, sample.secret)

    other = b"v1=" + b"0" * 64
    assert accepted(time, other, signature)
    assert accepted(time, signature, other, b"v0=" + b"0" * 64)
    assert accepted(signature, time)
    assert not accepted(time, other)
    assert not accepted(time, signature.replace(b"v1", b"v0"))
    assert not accepted(time, signature.replace(b"v1", b"v11"))
    assert not accepted(time)
    assert not accepted(signature)


def test_one_v1_signature_of_standard_webhooks_must_match() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "standard")
    signature = dict(sample.request.headers)["webhook-signature"]

    def accepted(value: bytes) -> bool:
        return accepts(sample.scheme, with_header(sample.request, "webhook-signature", value), sample.secret)

    assert accepted(b"v1,AAAA v1a,BBBB " + signature)
    assert not accepted(signature.replace(b"v1,", b"v1a,"))
    assert not accepted(signature.replace(b"v1,", b""))
    assert not accepted(b"v1,")


def test_a_standard_secret_without_a_key_is_not_the_empty_key() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "standard")
    for secret in ("whsec_", "whsec_!"):
        assert not accepts(sample.scheme, sample.sign("whsec_", sample.body, NOW), secret)


def test_a_sendgrid_signature_must_be_canonical_base64() -> None:
    """The last digit of base64 may have unused bits."""
    sample = next(sample for sample in SAMPLES if sample.name == "sendgrid")
    requests = [sample.sign(sample.secret, b"[]" + b" " * number, NOW) for number in range(20)]
    request = next(request for request in requests if dict(request.headers)[sample.signature_header].endswith(b"="))
    signature = dict(request.headers)[sample.signature_header]
    assert accepts(sample.scheme, request, sample.secret)
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = signature.rstrip(b"=")[-1:]
    same_bytes = signature.replace(last + b"=", digits[digits.index(last) + 1 :][:1] + b"=")
    assert base64.b64decode(same_bytes) == base64.b64decode(signature)
    assert not accepts(sample.scheme, with_header(request, sample.signature_header, same_bytes), sample.secret)


def test_a_key_of_another_curve_does_not_verify_sendgrid() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "sendgrid")
    for key in (ec.derive_private_key(11, ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        message = seconds(NOW).encode() + sample.body
        made = (
            key.sign(message, ec.ECDSA(SHA256())) if isinstance(key, ec.EllipticCurvePrivateKey) else key.sign(message)
        )
        request = with_header(sample.request, sample.signature_header, base64.b64encode(made))
        assert not accepts(sample.scheme, request, base64.b64encode(public).decode())


# --- what is signed of a URL


def test_hubspot_signs_twelve_characters_of_a_url_decoded() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "hubspot")
    body, timestamp = sample.body, f"{seconds(NOW)}000"

    def accepted(signed: str, called: str) -> bool:
        signature = base64_hmac(sample.secret, f"POST{signed}".encode() + body + timestamp.encode())
        headers = {"X-HubSpot-Signature-v3": signature, "X-HubSpot-Request-Timestamp": timestamp}
        return accepts(sample.scheme, post(body, headers, called), sample.secret)

    called = f"{URL}?a=%3A%2f%3F%40%21%24%27%28%29%2A%2C%3B"
    assert accepted(f"{URL}?a=:/?@!$'()*,;", called)
    assert not accepted(called, called)
    # All other characters stay encoded.
    assert accepted(f"{URL}?a=%20%26%3D%2B%25%C3%A9", f"{URL}?a=%20%26%3D%2B%25%C3%A9")


# --- size


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if sample.signs_body], ids=lambda sample: sample.name)
def test_ten_megabytes_are_verified_to_the_last_byte(sample: Sample) -> None:
    pad = b"x" * 10_000_000
    body = b"a=" + pad if sample.name == "twilio" else b'{"id":"' + pad + b'"}'
    request = sample.sign(sample.secret, body, NOW)
    assert accepts(sample.scheme, request, sample.secret)
    assert not accepts(sample.scheme, replace(request, body=body[:-3] + b'y"}'), sample.secret)


# --- every byte counts


@st.composite
def flipped(draw: st.DrawFn) -> tuple[Sample, WebhookRequest]:
    """A genuine request with one changed byte in the signed part or the signature."""
    sample = draw(st.sampled_from(SAMPLES))
    request = sample.request
    parts = [name for name in (sample.signature_header, sample.timestamp_header) if name]
    parts += ["body"] if sample.signs_body or sample.covered else []
    parts += ["url"] if sample.signs_url else []
    part = draw(st.sampled_from(parts))
    mask = draw(st.integers(1, 255))
    if part == "body":
        covered = sample.covered or request.body
        return sample, replace(request, body=request.body.replace(covered, _flip(draw, covered, mask)))
    if part == "url":
        return sample, replace(request, url=_flip(draw, request.url.encode(), mask).decode("latin-1"))
    value = dict(request.headers)[part]
    return sample, with_header(request, part, _flip(draw, value, mask))


def _flip(draw: st.DrawFn, value: bytes, mask: int) -> bytes:
    place = draw(st.integers(0, len(value) - 1))
    return value[:place] + bytes([value[place] ^ mask]) + value[place + 1 :]


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(flipped())
def test_one_flipped_byte_is_a_forgery(case: tuple[Sample, WebhookRequest]) -> None:
    sample, request = case
    # The borders between Twilio's names and values are not signed.
    assume(sample.name != "twilio" or _is_another(sample, request))
    assert not accepts(sample.scheme, request, sample.secret)


def _is_another(sample: Sample, request: WebhookRequest) -> bool:
    if request.headers != sample.request.headers:
        return True
    try:
        return twilio_message(request.url, request.body) != twilio_message(sample.request.url, sample.body)
    except UnicodeDecodeError:
        return True


def test_negative_control_without_comparison_flipped_bytes_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceptAnySignature(monkeypatch)
    (sample,) = (sample for sample in SAMPLES if sample.name == "github")
    assert accepts(sample.scheme, replace(sample.request, body=b"~" + sample.body[1:]), sample.secret)
