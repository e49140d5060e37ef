"""Unusual responses of token endpoints, and the outcome of each for a code and for a refresh.

The docstring of `domain/token_response.py` describes them.
"""

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from integration_server.domain.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.sandbox.behaviour import OMIT, Behaviour, Fault, Handler
from integration_server.sandbox.faults import (
    BAD_GATEWAY,
    BAD_JSON,
    EMPTY,
    HTML,
    JSON_ARRAY,
    REDIRECT,
    Hang,
    OversizedBody,
    Reset,
    ResetMidway,
    SlowBody,
)

HOUR = timedelta(hours=1)
TEN_YEARS = timedelta(days=3650)
DEADLINE = timedelta(seconds=0.2)  # for requests that only the deadline ends
LONG_DEADLINE = timedelta(seconds=30)  # for all others, which must end much earlier


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The response has tokens."""

    lifetime: timedelta | None = HOUR
    scopes: tuple[str, ...] | None = ("read", "write")
    has_refresh_token: bool = True
    max_duration: timedelta = LONG_DEADLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The response is an error. With the `max_duration` `DEADLINE`, only the deadline ends the request."""

    error: type[ProviderError] = ProviderUnavailable
    oauth_error: str | None = None
    retry_after: timedelta | None = None
    max_duration: timedelta = LONG_DEADLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshTokenOnly(Failure):
    """The response has no usable access token: a failure for a code; a refresh keeps the rotated refresh token."""


def with_token_members(**members: object) -> Behaviour:
    return Behaviour(token_response=members)


