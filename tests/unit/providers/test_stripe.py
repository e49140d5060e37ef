import httpx
import pytest

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.domain.errors import ProviderError, ProviderRejected, ProviderUnavailable
from integration_server.providers.built_in import built_in_class
from integration_server.service.integrations.ports import NewAccount
from tests.unit.providers.support import FakeTransport, build_provider, exception_text, json_response

StripeProvider = built_in_class("stripe")

TOKENS = OAuthTokens(access_token="sk_acct", refresh_token="rt", extras={"stripe_user_id": "acct_1"})
TOKEN_RESPONSE = {
    "access_token": "sk_acct",
    "livemode": False,
    "refresh_token": "rt",
    "token_type": "bearer",
    "stripe_publishable_key": "pk_1",
    "stripe_user_id": "acct_1",
    "scope": "read_write",
}


async def test_the_token_never_expires_and_has_its_account() -> None:
    network = FakeTransport(json_response(TOKEN_RESPONSE))
    tokens = await build_provider(StripeProvider, network).exchange_code_for_tokens(
        "ac_1", "https://app.example/cb", "ver"
    )
    assert tokens == OAuthTokens(
        access_token="sk_acct", refresh_token="rt", scopes=("read_write",), extras={"stripe_user_id": "acct_1"}
    )
    assert tokens.expire_time is None


async def test_the_platforms_key_is_the_client_secret() -> None:
    network = FakeTransport(json_response(TOKEN_RESPONSE))
    provider = build_provider(StripeProvider, network, STRIPE_CLIENT_ID="ca_1", STRIPE_CLIENT_SECRET="sk_platform")
    await provider.exchange_code_for_tokens("ac_1", "https://app.example/cb", "ver")
    assert (network.form["client_id"], network.form["client_secret"]) == ("ca_1", "sk_platform")


async def test_the_account_is_the_one_of_the_token_response() -> None:
    network = FakeTransport(json_response({"id": "acct_other", "email": "ada@example.com"}))
    account = await build_provider(StripeProvider, network).verify_connection(TOKENS)
    assert account == NewAccount("acct_1", "ada@example.com")


async def test_disconnects_the_account_with_the_platforms_key() -> None:
    network = FakeTransport(json_response({"stripe_user_id": "acct_1"}))
    assert await build_provider(StripeProvider, network).revoke_credentials(TOKENS)
    assert str(network.request.url) == "https://connect.stripe.com/oauth/deauthorize"
    assert network.request.headers["Authorization"] == "Bearer our-secret"
    assert network.form == {"client_id": "our-id", "stripe_user_id": "acct_1"}


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (json_response({"error": "invalid_client"}, 401), ProviderRejected),
        (httpx.Response(500), ProviderUnavailable),
    ],
)
async def test_a_failed_disconnection_does_not_mean_an_invalid_client(
    response: httpx.Response, error: type[ProviderError]
) -> None:
    with pytest.raises(error) as raised:
        await build_provider(StripeProvider, FakeTransport(response)).revoke_credentials(TOKENS)
    assert "our-secret" not in exception_text(raised.value)


async def test_without_an_account_nothing_is_revoked() -> None:
    provider = build_provider(StripeProvider, FakeTransport())
    assert not await provider.revoke_credentials(OAuthTokens("sk_acct"))
    assert not await provider.revoke_credentials(ApiKey("sk_acct"))


def test_a_disconnection_ends_all_grants_of_the_account() -> None:
    assert tuple(build_provider(StripeProvider, FakeTransport()).shares_grants_with) == ("stripe",)
