"""Each declaration of tests/declarations runs against a server of its own, in a real server, on both databases.

The simulated provider is the conformance suite's: it behaves as the declaration says, and refuses any other request.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio

from integration_server.bootstrap import running_server
from integration_server.providers.base import BaseProvider, ProviderContext
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import ProviderHttp
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.conformance.conftest import applicable_kinds, derived_profiles, environment_settings
from tests.conformance.fake_server import (
    PROFILE_HEADER,
    FakeProviderServer,
    FakeServerTransport,
    SimulatedProvider,
    client_settings,
    key_auth,
)
from tests.conformance.profile import Profile, fill_template
from tests.declarations import declared_types
from tests.end_to_end.replicas import wait_until
from tests.end_to_end.rpc_errors import expect_rpc_error
from tests.end_to_end.system import Clients, ShiftedClock, callback_url, clients_of, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLERS = 20


FACTORY = declared_types()
PROFILES = derived_profiles(environment_settings(), FACTORY, FACTORY.integration_types)


@dataclass
class Running:
    """A server with all declared types, and their simulated providers."""

    clients: Clients
    clock: ShiftedClock
    providers: FakeProviderServer
    transports: Mapping[str, FakeServerTransport] = field(default_factory=dict)

    async def connect(self, profile: Profile) -> int:
        """Connect an account in the browser, on another device, or with a key; the integration's id."""
        if profile.device is not None:
            return await self.connect_on_another_device(profile)
        if profile.authorize is None:
            return await self.connect_key(profile)
        name = profile.integration_type
        begun = await self.clients.begin("ada", name, config=dict(profile.config))
        request = httpx.Request("GET", begun.authorization_url, headers={PROFILE_HEADER: name})
        page = await self.transports[name].handle_async_request(request)
        await page.aread()
        assert page.status_code == 302, page.text
        response = await self.clients.follow(page.headers["location"])
        assert response.status_code == 200, response.text
        return int(response.json()["integration_id"])

    async def connect_on_another_device(self, profile: Profile) -> int:
        """Connect an account as a user does who enters a code elsewhere."""
        begun = await self.clients.begin("ada", profile.integration_type, config=dict(profile.config))
        assert begun.user_code
        callback = pb.HandleCallbackRequest(state=begun.state, user_id="ada")
        results: list[pb.HandleCallbackResponse] = []

        async def is_connected() -> bool:
            results.append(await self.clients.service.HandleCallback(callback))
            return results[-1].success

        await wait_until(is_connected)
        return results[-1].integration_id

    async def connect_key(self, profile: Profile, **changes: Any) -> int:
        """Connect an account with its key."""
        key = profile.key
        assert key is not None
        fields: dict[str, Any] = {"secret_fields": key.secret_fields, "api_key": key.api_key}
        request = pb.ConnectWithApiKeyRequest(
            user_id="ada",
            integration_type=profile.integration_type,
            config=dict(profile.config),
            api_secret=key.api_secret,
            **{**fields, **changes},
        )
        return (await self.clients.service.ConnectWithApiKey(request)).integration.integration_id

    async def headers(self, integration_id: int) -> dict[str, str]:
        """The headers that a backend receives."""
        request = pb.GetCredentialsRequest(user_id="ada", integration_id=integration_id)
        return dict((await self.clients.service.GetCredentials(request)).credentials.headers)

    async def is_healthy(self, integration_id: int) -> bool:
        """A health check."""
        request = pb.CheckHealthRequest(user_id="ada", integration_id=integration_id)
        return (await self.clients.service.CheckHealth(request)).health_check.healthy

    async def disconnect(self, integration_id: int) -> bool:
        """Disconnect; whether the grant was revoked."""
        request = pb.DisconnectIntegrationRequest(user_id="ada", integration_id=integration_id)
        return (await self.clients.service.DisconnectIntegration(request)).provider_revoked


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(shared_database_url: str) -> AsyncIterator[Running]:
    """The server, with every declaration that can be simulated."""
    clock, server = ShiftedClock(), FakeProviderServer()
    transports: dict[str, FakeServerTransport] = {}
    environment: dict[str, str] = {}
    for name, profile in PROFILES.items():
        server.simulated_providers[name] = simulated = SimulatedProvider(profile, clock)
        simulated.register_redirect_uri(callback_url(name))
        transports[name] = FakeServerTransport(server, name)
        environment |= client_settings(profile)

    def register(factory: ProviderFactory) -> None:
        for name in PROFILES:
            factory.register(name, lambda given, name=name: build(name, given))  # type: ignore[misc]

    def build(name: str, given: ProviderContext) -> BaseProvider:
        http = ProviderHttp(clock, transport=transports[name])
        return FACTORY.build(replace(given, http=http), only=name)[name]

    async with AsyncExitStack() as stack:
        server_run = running_server(
            settings_for(shared_database_url), environment, clock=clock, extra_providers=[register]
        )
        addresses = await stack.enter_async_context(server_run)
        clients = await stack.enter_async_context(clients_of(addresses.grpc_address, addresses.sidecar_url))
        yield Running(clients, clock, server, transports)


