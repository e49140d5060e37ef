"""Starts the django-oauth-toolkit server, and acts as a user's browser."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx

from tests.end_to_end.dot.options import Options

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class DotServer:
    """A running server, and its user and application."""

    base_url: str
    options: Options

    @property
    def issuer(self) -> str:
        """The issuer in its metadata and in `iss` of its responses (RFC 8414, RFC 9207)."""
        return f"{self.base_url}/o"

    def declaration(self, integration_type: str) -> str:
        """The TOML file that declares it as a provider."""
        return f"""\
integration_type = "{integration_type}"
display_name = "Acme"
auth_method = "oauth2"
authorize_url = "{self.base_url}/o/authorize/"
token_url = "{self.base_url}/o/token/"
revoke_url = "{self.base_url}/o/revoke_token/"
issuer = "{self.issuer}"
scopes = ["read", "offline_access"]
token_auth = "client_secret_basic"
verify_url = "{self.base_url}/me"
account_id_field = "sub"
account_label_field = "email"
api_base_url = "{self.base_url}"
refresh_token_grace_seconds = {self.options.refresh_token_grace_period_seconds}
"""

    def device_declaration(self, integration_type: str) -> str:
        """The TOML file that declares it as a provider of device authorizations (RFC 8628)."""
        of_browsers = ("authorize_url =", "issuer =")
        lines = [line for line in self.declaration(integration_type).splitlines() if not line.startswith(of_browsers)]
        return "\n".join(
            [*lines, 'grant = "device_code"', f'device_authorization_url = "{self.base_url}/o/device-authorization/"']
        )

    async def accepts_token(self, access_token: str) -> bool:
        """Whether the server accepts the access token."""
        async with httpx.AsyncClient(timeout=30) as http:
            response = await http.get(f"{self.base_url}/me", headers={"Authorization": f"Bearer {access_token}"})
        assert response.status_code in {200, 403}
        return response.status_code == 200

    async def sign_in_and_decide(self, authorization_url: str, *, allow: bool = True) -> str:
        """Sign in on the login page and decide on the consent page; the URL of the redirect, which is not followed."""
        async with httpx.AsyncClient(timeout=30) as browser:
            consent_url = await self._sign_in(browser, authorization_url)
            consent = hidden_fields(await browser.get(consent_url))
            decision = {"allow": "Authorize"} if allow else {}
            decided = await browser.post(consent_url, data=consent | decision)
            assert decided.status_code == 302, decided.text
            return decided.headers["Location"]

    async def enter_code_and_decide(self, verification_uri: str, user_code: str, *, allow: bool = True) -> None:
        """Sign in on the login page, enter the code of a device authorization, and decide."""
        async with httpx.AsyncClient(timeout=30) as browser:
            code_url = await self._sign_in(browser, verification_uri)
            form = hidden_fields(await browser.get(code_url))
            entered = await browser.post(code_url, data=form | {"user_code": user_code})
            assert entered.status_code == 302, entered.text
            decision_url = urljoin(code_url, entered.headers["Location"])
            decision = hidden_fields(await browser.get(decision_url))
            decided = await browser.post(decision_url, data=decision | {"action": "accept" if allow else "deny"})
            assert decided.status_code == 302, decided.text

    async def _sign_in(self, browser: httpx.AsyncClient, url: str) -> str:
        """Open a page, and sign in on the page to which it redirects; the URL of the page after it."""
        to_login = await browser.get(url)
        assert to_login.status_code == 302, to_login.text
        login_url = urljoin(url, to_login.headers["Location"])
        login = hidden_fields(await browser.get(login_url))
        signed_in = await browser.post(
            login_url, data=login | {"username": self.options.username, "password": self.options.password}
        )
        assert signed_in.status_code == 302, signed_in.text
        return urljoin(login_url, signed_in.headers["Location"])


@contextmanager
def running_dot(
    directory: Path,
    redirect_uri: str,
    *,
    access_token_expire_seconds: int = 3600,
    refresh_token_grace_period_seconds: int = 0,
    grant_type: str = "authorization-code",
) -> Iterator[DotServer]:
    """Run a server with one user and one application, with random secrets."""
    options = Options(
        client_id=secrets.token_urlsafe(16),
        client_secret=secrets.token_urlsafe(32),
        redirect_uri=redirect_uri,
        username="ada",
        password=secrets.token_urlsafe(16),
        email="ada@dot.example",
        access_token_expire_seconds=access_token_expire_seconds,
        refresh_token_grace_period_seconds=refresh_token_grace_period_seconds,
        grant_type=grant_type,
    )
    command = [sys.executable, "-m", "tests.end_to_end.dot.project", str(directory)]
    environment = {**os.environ, **options.as_environment()}
    errors = directory / "dot.stderr"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            base_url = process.stdout.readline().strip()
            assert base_url, errors.read_text()
            yield DotServer(base_url, options)
        finally:
            process.terminate()


class _HiddenFields(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        name = attributes.get("name")
        if tag == "input" and attributes.get("type") == "hidden" and name:
            self.fields[name] = attributes.get("value") or ""


def hidden_fields(page: httpx.Response) -> dict[str, str]:
    """The hidden fields of a page's form, such as the CSRF token."""
    page.raise_for_status()
    parser = _HiddenFields()
    parser.feed(page.text)
    return parser.fields
