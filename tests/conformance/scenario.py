"""The service with fakes and one real provider, and the actions of users and backends."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import ApiNotDeclared, ProviderError
from integration_server.domain.integration import Integration, UserId
from integration_server.providers.base import BaseProvider
from integration_server.providers.factory import ProviderRegistry
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest
from integration_server.service.connections.oauth_connection import Callback, ConnectionRequest, ConnectionResult
from tests.conformance.fake_server import PROFILE_HEADER, SimulatedProvider
from tests.conformance.profile import Profile, fill_template
from tests.fakes.system import ADA, PUBLIC_URL, FakeSystem


class Scenario:
    """The environment of one test. `expected_violations` are the violations that the test expects."""

    def __init__(
        self,
        profile: Profile,
        system: FakeSystem,
        simulated_provider: SimulatedProvider,
        build: Callable[..., ProviderRegistry],
        browser: httpx.AsyncBaseTransport,
    ) -> None:
        self.profile = profile
        self.system = system
        self.simulated_provider = simulated_provider
        self.expected_violations: list[str] = []
        self._build = build
        self._browser = browser
        self.use_provider(build()[profile.integration_type])
        simulated_provider.register_redirect_uri(
            f"{PUBLIC_URL}/api/v1/integrations/callback/{profile.integration_type}"
        )

    @property
    def provider(self) -> BaseProvider:
        """The provider of the service."""
        provider = self.system.providers[self.profile.integration_type]
        assert isinstance(provider, BaseProvider)
        return provider

    def use_provider(self, provider: BaseProvider) -> None:
        """Replace the provider of the service."""
        self.system.providers.by_type[self.profile.integration_type] = provider

    def with_client_secret(self, client_secret: str) -> None:
        """Replace the client secret in the settings."""
        self.use_provider(self._build(client_secret)[self.profile.integration_type])

    # --- connecting

    async def connect(self, user_id: UserId = ADA, **changes: Any) -> Integration:
        """Connect the account in the browser."""
        outcome = await self.run_authorization(user_id, **changes)
        assert outcome.success
        return self.system.row(outcome.integration_id)

    async def run_authorization(
        self, user_id: UserId = ADA, *, code: str | None = None, **given: Any
    ) -> ConnectionResult:
        """Run the authorization flow as a browser does. `code` replaces the provider's code."""
        config = dict(given.pop("config", self.profile.config))
        authorization = await self.system.oauth_connection.begin_connection(
            ConnectionRequest(user_id, self.profile.integration_type, config=config, **given)
        )
        query = await self.visit(authorization.url)
        if code is not None:
            query["code"] = code
        assert query["state"] == authorization.state
        return await self.system.oauth_connection.handle_callback(
            Callback(
                state=query["state"],
                code=query.get("code", ""),
                error=query.get("error", ""),
                iss=query.get("iss", ""),
                user_id=user_id,
                integration_type=self.profile.integration_type,
                query=query,
            )
        )

    async def visit(self, url: str) -> dict[str, str]:
        """The parameters of the redirect from the authorization page."""
        page = await self.request_authorization_page(url)
        assert page.status_code == 302, page.text
        return dict(parse_qsl(urlsplit(page.headers["location"]).query))

    async def request_authorization_page(self, url: str) -> httpx.Response:
        """The response of the authorization page."""
        request = httpx.Request("GET", url, headers={PROFILE_HEADER: self.profile.integration_type})
        page = await self._browser.handle_async_request(request)
        await page.aread()
        return page

    def api_url(self, credentials: Credentials) -> str | None:
        """The base URL of the API for the account of these credentials; None if the type declares none."""
        try:
            return self.provider.api_url(credentials)
        except ApiNotDeclared:
            return None

    async def connect_key(self, *, api_key: str | None = None, api_secret: str | None = None) -> Integration:
        """Connect with the API key of the profile, or another one."""
        key = self.profile.key
        assert key is not None
        return await self.system.api_key_connection.connect_with_api_key(
            ApiKeyConnectionRequest(
                ADA,
                self.profile.integration_type,
                key.api_key if api_key is None else api_key,
                key.api_secret if api_secret is None else api_secret,
                config=dict(self.profile.config),
            )
        )

    # --- inspecting

    def account_fields(self, account_index: int = 0) -> Mapping[str, object]:
        """The values of a simulated account."""
        return self.simulated_provider._account_fields(account_index)  # the two classes belong together

    def expected(self, template: Any, account_index: int = 0, **more: object) -> Any:
        """A template of the profile, filled for an account."""
        return fill_template(template, {**self.account_fields(account_index), **more})

    async def tokens(self, integration: Integration) -> OAuthTokens:
        """The stored tokens of an integration."""
        return await self.system.tokens(integration.integration_id)

    async def get_credentials(self, integration: Integration) -> RequestAuth:
        """The headers and query parameters that a backend receives."""
        usable = await self.system.credentials.get_credentials(integration.integration_id, ADA, None, ())
        return usable.request_auth

    async def refresh_error(self, integration: Integration) -> ProviderError:
        """The error of a forced refresh."""
        try:
            await self.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
        except ProviderError as error:
            return error
        raise AssertionError("the refresh succeeded")

    def expire_access_tokens(self) -> None:
        """Advance the clock past the expiry of access tokens."""
        lifetime = (self.profile.token and self.profile.token.lifetime) or 3600
        self.system.clock.advance(timedelta(seconds=lifetime + 1))
