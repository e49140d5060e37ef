from base64 import b64decode
from collections.abc import Mapping

import httpx
import pytest

from integration_server.domain.credentials import ApiKey, AuthMethod, OAuthTokens, RequestAuth
from integration_server.domain.errors import ProviderError, ProviderRejected, ProviderUnavailable
from integration_server.providers.api_key import ApiKeyProvider, BasicAuthProvider
from integration_server.providers.base import BaseProvider
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.provider_port import Provider
from tests.unit.providers.support import FakeTransport, build_provider, exception_text, json_response


class BearerKeyProvider(ApiKeyProvider):
    integration_type = "keyed"
    verify_url = "https://keyed.example/me?full=1"
    account_id_field = "id"


class HeaderKeyProvider(BearerKeyProvider):
    request_headers: Mapping[str, str] = {"X-Api-Key": "{api_key}"}


class QueryKeyProvider(BearerKeyProvider):
    request_query: Mapping[str, str] = {"key": "{api_key}"}


class BasicProvider(BasicAuthProvider):
    integration_type = "paired"
    verify_url = "https://paired.example/me"


def test_a_key_is_a_bearer_token_unless_declared_otherwise() -> None:
    key = ApiKey("k-1")
    assert build_provider(BearerKeyProvider, FakeTransport()).request_auth(key) == RequestAuth(
        headers={"Authorization": "Bearer k-1"}
    )
    assert build_provider(HeaderKeyProvider, FakeTransport()).request_auth(key) == RequestAuth(
        headers={"X-Api-Key": "k-1"}
    )
    assert build_provider(QueryKeyProvider, FakeTransport()).request_auth(key) == RequestAuth(
        query_params={"key": "k-1"}
    )


def test_a_key_with_a_secret_is_http_basic() -> None:
    auth = build_provider(BasicProvider, FakeTransport()).request_auth(ApiKey("Aladdin", "open sesame"))  # RFC 7617 §2
    assert auth == RequestAuth(headers={"Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="})


def test_declares_its_required_fields() -> None:
    keyed: Provider = build_provider(BearerKeyProvider, FakeTransport())
    paired: Provider = build_provider(BasicProvider, FakeTransport())
    assert (keyed.auth_method, keyed.required_fields) == (AuthMethod.API_KEY, ("api_key",))
    assert (paired.auth_method, paired.required_fields) == (AuthMethod.BASIC, ("api_key", "api_secret"))
    assert keyed.missing_settings == paired.missing_settings == []


async def test_verifies_a_key_at_the_provider() -> None:
    network = FakeTransport(json_response({"id": "acc"}))
    assert await build_provider(HeaderKeyProvider, network).verify_connection(ApiKey("k-1")) == NewAccount("acc", None)
    assert network.request.headers["X-Api-Key"] == "k-1"


async def test_sends_a_key_in_the_query_if_declared() -> None:
    network = FakeTransport(json_response({"id": "acc"}))
    await build_provider(QueryKeyProvider, network).verify_connection(ApiKey("k&1"))
    assert dict(network.request.url.params) == {"full": "1", "key": "k&1"}


async def test_a_wrong_key_is_rejected() -> None:
    with pytest.raises(ProviderRejected) as raised:
        await build_provider(
            QueryKeyProvider, FakeTransport(httpx.Response(401, content=b"no such key k-1"))
        ).verify_connection(ApiKey("k-1"))
    assert "k-1" not in exception_text(raised.value)


async def test_an_outage_does_not_reject_a_key() -> None:
    with pytest.raises(ProviderUnavailable) as raised:
        await build_provider(QueryKeyProvider, FakeTransport(httpx.ConnectError("k-1"))).verify_connection(
            ApiKey("k-1")
        )
    assert "k-1" not in exception_text(raised.value)


@pytest.mark.parametrize("key", ["k\r\nX-Evil: 1", "k\n", "clé", " k", "k ", "\0", ""])
@pytest.mark.parametrize("provider_class", [BearerKeyProvider, HeaderKeyProvider])
async def test_a_key_that_no_header_can_contain_is_rejected(provider_class: type[BearerKeyProvider], key: str) -> None:
    network = FakeTransport()
    with pytest.raises(ProviderRejected):
        await build_provider(provider_class, network).verify_connection(ApiKey(key))
    assert network.requests == []


