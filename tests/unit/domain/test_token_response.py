from contextlib import nullcontext
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from integration_server.domain.credentials import AuthMethod, OAuthTokens
from integration_server.domain.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.domain.token_response import error_code, parse_fields, parse_tokens, raise_for_error
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider
from tests.unit.providers.support import NOW, exception_text, http_response
from tests.unit.providers.test_catalogue import CATALOGUE, all_built

FORM = "application/x-www-form-urlencoded"
OAUTH2_TYPES = [row[0] for row in CATALOGUE if row[2] is AuthMethod.OAUTH2]
TEN_YEARS = timedelta(days=3650)


def read_tokens(response: HttpResponse, *, subject: str = "code", **options: Any) -> OAuthTokens:
    fields = parse_fields(response)
    raise_for_error(response, fields, subject, error_code(fields))
    return parse_tokens(fields, NOW, **options)


def tokens_of(**fields: Any) -> OAuthTokens:
    return read_tokens(http_response({"access_token": "at", **fields}), subject="code")


def failure_of(value: object, status: int = 400, *, subject: str = "code", **headers: str) -> ProviderError:
    with pytest.raises(ProviderError) as raised:
        read_tokens(http_response(value, status, **headers), subject=subject)
    return raised.value


def test_reads_all_fields() -> None:
    tokens = tokens_of(token_type="Bearer", expires_in=3600, refresh_token="rt", scope="read write")
    assert tokens == OAuthTokens(
        access_token="at",
        refresh_token="rt",
        expire_time=NOW + timedelta(hours=1),
        lifetime=timedelta(hours=1),
        scopes=("read", "write"),
    )


def test_only_the_access_token_is_required() -> None:
    assert tokens_of() == OAuthTokens(access_token="at")


@pytest.mark.parametrize(
    "token_type", ["bearer", "Bearer", "BEARER", "", None, "BearerToken", "bearer_token", " Bearer", "Bearer Token"]
)
def test_accepts_bearer_in_any_case_or_absent(token_type: str | None) -> None:
    assert tokens_of(token_type=token_type).access_token == "at"


@pytest.mark.parametrize("token_type", ["mac", "DPoP", "N_A", 7, ["bearer"]])
def test_rejects_an_unknown_token_type(token_type: object) -> None:
    assert isinstance(failure_of({"access_token": "at", "token_type": token_type}, 200), ProviderUnavailable)


@pytest.mark.parametrize("token", [None, "", 5, ["at"], "a b", "a\nb", "a\0b", "tökén", "x" * 65_537])
def test_rejects_an_access_token_that_cannot_be_sent(token: object) -> None:
    assert isinstance(failure_of({"access_token": token}, 200), ProviderUnavailable)


# --- parsing ---------------------------------------------------------------------------------------------


