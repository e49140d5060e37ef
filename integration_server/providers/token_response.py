"""Reading what token endpoints answer, in all the ways that real ones do.

What comes of trading a code or a refresh token:

    tokens                  2xx with a JSON object or a form that has an access token and no `error`
    ProviderRejected        2xx or 4xx with an OAuth error code
    ProviderMisconfigured   the same, and the code is `invalid_client` or `unauthorized_client`
    ProviderUnavailable     all else, and at once except for the first:
        nothing whole within the deadline: a hang, a body that drips
        a connection that is refused or reset, before or in the middle of the answer
        a body over the size limit, as sent or as inflated; reading ends there
        3xx, which is never followed, so that no secret goes along
        5xx, 429 and 408, whatever the body says
        4xx without an OAuth error code, and codes that pass: `temporarily_unavailable` and its like
        2xx with HTML, nothing, bad JSON, JSON that is no object, or no access token that can be used
        a content coding that was not asked for; gzip and none go by any of their names (RFC 9110 §8.4.1)

`ProviderUnavailable` has the answer's Retry-After, where the headers came and had one. Nothing is sent twice in
here: after that error the code or the refresh token may be spent or not, and nobody on this side can tell.

An `error` of null, "", false or 0 is none. One that passes is never a refusal (`is_refusal`), whatever its status.

A body is read as JSON, whatever its media type: up to 64 KiB also with a byte order mark, with bytes that are no UTF-8,
with half a character, with control characters, with numbers of any length (`json_answers.py`). One that is no JSON
object is read as a form if it says that it is one, or if it says that it is plain text and has an `access_token` or an
`error`, as old servers do.

Only the access token must be right. Whatever else is odd is read as if it had been left out, since refusing
the answer would lose a refresh token that the provider has already rotated:

- `token_type` may be missing, and "bearer" in any case; another type is an answer that we must not use (RFC
  6749 §7.1).
- `expires_in` may be a number or a numeric string. 0 and below: expired already. More than ten years,
  infinity included: ten years. Not a number: left out. Left out: `expires_at`, an ISO 8601 time (UTC unless
  it says otherwise), Unix seconds, or Unix milliseconds where these seconds were after the year 9999, likewise; and
  without either the token has no known end.
- `scope` may be a string, with blanks or the given separators between scopes, or a list; null, empty or left out means
  as asked (RFC 6749 §5.1).
- A `refresh_token` that is no text, or empty, or that could not be read whole, is none. How long it lasts is in
  `refresh_token_expires_in`, `x_refresh_token_expires_in` (Intuit) or `refresh_expires_in` (Keycloak), in seconds; 0
  and below: not known.

Of an error only its code is kept, and only if it looks like one. The provider's own words go nowhere.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import UNREADABLE, field_at, read_object, text_at

_MAX_LIFETIME = timedelta(days=3650)
_MAX_UNIX_TIME = datetime.max.replace(tzinfo=UTC).timestamp()  # some say by it that there is no end
_ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SCOPE = re.compile(r"[\x21-\x7e]{1,512}")  # RFC 6749 §3.3, and with quotes, which some use

_CLIENT_ERRORS = {"invalid_client", "unauthorized_client"}
_TRANSIENT_ERRORS = {"temporarily_unavailable", "server_error", "slow_down"}

_FORM = "application/x-www-form-urlencoded"
_PLAIN_TEXT = "text/plain"
_FORM_MARKERS = {"access_token", "error"}  # members by which a plain text is known to be a form
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


def _scope_text(value: object) -> str | None:
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else None


def _token_type(value: object) -> object:
    return value.lower() if isinstance(value, str) and value else value or "bearer"


_Number = Annotated[float | None, BeforeValidator(_number)]


class TokenResponse(BaseModel):
    """A token endpoint's success (RFC 6749 §5.1), with the members that providers have added."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    # RFC 6750 §2.1, and no longer than header fields may be anywhere.
    access_token: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,16384}$")] = Field(repr=False)
    token_type: Annotated[Literal["bearer"], BeforeValidator(_token_type)] = "bearer"
    expires_in: _Number = None
    expires_at: Annotated[float | None, BeforeValidator(_unix_time)] = None
    refresh_token: Annotated[str | None, BeforeValidator(_text_or_none)] = Field(None, repr=False)
    refresh_token_expires_in: _Number = None
    x_refresh_token_expires_in: _Number = None
    refresh_expires_in: _Number = None
    scope: Annotated[str | None, BeforeValidator(_scope_text)] = None

    def lifetime(self, now: datetime) -> timedelta | None:
        """How long the access token is good for; None if nobody knows."""
        if self.expires_in is not None:
            return _clamp_lifetime(self.expires_in)
        if self.expires_at is not None:
            return _clamp_lifetime(self.expires_at - now.timestamp())
        return None

    def refresh_token_lifetime(self) -> timedelta | None:
        """How long the refresh token is good for; None if nobody knows."""
        seconds = self.refresh_token_expires_in or self.x_refresh_token_expires_in or self.refresh_expires_in
        return _clamp_lifetime(seconds) if seconds is not None and seconds > 0 else None

    def scopes(self, separators: Sequence[str]) -> tuple[str, ...] | None:
        """The granted scopes; None if the answer does not say."""
        text = self.scope or ""
        for separator in separators:
            text = text.replace(separator, " ")
        return tuple(dict.fromkeys(part for part in text.split() if _SCOPE.fullmatch(part))) or None


