"""Bodies that cannot be sent twice, and redirects, with each HTTP library and each way to send a secret."""

import io
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
import requests
from azure.core import PipelineClient
from azure.core.rest import HttpRequest
from google.auth.transport.requests import AuthorizedSession
from googleapiclient.discovery import build
from slack_sdk.errors import SlackApiError

from integration_server.client.adapters import azure as azure_adapter
from integration_server.client.adapters import google as google_adapter
from integration_server.client.adapters import httpx as httpx_adapter
from integration_server.client.adapters import requests as requests_adapter
from integration_server.client.adapters import slack, stripe
from tests.integration.client_adapters.provider import (
    AsyncFakeSource,
    FakeSource,
    Provider,
    Scheme,
    running_provider,
)

# Several of the libraries leave their connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("connections_are_collected"),
]

SCHEMES: tuple[Scheme, ...] = ("bearer", "header", "query")
Send = Callable[..., int]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as running:
        yield running


@pytest.fixture
def other() -> Iterator[Provider]:
    """Another host, which accepts what the provider accepts."""
    with running_provider() as running:
        yield running


def _httpx(source: FakeSource | None) -> Send:
    auth = None if source is None else httpx_adapter.AccountAuth(source)
    client = httpx.Client(auth=auth, follow_redirects=True, trust_env=False)
    return lambda method, url, **options: client.request(method, url, **options).status_code


def _requests(source: FakeSource | None) -> Send:
    session = requests.Session()
    session.auth = None if source is None else requests_adapter.AccountAuth(source)
    names = {"content": "data", "files": "files", "headers": "headers"}
    return lambda method, url, **options: (
        session.request(method, url, **{names[name]: value for name, value in options.items()}).status_code
    )


both = pytest.mark.parametrize("library", [_httpx, _requests])


def _parts() -> Iterator[bytes]:
    yield b"one"
    yield b"two"


class _Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *args: int) -> int:
        raise io.UnsupportedOperation("seek")

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")


@both
@pytest.mark.parametrize(
    ("options", "bodies"),
    [
        ({"content": b"one"}, [b"one", b"one"]),
        ({"content": "naïve".encode()}, ["naïve".encode()] * 2),
        ({}, [b"", b""]),
    ],
    ids=["bytes", "text", "none"],
)
def test_a_body_that_can_be_sent_twice_is(
    provider: Provider, library: Callable[[FakeSource], Send], options: Mapping[str, Any], bodies: list[bytes]
) -> None:
    provider.valid = {2}
    assert library(FakeSource())("POST", f"{provider.url}/upload", **options) == 200
    assert [request.body for request in provider.received] == bodies


@both
def test_a_form_with_a_file_is_sent_twice(provider: Provider, library: Callable[[FakeSource], Send]) -> None:
    provider.valid = {2}
    file = io.BytesIO(b"contents")
    assert library(FakeSource())("POST", f"{provider.url}/upload", files={"file": file}) == 200
    assert [b"contents" in request.body for request in provider.received] == [True, True]


def test_requests_sends_a_file_again_from_where_it_began(provider: Provider) -> None:
    provider.valid = {2}
    file = io.BytesIO(b"skipped|contents")
    file.seek(8)
    assert _requests(FakeSource())("POST", f"{provider.url}/upload", content=file) == 200
    assert [request.body for request in provider.received] == [b"contents", b"contents"]


@both
@pytest.mark.parametrize(
    "body",
    [_parts, lambda: _Unseekable(b"onetwo"), lambda: iter([b"one", b"two"])],
    ids=["generator", "pipe", "iterator"],
)
def test_a_body_that_cannot_be_sent_twice_is_not(
    provider: Provider, library: Callable[[FakeSource], Send], body: Callable[[], Any]
) -> None:
    provider.valid = {2}
    source = FakeSource()
    send = library(source)
    assert send("POST", f"{provider.url}/upload", content=body()) == 401
    assert [request.body for request in provider.received] == [b"onetwo"]
    assert source.renewals == 1
    assert send("POST", f"{provider.url}/upload", content=body()) == 200  # with the renewed credentials
    assert provider.secrets == [[1], [2]]


async def test_an_async_body_that_cannot_be_sent_twice_is_not(provider: Provider) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"

    provider.valid = {2}
    for auth in (httpx_adapter.AsyncAccountAuth(AsyncFakeSource()), httpx_adapter.AccountAuth(FakeSource())):
        provider.received.clear()
        async with httpx.AsyncClient(auth=auth, trust_env=False) as client:
            assert (await client.post(provider.url, content=parts())).status_code == 401
            assert (await client.post(provider.url, content=b"one")).status_code == 200
        assert provider.secrets == [[1], [2]]


@both
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_to_another_host_gets_no_credentials(
    provider: Provider, other: Provider, library: Callable[[FakeSource], Send], scheme: Scheme, status: int
) -> None:
    provider.redirects["/thing"] = (status, f"{other.url}/thing")
    source = FakeSource(scheme)
    assert library(source)("POST", f"{provider.url}/thing", content=b"one") == 401
    assert other.secrets == [[]]
    assert source.renewals == 0  # the response of the other host says nothing about the credentials
    assert len(provider.received) == 1


@both
def test_negative_control_a_plain_header_follows_a_redirect_to_another_host(
    provider: Provider, other: Provider, library: Callable[[FakeSource | None], Send]
) -> None:
    provider.redirects["/thing"] = (307, f"{other.url}/thing")
    headers = {"X-Api-Key": "s3cret-g1"}
    assert library(None)("POST", f"{provider.url}/thing", content=b"one", headers=headers) == 200
    assert other.secrets == [[1]]


