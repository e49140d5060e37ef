"""The REST API of the requirements, through a real Envoy with the configuration of `deploy/envoy/`.

Each request is as the requirements have it: paths, bodies and queries are theirs, with a user's bearer token.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from playwright.async_api import async_playwright

from integration_server.dev import replace_google_calendar
from integration_server.sandbox.browser_user import decide
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.authenticated_system import CredentialIssuer
from tests.end_to_end.rest_user import API, RestUser, connect_body, make_nine_requests, of_page
from tests.end_to_end.system import APP_CALLBACK, RETURN_URL, System, query_of, run_system
from tests.end_to_end.test_pages_in_a_browser import CHROMIUM
from tests.envoy import SKIP_REASON, Envoy, find_envoy, run_envoy
from tests.integration.providers.socket_servers import server_tls
from tests.loopback import accepting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_envoy() is None, reason=SKIP_REASON),
]

# Reasons of Envoy's own errors, without what follows them.
TRANSCODING = "grpc_json_transcode_failure"
EARLY_TRANSCODING = "early_grpc_json_transcode_failure"
EVIL = "https://evil.example/"
CONNECT = connect_body()


@dataclass(frozen=True, slots=True)
class Gateway(RestUser):
    """A user, the servers and Envoy."""

    system: System = field(kw_only=True)
    envoy: Envoy = field(kw_only=True)


@asynccontextmanager
async def run_gateway(database_url: str, directory: Path, **settings: str) -> AsyncIterator[Gateway]:
    """A server that authenticates users, and Envoy in front of it."""
    issuer = CredentialIssuer(directory)
    environment: dict[str, Any] = {
        **issuer.token_settings,
        "HEALTH_ALLOW_UNAUTHENTICATED": "true",
        "TRUSTED_PROXIES": "127.0.0.1",
        "SKIP_CONFIRMATION": "true",
        **settings,
    }
    async with (
        run_system(database_url, extra_providers=[replace_google_calendar], **environment) as system,
        run_envoy(directory, [system.grpc_address], [system.sidecar_url.removeprefix("http://")]) as envoy,
        httpx.AsyncClient(base_url=envoy.url, trust_env=False, timeout=60) as client,
    ):
        yield Gateway(
            client,
            system.browser,
            lambda user_id: issuer.users.token(user_id, system.clock()),
            system=system,
            envoy=envoy,
        )


@pytest.fixture
async def gateway(database_url: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway on each database."""
    async with run_gateway(database_url, tmp_path) as running:
        yield running


async def test_the_nine_requests_of_the_requirements(gateway: Gateway) -> None:
    await make_nine_requests(gateway)


@pytest.mark.parametrize("named", ["google_calendar", "null", "undefined", ""])
async def test_the_pages_fetch_without_a_token(named: str, sqlite_url: str, tmp_path: Path) -> None:
    """JavaScript writes null for a parameter that the provider's redirect does not have, as it never has the type."""
    async with run_gateway(sqlite_url, tmp_path) as gateway:
        query = await gateway.authorize()
        response = await gateway.client.get(f"{API}/callback", params=of_page(query, named))
        assert (response.status_code, response.json()["success"]) == (200, True)


async def test_without_skip_confirmation_the_page_gets_a_confirmation_token(sqlite_url: str, tmp_path: Path) -> None:
    async with run_gateway(sqlite_url, tmp_path, SKIP_CONFIRMATION="false") as gateway:
        query = await gateway.authorize()
        held = (await gateway.client.get(f"{API}/callback", params=of_page(query, "null"))).json()
        assert (held["success"], held["reason"]) == (False, "confirmation_required")
        body = {"confirmation_token": held["confirmation_token"]}
        stranger = await gateway.request("POST", "/confirm", "mallory", json=body)
        assert stranger.status_code in {403, 404, 400}
        confirmed = await gateway.request("POST", "/confirm", json=body)
        assert confirmed.json()["success"] is True


async def test_with_a_bearer_token_the_callback_is_of_its_user(sqlite_url: str, tmp_path: Path) -> None:
    async with run_gateway(sqlite_url, tmp_path, SKIP_CONFIRMATION="false") as gateway:
        query = await gateway.authorize()
        stranger = await gateway.request("GET", "/callback", "mallory", params=of_page(query))
        assert stranger.status_code == 403
        assert reason(stranger) == "USER_MISMATCH"
        query = await gateway.authorize()
        own = await gateway.request("GET", "/callback", params=of_page(query, "null"))
        assert (own.status_code, own.json()["success"]) == (200, True)  # no confirmation: the user is known


