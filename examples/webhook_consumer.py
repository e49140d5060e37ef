"""Consume webhook events: wait for a notification, list, handle, acknowledge. A crash loses no event.

    make run                                                  # in another terminal
    .venv/bin/python examples/webhook_consumer.py --send 3

With `--send` it also simulates the provider: it connects an integration of type `custom`, and sends that number of
events to its webhook URL, signed as in Standard Webhooks. It ends when they are handled; without `--send`, at Ctrl-C.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import sys
import time
import uuid

import grpc.aio
import httpx
from google.protobuf.struct_pb2 import Struct

from integrations.v1 import event_pb2, webhook_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

CONSUMER = "example"  # each name has its own offset; programs with the same name share it


async def consume(channel: grpc.aio.Channel, user_id: str, max_events: int | None) -> None:
    """Handle all events, or a number of them."""
    service = IntegrationServiceStub(channel)
    stream = service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id=user_id, integration_type="custom"))
    await stream.read()  # the first response confirms that the stream has begun
    listed = await service.ListIntegrations(pb.ListIntegrationsRequest(user_id=user_id, integration_type="custom"))
    handled = 0
    for row in listed.integrations:  # events from before the stream began
        handled += await catch_up(channel, user_id, row.integration_id)
    while max_events is None or handled < max_events:
        change = await stream.read()
        if not isinstance(change, pb.WatchIntegrationsResponse):
            return  # the server ended the stream; a real consumer reconnects with the last cursor
        if change.event.kind == event_pb2.INTEGRATION_EVENT_KIND_WEBHOOK_RECEIVED:
            handled += await catch_up(channel, user_id, change.event.integration_id)


async def catch_up(channel: grpc.aio.Channel, user_id: str, integration_id: int) -> int:
    """Handle and acknowledge the available events. Returns their number."""
    service = IntegrationServiceStub(channel)
    handled = 0
    while True:
        page = await service.ListWebhookEvents(
            pb.ListWebhookEventsRequest(integration_id=integration_id, user_id=user_id, consumer=CONSUMER)
        )
        if not page.events:
            return handled
        for event in page.events:
            handle(event)
        handled += len(page.events)
        await service.AckWebhookEvents(
            pb.AckWebhookEventsRequest(
                integration_id=integration_id, user_id=user_id, consumer=CONSUMER, through_number=page.events[-1].number
            )
        )


def handle(event: webhook_pb2.WebhookEvent) -> None:
    """Your backend's work. After a crash the same event may be delivered again, with the same `event_id`."""
    payload = event.payload.decode(errors="backslashreplace")  # whatever the provider has sent
    print(f"Event {event.number}: {event.event_type} {payload}", flush=True)


# --- the provider -------------------------------------------------------------------------------------------------


async def send(channel: grpc.aio.Channel, user_id: str, count: int) -> None:
    """Connect an integration, set a secret for its webhook URL, and send events to it."""
    service = IntegrationServiceStub(channel)
    config = Struct()
    config.update({"webhook_url": "https://provider.example/hooks"})
    connected = await service.ConnectWithApiKey(
        pb.ConnectWithApiKeyRequest(user_id=user_id, integration_type="custom", api_key=uuid.uuid4().hex, config=config)
    )
    endpoint = await service.SetWebhookSecret(
        pb.SetWebhookSecretRequest(integration_id=connected.integration.integration_id, user_id=user_id)
    )
    print("Sending to:", endpoint.webhook_url)
    async with httpx.AsyncClient() as client:
        for number in range(1, count + 1):
            body = f'{{"type": "thing.happened", "number": {number}}}'
            response = await client.post(
                endpoint.webhook_url, content=body, headers=signature_headers(body, endpoint.webhook_secret)
            )
            response.raise_for_status()


def signature_headers(body: str, secret: str) -> dict[str, str]:
    """The signature headers of https://www.standardwebhooks.com."""
    event_id, timestamp = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{event_id}.{timestamp}.{body}".encode(), hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": event_id, "webhook-timestamp": timestamp, "webhook-signature": signature}


async def main() -> None:
    """Parse the command line and consume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1:50051", help="the address of the server")
    parser.add_argument("--user", default="ada", help="the user of the integrations")
    parser.add_argument("--send", type=int, metavar="COUNT", help="send this number of events first")
    options = parser.parse_args()
    async with grpc.aio.insecure_channel(options.server) as channel:
        if options.send:
            await send(channel, options.user, options.send)
        await consume(channel, options.user, options.send)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except grpc.aio.AioRpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
