"""Refreshes: rotation, reuse, grace period and scopes."""

from dataclasses import replace

from integration_server.sandbox.model import fingerprint
from integration_server.sandbox.state import Sandbox
from tests.unit.sandbox.conftest import StoppedClock
from tests.unit.sandbox.oauth_client import OAuthClient, basic, error_of


async def test_rotation_keeps_older_access_tokens_valid(application: OAuthClient) -> None:
    first = await application.connect()

    second = (await application.refresh(first["refresh_token"])).json()

    assert second["refresh_token"] != first["refresh_token"]
    assert second["access_token"] != first["access_token"]
    for tokens in (first, second):
        assert (await application.userinfo(tokens["access_token"])).status_code == 200


async def test_reuse_revokes_the_grant(application: OAuthClient, sandbox: Sandbox) -> None:
    first = await application.connect()
    second = (await application.refresh(first["refresh_token"])).json()

    assert error_of(await application.refresh(first["refresh_token"])) == (400, "invalid_grant")

    assert error_of(await application.refresh(second["refresh_token"])) == (400, "invalid_grant")
    assert (await application.userinfo(second["access_token"])).status_code == 401
    assert sandbox.grants_of("ada") == []


async def test_revocation_on_reuse_can_be_switched_off(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, reuse_revokes_grant=False)
    first = await application.connect()
    second = (await application.refresh(first["refresh_token"])).json()

    assert error_of(await application.refresh(first["refresh_token"])) == (400, "invalid_grant")

    assert (await application.refresh(second["refresh_token"])).status_code == 200


async def test_reuse_in_the_grace_period_returns_the_same_tokens(
    application: OAuthClient, sandbox: Sandbox, clock: StoppedClock
) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, refresh_grace=30)
    first = await application.connect()
    second = (await application.refresh(first["refresh_token"])).json()

    clock.advance(29)
    again = (await application.refresh(first["refresh_token"])).json()
    assert again == second | {"expires_in": 3600 - 29}
    clock.advance(1)
    assert error_of(await application.refresh(first["refresh_token"])) == (400, "invalid_grant")


async def test_keeps_the_refresh_token_without_rotation(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, rotate_refresh_tokens=False)
    tokens = await application.connect()

    for _ in range(2):
        response = await application.refresh(tokens["refresh_token"])
        assert response.json()["refresh_token"] == tokens["refresh_token"]


async def test_a_refresh_token_that_the_response_omits_stays_valid(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, refresh_response_has_refresh_token=False)
    tokens = await application.connect()

    for _ in range(2):
        response = await application.refresh(tokens["refresh_token"])
        assert response.status_code == 200
        assert "refresh_token" not in response.json()


async def test_a_restricted_scope_applies_to_one_access_token(application: OAuthClient) -> None:
    tokens = await application.connect(scope="read write")

    narrow = (await application.refresh(tokens["refresh_token"], scope="read")).json()
    assert narrow["scope"] == "read"
    assert (await application.refresh(narrow["refresh_token"])).json()["scope"] == "read write"


async def test_a_wider_scope_is_rejected_and_uses_up_nothing(application: OAuthClient) -> None:
    tokens = await application.connect(scope="read")

    response = await application.refresh(tokens["refresh_token"], scope="read write")
    assert error_of(response) == (400, "invalid_scope")
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


async def test_rejects_the_refresh_token_of_another_client(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.register_client("other", "other-secret", [])
    tokens = await application.connect()
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}

    response = await application.http.post(
        "/oauth/token", data=form, headers={"Authorization": basic("other", "other-secret")}
    )

    assert error_of(response) == (400, "invalid_grant")
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


async def test_tokens_of_a_revoked_grant_are_invalid(application: OAuthClient, sandbox: Sandbox) -> None:
    tokens = await application.connect()
    sandbox.revoke_grants("ada")

    assert error_of(await application.refresh(tokens["refresh_token"])) == (400, "invalid_grant")
    assert (await application.userinfo(tokens["access_token"])).status_code == 401


async def test_records_a_fingerprint_of_the_refresh_token(application: OAuthClient, sandbox: Sandbox) -> None:
    tokens = await application.connect()
    await application.refresh(tokens["refresh_token"])

    assert sandbox.token_calls[-1].refresh_token == fingerprint(tokens["refresh_token"])
    assert tokens["refresh_token"] not in repr(sandbox.token_calls)