@both
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_redirect_on_the_same_host_has_the_credentials(
    provider: Provider, library: Callable[[FakeSource], Send], scheme: Scheme
) -> None:
    provider.redirects["/old"] = (308, "/new?page=2")
    source = FakeSource(scheme)
    assert library(source)("POST", f"{provider.url}/old?page=1", content=b"one") == 200
    assert provider.received[-1].path.startswith("/new?page=2")
    assert provider.received[-1].body == b"one"
    assert source.renewals == 0


@both
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_was_posted_is_not_posted_again_if_the_target_of_a_redirect_rejects_the_credentials(
    provider: Provider, library: Callable[[FakeSource], Send], scheme: Scheme
) -> None:
    provider.redirects["/orders"] = (303, "/orders/1")
    provider.valid_for["/orders/1"] = {2}
    source = FakeSource(scheme)
    assert library(source)("POST", f"{provider.url}/orders", content=b"one") == 200
    assert [request.method for request in provider.received].count("POST") == 1
    assert provider.received[-1].secrets == {2}
    assert source.renewals == 1


@both
def test_other_parameters_of_a_query_stay_as_they_are(
    provider: Provider, library: Callable[[FakeSource], Send]
) -> None:
    provider.valid = {2}
    query = "q=a%2Fb+c&empty=&api_key=of-the-caller&q=%C3%A4"
    assert library(FakeSource("query"))("GET", f"{provider.url}/thing?{query}") == 200
    assert [request.path for request in provider.received] == [
        f"/thing?q=a%2Fb+c&empty=&q=%C3%A4&api_key=s3cret-g{generation}" for generation in (1, 2)
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("is_adapted", [True, False], ids=["", "negative control"])
def test_httpx_a_redirect_to_https_is_one_to_another_origin(scheme: Scheme, is_adapted: bool) -> None:
    """httpx itself keeps the header of a redirect to https on the same host."""
    received = []

    def respond(request: httpx.Request) -> httpx.Response:
        received.append("s3cret" in f"{request.url} {request.headers.raw}")
        is_first = request.url.scheme == "http"
        return httpx.Response(302, headers={"Location": "https://api.example/"}) if is_first else httpx.Response(401)

    source = FakeSource(scheme)
    auth = httpx_adapter.AccountAuth(source) if is_adapted else None
    headers = {} if is_adapted else dict(source.credentials().headers)
    transport = httpx.MockTransport(respond)
    with httpx.Client(auth=auth, headers=headers, transport=transport, follow_redirects=True) as client:
        client.get("http://api.example/")
    assert received == ([True, False] if is_adapted else [scheme != "query"] * 2)
    assert source.renewals == 0


def test_google_and_azure_keep_the_token_from_another_host(provider: Provider, other: Provider) -> None:
    provider.redirects["/thing"] = (302, f"{other.url}/thing")
    AuthorizedSession(google_adapter.AccountCredentials(FakeSource())).get(f"{provider.url}/thing")
    policy = azure_adapter.RenewingTokenPolicy(azure_adapter.AccountCredential(FakeSource()), "scope")
    client: PipelineClient[Any, Any] = PipelineClient(provider.url, policies=[policy])
    client.send_request(HttpRequest("GET", f"{provider.url}/thing"), enforce_https=False)
    service = build(
        "calendar",
        "v3",
        credentials=google_adapter.AccountCredentials(FakeSource()),
        client_options={"api_endpoint": provider.url},
    )
    provider.redirects["/users/me/calendarList"] = (302, f"{other.url}/thing")
    with service, pytest.raises(Exception, match="401"):
        service.calendarList().list().execute()
    assert {tuple(secrets) for secrets in other.secrets} == {()}


def test_slack_and_stripe_keep_the_token_from_another_host(provider: Provider, other: Provider) -> None:
    provider.redirects["/slack/auth.test"] = (302, f"{other.url}/slack/auth.test")
    with pytest.raises(SlackApiError):
        slack.client(FakeSource(), base_url=f"{provider.url}/slack/").auth_test()
    provider.redirects["/v1/balance"] = (302, f"{other.url}/v1/balance")
    with pytest.raises(Exception, match="rejected"):
        stripe.client(FakeSource(), base_addresses={"api": provider.url}).v1.balance.retrieve()
    assert {tuple(secrets) for secrets in other.secrets} == {()}


def test_azure_sends_no_stream_twice(provider: Provider) -> None:
    provider.valid = {2}
    source = FakeSource()
    policy = azure_adapter.RenewingTokenPolicy(azure_adapter.AccountCredential(source), "scope")
    client: PipelineClient[Any, Any] = PipelineClient(provider.url, policies=[policy])

    def send(content: Any) -> int:
        request = HttpRequest("POST", f"{provider.url}/thing", content=content)
        return int(client.send_request(request, enforce_https=False).status_code)

    assert send(_parts()) == 401
    provider.valid = {3}
    assert send(io.BytesIO(b"contents")) == 200
    assert [request.body for request in provider.received] == [b"onetwo", b"contents", b"contents"]
    assert source.renewals == 2


def test_slack_sends_a_file_twice_and_a_stream_not(provider: Provider) -> None:
    provider.valid = {2}
    source = FakeSource()
    client = slack.client(source, base_url=f"{provider.url}/slack/")
    assert client.api_call("files.upload", files={"file": io.BytesIO(b"contents")})["ok"]
    assert [b"contents" in request.body for request in provider.received] == [True, True]
    provider.valid = {3}
    with pytest.raises(SlackApiError):
        client.api_call("files.upload", files={"file": _Unseekable(b"contents")})
    assert len(provider.received) == 3
    assert client.auth_test()["ok"]
    assert source.renewals == 2
