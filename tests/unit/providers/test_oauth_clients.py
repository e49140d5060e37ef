"""Each way in which a client authenticates uses the client and the secret that the provider was given."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.oauth_client import OAuthClient
from integration_server.providers.declaration_tables import TokenAuth
from integration_server.providers.oauth2 import OAuth2Provider
from tests.unit.providers.support import FakeTransport, build_provider, json_response


class Acme(OAuth2Provider):
    integration_type = "acme"
    oauth_authorize_url = "https://acme.example/authorize"
    oauth_token_url = "https://acme.example/token"
    revoke_url = "https://acme.example/revoke"


def new_key() -> str:
    """A private key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


KEYS = {name: new_key() for name in ("ours", "new", "old")}


def claims_of(token: str) -> Mapping[str, Any]:
    payload = token.split(".")[1]
    found: Mapping[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


def identity_in(request: httpx.Request, token_auth: TokenAuth) -> object:
    """Who a request says that it is, and with what."""
    form = dict(httpx.QueryParams(request.content.decode()))
    if token_auth in ("client_secret_basic", "header"):
        return base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
    if token_auth == "client_secret_post":
        return f"{form['client_id']}:{form['client_secret']}"
    if token_auth == "none":
        return form["client_id"]
    return claims_of(form["client_assertion"])["iss"]


@pytest.mark.parametrize("secret", ["new", "old"])
@pytest.mark.parametrize(
    "token_auth",
    ["client_secret_basic", "client_secret_post", "header", "none", "client_secret_jwt", "private_key_jwt"],
)
async def test_a_request_authenticates_as_the_given_client(token_auth: TokenAuth, secret: str) -> None:
    tokens = {"access_token": "at", "token_type": "bearer", "refresh_token": "rt"}
    network = FakeTransport(json_response(tokens), json_response(tokens), json_response({}))
    headers = {"Authorization": "Basic {basic}"} if token_auth == "header" else {}
    declared: type[Acme] = type("Declared", (Acme,), {"token_auth": token_auth, "token_headers": headers})
    provider = build_provider(declared, network, ACME_PRIVATE_KEY=KEYS["ours"], ACME_PRIVATE_KEY_ID="our-key")
    secrets = (KEYS["new"], KEYS["old"]) if token_auth == "private_key_jwt" else ("new" * 9, "old" * 9)
    used = secrets[0 if secret == "new" else 1]
    tenant = provider.for_client(OAuthClient("tenant-id", secrets, "tenant").using(used))
    assert tenant.missing_settings == []
    url = tenant.authorization_url(redirect_uri="https://a.example", state="s", scopes=[], code_challenge="c")
    assert "client_id=tenant-id" in url
    await tenant.exchange_code_for_tokens("code", "https://a.example", "v")
    await tenant.refresh(OAuthTokens("at", "rt"))
    assert await tenant.revoke_credentials(OAuthTokens("at", "rt"))
    expected = {
        **dict.fromkeys(("client_secret_basic", "client_secret_post", "header"), f"tenant-id:{secret * 9}"),
        **dict.fromkeys(("none", "client_secret_jwt", "private_key_jwt"), "tenant-id"),
    }[token_auth]
    assert [identity_in(request, token_auth) for request in network.requests] == [expected] * 3
    sent = b"".join(request.content + repr(request.headers).encode() for request in network.requests)
    assert b"our-" not in sent  # neither the operator's id, nor its secret, nor the id of its key
    assert b"PRIVATE" not in sent


def test_the_operators_own_client_has_its_previous_secret_from_the_settings() -> None:
    provider = build_provider(Acme, FakeTransport(), ACME_CLIENT_SECRET_PREVIOUS="former")
    assert provider.oauth_client == OAuthClient("our-id", ("our-secret", "former"))
    same = build_provider(Acme, FakeTransport(), ACME_CLIENT_SECRET_PREVIOUS="our-secret")
    assert list(same.oauth_client.secrets) == ["our-secret"]
