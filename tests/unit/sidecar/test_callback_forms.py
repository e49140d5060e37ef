"""What browsers and providers really send to the callback: prefetches, forms, repeated and unusual parameters."""

from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import urlencode

import grpc
import httpx
import pytest

from integration_server.sidecar.app import CALLBACK_PATH
from integration_server.sidecar.callback import MAX_PARAMETERS, MAX_QUERY
from integrations.v1.integration_service_pb2 import HandleCallbackResponse
from tests.fakes.limits import LIMITS
from tests.unit.sidecar.fakes import FakeServer, rpc_error

CALLBACK = f"{CALLBACK_PATH}/stripe"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
DEFAULT_RETURN_URL = "https://app.example/home?from=callback"

SPECULATIVE = [
    {"Sec-Purpose": "prefetch"},
    {"Sec-Purpose": "prefetch;prerender"},
    {"Sec-Purpose": "prefetch; anonymous-client-ip"},
    {"Sec-Purpose": "prefetch;prerender;preview", "Purpose": "prefetch"},
    {"Purpose": "prefetch"},
    {"Purpose": "preview"},
    {"purpose": "Prefetch"},
    {"X-Purpose": "preview"},
    {"X-Purpose": "instant"},
    {"X-Moz": "prefetch"},
    {"X-moz": "preload"},
    {"Moz-Purpose": "prefetch"},
    {"Sec-Fetch-Purpose": "prerender"},
]

