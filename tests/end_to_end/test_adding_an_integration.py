"""The Python provider of docs/adding-a-provider.md, unchanged, on a running server."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.base import ProviderContext
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import ProviderHttp
from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import ROOT
from tests.end_to_end.rpc_errors import NOT_FOUND, expect_rpc_error
from tests.end_to_end.system import callback_url, run_system

pytestmark = pytest.mark.slow

CLIENT = {"MY_SERVICE_CLIENT_ID": "my-client", "MY_SERVICE_CLIENT_SECRET": "my-secret"}

ADDRESSES = {
    "https://myservice.example/oauth/authorize": "/oauth/authorize",
    "https://myservice.example/oauth/token": "/oauth/token",
    "https://api.myservice.example/v1/me": "/userinfo",
    "https://api.myservice.example/v1": "",
}


def page_provider() -> str:
    """The Python file of the page."""
    page = (ROOT / "docs" / "adding-a-provider.md").read_text(encoding="utf-8")
    source, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(source)


def with_sandbox_urls(source: str, sandbox_url: str) -> str:
    """The file with its example URLs replaced by the sandbox's, whose account field is `sub`."""
    for address, path in ADDRESSES.items():
        assert f'"{address}"' in source
        source = source.replace(f'"{address}"', f'"{sandbox_url}{path}"')
    return source.replace('account_id_field = "id"', 'account_id_field = "sub"').replace("/data", "/userinfo")


def load_module(path: Path) -> Any:
    """The module in a file, without an entry in `sys.modules`."""
    spec = importlib.util.spec_from_file_location("the_recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.quick_on("sqlite")
async def test_the_documented_steps_add_a_working_integration(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "my_service.py"

    def register(factory: ProviderFactory, sandbox_url: str) -> None:
        path.write_text(with_sandbox_urls(page_provider(), sandbox_url))
        load_module(path).register(factory)

    sandbox = Sandbox()
    callback = callback_url("my_service")
    sandbox.register_client(CLIENT["MY_SERVICE_CLIENT_ID"], CLIENT["MY_SERVICE_CLIENT_SECRET"], [callback])
    async with run_system(database_url, sandbox=sandbox, environment=CLIENT, extra_providers=[register]) as system:
        types = await system.service.ListIntegrationTypes(pb.ListIntegrationTypesRequest())
        (info,) = (info for info in types.integration_types if info.integration_type == "my_service")
        assert (info.display_name, info.configured, list(info.scopes)) == ("My Service", True, ["read", "write"])

        integration_id = await system.connect(integration_type="my_service", account="grace")
        integration = await system.get(integration_id)
        assert (integration.status, integration.account_id) == (integration_pb2.STATUS_ACTIVE, "grace")

        which: dict[str, Any] = {"integration_id": integration_id, "user_id": "ada"}
        before = await system.bearer_token(integration_id)
        refreshed = await system.service.RefreshToken(pb.RefreshTokenRequest(**which, force=True))
        assert refreshed.refreshed
        token = await system.bearer_token(integration_id)
        assert token != before
        check = (await system.service.CheckHealth(pb.CheckHealthRequest(**which))).health_check
        assert check.healthy

        # a method of this provider only
        async with ProviderHttp(system.clock, dev_mode=True) as http:
            provider = load_module(path).MyServiceProvider(ProviderContext(http, system.clock, CLIENT))
            assert (await provider.fetch_data(OAuthTokens(token)))["email"] == "grace@example.com"

        gone = await system.service.DisconnectIntegration(pb.DisconnectIntegrationRequest(**which))
        assert (gone.success, gone.provider_revoked) == (True, False)  # the page's provider declares no revocation URL
        assert await expect_rpc_error(system.get(integration_id)) == NOT_FOUND
