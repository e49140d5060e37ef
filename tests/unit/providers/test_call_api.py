"""Calls of a provider's API: the request that is sent, and the response."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx
import pytest

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.domain.errors import ApiNotDeclared, InvalidField, ProviderUnavailable, ResponseTooLarge
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.base import BaseProvider
from integration_server.providers.built_in import built_in_class
from integration_server.providers.factory import ProvidersError
from integration_server.providers.http import UrlNotAllowed
from integration_server.service.proxy.proxy_policy import forwardable_headers
from tests.unit.providers.support import FakeTransport, build_provider, json_response

DropboxProvider = built_in_class("dropbox")
GoogleCalendarProvider = built_in_class("google_calendar")
GoogleMyBusinessProvider = built_in_class("google_my_business")
MetaBusinessProvider = built_in_class("meta_business")

TOKENS = OAuthTokens("token-1")


class Acme(ApiKeyProvider):
    """A provider with its key in the query."""

    integration_type = "acme"
    verify_url = "https://api.acme.example/v1/me"
    api_base_url: str | None = "https://api.acme.example/v1/"
    request_query: Mapping[str, str] = {"key": "{api_key}"}


async def call(network: FakeTransport, request: ApiRequest, *, limit: int = 1000, **attributes: Any) -> ApiResponse:
    provider = build_provider(Acme, network).with_attributes(**attributes)
    return await provider.call_api(ApiKey("k&y"), request, deadline=timedelta(seconds=1), body_limit=limit)


async def test_a_request_has_the_base_url_and_the_credentials() -> None:
    network = FakeTransport(httpx.Response(201, headers=[("Link", "a"), ("link", "b")], content=b"made"))
    request = ApiRequest(
        "POST",
        "/things/a%2Fb",
        query=[("q", "1 2"), ("q", "&key=evil")],
        headers=[("X-A", "1"), ("X-A", "2"), ("Accept", "text/plain")],
        body=b"\x00body",
        idempotency_key="once",
    )
    response = await call(network, request)
    sent = network.request
    assert str(sent.url) == "https://api.acme.example/v1/things/a%2Fb?q=1+2&q=%26key%3Devil&key=k%26y"
    assert sent.method == "POST"
    assert sent.headers.get_list("X-A") == ["1", "2"]
    assert sent.headers.get_list("Accept") == ["text/plain"]
    assert sent.headers["Idempotency-Key"] == "once"
    assert sent.content == b"\x00body"
    assert (response.status, response.body) == (201, b"made")
    assert [pair for pair in response.headers if pair[0] == "link"] == [("link", "a"), ("link", "b")]


@pytest.mark.parametrize(("status", "waits"), [(200, False), (404, False), (429, True), (503, True), (500, False)])
async def test_429_and_503_mean_rate_limited(status: int, waits: bool) -> None:
    response = await call(FakeTransport(httpx.Response(status, headers={"Retry-After": "7"})), ApiRequest("GET", "/"))
    assert (response.is_rate_limited, response.retry_after) == (waits, timedelta(seconds=7))


async def test_redirects_are_returned() -> None:
    network = FakeTransport(httpx.Response(302, headers={"Location": "https://evil.example/"}))
    assert (await call(network, ApiRequest("GET", "/"))).status == 302
    assert len(network.requests) == 1


async def test_a_response_over_the_limit_has_its_own_error() -> None:
    network = FakeTransport(httpx.Response(200, content=b"x" * 11), httpx.Response(200, content=b"x" * 10))
    with pytest.raises(ResponseTooLarge):
        await call(network, ApiRequest("GET", "/"), limit=10)
    assert len((await call(network, ApiRequest("GET", "/"), limit=10)).body) == 10


async def test_a_missing_response_is_provider_unavailable() -> None:
    with pytest.raises(ProviderUnavailable):
        await call(FakeTransport(httpx.ConnectError("x")), ApiRequest("GET", "/"))


async def test_a_type_without_an_api_cannot_be_called() -> None:
    with pytest.raises(ApiNotDeclared):
        await call(FakeTransport(), ApiRequest("GET", "/"), api_base_url=None)


@pytest.mark.parametrize("path", ["@evil.example/", ".evil.example/", ":443@evil.example/"])
async def test_no_path_leads_to_an_undeclared_host(path: str) -> None:
    with pytest.raises(UrlNotAllowed):
        await call(FakeTransport(), ApiRequest("GET", path), api_base_url="https://api.acme.example")


@pytest.mark.parametrize(
    ("reason", "waits"),
    [("rateLimitExceeded", True), ("userRateLimitExceeded", True), ("forbidden", False), ("dailyLimitExceeded", False)],
)
async def test_google_is_rate_limited_with_403_and_a_reason(reason: str, waits: bool) -> None:
    network = FakeTransport(json_response({"error": {"errors": [{"reason": reason}], "code": 403}}, 403))
    provider = build_provider(GoogleCalendarProvider, network)
    response = await provider.call_api(TOKENS, ApiRequest("GET", "/x"), deadline=timedelta(seconds=1), body_limit=1000)
    assert response.is_rate_limited is waits


class SeveralHosts(Acme):
    api_base_urls: Mapping[str, str] = {
        "files": "https://files.acme.example/v2",
        "shop": "https://{shop}.acme.example/api",
    }
    url_params: Mapping[str, str] = {"shop": "north"}
    host_patterns = ("*.acme.example",)


@pytest.mark.parametrize(
    ("provider_class", "api", "url"),
    [
        (DropboxProvider, "", "https://api.dropboxapi.com/2/files/download"),
        (DropboxProvider, "content", "https://content.dropboxapi.com/2/files/download"),
        (DropboxProvider, "notify", "https://notify.dropboxapi.com/2/files/download"),
        (GoogleMyBusinessProvider, "v4", "https://mybusiness.googleapis.com/v4/files/download"),
        (
            GoogleMyBusinessProvider,
            "performance",
            "https://businessprofileperformance.googleapis.com/v1/files/download",
        ),
        (SeveralHosts, "files", "https://files.acme.example/v2/files/download?key=k"),
        (SeveralHosts, "shop", "https://north.acme.example/api/files/download?key=k"),
        (SeveralHosts, "", "https://api.acme.example/v1/files/download?key=k"),
    ],
)
async def test_a_call_names_the_host_of_a_provider_with_several(
    provider_class: type[BaseProvider], api: str, url: str
) -> None:
    network = FakeTransport(httpx.Response(200))
    credentials = ApiKey("k") if provider_class is SeveralHosts else TOKENS
    await build_provider(provider_class, network).call_api(
        credentials, ApiRequest("GET", "/files/download", api=api), deadline=timedelta(seconds=1), body_limit=10
    )
    assert str(network.request.url) == url


@pytest.mark.parametrize("provider_class", [DropboxProvider, GoogleCalendarProvider])
@pytest.mark.parametrize("api", ["Content", "content2", "https://evil.example", "api_base_url", "..", "content/../x"])
async def test_an_api_that_is_not_declared_is_named_in_the_error(provider_class: type[BaseProvider], api: str) -> None:
    network = FakeTransport()
    with pytest.raises(InvalidField) as caught:
        await build_provider(provider_class, network).call_api(
            TOKENS, ApiRequest("GET", "/x", api=api), deadline=timedelta(seconds=1), body_limit=10
        )
    assert (caught.value.field, network.requests) == ("api", [])
    assert ("content, notify" in caught.value.problem) is (provider_class is DropboxProvider)


@pytest.mark.parametrize("url", ["http://files.acme.example", "ftp://x.example", "https://user@files.acme.example", ""])
def test_each_base_url_is_checked_at_startup(url: str) -> None:
    class Insecure(Acme):
        api_base_urls: Mapping[str, str] = {"files": url}

    with pytest.raises(ProvidersError, match=r"api_base_urls\.files"):
        build_provider(Insecure, FakeTransport())


async def call_page(network: FakeTransport, sub_account: str) -> ApiResponse:
    provider: BaseProvider = build_provider(MetaBusinessProvider, network)
    request = ApiRequest("POST", "/me/feed", body=b"{}", sub_account=sub_account)
    return await provider.call_api(TOKENS, request, deadline=timedelta(seconds=2), body_limit=1000)


async def test_a_call_can_use_the_token_of_a_page() -> None:
    page_token = "page+token/1"
    leak = {"Location": "https://x.example/?t=page%2Btoken%2F1", "X-App-Usage": "1"}
    network = FakeTransport(json_response({"access_token": page_token, "id": "42"}), httpx.Response(200, headers=leak))
    response = await call_page(network, "42")
    question, sent = network.requests
    assert (question.method, question.url.path, dict(question.url.params)) == (
        "GET",
        "/v26.0/42",
        {"fields": "access_token"},
    )
    assert [one.headers["Authorization"] for one in (question, sent)] == ["Bearer token-1", f"Bearer {page_token}"]
    assert (sent.method, sent.url.path, sent.content) == ("POST", "/v26.0/me/feed", b"{}")
    assert list(response.secrets) == [page_token]
    headers = forwardable_headers(response.headers, response.secrets)
    assert [name.lower() for name, _ in headers] == ["x-app-usage"]


@pytest.mark.parametrize(("code", "is_unauthorized"), [(190, True), (10, False), (100, False)])
async def test_an_error_instead_of_the_pages_token_is_the_response(code: int, is_unauthorized: bool) -> None:
    response = await call_page(FakeTransport(json_response({"error": {"code": code}}, 400)), "42")
    assert (response.status, response.is_unauthorized) == (400, is_unauthorized)


@pytest.mark.parametrize("sub_account", ["me/accounts", "42?fields=x", "..", "42/../me", "\u0664\u0662", "4 2", "@me"])
async def test_a_sub_account_is_the_id_of_a_page(sub_account: str) -> None:
    network = FakeTransport()
    with pytest.raises(InvalidField) as caught:
        await call_page(network, sub_account)
    assert (caught.value.field, network.requests) == ("sub_account", [])


@pytest.mark.parametrize(
    "answer", [{"id": "42"}, {"access_token": None}, {"access_token": "a b"}, {"access_token": ""}, []]
)
async def test_a_page_without_a_token_is_not_called_with_the_users(answer: Any) -> None:
    network = FakeTransport(json_response(answer))
    with pytest.raises(InvalidField) as caught:
        await call_page(network, "42")
    assert (caught.value.field, len(network.requests)) == ("sub_account", 1)


@pytest.mark.parametrize("provider_class", [DropboxProvider, GoogleCalendarProvider])
async def test_other_types_have_no_sub_accounts(provider_class: type[BaseProvider]) -> None:
    network = FakeTransport()
    with pytest.raises(InvalidField) as caught:
        await build_provider(provider_class, network).call_api(
            TOKENS, ApiRequest("GET", "/x", sub_account="42"), deadline=timedelta(seconds=1), body_limit=10
        )
    assert (caught.value.field, network.requests) == ("sub_account", [])
