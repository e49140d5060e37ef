"""Selection of profiles, and fixtures. The default is every type of this server, and those in tests/declarations."""

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from integration_server.providers.base import ProviderContext
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import ProviderHttp
from integration_server.providers.toml_providers import provider_class, read_declaration
from integration_server.settings import Settings
from integration_server.wiring.providers import registered_providers
from integration_server.wiring.system import utc_now
from tests.conformance.derivation import derive_profile
from tests.conformance.profile import Profile, read_profiles
from tests.conformance.scenario import Scenario, open_scenario
from tests.conformance.table import Table
from tests.declarations import declared_types

BUILT_IN_PROFILES = Path(__file__).with_name("profiles")
QUICK_TYPES = frozenset({"choice_of_sites", "own_client", "two_headers", "email_and_token"})
"""Derived profiles that every run tests; the others, which are many, are tested with the slow tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that select what is tested."""
    parser.addoption("--profiles", type=Path, help="a directory of profiles of providers, instead of the built-in ones")
    parser.addoption("--try", dest="tried", help="the file of a declaration, or a type of this server")
    parser.addoption("--try-json", action="store_true", help="with --try: print an object for each check, and no table")


def pytest_configure(config: pytest.Config) -> None:
    """Print a table if one declaration is tried."""
    if (tried := config.getoption("tried")) is not None:
        config.pluginmanager.register(Table(tried, as_json=config.getoption("--try-json")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with a `profile` for every profile that its mark applies to."""
    if "profile" not in metafunc.fixturenames:
        return
    marked_kinds = {mark.args[0] for mark in metafunc.definition.iter_markers("conformance")}
    profiles = [p for p in selected_profiles(metafunc.config) if marked_kinds & applicable_kinds(p)]
    params = [
        pytest.param(p, id=p.integration_type, marks=[pytest.mark.slow] if is_slow(metafunc.config, p) else [])
        for p in profiles
    ]
    metafunc.parametrize("profile", params, scope="module")


def is_slow(config: pytest.Config, profile: Profile) -> bool:
    """Whether a profile is one of the many that are derived."""
    is_derived = profile.is_exact and config.getoption("tried") is None
    return is_derived and profile.integration_type not in QUICK_TYPES


@dataclass(frozen=True)
class Selection:
    """What is tested: the profiles, and the factory of their providers."""

    profiles: Sequence[Profile]
    factory: ProviderFactory


SELECTION = pytest.StashKey[Selection]()


def selected_profiles(config: pytest.Config) -> Sequence[Profile]:
    """The profiles that the options select."""
    if SELECTION not in config.stash:
        config.stash[SELECTION] = select(config.getoption("--profiles"), config.getoption("tried"))
    return config.stash[SELECTION].profiles


def select(directory: Path | None, tried: str | None) -> Selection:
    """The profiles in a directory, that of one declaration or type, or those of all types and of the tests' shapes."""
    settings = environment_settings()
    factory = registered_providers(settings)
    if directory is not None:
        return Selection(read_profiles(directory), factory)
    written = {profile.integration_type: profile for profile in read_profiles(BUILT_IN_PROFILES)}
    if tried is None:
        factory.register_all(declared_types())
        derived = derived_profiles(settings, factory, factory.integration_types)
        return Selection([*{**derived, **written}.values()], factory)
    if tried in factory.integration_types:
        found = written if tried in written else derived_profiles(settings, factory, [tried])
        return Selection([profile for name, profile in found.items() if name == tried], factory)
    declaration = read_declaration(Path(tried), dev_mode=settings.dev_mode)
    name = declaration.integration_type
    factory.replace(name, provider_class(declaration))
    return Selection([*derived_profiles(settings, factory, [name]).values()], factory)


def derived_profiles(settings: Settings, factory: ProviderFactory, names: Iterable[str]) -> Mapping[str, Profile]:
    """The profiles that declarations describe, by type."""
    http = ProviderHttp(
        utc_now, dev_mode=settings.dev_mode, transport=httpx.MockTransport(lambda _: httpx.Response(500))
    )
    registry = factory.build(ProviderContext(http, utc_now, {}))
    return {name: derive_profile(registry[name]) for name in names}


def environment_settings() -> Settings:
    """Settings with PROVIDERS_DIR and DEV_MODE of the environment."""
    given = {name: os.environ[name] for name in ("PROVIDERS_DIR", "DEV_MODE") if name in os.environ}
    return Settings.from_environment(given, needs_key=False)


def applicable_kinds(profile: Profile) -> set[str]:
    """The marks that apply to a profile."""
    renewal = profile.renewal.kind
    has_tokens = profile.token is not None
    is_granted = profile.authorize is not None or profile.device is not None
    is_secret_grant = has_tokens and renewal == "secrets"
    has_own_secrets = profile.key is not None and bool(profile.key.secret_fields)
    is_client_refused = (
        not has_own_secrets and not profile.login and profile.token and profile.token.client != "assertion"
    )
    kinds = {
        "any": True,
        "oauth2": profile.authorize is not None,
        "tokens": has_tokens,
        "own secrets": is_secret_grant and not is_client_refused,
        "our secrets": is_secret_grant and is_client_refused,
        "logins": bool(profile.login),
        "key": profile.key is not None and not has_tokens,
        "verified key": profile.key is not None and not has_tokens and profile.verify is not None,
        "renewable": has_tokens and renewal != "never",
        "grants": is_granted and renewal != "never",
        "refreshable": is_granted and renewal == "refresh",
        "never expiring": is_granted and renewal == "never",
        "revocable": profile.revoke is not None,
        "named accounts": is_granted and "$" in profile.account_id,
        "config": bool(profile.bad_config),
        "required parameters": profile.authorize is not None and bool(profile.authorize.requires),
        "several scopes": profile.authorize is not None and len(profile.scopes) > 1,
        "waits": profile.verify is not None and bool(profile.waits),
    }
    return {kind for kind, holds in kinds.items() if holds}


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Settings with PROVIDERS_DIR and DEV_MODE of the environment."""
    return environment_settings()


@pytest.fixture(scope="module")
def factory(pytestconfig: pytest.Config) -> ProviderFactory:
    """All providers: built-in ones, those of packages, those in PROVIDERS_DIR, and what is tried."""
    return pytestconfig.stash[SELECTION].factory


@pytest_asyncio.fixture(loop_scope="module")
async def scenario(
    profile: Profile, settings: Settings, factory: ProviderFactory, record_property: Callable[[str, object], None]
) -> AsyncIterator[Scenario]:
    """The service, the provider of a profile, and the server that simulates it."""
    async with open_scenario(profile, factory, dev_mode=settings.dev_mode) as scenario:
        yield scenario
    violations = scenario.simulated_provider.violations
    if violations != scenario.expected_violations:
        record_property("violations", violations)
    assert violations == scenario.expected_violations