class CountingResponse(HttpResponse):
    """Counts how often the body is read, as parsing it requires."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "body":
            type(self).reads += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("integration_type", OAUTH2_TYPES)
@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (200, b'{"access_token": "at", "instance_url": "https://acme.my.salesforce.com"}', "application/json"),
        (200, b"access_token=at&instance_url=https%3A%2F%2Facme.my.salesforce.com", FORM),
        (400, b'{"error": "invalid_grant", "error_codes": [1], "reason": "Invalid Token!"}', "application/json"),
        (400, b"error=invalid_grant", FORM),
        (200, b"<html>", "text/html"),
    ],
)
def test_a_token_response_is_parsed_once(integration_type: str, status: int, body: bytes, content_type: str) -> None:
    class Response(CountingResponse): ...

    provider = all_built()[integration_type]
    assert isinstance(provider, OAuth2Provider)
    response = Response(status, {"content-type": content_type}, body)
    with nullcontext() if status == 200 and b"at" in body else pytest.raises(ProviderError):
        assert provider.read_tokens(response, "grant").access_token == "at"
    assert Response.reads == 1


# --- formats ---------------------------------------------------------------------------------

ODD_JSON = {
    "a byte order mark": b'\xef\xbb\xbf{"access_token": "at", "refresh_token": "rt"}',
    "lone surrogate": rb'{"name": "\ud83d", "access_token": "at", "refresh_token": "rt"}',
    "not UTF-8": b'{"name": "Caf\xe9", "access_token": "at", "refresh_token": "rt"}',
    "control character": b'{"name": "a\nb", "access_token": "at", "refresh_token": "rt"}',
    "a number of 5,000 digits": b'{"id": %s, "access_token": "at", "refresh_token": "rt"}' % (b"9" * 5000),
    "lone surrogate as scope": rb'{"scope": "\ud83d", "access_token": "at", "refresh_token": "rt"}',
    "nested lists": b'{"a": %s1%s, "access_token": "at", "refresh_token": "rt"}' % (b"[" * 250, b"]" * 250),
}


@pytest.mark.parametrize("name", ODD_JSON)
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=iso-8859-1", "text/html", ""])
def test_reads_tokens_from_invalid_json(name: str, content_type: str) -> None:
    response = http_response(ODD_JSON[name], content_type=content_type)
    tokens = read_tokens(response, subject="grant", keep={"name": "name", "id": "id"})
    assert tokens == OAuthTokens(access_token="at", refresh_token="rt")


@pytest.mark.parametrize("name", ODD_JSON)
def test_negative_control_a_strict_parser_rejects_it(name: str) -> None:
    with pytest.raises(ValueError, match="line"):
        from_json(ODD_JSON[name])


@pytest.mark.parametrize("refresh_token", [rb"\ud83d", b"r\xe9"])
def test_ignores_an_incompletely_decoded_refresh_token(refresh_token: bytes) -> None:
    response = http_response(b'{"access_token": "at", "refresh_token": "%s"}' % refresh_token)
    assert read_tokens(response) == OAuthTokens(access_token="at")


def test_rejects_an_incompletely_decoded_access_token() -> None:
    assert isinstance(failure_of(b'{"access_token": "a\xe9"}', 200), ProviderUnavailable)


@pytest.mark.parametrize("sign", ["", "-"])
def test_reads_an_expires_in_of_5_000_digits(sign: str) -> None:
    response = http_response(b'{"access_token": "at", "expires_in": %s%s}' % (sign.encode(), b"9" * 5000))
    assert read_tokens(response).lifetime == (timedelta() if sign else TEN_YEARS)


@pytest.mark.parametrize("content_type", [FORM, "Application/X-WWW-Form-URLencoded ; charset=utf-8", "text/plain"])
@pytest.mark.parametrize("end", ["", "\r\n"])
def test_reads_a_form(content_type: str, end: str) -> None:
    members = {"access_token": "a+t", "refresh_token": "r t", "expires_in": 3600, "scope": "read,write", "id": 7}
    response = http_response(f"{urlencode(members)}{end}".encode(), content_type=content_type)
    assert read_tokens(response, scope_separators=(",",), keep={"id": "id"}) == OAuthTokens(
        access_token="a+t",
        refresh_token="r t",
        expire_time=NOW + timedelta(hours=1),
        lifetime=timedelta(hours=1),
        scopes=("read", "write"),
        extras={"id": "7"},
    )


def test_json_with_the_media_type_of_a_form_is_json() -> None:
    response = http_response({"access_token": "at"}, content_type=FORM)
    assert read_tokens(response).access_token == "at"


@pytest.mark.parametrize("content_type", [FORM, "text/plain; charset=us-ascii"])
@pytest.mark.parametrize("status", [200, 400])
def test_reads_an_error_in_a_form(content_type: str, status: int) -> None:
    error = failure_of(b"error=invalid_grant&error_description=s3cret", status, content_type=content_type)
    assert isinstance(error, ProviderRejected)
    assert error.oauth_error == "invalid_grant"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"access_token=at", "text/html"),
        (b"access_token=at", "application/json"),
        (b"access_token=at", ""),
        (b"access_token=", FORM),
        (b"refresh_token=rt", FORM),
        (b"Sign in, please", "text/plain"),
        (b"", FORM),
        (b"\xff\xfe\x00", FORM),
        (b"a=b&" * 2000 + b"access_token=at", FORM),
    ],
)
def test_other_forms_are_provider_unavailable(body: bytes, content_type: str) -> None:
    assert isinstance(failure_of(body, 200, content_type=content_type), ProviderUnavailable)


@given(st.binary() | st.text().map(str.encode), st.sampled_from([FORM, "text/plain", "application/json"]))
def test_any_bytes_are_tokens_or_a_provider_error(body: bytes, content_type: str) -> None:
    for start in (b"", b'{"access_token": "at", "refresh_token": "', b"access_token=at&refresh_token="):
        response = http_response(start + body + (b'"}' if start.startswith(b"{") else b""), content_type=content_type)
        try:
            tokens = read_tokens(response, keep={"extra": "extra"})
        except ProviderError:
            continue
        assert f"{tokens.access_token} {tokens.refresh_token}".encode()  # can be stored


# --- lifetimes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (3600, timedelta(hours=1)),
        (3599.5, timedelta(seconds=3599.5)),
        ("3600", timedelta(hours=1)),
        (" 3600 ", timedelta(hours=1)),
        (0, timedelta()),
        (-60, timedelta()),
        ("-1e300", timedelta()),
        (1e300, TEN_YEARS),
        (10**400, TEN_YEARS),
        ("inf", TEN_YEARS),
        (float("inf"), TEN_YEARS),
    ],
)
def test_reads_expires_in(expires_in: object, lifetime: timedelta) -> None:
    tokens = tokens_of(expires_in=expires_in)
    assert tokens.lifetime == lifetime
    assert tokens.expire_time == NOW + lifetime
    assert tokens.has_expired(NOW) == (lifetime == timedelta())


@pytest.mark.parametrize("expires_in", [None, "", "soon", "nan", True, [3600], {"seconds": 1}])
def test_ignores_an_expires_in_that_is_not_a_number(expires_in: object) -> None:
    tokens = tokens_of(expires_in=expires_in)
    assert tokens.access_token == "at"
    assert (tokens.expire_time, tokens.lifetime) == (None, None)


@pytest.mark.parametrize(
    ("expires_at", "lifetime"),
    [
        ("2026-12-22T12:00:00Z", timedelta(days=30)),
        ("2026-12-22T12:00:00", timedelta(days=30)),
        ("2026-12-22T14:00:00+02:00", timedelta(days=30)),
        (int(NOW.timestamp()) + 60, timedelta(minutes=1)),
        (str(int(NOW.timestamp()) + 60), timedelta(minutes=1)),
        (int(NOW.timestamp() + 60) * 1000, timedelta(minutes=1)),
        (str(int(NOW.timestamp() + 60) * 1000), timedelta(minutes=1)),
        (int(NOW.timestamp() - 60) * 1000, timedelta()),
        (253_402_300_799, TEN_YEARS),  # the end of the year 9999, which some providers send for "never"
        (253_402_300_799_999, TEN_YEARS),
        ("2020-01-01T00:00:00Z", timedelta()),
        ("9999-12-31T23:59:59Z", TEN_YEARS),
        (1e300, TEN_YEARS),
    ],
)
def test_reads_expires_at(expires_at: object, lifetime: timedelta) -> None:
    tokens = tokens_of(expires_at=expires_at)
    assert (tokens.lifetime, tokens.expire_time) == (lifetime, NOW + lifetime)


@pytest.mark.parametrize("expires_at", ["tomorrow", "", None, [1]])
def test_ignores_an_expires_at_that_is_not_a_time(expires_at: object) -> None:
    assert tokens_of(expires_at=expires_at).expire_time is None


def test_expires_in_overrides_expires_at_because_clocks_differ() -> None:
    assert tokens_of(expires_in=60, expires_at="2030-01-01T00:00:00Z").lifetime == timedelta(minutes=1)


@pytest.mark.parametrize("name", ["refresh_token_expires_in", "x_refresh_token_expires_in", "refresh_expires_in"])
def test_reads_the_lifetime_of_the_refresh_token(name: str) -> None:
    tokens = tokens_of(refresh_token="rt", **{name: "8726400"})
    assert tokens.refresh_token_expire_time == NOW + timedelta(days=101)


@pytest.mark.parametrize("seconds", [0, -1, "never", None])
@pytest.mark.parametrize("name", ["refresh_token_expires_in", "refresh_expires_in"])
def test_ignores_an_invalid_lifetime_of_the_refresh_token(name: str, seconds: object) -> None:
    assert tokens_of(refresh_token="rt", **{name: seconds}).refresh_token_expire_time is None


# --- other fields ------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh_token", [None, "", 7, ["rt"]])
def test_ignores_a_refresh_token_that_is_not_text(refresh_token: object) -> None:
    assert tokens_of(refresh_token=refresh_token).refresh_token is None


@pytest.mark.parametrize(
    ("scope", "separators", "scopes"),
    [
        ("read write", [], ("read", "write")),
        ("read write", [" "], ("read", "write")),
        ("read,write", [], ("read,write",)),
        ("read,write", [","], ("read", "write")),
        ("read, write", [","], ("read", "write")),
        ("read write", [","], ("read", "write")),
        ("read;write,delete", [";", ","], ("read", "write", "delete")),
        (" read  read ", [], ("read",)),
        (["read", "write", 7], [], ("read", "write")),
        (["read", "write"], [","], ("read", "write")),
        ("read wr\0ite", [], ("read",)),
        ("", [], None),
        ([], [], None),
        (None, [], None),
        (7, [], None),
    ],
)
def test_reads_scopes(scope: object, separators: list[str], scopes: tuple[str, ...] | None) -> None:
    response = http_response({"access_token": "at", "scope": scope})
    assert read_tokens(response, scope_separators=separators).scopes == scopes


def test_keeps_only_declared_values() -> None:
    response = http_response({"access_token": "at", "team": {"id": 7}, "name": "Ada", "other": "x"})
    tokens = read_tokens(response, keep={"team": "team.id", "name": "name", "missing": "missing"})
    assert tokens.extras == {"team": "7", "name": "Ada"}


# --- errors ------------------------------------------------------------------------------------------------


def test_invalid_grant_is_a_rejection_with_its_code() -> None:
    error = failure_of({"error": "invalid_grant", "error_description": "s3cret"}, subject="grant")
    assert isinstance(error, ProviderRejected)
    assert error.oauth_error == "invalid_grant"
    assert str(error) == "the provider rejected the grant"


@pytest.mark.parametrize("code", ["invalid_client", "unauthorized_client"])
@pytest.mark.parametrize("status", [400, 401, 200])
def test_an_invalid_client_is_provider_misconfigured(code: str, status: int) -> None:
    error = failure_of({"error": code}, status)
    assert isinstance(error, ProviderMisconfigured)
    assert error.oauth_error == code


@pytest.mark.parametrize(
    "code", ["invalid_request", "invalid_scope", "unsupported_grant_type", "bad_verification_code"]
)
def test_other_error_codes_are_rejections(code: str) -> None:
    error = failure_of({"error": code})
    assert isinstance(error, ProviderRejected)
    assert error.oauth_error == code


def test_an_error_with_http_200_is_an_error() -> None:
    error = failure_of({"error": "invalid_grant", "access_token": "at"}, 200)
    assert isinstance(error, ProviderRejected)


@pytest.mark.parametrize("nothing", [None, "", False, 0, 0.0, {}])
def test_ignores_an_empty_error_beside_a_token(nothing: object) -> None:
    assert tokens_of(error=nothing).access_token == "at"


def test_a_number_beside_a_token_is_an_error() -> None:
    assert failure_of({"error": 1, "access_token": "at"}, 200).oauth_error == "1"


@pytest.mark.parametrize("code", ["temporarily_unavailable", "server_error", "slow_down"])
def test_a_transient_code_is_not_a_refusal(code: str) -> None:
    error = failure_of({"error": code}, 400)
    assert isinstance(error, ProviderUnavailable)
    assert isinstance(error, ProviderUnavailable)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", {}, {"error": "invalid_token"}, {"message": "no"}, {"error": 7}], ids=str
)
def test_a_401_means_our_client_with_or_without_a_body(body: object) -> None:
    """RFC 6749 §5.2: the client's authentication failed. The control is the same body with another status."""
    assert isinstance(failure_of(body, 401), ProviderMisconfigured)
    assert not isinstance(failure_of(body, 400), ProviderMisconfigured)


