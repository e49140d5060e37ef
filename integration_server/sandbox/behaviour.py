"""What can be switched: the provider's ways, and how an endpoint is out of order.

Only switches live here; what they switch is done where each is read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response

Endpoint = Literal[
    "authorize", "decide", "token", "revoke", "userinfo", "account", "healthz", "redirect_target", "calendar"
]
Handler = Callable[[Request], Awaitable[Response]]


class Omit(Enum):
    OMIT = "omit"


OMIT: Final = Omit.OMIT
"""As a value in `Behaviour.token_response`: leave this member out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How an endpoint is out of order: slow, or answering something else.

    A fault of another sort is a subclass with its own `respond`: see `faults.py`.

    Attributes:
        status: HTTP status to answer; None answers as if nothing were wrong, after `delay`.
        delay: seconds before the answer.
        handle_first: the endpoint does its work and only its answer is lost, so that a code or a refresh token
            is spent although the client never learns what it got.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0
    handle_first: bool = False

    async def respond(self, request: Request, handler: Handler) -> Response:
        response = await self.run_before_response(request, handler)
        if self.status is None:
            return response or await handler(request)
        return Response(self.body, self.status, dict(self.headers))

    async def run_before_response(self, request: Request, handler: Handler) -> Response | None:
        """What comes before any answer. Returns that of the work, if the work went first."""
        response = await handler(request) if self.handle_first else None
        await asyncio.sleep(self.delay)
        return response


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One provider's ways. To change one: `sandbox.behaviour = replace(sandbox.behaviour, …)`.

    Attributes:
        access_token_lifetime: seconds.
        issue_refresh_token: whether a code yields one at all.
        rotate_refresh_tokens: each refresh spends the token and yields another.
        reuse_revokes_grant: a spent refresh token that comes back ends the grant (RFC 9700 §4.14.2).
        refresh_grace: seconds in which a spent refresh token gets once more what replaced it.
        refresh_response_has_refresh_token: when off, the answer to a refresh names none and the old one stays
            good, whatever `rotate_refresh_tokens` says.
        require_pkce: a request without `code_challenge` is refused. One that has it is always held to it.
        send_iss: name the issuer in the authorization response (RFC 9207).
        granted_scopes: the person grants no more than these of those asked for; None grants all.
        revocation_scope: what revoking an access token ends: itself, its grant, or every grant of that client
            and account. A refresh token always takes its grant along (RFC 7009 §2.1).
        token_response: members laid over the token endpoint's JSON: `{"expires_in": "3600", "scope": OMIT}`.
        faults: the endpoints that are out of order.
    """

    access_token_lifetime: int = 3600
    issue_refresh_token: bool = True
    rotate_refresh_tokens: bool = True
    reuse_revokes_grant: bool = True
    refresh_grace: float = 0
    refresh_response_has_refresh_token: bool = True
    require_pkce: bool = True
    send_iss: bool = True
    granted_scopes: tuple[str, ...] | None = None
    revocation_scope: Literal["token", "grant", "account"] = "token"
    token_response: Mapping[str, object] = field(default_factory=dict)
    faults: Mapping[Endpoint, Fault] = field(default_factory=dict)
