"""Parsing of token endpoint responses (RFC 6749 §5), including the deviations of real providers.

The result of exchanging a code or a refresh token:

    tokens                  2xx with a JSON object or a form that has an access token and no `error`
    ProviderRejected        2xx or 4xx with an OAuth error code
    ProviderMisconfigured   the same, with the code `invalid_client` or `unauthorized_client`; 401 with any code but
                            `invalid_grant`, or without one (RFC 6749 §5.2)
    ProviderUnavailable     everything else; only the first case waits for the deadline:
        no complete response within the deadline: a hang, a body that arrives slowly
        a connection that is refused or reset, before or during the response
        a body over the size limit, as sent or as decompressed; reading stops at the limit
        3xx, which is never followed, so that no secret is sent elsewhere
        5xx, 429 and 408, whatever the body contains
        4xx without an OAuth error code, and transient codes such as `temporarily_unavailable`
        2xx with HTML, an empty body, invalid JSON, JSON that is not an object, or no usable token
        a compressed body that ends early; the names of other content codings than gzip are ignored

`ProviderUnavailable` carries the response's Retry-After, if its headers arrived and had one. Nothing is retried here.
Its `outcome_unknown` says that the code or the refresh token may be spent: there is no response to a request that may
have been sent, or only a part of it, or 5xx, or 2xx without a usable token and without an error. A gateway may send any
5xx after the token endpoint has issued a token.

An `error` of null, "", false or 0 counts as absent. A transient code is never a refusal (`is_refusal`), whatever its
status.

A body is parsed once, as JSON whatever its media type (`lenient_values.py`). A body that is not a JSON object is parsed
as a form if its media type is that of a form, or if it is plain text and has an `access_token` or an `error`, as old
servers send it.

A response without an access token has an error if it has one in any shape: `error`, `errcode`, `error_code`, `errors`
and similar members, as a text, a number other than 0, an object with a `code`, `type` or `status`, or a list of these.

Any malformed member is treated as absent, because rejecting the response would lose a refresh token that the provider
has already rotated:

- An access token that cannot be sent in a header, or has a type that cannot be used as a bearer token (RFC 6749 §7.1),
  counts as absent. If a refresh then still brings a refresh token, the result has that and no access token.
- `token_type` may be missing; any spelling that begins with "bearer" is accepted.
- The lifetime is the first of the members of `_LIFETIME_NAMES`, however they are spelt, that is a duration or a time
  (`lenient_values.py`). 0 and below: expired already. More than ten years: ten years. Without any: no known expiry.
- `scope` or `scopes` may be a string, with spaces or the given separators between scopes, or a list; null, empty or
  absent means as requested (RFC 6749 §5.1).
- A `refresh_token` that is not a string, is empty, or could not be decoded completely counts as absent. Its lifetime is
  in `refresh_token_expires_in`, `x_refresh_token_expires_in` (Intuit) or `refresh_expires_in` (Keycloak), in seconds; 0
  and below: not known.

Of an error only its code is kept, and only if it has the form of a code. No other text of the provider is passed on.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import parse_qsl

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.domain.lenient_values import (
    UNREADABLE,
    bounded,
    field_at,
    read_object,
    seconds_until,
    text_at,
)

_MAX_LIFETIME = timedelta(days=3650)
_ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SCOPE = re.compile(r"[\x21-\x7e]{1,512}")  # RFC 6749 §3.3, and quotes, which some providers use
_ACCESS_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")  # RFC 6750 §2.1; tokens with many claims have tens of kilobytes

_CLIENT_ERRORS = {"invalid_client", "unauthorized_client"}
_TRANSIENT_ERRORS = {"temporarily_unavailable", "server_error", "slow_down"}
_ERROR_NAMES = ("error", "errcode", "err_code", "error_code", "errorCode", "err", "errors", "code")
_ERROR_PARTS = ("error", "type", "reason", "status", "code", "errcode", "error_code", "name")

_LIFETIME_NAMES = (
    *("expiresin", "accesstokenexpiresin", "tokenexpiresin", "expiresat", "accesstokenexpiresat", "tokenexpiresat"),
    *("expires", "expireson", "expiretime", "expirestime", "expiration", "expirationtime", "expirationdate", "expiry"),
    *("expirydate", "expiresafter", "exp", "ttl", "lifetime"),
)
"""The names of the access token's lifetime or expiry, in lower case without separators, the most usual first."""

_REFRESH_TOKEN_LIFETIME_NAMES = ("refresh_token_expires_in", "x_refresh_token_expires_in", "refresh_expires_in")

_FORM = "application/x-www-form-urlencoded"
_PLAIN_TEXT = "text/plain"
_FORM_MARKERS = {"access_token", "error"}  # members by which plain text is recognized as a form
_MAX_MEMBERS = 1000


class EndpointResponse(Protocol):
    """What is read of an HTTP response. Header names are lower case."""

    @property
    def status(self) -> int:
        """The status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, with repeated ones joined."""

    @property
    def body(self) -> bytes:
        """The body, decompressed."""

    @property
    def retry_after(self) -> timedelta | None:
        """The delay in Retry-After."""

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""

    @property
    def is_refusal(self) -> bool:
        """Whether the status is 4xx, except 429 and 408."""


def parse_fields(response: EndpointResponse) -> Mapping[str, Any]:
    """The members of the JSON object or form in the body; empty if it contains neither.

    Responses of revocation endpoints have the same shape (RFC 7009 §2.2.1).
    """
    body = response.body
    return read_object(body) or _parse_form(body, response.headers.get("content-type", ""))


