"""The revocation of a grant at its provider after a disconnection, also under faults."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc.aio
import pytest
from sqlalchemy import delete, func, select

from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.sandbox.behaviour import Behaviour, Endpoint, Fault
from integration_server.sandbox.faults import Hang
from integration_server.sandbox.state import Sandbox
from integration_server.storage.tables import revocations
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.databases import execute, fetch
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import Replicas, run_replicas, wait_until
from tests.end_to_end.rpc_errors import NOT_FOUND, expect_rpc_error
from tests.end_to_end.system import Clients, System, callback_url, run_system

DOWN = Fault(status=503)
PATIENT = 60.0  # seconds: some retries, on a busy machine

in_module_loop = pytest.mark.asyncio(loop_scope="module")


async def disconnect(clients: Clients, integration_id: int) -> pb.DisconnectIntegrationResponse:
    response: pb.DisconnectIntegrationResponse = await clients.service.DisconnectIntegration(
        pb.DisconnectIntegrationRequest(integration_id=integration_id, user_id="ada"), timeout=PATIENT
    )
    assert response.success
    assert response.provider_revoked == (response.revocation_state == integration_pb2.REVOCATION_STATE_REVOKED)
    return response


def set_fault(sandbox: Sandbox, **faults: Fault) -> None:
    """Set the faults of these endpoints of the sandbox, and clear those of others."""
    known: dict[str, Endpoint] = {"token": "token", "revoke": "revoke"}
    sandbox.behaviour = replace(sandbox.behaviour, faults={known[name]: fault for name, fault in faults.items()})


async def is_invalid_grant(sandbox: Sandbox, account: str = "ada") -> bool:
    return not sandbox.grants_of(account)


async def outbox_is_empty(database_url: str) -> bool:
    ((count,),) = await fetch(database_url, select(func.count()).where(revocations.c.revoke_time.is_(None)))
    return int(count) == 0


# --- one server ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@in_module_loop
async def test_a_revocation_is_pending_while_the_provider_is_down_and_is_repeated(
    system: System, shared_database_url: str
) -> None:
    integration_id = await system.connect()
    set_fault(system.sandbox, revoke=DOWN)
    response = await disconnect(system, integration_id)
    assert response.revocation_state == integration_pb2.REVOCATION_STATE_PENDING
    assert await expect_rpc_error(system.get(integration_id)) == NOT_FOUND
    assert not await is_invalid_grant(system.sandbox)

    set_fault(system.sandbox)
    await wait_until(partial(is_invalid_grant, system.sandbox), PATIENT)
    await wait_until(partial(outbox_is_empty, shared_database_url), PATIENT)


@pytest.mark.slow
@in_module_loop
async def test_a_disconnection_does_not_wait_for_a_hanging_provider(system: System) -> None:
    integration_id = await system.connect()
    held = HeldResponse()
    set_fault(system.sandbox, revoke=held)
    response = await disconnect(system, integration_id)
    assert response.revocation_state == integration_pb2.REVOCATION_STATE_PENDING
    assert not await is_invalid_grant(system.sandbox)
    held.released.set()
    await wait_until(partial(is_invalid_grant, system.sandbox), PATIENT)


@in_module_loop
async def test_a_disconnection_reports_the_revocation_state(system: System) -> None:
    pending = (await system.begin()).integration_id
    assert (await disconnect(system, pending)).revocation_state == integration_pb2.REVOCATION_STATE_NOTHING_TO_REVOKE
    key = await system.service.ConnectWithApiKey(
        pb.ConnectWithApiKeyRequest(
            user_id="ada", integration_type="sandbox_api_key", api_key=system.sandbox.api_key.key
        )
    )
    response = await disconnect(system, key.integration.integration_id)
    assert response.revocation_state == integration_pb2.REVOCATION_STATE_NOT_SUPPORTED
    response = await disconnect(system, await system.connect())
    assert response.revocation_state == integration_pb2.REVOCATION_STATE_REVOKED
    assert await is_invalid_grant(system.sandbox)


@pytest.mark.slow
@in_module_loop
async def test_the_token_of_a_refresh_that_ends_after_the_disconnection_is_revoked(system: System) -> None:
    integration_id = await system.connect()
    held = HeldResponse(handle_first=True)
    # The provider does not know the used token, which is not an error (RFC 7009 §2.2).
    set_fault(system.sandbox, token=held, revoke=Fault(status=200))
    refreshing = asyncio.ensure_future(
        system.service.RefreshToken(
            pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True), timeout=PATIENT
        )
    )
    await held.wait_for_requests(1)
    response = await disconnect(system, integration_id)
    assert response.revocation_state == integration_pb2.REVOCATION_STATE_PENDING
    assert system.sandbox.calls["revoke"] == 1
    assert not await is_invalid_grant(system.sandbox)

    set_fault(system.sandbox)
    held.released.set()
    assert await expect_rpc_error(refreshing) == NOT_FOUND
    await wait_until(partial(is_invalid_grant, system.sandbox), PATIENT)


@in_module_loop
async def test_tokens_of_a_mismatched_account_are_revoked(system: System) -> None:
    integration_id = await system.connect(account="ada")
    connect_response = await system.begin(integration_id=integration_id)
    response = await system.follow(await system.decide(connect_response, account="linus"))
    assert response.json()["reason"] == "ACCOUNT_MISMATCH"
    await wait_until(partial(is_invalid_grant, system.sandbox, "linus"), PATIENT)
    assert not await is_invalid_grant(system.sandbox, "ada")


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_reconnected_account_keeps_its_grant_when_the_previous_one_is_revoked(
    database_url: str, is_declared: bool
) -> None:
    """For a provider that revokes all grants of an account. Negative control: the provider does not declare that."""

    def register(factory: ProviderFactory, sandbox_url: str) -> None:
        class WholeAccount(OAuth2Provider):
            integration_type = "whole"
            oauth_authorize_url = f"{sandbox_url}/oauth/authorize"
            oauth_token_url = f"{sandbox_url}/oauth/token"
            revoke_url = f"{sandbox_url}/oauth/revoke"
            issuer = sandbox_url
            verify_url = f"{sandbox_url}/userinfo"
            account_id_field = "sub"
            revocation_ends = "grant" if is_declared else "token"

        factory.register(WholeAccount.integration_type, WholeAccount)

    sandbox = Sandbox(behaviour=Behaviour(revocation_ends="grant"))
    sandbox.register_client("whole", "secret", [callback_url("whole")])
    client = {"WHOLE_CLIENT_ID": "whole", "WHOLE_CLIENT_SECRET": "secret"}
    async with run_system(database_url, sandbox=sandbox, environment=client, extra_providers=[register]) as system:
        set_fault(sandbox, revoke=DOWN)
        response = await disconnect(system, await system.connect(integration_type="whole"))
        assert response.revocation_state == integration_pb2.REVOCATION_STATE_PENDING
        await system.connect(integration_type="whole")
        set_fault(sandbox)
        await wait_until(partial(outbox_is_empty, database_url), PATIENT)
        assert await is_invalid_grant(sandbox) is not is_declared


# --- several servers -----------------------------------------------------------------------------------------------


@pytest.fixture
async def pair(tmp_path: Path, database_url: str, prefork: PreforkServer) -> AsyncIterator[Replicas]:
    """Two servers."""
    async with run_replicas(tmp_path, database_url, servers=2, start=prefork.serving) as running:
        yield running


async def kill_while_revoking(pair: Replicas) -> None:
    """Disconnect at the first server, and kill it while the provider hangs."""
    integration_id = await pair.clients[0].connect()
    set_fault(pair.sandbox, revoke=Hang())
    disconnection = asyncio.create_task(disconnect(pair.clients[0], integration_id))

    async def is_called() -> bool:
        return pair.sandbox.calls["revoke"] > 0

    await wait_until(is_called, PATIENT)
    pair.commands[0].send(signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError):
        await disconnection
    assert await expect_rpc_error(pair.clients[1].get(integration_id)) == NOT_FOUND
    assert not await is_invalid_grant(pair.sandbox)


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
async def test_another_server_completes_the_revocation_of_a_killed_server(pair: Replicas) -> None:
    await kill_while_revoking(pair)
    set_fault(pair.sandbox)
    await wait_until(partial(is_invalid_grant, pair.sandbox), PATIENT)


@pytest.mark.slow
async def test_negative_control_without_the_outbox_the_grant_stays_valid(pair: Replicas, database_url: str) -> None:
    await kill_while_revoking(pair)
    await execute(database_url, delete(revocations))
    set_fault(pair.sandbox)
    other = await pair.clients[1].connect(account="linus")
    set_fault(pair.sandbox, revoke=DOWN)
    await disconnect(pair.clients[1], other)
    set_fault(pair.sandbox)
    await wait_until(partial(is_invalid_grant, pair.sandbox, "linus"), PATIENT)  # so that the background worker has run
    assert not await is_invalid_grant(pair.sandbox)


@pytest.mark.slow
async def test_two_servers_send_one_request_per_attempt(pair: Replicas) -> None:
    integration_id = await pair.clients[0].connect()
    set_fault(pair.sandbox, revoke=DOWN)
    await disconnect(pair.clients[0], integration_id)

    async def was_called_three_times() -> bool:
        return pair.sandbox.calls["revoke"] >= 3

    await wait_until(was_called_three_times, PATIENT)
    set_fault(pair.sandbox)
    await wait_until(partial(is_invalid_grant, pair.sandbox), PATIENT)

    async def all_recorded() -> bool:
        return len(attempts_of(pair)) == pair.sandbox.calls["revoke"]

    await wait_until(all_recorded, PATIENT)
    assert sorted(attempts_of(pair)) == list(range(1, len(attempts_of(pair)) + 1))


def attempts_of(pair: Replicas) -> list[int]:
    """The attempt numbers in the servers' logs."""
    lines = [line for command in pair.commands for line in command.output.splitlines()]
    events = [json.loads(line) for line in lines if '"revocation_' in line]
    return [event["attempts"] for event in events]


@pytest.mark.slow
async def test_an_abandoned_revocation_is_logged_as_an_error(tmp_path: Path, database_url: str) -> None:
    async with run_replicas(tmp_path, database_url, servers=1, REVOCATION_GIVE_UP_HOURS="0.001") as alone:
        set_fault(alone.sandbox, revoke=DOWN)
        await disconnect(alone.clients[0], await alone.clients[0].connect())
        output = await alone.commands[0].wait_for_output("revocation_given_up")
        (line,) = (json.loads(line) for line in output.splitlines() if "revocation_given_up" in line)
        assert line["level"] == "error"
        assert (line["integration_type"], line["user_id"]) == ("sandbox", "ada")
        assert line["uid"]
        assert not await is_invalid_grant(alone.sandbox)
        await wait_until(partial(outbox_is_empty, database_url), PATIENT)