def test_an_invalid_grant_with_401_is_an_invalid_grant() -> None:
    assert failure_of({"error": "invalid_grant"}, 401).oauth_error == "invalid_grant"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": "invalid_grant"}, 500),
        ({"error": "invalid_grant"}, 429),
        ({"error": "invalid_client"}, 503),
        ({"error": "invalid_grant"}, 302),
        ({"error": "temporarily_unavailable"}, 400),
        ({"error": "server_error"}, 200),
        ({"error": {"code": 503}}, 400),
        ({"error": {"code": 429}, "access_token": "at"}, 200),
        ({"error": "Not a code, but a sentence"}, 400),
        ({"error": "Not a code, but a sentence", "access_token": "at"}, 200),
        ({"error": "x" * 65}, 400),
        ({"message": "gone"}, 404),
        ({}, 400),
        ({}, 200),
        ([], 200),
        ("at", 200),
        (b"", 200),
        (b"<html>Sign in to the hotel's network</html>", 200),
        (b'{"access_token": "at"', 200),
        (b"\xff\xfe", 200),
        (b"[" * 100_000, 200),
        ({"access_token": "at"}, 302),
    ],
)
def test_everything_else_is_provider_unavailable(body: object, status: int) -> None:
    assert isinstance(failure_of(body, status), ProviderUnavailable)


