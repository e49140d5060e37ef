"""A flood of callbacks with forged states costs no database access, measured at the engines of a running server.

The server runs without background work, so that every statement belongs to a call.
"""

import asyncio
import base64
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta

import grpc
import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from integration_server.bootstrap import build_service
from integration_server.dev import register_sandbox
from integration_server.domain.associated_data import AssociatedData
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.lifecycle import serving
from integration_server.providers.http import ProviderHttp
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.health import ServerHealthServicer
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import (
    Aead,
)
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.server import run_sidecar
from integration_server.storage.audit import SqlAuditLog
from integration_server.storage.engine import Database
from integration_server.wiring.auth import AuthStack
from integration_server.wiring.grpc_server import build_grpc_server
from integration_server.wiring.providers import build_providers
from integration_server.wiring.sidecar import http_limits_of
from integration_server.wiring.storage import sql_stores
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb
from tests.attack_inputs import forged_states
from tests.end_to_end.system import CLIENT_ID, KEY, Clients, clients_of, settings_for
from tests.keyrings import open_test_keyring

pytestmark = pytest.mark.slow

FLOOD = 1000
CALLBACK = "/api/v1/integrations/callback/sandbox"


class LookupFirstAead:
    """An `Aead` that queries the database before each decryption, as a lookup by an unauthenticated id would."""

    def __init__(self, aead: Aead, integrations: IntegrationStore) -> None:
        self._aead = aead
        self._integrations = integrations

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """Encrypt without a query."""
        return await self._aead.encrypt(plaintext, associated_data)

    async def decrypt(self, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        """Query the database, then decrypt."""
        await self._integrations.find(IntegrationId(1), UserId("ada"))
        return await self._aead.decrypt(ciphertext, associated_data)


@asynccontextmanager
async def run_idle_server(
    database_url: str, database: Database, *, lookup_first: bool = False
) -> AsyncIterator[Clients]:
    """Server and sidecar on real sockets, without background work."""
    settings = settings_for(database_url)
    http = ProviderHttp(utc_now, dev_mode=True)
    providers = build_providers(
        settings,
        {"SANDBOX_CLIENT_ID": CLIENT_ID, "SANDBOX_CLIENT_SECRET": "an-unused-secret"},
        http,
        extra=[lambda factory: register_sandbox(factory, "http://127.0.0.1:9")],
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(http)
        # The clock stands still, so that at most one lookup of unknown data keys (one per second) occurs.
        keyring = await open_test_keyring(database, KEY, monotonic=lambda: 0.0)
        tasks = await stack.enter_async_context(DetachedTasks())
        stores = sql_stores(settings, database, lambda _: None)
        aead = LookupFirstAead(keyring, stores.integrations) if lookup_first else keyring
        trail = AuditTrail(SqlAuditLog(database, keyring))  # accepts entries, and writes none because it is not entered
        service = build_service(
            settings,
            stores,
            providers,
            aead,
            tasks,
            trail,
            utc_now,
            None,
        )
        server = build_grpc_server(
            settings,
            service.use_cases,
            service.google_calendar,
            ServerHealthServicer([]),
            AuthStack(),
            trail,
            utc_now,
            CallLog(),
        )
        port = await stack.enter_async_context(serving(server, "127.0.0.1:0", timedelta(0)))
        target = f"127.0.0.1:{port}"
        limits = replace(http_limits_of(settings), failures_per_second=FLOOD)
        sidecar = run_sidecar(server=ServerClient(target), host="127.0.0.1", port=0, limits=limits, public_url="")
        url = await stack.enter_async_context(sidecar)
        yield await stack.enter_async_context(clients_of(target, url))


@contextmanager
def count_round_trips() -> Iterator[Counter[str]]:
    """Count statements, new connections and checkouts of all engines in this process."""
    round_trips: Counter[str] = Counter()

    def count(kind: str) -> Callable[..., None]:
        def increment(*_: object) -> None:
            round_trips[kind] += 1

        return increment

    listeners = [
        (Engine, "before_cursor_execute", count("statement")),
        (Pool, "connect", count("connection")),
        (Pool, "checkout", count("loan")),
    ]
    for target, name, listener in listeners:
        event.listen(target, name, listener)
    try:
        yield round_trips
    finally:
        for target, name, listener in listeners:
            event.remove(target, name, listener)


async def send_rpc_flood(clients: Clients, states: Sequence[str]) -> Counter[grpc.StatusCode]:
    """Send a callback with each state, fifty at a time; the number of each status code."""

    async def call(state: str) -> grpc.StatusCode:
        request = pb.HandleCallbackRequest(state=state, code="c", integration_type="sandbox")
        try:
            await clients.service.HandleCallback(request)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    ended: Counter[grpc.StatusCode] = Counter()
    for batch in _batches(states, 50):
        ended.update(await asyncio.gather(*map(call, batch)))
    return ended


async def send_http_flood(clients: Clients, states: Sequence[str]) -> Counter[int]:
    """The same through the sidecar."""

    async def get(state: str) -> int:
        query = httpx.QueryParams({"state": state, "code": "c"})
        return (await clients.browser.get(f"{clients.sidecar_url}{CALLBACK}?{query}")).status_code

    ended: Counter[int] = Counter()
    for batch in _batches(states, 20):
        ended.update(await asyncio.gather(*map(get, batch)))
    return ended


def _batches(states: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (states[at : at + size] for at in range(0, len(states), size))


async def forge_states(clients: Clients) -> list[str]:
    """Forged states, derived from a genuine one."""
    connect_response = await clients.begin()
    return list(itertools.islice(forged_states(connect_response.state), FLOOD))


async def test_a_thousand_forged_callbacks_cost_no_round_trip(database_url: str, database: Database) -> None:
    async with run_idle_server(database_url, database) as clients:
        states = await forge_states(clients)
        with count_round_trips() as round_trips:
            assert await send_rpc_flood(clients, states) == {grpc.StatusCode.INVALID_ARGUMENT: FLOOD}
            assert await send_http_flood(clients, states[:100]) == {400: 100}  # through the sidecar to the same RPC
        assert round_trips == {}


async def test_the_database_counters_count_a_connect_call(database_url: str, database: Database) -> None:
    async with run_idle_server(database_url, database) as clients:
        with count_round_trips() as round_trips:
            await clients.begin()
        assert round_trips["statement"] >= 2
        assert round_trips["loan"] >= 1


async def test_negative_control_a_lookup_before_decryption_costs_a_round_trip_per_forged_state(
    database_url: str, database: Database
) -> None:
    async with run_idle_server(database_url, database, lookup_first=True) as clients:
        states = await forge_states(clients)
        with count_round_trips() as round_trips:
            assert await send_rpc_flood(clients, states) == {grpc.StatusCode.INVALID_ARGUMENT: FLOOD}
        ciphertext = [state for state in states if _is_base64url(state)]
        assert round_trips["statement"] == len(ciphertext)
        assert round_trips["loan"] >= 1  # a connection stays lent from one statement to the next
        assert len(ciphertext) > FLOOD / 2


def _is_base64url(state: str) -> bool:
    """Whether the text is canonical base64url: the server does not try to decrypt anything else."""
    try:
        ciphertext = base64.urlsafe_b64decode(state + "=" * (-len(state) % 4))
    except ValueError:
        return False
    return base64.urlsafe_b64encode(ciphertext).decode().rstrip("=") == state


async def test_states_with_unknown_data_keys_cost_one_lookup_per_second_in_total(
    database_url: str, database: Database
) -> None:
    """Another replica may have added the key a moment ago, so a lookup is necessary."""
    async with run_idle_server(database_url, database) as clients:
        genuine = (await clients.begin()).state
        # Characters 2 to 12 encode only the key id.
        states = [f"{genuine[:2]}{number:09}{genuine[11:]}" for number in range(FLOOD)]
        with count_round_trips() as round_trips:
            assert await send_rpc_flood(clients, states) == {grpc.StatusCode.INVALID_ARGUMENT: FLOOD}
        assert round_trips["statement"] <= 1
        assert round_trips["loan"] <= 1
