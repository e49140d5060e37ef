import base64

import httpx
import pytest

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.twilio import TwilioProvider
from integration_server.service.integrations.ports import NewAccount
from tests.unit.providers.support import FakeTransport, build_provider, json_response

SID = "AC" + "0123456789abcdef" * 2


async def test_asks_for_the_account_that_the_sid_names() -> None:
    network = FakeTransport(json_response({"sid": SID, "friendly_name": "Ada's", "status": "active"}))
    account = await build_provider(TwilioProvider, network).verify_connection(ApiKey(SID, "token"))
    assert account == NewAccount(SID, "Ada's")
    assert str(network.request.url) == f"https://api.twilio.com/2010-04-01/Accounts/{SID}.json"
    expected = base64.b64encode(f"{SID}:token".encode()).decode()
    assert network.request.headers["Authorization"] == f"Basic {expected}"


@pytest.mark.parametrize("sid", ["", "AC", "../../x", f"{SID}/..", f"SK{SID[2:]}", f"{SID}\n", SID.replace("0", "g")])
async def test_what_is_no_account_sid_never_becomes_a_url(sid: str) -> None:
    network = FakeTransport()
    with pytest.raises(ProviderRejected):
        await build_provider(TwilioProvider, network).verify_connection(ApiKey(sid, "token"))
    assert network.requests == []


async def test_a_wrong_auth_token_is_refused() -> None:
    with pytest.raises(ProviderRejected):
        await build_provider(TwilioProvider, FakeTransport(httpx.Response(401))).verify_connection(ApiKey(SID, "token"))


async def test_a_token_is_no_pair() -> None:
    with pytest.raises(ProviderRejected):
        await build_provider(TwilioProvider, FakeTransport()).verify_connection(OAuthTokens("at"))


def test_needs_both_halves() -> None:
    assert build_provider(TwilioProvider, FakeTransport()).required_fields == ("api_key", "api_secret")
