"""The callback's pages in a real browser, with hostile values in every input: nothing runs, loads or leaks.

The negative controls insert the same values without escaping, or remove the policy, and the browser runs them.
"""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import pytest_asyncio
import uvicorn
from playwright.async_api import Browser, Page, async_playwright
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from integration_server.domain.peers import TrustedProxies
from integration_server.sandbox.model import Account
from integration_server.sandbox.state import Sandbox
from integration_server.sidecar.app import create_app
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.middleware import AnonymousLimits
from integrations.v1 import integration_service_pb2 as pb
from tests.attack_inputs import HOSTILE_TEXTS
from tests.end_to_end.system import PUBLIC_URL, System, query_of, run_system
from tests.fakes.limits import LIMITS
from tests.unit.sidecar.fakes import FakeServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,  # each page is a process; the tests of the sidecar's pages are quick
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium here; on Debian: apt-get install --no-install-recommends chromium"
    ),
]

PARAMETERS = ("error", "error_description", "state", "iss", "code", "integration_type", "return_url", "x")
CALLBACK = "/api/v1/integrations/callback/sandbox"
SECRET_QUERY = {"code": "the-code", "state": "the-state"}


@dataclass
class ObservedPage:
    """A page of the browser, with its requests, console messages and dialogs."""

    page: Page
    requests: list[str] = field(default_factory=list)
    referrers: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    async def go(self, url: str) -> Any:
        """Open a URL, and wait until scripts have run."""
        response = await self.page.goto(url, wait_until="load")
        await self.page.wait_for_timeout(50)
        return response


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A headless browser, with one process for all pages. Chromium's sandbox does not work for root."""
    arguments = ["--disable-site-isolation-trials", "--renderer-process-limit=1"]
    if os.getuid() == 0:
        arguments.append("--no-sandbox")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=120_000)
        yield browser
        await browser.close()


@asynccontextmanager
async def observe_page(browser: Browser, **options: Any) -> AsyncIterator[ObservedPage]:
    """A new page without history or cookies."""
    context = await browser.new_context(**options)
    page = await context.new_page()
    observed_page = ObservedPage(page)

    async def dismiss(dialog: Any) -> None:
        observed_page.dialogs.append(dialog.message)
        await dialog.dismiss()

    def record_console(request: Any) -> None:
        observed_page.requests.append(request.url)
        observed_page.referrers.append(request.headers.get("referer", ""))

    page.on("dialog", dismiss)
    page.on("console", lambda message: observed_page.console.append(message.text))
    page.on("request", record_console)
    try:
        yield observed_page
    finally:
        await context.close()


