"""How many SQL statements an RPC runs: none if the cache has what it needs, and otherwise one."""

import asyncio
from collections.abc import Sequence

import pytest
from google.protobuf.message import Message

from integration_server.domain.integration import IntegrationId
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest
from integration_server.service.integrations.ports import NewAccount
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from integrations.v1 import integration_service_pb2 as pb
from tests.contracts.webhook_contract import new_event
from tests.existence_attack import AttackedServer
from tests.fakes.system import ADA, EVE
from tests.statements import captured_statements
from tests.unit.rpc.test_hot_path import HotServer


@pytest.fixture
def server(database: Database) -> AttackedServer:
    return AttackedServer(database)


async def statements_of(server: AttackedServer, *requests: Message) -> Sequence[str]:
    """The statements of concurrent calls, with the beginning and end of transactions."""
    with captured_statements() as statements:
        calls = [server.call(type(request).__name__.removesuffix("Request"), request) for request in requests]
        await asyncio.gather(*calls)
    return statements


def get_credentials(integration_id: int) -> Message:
    return pb.GetCredentialsRequest(integration_id=integration_id, user_id=ADA)


async def connect(server: AttackedServer, count: int) -> list[int]:
    """Ada's integrations, which are not cached."""
    server.system.key_provider.account = NewAccount(None, None)  # each connection is another integration
    ids = [await server.connect() for _ in range(count)]
    server.cache.apply_changes(None, 0.0)
    return ids


async def test_a_miss_is_one_statement_and_a_hit_none(server: AttackedServer) -> None:
    (integration_id,) = await connect(server, 1)
    (statement,) = await statements_of(server, get_credentials(integration_id))
    unused = ("client_key", "token_fingerprint", "last_webhook_number")
    assert not [column for column in unused if column in statement]
    assert not await statements_of(server, get_credentials(integration_id))
    assert not await statements_of(server, *[get_credentials(integration_id)] * 5)
    server.cache.invalidate(IntegrationId(integration_id))
    assert len(await statements_of(server, get_credentials(integration_id))) == 1


async def test_a_hit_on_the_hot_path_is_no_statement(database: Database) -> None:
    server = HotServer(database)
    request = ApiKeyConnectionRequest(ADA, "fake_key", "key")
    integration_id = (await server.system.api_key_connection.connect_with_api_key(request)).integration_id
    await server.warm(integration_id)
    with captured_statements() as statements:
        await asyncio.gather(*(server.call(integration_id) for _ in range(5)))
    assert (statements, server.slow_calls) == ([], 1)
    server.cache.invalidate(integration_id)
    with captured_statements() as statements:
        await server.call(integration_id)
    assert (bool(statements), server.slow_calls) == (True, 2)


async def test_concurrent_misses_are_one_statement(server: AttackedServer) -> None:
    ids = await connect(server, 8)
    requests = [get_credentials(one) for one in ids * 3]
    assert len(await statements_of(server, *requests)) == 1
    assert not await statements_of(server, *requests)


@pytest.mark.parametrize("count", [1, 2, 40])
async def test_all_misses_of_a_batch_are_one_statement_and_hits_none(server: AttackedServer, count: int) -> None:
    ids = await connect(server, count)
    targets = [(one, ADA) for one in ids] + [(4_000_000_000, ADA), (ids[0], EVE)]
    items = [pb.GetCredentialsRequest(integration_id=one, user_id=user) for one, user in targets]
    assert len(await statements_of(server, pb.BatchGetCredentialsRequest(requests=items))) == 1
    assert not await statements_of(server, pb.BatchGetCredentialsRequest(requests=items[:count]))
    server.cache.invalidate(IntegrationId(ids[0]))
    assert len(await statements_of(server, pb.BatchGetCredentialsRequest(requests=items[:count]))) == 1


@pytest.mark.parametrize("count", [0, 1, 7])
async def test_a_page_of_a_list_is_one_statement(server: AttackedServer, count: int) -> None:
    await connect(server, count)
    for fields in ({}, {"page_size": 3}, {"integration_type": "fake_key"}, {"integration_type": "fake"}):
        request = pb.ListIntegrationsRequest(user_id=ADA, **fields)
        assert len(await statements_of(server, request)) == 1, fields
    first = await server.call("ListIntegrations", pb.ListIntegrationsRequest(user_id=ADA, page_size=3))
    following = pb.ListIntegrationsRequest(user_id=ADA, page_size=3, page_token=first.next_page_token)
    assert len(await statements_of(server, following)) == 1


async def test_reads_of_one_integration_are_one_statement(server: AttackedServer) -> None:
    (integration_id,) = await connect(server, 1)
    for request in (
        pb.GetIntegrationRequest(integration_id=integration_id, user_id=ADA),
        pb.GetWebhookEndpointRequest(integration_id=integration_id, user_id=ADA),
    ):
        statements = await statements_of(server, request)
        assert len([one for one in statements if one.startswith("SELECT")]) == 1


async def test_an_event_is_stored_by_one_statement_in_postgresql(server: AttackedServer, database: Database) -> None:
    """Known ones too, which SQLite looks up in its transaction."""
    (integration_id,) = await connect(server, 1)
    stored = await SqlIntegrations(database).get(IntegrationId(integration_id), ADA)
    inbox, is_postgres = SqlWebhookInbox(database), database.dialect_name == "postgresql"
    for event_id, count in (("first", 1 if is_postgres else 3), ("second", 1 if is_postgres else 3), ("first", 1)):
        with captured_statements() as statements:
            await inbox.add([new_event(stored.integration, event_id)])
        assert len(statements) == count
