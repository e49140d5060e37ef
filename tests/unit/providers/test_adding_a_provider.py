"""The code blocks of docs/adding-a-provider.md work."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.plugins import GROUP
from integration_server.providers.toml_providers import load_toml_providers
from tests.unit.providers.support import FakeTransport, context, json_response
from tools.declaration_doc import render_page

PAGE = (Path(__file__).parents[3] / "docs" / "adding-a-provider.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def shown_settings() -> dict[str, str]:
    (block,) = code_blocks("")
    return dict(line.split("=") for line in block.splitlines())


@pytest.fixture
def toml_providers(tmp_path: Path) -> ProviderRegistry:
    declarations = [text for text in code_blocks("toml") if text.startswith("integration_type = ")]
    for number, text in enumerate(declarations):
        (tmp_path / f"{number}.toml").write_text(text)
    factory = ProviderFactory()
    load_toml_providers(tmp_path, factory, dev_mode=False)
    return factory.build(context(FakeTransport(), shown_settings()))


def test_the_toml_files_and_settings_define_providers(toml_providers: ProviderRegistry) -> None:
    assert [provider.integration_type for provider in toml_providers.all()] == [
        "acme",
        "acme_account",
        "acme_erp",
        "acme_key",
        "acme_shop",
        "acme_tv",
    ]
    assert toml_providers["acme"].missing_settings == []
    assert toml_providers["acme_account"].missing_settings == toml_providers["acme_erp"].missing_settings == []
    assert set(toml_providers["acme_key"].request_auth(ApiKey("k")).headers) == {"X-Api-Key"}


async def test_the_python_file_defines_a_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = code_blocks("python")
    (tmp_path / "my_service.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    factory = ProviderFactory()
    importlib.import_module("my_service").register(factory)
    network = FakeTransport(
        json_response({"access_token": "at"}), json_response({"id": 7}), json_response({"data": [1, 2]})
    )
    provider: Any = factory.build(context(network))["my_service"]
    assert list(provider.missing_settings) == ["MY_SERVICE_CLIENT_ID", "MY_SERVICE_CLIENT_SECRET"]
    assert await provider.exchange_code_for_tokens("c", "https://app.example/cb", "v") == OAuthTokens("at")
    assert (await provider.verify_connection(OAuthTokens("at"))).account_id == "7"
    assert await provider.fetch_data(OAuthTokens("at")) == {"data": [1, 2]}
    assert network.requests[-1].headers["Authorization"] == "Bearer at"


def test_the_entry_point_group_is_the_loaded_one() -> None:
    (package,) = [text for text in code_blocks("toml") if "[project" in text]
    assert list(tomllib.loads(package)["project"]["entry-points"]) == [GROUP]


def test_the_table_of_keys_is_up_to_date() -> None:
    assert render_page(PAGE) == PAGE, "make providers-doc writes it"