@asynccontextmanager
async def serve_app(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an app on loopback; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn sets no event
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


HOSTILE_ACCOUNT = Account("ada", HOSTILE_TEXTS[0], HOSTILE_TEXTS[1])


@asynccontextmanager
async def hostile_system(database_url: str) -> AsyncIterator[System]:
    """A server with a provider whose account has a hostile name; its return URL is a page of this test."""
    sandbox = Sandbox(accounts=[HOSTILE_ACCOUNT])
    async with run_system(database_url, sandbox=sandbox) as system:
        yield system


def assert_quiet(observed_page: ObservedPage, url: str) -> None:
    """Assert that the browser requested only the page, and that no script ran."""
    assert observed_page.dialogs == []
    assert observed_page.console == []
    assert [asked.partition("?")[0] for asked in observed_page.requests] == [url.partition("?")[0]]


# --- hostile values ------------------------------------------------------------------------------------------------


async def test_nothing_of_a_callback_is_executed_or_shown(browser: Browser, sqlite_url: str) -> None:
    async with hostile_system(sqlite_url) as system, observe_page(browser) as observed_page:
        await observed_page.go(f"{system.sidecar_url}{CALLBACK}?code=c&state=s")
        harmless = await observed_page.page.content()
        for text in HOSTILE_TEXTS:
            observed_page.requests.clear()
            url = f"{system.sidecar_url}{CALLBACK}?{urlencode(dict.fromkeys(PARAMETERS, text))}"
            response = await observed_page.go(url)
            assert response.status == 400, text
            assert await observed_page.page.content() == harmless, text
            # The browser's console reports the 400 and nothing else.
            observed_page.console[:] = [line for line in observed_page.console if "status of 400" not in line]
            assert_quiet(observed_page, url)


async def test_hostile_paths_are_not_shown(browser: Browser, sqlite_url: str) -> None:
    async with hostile_system(sqlite_url) as system, observe_page(browser) as observed_page:
        for text in HOSTILE_TEXTS[:5]:
            observed_page.requests.clear()
            url = f"{system.sidecar_url}/{quote(text, safe='')}"
            await observed_page.go(url)
            assert await observed_page.page.title() == "Page not found"
            assert await observed_page.page.locator("script, iframe, img, base").count() == 0
            observed_page.console[:] = [line for line in observed_page.console if "status of 404" not in line]
            assert_quiet(observed_page, url)


async def test_hostile_account_names_are_shown_as_text_and_integration_names_not(
    browser: Browser, sqlite_url: str
) -> None:
    async with hostile_system(sqlite_url) as system, observe_page(browser) as observed_page:
        for name in HOSTILE_TEXTS[:4]:
            observed_page.requests.clear()
            connect_response = await system.begin(name=name)
            location = await system.decide(connect_response, account="ada")
            url = system.sidecar_url + location.removeprefix(PUBLIC_URL)
            response = await observed_page.go(url)
            assert response.status == 200
            assert await observed_page.page.title() == "Connected"
            shown = await observed_page.page.locator("p").first.inner_text()
            assert shown == f"Your Sandbox account {HOSTILE_TEXTS[0]} is connected."
            assert await observed_page.page.locator("main :not(svg, svg *, h1, p, bdi)").count() == 0
            assert_quiet(observed_page, url)
        listed = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"))
        assert [row.account_label for row in listed.integrations] == [HOSTILE_TEXTS[0]]  # the request arrived


async def test_a_hostile_provider_error_is_shown_as_a_fixed_text(browser: Browser, sqlite_url: str) -> None:
    async with hostile_system(sqlite_url) as system, observe_page(browser) as observed_page:
        for text in HOSTILE_TEXTS[:4]:
            observed_page.requests.clear()
            connect_response = await system.begin()
            iss = query_of(await system.decide(connect_response, allow=False))["iss"]
            query = {"error": text, "error_description": text, "state": connect_response.state, "iss": iss}
            url = f"{system.sidecar_url}{CALLBACK}?{urlencode(query)}"
            await observed_page.go(url)
            assert await observed_page.page.title() == "Not connected"
            assert_quiet(observed_page, url)


async def test_a_return_url_receives_the_outcome_without_code_or_referrer(browser: Browser, sqlite_url: str) -> None:
    """The app's page reads the referrer and the history."""
    seen: list[Request] = []

    async def app_page(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope))
        page = "<script>console.log('from:' + document.referrer)</script><img src=/pixel>"
        await HTMLResponse(page)(scope, receive, send)

    async with (
        serve_app(app_page) as app_url,
        run_system(sqlite_url, ALLOWED_RETURN_URLS=f"{app_url}/done?tab=all") as system,
        observe_page(browser) as observed_page,
    ):
        connect_response = await system.begin(return_url=f"{app_url}/done?tab=all")
        location = await system.decide(connect_response, account="ada")
        code = query_of(location)["code"]
        await observed_page.go(system.sidecar_url + location.removeprefix(PUBLIC_URL))
        assert observed_page.page.url.startswith(f"{app_url}/done?tab=all&success=true")
        assert observed_page.console == ["from:"]
        for request in seen[:1]:
            assert "referer" not in request.headers
        for said in (*(str(request.url) for request in seen), *observed_page.referrers[1:], observed_page.page.url):
            assert code not in said
            assert connect_response.state not in said


# --- the policy ----------------------------------------------------------------------------------------------------


INJECTED = {
    "script": "<script>document.title = 'it ran'; fetch('/ran/script')</script>",
    "handler": "<img src=data:, onerror=\"fetch('/ran/handler')\">",
    "script from elsewhere": "<script src=/ran/script-from-elsewhere></script>",
    "style": "<style>h1 { background: url(/ran/style) }</style>",
    "image": "<img src=/ran/image>",
    "frame": "<iframe src=/ran/frame></iframe>",
    "object": "<object data=/ran/object></object>",
    "stylesheet": "<link rel=stylesheet href=/ran/stylesheet>",
    "base": "<base href=/ran/><img src=base>",
}
FORM = "<form action=/ran/form><button>x</button></form>"
LINK = "<a href=/ran/link>x</a>"
POLICY, REFERRER, CACHE = "content-security-policy", "referrer-policy", "cache-control"


