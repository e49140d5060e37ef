"""The command `dev`: the server in dev mode, a sandbox provider and connected sample accounts.

The sample accounts are connected over the OAuth flow, with the provider's page and the sidecar's callback. If callers
must authenticate no account is connected, because this command has no identity that a policy could name.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

import grpc
import httpx
from rich.console import Console
from rich.table import Table

from integration_server.bootstrap import ServerAddresses, running_server
from integration_server.lifecycle import AddressTaken
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.google_calendar import GoogleCalendarProvider
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.sandbox import SAMPLE_SCOPES, Sandbox, decide, run_sandbox
from integration_server.settings import Address, Settings
from integrations.v1 import integration_pb2, integration_service_pb2, integration_service_pb2_grpc

SAMPLE_USER = "ada"

_DEADLINE = 10.0  # seconds; everything runs on this machine
_CLIENT_ID = "integration-server"


async def run_dev(
    settings: Settings,
    environment: Mapping[str, str],
    sandbox_address: Address,
    stop: asyncio.Event,
    console: Console,
) -> None:
    """Start the sandbox and the server, connect sample accounts, print the addresses, and run until `stop` is set."""
    client_secret = secrets.token_urlsafe()
    own_google = bool(environment.get("GOOGLE_CALENDAR_CLIENT_ID"))
    simulated = ["sandbox"] if own_google else ["sandbox", "google_calendar"]
    client = {f"{name.upper()}_CLIENT_ID": _CLIENT_ID for name in simulated}
    secret = {f"{name.upper()}_CLIENT_SECRET": client_secret for name in simulated}
    sandbox = Sandbox(scopes=[*SAMPLE_SCOPES, *GoogleCalendarProvider.required_scopes])
    callbacks = [f"{settings.public_url}/api/v1/integrations/callback/{name}" for name in simulated]
    sandbox.register_client(_CLIENT_ID, client_secret, callbacks, name="Integration Server")
    async with AsyncExitStack() as stack:
        try:
            sandbox_url = await stack.enter_async_context(run_sandbox(sandbox, *sandbox_address))
        except OSError as error:
            raise AddressTaken(f"cannot listen on {sandbox_address} (SANDBOX_ADDRESS): {error.strerror}") from error
        addresses = await stack.enter_async_context(
            running_server(
                settings,
                {**environment, **client, **secret},
                extra_providers=[partial(_register, sandbox_url, simulated)],
            )
        )
        _print_addresses(console, addresses, sandbox_url)
        if settings.authenticates_callers:
            console.print(
                "Callers must authenticate: docs/authentication-and-authorization.md shows how to call the server."
            )
        else:
            _print_integrations(
                console, addresses, [await _connect_sample_account(addresses, name) for name in simulated]
            )
        console.print("Press Ctrl-C to stop.")
        await stop.wait()
        console.print("Stopping.")


def _register(sandbox_url: str, simulated: Sequence[str], factory: ProviderFactory) -> None:
    register_sandbox(factory, sandbox_url)
    if "google_calendar" in simulated:  # the real one is not configured
        replace_google_calendar(factory, sandbox_url)


def register_sandbox(factory: ProviderFactory, base_url: str) -> None:
    """Register the sandbox's integration types: `sandbox` with OAuth and `sandbox_api_key` with an API key."""

    class SandboxProvider(OAuth2Provider):
        integration_type = "sandbox"
        oauth_authorize_url = f"{base_url}/oauth/authorize"
        oauth_token_url = f"{base_url}/oauth/token"
        revoke_url = f"{base_url}/oauth/revoke"
        issuer = base_url
        required_scopes = ("read",)
        verify_url = f"{base_url}/userinfo"
        account_id_field = "sub"
        account_label_field = "email"
        api_base_url = base_url

    class SandboxKeyProvider(ApiKeyProvider):
        integration_type = "sandbox_api_key"
        display_name = "Sandbox (API key)"
        verify_url = f"{base_url}/api/account"
        account_id_field = "id"
        account_label_field = "name"
        api_base_url = f"{base_url}/api"
        api_key_header = "X-Api-Key"

    for provider in (SandboxProvider, SandboxKeyProvider):
        factory.register(provider.integration_type, provider)