def raise_for_error(response: EndpointResponse, fields: Mapping[str, Any], subject: str, code: str | None) -> None:
    """Raise the error that a response means, if any (RFC 6749 §5.2). HTTP 200 with an `error` is an error.

    `code` is the error code of `fields`; `subject` is what was exchanged ("code", "grant"). Raises
    `ProviderMisconfigured` for a rejected client, `ProviderRejected` for a rejected subject, and `ProviderUnavailable`
    for every failure without an error code, because any intermediary may send a status.
    """
    is_refusal = response.is_refusal
    if (response.is_success or is_refusal) and code is not None and not _is_transient(code):
        if code in _CLIENT_ERRORS or (response.status == 401 and code != "invalid_grant"):
            raise ProviderMisconfigured(oauth_error=code)
        raise ProviderRejected(subject, oauth_error=code)
    if not response.is_success or fields.get("error"):
        if (
            response.status == 401 and code is None
        ):  # RFC 6749 §5.2: the client's authentication failed, whoever wrote the body
            raise ProviderMisconfigured(oauth_error=code)
        raise ProviderUnavailable(retry_after=response.retry_after, outcome_unknown=response.status >= 500)


def _is_transient(code: str) -> bool:
    """Whether an error code asks for a later retry; some formats have an HTTP status as their code."""
    return code in _TRANSIENT_ERRORS or code in {"408", "429"} or re.fullmatch("5[0-9]{2}", code) is not None


def parse_tokens(
    fields: Mapping[str, Any],
    now: datetime,
    *,
    scope_separators: Sequence[str] = (),
    keep: Mapping[str, str] = MappingProxyType({}),
    is_refresh: bool = False,
) -> OAuthTokens:
    """The tokens in the fields of a response. Raises `ProviderUnavailable` if there are none.

    `scope_separators` separate scopes, besides spaces; `keep` has the dotted paths of further values to keep, by
    their names. The access token is empty if a refresh brings only a refresh token.
    """
    access_token, refresh_token = _access_token(fields), _text_or_none(fields.get("refresh_token"))
    if access_token is None and not (is_refresh and refresh_token):
        raise ProviderUnavailable(outcome_unknown=True)
    lifetime = lifetime_in(fields, now)
    refresh_token_lifetime = _refresh_token_lifetime(fields, now)
    return OAuthTokens(
        access_token=access_token or "",
        refresh_token=refresh_token,
        expire_time=None if lifetime is None else now + lifetime,
        lifetime=lifetime,
        refresh_token_expire_time=None if refresh_token_lifetime is None else now + refresh_token_lifetime,
        scopes=_scopes(fields.get("scope"), scope_separators) or _scopes(fields.get("scopes"), scope_separators),
        extras={name: text for name, path in keep.items() if (text := text_at(fields, path)) is not None},
    )


def error_code(fields: object, path: str = "error") -> str | None:
    """The error code at a dotted path of a response's fields, in any shape; None if there is none.

    If there is none and no access token either, the usual members of other formats are searched.
    """
    code = _code_in(field_at(fields, path))
    if code is not None or not isinstance(fields, Mapping) or _access_token(fields) is not None:
        return code
    return next((code for name in _ERROR_NAMES if (code := _code_in(fields.get(name))) is not None), None)


def _code_in(value: object, *, depth: int = 3) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, Mapping) and depth:
        return next((code for name in _ERROR_PARTS if (code := _code_in(value.get(name), depth=depth - 1))), None)
    code = text_at([value], "0") if value else None  # the number 0 is not an error
    return code if code is not None and code != "0" and _ERROR_CODE.fullmatch(code) else None


def _access_token(fields: Mapping[str, Any]) -> str | None:
    """The access token, if it can be used as a bearer token."""
    token, token_type = fields.get("access_token"), fields.get("token_type") or "bearer"
    is_bearer = isinstance(token_type, str) and token_type.strip().lower().startswith("bearer")
    return token if is_bearer and isinstance(token, str) and _ACCESS_TOKEN.fullmatch(token) else None


def lifetime_in(fields: Mapping[str, Any], now: datetime) -> timedelta | None:
    """How long what a response brings is valid, under any usual name; None if not known."""
    by_name: dict[str, object] = {}
    for name, value in islice(fields.items(), _MAX_MEMBERS):  # a megabyte of members would hold the event loop
        by_name.setdefault(re.sub("[^a-z]", "", name.lower()), value)
    found = (seconds_until(by_name[name], now) for name in _LIFETIME_NAMES if name in by_name)
    seconds = next((seconds for seconds in found if seconds is not None), None)
    return None if seconds is None else bounded(seconds, _MAX_LIFETIME)


def _refresh_token_lifetime(fields: Mapping[str, Any], now: datetime) -> timedelta | None:
    """How long the refresh token is valid; None if not known."""
    found = (seconds_until(fields.get(name), now) for name in _REFRESH_TOKEN_LIFETIME_NAMES)
    seconds = next((seconds for seconds in found if seconds), None)
    return bounded(seconds, _MAX_LIFETIME) if seconds is not None and seconds > 0 else None


def _scopes(value: object, separators: Sequence[str]) -> tuple[str, ...] | None:
    """The scopes in a text or list; None if there are none."""
    parts = value if isinstance(value, list) else [value]
    text = " ".join(part for part in parts if isinstance(part, str))
    for separator in separators:
        text = text.replace(separator, " ")
    return tuple(dict.fromkeys(part for part in text.split() if _SCOPE.fullmatch(part))) or None


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value and UNREADABLE not in value else None


def _parse_form(body: bytes, content_type: str) -> Mapping[str, str]:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in {_FORM, _PLAIN_TEXT}:
        return {}
    try:
        fields = dict(parse_qsl(body.decode("utf-8-sig", "replace").strip(), max_num_fields=_MAX_MEMBERS))
    except ValueError:
        return {}
    return {} if media_type == _PLAIN_TEXT and _FORM_MARKERS.isdisjoint(fields) else fields