async def test_a_direct_redirect_of_the_browser(sqlite_url: str, tmp_path: Path) -> None:
    async with run_gateway(sqlite_url, tmp_path) as gateway:
        connected = await gateway.request("POST", "/connect", json={**CONNECT, "return_url": RETURN_URL})
        url = connected.json()["authorization_url"]
        query = query_of(await decide(gateway.system.browser, url, account="ada", allow=True))
        response = await gateway.client.get(f"{API}/callback", params=query, headers={"Accept": "text/html"})
        assert response.status_code == 303
        assert response.headers["location"].startswith(RETURN_URL)


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "found"),
    [
        ("GET", "/4711", {}, 404, "INTEGRATION_NOT_FOUND"),
        ("POST", "/connect", {"json": {"integration_type": "nowhere"}}, 400, "UNKNOWN_INTEGRATION_TYPE"),
        ("POST", "/connect", {"json": {}}, 400, "INVALID_FIELD"),
        (
            "POST",
            "/connect",
            {"json": {**CONNECT, "redirect_uri": "https://evil.example/"}},
            400,
            "REDIRECT_URI_NOT_ALLOWED",
        ),
        ("POST", "/connect", {"content": b"{nonsense"}, 400, TRANSCODING),
        ("POST", "/connect", {"json": {"scopes": {"no": "list"}}}, 400, TRANSCODING),
        ("POST", "/connect", {"content": b'{"name": "' + b"x" * 300_000 + b'"}'}, 413, TRANSCODING),
        ("GET", "/no-number", {}, 400, EARLY_TRANSCODING),
        ("PATCH", "/1", {}, 404, EARLY_TRANSCODING),
        ("OPTIONS", "/connect", {}, 404, EARLY_TRANSCODING),
        ("GET", "//1", {}, 404, EARLY_TRANSCODING),
        ("GET", "/1%2Fhealth", {}, 400, "path_normalization_failed"),
        ("POST", "/connect", {"content": b"null"}, 400, TRANSCODING),
        ("POST", "/connect", {"content": b"[]"}, 400, TRANSCODING),
        ("POST", "/connect", {"data": {"integration_type": "google_calendar"}}, 400, TRANSCODING),
        ("GET", "/1", {"extra_headers": {"x-big": "x" * 70_000}}, 431, "http1.headers_too_large"),
        ("GET", "/1", {"extra_headers": {"x_y": "1"}}, 400, "http1.unexpected_underscore"),
        ("GET", "/1", {"extra_headers": {"connection": "upgrade", "upgrade": "websocket"}}, 403, "upgrade_failed"),
        ("PUT", "/1", {"json": {"integration_id": 2, "name": "x"}}, 400, TRANSCODING),
        ("POST", "/1/refresh-token", {"json": {"integration_id": "2"}}, 400, TRANSCODING),
    ],
)
async def test_errors_are_json(method: str, path: str, options: Any, status: int, found: str, shared: Gateway) -> None:
    """Those of the servers with their reason and fields, and those of Envoy, in the same form."""
    headers = {**shared.bearer(), **options.pop("extra_headers", {})}
    response = await shared.client.request(method, f"{API}{path}", headers=headers, **options)
    assert_error(response, status, found)


async def test_http_1_0_is_refused_in_json(shared: Gateway) -> None:
    """httpx speaks no HTTP/1.0."""
    address = shared.envoy.url.removeprefix("http://")
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {API}/status HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
    raw = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b" 426 " in head.splitlines()[0]
    assert json.loads(body)["details"][0]["reason"] == "low_version"


def assert_error(response: httpx.Response, status: int, found: str) -> None:
    """Assert that this is an error in JSON with the reason."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert set(response.json()) == {"code", "message", "details"}
    assert response.json()["message"]
    assert reason(response).startswith(found)


@pytest.fixture
async def shared(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway on SQLite."""
    async with run_gateway(sqlite_url, tmp_path) as running:
        yield running


def reason(response: httpx.Response) -> str:
    """The reason in an error's details."""
    return str(response.json()["details"][0]["reason"])


async def test_a_request_without_a_token_is_unauthenticated(shared: Gateway) -> None:
    for method, path in (("GET", "/status"), ("POST", "/connect"), ("DELETE", "/1")):
        response = await shared.client.request(method, f"{API}{path}", json={} if method == "POST" else None)
        assert (response.status_code, response.json()["code"]) == (401, 16)