def read_tokens(
    response: HttpResponse,
    *,
    subject: str,
    now: datetime,
    scope_separators: Sequence[str] = (),
    extra_fields: Sequence[str] = (),
) -> OAuthTokens:
    """The tokens in an answer to trading `subject` ("code", "grant"). Raises the errors of `require_no_error`.

    `scope_separators` are what may be between scopes besides blanks, `extra_fields` dotted paths of further values to
    keep.
    """
    fields = require_no_error(response, subject)
    return parse_tokens(fields, now=now, scope_separators=scope_separators, extra_fields=extra_fields)


def parse_tokens(
    fields: Mapping[str, Any], *, now: datetime, scope_separators: Sequence[str] = (), extra_fields: Sequence[str] = ()
) -> OAuthTokens:
    """The tokens in an answer's fields. Raises `ProviderUnavailable` if there are none."""
    tokens = _parse(fields)
    if tokens is None:
        raise ProviderUnavailable
    lifetime = tokens.lifetime(now)
    refresh_lifetime = tokens.refresh_token_lifetime()
    return OAuthTokens(
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        expire_time=None if lifetime is None else now + lifetime,
        lifetime=lifetime,
        refresh_token_expire_time=None if refresh_lifetime is None else now + refresh_lifetime,
        scopes=tokens.scopes(scope_separators),
        extras={path: text for path in extra_fields if (text := text_at(fields, path)) is not None},
    )


def require_no_error(
    response: HttpResponse, subject: str, read_code: Callable[[HttpResponse], str | None] | None = None
) -> Mapping[str, Any]:
    """The answer's fields, or the error that it means (RFC 6749 §5.2).

    Raises `ProviderMisconfigured` where our client is refused, `ProviderRejected` where `subject` is; and
    `ProviderUnavailable` for all that does not say so with an error code, since a status alone may come
    from anything on the way. HTTP 200 with an `error` is an error. `read_code` reads codes of other kinds.
    """
    fields = _parse_fields(response)
    code = (read_code or error_code)(response)
    if (response.is_success or response.is_refusal) and code is not None and code not in _TRANSIENT_ERRORS:
        if code in _CLIENT_ERRORS:
            raise ProviderMisconfigured(oauth_error=code)
        raise ProviderRejected(subject, oauth_error=code)
    if not response.is_success or fields.get("error"):
        raise ProviderUnavailable(retry_after=response.retry_after, is_refusal=response.is_refusal and code is None)
    return fields


def error_code(response: HttpResponse, path: str = "error") -> str | None:
    """The error code of an answer, at a dotted path, if it has one that looks like one."""
    fields = _parse_fields(response)
    code = text_at(fields, path) if field_at(fields, path) else None  # the number 0 is no error
    return code if code is not None and _ERROR_CODE.fullmatch(code) else None


def _parse_fields(response: HttpResponse) -> Mapping[str, Any]:
    """The members of the JSON object or the form that an answer has; none if it has neither."""
    return read_object(response.body) or _parse_form(response)


def _parse_form(response: HttpResponse) -> Mapping[str, str]:
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {_FORM, _PLAIN_TEXT}:
        return {}
    text = response.body.decode("utf-8-sig", "replace").strip()
    try:
        fields = dict(parse_qsl(text, max_num_fields=_MAX_MEMBERS))
    except ValueError:
        return {}
    return {} if media_type == _PLAIN_TEXT and _FORM_MARKERS.isdisjoint(fields) else fields


def _parse(fields: Mapping[str, Any]) -> TokenResponse | None:
    try:
        return TokenResponse.model_validate(fields)
    except ValidationError:  # and so not chained by the caller: it holds the input
        return None


def _clamp_lifetime(seconds: float) -> timedelta:
    return timedelta(seconds=min(max(seconds, 0), _MAX_LIFETIME.total_seconds()))