def test_reports_retry_after() -> None:
    response = HttpResponse(429, {}, b"", retry_after=timedelta(seconds=7))
    with pytest.raises(ProviderUnavailable) as raised:
        read_tokens(response, subject="grant")
    assert raised.value.retry_after == timedelta(seconds=7)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": "invalid_grant", "error_description": "s3cret", "hint": "s3cret"}, 400),
        ({"error": "s3cret s3cret"}, 400),
        ({"access_token": "s3cret token", "refresh_token": "s3cret"}, 200),
        ({"access_token": "s3cret", "token_type": "s3cret"}, 200),
        (b'{"access_token": "s3cret"', 200),
        (b"<html>s3cret</html>", 502),
    ],
)
def test_errors_contain_no_token_and_no_provider_text(body: object, status: int) -> None:
    assert "s3cret" not in exception_text(failure_of(body, status))


def test_the_repr_hides_tokens() -> None:
    response = http_response({"access_token": "s3cret-at", "refresh_token": "s3cret-rt", "id": "s3cret-id"})
    assert "s3cret" not in repr(read_tokens(response, keep={"id": "id"}))


@pytest.mark.parametrize(
    ("value", "status", "expected"),
    [
        (b"<html>Bad Gateway</html>", 502, True),
        ({"error": "server_error"}, 500, True),
        ({}, 503, True),
        (b'{"access_token": "at", "refresh_to', 200, True),
        (b"", 200, True),
        ({"ok": True}, 201, True),
        ({"access_token": "a token"}, 200, True),
        (b"<html>Blocked</html>", 403, False),
        ({}, 429, False),
        ({}, 408, False),
        ({"error": "temporarily_unavailable"}, 400, False),
        ({"error": "temporarily_unavailable"}, 200, False),
        (b"", 302, False),
    ],
)
def test_a_response_that_may_follow_a_used_token_has_an_unknown_outcome(
    value: object, status: int, expected: bool
) -> None:
    error = failure_of(value, status, subject="grant")
    assert isinstance(error, ProviderUnavailable)
    assert error.outcome_unknown is expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        "access_token",
        "token_type",
        "expires_in",
        "expires_at",
        "refresh_token",
        "refresh_token_expires_in",
        "scope",
        "error",
        "extra",
    ]
)


@pytest.mark.slow
@given(st.dictionaries(FIELDS, JSON), st.integers(200, 599))
def test_any_fields_are_tokens_or_a_provider_error(fields: dict[str, Any], status: int) -> None:
    try:
        tokens = read_tokens(http_response(fields, status), subject="code", keep={"extra": "extra"})
    except ProviderError:
        return
    assert tokens.access_token
    assert tokens.expire_time is None or NOW <= tokens.expire_time <= NOW + TEN_YEARS
