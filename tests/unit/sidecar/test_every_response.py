"""Properties of every response: security headers, the access log, and no details of exceptions."""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
import structlog

from integration_server.sidecar.app import CALLBACK_PATH
from integration_server.sidecar.pages import ResultPages
from integrations.v1.integration_service_pb2 import HandleCallbackResponse
from tests.unit.sidecar.fakes import FakeServer, rpc_error

SECRETS = ("the-code", "the-state")


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.mark.parametrize("accept", ["text/html", "*/*"])
@pytest.mark.parametrize(
    ("method", "path", "rpc_response"),
    [
        pytest.param("GET", CALLBACK_PATH, HandleCallbackResponse(success=True), id="success"),
        pytest.param("GET", CALLBACK_PATH, HandleCallbackResponse(redirect_url="https://a.example"), id="redirect"),
        pytest.param("GET", CALLBACK_PATH, HandleCallbackResponse(reason="access_denied"), id="refused"),
        pytest.param("GET", CALLBACK_PATH, rpc_error(grpc.StatusCode.UNAVAILABLE), id="unavailable"),
        pytest.param("GET", CALLBACK_PATH, RuntimeError("the-code"), id="unhandled_exception"),
        pytest.param("GET", f"{CALLBACK_PATH}?code=1&code=2", None, id="repeated"),
        pytest.param("GET", "/elsewhere", None, id="not-found"),
        pytest.param("PUT", CALLBACK_PATH, None, id="wrong-method"),
        pytest.param("GET", "/healthz", None, id="live"),
        pytest.param("GET", "/readyz", None, id="ready"),
    ],
)
async def test_every_response_has_the_security_headers(
    client: httpx.AsyncClient, server: FakeServer, method: str, path: str, rpc_response: Any, accept: str
) -> None:
    server.callback_response = rpc_response

    response = await client.request(method, path, headers={"Accept": accept})

    assert response.headers["content-security-policy"] == ResultPages().policy
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["vary"] == "Accept, Sec-Purpose, Purpose, X-Purpose, X-Moz"
    assert response.headers["content-type" if response.content else "location"]


@pytest.mark.parametrize("accept", ["text/html", "*/*"])
async def test_an_unhandled_exception_reveals_no_details(
    client: httpx.AsyncClient, server: FakeServer, log: list[Any], accept: str
) -> None:
    server.callback_response = RuntimeError("choked on the-code")

    response = await client.get(
        CALLBACK_PATH, params={"code": "the-code", "state": "the-state"}, headers={"Accept": accept}
    )

    assert response.status_code == 500
    assert "RuntimeError" not in response.text
    assert "the-code" not in response.text
    error, request = log
    assert (error["event"], error["log_level"], error["kind"]) == (
        "unhandled_exception",
        "error",
        "RuntimeError",
    )
    assert re.search(r"callback\.py", error["stack"])
    assert request["status"] == 500
    assert not any(secret in str(log) for secret in SECRETS)


async def test_a_request_is_logged_without_its_query(client: httpx.AsyncClient, log: list[Any]) -> None:
    await client.get(f"{CALLBACK_PATH}/stripe", params={"code": "the-code", "state": "the-state"})

    (line,) = log
    assert line.pop("ms") >= 0
    assert line == {
        "event": "http_request",
        "log_level": "info",
        "method": "GET",
        "reason": "",
        "caller": "127.0.0.1",
        "path": f"{CALLBACK_PATH}/stripe",
        "status": 200,
    }


async def test_a_path_cannot_inject_log_lines(client: httpx.AsyncClient, log: list[Any]) -> None:
    await client.get("/x%0Aevent=forged%1B[31m" + "y" * 1000)

    assert log[0]["path"].startswith("/x%0Aevent%3Dforged%1B%5B31myyy")
    assert len(log[0]["path"]) == 200


async def test_a_proxy_that_is_not_trusted_is_reported_once(client: httpx.AsyncClient, log: list[Any]) -> None:
    """A forged request is not: anybody could write to the log with it."""
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    await client.get("/no-such-path", headers=forwarded)
    assert not any(line["event"] == "proxy_not_trusted" for line in log)

    for _ in range(3):
        await client.get(f"{CALLBACK_PATH}/stripe", params={"code": "c", "state": "s"}, headers=forwarded)

    (warning,) = (line for line in log if line["event"] == "proxy_not_trusted")
    assert warning["setting"] == "TRUSTED_PROXIES"
