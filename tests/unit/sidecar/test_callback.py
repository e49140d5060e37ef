"""The callback endpoint: the request to the server, and the response to a browser or a program."""

from typing import Any

import grpc
import httpx
import pytest

from integration_server.sidecar.app import CALLBACK_PATH
from integration_server.sidecar.callback import MAX_QUERY
from integrations.v1.integration_service_pb2 import HandleCallbackRequest, HandleCallbackResponse
from tests.unit.sidecar.fakes import FakeServer, rpc_error

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "{{ 7 * 7 }}{% raw %}",
    "a\r\nSet-Cookie: owned=1\r\n\r\n<b>",
    "\u202emoc.live\u0000\u2028 🦊",
    "</style><style>*{display:none}",
    "javascript:alert(1)",
]


async def test_forwards_the_parameters_of_the_provider(client: httpx.AsyncClient, server: FakeServer) -> None:
    query = "code=c%2F1&state=s-1&iss=https%3A%2F%2Fp.example&realmId=77&scope=a+b"

    await client.get(f"{CALLBACK_PATH}/quickbooks?{query}")

    assert server.callbacks == [
        HandleCallbackRequest(
            code="c/1", state="s-1", integration_type="quickbooks", iss="https://p.example", query=query
        )
    ]


async def test_forwards_an_error_response(client: httpx.AsyncClient, server: FakeServer) -> None:
    query = "error=access_denied&error_description=No&state=s-1"

    await client.get(f"{CALLBACK_PATH}?{query}")

    assert server.callbacks == [
        HandleCallbackRequest(error="access_denied", error_description="No", state="s-1", query=query)
    ]


