import base64

import pytest

from integration_server.domain.credentials import ApiKey
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.built_in import built_in_class
from integration_server.service.integrations.ports import NewAccount
from tests.unit.providers.support import FakeTransport, build_provider, json_response

TwilioProvider = built_in_class("twilio")

SID = "AC" + "0123456789abcdef" * 2


async def test_verifies_with_the_account_of_the_sid() -> None:
    network = FakeTransport(json_response({"sid": SID, "friendly_name": "Ada's", "status": "active"}))
    account = await build_provider(TwilioProvider, network).verify_connection(ApiKey(SID, "token"))
    assert account == NewAccount(SID, "Ada's")
    assert str(network.request.url) == f"https://api.twilio.com/2010-04-01/Accounts/{SID}.json"
    expected = base64.b64encode(f"{SID}:token".encode()).decode()
    assert network.request.headers["Authorization"] == f"Basic {expected}"


@pytest.mark.parametrize("sid", ["", "AC", "../../x", f"{SID}/..", f"SK{SID[2:]}", f"{SID}\n", SID.replace("0", "g")])
async def test_an_invalid_account_sid_is_not_sent(sid: str) -> None:
    network = FakeTransport()
    with pytest.raises(ProviderRejected):
        await build_provider(TwilioProvider, network).verify_connection(ApiKey(sid, "token"))
    assert network.requests == []
