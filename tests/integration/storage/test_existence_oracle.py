"""An RPC for another user's integration does the same work as one for an id that does not exist.

The response time would otherwise reveal which ids exist. `benchmarks/existence_oracle.py` measures the times.
"""

from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.descriptor import MethodDescriptor

from integration_server.domain.audit import SUCCESS
from integration_server.domain.integration import IntegrationId
from integration_server.service.integrations.ports import IntegrationUpdate
from integration_server.storage.engine import Database
from tests.existence_attack import ABSENT, METHODS, AttackedServer, RevealingCache
from tests.fakes.inmemory_grpc import RpcError
from tests.fakes.system import ADA
from tests.statements import captured_statements


async def attack(server: AttackedServer, method: MethodDescriptor, integration_id: int) -> tuple[RpcError, list[str]]:
    """Eve's error for an id that is not hers, and the statements that it took."""
    with captured_statements() as statements:
        return await server.attack(method, integration_id), statements


async def make_pending(server: AttackedServer) -> int:
    return (await server.system.begin()).integration_id


async def make_inactive(server: AttackedServer) -> int:
    integration_id = IntegrationId(await server.connect())
    await server.system.integration_manager.update_integration(integration_id, ADA, IntegrationUpdate(is_active=False))
    return integration_id


async def make_checked(server: AttackedServer) -> int:
    integration_id = IntegrationId(await server.connect())
    await server.system.health_checker.check_health(integration_id, ADA)
    return integration_id


VICTIMS: dict[str, Callable[[AttackedServer], Awaitable[int]]] = {
    "cached": AttackedServer.connect,
    "pending": make_pending,
    "inactive": make_inactive,
    "checked": make_checked,
}


async def test_another_users_integration_takes_the_same_statements_as_an_absent_one(database: Database) -> None:
    server = AttackedServer(database)
    victims = {name: await make(server) for name, make in VICTIMS.items()}
    for path, method in METHODS.items():
        await attack(server, method, ABSENT)  # a stream polls the change feed, which has changes at its first poll
        absent_error, absent_statements = await attack(server, method, ABSENT)
        assert absent_error.reason == "INTEGRATION_NOT_FOUND", f"{path}: VALUES lacks what this RPC requires"
        assert absent_statements
        for name, integration_id in victims.items():
            foreign_error, foreign_statements = await attack(server, method, integration_id)
            assert foreign_error.wire == absent_error.wire, (path, name)
            assert foreign_statements == absent_statements, (path, name)
    entries = {(entry.action, entry.outcome, entry.details) for entry in server.system.trail.entries}
    assert {outcome for _, outcome, _ in entries if outcome != SUCCESS} == {"INTEGRATION_NOT_FOUND"}


async def test_attacks_do_not_change_what_is_cached_for_the_owner(database: Database) -> None:
    server = AttackedServer(database)
    integration_id = await server.connect()
    for method in METHODS.values():
        await attack(server, method, integration_id)
        with captured_statements() as statements:
            await server.get_credentials(integration_id)
        assert not statements, method.full_name


@pytest.mark.slow
async def test_negative_control_a_cache_that_compares_the_user_reveals_what_is_cached(database: Database) -> None:
    server = AttackedServer(database, RevealingCache)
    integration_id = await server.connect()
    revealing = {
        method.name
        for method in METHODS.values()
        if (await attack(server, method, integration_id))[1] != (await attack(server, method, ABSENT))[1]
    }
    assert revealing >= {"GetCredentials", "CallProvider", "ListCalendars", "CreateEvent"}
