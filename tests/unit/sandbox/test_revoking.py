"""The revocation endpoint."""

from dataclasses import replace

from integration_server.sandbox import Sandbox
from tests.unit.sandbox.application import Application, basic, refusal


async def test_refresh_token_takes_its_grant_along(application: Application, sandbox: Sandbox) -> None:
    tokens = await application.connect()

    assert (await application.revoke(tokens["refresh_token"])).status_code == 200

    assert (await application.userinfo(tokens["access_token"])).status_code == 401
    assert refusal(await application.refresh(tokens["refresh_token"])) == (400, "invalid_grant")
    assert sandbox.grants_of("ada") == []


async def test_access_token_goes_alone(application: Application) -> None:
    tokens = await application.connect()

    assert (await application.revoke(tokens["access_token"])).status_code == 200

    assert (await application.userinfo(tokens["access_token"])).status_code == 401
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


async def test_access_token_takes_its_grant_along_when_told_so(application: Application, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, revoking_kills="grant")
    revoked, other = await application.connect(), await application.connect()

    await application.revoke(revoked["access_token"])

    assert refusal(await application.refresh(revoked["refresh_token"])) == (400, "invalid_grant")
    assert (await application.refresh(other["refresh_token"])).status_code == 200


async def test_takes_every_grant_of_the_account_along_when_told_so(application: Application, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, revoking_kills="account")
    revoked, same_person = await application.connect(), await application.connect()
    callback = await application.authorize(account="grace")
    other_person = (await application.exchange(callback["code"])).json()

    await application.revoke(revoked["refresh_token"])

    assert refusal(await application.refresh(same_person["refresh_token"])) == (400, "invalid_grant")
    assert (await application.refresh(other_person["refresh_token"])).status_code == 200


async def test_unknown_and_dead_tokens_are_no_error(application: Application) -> None:
    tokens = await application.connect()

    for token in ("made-up", tokens["refresh_token"], tokens["refresh_token"]):
        assert (await application.revoke(token)).status_code == 200


async def test_refuses_another_clients_token(application: Application, sandbox: Sandbox) -> None:
    sandbox.register_client("other", "other-secret", [])
    tokens = await application.connect()

    answer = await application.http.post(
        "/oauth/revoke",
        data={"token": tokens["refresh_token"]},
        headers={"Authorization": basic("other", "other-secret")},
    )

    assert refusal(answer) == (400, "invalid_grant")
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


async def test_wants_a_token(application: Application) -> None:
    assert refusal(await application.post("/oauth/revoke", {})) == (400, "invalid_request")
