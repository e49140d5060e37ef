"""The service with fakes and one real provider, and the actions of users and backends."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import ApiNotDeclared, ProviderError
from integration_server.domain.integration import Integration, UserId
from integration_server.providers.base import BaseProvider, ProviderContext
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.http import ProviderHttp
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest
from integration_server.service.connections.oauth_callback import Callback, ConnectionResult
from integration_server.service.connections.oauth_connection import ConnectionRequest
from tests.conformance.fake_server import (
    CLIENT_ID,
    CLIENT_SECRET,
    PROFILE_HEADER,
    FakeProviderServer,
    FakeServerTransport,
    SimulatedProvider,
    client_settings,
)
from tests.conformance.profile import Profile, fill_template
from tests.fakes.provider import wait_until
from tests.fakes.system import ADA, PUBLIC_URL, FakeSystem
from tests.fakes.workers import is_busy

_MAX_POLLS = 5  # the second one succeeds


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
        """Connect the account in the browser, on another device, or with its own secrets."""
        if self.profile.device is not None:
            return await self.connect_on_another_device(user_id)
        if self.profile.authorize is None:
            return await self.connect_key(user_id=user_id)
        outcome = await self.run_authorization(user_id, **changes)
        assert outcome.success
        return self.system.row(outcome.integration_id)

    async def connect_on_another_device(self, user_id: UserId) -> Integration:
        """Connect the account as a user does who enters a code elsewhere."""
        config = dict(self.profile.config)
        request = ConnectionRequest(user_id, self.profile.integration_type, config=config)
        begun = await self.system.oauth_connection.begin_connection(request)
        for _ in range(_MAX_POLLS):
            self.system.clock.advance(timedelta(seconds=6))
            await self.system.worker.poll()
            await wait_until(lambda: not is_busy(self.system.worker))
            callback = Callback(state=begun.state, user_id=user_id)
            result = await self.system.oauth_callback.handle_callback(callback)
            if result.success:
                return self.system.row(result.integration_id)
        raise AssertionError("the tokens were not issued")

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
        return await self.system.oauth_callback.handle_callback(
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

    async def connect_key(
        self,
        *,
        user_id: UserId = ADA,
        api_key: str | None = None,
        api_secret: str | None = None,
        secret_fields: Mapping[str, str] | None = None,
    ) -> Integration:
        """Connect with the API key of the profile, or another one."""
        key = self.profile.key
        assert key is not None
        return await self.system.api_key_connection.connect_with_api_key(
            ApiKeyConnectionRequest(
                user_id,
                self.profile.integration_type,
                key.api_key if api_key is None else api_key,
                key.api_secret if api_secret is None else api_secret,
                secret_fields=key.secret_fields if secret_fields is None else secret_fields,
                config=dict(self.profile.config),
            )
        )

    # --- inspecting

    def account_fields(self, account_index: int = 0) -> Mapping[str, object]:
        """The values of a simulated account."""
        return self.simulated_provider._account_fields(account_index)  # the two classes belong together

    def expected(self, template: Any, account_index: int = 0, **more: object) -> Any:
        """A template of the profile, filled for an account."""
        return fill_template(template, {"client_id": CLIENT_ID, **self.account_fields(account_index), **more})

    async def tokens(self, integration: Integration) -> OAuthTokens:
        """The stored tokens of an integration."""
        return await self.system.tokens(integration.integration_id)

    async def credentials(self, integration: Integration) -> Credentials:
        """The stored credentials of an integration."""
        return await self.system.cipher.decrypt(self.system.stored(integration.integration_id))

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


@asynccontextmanager
async def open_scenario(profile: Profile, factory: ProviderFactory, *, dev_mode: bool) -> AsyncIterator[Scenario]:
    """The service, the provider of a profile, and the server that simulates it."""
    system, server = FakeSystem(), FakeProviderServer()
    simulated_provider = server.simulated_providers[profile.integration_type] = SimulatedProvider(profile, system.clock)
    transport = FakeServerTransport(server, profile.integration_type)
    http = ProviderHttp(system.clock, dev_mode=dev_mode, transport=transport)

    def build(client_secret: str = CLIENT_SECRET) -> ProviderRegistry:
        environment = client_settings(profile, client_secret)
        return factory.build(ProviderContext(http, system.clock, environment), only=profile.integration_type)

    async with http, system.tasks:
        yield Scenario(profile, system, simulated_provider, build, transport)
