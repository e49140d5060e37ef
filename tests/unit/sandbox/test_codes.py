"""The exchange of a code at the token endpoint."""

from dataclasses import replace

import pytest

from integration_server.sandbox.behaviour import OMIT
from integration_server.sandbox.state import Sandbox
from tests.unit.sandbox.conftest import StoppedClock
from tests.unit.sandbox.oauth_client import CHALLENGE, CLIENT_ID, REDIRECT_URI, OAuthClient, basic, error_of


async def test_a_code_is_exchanged_once(application: OAuthClient) -> None:
    callback = await application.authorize(account="grace")

    response = await application.exchange(callback["code"])

    tokens = response.json()
    assert tokens.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "scope"}
    assert (tokens["token_type"], tokens["expires_in"], tokens["scope"]) == ("Bearer", 3600, "read write")
    assert response.headers["cache-control"] == "no-store"
    assert (await application.userinfo(tokens["access_token"])).json() == {
        "sub": "grace",
        "email": "grace@example.com",
        "name": "Grace Hopper",
    }


async def test_reuse_of_a_code_revokes_its_tokens(application: OAuthClient, sandbox: Sandbox) -> None:
    callback = await application.authorize()
    tokens = (await application.exchange(callback["code"])).json()

    assert error_of(await application.exchange(callback["code"])) == (400, "invalid_grant")

    assert (await application.userinfo(tokens["access_token"])).status_code == 401
    assert error_of(await application.refresh(tokens["refresh_token"])) == (400, "invalid_grant")
    assert sandbox.grants_of("ada") == []


async def test_a_code_expires_after_sixty_seconds(application: OAuthClient, clock: StoppedClock) -> None:
    early, late = await application.authorize(), await application.authorize()

    clock.advance(59)
    assert (await application.exchange(early["code"])).status_code == 200
    clock.advance(1)
    assert error_of(await application.exchange(late["code"])) == (400, "invalid_grant")


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"code": "made-up"}, "invalid_grant"),
        ({"code": None}, "invalid_request"),
        ({"redirect_uri": REDIRECT_URI + "/"}, "invalid_grant"),
        ({"redirect_uri": None}, "invalid_request"),
        ({"code_verifier": "w" * 43}, "invalid_grant"),
        ({"code_verifier": CHALLENGE}, "invalid_grant"),
        ({"code_verifier": None}, "invalid_grant"),
        ({"grant_type": None}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
    ],
)
async def test_rejects_an_invalid_exchange(
    application: OAuthClient, overrides: dict[str, str | None], error: str
) -> None:
    callback = await application.authorize()

    assert error_of(await application.exchange(callback["code"], **overrides)) == (400, error)


async def test_rejects_a_verifier_without_a_challenge(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, require_pkce=False)
    callback = await application.authorize(code_challenge=None, code_challenge_method=None)

    assert error_of(await application.exchange(callback["code"])) == (400, "invalid_grant")


async def test_rejects_the_code_of_another_client(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.register_client("other", "other-secret", [REDIRECT_URI])
    callback = await application.authorize()
    form = {"grant_type": "authorization_code", "code": callback["code"], "redirect_uri": REDIRECT_URI}

    response = await application.http.post(
        "/oauth/token", data=form, headers={"Authorization": basic("other", "other-secret")}
    )

    assert error_of(response) == (400, "invalid_grant")
    assert (await application.exchange(callback["code"])).status_code == 200


async def test_rejects_a_code_of_a_revoked_grant(application: OAuthClient, sandbox: Sandbox) -> None:
    callback = await application.authorize(account="ada")
    sandbox.revoke_grants("ada")

    assert error_of(await application.exchange(callback["code"])) == (400, "invalid_grant")


async def test_granted_scopes_can_be_limited(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, granted_scopes=("read",))

    assert (await application.connect(scope="read write"))["scope"] == "read"


async def test_refresh_tokens_can_be_switched_off(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, issue_refresh_token=False)

    assert "refresh_token" not in await application.connect()


async def test_members_of_the_token_response_can_be_replaced(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, token_response={"expires_in": "soon", "scope": OMIT})

    tokens = await application.connect()

    assert tokens["expires_in"] == "soon"
    assert "scope" not in tokens


async def test_records_every_call(application: OAuthClient, sandbox: Sandbox) -> None:
    callback = await application.authorize()
    await application.exchange(callback["code"])
    await application.exchange(callback["code"])

    assert [(call.grant_type, call.client_id, call.outcome) for call in sandbox.token_calls] == [
        ("authorization_code", CLIENT_ID, "ok"),
        ("authorization_code", CLIENT_ID, "invalid_grant"),
    ]
    assert sandbox.calls == {"authorize": 1, "decide": 1, "token": 2}
