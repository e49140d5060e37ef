"""The token endpoint (RFC 6749 §4.1.3, §5, §6) and the revocation endpoint (RFC 7009)."""

import json
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from integration_server.sandbox.behaviour import OMIT
from integration_server.sandbox.client_authentication import authenticate_client
from integration_server.sandbox.errors import OAuthError
from integration_server.sandbox.model import Client, TokenCall, TokenPair, fingerprint
from integration_server.sandbox.parameters import Parameters, read_parameters
from integration_server.sandbox.state import Sandbox

NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}  # RFC 6749 §5.1


class TokenEndpoints:
    """Issues and revokes tokens."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def issue(self, request: Request) -> Response:
        form, client, outcome = Parameters(), None, "ok"
        try:
            form = await read_parameters(request)
            form.require_no_repetition()
            client = authenticate_client(self._sandbox, request, form)
            response = _json(self._token_response(self._grant(client, form)))
        except OAuthError as error:
            outcome, response = error.code, _error(error)
        refresh_token = form.find("refresh_token")
        call = TokenCall(
            grant_type=form.find("grant_type"),
            client_id=client.client_id if client else None,
            refresh_token=fingerprint(refresh_token) if refresh_token else None,
            outcome=outcome,
        )
        self._sandbox.token_calls.append(call)
        return response

    async def revoke(self, request: Request) -> Response:
        try:
            form = await read_parameters(request)
            form.require_no_repetition()
            self._sandbox.revoke(authenticate_client(self._sandbox, request, form), form.get("token"))
        except OAuthError as error:
            return _error(error)
        return Response(headers=NO_STORE)

    def _grant(self, client: Client, form: Parameters) -> TokenPair:
        match form.get("grant_type"):
            case "authorization_code":
                code, redirect_uri = form.get("code"), form.get("redirect_uri")
                return self._sandbox.redeem_code(client, code, redirect_uri, form.find("code_verifier"))
            case "refresh_token":
                return self._sandbox.refresh(client, form.get("refresh_token"), form.find_scopes())
        raise OAuthError("unsupported_grant_type", "grant_type must be authorization_code or refresh_token")

    def _token_response(self, issued: TokenPair) -> dict[str, object]:
        token_response: dict[str, object] = {
            "access_token": issued.access_token,
            "token_type": "Bearer",
            "expires_in": round((issued.expire_time - self._sandbox.now()).total_seconds()),
            "scope": " ".join(issued.scopes),
        }
        if issued.refresh_token is not None:
            token_response["refresh_token"] = issued.refresh_token
        token_response.update(self._sandbox.behaviour.token_response)
        return {name: value for name, value in token_response.items() if value is not OMIT}


def _error(error: OAuthError) -> Response:
    return _json({"error": error.code, "error_description": error.description}, error.status, headers=error.headers)


def _json(content: dict[str, object], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, {**NO_STORE, **(headers or {})}, "application/json")