def error_fault(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Fault:
    return Fault(status=status, headers=headers or {}, body=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrittenBodyFault(Fault):
    """The endpoint's normal response with a rewritten body and further headers."""

    body_of: Callable[[bytes], bytes] = bytes

    async def respond(self, request: Request, handler: Handler) -> Response:
        """Process the request, and rewrite the response."""
        original_response = await Fault.respond(self, request, handler)
        headers = {"Content-Type": "application/json", **self.headers}
        return Response(self.body_of(bytes(original_response.body)), original_response.status_code, headers)


def with_rewritten_body(body_of: Callable[[bytes], bytes] = bytes, **headers: str) -> Behaviour:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Behaviour(faults={"token": RewrittenBodyFault(body_of=body_of, headers=named)})


def with_members(members: bytes) -> Callable[[bytes], bytes]:
    """Append members to a JSON object, where they override earlier ones."""
    return lambda body: body.removesuffix(b"}") + b", " + members + b"}"


def in_two_members(body: bytes) -> bytes:
    return gzip.compress(body[:20]) + gzip.compress(body[20:])


def as_form(body: bytes) -> bytes:
    return urlencode(json.loads(body)).encode()


FORM = "application/x-www-form-urlencoded"
RETRY_AFTER_SEVEN_SECONDS = {"Retry-After": "7"}
INVALID_GRANT = b'{"error": "invalid_grant", "error_description": "s3cret"}'

# Each fault is tested twice: without and with processing of the request, which spends the code or the refresh token.
# The client cannot distinguish them. (A fault that only damages the normal response spends it in both cases.)
FAULTS: dict[str, tuple[Fault, Failure]] = {
    "hang": (Hang(), Failure(max_duration=DEADLINE)),
    "slow": (Fault(delay=3600), Failure(max_duration=DEADLINE)),
    "slow body": (SlowBody(), Failure(max_duration=DEADLINE)),
    "slow body of an error": (SlowBody(status=400, body=INVALID_GRANT), Failure(max_duration=DEADLINE)),
    "reset": (Reset(), Failure()),
    "reset midway": (ResetMidway(), Failure()),
    "reset midway of an error": (ResetMidway(status=400, body=INVALID_GRANT), Failure()),
    "10 MiB": (OversizedBody(), Failure()),
    "gzip bomb": (OversizedBody(gzip=True), Failure()),
    "redirect": (REDIRECT, Failure()),
    "HTML": (HTML, Failure()),
    "HTML, 502": (BAD_GATEWAY, Failure()),
    "empty": (EMPTY, Failure()),
    "bad JSON": (BAD_JSON, Failure()),
    "JSON, but an array": (JSON_ARRAY, Failure()),
    "429": (error_fault(429, b"s3cret", RETRY_AFTER_SEVEN_SECONDS), Failure(retry_after=timedelta(seconds=7))),
    "503": (error_fault(503, b"s3cret", RETRY_AFTER_SEVEN_SECONDS), Failure(retry_after=timedelta(seconds=7))),
    "503 with an OAuth code": (error_fault(503, INVALID_GRANT), Failure()),
    "503 with a slow body": (
        SlowBody(status=503, headers=RETRY_AFTER_SEVEN_SECONDS, body=b"s3cret"),
        Failure(retry_after=timedelta(seconds=7), max_duration=DEADLINE),
    ),
    "503 of 10 MiB": (
        OversizedBody(status=503, headers=RETRY_AFTER_SEVEN_SECONDS, body=b"s3cret"),
        Failure(retry_after=timedelta(seconds=7)),
    ),
    "400 with a transient code": (error_fault(400, b'{"error": "temporarily_unavailable"}'), Failure()),
    "400 without an OAuth code": (error_fault(400, b'{"message": "s3cret"}'), Failure()),
    "403 of HTML": (replace(HTML, status=403), Failure()),
}

TABLE: dict[str, tuple[Behaviour, Tokens | Failure]] = {
    **{name: (Behaviour(faults={"token": fault}), failure) for name, (fault, failure) in FAULTS.items()},
    **{
        f"{name}, after processing": (Behaviour(faults={"token": replace(fault, handle_first=True)}), failure)
        for name, (fault, failure) in FAULTS.items()
    },
    "slow, but in time": (Behaviour(faults={"token": Fault(delay=0.05)}), Tokens()),
    "slow body, but in time": (Behaviour(faults={"token": SlowBody(pause=0)}), Tokens()),
    "900 kB": (Behaviour(faults={"token": OversizedBody(size=900_000)}), Tokens()),
    "900 kB, as gzip": (Behaviour(faults={"token": OversizedBody(size=900_000, gzip=True)}), Tokens()),
    "gzip in capitals": (with_rewritten_body(gzip.compress, Content_Encoding="GZIP"), Tokens()),
    "x-gzip": (with_rewritten_body(gzip.compress, Content_Encoding="x-gzip"), Tokens()),
    "gzip of two members": (with_rewritten_body(in_two_members, Content_Encoding="gzip"), Tokens()),
    "identity coding": (with_rewritten_body(Content_Encoding="Identity"), Tokens()),
    "an empty coding": (with_rewritten_body(Content_Encoding=""), Tokens()),
    "an unknown coding": (with_rewritten_body(Content_Encoding="br"), Tokens()),
    "byte order mark": (with_rewritten_body(lambda body: b"\xef\xbb\xbf" + body), Tokens()),
    "lone surrogate": (with_rewritten_body(with_members(rb'"name": "\ud83d"')), Tokens()),
    "latin-1 with charset": (
        with_rewritten_body(with_members(b'"name": "Caf\xe9"'), Content_Type="application/json; charset=iso-8859-1"),
        Tokens(),
    ),
    "latin-1 without charset": (with_rewritten_body(with_members(b'"name": "Caf\xe9"')), Tokens()),
    "form": (with_rewritten_body(as_form, Content_Type=FORM), Tokens()),
    "form as plain text": (with_rewritten_body(as_form, Content_Type="text/plain; charset=utf-8"), Tokens()),
    "form as HTML": (with_rewritten_body(as_form, Content_Type="text/html"), Failure()),
    "error in a form": (
        Behaviour(faults={"token": error_fault(400, b"error=invalid_grant&x=s3cret", {"Content-Type": FORM})}),
        Failure(error=ProviderRejected, oauth_error="invalid_grant"),
    ),
    "no refresh token": (with_token_members(refresh_token=OMIT), Tokens(has_refresh_token=False)),
    "refresh token null": (with_token_members(refresh_token=None), Tokens(has_refresh_token=False)),
    "fewer scopes": (with_token_members(scope="read"), Tokens(scopes=("read",))),
    "no scopes": (with_token_members(scope=OMIT), Tokens(scopes=None)),
    "scopes as a list": (with_token_members(scope=["read", "write"]), Tokens()),
    "scopes with commas": (with_token_members(scope="read,write"), Tokens()),
    "no expires_in": (with_token_members(expires_in=OMIT), Tokens(lifetime=None)),
    "expires_in as a numeric string": (with_token_members(expires_in="3600"), Tokens()),
    "expires_in 0": (with_token_members(expires_in=0), Tokens(lifetime=timedelta())),
    "expires_in negative": (with_token_members(expires_in=-1), Tokens(lifetime=timedelta())),
    "expires_in 1e300": (with_token_members(expires_in=1e300), Tokens(lifetime=TEN_YEARS)),
    "expires_in of 400 digits": (with_token_members(expires_in=10**400), Tokens(lifetime=TEN_YEARS)),
    "expires_in of 5,000 digits": (
        with_rewritten_body(with_members(b'"expires_in": ' + b"9" * 5000)),
        Tokens(lifetime=TEN_YEARS),
    ),
    "expires_in Infinity": (with_token_members(expires_in=float("inf")), Tokens(lifetime=TEN_YEARS)),
    "expires_in NaN": (with_token_members(expires_in=float("nan")), Tokens(lifetime=None)),
    "expires_in 'NaN'": (with_token_members(expires_in="NaN"), Tokens(lifetime=None)),
    "expires_in as words": (with_token_members(expires_in="soon"), Tokens(lifetime=None)),
    "expires_at in ISO form": (with_token_members(expires_in=OMIT, expires_at="2026-11-22T13:00:00Z"), Tokens()),
    "expires_at without a zone": (with_token_members(expires_in=OMIT, expires_at="2026-11-22T13:00:00"), Tokens()),
    "expires_at in milliseconds": (with_token_members(expires_in=OMIT, expires_at=1_795_352_400_000), Tokens()),
    "expires_at in words": (with_token_members(expires_in=OMIT, expires_at="tomorrow"), Tokens(lifetime=None)),
    "bearer in lower case": (with_token_members(token_type="bearer"), Tokens()),
    "no token type": (with_token_members(token_type=OMIT), Tokens()),
    "unknown token type": (with_token_members(token_type="mac"), RefreshTokenOnly()),
    "no access token": (with_token_members(access_token=OMIT), RefreshTokenOnly()),
    "empty access token": (with_token_members(access_token=""), RefreshTokenOnly()),
    "error with 200": (
        with_token_members(error="invalid_grant", access_token=OMIT),
        Failure(error=ProviderRejected, oauth_error="invalid_grant"),
    ),
    "error with 200 beside tokens": (
        with_token_members(error="invalid_grant"),
        Failure(error=ProviderRejected, oauth_error="invalid_grant"),
    ),
    "invalid client with 200": (
        with_token_members(error="invalid_client"),
        Failure(error=ProviderMisconfigured, oauth_error="invalid_client"),
    ),
    "error 0 beside tokens": (with_token_members(error=0), Tokens()),
    "error null beside tokens": (with_token_members(error=None), Tokens()),
    "transient error with 200": (with_token_members(error="temporarily_unavailable"), Failure()),
    "error in words with 200": (with_token_members(error="s3cret, try later"), Failure()),
}
