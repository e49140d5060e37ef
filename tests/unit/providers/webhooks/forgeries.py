"""Forgeries of genuine requests, made without the secret. All of them must be rejected."""

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from integration_server.domain.webhooks import WebhookRequest
from tests.unit.providers.webhooks.samples import NOW, SAMPLES, Sample, with_header, with_headers

LATE = timedelta(seconds=301)


def content_forgeries(sample: Sample) -> Iterator[tuple[str, WebhookRequest]]:
    """Well-formed requests that are altered, or signed with another secret."""
    yield "signed with another secret", sample.sign(sample.other_secret, sample.body, NOW)
    if sample.signs_body:
        for name, body in _altered(sample.body):
            yield name, replace(sample.request, body=body)
    if sample.signs_url:
        url = sample.request.url
        for name, other in (
            ("query", f"{url}{'&' if '?' in url else '?'}x=1"),
            ("path", url.replace("/e1", "/e2")),
            ("host", url.replace("hooks.example", "hooks.other.example")),
            ("scheme", url.replace("https:", "http:")),
        ):
            yield f"other {name}", replace(sample.request, url=other)


def _altered(body: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty body", b""
    yield "longer body", body + b" "
    yield "shorter body", body[:-1]
    yield "altered body", body.replace(b"1", b"2")
    yield "another body", b'{"id":"evt_2"}'
    try:
        value = json.loads(body)
    except ValueError:
        return
    yield "re-encoded JSON", json.dumps(value, indent=1).encode()
    yield "JSON with other spaces", json.dumps(value).encode()
    yield "two bodies", body + body


def time_forgeries(sample: Sample) -> Iterator[tuple[str, WebhookRequest]]:
    """Genuine requests with a timestamp that is too far from now."""
    if sample.checks_timestamp:
        yield "from 301 s ago", sample.sign(sample.secret, sample.body, NOW - LATE)
        yield "from 301 s ahead", sample.sign(sample.secret, sample.body, NOW + LATE)


def form_forgeries(sample: Sample) -> Iterator[tuple[str, WebhookRequest]]:
    """Malformed requests."""
    request = sample.request
    yield "PUT", replace(request, method="PUT")
    yield "signed with no secret", sample.sign("", sample.body, NOW)
    for header in filter(None, (sample.signature_header, sample.timestamp_header)):
        yield from _without_its_header(request, header)
    if sample.signature_header:
        value = dict(request.headers)[sample.signature_header]
        for name, other in _other_values(sample, value):
            if other != value:
                yield f"signature {name}", with_header(request, sample.signature_header, other)
    if sample.timestamp_header:
        value = dict(request.headers)[sample.timestamp_header]
        for name, other in _other_times(value):
            yield f"timestamp {name}", with_header(request, sample.timestamp_header, other)


def _without_its_header(request: WebhookRequest, header: str) -> Iterator[tuple[str, WebhookRequest]]:
    yield f"no {header}", with_headers(request, lambda all_: [pair for pair in all_ if pair[0] != header])
    yield f"empty {header}", with_header(request, header, b"")
    yield f"non-ASCII {header}", with_header(request, header, dict(request.headers)[header] + "é".encode())
    yield f"not even text {header}", with_header(request, header, b"\xff\xfe\x00")
    value = dict(request.headers)[header]
    for name, extra in (("twice", (header, value)), ("twice in another case", (header.upper(), value))):
        yield f"{header} {name}", with_headers(request, lambda all_, extra=extra: [*all_, extra])  # type: ignore[misc]
    yield f"{header} with another", with_headers(request, lambda all_: [*all_, (header.lower(), b"x")])
    yield f"{header} after another", with_headers(request, lambda all_: [(header, b"x"), *all_])


def _other_values(sample: Sample, value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "in upper case", value.upper()
    yield "in lower case", value.lower()
    yield "shorter", value[:-1]
    yield "longer", value + b"0"
    yield "of one character", value[:1]
    yield "without its prefix", value.rpartition(b"=")[2] if value.count(b"=") == 1 else value[1:]
    yield "of another prefix", b"sha1=" + value.partition(b"=")[2]
    yield "of another version", value.replace(b"v1", b"v2").replace(b"v0=", b"v1=")
    yield "backwards", value[::-1]
    yield "of zeros", b"0" * len(value)
    yield "a list in JSON", b'["' + value + b'"]'
    yield "null", b"null"
    if not sample.lists_signatures:
        yield "with a space before", b" " + value
        yield "with a space after", value + b" "
        yield "merged with itself", value + b", " + value
    yield from _recoded(value)


def _recoded(value: bytes) -> Iterator[tuple[str, bytes]]:
    prefix, sign, digest = value.rpartition(b"=") if value.startswith((b"v0=", b"sha256=")) else (b"", b"", value)
    with contextlib.suppress(binascii.Error):
        yield "as base64", prefix + sign + base64.b64encode(binascii.unhexlify(digest))
    try:
        raw = base64.b64decode(digest, validate=True)
    except binascii.Error:
        return
    yield "as hex", prefix + sign + raw.hex().encode()
    yield "for URLs", base64.urlsafe_b64encode(raw).rstrip(b"=")
    yield "as bytes", raw


def _other_times(value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "of a second later", str(int(value) + 1).encode()
    yield "with a fraction", value + b".0"
    yield "with an exponent", b"1e9"
    yield "negative", b"-" + value
    yield "with a sign", b"+" + value
    yield "with a space", b" " + value
    yield "with an underscore", value[:1] + b"_" + value[1:]
    yield "in other digits", "".join(chr(0x0660 + int(digit)) for digit in value.decode()).encode()
    yield "beyond all clocks", b"9" * 400
    yield "not a number", b"nan"


def cross_scheme_forgeries(sample: Sample) -> Iterator[tuple[str, WebhookRequest]]:
    """Requests that are signed with the same secret for other schemes."""
    for other in SAMPLES:
        if other.scheme is not sample.scheme and other.signature_header != sample.signature_header:
            if other.name in {"sendgrid", "standard", "svix", "microsoft-graph"} or sample.name == "microsoft-graph":
                continue  # their secrets have another format, or are in the body
            yield f"signed for {other.name}", other.sign(sample.secret, sample.body or other.body, NOW)


def forgeries(sample: Sample) -> Iterator[tuple[str, WebhookRequest]]:
    yield from content_forgeries(sample)
    yield from time_forgeries(sample)
    yield from form_forgeries(sample)
    yield from cross_scheme_forgeries(sample)
