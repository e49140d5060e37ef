"""Client authentication at the token and revocation endpoints (RFC 6749 §2.3)."""

import secrets
from base64 import b64decode
from urllib.parse import unquote_plus

from starlette.requests import Request

from integration_server.sandbox.errors import OAuthError
from integration_server.sandbox.model import Client
from integration_server.sandbox.parameters import Parameters
from integration_server.sandbox.state import Sandbox


def authenticate_client(sandbox: Sandbox, request: Request, form: Parameters) -> Client:
    """The client, by `client_secret_basic`, `client_secret_post`, or the `client_id` of a public client.

    Raises `OAuthError`: invalid_client (401), or invalid_request if the methods are mixed.
    """
    authorization = request.headers.get("authorization")
    invalid_client = OAuthError(
        "invalid_client",
        "the client is unknown or its secret is wrong",
        status=401,
        headers={"WWW-Authenticate": 'Basic realm="sandbox", charset="UTF-8"'},
    )
    if authorization is None:
        client_id, client_secret = form.find("client_id"), form.find("client_secret")
    else:
        if (decoded := decode_basic(authorization)) is None:
            raise invalid_client
        # RFC 6749 §2.3.1: both are form-encoded before they become a user and a password.
        client_id, client_secret = map(unquote_plus, decoded)
        # RFC 6749 §2.3: at most one authentication method per request.
        if form.find("client_secret") is not None or form.find("client_id") not in (None, client_id):
            raise OAuthError("invalid_request", "the client authenticates in more than one way")
    client = sandbox.clients.get(client_id or "")
    if client is None or not same_secret(client.client_secret, client_secret or None):
        raise invalid_client
    return client


def decode_basic(authorization: str) -> tuple[str, str] | None:
    """User and password of a Basic header (RFC 7617 §2); None for another header."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
    except ValueError:
        return None
    return (user, password) if colon else None


def same_secret(expected: str | None, presented: str | None) -> bool:
    """Whether two secrets are equal, or both missing."""
    if expected is None or presented is None:
        return expected is presented
    return secrets.compare_digest(expected.encode(), presented.encode())