class ModifiedApp:
    """The sidecar's app with injected markup in each page and without some headers; it records requests."""

    def __init__(self, injected: str = "", *, without: str = "") -> None:
        self._app = FakeServer().app()
        self._injected = injected.encode()
        self._without = without.encode()
        self.arrived: list[Request] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with the modified page."""
        self.arrived.append(Request(scope))

        async def modify(message: Message) -> None:
            if message["type"] == "http.response.start":
                gone = {self._without, b"content-length"}
                message["headers"] = [(name, value) for name, value in message["headers"] if name not in gone]
                if self._without == CACHE.encode():
                    message["headers"].append((b"cache-control", b"max-age=600"))
            elif message["type"] == "http.response.body":
                message["body"] = message["body"].replace(b"</h1>", b"</h1>" + self._injected)
            await send(message)

        await self._app(scope, receive, modify)

    @property
    def executed_elements(self) -> set[str]:
        """The injected elements that caused a request."""
        paths = (request.url.path for request in self.arrived)
        return {path.removeprefix("/ran/").replace("-", " ") for path in paths if path.startswith("/ran/")}

    async def wait_for_elements(self, elements: set[str]) -> None:
        """Wait until these injected elements have caused a request."""
        async with asyncio.timeout(60):
            while not elements <= self.executed_elements:  # noqa: ASYNC110  # the app sets no event
                await asyncio.sleep(0.02)


@asynccontextmanager
async def open_callback_page(browser: Browser, app: ModifiedApp, **options: Any) -> AsyncIterator[ObservedPage]:
    """Open the callback's page of a modified app."""
    async with serve_app(app) as url, observe_page(browser, **options) as observed_page:
        await observed_page.go(f"{url}{CALLBACK}?{urlencode(SECRET_QUERY)}")
        yield observed_page


async def test_injected_markup_is_blocked_by_the_content_security_policy(browser: Browser) -> None:
    app = ModifiedApp("".join(INJECTED.values()))
    async with open_callback_page(browser, app) as observed_page:
        assert "/ran/script" in await observed_page.page.content()
        assert await observed_page.page.title() == "Connected"
        assert app.executed_elements == set()
        assert any("Content Security Policy" in line for line in observed_page.console)


@pytest.mark.parametrize("kind", INJECTED)
async def test_negative_control_without_the_policy_injected_markup_runs(browser: Browser, kind: str) -> None:
    app = ModifiedApp(INJECTED[kind], without=POLICY)
    async with open_callback_page(browser, app):
        await app.wait_for_elements({kind})
        assert kind in app.executed_elements


@pytest.mark.parametrize(("without", "executed_elements"), [("", set()), (POLICY, {"form"})], ids=["with", "without"])
async def test_a_form_is_not_submitted_under_the_policy(
    browser: Browser, without: str, executed_elements: set[str]
) -> None:
    app = ModifiedApp(FORM, without=without)
    async with open_callback_page(browser, app) as observed_page:
        await observed_page.page.click("button", no_wait_after=True)
        await app.wait_for_elements(executed_elements)
        await observed_page.page.wait_for_timeout(500)
        assert app.executed_elements == executed_elements


@pytest.mark.parametrize(("without", "shown"), [("", False), (POLICY, True)], ids=["with", "without"])
async def test_a_page_is_not_framed_under_the_policy(browser: Browser, without: str, shown: bool) -> None:
    async with serve_app(ModifiedApp(without=without)) as url:

        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            await HTMLResponse(f"<iframe src='{url}{CALLBACK}?code=c&amp;state=s'></iframe>")(scope, receive, send)

        async with serve_app(outer) as outer_url, observe_page(browser) as observed_page:
            await observed_page.go(outer_url)
            assert ("<h1>Connected</h1>" in await observed_page.page.frames[1].content()) is shown


@pytest.mark.parametrize(("without", "reported"), [("", False), (REFERRER, True)], ids=["with", "without"])
async def test_a_followed_link_sends_no_referrer(browser: Browser, without: str, reported: bool) -> None:
    """Within an origin, where browsers send the full referrer by default."""
    app = ModifiedApp(LINK, without=without)
    async with open_callback_page(browser, app) as observed_page:
        await observed_page.page.click("a")
        await observed_page.page.wait_for_url("**/ran/link")
    (request,) = (request for request in app.arrived if request.url.path == "/ran/link")
    assert ("the-code" in request.headers.get("referer", "")) is reported
    assert ("referer" in request.headers) is reported


@pytest.mark.parametrize(("without", "times"), [("", 2), (CACHE, 1)], ids=["with", "without"])
async def test_a_page_is_not_cached(browser: Browser, without: str, times: int) -> None:
    app = ModifiedApp(without=without)
    async with open_callback_page(browser, app) as observed_page:
        await observed_page.go("about:blank")
        await observed_page.page.go_back()
        await observed_page.page.wait_for_timeout(50)
    assert [request.url.path for request in app.arrived].count(CALLBACK) == times


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "dark")])
async def test_the_style_applies_and_the_page_fits_the_window(browser: Browser, width: int, scheme: str) -> None:
    options: dict[str, Any] = {"viewport": {"width": width, "height": 640}, "color_scheme": scheme}
    async with open_callback_page(browser, ModifiedApp(), **options) as observed_page:
        assert await observed_page.page.evaluate("getComputedStyle(document.body).display") == "grid"
        assert await observed_page.page.evaluate("document.documentElement.scrollWidth") <= width
        assert observed_page.console == []


