"""Which profiles are played, and what every test gets: `make test` plays ours, `--profiles DIR` others."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from integration_server.bootstrap import registered_providers
from integration_server.providers.base import ProviderContext
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.http import ProviderHttp
from integration_server.sandbox import serving
from integration_server.settings import Settings
from tests.conformance.fake_server import (
    CLIENT_ID,
    CLIENT_SECRET,
    FakeProviderServer,
    FakeServerTransport,
    SimulatedProvider,
)
from tests.conformance.profile import Profile, read_profiles
from tests.conformance.scenario import Scenario
from tests.fakes.system import FakeSystem

BUILT_IN_PROFILES = Path(__file__).with_name("profiles")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--profiles DIR`: of providers that are installed, or in PROVIDERS_DIR."""
    parser.addoption("--profiles", type=Path, default=BUILT_IN_PROFILES, help="a directory of profiles of providers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a `profile` runs for each that it is marked for."""
    if "profile" not in metafunc.fixturenames:
        return
    marked_kinds = {mark.args[0] for mark in metafunc.definition.iter_markers("conformance")}
    profiles = [
        p
        for p in read_profiles(metafunc.config.getoption("--profiles", BUILT_IN_PROFILES))
        if marked_kinds & applicable_kinds(p)
    ]
    metafunc.parametrize("profile", profiles, ids=[p.integration_type for p in profiles], scope="module")


def applicable_kinds(profile: Profile) -> set[str]:
    """Which tests a profile is for."""
    how = profile.renewal.how
    kinds = {
        "any": True,
        "oauth2": profile.authorize is not None,
        "key": profile.key is not None,
        "verified key": profile.key is not None and profile.verify is not None,
        "renewed": profile.authorize is not None and how != "never",
        "refreshed": profile.authorize is not None and how == "refresh",
        "lasting": profile.authorize is not None and how == "never",
        "revoked": profile.revoke is not None,
        "named accounts": profile.authorize is not None and "$" in profile.account_id,
        "config": bool(profile.bad_config),
        "particular": profile.authorize is not None and bool(profile.authorize.requires),
        "several scopes": profile.authorize is not None and len(profile.scopes) > 1,
    }
    return {kind for kind, holds in kinds.items() if holds}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake_server() -> AsyncIterator[tuple[FakeProviderServer, str]]:
    """One server for all tests of a module, and its URL."""
    fake_server = FakeProviderServer()
    async with serving(fake_server) as url:
        yield fake_server, url


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Which providers there are, and whether they may be at plain http on this machine."""
    given = {name: os.environ[name] for name in ("PROVIDERS_DIR", "DEV_MODE") if name in os.environ}
    return Settings.from_environment(given, needs_key=False)


@pytest.fixture(scope="module")
def factory(settings: Settings) -> ProviderFactory:
    """The providers that a server would know: ours, of packages, and in PROVIDERS_DIR."""
    return registered_providers(settings)


@pytest_asyncio.fixture(loop_scope="module")
async def scenario(
    profile: Profile, fake_server: tuple[FakeProviderServer, str], settings: Settings, factory: ProviderFactory
) -> AsyncIterator[Scenario]:
    """The service, with the provider of a profile, and the server that plays it."""
    server, url = fake_server
    system = FakeSystem()
    simulated_provider = server.simulated_providers[profile.integration_type] = SimulatedProvider(profile, system.clock)
    server_transport = FakeServerTransport(url, profile.integration_type)
    http = ProviderHttp(system.clock, dev_mode=settings.dev_mode, transport=server_transport)
    async with http, system.tasks:

        def build(client_secret: str = CLIENT_SECRET) -> ProviderRegistry:
            name = profile.integration_type.upper()
            environment = {f"{name}_CLIENT_ID": CLIENT_ID, f"{name}_CLIENT_SECRET": client_secret, **profile.settings}
            return factory.build(ProviderContext(http, system.clock, environment))

        scenario = Scenario(profile, system, simulated_provider, build, server_transport)
        yield scenario
    assert simulated_provider.violations == scenario.expected_violations
