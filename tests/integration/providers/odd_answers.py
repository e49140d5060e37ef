"""What a token endpoint may answer instead of plain tokens, and what must come of it, for a code as for a refresh.

The docstring of `providers/token_answer.py` says it in words.
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
from integration_server.sandbox import (
    BAD_GATEWAY,
    BAD_JSON,
    EMPTY,
    HTML,
    JSON_ARRAY,
    OMIT,
    REDIRECT,
    Behaviour,
    Bloated,
    Drip,
    Fault,
    Hang,
    Reset,
    ResetMidway,
    Work,
)

HOUR = timedelta(hours=1)
TEN_YEARS = timedelta(days=3650)
DEADLINE = timedelta(seconds=0.2)  # for calls that nothing else ends
PATIENCE = timedelta(seconds=30)  # for all others, which must end long before


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The answer is used."""

    lifetime: timedelta | None = HOUR
    scopes: tuple[str, ...] | None = ("read", "write")
    has_refresh_token: bool = True
    longest: timedelta = PATIENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The answer is an error. `longest` is the deadline of the call; where it is `DEADLINE`, only that ends it."""

    error: type[ProviderError] = ProviderUnavailable
    oauth_error: str | None = None
    retry_after: timedelta | None = None
    longest: timedelta = PATIENCE


def odd(**members: object) -> Behaviour:
    return Behaviour(token_answer=members)


def refusing(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Fault:
    return Fault(status=status, headers=headers or {}, body=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten(Fault):
    """The endpoint's own answer, with its body written otherwise, and with these headers."""

    body_of: Callable[[bytes], bytes] = bytes

    async def answer(self, request: Request, work: Work) -> Response:
        """Do the work, and tell of it otherwise."""
        whole = await Fault.answer(self, request, work)
        headers = {"Content-Type": "application/json", **self.headers}
        return Response(self.body_of(bytes(whole.body)), whole.status_code, headers)


def rewritten(body_of: Callable[[bytes], bytes] = bytes, **headers: str) -> Behaviour:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Behaviour(faults={"token": Rewritten(body_of=body_of, headers=named)})


def with_members(members: bytes) -> Callable[[bytes], bytes]:
    """JSON with more members behind its own, which they replace."""
    return lambda body: body.removesuffix(b"}") + b", " + members + b"}"


def in_two_members(body: bytes) -> bytes:
    return gzip.compress(body[:20]) + gzip.compress(body[20:])


def as_form(body: bytes) -> bytes:
    return urlencode(json.loads(body)).encode()


FORM = "application/x-www-form-urlencoded"
IN_SEVEN_SECONDS = {"Retry-After": "7"}
INVALID_GRANT = b'{"error": "invalid_grant", "error_description": "s3cret"}'

# Each of these comes twice: as it is, and after work that was done, so that the code or the refresh token is spent.
# The client cannot tell which. (What only spoils the sending of the endpoint's own answer spends it either way.)
FAULTS: dict[str, tuple[Fault, Failure]] = {
    "hang": (Hang(), Failure(longest=DEADLINE)),
    "slow": (Fault(delay=3600), Failure(longest=DEADLINE)),
    "drip": (Drip(), Failure(longest=DEADLINE)),
    "drip of an error": (Drip(status=400, body=INVALID_GRANT), Failure(longest=DEADLINE)),
    "reset": (Reset(), Failure()),
    "reset midway": (ResetMidway(), Failure()),
    "reset midway of an error": (ResetMidway(status=400, body=INVALID_GRANT), Failure()),
    "10 MiB": (Bloated(), Failure()),
    "gzip bomb": (Bloated(gzip=True), Failure()),
    "redirect": (REDIRECT, Failure()),
    "HTML": (HTML, Failure()),
    "HTML, 502": (BAD_GATEWAY, Failure()),
    "empty": (EMPTY, Failure()),
    "bad JSON": (BAD_JSON, Failure()),
    "JSON, but an array": (JSON_ARRAY, Failure()),
    "429": (refusing(429, b"s3cret", IN_SEVEN_SECONDS), Failure(retry_after=timedelta(seconds=7))),
    "503": (refusing(503, b"s3cret", IN_SEVEN_SECONDS), Failure(retry_after=timedelta(seconds=7))),
    "503 with an OAuth code": (refusing(503, INVALID_GRANT), Failure()),
    "503 that drips": (
        Drip(status=503, headers=IN_SEVEN_SECONDS, body=b"s3cret"),
        Failure(retry_after=timedelta(seconds=7), longest=DEADLINE),
    ),
    "503 of 10 MiB": (
        Bloated(status=503, headers=IN_SEVEN_SECONDS, body=b"s3cret"),
        Failure(retry_after=timedelta(seconds=7)),
    ),
    "400 with a code that passes": (refusing(400, b'{"error": "temporarily_unavailable"}'), Failure()),
    "400 without an OAuth code": (refusing(400, b'{"message": "s3cret"}'), Failure()),
    "403 of HTML": (replace(HTML, status=403), Failure()),
}