# --- speculative requests ------------------------------------------------------------------------------------------

_RULES = '<script type="speculationrules">{"KIND": [{"urls": ["LINK"], "eagerness": "immediate"}]}</script>'
SPECULATIONS = {
    "prerender": _RULES.replace("KIND", "prerender"),
    "prefetch": _RULES.replace("KIND", "prefetch"),
    "link": '<link rel="prefetch" href="LINK">',
}


@dataclass
class LinkPage:
    """A page with a link to the callback, and the sidecar's app, at one origin: browsers prerender no other."""

    sidecar: ASGIApp
    link: str
    html: str
    speculative: int = 0
    navigations: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the page, or the sidecar's response."""
        if scope["path"] == "/":
            page = f"{self.html}<a href='LINK'>Continue</a>".replace("LINK", self.link)
            await HTMLResponse(page)(scope, receive, send)
            return
        if scope["path"] == CALLBACK:
            is_speculative = "sec-purpose" in Headers(scope=scope)
            self.speculative += is_speculative
            self.navigations += not is_speculative
        await self.sidecar(scope, receive, send)

    async def wait_for_speculation(self) -> None:
        """Wait until the browser has requested the link by itself, and used the response."""
        async with asyncio.timeout(60):
            while not self.speculative:  # noqa: ASYNC110  # the app sets no event
                await asyncio.sleep(0.02)


@asynccontextmanager
async def open_link_page(
    browser: Browser, system: System, kind: str, *, refuse_speculative: bool = True
) -> AsyncIterator[tuple[LinkPage, ObservedPage, pb.ConnectResponse]]:
    """Open a page that makes the browser fetch the callback's link of a new attempt before anybody clicks on it."""
    connect_response = await system.begin()
    link = (await system.decide(connect_response, account="ada")).removeprefix(PUBLIC_URL)
    limits = replace(LIMITS, refuse_speculative=refuse_speculative)
    client = ServerClient(system.grpc_address)
    sidecar = create_app(client, limits, PUBLIC_URL, AnonymousLimits(limits, TrustedProxies(())))
    app = LinkPage(sidecar, link, SPECULATIONS[kind])
    try:
        async with serve_app(app) as url, observe_page(browser) as observed_page:
            await observed_page.go(url)
            await app.wait_for_speculation()
            yield app, observed_page, connect_response
    finally:
        await client.aclose()


async def is_connected(system: System, connect_response: pb.ConnectResponse) -> bool:
    request = pb.GetIntegrationRequest(integration_id=connect_response.integration_id, user_id="ada")
    return (await system.service.GetIntegration(request)).integration.is_connected


@pytest.mark.parametrize("kind", ["prerender", "link", pytest.param("prefetch", marks=pytest.mark.slow)])
async def test_a_link_that_the_browser_fetches_by_itself_connects_once_and_only_when_it_is_opened(
    browser: Browser, sqlite_url: str, kind: str
) -> None:
    async with (
        run_system(sqlite_url) as system,
        open_link_page(browser, system, kind) as (app, observed_page, connect_response),
    ):
        assert not await is_connected(system, connect_response)
        assert not system.sandbox.token_calls
        await observed_page.page.click("a")
        await observed_page.page.wait_for_url(f"**{CALLBACK}*")
        assert await observed_page.page.title() == "Connected"
        shown = await observed_page.page.locator("p").first.inner_text()
        assert re.fullmatch("Your Sandbox account .+ is connected.", shown)
        assert [call.outcome for call in system.sandbox.token_calls] == ["ok"]
        assert await is_connected(system, connect_response)
        assert (app.speculative, app.navigations) == (1, 1)
        await observed_page.page.reload()
        assert await observed_page.page.title() == "Connected"
        assert len(system.sandbox.token_calls) == 1


@pytest.mark.parametrize("kind", ["prerender", "link", pytest.param("prefetch", marks=pytest.mark.slow)])
async def test_negative_control_without_the_refusal_the_browser_connects_by_itself(
    browser: Browser, sqlite_url: str, kind: str
) -> None:
    async with (
        run_system(sqlite_url) as system,
        open_link_page(browser, system, kind, refuse_speculative=False) as (_, _, connect_response),
        asyncio.timeout(60),
    ):
        while not await is_connected(system, connect_response):  # noqa: ASYNC110  # nobody has opened the link
            await asyncio.sleep(0.05)
        assert len(system.sandbox.token_calls) == 1
