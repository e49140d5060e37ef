"""A state or confirmation is used once over all replicas, because they share the database.

A callback that repeats state and code has the outcome of the first, from whichever replica.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration_server.bootstrap import running_server
from integration_server.dev import register_sandbox
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.rpc_errors import FAILED_PRECONDITION, INVALID_ARGUMENT, RpcError, expect_rpc_error
from tests.end_to_end.system import (
    APP_CALLBACK,
    CLIENT_ID,
    CONFIRMING,
    Clients,
    System,
    callback_url,
    clients_of,
    query_of,
    run_system,
    settings_for,
)

pytestmark = pytest.mark.slow

SECRET = "the-secret-of-both-replicas"
ENVIRONMENT = {"SANDBOX_CLIENT_ID": CLIENT_ID, "SANDBOX_CLIENT_SECRET": SECRET}
USED = RpcError(FAILED_PRECONDITION, "STATE_USED")
INVALID = RpcError(INVALID_ARGUMENT, "CONFIRMATION_INVALID")


@asynccontextmanager
async def first_replica(database_url: str, **settings: Any) -> AsyncIterator[System]:
    """A server, and the sandbox of both replicas."""
    async with run_system(database_url, environment=ENVIRONMENT, **settings) as system:
        system.sandbox.register_client(CLIENT_ID, SECRET, [callback_url("sandbox"), APP_CALLBACK])
        yield system


@asynccontextmanager
async def another_replica(first: System, database_url: str, **settings: str) -> AsyncIterator[Clients]:
    """A second server with the same key, beside the same sandbox."""
    register = partial(_register, first.sandbox_url)
    async with (
        running_server(settings_for(database_url, **settings), ENVIRONMENT, extra_providers=[register]) as running,
        clients_of(running.grpc_address, running.sidecar_url) as clients,
    ):
        yield clients


def _register(sandbox_url: str, factory: Any) -> None:
    register_sandbox(factory, sandbox_url)


async def callback(system: System) -> pb.HandleCallbackRequest:
    """The callback of a browser."""
    connect_response = await system.begin(redirect_uri=APP_CALLBACK)
    query = query_of(await system.decide(connect_response, account="ada"))
    return pb.HandleCallbackRequest(code=query["code"], state=query["state"], iss=query["iss"])


def confirm(replica: Clients, token: str) -> Awaitable[Any]:
    """Confirm as ada."""
    return replica.service.ConfirmConnection(pb.ConfirmConnectionRequest(confirmation_token=token, user_id="ada"))


def copy_of(sqlite_url: str, name: str) -> str:
    """A copy of the database."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    for beside in ("", "-wal"):
        if (original := path.with_name(path.name + beside)).exists():
            shutil.copy(original, path.with_name(name + beside))
    return f"sqlite:///{path.with_name(name)}"


@pytest.mark.quick_on("postgres")
async def test_a_state_used_at_one_replica_has_one_outcome_and_takes_no_other_code(database_url: str) -> None:
    async with first_replica(database_url) as first, another_replica(first, database_url) as second:
        callback_request = await callback(first)
        response = await first.service.HandleCallback(callback_request)
        assert response.success
        assert await second.service.HandleCallback(callback_request) == response
        callback_request.code = "another"
        assert await expect_rpc_error(second.service.HandleCallback(callback_request)) == USED
        assert len(first.sandbox.token_calls) == 1


@pytest.mark.quick_on("postgres")
async def test_a_failure_at_one_replica_is_repeated_at_the_other(database_url: str) -> None:
    async with first_replica(database_url) as first, another_replica(first, database_url) as second:
        callback_request = await callback(first)
        callback_request.code = "no such code"
        rejected = RpcError(FAILED_PRECONDITION, "PROVIDER_REJECTED")
        assert await expect_rpc_error(first.service.HandleCallback(callback_request)) == rejected
        assert await expect_rpc_error(second.service.HandleCallback(callback_request)) == rejected
        assert len(first.sandbox.token_calls) == 1


@pytest.mark.quick_on("postgres")
async def test_one_of_concurrent_callbacks_at_both_replicas_is_exchanged(database_url: str) -> None:
    async with first_replica(database_url) as first, another_replica(first, database_url) as second:
        callback_request = await callback(first)
        calls = [replica.service.HandleCallback(callback_request) for replica in (first, second) for _ in range(10)]
        responses = await asyncio.gather(*calls)
        assert all(response.success and response == responses[0] for response in responses)
        assert [call.outcome for call in first.sandbox.token_calls] == ["ok"]


@pytest.mark.quick_on("postgres")
async def test_a_confirmation_used_at_one_replica_is_rejected_at_the_other(database_url: str) -> None:
    async with (
        first_replica(database_url, **CONFIRMING) as first,
        another_replica(first, database_url, **CONFIRMING) as second,
    ):
        callback_request = await callback(first)
        token = (await second.service.HandleCallback(callback_request)).confirmation_token
        assert (await first.service.HandleCallback(callback_request)).confirmation_token == token
        assert (await confirm(first, token)).success
        assert await expect_rpc_error(confirm(second, token)) == INVALID
        assert len(first.sandbox.token_calls) == 1


async def test_negative_control_a_replica_with_its_own_database_accepts_the_state_again(sqlite_url: str) -> None:
    async with first_replica(sqlite_url) as first:
        callback_request = await callback(first)
        async with another_replica(first, copy_of(sqlite_url, "copy.db")) as second:
            assert (await first.service.HandleCallback(callback_request)).success
            # The code reaches the provider twice, which revokes the tokens (RFC 6749 §4.1.2).
            rejected = RpcError(FAILED_PRECONDITION, "PROVIDER_REJECTED")
            assert await expect_rpc_error(second.service.HandleCallback(callback_request)) == rejected
        assert [call.outcome for call in first.sandbox.token_calls] == ["ok", "invalid_grant"]


async def test_negative_control_a_replica_with_its_own_database_confirms_again(sqlite_url: str) -> None:
    async with first_replica(sqlite_url, **CONFIRMING) as first:
        token = (await first.service.HandleCallback(await callback(first))).confirmation_token
        async with another_replica(first, copy_of(sqlite_url, "copy.db"), **CONFIRMING) as second:
            assert (await confirm(first, token)).success
            assert await expect_rpc_error(confirm(second, token)) == RpcError(FAILED_PRECONDITION, "PROVIDER_REJECTED")
        assert len(first.sandbox.token_calls) == 2
