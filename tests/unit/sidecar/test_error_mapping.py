"""gRPC errors as HTTP errors: status and reason for a program, a page for a browser."""

import grpc
import httpx
import pytest
from google.rpc import status_pb2

from integration_server.sidecar.app import CALLBACK_PATH
from tests.unit.sidecar.fakes import FakeServer, rich_status, rpc_error

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "reason", "status", "title"),
    [
        (Code.INVALID_ARGUMENT, "STATE_INVALID", 400, "This link does not work"),
        (Code.INVALID_ARGUMENT, "INVALID_FIELD", 400, "This link does not work"),
        (Code.INVALID_ARGUMENT, "ISSUER_MISMATCH", 400, "This link does not work"),
        (Code.FAILED_PRECONDITION, "STATE_EXPIRED", 400, "This took too long"),
        (Code.FAILED_PRECONDITION, "STATE_USED", 400, "This link has been used"),
        (Code.FAILED_PRECONDITION, "ACCOUNT_MISMATCH", 400, "Different account"),
        (Code.FAILED_PRECONDITION, "PROVIDER_REJECTED", 400, "Not connected"),
        (Code.FAILED_PRECONDITION, "PROVIDER_NOT_CONFIGURED", 400, "Something went wrong"),
        (Code.PERMISSION_DENIED, "USER_MISMATCH", 403, "This link does not work"),
        (Code.NOT_FOUND, "INTEGRATION_NOT_FOUND", 404, "This link does not work"),
        (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", 429, "Not available right now"),
        (Code.UNAVAILABLE, "STORE_UNAVAILABLE", 503, "Not available right now"),
        (Code.UNAVAILABLE, "PROVIDER_UNAVAILABLE", 503, "Not available right now"),
        (Code.UNAVAILABLE, "PROVIDER_MISCONFIGURED", 503, "Something went wrong"),
        (Code.DATA_LOSS, "CREDENTIALS_UNREADABLE", 500, "Something went wrong"),
    ],
)
async def test_errors_of_the_server_keep_their_reason(
    client: httpx.AsyncClient, server: FakeServer, code: grpc.StatusCode, reason: str, status: int, title: str
) -> None:
    server.callback_response = rpc_error(code, reason, "safe words")

    program = await client.get(f"{CALLBACK_PATH}?state=s")
    browser = await client.get(f"{CALLBACK_PATH}?state=s", headers={"Accept": "text/html"})

    assert program.status_code == browser.status_code == status
    assert program.json() == {"success": False, "reason": reason, "message": "safe words"}
    assert f"<h1>{title}</h1>" in browser.text


@pytest.mark.parametrize(
    ("code", "status", "title"),
    [
        (Code.UNAVAILABLE, 503, "Not available right now"),
        (Code.DEADLINE_EXCEEDED, 504, "No response in time"),
        (Code.INTERNAL, 500, "Something went wrong"),
        (Code.UNKNOWN, 500, "Something went wrong"),
        (Code.CANCELLED, 500, "Something went wrong"),
        (Code.UNAUTHENTICATED, 500, "Something went wrong"),
        (Code.UNIMPLEMENTED, 500, "Something went wrong"),
        (Code.RESOURCE_EXHAUSTED, 429, "Not available right now"),
    ],
)
async def test_grpcs_own_errors_reveal_no_internals(
    client: httpx.AsyncClient, server: FakeServer, code: grpc.StatusCode, status: int, title: str
) -> None:
    server.callback_response = rpc_error(code, message="failed to connect to ipv4:10.0.0.7:50051")

    program = await client.get(CALLBACK_PATH)
    browser = await client.get(CALLBACK_PATH, headers={"Accept": "text/html"})

    assert program.status_code == browser.status_code == status
    assert program.json()["reason"] == code.name
    assert f"<h1>{title}</h1>" in browser.text
    assert "10.0.0.7" not in program.text + browser.text


@pytest.mark.parametrize(("delay", "header"), [(30, "30"), (0.2, "1"), (1.001, "2"), (0, "1"), (-5, "1"), (None, None)])
@pytest.mark.parametrize("accept", ["text/html", "application/json"])
async def test_retry_after_is_the_servers_delay_rounded_up(
    client: httpx.AsyncClient, server: FakeServer, delay: float | None, header: str | None, accept: str
) -> None:
    server.callback_response = rpc_error(Code.UNAVAILABLE, "STORE_UNAVAILABLE", retry_seconds=delay)

    response = await client.get(CALLBACK_PATH, headers={"Accept": accept})

    assert response.headers.get("retry-after") == header


@pytest.mark.parametrize(
    "details",
    [
        rich_status(Code.NOT_FOUND, "STATE_USED", "words"),
        rich_status(Code.INVALID_ARGUMENT, "STATE_USED", "other words"),
        status_pb2.Status(code=3, message="words"),
    ],
    ids=["other-code", "other-message", "no-details"],
)
async def test_details_that_do_not_match_the_error_are_ignored(
    client: httpx.AsyncClient, server: FakeServer, details: status_pb2.Status
) -> None:
    server.callback_response = grpc.aio.AioRpcError(
        Code.INVALID_ARGUMENT,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", details.SerializeToString())),
        "words",
    )

    response = await client.get(CALLBACK_PATH)

    assert response.status_code == 400
    assert response.json() == {"success": False, "reason": "INVALID_ARGUMENT", "message": "Bad Request"}


async def test_a_sidecar_without_permission_is_an_internal_error(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.callback_response = rpc_error(Code.PERMISSION_DENIED, "CALLER_NOT_ALLOWED", "the caller is not allowed")

    response = await client.get(CALLBACK_PATH)

    assert response.status_code == 500
    assert response.json()["reason"] == "INTERNAL"
    assert "caller" not in response.text
