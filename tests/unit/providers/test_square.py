import json
from datetime import timedelta

import httpx
import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.providers.built_in import built_in_class
from integration_server.service.integrations.ports import NewAccount
from tests.unit.providers.support import NOW, FakeTransport, build_provider, json_response

SquareProvider = built_in_class("square")
TOKENS = OAuthTokens(access_token="at", refresh_token="rt", extras={"merchant_id": "M1"})


def test_the_authorization_url_requires_sign_in_and_has_no_challenge() -> None:
    url = build_provider(SquareProvider, FakeTransport()).authorization_url(
        redirect_uri="https://app.example/cb", state="st", scopes=["MERCHANT_PROFILE_READ"], code_challenge="ch"
    )
    query = httpx.URL(url).params
    assert query["session"] == "false"
    assert query["state"] == "st"
    assert "code_challenge" not in query


async def test_reads_the_expiry_and_the_merchant() -> None:
    network = FakeTransport(
        json_response(
            {
                "access_token": "at",
                "token_type": "bearer",
                "expires_at": "2026-12-22T12:00:00Z",
                "merchant_id": "M1",
                "refresh_token": "rt",
                "short_lived": False,
            }
        )
    )
    tokens = await build_provider(SquareProvider, network).exchange_code_for_tokens(
        "c", "https://app.example/cb", "ver"
    )
    assert tokens.expire_time == NOW + timedelta(days=30)
    assert tokens.extras == {"merchant_id": "M1"}
    assert network.form["client_secret"] == "our-secret"
    assert "code_verifier" not in network.form


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [("bad_request", 400, ProviderRejected), ("service.not_authorized", 401, ProviderUnavailable)],
)
async def test_no_error_of_the_token_endpoint_proves_anything(kind: str, status: int, error: type[Exception]) -> None:
    network = FakeTransport(json_response({"message": "cannot renew", "type": kind}, status))
    with pytest.raises(error) as raised:
        await build_provider(SquareProvider, network).refresh_access_token("rt")
    assert getattr(raised.value, "oauth_error", None) != "invalid_grant"


async def test_the_account_is_the_merchant() -> None:
    network = FakeTransport(json_response({"locations": [{"business_name": "Ada's", "merchant_id": "M1"}]}))
    assert await build_provider(SquareProvider, network).verify_connection(TOKENS) == NewAccount("M1", "Ada's")


async def test_revokes_with_the_client_secret() -> None:
    network = FakeTransport(json_response({"success": True}))
    assert await build_provider(SquareProvider, network).revoke_credentials(TOKENS)
    assert str(network.request.url) == "https://connect.squareup.com/oauth2/revoke"
    assert network.request.headers["Authorization"] == "Client our-secret"
    assert network.request.headers["Content-Type"] == "application/json"
    assert json.loads(network.request.content) == {"client_id": "our-id", "access_token": "at"}


async def test_a_failed_revocation_is_reported() -> None:
    with pytest.raises(ProviderMisconfigured):
        await build_provider(SquareProvider, FakeTransport(httpx.Response(401))).revoke_credentials(TOKENS)


def test_a_revocation_ends_all_grants_of_the_merchant() -> None:
    assert tuple(build_provider(SquareProvider, FakeTransport()).shares_grants_with) == ("square",)
