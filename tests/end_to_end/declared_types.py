"""A server whose providers are declarations of `tests/declarations/`, against a small server of the test."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives import serialization

from integration_server.bootstrap import running_server
from integrations.v1 import integration_service_pb2 as pb
from tests.declarations import DECLARATIONS
from tests.end_to_end.small_server import Handler, SmallServer, run_small_server
from tests.end_to_end.system import Clients, ShiftedClock, callback_url, clients_of, query_of, settings_for
from tests.rsa_key import RSA_KEY

CLIENT_ID, CLIENT_SECRET = "our id", "our:secret"
PEM = RSA_KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()


@dataclass(frozen=True)
class Scenario:
    """A server with one declared type, and the provider's server."""

    integration_type: str
    provider: SmallServer
    clients: Clients
    clock: ShiftedClock

    async def connect(self, config: Mapping[str, Any] | None = None, callback: Mapping[str, str] | None = None) -> int:
        """Connect an account, with the callback at the sidecar; the integration's id."""
        begun = await self.clients.service.Connect(
            pb.ConnectRequest(user_id="ada", integration_type=self.integration_type, config=dict(config or {}))
        )
        state = query_of(begun.authorization_url)["state"]
        query = "&".join(
            f"{name}={value}" for name, value in {"code": "c0de", "state": state, **(callback or {})}.items()
        )
        response = await self.clients.follow(f"{callback_url(self.integration_type)}?{query}")
        assert response.status_code == 200, response.text
        return int(response.json()["integration_id"])

    async def connect_key(self, api_key: str, **fields: Any) -> Any:
        """Connect an account with a key."""
        request = pb.ConnectWithApiKeyRequest(
            user_id="ada", integration_type=self.integration_type, api_key=api_key, **fields
        )
        return (await self.clients.service.ConnectWithApiKey(request)).integration

    async def headers(self, integration_id: int) -> dict[str, str]:
        """The headers that a backend receives."""
        return dict((await self.credentials(integration_id)).headers)

    async def credentials(self, integration_id: int) -> Any:
        """The credentials that a backend receives."""
        request = pb.GetCredentialsRequest(user_id="ada", integration_id=integration_id)
        return (await self.clients.service.GetCredentials(request)).credentials

    async def call(self, integration_id: int, path: str, **fields: Any) -> int:
        """The status of a call to the provider's API."""
        request = pb.CallProviderRequest(
            user_id="ada", integration_id=integration_id, method="GET", path=path, **fields
        )
        return (await self.clients.service.CallProvider(request)).status_code

    async def health(self, integration_id: int) -> Any:
        """A health check."""
        request = pb.CheckHealthRequest(user_id="ada", integration_id=integration_id)
        return (await self.clients.service.CheckHealth(request)).health_check

    async def disconnect(self, integration_id: int) -> bool:
        """Disconnect; whether the grant was revoked."""
        request = pb.DisconnectIntegrationRequest(user_id="ada", integration_id=integration_id)
        return (await self.clients.service.DisconnectIntegration(request)).provider_revoked


@asynccontextmanager
async def scenario(
    directory: Path,
    database_url: str,
    name: str,
    hosts: Mapping[str, str],
    handle: Handler,
    *more: str,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Scenario]:
    """A server with one of the declarations, or with `more` of them; `replace` its type to use those.

    `hosts` are the paths, at the small server, of the declared hosts. `texts` are declarations that are no files, with
    `{url}` for the small server.
    """
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(run_small_server(handle))
        clock, environment = ShiftedClock(), dict[str, str]()
        for one in (name, *more):
            text = texts[one].format(url=small.url) if one in texts else (DECLARATIONS / f"{one}.toml").read_text()
            for host, path in hosts.items():
                text = text.replace(f"https://{host}", small.url + path)
            (directory / f"{one}.toml").write_text(text)
            own = {"CLIENT_ID": CLIENT_ID, "CLIENT_SECRET": CLIENT_SECRET, "PRIVATE_KEY": PEM, "CLIENT_TOKEN": "tok"}
            environment |= {f"{one.upper()}_{setting}": value for setting, value in own.items()}
        settings = settings_for(database_url, PROVIDERS_DIR=str(directory))
        running = await stack.enter_async_context(running_server(settings, environment, clock=clock))
        clients = await stack.enter_async_context(clients_of(running.grpc_address, running.sidecar_url))
        yield Scenario(name, small, clients, clock)
