"""Connect an account, and call its provider's API without access to its token.

    make run                                                  # in another terminal
    .venv/bin/python examples/connect_and_call.py --allow

Without `--allow` it prints the URL of the provider's consent page, and waits until somebody consents there.
"""

import argparse
import asyncio
import json
import sys

import grpc.aio
import httpx

from integration_server.sandbox.browser_user import decide
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub


async def connect_account(channel: grpc.aio.Channel, user_id: str, *, allow: bool) -> int:
    """Connect an account of the sandbox. Returns the integration's id."""
    service = IntegrationServiceStub(channel)
    connect_response = await service.Connect(pb.ConnectRequest(user_id=user_id, integration_type="sandbox"))
    print("Send the browser to:", connect_response.authorization_url)
    if allow:  # simulates the user at the sandbox's consent page
        async with httpx.AsyncClient(follow_redirects=True) as browser:
            await browser.get(await decide(browser, connect_response.authorization_url))
    while True:
        listed = await service.ListIntegrations(pb.ListIntegrationsRequest(user_id=user_id, integration_type="sandbox"))
        rows = {row.integration_id: row for row in listed.integrations}
        # The pending integration is removed if the account is already connected.
        if connect_response.integration_id not in rows or rows[connect_response.integration_id].is_connected:
            return max(integration_id for integration_id, row in rows.items() if row.is_connected)
        await asyncio.sleep(0.5)


async def call_its_api(channel: grpc.aio.Channel, user_id: str, integration_id: int) -> object:
    """Request the account from the provider. The server adds the access token, and refreshes it if necessary."""
    response = await IntegrationServiceStub(channel).CallProvider(
        pb.CallProviderRequest(
            user_id=user_id,
            integration_id=integration_id,
            method="GET",
            path="/userinfo",  # relative to the base URL of the provider's API
            headers=[pb.HttpHeader(name="Accept", value="application/json")],
        ),
        timeout=10,  # seconds; the server waits for rate limits and repeats idempotent requests within it
    )
    if response.status_code != 200:
        raise RuntimeError(f"the provider responded with {response.status_code}")
    return json.loads(response.body)


async def main() -> None:
    """Connect and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1:50051", help="the address of the server")
    parser.add_argument("--user", default="grace", help="the user of the account")
    parser.add_argument("--allow", action="store_true", help="consent at the sandbox's page")
    options = parser.parse_args()
    async with grpc.aio.insecure_channel(options.server) as channel:
        integration_id = await connect_account(channel, options.user, allow=options.allow)
        print("Connected: integration", integration_id)
        print("The provider responds:", await call_its_api(channel, options.user, integration_id))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except grpc.aio.AioRpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
