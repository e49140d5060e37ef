from pathlib import Path

import pytest

from integration_server.providers.factory import ProviderFactory, ProvidersError
from integration_server.providers.plugins import load_plugins
from tests.unit.providers.support import FakeTransport, context

MODULE = """
from integration_server.providers.oauth2 import OAuth2Provider

class Provider(OAuth2Provider):
    integration_type = "{name}"
    oauth_authorize_url = "https://{name}.example/authorize"
    oauth_token_url = "https://{name}.example/token"

def register(factory):
    factory.register("{name}", Provider)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the import path, to install packages to."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, name: str, module: str, *, target: str) -> None:
    (site / f"{name}_provider.py").write_text(module)
    info = site / f"{name}_provider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-provider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[integration_server.providers]\n{name} = {target}\n")


def loaded_types() -> list[str]:
    factory = ProviderFactory()
    load_plugins(factory)
    return [provider.integration_type for provider in factory.build(context(FakeTransport())).all()]


def test_there_are_no_plugins_by_default(site: Path) -> None:
    assert loaded_types() == []


def test_an_entry_point_is_a_function_or_a_module(site: Path) -> None:
    install(site, "alfa", MODULE.format(name="alfa"), target="alfa_provider:register")
    install(site, "bravo", MODULE.format(name="bravo"), target="bravo_provider")
    assert loaded_types() == ["alfa", "bravo"]


def test_all_failing_packages_are_reported(site: Path) -> None:
    install(site, "charlie", "raise RuntimeError('broken')", target="charlie_provider")
    install(site, "delta", "", target="delta_provider:register")
    install(site, "echo", "register = None", target="echo_provider:register")
    install(site, "foxtrot", MODULE.format(name="foxtrot"), target="foxtrot_provider:register")
    with pytest.raises(ProvidersError) as raised:
        loaded_types()
    error_text = sorted(raised.value.problems)
    assert [problem.split(":")[0] for problem in error_text] == ["charlie-provider", "delta-provider", "echo-provider"]
    assert "charlie_provider: RuntimeError: broken" in error_text[0]
    assert "delta_provider:register: AttributeError" in error_text[1]


def test_two_packages_cannot_register_the_same_type(site: Path) -> None:
    install(site, "golf", MODULE.format(name="golf"), target="golf_provider")
    install(site, "hotel", MODULE.format(name="golf"), target="hotel_provider")
    with pytest.raises(ProvidersError) as raised:
        loaded_types()
    (error_text,) = raised.value.problems
    assert "golf_provider.Provider" in error_text
    assert "hotel_provider.Provider" in error_text
