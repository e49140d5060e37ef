"""Parsing of token endpoint responses (RFC 6749 §5), including the deviations of real providers.

The result of exchanging a code or a refresh token:

    tokens                  2xx with a JSON object or a form that has an access token and no `error`
    ProviderRejected        2xx or 4xx with an OAuth error code
    ProviderMisconfigured   the same, with the code `invalid_client` or `unauthorized_client`
    ProviderUnavailable     everything else; only the first case waits for the deadline:
        no complete response within the deadline: a hang, a body that arrives slowly
        a connection that is refused or reset, before or during the response
        a body over the size limit, as sent or as decompressed; reading stops at the limit
        3xx, which is never followed, so that no secret is sent elsewhere
        5xx, 429 and 408, whatever the body contains
        4xx without an OAuth error code, and transient codes such as `temporarily_unavailable`
        2xx with HTML, an empty body, invalid JSON, JSON that is not an object, or no usable access token
        a content coding that was not requested; gzip and identity are accepted (RFC 9110 §8.4.1)

`ProviderUnavailable` carries the response's Retry-After, if its headers arrived and had one. Nothing is retried here:
after that error the code or the refresh token may or may not be spent, and the client cannot find out.

An `error` of null, "", false or 0 counts as absent. A transient code is never a refusal (`is_refusal`), whatever its
status.

A body is parsed once, as JSON whatever its media type (`lenient_json.py`). A body that is not a JSON object is parsed
as a form if its media type is that of a form, or if it is plain text and has an `access_token` or an `error`, as old
servers send it.

Only the access token must be valid. Any other malformed member is treated as absent, because rejecting the response
would lose a refresh token that the provider has already rotated:

- `token_type` may be missing; "bearer" is accepted in any case. A response with another type must not be used (RFC 6749
  §7.1).
- `expires_in` may be a number or a numeric string. 0 and below: expired already. More than ten years, including
  infinity: ten years. Not a number, or absent: `expires_at` counts, an ISO 8601 time (UTC unless it has an offset),
  Unix seconds, or Unix milliseconds if the number would be after the year 9999 as seconds. Without either, the token
  has no known expiry.
- `scope` may be a string, with spaces or the given separators between scopes, or a list; null, empty or absent means as
  requested (RFC 6749 §5.1).
- A `refresh_token` that is not a string, is empty, or could not be decoded completely counts as absent. Its lifetime is
  in `refresh_token_expires_in`, `x_refresh_token_expires_in` (Intuit) or `refresh_expires_in` (Keycloak), in seconds; 0
  and below: not known.

Of an error only its code is kept, and only if it has the form of a code. No other text of the provider is passed on.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import UNREADABLE, field_at, read_object, text_at

_MAX_LIFETIME = timedelta(days=3650)
_MAX_UNIX_TIME = datetime.max.replace(tzinfo=UTC).timestamp()  # some providers send it for "never"
_ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SCOPE = re.compile(r"[\x21-\x7e]{1,512}")  # RFC 6749 §3.3, and quotes, which some providers use

_CLIENT_ERRORS = {"invalid_client", "unauthorized_client"}
_TRANSIENT_ERRORS = {"temporarily_unavailable", "server_error", "slow_down"}

_FORM = "application/x-www-form-urlencoded"
_PLAIN_TEXT = "text/plain"
_FORM_MARKERS = {"access_token", "error"}  # members by which plain text is recognized as a form
_MAX_MEMBERS = 1000


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _unix_time(value: object) -> float | None:
    number = _number(value)
    if number is not None:
        return number / 1000 if number > _MAX_UNIX_TIME else number
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value and UNREADABLE not in value else None


def _scope_text(value: object) -> str:
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _token_type(value: object) -> object:
    return value.lower() if isinstance(value, str) and value else value or "bearer"


_Number = Annotated[float | None, BeforeValidator(_number)]


class _Success(BaseModel):
    """The members of a successful response (RFC 6749 §5.1), and those that providers have added."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    # RFC 6750 §2.1; the limit is what common servers accept in a header field.
    access_token: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,16384}$")] = Field(repr=False)
    token_type: Annotated[Literal["bearer"], BeforeValidator(_token_type)] = "bearer"
    expires_in: _Number = None
    expires_at: Annotated[float | None, BeforeValidator(_unix_time)] = None
    refresh_token: Annotated[str | None, BeforeValidator(_text_or_none)] = Field(None, repr=False)
    refresh_token_expires_in: _Number = None
    x_refresh_token_expires_in: _Number = None
    refresh_expires_in: _Number = None
    scope: Annotated[str, BeforeValidator(_scope_text)] = ""

    def lifetime(self, now: datetime) -> timedelta | None:
        """How long the access token is valid; None if not known."""
        if self.expires_in is None and self.expires_at is not None:
            return _clamp_lifetime(self.expires_at - now.timestamp())
        return _clamp_lifetime(self.expires_in)

    def refresh_token_lifetime(self) -> timedelta | None:
        """How long the refresh token is valid; None if not known."""
        seconds = self.refresh_token_expires_in or self.x_refresh_token_expires_in or self.refresh_expires_in
        return _clamp_lifetime(seconds) if seconds is not None and seconds > 0 else None

    def scopes(self, separators: Sequence[str]) -> tuple[str, ...] | None:
        """The granted scopes; None if the response has none."""
        text = self.scope
        for separator in separators:
            text = text.replace(separator, " ")
        return tuple(dict.fromkeys(part for part in text.split() if _SCOPE.fullmatch(part))) or None


