import httpx
import pytest

from integration_server.domain.credentials import ApiKey
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.sendgrid import SendGridProvider
from integration_server.service.integrations.ports import NewAccount
from tests.unit.providers.support import FakeTransport, build_provider, json_response


async def test_verifies_a_key_by_its_scopes() -> None:
    network = FakeTransport(json_response({"scopes": ["mail.send"]}))
    assert await build_provider(SendGridProvider, network).verify_connection(ApiKey("SG.x")) == NewAccount(None, None)
    assert str(network.request.url) == "https://api.sendgrid.com/v3/scopes"
    assert network.request.headers["Authorization"] == "Bearer SG.x"


async def test_a_wrong_key_is_refused() -> None:
    with pytest.raises(ProviderRejected):
        await build_provider(SendGridProvider, FakeTransport(httpx.Response(401))).verify_connection(ApiKey("SG.x"))