TABLE: dict[str, tuple[Behaviour, Tokens | Failure]] = {
    **{name: (Behaviour(faults={"token": fault}), failure) for name, (fault, failure) in FAULTS.items()},
    **{
        f"{name}, after the work": (Behaviour(faults={"token": replace(fault, work_first=True)}), failure)
        for name, (fault, failure) in FAULTS.items()
    },
    "slow, but in time": (Behaviour(faults={"token": Fault(delay=0.05)}), Tokens()),
    "drip, but in time": (Behaviour(faults={"token": Drip(pause=0)}), Tokens()),
    "900 kB": (Behaviour(faults={"token": Bloated(size=900_000)}), Tokens()),
    "900 kB, as gzip": (Behaviour(faults={"token": Bloated(size=900_000, gzip=True)}), Tokens()),
    "gzip, in capitals": (rewritten(gzip.compress, Content_Encoding="GZIP"), Tokens()),
    "gzip by another name": (rewritten(gzip.compress, Content_Encoding="x-gzip"), Tokens()),
    "gzip of two members": (rewritten(in_two_members, Content_Encoding="gzip"), Tokens()),
    "no coding, and it says so": (rewritten(Content_Encoding="Identity"), Tokens()),
    "an empty coding": (rewritten(Content_Encoding=""), Tokens()),
    "an unknown coding": (rewritten(Content_Encoding="br"), Failure()),
    "byte order mark": (rewritten(lambda body: b"\xef\xbb\xbf" + body), Tokens()),
    "half a character": (rewritten(with_members(rb'"name": "\ud83d"')), Tokens()),
    "latin-1": (
        rewritten(with_members(b'"name": "Caf\xe9"'), Content_Type="application/json; charset=iso-8859-1"),
        Tokens(),
    ),
    "latin-1, and does not say so": (rewritten(with_members(b'"name": "Caf\xe9"')), Tokens()),
    "form": (rewritten(as_form, Content_Type=FORM), Tokens()),
    "form as plain text": (rewritten(as_form, Content_Type="text/plain; charset=utf-8"), Tokens()),
    "form as HTML": (rewritten(as_form, Content_Type="text/html"), Failure()),
    "error in a form": (
        Behaviour(faults={"token": refusing(400, b"error=invalid_grant&x=s3cret", {"Content-Type": FORM})}),
        Failure(error=ProviderRejected, oauth_error="invalid_grant"),
    ),
    "no refresh token": (odd(refresh_token=OMIT), Tokens(has_refresh_token=False)),
    "refresh token null": (odd(refresh_token=None), Tokens(has_refresh_token=False)),
    "fewer scopes": (odd(scope="read"), Tokens(scopes=("read",))),
    "no scopes": (odd(scope=OMIT), Tokens(scopes=None)),
    "scopes as a list": (odd(scope=["read", "write"]), Tokens()),
    "scopes with commas": (odd(scope="read,write"), Tokens()),
    "no expires_in": (odd(expires_in=OMIT), Tokens(lifetime=None)),
    "expires_in as text": (odd(expires_in="3600"), Tokens()),
    "expires_in 0": (odd(expires_in=0), Tokens(lifetime=timedelta())),
    "expires_in negative": (odd(expires_in=-1), Tokens(lifetime=timedelta())),
    "expires_in 1e300": (odd(expires_in=1e300), Tokens(lifetime=TEN_YEARS)),
    "expires_in of 400 digits": (odd(expires_in=10**400), Tokens(lifetime=TEN_YEARS)),
    "expires_in of 5,000 digits": (
        rewritten(with_members(b'"expires_in": ' + b"9" * 5000)),
        Tokens(lifetime=TEN_YEARS),
    ),
    "expires_in Infinity": (odd(expires_in=float("inf")), Tokens(lifetime=TEN_YEARS)),
    "expires_in NaN": (odd(expires_in=float("nan")), Tokens(lifetime=None)),
    "expires_in 'NaN'": (odd(expires_in="NaN"), Tokens(lifetime=None)),
    "expires_in in words": (odd(expires_in="soon"), Tokens(lifetime=None)),
    "expires_at in ISO form": (odd(expires_in=OMIT, expires_at="2026-11-22T13:00:00Z"), Tokens()),
    "expires_at without a zone": (odd(expires_in=OMIT, expires_at="2026-11-22T13:00:00"), Tokens()),
    "expires_at in milliseconds": (odd(expires_in=OMIT, expires_at=1_795_352_400_000), Tokens()),
    "expires_at in words": (odd(expires_in=OMIT, expires_at="tomorrow"), Tokens(lifetime=None)),
    "bearer in lower case": (odd(token_type="bearer"), Tokens()),
    "no token type": (odd(token_type=OMIT), Tokens()),
    "unknown token type": (odd(token_type="mac"), Failure()),
    "no access token": (odd(access_token=OMIT), Failure()),
    "empty access token": (odd(access_token=""), Failure()),
    "error with 200": (
        odd(error="invalid_grant", access_token=OMIT),
        Failure(error=ProviderRejected, oauth_error="invalid_grant"),
    ),
    "error with 200 beside tokens": (
        odd(error="invalid_grant"),
        Failure(error=ProviderRejected, oauth_error="invalid_grant"),
    ),
    "our client refused with 200": (
        odd(error="invalid_client"),
        Failure(error=ProviderMisconfigured, oauth_error="invalid_client"),
    ),
    "error 0 beside tokens": (odd(error=0), Tokens()),
    "error null beside tokens": (odd(error=None), Tokens()),
    "passing error with 200": (odd(error="temporarily_unavailable"), Failure()),
    "error in words with 200": (odd(error="s3cret, try later"), Failure()),
}
