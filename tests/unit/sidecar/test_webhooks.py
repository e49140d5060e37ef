"""The webhook endpoint: the request to the server, and the response to the provider."""

import grpc
import httpx
import pytest

from integration_server.sidecar.webhooks import DEADLINE
from integrations.v1.integration_service_pb2 import ReceiveWebhookResponse
from integrations.v1.webhook_pb2 import WebhookHeader
from tests.unit.sidecar.fakes import PUBLIC_URL, FakeServer, rpc_error

PATH = "/api/v1/webhooks/stripe/app"


async def test_forwards_the_request_unchanged(client: httpx.AsyncClient, server: FakeServer) -> None:
    body = bytes(range(256))
    headers = [("X-Signature", "one"), ("X-Signature", "two"), ("Content-Type", "application/json")]

    await client.post(f"{PATH}?a=%2F&a=b+c", content=body, headers=headers)

    (request,) = server.webhooks
    assert (request.integration_type, request.endpoint, request.method) == ("stripe", "app", "POST")
    assert request.body == body
    assert request.url == f"{PUBLIC_URL}{PATH}?a=%2F&a=b+c"
    given = [(header.name, header.value) for header in request.headers]
    assert [value for name, value in given if name == "x-signature"] == [b"one", b"two"]
    assert ("content-type", b"application/json") in given


async def test_the_url_is_built_from_the_public_url_and_not_from_the_host_header(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    await client.post(PATH, headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"})

    assert server.webhooks[0].url == f"{PUBLIC_URL}{PATH}"


async def test_responds_with_the_servers_response(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.webhook_response = ReceiveWebhookResponse(
        status_code=202,
        body=b"challenge",
        headers=[
            WebhookHeader(name="Content-Type", value=b"application/json"),
            WebhookHeader(name="X-Said", value=b"1"),
        ],
    )

    response = await client.get(f"{PATH}?challenge=challenge")

    assert (response.status_code, response.content) == (202, b"challenge")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-said"] == "1"
    assert server.webhooks[0].method == "GET"
    assert server.deadlines == [DEADLINE]


async def test_an_echoed_text_is_not_rendered_as_html(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.webhook_response = ReceiveWebhookResponse(status_code=200, body=b"<script>alert(1)</script>")

    response = await client.get(PATH, headers={"Accept": "text/html"})

    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_a_delivery_that_was_not_stored_gets_retry_after(
    client: httpx.AsyncClient, server: FakeServer, code: grpc.StatusCode
) -> None:
    server.webhook_response = rpc_error(code)
    response = await client.post(PATH)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")

    server.webhook_response = rpc_error(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", retry_seconds=1)
    response = await client.post(PATH)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.PERMISSION_DENIED, 500),
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
    ],
)
async def test_a_failed_rpc_is_never_a_success(
    client: httpx.AsyncClient, server: FakeServer, code: grpc.StatusCode, status: int
) -> None:
    server.webhook_response = rpc_error(code, "CALLER_NOT_ALLOWED" if status == 500 else "INVALID_FIELD")
    assert (await client.post(PATH)).status_code == status


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_only_get_and_post_are_webhooks(client: httpx.AsyncClient, server: FakeServer, method: str) -> None:
    response = await client.request(method, PATH)

    assert response.status_code == 405
    assert server.webhooks == []


@pytest.mark.parametrize("path", ["/api/v1/webhooks/stripe", "/api/v1/webhooks/stripe/a/b", "/api/v1/webhooks//app"])
async def test_other_paths_are_not_webhooks(client: httpx.AsyncClient, server: FakeServer, path: str) -> None:
    assert (await client.post(path)).status_code == 404
    assert server.webhooks == []