def parse_fields(response: HttpResponse) -> Mapping[str, Any]:
    """The members of the JSON object or form in the body; empty if it contains neither.

    Responses of revocation endpoints have the same shape (RFC 7009 §2.2.1).
    """
    body = response.body
    return read_object(body) or _parse_form(body, response.headers.get("content-type", ""))


def raise_for_error(response: HttpResponse, fields: Mapping[str, Any], subject: str, code: str | None) -> None:
    """Raise the error that a response means, if any (RFC 6749 §5.2). HTTP 200 with an `error` is an error.

    `code` is the error code of `fields`; `subject` is what was exchanged ("code", "grant"). Raises
    `ProviderMisconfigured` for a rejected client, `ProviderRejected` for a rejected subject, and `ProviderUnavailable`
    for every failure without an error code, because any intermediary may send a status.
    """
    is_refusal = response.is_refusal
    if (response.is_success or is_refusal) and code is not None and code not in _TRANSIENT_ERRORS:
        if code in _CLIENT_ERRORS:
            raise ProviderMisconfigured(oauth_error=code)
        raise ProviderRejected(subject, oauth_error=code)
    if not response.is_success or fields.get("error"):
        raise ProviderUnavailable(retry_after=response.retry_after, is_refusal=is_refusal and code is None)


def parse_tokens(
    fields: Mapping[str, Any], now: datetime, *, scope_separators: Sequence[str] = (), extra_fields: Sequence[str] = ()
) -> OAuthTokens:
    """The tokens in the fields of a response. Raises `ProviderUnavailable` if there are none.

    `scope_separators` separate scopes, besides spaces; `extra_fields` are dotted paths of further values to keep.
    """
    success = _parse_success(fields)
    if success is None:
        raise ProviderUnavailable
    lifetime = success.lifetime(now)
    refresh_token_lifetime = success.refresh_token_lifetime()
    return OAuthTokens(
        access_token=success.access_token,
        refresh_token=success.refresh_token,
        expire_time=None if lifetime is None else now + lifetime,
        lifetime=lifetime,
        refresh_token_expire_time=None if refresh_token_lifetime is None else now + refresh_token_lifetime,
        scopes=success.scopes(scope_separators),
        extras={path: text for path in extra_fields if (text := text_at(fields, path)) is not None},
    )


def error_code(fields: object, path: str = "error") -> str | None:
    """The error code at a dotted path of a response's fields; None if nothing there has the form of a code."""
    code = text_at(fields, path) if field_at(fields, path) else None  # the number 0 is not an error
    return code if code is not None and _ERROR_CODE.fullmatch(code) else None


def _parse_success(fields: Mapping[str, Any]) -> _Success | None:
    try:
        return _Success.model_validate(fields)
    except ValidationError:  # ends here, so that no error is chained to it: it contains the input
        return None


def _parse_form(body: bytes, content_type: str) -> Mapping[str, str]:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in {_FORM, _PLAIN_TEXT}:
        return {}
    try:
        fields = dict(parse_qsl(body.decode("utf-8-sig", "replace").strip(), max_num_fields=_MAX_MEMBERS))
    except ValueError:
        return {}
    return {} if media_type == _PLAIN_TEXT and _FORM_MARKERS.isdisjoint(fields) else fields


def _clamp_lifetime(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=min(max(seconds, 0), _MAX_LIFETIME.total_seconds()))
