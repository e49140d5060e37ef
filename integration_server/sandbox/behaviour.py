"""The switches of the sandbox: the provider's behaviour, and faults of its endpoints.

This module only declares them; each switch is implemented where it is read.
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
"""As a value in `Behaviour.token_response`: omit this member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault of an endpoint: a slow response or a wrong one. Subclasses in `faults.py` override `respond`.

    Attributes:
        status: the HTTP status of the response; None sends the endpoint's own response after `delay`.
        delay: seconds before the response.
        handle_first: the endpoint handles the request and only its response is lost, so that a code or a refresh token
            is used up without a result for the client.
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
        """Handle the request if `handle_first`, then wait for `delay`. Returns the response if it was handled."""
        response = await handler(request) if self.handle_first else None
        await asyncio.sleep(self.delay)
        return response


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """The behaviour of the provider. To change it: `sandbox.behaviour = replace(sandbox.behaviour, …)`.

    Attributes:
        access_token_lifetime: seconds.
        issue_refresh_token: a code is exchanged for a refresh token too.
        rotate_refresh_tokens: each refresh replaces the refresh token.
        reuse_revokes_grant: reuse of a replaced refresh token revokes the grant (RFC 9700 §4.14.2).
        refresh_grace: seconds in which reuse of a replaced refresh token returns its successor again.
        refresh_response_has_refresh_token: if off, a refresh returns no refresh token and the old one stays valid,
            whatever `rotate_refresh_tokens` says.
        require_pkce: a request without `code_challenge` is rejected. A challenge that is given is always checked.
        send_iss: the authorization response has the issuer (RFC 9207).
        granted_scopes: the user grants at most these of the requested scopes; None grants all.
        repeats_tokens: a further authorization of the same client and account returns the tokens of the first one, as
            long as they are valid.
        revocation_ends: the revocation of an access token ends the token, its authorization, the grant (every
            authorization of that client and account), or every authorization of the account, for all clients. The
            revocation of a refresh token always ends its authorization (RFC 7009 §2.1).
        token_response: members that replace those of the token response: `{"expires_in": "3600", "scope": OMIT}`.
        faults: the faults of endpoints.
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
    repeats_tokens: bool = False
    revocation_ends: Literal["token", "authorization", "grant", "account"] = "token"
    token_response: Mapping[str, object] = field(default_factory=dict)
    faults: Mapping[Endpoint, Fault] = field(default_factory=dict)