async def test_grpc_passes_through_with_details_and_streams(shared: Gateway) -> None:
    metadata = (("authorization", f"Bearer {shared.token('ada')}"),)
    async with grpc.aio.insecure_channel(shared.envoy.url.removeprefix("http://")) as channel:
        service = IntegrationServiceStub(channel)
        request = pb.WatchIntegrationsRequest(user_id="ada")
        stream: Any = service.WatchIntegrations(request, metadata=metadata, timeout=60)
        assert (await stream.read()).cursor
        number = await shared.connect()
        event = await stream.read()
        while not event.HasField("event"):
            event = await stream.read()
        assert event.event.integration_id == int(number)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.GetIntegration(pb.GetIntegrationRequest(integration_id=4711), metadata=metadata, timeout=60)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert any(key == "grpc-status-details-bin" for key, _ in caught.value.trailing_metadata() or ())


async def test_an_error_of_envoy_has_a_text_for_grpc_clients(shared: Gateway) -> None:
    async with grpc.aio.insecure_channel(shared.envoy.url.removeprefix("http://")) as channel:
        call: Any = channel.unary_unary("/other.Service/Method")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=60)
    error = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "Envoy: NoRouteFound: ")


@pytest.mark.parametrize("shows_details", [False, True])
async def test_an_error_of_envoy_shows_nothing_of_the_servers(tmp_path: Path, *, shows_details: bool) -> None:
    """Envoy's details of a failed connection have the names in the server's certificate. Second: the negative control,
    which shows the details."""
    tls, certificate = server_tls(tmp_path, "internal.example")

    def change(config: dict[str, Any]) -> None:
        for cluster in config["static_resources"]["clusters"]:
            del cluster["health_checks"]  # between two of them, a server is believed to be well
        if shows_details:
            config.update(json.loads(json.dumps(config).replace("RESPONSE_FLAGS_LONG", "RESPONSE_CODE_DETAILS")))

    async def read(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        accepting(read, tls=tls) as port,
        run_envoy(tmp_path, [f"127.0.0.1:{port}"], [], authority=certificate, change=change) as envoy,
        httpx.AsyncClient(base_url=envoy.url, trust_env=False, timeout=60) as client,
        grpc.aio.insecure_channel(envoy.url.removeprefix("http://")) as channel,
    ):
        response = await client.get(f"{API}/status")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await IntegrationServiceStub(channel).ListIntegrations(pb.ListIntegrationsRequest(), timeout=60)
    assert (response.status_code, response.json()["code"], caught.value.code()) == (
        503,
        14,
        grpc.StatusCode.UNAVAILABLE,
    )
    for text in (reason(response), str(caught.value.details())):
        assert ("internal.example" in text) is shows_details
        assert ("UpstreamConnectionFailure" in text) is not shows_details


PAGE = """<!doctype html><title>Callback</title><script>
const urlParams = new URLSearchParams(window.location.search);
const code = urlParams.get('code');
const state = urlParams.get('state');
const integration_type = urlParams.get('integration_type');
fetch(`/api/v1/integrations/callback?code=${code}&state=${state}&integration_type=${integration_type}`)
  .then(response => response.json())
  .then(({success, integration_id}) => {
    if (success) window.location.href = `/integrations/${integration_id}/success`;
  });
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium")
async def test_the_page_of_the_requirements_in_a_browser(sqlite_url: str, tmp_path: Path) -> None:
    """The page's own script: connect with fetch, the provider's page, the callback page, and where it continues."""
    async with run_gateway(sqlite_url, tmp_path) as gateway, async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=120_000)
        try:
            page = await browser.new_page()

            async def serve(route: Any) -> None:
                await route.fulfill(body=PAGE, content_type="text/html")

            # The application's own pages, which the requirements have at the origin of the API.
            await page.route(f"{gateway.envoy.url}/app", serve)
            await page.route(f"{gateway.envoy.url}/integrations/**", serve)
            await page.goto(f"{gateway.envoy.url}/app")
            authorization_url = await page.evaluate(
                """async ([token, body]) => {
                    const response = await fetch('/api/v1/integrations/connect', {
                        method: 'POST',
                        headers: {'Content-Type': 'application/json', 'Authorization': `Bearer ${token}`},
                        body: JSON.stringify(body),
                    });
                    return (await response.json()).authorization_url;
                }""",
                [gateway.token("ada"), CONNECT],
            )
            location = await decide(gateway.system.browser, authorization_url, account="ada", allow=True)
            await page.goto(location.replace(APP_CALLBACK, f"{gateway.envoy.url}/integrations/callback"))
            await page.wait_for_url("**/integrations/*/success", timeout=60_000)
        finally:
            await browser.close()
