import httpx
import pytest

from integration_server.domain.credentials import ApiKey, AuthMethod, OAuthTokens, RequestAuth
from integration_server.domain.errors import ProviderRejected, ProviderUnavailable
from integration_server.providers.api_key import ApiKeyProvider, BasicAuthProvider
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.provider_port import Provider
from tests.unit.providers.support import FakeTransport, build_provider, exception_text, json_response


class Keyed(ApiKeyProvider):
    integration_type = "keyed"
    verify_url = "https://keyed.example/me?full=1"
    account_id_field = "id"


class Headed(Keyed):
    api_key_header = "X-Api-Key"


class Queried(Keyed):
    api_key_query_param = "key"


class Paired(BasicAuthProvider):
    integration_type = "paired"
    verify_url = "https://paired.example/me"


def test_a_key_is_a_bearer_token_unless_declared_otherwise() -> None:
    key = ApiKey("k-1")
    assert build_provider(Keyed, FakeTransport()).request_auth(key) == RequestAuth(
        headers={"Authorization": "Bearer k-1"}
    )
    assert build_provider(Headed, FakeTransport()).request_auth(key) == RequestAuth(headers={"X-Api-Key": "k-1"})
    assert build_provider(Queried, FakeTransport()).request_auth(key) == RequestAuth(query_params={"key": "k-1"})


def test_a_pair_is_http_basic() -> None:
    auth = build_provider(Paired, FakeTransport()).request_auth(ApiKey("Aladdin", "open sesame"))  # RFC 7617 §2
    assert auth == RequestAuth(headers={"Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="})


def test_says_what_it_needs() -> None:
    keyed: Provider = build_provider(Keyed, FakeTransport())
    paired: Provider = build_provider(Paired, FakeTransport())
    assert (keyed.auth_method, keyed.required_fields) == (AuthMethod.API_KEY, ("api_key",))
    assert (paired.auth_method, paired.required_fields) == (AuthMethod.BASIC, ("api_key", "api_secret"))
    assert keyed.missing_settings == paired.missing_settings == []


async def test_tries_a_key_at_the_provider() -> None:
    network = FakeTransport(json_response({"id": "acc"}))
    assert await build_provider(Headed, network).verify_connection(ApiKey("k-1")) == NewAccount("acc", None)
    assert network.request.headers["X-Api-Key"] == "k-1"


async def test_puts_a_key_into_the_query_where_it_belongs() -> None:
    network = FakeTransport(json_response({"id": "acc"}))
    await build_provider(Queried, network).verify_connection(ApiKey("k&1"))
    assert dict(network.request.url.params) == {"full": "1", "key": "k&1"}


async def test_a_wrong_key_is_refused() -> None:
    with pytest.raises(ProviderRejected) as raised:
        await build_provider(Queried, FakeTransport(httpx.Response(401, content=b"no such key k-1"))).verify_connection(
            ApiKey("k-1")
        )
    assert "k-1" not in exception_text(raised.value)


async def test_a_provider_that_is_down_says_nothing_about_a_key() -> None:
    with pytest.raises(ProviderUnavailable) as raised:
        await build_provider(Queried, FakeTransport(httpx.ConnectError("k-1"))).verify_connection(ApiKey("k-1"))
    assert "k-1" not in exception_text(raised.value)


@pytest.mark.parametrize("key", ["k\r\nX-Evil: 1", "k\n", "clé", "k k", " k", "\0", ""])
@pytest.mark.parametrize("provider_class", [Keyed, Headed])
async def test_what_no_header_can_carry_is_no_key(provider_class: type[Keyed], key: str) -> None:
    network = FakeTransport()
    with pytest.raises(ProviderRejected):
        await build_provider(provider_class, network).verify_connection(ApiKey(key))
    assert network.requests == []


async def test_a_colon_cannot_be_in_the_first_half_of_a_pair() -> None:
    network = FakeTransport()
    with pytest.raises(ProviderRejected):
        await build_provider(Paired, network).verify_connection(ApiKey("a:b", "c"))
    assert network.requests == []


@pytest.mark.parametrize("provider_class", [Keyed, Paired])
def test_a_token_is_no_key(provider_class: type[Keyed | Paired]) -> None:
    with pytest.raises(ProviderRejected):
        build_provider(provider_class, FakeTransport()).request_auth(OAuthTokens("at"))


async def test_a_key_cannot_be_revoked_from_here() -> None:
    assert not await build_provider(Keyed, FakeTransport()).revoke_credentials(ApiKey("k-1"))
