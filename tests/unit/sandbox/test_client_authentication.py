"""Client authentication at the token and revocation endpoints."""

from base64 import b64encode

import pytest

from integration_server.sandbox.state import Sandbox
from tests.unit.sandbox.oauth_client import (
    CLIENT_ID,
    CLIENT_SECRET,
    REDIRECT_URI,
    VERIFIER,
    OAuthClient,
    basic,
    error_of,
)

POSTED = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}


async def exchange_form(application: OAuthClient, client_id: str = CLIENT_ID) -> dict[str, str]:
    callback = await application.authorize(client_id=client_id)
    return {
        "grant_type": "authorization_code",
        "code": callback["code"],
        "redirect_uri": REDIRECT_URI,
        "code_verifier": VERIFIER,
    }


async def test_accepts_a_posted_secret(application: OAuthClient) -> None:
    form = await exchange_form(application)

    assert (await application.http.post("/oauth/token", data=form | POSTED)).status_code == 200


async def test_accepts_basic_with_the_same_client_id_in_the_body(application: OAuthClient) -> None:
    form = await exchange_form(application)

    assert (await application.post("/oauth/token", form | {"client_id": CLIENT_ID})).status_code == 200


async def test_basic_must_be_form_encoded(application: OAuthClient) -> None:
    form = await exchange_form(application)
    unencoded = "Basic " + b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()

    response = await application.http.post("/oauth/token", data=form, headers={"Authorization": unencoded})

    assert error_of(response) == (401, "invalid_client")


async def test_a_public_client_sends_only_its_id(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.register_client("mobile", None, [REDIRECT_URI])
    form = await exchange_form(application, "mobile") | {"client_id": "mobile"}

    assert (await application.http.post("/oauth/token", data=form)).status_code == 200


@pytest.mark.parametrize("more", [{"client_secret": CLIENT_SECRET}, {"client_id": "another"}])
async def test_two_authentication_methods_are_rejected(application: OAuthClient, more: dict[str, str]) -> None:
    form = await exchange_form(application)

    assert error_of(await application.post("/oauth/token", form | more)) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/revoke"])
@pytest.mark.parametrize(
    ("form", "authorization"),
    [
        ({}, None),
        ({"client_id": CLIENT_ID}, None),
        ({"client_id": CLIENT_ID, "client_secret": ""}, None),
        ({"client_id": CLIENT_ID, "client_secret": "wrong"}, None),
        ({"client_id": "mobile", "client_secret": "invented"}, None),
        ({}, basic("stranger", CLIENT_SECRET)),
        ({}, basic(CLIENT_ID, "wrong")),
        ({}, "Basic not-base64!"),
        ({}, "Basic " + b64encode(b"no colon").decode()),
        ({}, "Bearer token"),
    ],
)
async def test_rejects_invalid_credentials(
    application: OAuthClient, sandbox: Sandbox, path: str, form: dict[str, str], authorization: str | None
) -> None:
    sandbox.register_client("mobile", None, [REDIRECT_URI])
    headers = {} if authorization is None else {"Authorization": authorization}

    response = await application.http.post(path, data={"token": "any", **form}, headers=headers)

    assert error_of(response) == (401, "invalid_client")
    assert response.headers["www-authenticate"].startswith("Basic ")


async def test_a_secret_in_the_url_is_ignored(application: OAuthClient) -> None:
    form = await exchange_form(application)

    response = await application.http.post("/oauth/token", params=POSTED, data=form)

    assert error_of(response) == (401, "invalid_client")


async def test_accepts_only_forms(application: OAuthClient) -> None:
    response = await application.http.post("/oauth/token", json=POSTED)

    assert error_of(response) == (400, "invalid_request")
    assert response.headers["cache-control"] == "no-store"


async def test_rejects_a_repeated_parameter(application: OAuthClient) -> None:
    response = await application.http.post(
        "/oauth/token",
        content="grant_type=refresh_token&grant_type=refresh_token",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )

    assert error_of(response) == (400, "invalid_request")


async def test_requires_post(application: OAuthClient) -> None:
    assert (await application.http.get("/oauth/token")).status_code == 405
