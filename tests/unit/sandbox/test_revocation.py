"""The revocation endpoint."""

from dataclasses import replace
from typing import Literal

import pytest

from integration_server.sandbox.state import Sandbox
from tests.unit.sandbox.oauth_client import OAuthClient, basic, error_of


async def test_revoking_a_refresh_token_revokes_its_grant(application: OAuthClient, sandbox: Sandbox) -> None:
    tokens = await application.connect()

    assert (await application.revoke(tokens["refresh_token"])).status_code == 200

    assert (await application.userinfo(tokens["access_token"])).status_code == 401
    assert error_of(await application.refresh(tokens["refresh_token"])) == (400, "invalid_grant")
    assert sandbox.grants_of("ada") == []


async def test_revoking_an_access_token_keeps_its_grant(application: OAuthClient) -> None:
    tokens = await application.connect()

    assert (await application.revoke(tokens["access_token"])).status_code == 200

    assert (await application.userinfo(tokens["access_token"])).status_code == 401
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


async def test_revoking_an_access_token_can_revoke_its_grant(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, revocation_ends="authorization")
    revoked, other = await application.connect(), await application.connect()

    await application.revoke(revoked["access_token"])

    assert error_of(await application.refresh(revoked["refresh_token"])) == (400, "invalid_grant")
    assert (await application.refresh(other["refresh_token"])).status_code == 200


@pytest.mark.parametrize("ends", ["grant", "account"])
async def test_a_revocation_can_revoke_all_grants_of_the_account(
    application: OAuthClient, sandbox: Sandbox, ends: Literal["grant", "account"]
) -> None:
    other_client = sandbox.register_client("other", None, ["https://other.example/callback"])
    sandbox.issue_code(other_client, "https://other.example/callback", "ada", ("read",), None)
    sandbox.behaviour = replace(sandbox.behaviour, revocation_ends=ends)
    revoked, same_person = await application.connect(), await application.connect()
    callback = await application.authorize(account="grace")
    other_person = (await application.exchange(callback["code"])).json()

    await application.revoke(revoked["refresh_token"])

    assert error_of(await application.refresh(same_person["refresh_token"])) == (400, "invalid_grant")
    assert (await application.refresh(other_person["refresh_token"])).status_code == 200
    assert [grant.client_id for grant in sandbox.grants_of("ada")] == ([] if ends == "account" else ["other"])


async def test_a_further_authorization_can_return_the_tokens_of_the_first(
    application: OAuthClient, sandbox: Sandbox
) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, repeats_tokens=True)
    first, second = await application.connect(), await application.connect()
    assert (second["access_token"], second["refresh_token"]) == (first["access_token"], first["refresh_token"])

    await application.revoke(first["refresh_token"])

    assert (await application.connect())["refresh_token"] != first["refresh_token"]


async def test_unknown_and_invalid_tokens_are_not_errors(application: OAuthClient) -> None:
    tokens = await application.connect()

    for token in ("made-up", tokens["refresh_token"], tokens["refresh_token"]):
        assert (await application.revoke(token)).status_code == 200


async def test_rejects_the_token_of_another_client(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.register_client("other", "other-secret", [])
    tokens = await application.connect()

    response = await application.http.post(
        "/oauth/revoke",
        data={"token": tokens["refresh_token"]},
        headers={"Authorization": basic("other", "other-secret")},
    )

    assert error_of(response) == (400, "invalid_grant")
    assert (await application.refresh(tokens["refresh_token"])).status_code == 200


async def test_requires_a_token(application: OAuthClient) -> None:
    assert error_of(await application.post("/oauth/revoke", {})) == (400, "invalid_request")
