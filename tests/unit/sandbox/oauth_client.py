"""A minimal OAuth client. A test states only its deviations from a correct flow."""

from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256
from urllib.parse import parse_qsl, quote_plus, urlencode, urlsplit

import httpx

from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.state import Sandbox

CLIENT_ID = "calendar:app"
CLIENT_SECRET = "s3cret/with+odd %characters"  # fails unless both sides form-encode it
REDIRECT_URI = "http://127.0.0.1:8080/callback"
VERIFIER = "v" * 43
CHALLENGE = urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


class OAuthClient:
    """An OAuth client. An override replaces a parameter; None omits it."""

    def __init__(self, http: httpx.AsyncClient, sandbox: Sandbox) -> None:
        self.http = http
        sandbox.register_client(CLIENT_ID, CLIENT_SECRET, [REDIRECT_URI], name="Calendar App")

    def authorization_url(self, **overrides: str | None) -> str:
        parameters = {
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": REDIRECT_URI,
            "scope": "read write",
            "state": "st&te",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
        }
        return f"{self.http.base_url}/oauth/authorize?" + urlencode(_override(parameters, overrides))

    async def authorize(self, *, account: str | None = None, **overrides: str | None) -> dict[str, str]:
        """The parameters of the callback after the user has allowed access."""
        url = self.authorization_url(**overrides)
        return callback_parameters(await decide(self.http, url, account=account))

    async def deny(self) -> dict[str, str]:
        """The parameters of the callback after the user has refused."""
        return callback_parameters(await decide(self.http, self.authorization_url(), allow=False))

    async def exchange(self, code: str, /, **overrides: str | None) -> httpx.Response:
        parameters = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT_URI,
            "code_verifier": VERIFIER,
        }
        return await self.post("/oauth/token", _override(parameters, overrides))

    async def refresh(self, refresh_token: str, /, **overrides: str | None) -> httpx.Response:
        parameters = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return await self.post("/oauth/token", _override(parameters, overrides))

    async def revoke(self, token: str) -> httpx.Response:
        return await self.post("/oauth/revoke", {"token": token})

    async def connect(self, **overrides: str | None) -> dict[str, str]:
        """The token response of a complete flow."""
        callback = await self.authorize(**overrides)
        response = await self.exchange(callback["code"])
        assert response.status_code == 200, response.text
        tokens: dict[str, str] = response.json()
        return tokens

    async def userinfo(self, access_token: str) -> httpx.Response:
        return await self.http.get("/userinfo", headers={"Authorization": f"Bearer {access_token}"})

    async def post(self, path: str, form: dict[str, str]) -> httpx.Response:
        return await self.http.post(path, data=form, headers={"Authorization": basic(CLIENT_ID, CLIENT_SECRET)})


def basic(client_id: str, client_secret: str) -> str:
    """RFC 6749 §2.3.1."""
    credentials = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
    return "Basic " + b64encode(credentials.encode()).decode()


def callback_parameters(location: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(location).query))


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]


def _override(parameters: dict[str, str], overrides: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in (parameters | overrides).items() if value is not None}
