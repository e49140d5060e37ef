"""The callback: what goes to the server, and how its answer reaches a browser or a program."""

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


async def test_passes_on_what_the_provider_sent(client: httpx.AsyncClient, server: FakeServer) -> None:
    query = "code=c%2F1&state=s-1&iss=https%3A%2F%2Fp.example&realmId=77&scope=a+b"

    await client.get(f"{CALLBACK_PATH}/quickbooks?{query}")

    assert server.callbacks == [
        HandleCallbackRequest(
            code="c/1", state="s-1", integration_type="quickbooks", iss="https://p.example", query=query
        )
    ]


async def test_passes_on_a_refusal(client: httpx.AsyncClient, server: FakeServer) -> None:
    query = "error=access_denied&error_description=No&state=s-1"

    await client.get(f"{CALLBACK_PATH}?{query}")

    assert server.callbacks == [
        HandleCallbackRequest(error="access_denied", error_description="No", state="s-1", query=query)
    ]


async def test_takes_the_type_from_the_documented_query(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.get(f"{CALLBACK_PATH}?code=c&state=s&integration_type=stripe")

    assert server.callbacks[0].integration_type == "stripe"


async def test_the_path_says_the_type_whatever_the_query_says(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.get(f"{CALLBACK_PATH}/stripe?code=c&state=s&integration_type=square")

    assert server.callbacks[0].integration_type == "stripe"


async def test_a_browser_cannot_say_who_is_signed_in(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.get(f"{CALLBACK_PATH}/stripe?code=c&state=s&user_id=victim")

    assert not server.callbacks[0].user_id


async def test_waits_longer_than_the_server_may_wait_for_a_provider(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    await client.get(f"{CALLBACK_PATH}?code=c&state=s")

    to_trade_the_code, to_name_the_account = 10, 10
    assert server.deadlines[0] > to_trade_the_code + to_name_the_account


@pytest.mark.parametrize("name", ["code", "state", "integration_type", "iss", "error", "error_description"])
async def test_refuses_a_repeated_parameter(client: httpx.AsyncClient, server: FakeServer, name: str) -> None:
    response = await client.get(f"{CALLBACK_PATH}/stripe?{name}=secret1&{name}=secret2")

    assert response.status_code == 400
    assert response.json() == {
        "success": False,
        "reason": "INVALID_FIELD",
        "message": f"The query has the parameter {name} more than once",
    }
    assert server.callbacks == []


async def test_a_provider_may_repeat_parameters_of_its_own(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.get(f"{CALLBACK_PATH}/stripe?code=c&state=s&scope=a&scope=b")

    assert server.callbacks[0].query == "code=c&state=s&scope=a&scope=b"


async def test_takes_a_query_up_to_the_limit_and_refuses_a_longer_one(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    longest = "state=".ljust(MAX_QUERY, "x")

    taken = await client.get(f"{CALLBACK_PATH}?{longest}")
    refused = await client.get(f"{CALLBACK_PATH}?{longest}x")

    assert taken.status_code == 200
    assert refused.status_code == 414
    assert refused.json()["reason"] == "QUERY_TOO_LONG"
    assert len(server.callbacks) == 1


async def test_bytes_that_are_no_text_reach_the_server_as_replacement(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    await client.get(f"{CALLBACK_PATH}?code=%FF&state=%ED%A0%80")

    assert server.callbacks[0].code == "\ufffd"
    assert server.callbacks[0].query == "code=%FF&state=%ED%A0%80"


async def test_a_program_gets_the_documents_json(client: httpx.AsyncClient, server: FakeServer) -> None:
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


async def test_a_program_learns_of_a_refusal(client: httpx.AsyncClient, server: FakeServer) -> None:
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


async def test_a_browser_is_sent_back_to_the_app(client: httpx.AsyncClient, server: FakeServer) -> None:
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
async def test_a_browser_without_an_app_to_go_to_sees_a_page(
    client: httpx.AsyncClient, server: FakeServer, rpc_response: HandleCallbackResponse, title: str
) -> None:
    server.callback_response = rpc_response

    response = await client.get(f"{CALLBACK_PATH}?code=c&state=s", headers=BROWSER)

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<h1>{title}</h1>" in response.text


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("name", ["code", "state", "integration_type", "iss", "error", "error_description", "other"])
async def test_nothing_of_a_request_is_on_a_page(
    client: httpx.AsyncClient, server: FakeServer, name: str, hostile: str
) -> None:
    server.callback_response = rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "STATE_INVALID")
    harmless = await client.get(CALLBACK_PATH, headers=BROWSER)

    page = await client.get(CALLBACK_PATH, params={name: hostile}, headers=BROWSER)

    assert page.status_code == 400
    assert page.content == harmless.content
    assert page.headers == harmless.headers


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_nothing_of_an_outcome_is_on_a_page(client: httpx.AsyncClient, server: FakeServer, hostile: str) -> None:
    server.callback_response = HandleCallbackResponse(reason="access_denied")
    harmless = await client.get(CALLBACK_PATH, headers=BROWSER)
    server.callback_response = HandleCallbackResponse(reason=hostile, message=hostile)

    page = await client.get(CALLBACK_PATH, headers=BROWSER)

    assert page.content == harmless.content
    assert page.headers == harmless.headers


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_hostile_values_stay_values_in_json(client: httpx.AsyncClient, server: FakeServer, hostile: str) -> None:
    server.callback_response = HandleCallbackResponse(reason=hostile, message=hostile)

    response = await client.get(CALLBACK_PATH, params={"error": hostile})

    assert response.headers["content-type"] == "application/json"
    assert response.json()["reason"] == hostile


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_redirect_makes_no_second_header(client: httpx.AsyncClient, server: FakeServer, hostile: str) -> None:
    server.callback_response = HandleCallbackResponse(redirect_url=f"https://app.example/?reason={hostile}")

    response = await client.get(CALLBACK_PATH, headers=BROWSER)

    location = response.headers["location"]
    assert location.startswith("https://app.example/?reason=")
    assert location.isascii()
    assert location.isprintable()
    assert not set(location) & set(' <>"')


async def test_looking_ahead_at_a_link_uses_nothing_up(client: httpx.AsyncClient, server: FakeServer) -> None:
    response = await client.head(f"{CALLBACK_PATH}/stripe?code=c&state=s")

    assert response.status_code == 405
    assert response.headers["allow"] == "GET"
    assert server.callbacks == []


async def test_with_starlettes_own_head_the_same_look_uses_the_state_up(server: FakeServer) -> None:
    app = server.app()
    for route in app.routes:
        route.methods.add("HEAD")  # type: ignore[attr-defined]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://x.example") as client:
        await client.head(f"{CALLBACK_PATH}/stripe?code=c&state=s")

    assert len(server.callbacks) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
async def test_only_get_is_a_callback(client: httpx.AsyncClient, server: FakeServer, method: str) -> None:
    response = await client.request(method, f"{CALLBACK_PATH}?code=c&state=s")

    assert response.status_code == 405
    assert response.json()["reason"] == "METHOD_NOT_ALLOWED"
    assert server.callbacks == []


@pytest.mark.parametrize("path", ["/", f"{CALLBACK_PATH}/stripe/more", f"{CALLBACK_PATH}/a%2Fb", "/%00%0A"])
async def test_there_is_nothing_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    program = await client.get(path)
    browser = await client.get(path, headers=BROWSER)

    assert (program.status_code, program.json()["reason"]) == (404, "NOT_FOUND")
    assert browser.status_code == 404
    assert "<h1>Page not found</h1>" in browser.text


SLASHED: dict[str, Any] = {
    "url": f"{CALLBACK_PATH}/?code=c&state=s",
    "headers": {"Host": "evil.example"},
}


async def test_a_slash_too_many_sends_code_and_state_nowhere(client: httpx.AsyncClient) -> None:
    response = await client.get(**SLASHED)

    assert response.status_code == 404
    assert "location" not in response.headers


async def test_with_starlettes_redirect_the_same_slash_sends_them_to_any_host(server: FakeServer) -> None:
    app = server.app()
    app.router.redirect_slashes = True

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://x.example") as client:
        response = await client.get(**SLASHED)

    assert response.headers["location"] == f"https://evil.example{CALLBACK_PATH}?code=c&state=s"
