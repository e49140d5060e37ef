"""The protected resources of access tokens and API keys."""

import httpx
import pytest

from integration_server.sandbox.state import Sandbox
from tests.unit.sandbox.conftest import StoppedClock
from tests.unit.sandbox.oauth_client import OAuthClient, basic


async def test_an_access_token_expires(application: OAuthClient, clock: StoppedClock) -> None:
    tokens = await application.connect()

    clock.advance(3599)
    assert (await application.userinfo(tokens["access_token"])).status_code == 200
    clock.advance(1)
    assert (await application.userinfo(tokens["access_token"])).status_code == 401


async def test_access_tokens_can_be_expired_without_their_grants(application: OAuthClient, sandbox: Sandbox) -> None:
    tokens = await application.connect()
    sandbox.expire_access_tokens()

    assert (await application.userinfo(tokens["access_token"])).status_code == 401
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="sandbox"'),
        ({"Authorization": "Basic YTpi"}, 'Bearer realm="sandbox"'),
        ({"Authorization": "Bearer made-up"}, 'Bearer realm="sandbox", error="invalid_token"'),
    ],
)
async def test_userinfo_challenges_a_request_without_a_valid_token(
    http: httpx.AsyncClient, headers: dict[str, str], challenge: str
) -> None:
    response = await http.get("/userinfo", headers=headers)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == challenge


async def test_account_accepts_the_key_in_three_ways(http: httpx.AsyncClient, sandbox: Sandbox) -> None:
    key, secret = sandbox.api_key.key, sandbox.api_key.secret

    for headers in (
        {"X-Api-Key": key},
        {"Authorization": f"Bearer {key}"},
        {"Authorization": basic(key, secret)},
    ):
        response = await http.get("/api/account", headers=headers)
        assert response.status_code == 200
        assert response.json().keys() == {"id", "name"}


async def test_account_rejects_any_other_key(http: httpx.AsyncClient, sandbox: Sandbox) -> None:
    key, secret = sandbox.api_key.key, sandbox.api_key.secret

    for headers in (
        {},
        {"X-Api-Key": secret},
        {"Authorization": f"Bearer {secret}"},
        {"Authorization": basic(key, "wrong")},
        {"Authorization": basic("wrong", secret)},
    ):
        response = await http.get("/api/account", headers=headers)
        assert response.status_code == 401
        assert "www-authenticate" in response.headers


def test_secrets_stay_out_of_repr(sandbox: Sandbox) -> None:
    client = sandbox.register_client("shop", "hush", [])

    assert "hush" not in repr(client)
    assert sandbox.api_key.key not in repr(sandbox.api_key)
    assert sandbox.api_key.secret not in repr(sandbox.api_key)


async def test_healthz_responds(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).status_code == 200