async def test_a_user_name_with_a_colon_is_rejected() -> None:
    network = FakeTransport()
    with pytest.raises(ProviderRejected):
        await build_provider(BasicProvider, network).verify_connection(ApiKey("a:b", "c"))
    assert network.requests == []


class PemProvider(BasicProvider):
    allows_whitespace_in = ("api_secret",)


PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQ\r\nIBADAN\n-----END PRIVATE KEY-----"
APPLICATION_PASSWORD = "abcd EFGH 1234 ijkl"


@pytest.mark.parametrize(
    ("provider_class", "field", "value", "problem"),
    [
        (BearerKeyProvider, "api_key", "sk_live_1", None),
        (BearerKeyProvider, "api_key", "sk_live _1", "white space"),
        (BearerKeyProvider, "api_key", "sk\u200blive", "white space"),
        (BearerKeyProvider, "api_key", "sk\u00a0live", "white space"),
        (HeaderKeyProvider, "api_key", "clé", "header"),
        (HeaderKeyProvider, "api_key", "k\x1b[1m", "control character"),
        (QueryKeyProvider, "api_key", "clé", None),
        (QueryKeyProvider, "api_key", "k\tk", "white space"),
        (BasicProvider, "api_key", "ad:a", "colon"),
        (BasicProvider, "api_secret", "pass:word", None),
        (BasicProvider, "api_key", "jürgen@example.com", None),
        (BasicProvider, "api_secret", "пароль", None),
        (BasicProvider, "api_secret", APPLICATION_PASSWORD, "white space"),
        (BasicProvider, "api_secret", PEM, "white space"),
        (PemProvider, "api_secret", APPLICATION_PASSWORD, None),
        (PemProvider, "api_secret", PEM, None),
        (PemProvider, "api_secret", PEM + "\x00", "control character"),
        (PemProvider, "api_key", "a b", "white space"),
        (BearerKeyProvider, "webhook_secret", "correct horse", None),
        (BearerKeyProvider, "webhook_secret", "correct\nhorse", "control character"),
    ],
)
def test_the_characters_of_a_key_are_checked_before_it_is_sent(
    provider_class: type[BaseProvider], field: str, value: str, problem: str | None
) -> None:
    found = build_provider(provider_class, FakeTransport()).key_problem(field, value)
    assert found is None if problem is None else problem in str(found)
    assert value not in str(found)


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        (ApiKey("", "secret"), ":secret"),
        (ApiKey("user", None), "user:"),
        (ApiKey("user", ""), "user:"),
        (ApiKey("jürgen", "pässwörd€"), "jürgen:pässwörd€"),
        (ApiKey("u", "a:b:c"), "u:a:b:c"),
    ],
)
def test_either_part_of_http_basic_may_be_empty_and_both_are_utf_8(key: ApiKey, sent: str) -> None:
    header = build_provider(BasicProvider, FakeTransport()).request_auth(key).headers["Authorization"]
    assert b64decode(header.removeprefix("Basic ")).decode("utf-8") == sent


@pytest.mark.parametrize("provider_class", [BearerKeyProvider, HeaderKeyProvider, BasicProvider])
@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (429, {}, ProviderUnavailable),
        (429, {"Retry-After": "30"}, ProviderUnavailable),
        (403, {"Retry-After": "30"}, ProviderUnavailable),
        (403, {"Retry-After": "Sun, 22 Nov 2026 12:01:00 GMT"}, ProviderUnavailable),
        (503, {}, ProviderUnavailable),
        (403, {}, ProviderRejected),
        (401, {"Retry-After": "30"}, ProviderRejected),
    ],
)
async def test_a_key_is_not_rejected_by_a_request_to_wait(
    provider_class: type[BaseProvider], status: int, headers: dict[str, str], error: type[ProviderError]
) -> None:
    network = FakeTransport(httpx.Response(status, headers=headers, json={}))
    with pytest.raises(error):
        await build_provider(provider_class, network).verify_connection(ApiKey("k", "s"))


@pytest.mark.parametrize("provider_class", [BearerKeyProvider, BasicProvider])
def test_tokens_are_rejected_as_a_key(provider_class: type[BearerKeyProvider | BasicProvider]) -> None:
    with pytest.raises(ProviderRejected):
        build_provider(provider_class, FakeTransport()).request_auth(OAuthTokens("at"))


async def test_a_key_is_not_revoked() -> None:
    assert not await build_provider(BearerKeyProvider, FakeTransport()).revoke_credentials(ApiKey("k-1"))