@pytest.mark.quick_on("sqlite")
@pytest.mark.parametrize(
    "name",
    [
        # A device waits for seconds between its polls.
        pytest.param(name, marks=[] if profile.device is None else [pytest.mark.slow])
        for name, profile in sorted(PROFILES.items())
    ],
)
async def test_connect_credentials_refresh_under_a_race_failure_and_disconnect(running: Running, name: str) -> None:
    profile, simulated = PROFILES[name], running.providers.simulated_providers[name]
    integration_id = await running.connect(profile)
    integration = await running.clients.get(integration_id)
    assert integration.status == integration_pb2.STATUS_ACTIVE
    assert integration.account_id == fill_template(profile.account_id, simulated._account_fields(0))
    first = await running.headers(integration_id)
    assert await running.is_healthy(integration_id)
    if profile.token is None:
        assert profile.key is not None
        assert first == key_auth(profile.key).headers
        await a_wrong_key_is_rejected(running, profile)
    elif profile.renewal.kind == "never":
        assert await running.headers(integration_id) == first
    else:
        await a_refresh_is_sent_once(running, profile, integration_id, first)
        integration_id = await a_dead_grant_is_reported(running, profile, integration_id)
    assert await running.disconnect(integration_id) == (profile.revoke is not None)
    if profile.authorize is not None and profile.revoke is not None:
        assert not any(simulated.sandbox.grants_of(account.sub) for account in simulated.accounts)
    assert simulated.violations == []


async def a_refresh_is_sent_once(
    running: Running, profile: Profile, integration_id: int, before: Mapping[str, str]
) -> None:
    simulated = running.providers.simulated_providers[profile.integration_type]
    count = simulated.token_requests
    running.clock.shift += timedelta(seconds=((profile.token and profile.token.lifetime) or 0) + 1)
    found = await asyncio.gather(*(running.headers(integration_id) for _ in range(CALLERS)))
    assert found == [found[0]] * CALLERS
    assert found[0] != before
    assert simulated.token_requests == count + 1


async def a_dead_grant_is_reported(running: Running, profile: Profile, integration_id: int) -> int:
    """The integration after the account has been connected again."""
    simulated = running.providers.simulated_providers[profile.integration_type]
    if profile.renewal.kind == "secrets":
        simulated.are_secrets_changed = True
    else:
        simulated.revoke_all_grants()
    running.clock.shift += timedelta(seconds=((profile.token and profile.token.lifetime) or 0) + 1)
    error = await expect_rpc_error(running.headers(integration_id))
    status = (await running.clients.get(integration_id)).status
    if "our secrets" in applicable_kinds(profile):
        # Our own client is refused, which is no account's fault.
        assert (error.reason, status) == ("PROVIDER_MISCONFIGURED", integration_pb2.STATUS_ACTIVE)
    else:
        assert (error.reason, status) == ("REAUTHORIZATION_REQUIRED", integration_pb2.STATUS_EXPIRED)
    simulated.are_secrets_changed = False
    again = await running.connect(profile)
    assert (again == integration_id) == bool(profile.account_id)
    return again


async def a_wrong_key_is_rejected(running: Running, profile: Profile) -> None:
    if profile.verify is None:
        return
    key = profile.key
    assert key is not None
    wrong = {"api_secret": "another"} if key.api_secret else {"api_key": key.api_key + "x"}
    error = await expect_rpc_error(running.connect_key(profile, **wrong))
    assert error.reason == "PROVIDER_REJECTED"
