"""A client with two secrets, under load over three replicas: refused one, refused both, and replaced.

The provider rotates refresh tokens and revokes a grant whose used token comes again, so that a refused client
authentication that had spent a token would break its integration.
"""

import asyncio
import io
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc.aio
import pytest
from sqlalchemy import func, select

from integration_server.bootstrap import running_server
from integration_server.dev import register_sandbox
from integration_server.domain.integration import Status
from integration_server.providers.factory import ProviderFactory
from integration_server.sandbox.behaviour import Behaviour
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from integration_server.storage.engine import open_database
from integration_server.storage.tables import integration_changes
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import operator_service_pb2 as operator_pb
from integrations.v1.operator_service_pb2_grpc import OperatorServiceStub
from tests.end_to_end.secret_scanner import assert_no_secrets, dump_rows
from tests.end_to_end.system import Clients, callback_url, capture_logs, clients_of, settings_for

SIZE = 9  # integrations: three of each replica's users
ROUNDS = 3
CLIENT = "id-of-tenant"
NONE, PREVIOUS_USED, REFUSED = (
    operator_pb.SECRET_STATE_UNSPECIFIED,
    operator_pb.SECRET_STATE_PREVIOUS_USED,
    operator_pb.SECRET_STATE_REFUSED,
)


@dataclass
class Tenant:
    """A tenant's client at three replicas, and its integrations with their users."""

    replicas: Sequence[Clients]
    sandbox: Sandbox
    database_url: str
    logs: io.StringIO
    integrations: list[tuple[int, str]]

    def accept(self, secret: str) -> None:
        """The provider accepts this secret of the client and no other."""
        self.sandbox.register_client(CLIENT, secret, [callback_url("sandbox")])

    async def put(self, secret: str) -> None:
        """The operator gives the server another secret, at one replica."""
        stub: Any = OperatorServiceStub(self.replicas[0].channel)
        await stub.PutOAuthClient(
            operator_pb.PutOAuthClientRequest(
                integration_type="sandbox", name="tenant", client_id=CLIENT, client_secret=secret, callers=["app"]
            )
        )

    async def refresh_all(self) -> Sequence[str]:
        """The reasons of the failures of concurrent refreshes of all integrations at all replicas, in rounds."""
        failures: list[str] = []
        for _ in range(ROUNDS):
            calls = [self._use(replica, *integration) for replica in self.replicas for integration in self.integrations]
            failures += [reason for reasons in await asyncio.gather(*calls) for reason in reasons]
        return failures

    async def _use(self, replica: Clients, integration_id: int, user_id: str) -> Sequence[str]:
        """Refresh, get credentials and check the health. Only a refresh may fail."""
        target: dict[str, Any] = {"integration_id": integration_id, "user_id": user_id}
        failures = []
        try:
            await replica.service.RefreshToken(pb.RefreshTokenRequest(**target, force=True), timeout=60)
        except grpc.aio.AioRpcError as error:
            failures.append(str(error.details()))
        response = await replica.service.GetCredentials(pb.GetCredentialsRequest(**target), timeout=60)
        assert response.credentials.bearer_token
        await replica.service.CheckHealth(pb.CheckHealthRequest(**target), timeout=60)
        integration = await replica.get(integration_id, user_id)
        assert integration.status == integration_pb2.STATUS_ACTIVE
        return failures

    async def states(self) -> set[tuple[str, int]]:
        """The name and the state of each client whose secrets are refused, as the replicas list them."""
        found = set()
        for replica in self.replicas:
            stub: Any = OperatorServiceStub(replica.channel)
            listed = await stub.ListOAuthClients(operator_pb.ListOAuthClientsRequest(integration_type="sandbox"))
            found |= {
                (oauth_client.name, oauth_client.secret_state)
                for oauth_client in listed.oauth_clients
                if oauth_client.secret_state != NONE
            }
        return found

    async def wait_for_states(self, expected: set[tuple[str, int]]) -> None:
        """Wait until every replica shows these states: they are stored after the call that causes them."""
        async with asyncio.timeout(30):
            while await self.states() != expected:  # noqa: ASYNC110  # another process might set it
                await asyncio.sleep(0.05)

    async def worse_statuses(self) -> int:
        """How often an integration has changed to a status in which it does not work."""
        changes = integration_changes.c
        query = select(func.count()).where(changes.status_after.in_([Status.ERROR.value, Status.EXPIRED.value]))
        async with open_database(self.database_url) as database:
            return int(await database.fetch_value(query))

    def alarms(self, event: str) -> set[str]:
        """The clients that the log events of this name name."""
        lines = [line for line in self.logs.getvalue().splitlines() if event in line]
        return {found for line in lines for found in re.findall(r"oauth_client\W+(\w+)", line)}


@pytest.fixture
async def tenant(database_url: str) -> AsyncIterator[Tenant]:
    sandbox = Sandbox(behaviour=Behaviour())
    environment = {"SANDBOX_CLIENT_ID": "own", "SANDBOX_CLIENT_SECRET": "own-secret-of-the-operator"}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        logs, url = await enter(capture_logs()), await enter(run_sandbox(sandbox))
        replicas = []
        for _ in range(3):
            register = partial(register_at, url)
            server = running_server(settings_for(database_url), environment, extra_providers=[register])
            running = await enter(server)
            replicas.append(await enter(clients_of(running.grpc_address, running.sidecar_url)))
        tenant = Tenant(replicas, sandbox, database_url, logs, [])
        tenant.accept("first-secret-of-the-tenant")
        await tenant.put("first-secret-of-the-tenant")
        for number in range(SIZE):
            user_id = f"user-{number}"
            integration_id = await replicas[number % 3].connect(user_id, account="ada", oauth_client="tenant")
            tenant.integrations.append((integration_id, user_id))
        yield tenant
    secrets = {"tenant": sandbox.secrets}
    assert_no_secrets(secrets, {"log": logs.getvalue().encode(), "rows": await dump_rows(database_url)})


def register_at(url: str, factory: ProviderFactory) -> None:
    register_sandbox(factory, url)


@pytest.mark.slow
async def test_no_integration_breaks_while_secrets_are_refused_and_replaced(tenant: Tenant) -> None:
    # The provider refuses one secret: the new one is not valid yet.
    await tenant.put("second-secret-of-the-tenant")
    assert await tenant.refresh_all() == []
    await tenant.wait_for_states({("tenant", PREVIOUS_USED)})
    assert tenant.alarms("client_secret_refused") == {"tenant"}

    # The new secret becomes valid, and the former one invalid, under load.
    load = asyncio.create_task(tenant.refresh_all())
    await asyncio.sleep(0)
    tenant.accept("second-secret-of-the-tenant")
    assert await load == []
    assert await tenant.refresh_all() == []
    await tenant.wait_for_states(set())

    # The provider refuses both.
    tenant.accept("third-secret-of-the-tenant")
    failures = await tenant.refresh_all()
    assert len(failures) == len(tenant.replicas) * SIZE * ROUNDS
    assert set(failures) == {"the provider rejects this server's client id or secret"}
    await tenant.wait_for_states({("tenant", REFUSED)})
    assert tenant.alarms("invalid_client") == {"tenant"}

    # The operator replaces the secret. Every replica has it within a second.
    await tenant.put("third-secret-of-the-tenant")
    await asyncio.sleep(1)
    assert await tenant.refresh_all() == []
    await tenant.wait_for_states(set())

    assert await tenant.worse_statuses() == 0
    outcomes = {call.outcome for call in tenant.sandbox.token_calls if call.client_id == CLIENT}
    assert "invalid_grant" not in outcomes