def replace_google_calendar(factory: ProviderFactory, base_url: str) -> None:
    """Replace Google Calendar by the sandbox, which simulates its API."""

    class SandboxCalendarProvider(GoogleCalendarProvider):
        display_name = "Google Calendar (simulated by the sandbox)"
        oauth_authorize_url = f"{base_url}/oauth/authorize"
        oauth_token_url = f"{base_url}/oauth/token"
        revoke_url = f"{base_url}/oauth/revoke"
        verify_url = f"{base_url}/calendar/v3/users/me/calendarList/primary"
        api_base_url = f"{base_url}/calendar/v3"

    factory.replace(SandboxCalendarProvider.integration_type, SandboxCalendarProvider)


async def _connect_sample_account(addresses: ServerAddresses, integration_type: str) -> integration_pb2.Integration:
    """Connect as an application does: get the authorization URL, consent in a browser, follow the callback."""
    async with grpc.aio.insecure_channel(addresses.grpc_address) as channel, httpx.AsyncClient() as browser:
        service = integration_service_pb2_grpc.IntegrationServiceStub(channel)
        authorization = await service.Connect(
            integration_service_pb2.ConnectRequest(
                user_id=SAMPLE_USER, integration_type=integration_type, name="Sample account"
            ),
            timeout=_DEADLINE,
        )
        response = await browser.get(await decide(browser, authorization.authorization_url), timeout=_DEADLINE)
        result = response.raise_for_status().json()
        if result.get("confirmation_token"):
            confirmed = await service.ConfirmConnection(
                integration_service_pb2.ConfirmConnectionRequest(
                    confirmation_token=result["confirmation_token"], user_id=SAMPLE_USER
                ),
                timeout=_DEADLINE,
            )
            result = {"integration_id": confirmed.integration_id}
        found = await service.GetIntegration(
            integration_service_pb2.GetIntegrationRequest(integration_id=result["integration_id"], user_id=SAMPLE_USER),
            timeout=_DEADLINE,
        )
        return found.integration


def _print_addresses(console: Console, addresses: ServerAddresses, sandbox_url: str) -> None:
    table = Table(title="Running", title_justify="left", show_header=False)
    table.add_row("gRPC", addresses.grpc_address)
    table.add_row("Sidecar (HTTP)", addresses.sidecar_url)
    table.add_row("Sandbox provider", sandbox_url)
    console.print(table)


def _print_integrations(
    console: Console, addresses: ServerAddresses, integrations: Sequence[integration_pb2.Integration]
) -> None:
    connected = Table("id", "user", "type", "account", "status", "token expires", title="Integrations")
    connected.title_justify = "left"
    for integration in integrations:
        connected.add_row(
            str(integration.integration_id),
            integration.user_id,
            integration.integration_type,
            integration.account_label,
            integration_pb2.Status.Name(integration.status).removeprefix("STATUS_"),
            f"{integration.access_token_expire_time.ToDatetime():%F %T} UTC",
        )
    console.print(connected)
    console.print("Next, in another terminal (examples/README.md has more examples):\n")
    console.print(_next_call(addresses, integrations[0]), highlight=False, soft_wrap=True)


def _next_call(addresses: ServerAddresses, integration: integration_pb2.Integration) -> str:
    return f"""\
.venv/bin/python - <<'END'
import grpc
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import integration_service_pb2_grpc as rpc

service = rpc.IntegrationServiceStub(grpc.insecure_channel("{addresses.grpc_address}"))
response = service.GetCredentials(
    pb.GetCredentialsRequest(integration_id={integration.integration_id}, user_id="{integration.user_id}")
)
print("headers to send to the provider:", ", ".join(response.credentials.headers))
print("valid until", response.credentials.expire_time.ToDatetime(), "UTC")
END
"""
