"""The protected resources: a bearer token's endpoint (RFC 6750), an API key's, and the target of redirects."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from integration_server.sandbox.client_authentication import decode_basic, same_secret
from integration_server.sandbox.parameters import Parameters
from integration_server.sandbox.state import Sandbox


class Resources:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def userinfo(self, request: Request) -> Response:
        token = find_bearer_token(request)
        if token is None:
            # RFC 6750 §3.1: no error code for a request without a token.
            return _unauthorized('Bearer realm="sandbox"')
        account = self._sandbox.find_account(token)
        if account is None:
            return _unauthorized('Bearer realm="sandbox", error="invalid_token"')
        return JSONResponse({"sub": account.sub, "email": account.email, "name": account.name})

    async def account(self, request: Request) -> Response:
        if not self._has_api_key(request):
            return _unauthorized('Basic realm="sandbox"')
        return JSONResponse({"id": "acct_sandbox", "name": "Sandbox Account"})

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def redirect_target(self, request: Request) -> Response:
        """Record the names of the parameters that a client sends to the target of a redirect."""
        names = set(Parameters.decode(await request.body()).values) | ({"authorization"} & set(request.headers.keys()))
        self._sandbox.redirected_parameters.append(frozenset(names))
        return JSONResponse({})

    def _has_api_key(self, request: Request) -> bool:
        expected = self._sandbox.api_key
        if (pair := decode_basic(request.headers.get("authorization", ""))) is not None:
            return same_secret(expected.key, pair[0]) and same_secret(expected.secret, pair[1])
        return same_secret(expected.key, request.headers.get("x-api-key") or find_bearer_token(request))


def find_bearer_token(request: Request) -> str | None:
    """The request's bearer token (RFC 6750 §2.1)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" and token else None


def _unauthorized(challenge: str) -> Response:
    return JSONResponse({"error": "unauthorized"}, 401, {"WWW-Authenticate": challenge})
