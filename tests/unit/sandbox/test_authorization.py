"""The authorization endpoint: the consent page, errors and redirects."""

from dataclasses import replace

import httpx
import pytest

from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.state import Sandbox
from tests.unit.sandbox.oauth_client import CLIENT_ID, REDIRECT_URI, OAuthClient, callback_parameters


async def test_redirects_with_code_state_and_issuer(application: OAuthClient) -> None:
    location = await decide(application.http, application.authorization_url())

    assert location.startswith(REDIRECT_URI + "?")
    callback = callback_parameters(location)
    assert callback.keys() == {"code", "state", "iss"}
    assert callback["state"] == "st&te"
    assert callback["iss"] == "https://sandbox.example"


async def test_its_own_address_says_what_it_is_and_how_to_connect(application: OAuthClient) -> None:
    """`make run` prints the address."""
    response = await application.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    for text in ("A simulated provider", "ada@example.com", "authorization_url"):
        assert text in response.text


async def test_redirects_with_303(application: OAuthClient) -> None:
    form = httpx.URL(application.authorization_url()).params
    response = await application.http.post("/oauth/authorize", data={**form, "account": "ada", "decision": "allow"})

    assert response.status_code == 303


async def test_redirects_with_access_denied_if_the_user_refuses(application: OAuthClient) -> None:
    callback = await application.deny()

    assert callback["error"] == "access_denied"
    assert callback["state"] == "st&te"
    assert callback["iss"] == "https://sandbox.example"
    assert "code" not in callback


async def test_keeps_the_query_of_a_redirect_uri(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.register_client(CLIENT_ID, None, ["https://app.example/callback?type=sandbox"])

    callback = await application.authorize(redirect_uri="https://app.example/callback?type=sandbox")

    assert callback["type"] == "sandbox"
    assert callback["code"]


async def test_the_issuer_can_be_switched_off(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, send_iss=False)

    assert "iss" not in await application.authorize()
    assert "iss" not in await application.deny()


async def test_page_names_client_scopes_and_accounts(application: OAuthClient) -> None:
    page = await application.http.get(application.authorization_url())

    assert page.status_code == 200
    for shown in (
        "Calendar App",
        "<code>read</code>",
        "<code>write</code>",
        "Ada Lovelace",
        "grace@example.com",
    ):
        assert shown in page.text


async def test_page_runs_no_script_and_cannot_be_framed(application: OAuthClient) -> None:
    page = await application.http.get(application.authorization_url())

    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'nonce-")
    assert "frame-ancestors 'none'" in policy
    # With form-action, a browser would not follow the redirect to the client.
    assert "form-action" not in policy
    assert page.headers["cache-control"] == "no-store"


async def test_page_escapes_the_values_of_the_request(application: OAuthClient) -> None:
    state = '"><script>alert(1)</script>'
    page = await application.http.get(application.authorization_url(state=state))

    assert "<script" not in page.text
    assert (await application.authorize(state=state))["state"] == state


@pytest.mark.parametrize(
    "overrides",
    [
        {"client_id": None},
        {"client_id": "stranger"},
        {"redirect_uri": None},
        {"redirect_uri": REDIRECT_URI + "/"},
        {"redirect_uri": REDIRECT_URI + "?more=1"},
        {"redirect_uri": "https://attacker.example/callback"},
    ],
)
async def test_does_not_redirect_to_an_unregistered_uri(
    application: OAuthClient, overrides: dict[str, str | None]
) -> None:
    url = application.authorization_url(**overrides)

    for response in (
        await application.http.get(url),
        await application.http.post("/oauth/authorize", data={**httpx.URL(url).params, "decision": "allow"}),
    ):
        assert response.status_code == 400
        assert "location" not in response.headers
        assert "This request is not valid" in response.text


async def test_does_not_redirect_if_the_redirect_uri_is_repeated(application: OAuthClient) -> None:
    url = application.authorization_url() + "&redirect_uri=https://attacker.example"

    with pytest.raises(httpx.HTTPStatusError):
        await decide(application.http, url)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"response_type": None}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "read everything"}, "invalid_scope"),
        ({"scope": "read  write"}, "invalid_scope"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
    ],
)
async def test_redirects_with_other_errors_of_the_client(
    application: OAuthClient, overrides: dict[str, str | None], error: str
) -> None:
    callback = await application.authorize(**overrides)

    assert callback["error"] == error
    assert callback["state"] == "st&te"
    assert callback["iss"] == "https://sandbox.example"


async def test_rejects_a_repeated_parameter(application: OAuthClient) -> None:
    location = await decide(application.http, application.authorization_url() + "&scope=write")

    assert callback_parameters(location)["error"] == "invalid_request"


async def test_the_default_scope_is_used_without_a_scope(application: OAuthClient) -> None:
    assert (await application.connect(scope=None))["scope"] == "read"


async def test_pkce_can_be_optional(application: OAuthClient, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, require_pkce=False)
    callback = await application.authorize(code_challenge=None, code_challenge_method=None)

    response = await application.exchange(callback["code"], code_verifier=None)

    assert response.status_code == 200


async def test_rejects_an_account_that_is_not_on_the_page(application: OAuthClient, sandbox: Sandbox) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        await application.authorize(account="mallory")

    assert sandbox.grants_of("mallory") == []


@pytest.mark.parametrize("content", [b"client_id=%ff", b"\xff"])
async def test_rejects_invalid_utf8(application: OAuthClient, content: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = await application.http.post("/oauth/authorize", content=content, headers=headers)

    assert response.status_code == 400