NAVIGATIONS = [
    {},
    {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-User": "?1"},
    {"Sec-Purpose": ""},
    {"Referer": "https://provider.example/prefetch?purpose=preview"},
    {"X-Purposeful": "prefetch"},
    {"User-Agent": "prefetch"},
]


@pytest.fixture
async def default_client(server: FakeServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a sidecar with a default return URL."""
    transport = httpx.ASGITransport(server.app(default_return_url=DEFAULT_RETURN_URL))
    async with httpx.AsyncClient(transport=transport, base_url="https://sidecar.example") as client:
        yield client


# --- speculative requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", SPECULATIVE, ids=str)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_a_speculative_request_reaches_nothing_and_is_not_kept(
    client: httpx.AsyncClient, server: FakeServer, method: str, headers: dict[str, str]
) -> None:
    response = await client.request(method, f"{CALLBACK}?code=c&state=s", headers=headers | BROWSER)

    # Not 2xx and no redirect: the browser drops it, and requests the page again when the user opens it.
    assert response.status_code == (405 if method == "HEAD" else 503)
    assert "location" not in response.headers
    assert response.headers["cache-control"] == "no-store"
    assert "Sec-Purpose" in response.headers["vary"]
    assert server.callbacks == []


@pytest.mark.parametrize("headers", NAVIGATIONS, ids=str)
async def test_a_navigation_is_not_taken_for_a_speculative_request(
    client: httpx.AsyncClient, server: FakeServer, headers: dict[str, str]
) -> None:
    response = await client.get(f"{CALLBACK}?code=c&state=s", headers=headers | BROWSER)

    assert response.status_code == 200
    assert len(server.callbacks) == 1


async def test_speculative_requests_are_not_failures_of_their_sender(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    for _ in range(LIMITS.failure_burst + 10):
        await client.get(f"{CALLBACK}?code=c&state=s", headers={"Sec-Purpose": "prefetch"})
    assert (await client.get(f"{CALLBACK}?code=c&state=s")).status_code == 200
    assert len(server.callbacks) == 1


@pytest.mark.parametrize("headers", SPECULATIVE[:3], ids=str)
async def test_negative_control_without_the_refusal_a_prefetch_completes_the_callback(
    server: FakeServer, headers: dict[str, str]
) -> None:
    app = server.app(replace(LIMITS, refuse_speculative=False))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://x.example") as client:
        await client.get(f"{CALLBACK}?code=c&state=s", headers=headers)
    assert len(server.callbacks) == 1


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded; charset=UTF-8",
        "Application/X-WWW-Form-Urlencoded;charset=utf-8",
    ],
)
async def test_a_posted_form_is_an_authorization_response(
    client: httpx.AsyncClient, server: FakeServer, content_type: str
) -> None:
    user = '{"name":{"firstName":"Ada","lastName":"Łovelace"}}'
    form = urlencode({"state": "s-1", "code": "a+b/c%2F==", "user": user})

    response = await client.post(CALLBACK, content=form, headers={"Content-Type": content_type} | BROWSER)

    assert response.status_code == 200
    (callback,) = server.callbacks
    assert (callback.code, callback.state, callback.integration_type) == ("a+b/c%2F==", "s-1", "stripe")
    assert callback.query == form


async def test_a_browser_is_redirected_with_get_after_a_form(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.callback_response = HandleCallbackResponse(success=True, redirect_url="https://app.example/done")
    response = await client.post(CALLBACK, content="code=c&state=s", headers=FORM | BROWSER)
    assert (response.status_code, response.headers["location"]) == (303, "https://app.example/done")


async def test_query_and_form_are_one_set_of_parameters(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.post(f"{CALLBACK}?tenant=7&state=s", content="code=c&state=s", headers=FORM)
    (callback,) = server.callbacks
    assert (callback.code, callback.state, callback.query) == ("c", "s", "tenant=7&state=s&code=c&state=s")

    for query, form in (("code=1", "code=2&state=s"), ("state=", "code=1&state=s"), ("error=x", "error=y&state=s")):
        refused = await client.post(f"{CALLBACK}?{query}", content=form, headers=FORM)
        assert (refused.status_code, refused.json()["reason"]) == (400, "INVALID_FIELD")
    assert len(server.callbacks) == 1


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencodedx"],
)
async def test_another_body_is_refused_unread(client: httpx.AsyncClient, server: FakeServer, content_type: str) -> None:
    response = await client.post(CALLBACK, content="code=c&state=s", headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["reason"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert server.callbacks == []


async def test_a_form_is_read_up_to_its_limit(client: httpx.AsyncClient, server: FakeServer) -> None:
    longest = "state=s&code=c&id_token=".ljust(MAX_PARAMETERS - 1, "x")
    assert (await client.post(CALLBACK, content=longest, headers=FORM)).status_code == 200
    refused = await client.post(CALLBACK, content=longest + "x", headers=FORM)
    assert (refused.status_code, refused.json()["reason"]) == (413, "BODY_TOO_LARGE")
    query = "tenant=".ljust(MAX_QUERY, "7")
    refused = await client.post(f"{CALLBACK}?{query}", content=longest[:-MAX_QUERY] + "x", headers=FORM)
    assert refused.status_code == 413
    assert len(server.callbacks) == 1


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoded", "code"),
    [("a%2Bb", "a+b"), ("a%252Bb", "a%2Bb"), ("4%2F0A_x-y.z~", "4/0A_x-y.z~"), ("100%", "100%"), ("%C3%A9", "é")],
)
async def test_a_code_is_decoded_once(client: httpx.AsyncClient, server: FakeServer, encoded: str, code: str) -> None:
    await client.get(f"{CALLBACK}?code={encoded}&state=s")
    await client.post(CALLBACK, content=f"code={encoded}&state=s", headers=FORM)
    assert [callback.code for callback in server.callbacks] == [code, code]


@pytest.mark.parametrize("path", [CALLBACK_PATH, f"{CALLBACK_PATH}/"])
@pytest.mark.parametrize(
    "query", ["integration_type=&code=c&state=s", "code=c&state=s&integration_type", "code=c&state=s"]
)
async def test_an_empty_integration_type_is_none(
    client: httpx.AsyncClient, server: FakeServer, path: str, query: str
) -> None:
    assert (await client.get(f"{path}?{query}")).status_code == 200
    assert [(callback.code, callback.integration_type) for callback in server.callbacks] == [("c", "")]


@pytest.mark.parametrize("name", ["code", "state", "iss", "error", "error_description", "integration_type"])
async def test_a_parameter_that_is_repeated_with_the_same_value_has_that_value(
    client: httpx.AsyncClient, server: FakeServer, name: str
) -> None:
    await client.get(f"{CALLBACK_PATH}?{name}=same&x=1&{name}=same&{name}=s%61me")
    assert [getattr(callback, name) for callback in server.callbacks] == ["same"]


# --- where the browser continues -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_REJECTED"),
        (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE"),
        (grpc.StatusCode.UNAVAILABLE, "PROVIDER_MISCONFIGURED"),
        (grpc.StatusCode.FAILED_PRECONDITION, "STATE_EXPIRED"),
    ],
)
async def test_a_browser_returns_to_the_app_after_a_failure(
    default_client: httpx.AsyncClient, server: FakeServer, code: grpc.StatusCode, reason: str
) -> None:
    url = f"https://app.example/done?success=false&reason={reason}"
    metadata = {"redirect_url": url, "display_name": "Stripe"}
    server.callback_response = rpc_error(code, reason, metadata=metadata)

    browser = await default_client.get(f"{CALLBACK}?code=c&state=s", headers=BROWSER)
    program = await default_client.get(f"{CALLBACK}?code=c&state=s")

    assert (browser.status_code, browser.headers["location"]) == (303, url)
    assert program.status_code in (400, 503)
    assert (program.json()["reason"], program.json()["redirect_url"]) == (reason, url)


@pytest.mark.parametrize(
    ("query", "reason", "end"),
    [
        ("code=c&state=forged", "STATE_INVALID", ""),
        ("code=1&code=2&state=s", "INVALID_FIELD", ""),
        (f"code={'x' * MAX_QUERY}", "QUERY_TOO_LONG", ""),
        ("code=c", "STATE_INVALID", "#"),
        ("", "STATE_INVALID", "#"),
    ],
    ids=["forged", "repeated", "too-long", "no-state", "nothing"],
)
async def test_a_browser_without_a_known_attempt_continues_at_the_default_return_url(
    default_client: httpx.AsyncClient, client: httpx.AsyncClient, server: FakeServer, query: str, reason: str, end: str
) -> None:
    server.callback_response = rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "STATE_INVALID")

    response = await default_client.get(f"{CALLBACK}?{query}", headers=BROWSER)

    assert response.status_code == 303
    assert response.headers["location"] == f"{DEFAULT_RETURN_URL}&success=false&reason={reason}{end}"
    without = await client.get(f"{CALLBACK}?{query}", headers=BROWSER)
    assert without.status_code in (400, 414)
    assert "location" not in without.headers


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
        (grpc.StatusCode.UNAVAILABLE, ""),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ""),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    ],
)
async def test_a_browser_stays_where_a_reload_can_succeed(
    default_client: httpx.AsyncClient, server: FakeServer, code: grpc.StatusCode, reason: str
) -> None:
    server.callback_response = rpc_error(code, reason)
    response = await default_client.get(f"{CALLBACK}?code=c&state=s", headers=BROWSER)
    assert response.status_code in (429, 503, 504)
    assert "location" not in response.headers


@pytest.mark.parametrize("name", ["return_url", "redirect_url", "redirect_uri", "url", "RelayState", "next"])
async def test_no_parameter_decides_where_the_browser_continues(
    default_client: httpx.AsyncClient, server: FakeServer, name: str
) -> None:
    for callback_response in (
        rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "STATE_INVALID"),
        HandleCallbackResponse(success=True, redirect_url="https://app.example/done"),
    ):
        server.callback_response = callback_response
        query = urlencode({"code": "c", "state": "s", name: "https://evil.example/"})
        for response in (
            await default_client.get(f"{CALLBACK}?{query}", headers=BROWSER),
            await default_client.post(CALLBACK, content=query, headers=BROWSER | FORM),
        ):
            assert response.status_code == HTTPStatus.SEE_OTHER
            assert response.headers["location"].startswith("https://app.example/")


async def test_an_opened_callback_without_a_response_says_so(client: httpx.AsyncClient, server: FakeServer) -> None:
    """The provider has put its response into the fragment, which no server receives."""
    server.callback_response = rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "state is required")
    response = await client.get(CALLBACK, headers=BROWSER)
    assert response.status_code == 400
    assert "<h1>No response received</h1>" in response.text


async def test_pages_name_the_provider_and_the_account(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.callback_response = HandleCallbackResponse(
        success=True, display_name="Acme & Sons", account_label="<ada@acme.example>"
    )
    connected = await client.get(f"{CALLBACK}?code=c&state=s", headers=BROWSER)
    expected = "Your <bdi>Acme &amp; Sons</bdi> account <bdi>&lt;ada@acme.example&gt;</bdi> is connected."
    assert f"<p>{expected}</p>" in connected.text

    server.callback_response = rpc_error(
        grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_REJECTED", metadata={"display_name": "Acme"}
    )
    rejected = await client.get(f"{CALLBACK}?code=c&state=s", headers=BROWSER)
    assert "<p><bdi>Acme</bdi> did not accept the connection" in rejected.text
