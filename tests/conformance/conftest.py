"""Selection of profiles and fixtures. The default profiles are the built-in ones; `--profiles DIR` selects others."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from integration_server.bootstrap import registered_providers
from integration_server.providers.base import ProviderContext
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.http import ProviderHttp
from integration_server.sandbox.server import serving
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
    """Add `--profiles DIR`, for providers that are installed or in PROVIDERS_DIR."""
    parser.addoption("--profiles", type=Path, default=BUILT_IN_PROFILES, help="a directory of profiles of providers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with a `profile` for every profile that its mark applies to."""
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
    """The marks that apply to a profile."""
    renewal = profile.renewal.kind
    kinds = {
        "any": True,
        "oauth2": profile.authorize is not None,
        "key": profile.key is not None,
        "verified key": profile.key is not None and profile.verify is not None,
        "renewable": profile.authorize is not None and renewal != "never",
        "refreshable": profile.authorize is not None and renewal == "refresh",
        "never expiring": profile.authorize is not None and renewal == "never",
        "revocable": profile.revoke is not None,
        "named accounts": profile.authorize is not None and "$" in profile.account_id,
        "config": bool(profile.bad_config),
        "required parameters": profile.authorize is not None and bool(profile.authorize.requires),
        "several scopes": profile.authorize is not None and len(profile.scopes) > 1,
    }
    return {kind for kind, holds in kinds.items() if holds}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake_server() -> AsyncIterator[tuple[FakeProviderServer, str]]:
    """The server for all tests of a module, and its URL."""
    fake_server = FakeProviderServer()
    async with serving(fake_server) as url:
        yield fake_server, url


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Settings with PROVIDERS_DIR and DEV_MODE of the environment."""
    given = {name: os.environ[name] for name in ("PROVIDERS_DIR", "DEV_MODE") if name in os.environ}
    return Settings.from_environment(given, needs_key=False)


@pytest.fixture(scope="module")
def factory(settings: Settings) -> ProviderFactory:
    """All providers: built-in ones, those of packages, and those in PROVIDERS_DIR."""
    return registered_providers(settings)


@pytest_asyncio.fixture(loop_scope="module")
async def scenario(
    profile: Profile, fake_server: tuple[FakeProviderServer, str], settings: Settings, factory: ProviderFactory
) -> AsyncIterator[Scenario]:
    """The service, the provider of a profile, and the server that simulates it."""
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
