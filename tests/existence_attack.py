"""Requests that try to find out which integrations exist, generated from the contract, and a server for them."""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import integrations.v1
from integration_server.domain.callers import Permission
from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import IntegrationId, StoredIntegration, UserId
from integration_server.domain.integration_cache import RaceSafeCache
from integration_server.rpc.call_audit import record_audit
from integration_server.rpc.google_calendar import GoogleCalendarService
from integration_server.rpc.integration_service import IntegrationService
from integration_server.rpc.interceptors import enforce_deadline
from integration_server.rpc.methods import method_of
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest
from integration_server.settings import Settings
from integration_server.storage.engine import Database
from integration_server.wiring.storage import Stores, sql_stores
from integrations.v1 import google_calendar_pb2_grpc, integration_service_pb2_grpc
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.inmemory_grpc import FakeContext, InMemoryGrpc, RpcError
from tests.fakes.system import ADA, EVE, FakeSystem

ABSENT = 4_000_000_000
A_DAY = {"start": {"date": "2026-03-28"}, "end": {"date": "2026-03-29"}}

# Valid values of the fields that RPCs require, by name; of `integration_type`, by method.
VALUES: dict[str, Any] = {
    "consumer": "mail",
    "through_number": 1,
    "method": "GET",
    "path": "/things",
    "api_key": "key",
    "event": {"event_id": "abcde", **A_DAY},
    "event_id": "abcde",
    "name": "new",
}
TYPES = {"Connect": "fake", "ConnectWithApiKey": "fake_key"}


def methods_of_the_contract() -> Iterator[MethodDescriptor]:
    """Every RPC of `integrations.v1`."""
    for module in pkgutil.iter_modules(integrations.v1.__path__, "integrations.v1."):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(module.name).DESCRIPTOR
            for service in descriptor.services_by_name.values():
                yield from service.methods


def names_integration(message: Any) -> bool:
    """Whether a message has a field for the id of an integration, at any depth."""
    return any(
        field.name.startswith("integration_id")
        or (
            field.message_type is not None
            and field.message_type.full_name.startswith("integrations.")
            and names_integration(field.message_type)
        )
        for field in message.fields
    )


def is_for_operators(method: MethodDescriptor) -> bool:
    """Whether only operators, who may search across users, can call the method."""
    return method_of(method).permission is Permission.OPERATE


METHODS = {
    method.full_name: method
    for method in methods_of_the_contract()
    if not is_for_operators(method) and names_integration(method.input_type)
}


def request_for(method: MethodDescriptor, integration_id: int, user_id: UserId) -> Message:
    """A valid request for an integration."""
    fields = method.input_type.fields_by_name
    if "requests" in fields:  # a batch
        item = {"integration_id": integration_id, "user_id": user_id}
        return GetMessageClass(method.input_type)(requests=[item])
    if "integration_ids" in fields:  # a stream
        return GetMessageClass(method.input_type)(integration_ids=[integration_id], user_id=user_id)
    values = {name: value for name, value in VALUES.items() if name in fields}
    if "integration_type" in fields:
        values["integration_type"] = TYPES[method.name]
    return GetMessageClass(method.input_type)(**values, integration_id=integration_id, user_id=user_id)


def results_of(response: Any) -> Sequence[pb.CredentialsResult]:
    """The results in the response to a batch, or in one of a stream; none in other responses."""
    results = getattr(response, "results", ())
    return [result.result if isinstance(result, pb.WatchedCredentials) else result for result in results]


def raise_error_of(response: Message) -> None:
    """Raise the first error in the results of a response, as a single call would end with it."""
    for result in results_of(response):
        if result.HasField("error"):
            (code,) = (code for code in grpc.StatusCode if code.value[0] == result.error.code)
            details = result.error.SerializeToString()
            raise RpcError(code, result.error.message, [("grpc-status-details-bin", details)])


class RevealingCache(RaceSafeCache):
    """Negative control: a cache that knows at once that a cached integration belongs to another user."""

    def get(self, integration_id: IntegrationId, user_id: UserId | None) -> StoredIntegration | None:
        """The user's integration. Raises `IntegrationNotFound` for another user's, without a read of the store."""
        entry = self._entries.get(integration_id)
        if entry is not None and entry.found.integration.user_id != user_id:
            raise IntegrationNotFound
        return None if entry is None else entry.found


class AttackedServer:
    """The servicers over a database, with a cache that is always up to date."""

    def __init__(self, database: Database, cache_type: type[RaceSafeCache] = RaceSafeCache) -> None:
        self.cache = cache = cache_type(2**20, lambda: 0.0)
        cache.apply_changes(None, 0.0)
        self.system = FakeSystem(
            options={"cache": cache},
            wrap_stores=lambda stores, _: replace(stores_over(database, cache), journal=stores.journal),
        )
        service = self.system.another_process()
        self._reader = service.reader
        servicers = {
            "integrations.v1.IntegrationService": partial(
                integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server,
                IntegrationService(service.use_cases, self.system.clock),
            ),
            "integrations.v1.GoogleCalendarService": partial(
                google_calendar_pb2_grpc.add_GoogleCalendarServiceServicer_to_server,
                GoogleCalendarService(service.google_calendar),
            ),
        }
        interceptors = [enforce_deadline(), record_audit(self.system.trail, lambda _: "caller", self.system.clock)]
        self._clients = {name: InMemoryGrpc(name, add, interceptors) for name, add in servicers.items()}

    async def connect(self, user_id: UserId = ADA) -> int:
        """Connect an integration and use it, so that it is cached."""
        request = ApiKeyConnectionRequest(user_id, "fake_key", "key", webhook_secret="secret")
        connected = await self.system.api_key_connection.connect_with_api_key(request)
        await self._reader.poll()  # what a stream's first poll finds is not cached
        await self.get_credentials(connected.integration_id)
        return connected.integration_id

    async def get_credentials(self, integration_id: int) -> None:
        """Use ada's integration."""
        await self.call("GetCredentials", pb.GetCredentialsRequest(integration_id=integration_id, user_id=ADA))

    async def call(self, method: str, request: Message) -> Any:
        """The response of a method of the integration service."""
        return await self._clients["integrations.v1.IntegrationService"].call(method, request)

    async def attack(self, method: MethodDescriptor, integration_id: int) -> RpcError:
        """Eve's error for an id that is not hers."""
        client = self._clients[method.containing_service.full_name]
        try:
            request, context = request_for(method, integration_id, EVE), FakeContext(remaining=30)
            raise_error_of(await client.call(method.name, request, context))
        except RpcError as error:
            return error
        raise AssertionError(f"{method.full_name} succeeds for another user's integration")


def stores_over(database: Database, cache: RaceSafeCache) -> Stores:
    """The SQL stores, which drop what they change from the cache."""
    settings = Settings.from_environment({"DEV_MODE": "true"}, needs_key=False)
    return sql_stores(settings, database, cache.invalidate)