async def test_reads_the_type_from_the_documented_query_parameter(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    await client.get(f"{CALLBACK_PATH}?code=c&state=s&integration_type=stripe")

    assert server.callbacks[0].integration_type == "stripe"


async def test_the_type_in_the_path_overrides_the_query(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.get(f"{CALLBACK_PATH}/stripe?code=c&state=s&integration_type=square")

    assert server.callbacks[0].integration_type == "stripe"


async def test_a_browser_cannot_set_the_user(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.get(f"{CALLBACK_PATH}/stripe?code=c&state=s&user_id=victim")

    assert not server.callbacks[0].user_id


async def test_the_deadline_exceeds_the_servers_provider_timeouts(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    await client.get(f"{CALLBACK_PATH}?code=c&state=s")

    code_exchange, account_lookup = 10, 10
    assert server.deadlines[0] > code_exchange + account_lookup


@pytest.mark.parametrize("name", ["code", "state", "integration_type", "iss", "error", "error_description"])
async def test_rejects_a_repeated_parameter(client: httpx.AsyncClient, server: FakeServer, name: str) -> None:
    response = await client.get(f"{CALLBACK_PATH}/stripe?{name}=secret1&{name}=secret2")

    assert response.status_code == 400
    assert response.json() == {
        "success": False,
        "reason": "INVALID_FIELD",
        "message": f"The query has the parameter {name} more than once",
    }
    assert server.callbacks == []


async def test_a_provider_may_repeat_its_own_parameters(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.get(f"{CALLBACK_PATH}/stripe?code=c&state=s&scope=a&scope=b")

    assert server.callbacks[0].query == "code=c&state=s&scope=a&scope=b"


async def test_accepts_a_query_up_to_the_limit_and_rejects_a_longer_one(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    longest = "state=".ljust(MAX_QUERY, "x")

    taken = await client.get(f"{CALLBACK_PATH}?{longest}")
    rejected = await client.get(f"{CALLBACK_PATH}?{longest}x")

    assert taken.status_code == 200
    assert rejected.status_code == 414
    assert rejected.json()["reason"] == "QUERY_TOO_LONG"
    assert len(server.callbacks) == 1


async def test_invalid_utf8_is_forwarded_as_replacement_characters(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    await client.get(f"{CALLBACK_PATH}?code=%FF&state=%ED%A0%80")

    assert server.callbacks[0].code == "\ufffd"
    assert server.callbacks[0].query == "code=%FF&state=%ED%A0%80"


async def test_a_program_gets_the_documented_json(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.callback_response = HandleCallbackResponse(
        success=True, integration_id=123, redirect_url="https://app.example/done", message="Stripe is connected"
    )

    response = await client.get(f"{CALLBACK_PATH}?code=c&state=s")

    assert response.status_code == 200
    assert response.json() == {
        "success": True,
        "integration_id": 123,
        "redirect_url": "https://app.example/done",
        "message": "Stripe is connected",
    }


async def test_a_program_gets_the_reason_of_a_rejection(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.callback_response = HandleCallbackResponse(reason="access_denied", message="The provider said no")

    response = await client.get(f"{CALLBACK_PATH}?error=access_denied&state=s")

    assert response.status_code == 200
    assert response.json() == {
        "success": False,
        "integration_id": None,
        "redirect_url": None,
        "message": "The provider said no",
        "reason": "access_denied",
    }


async def test_a_program_gets_the_confirmation_token(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.callback_response = HandleCallbackResponse(
        integration_id=7, reason="confirmation_required", confirmation_token="t-1"
    )

    response = await client.get(f"{CALLBACK_PATH}?code=c&state=s")

    assert response.json()["confirmation_token"] == "t-1"


async def test_a_browser_is_redirected_to_the_app(client: httpx.AsyncClient, server: FakeServer) -> None:
    url = "https://app.example/done?success=true&integration_id=123#top"
    server.callback_response = HandleCallbackResponse(success=True, integration_id=123, redirect_url=url)

    response = await client.get(f"{CALLBACK_PATH}?code=c&state=s", headers=BROWSER)

    assert response.status_code == 303
    assert response.headers["location"] == url
    assert response.content == b""


@pytest.mark.parametrize(
    ("rpc_response", "title"),
    [
        (HandleCallbackResponse(success=True, integration_id=1), "Connected"),
        (HandleCallbackResponse(reason="confirmation_required", confirmation_token="t-1"), "One more step"),
        (HandleCallbackResponse(reason="access_denied"), "Not connected"),
    ],
)
async def test_a_browser_without_a_redirect_url_gets_a_page(
    client: httpx.AsyncClient, server: FakeServer, rpc_response: HandleCallbackResponse, title: str
) -> None:
    server.callback_response = rpc_response

    response = await client.get(f"{CALLBACK_PATH}?code=c&state=s", headers=BROWSER)

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<h1>{title}</h1>" in response.text


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("name", ["code", "state", "integration_type", "iss", "error", "error_description", "other"])
async def test_a_page_contains_no_value_of_the_request(
    client: httpx.AsyncClient, server: FakeServer, name: str, hostile: str
) -> None:
    server.callback_response = rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "STATE_INVALID")
    harmless = await client.get(CALLBACK_PATH, headers=BROWSER)

    page = await client.get(CALLBACK_PATH, params={name: hostile}, headers=BROWSER)

    assert page.status_code == 400
    assert page.content == harmless.content
    assert page.headers == harmless.headers


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_page_contains_no_value_of_the_result(
    client: httpx.AsyncClient, server: FakeServer, hostile: str
) -> None:
    server.callback_response = HandleCallbackResponse(reason="access_denied")
    harmless = await client.get(CALLBACK_PATH, headers=BROWSER)
    server.callback_response = HandleCallbackResponse(reason=hostile, message=hostile)

    page = await client.get(CALLBACK_PATH, headers=BROWSER)

    assert page.content == harmless.content
    assert page.headers == harmless.headers


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_hostile_values_are_escaped_in_json(client: httpx.AsyncClient, server: FakeServer, hostile: str) -> None:
    server.callback_response = HandleCallbackResponse(reason=hostile, message=hostile)

    response = await client.get(CALLBACK_PATH, params={"error": hostile})

    assert response.headers["content-type"] == "application/json"
    assert response.json()["reason"] == hostile


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_redirect_url_cannot_inject_a_header(
    client: httpx.AsyncClient, server: FakeServer, hostile: str
) -> None:
    server.callback_response = HandleCallbackResponse(redirect_url=f"https://app.example/?reason={hostile}")

    response = await client.get(CALLBACK_PATH, headers=BROWSER)

    location = response.headers["location"]
    assert location.startswith("https://app.example/?reason=")
    assert location.isascii()
    assert location.isprintable()
    assert not set(location) & set(' <>"')


async def test_a_head_request_does_not_use_up_the_state(client: httpx.AsyncClient, server: FakeServer) -> None:
    response = await client.head(f"{CALLBACK_PATH}/stripe?code=c&state=s")

    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST"}
    assert server.callbacks == []


async def test_negative_control_with_starlettes_head_route_the_state_is_used_up(server: FakeServer) -> None:
    app = server.endpoints()
    for route in app.routes:
        if route.path.startswith(CALLBACK_PATH):  # type: ignore[attr-defined]
            route.methods.add("HEAD")  # type: ignore[attr-defined]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://x.example") as client:
        await client.head(f"{CALLBACK_PATH}/stripe?code=c&state=s")

    assert len(server.callbacks) == 1


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
async def test_only_get_and_post_are_accepted(client: httpx.AsyncClient, server: FakeServer, method: str) -> None:
    response = await client.request(method, f"{CALLBACK_PATH}?code=c&state=s")

    assert response.status_code == 405
    assert response.json()["reason"] == "METHOD_NOT_ALLOWED"
    assert server.callbacks == []


@pytest.mark.parametrize("path", ["/", f"{CALLBACK_PATH}/stripe/more", f"{CALLBACK_PATH}/a%2Fb", "/%00%0A"])
async def test_other_paths_are_not_found(client: httpx.AsyncClient, path: str) -> None:
    program = await client.get(path)
    browser = await client.get(path, headers=BROWSER)

    assert (program.status_code, program.json()["reason"]) == (404, "NOT_FOUND")
    assert browser.status_code == 404
    assert "<h1>Page not found</h1>" in browser.text


SLASHED: dict[str, Any] = {
    "url": f"{CALLBACK_PATH}/stripe/?code=c&state=s",
    "headers": {"Host": "evil.example"},
}


async def test_a_trailing_slash_is_not_redirected(client: httpx.AsyncClient) -> None:
    response = await client.get(**SLASHED)

    assert response.status_code == 404
    assert "location" not in response.headers


async def test_negative_control_with_starlettes_redirect_code_and_state_go_to_any_host(server: FakeServer) -> None:
    app = server.endpoints()
    app.router.redirect_slashes = True

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://x.example") as client:
        response = await client.get(**SLASHED)

    assert response.headers["location"] == f"https://evil.example{CALLBACK_PATH}/stripe?code=c&state=s"
