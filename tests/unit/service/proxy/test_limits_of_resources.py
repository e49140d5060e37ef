"""Rate limits of a part of an API delay the calls of that part only."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderUnavailable, RateLimited
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, LimitScope, Quota, RateLimit
from integration_server.providers.base import BaseProvider
from integration_server.providers.built_in import built_in_class
from integration_server.service.proxy.rate_limiter import ProviderRateLimiter
from tests.fakes.system import FakeSystem
from tests.unit.providers.support import FakeTransport, build_provider, json_response

GitHubProvider = built_in_class("github")
GoogleCalendarProvider = built_in_class("google_calendar")
HubSpotProvider = built_in_class("hubspot")
MicrosoftOutlookProvider = built_in_class("microsoft_outlook")
ShopifyProvider = built_in_class("shopify")
SlackProvider = built_in_class("slack")

REJECTED = ApiResponse(429, (), b"", True, timedelta(seconds=90))
OK = ApiResponse(200, (), b"")
HOUR = timedelta(hours=1)


@pytest.fixture
async def ada() -> Integration:
    return await FakeSystem().connect()


def new_limiter(limits: Sequence[RateLimit] = ()) -> ProviderRateLimiter:
    return ProviderRateLimiter("acme", limits, None, time.monotonic, lambda: 1.0)


async def call(
    limiter: ProviderRateLimiter, integration: Integration, resource: str, response: ApiResponse = OK, path: str = ""
) -> None:
    """A call that fails at once if it would have to wait."""
    permit = limiter.permit(integration, 10.0, is_retry=False, resource=resource, path=path or resource)
    async with permit as observe:
        observe(response)


@pytest.mark.parametrize(
    "reported",
    [
        REJECTED,
        replace(OK, quotas=[Quota(0, HOUR)]),
        replace(REJECTED, status=403, retry_after=HOUR),
        replace(REJECTED, rate_limit_resource="search"),
    ],
)
async def test_a_reported_limit_delays_its_resource_only(ada: Integration, reported: ApiResponse) -> None:
    limiter = new_limiter()
    await call(limiter, ada, "search", reported)
    for resource in ("core", "graphql", ""):
        await call(limiter, ada, resource)
    with pytest.raises(ProviderUnavailable) as raised:
        await call(limiter, ada, "search")
    assert raised.value.retry_after is not None
    assert raised.value.retry_after > timedelta(seconds=80)


async def test_negative_control_without_resources_it_delays_all_calls(ada: Integration) -> None:
    limiter = new_limiter()
    await call(limiter, ada, "", REJECTED)
    with pytest.raises(ProviderUnavailable):
        await call(limiter, ada, "")


async def test_a_limit_that_a_response_names_is_that_of_the_path_from_then_on(ada: Integration) -> None:
    limiter = new_limiter()
    await call(limiter, ada, "core", replace(REJECTED, rate_limit_resource="audit_log"), path="GET /log")
    await call(limiter, ada, "core", path="GET /user")
    await call(limiter, ada, "core", path="PUT /log")
    with pytest.raises(ProviderUnavailable):
        await call(limiter, ada, "core", path="GET /log")


async def test_a_limit_of_the_whole_account_delays_all_resources(ada: Integration) -> None:
    limiter = new_limiter()
    await call(limiter, ada, "search", replace(REJECTED, rate_limit_resource=""))
    for resource in ("search", "core", ""):
        with pytest.raises(ProviderUnavailable):
            await call(limiter, ada, resource)


async def test_a_declared_limit_counts_its_resource_only(ada: Integration) -> None:
    limiter = new_limiter([RateLimit(1, HOUR, resource="search"), RateLimit(3, HOUR)])
    await call(limiter, ada, "search")
    with pytest.raises(RateLimited):
        await call(limiter, ada, "search")
    await call(limiter, ada, "core")
    await call(limiter, ada, "")
    with pytest.raises(RateLimited):  # the limit of all calls together
        await call(limiter, ada, "core")


async def test_the_limit_of_an_app_is_that_of_a_resource_too(ada: Integration) -> None:
    users = [
        replace(ada, user_id=UserId(f"u{number}"), integration_id=IntegrationId(number), account_id=f"a{number}")
        for number in range(1, 5)
    ]
    limiter = new_limiter([RateLimit(1, HOUR, LimitScope.APP, "graphql")])
    await call(limiter, users[0], "graphql")
    with pytest.raises(RateLimited):
        await call(limiter, users[1], "graphql")
    for user in users[:3]:
        await call(limiter, user, "search", REJECTED)
    with pytest.raises(ProviderUnavailable):
        await call(limiter, users[3], "search")
    await call(limiter, users[3], "core")


async def test_a_waiting_call_does_not_delay_calls_of_other_resources(ada: Integration) -> None:
    limiter = new_limiter()
    await call(limiter, ada, "search", REJECTED)

    async def wait_long() -> None:
        async with limiter.permit(ada, 1000.0, is_retry=False, resource="search"):
            pass

    waiting = [asyncio.create_task(wait_long()) for _ in range(5)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await call(limiter, ada, "core")
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


# --- what providers declare ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider_class", "path", "resource"),
    [
        (GitHubProvider, "/search/code", "code_search"),
        (GitHubProvider, "/search/issues", "search"),
        (GitHubProvider, "/graphql", "graphql"),
        (GitHubProvider, "/repos/a/search", "core"),
        (GitHubProvider, "/searches", "core"),
        (SlackProvider, "/chat.postMessage", "chat.postMessage"),
        (SlackProvider, "/conversations.list", "conversations.list"),
        (HubSpotProvider, "/crm/v3/objects/contacts/search", "search"),
        (HubSpotProvider, "/crm/v3/objects/contacts", ""),
        (ShopifyProvider, "/2026-07/graphql.json", "graphql"),
        (ShopifyProvider, "/2026-07/orders.json", ""),
        (MicrosoftOutlookProvider, "/me/messages/1", "outlook"),
        (MicrosoftOutlookProvider, "/users/ada@acme.example/calendarView", "outlook"),
        (MicrosoftOutlookProvider, "/me/drive/root", "files"),
        (MicrosoftOutlookProvider, "/sites/root", "files"),
        (MicrosoftOutlookProvider, "/me/chats", "teams"),
        (MicrosoftOutlookProvider, "/me", ""),
        (GoogleCalendarProvider, "/calendars/primary/events", ""),
    ],
)
def test_a_request_belongs_to_the_declared_resource(
    provider_class: type[BaseProvider], path: str, resource: str
) -> None:
    provider = build_provider(provider_class, FakeTransport())
    assert provider.rate_limit_resource(ApiRequest("GET", path)) == resource


async def response_of(provider_class: type[BaseProvider], response: httpx.Response) -> ApiResponse:
    provider = build_provider(provider_class, FakeTransport(response)).with_attributes(url_params={"shop": "acme"})
    request = ApiRequest("GET", "/x")
    return await provider.call_api(OAuthTokens("token-1"), request, deadline=timedelta(seconds=9), body_limit=9999)


def github(status: int, remaining: int, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers={"x-ratelimit-remaining": str(remaining), **named})


@pytest.mark.parametrize(
    ("status", "remaining", "headers", "resource"),
    [
        (403, 0, {"x_ratelimit_resource": "search"}, "search"),
        (429, 0, {"x_ratelimit_resource": "dependency_snapshots"}, "dependency_snapshots"),
        (200, 0, {"x_ratelimit_resource": "core"}, "core"),
        (403, 41, {"x_ratelimit_resource": "core", "retry_after": "60"}, ""),  # a secondary limit
        (429, 41, {"x_ratelimit_resource": "graphql"}, ""),
        (403, 41, {"x_ratelimit_resource": "core"}, "core"),  # no limit at all
        (429, 0, {"x_ratelimit_resource": "a resource with\ttext"}, None),
        (429, 0, {}, None),
    ],
)
async def test_github_names_the_resource(
    status: int, remaining: int, headers: dict[str, str], resource: str | None
) -> None:
    response = await response_of(GitHubProvider, github(status, remaining, **headers))
    assert response.rate_limit_resource == resource


async def test_google_names_the_quota() -> None:
    metric = "calendar-json.googleapis.com/default"
    details = [{"reason": "RATE_LIMIT_EXCEEDED", "metadata": {"quota_metric": metric, "quota_limit": "PerUser"}}]
    response = await response_of(GoogleCalendarProvider, json_response({"error": {"details": details}}, 429))
    assert (response.rate_limit_resource, response.is_rate_limited) == (metric, True)


@pytest.mark.parametrize(
    ("errors", "is_limited"),
    [
        ([{"message": "Throttled", "extensions": {"code": "THROTTLED"}}], True),
        ([{"extensions": {"code": "ACCESS_DENIED"}}], False),
        ([], False),
    ],
)
async def test_shopify_reports_a_throttled_query_with_status_200(errors: list[object], is_limited: bool) -> None:
    response = await response_of(ShopifyProvider, json_response({"data": None, "errors": errors}))
    assert response.is_rate_limited is is_limited
