"""The contract declares the access rules of every RPC; an RPC without them is denied to every caller."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from integration_server.domain.audit import Action
from integration_server.domain.callers import (
    TYPELESS_PERMISSIONS,
    Caller,
    Identity,
    IdentityKind,
    Permission,
    Permissions,
    Policy,
)
from integration_server.domain.errors import CallerNotAllowed
from integration_server.rpc.authentication import TokenAuthenticator, authenticate
from integration_server.rpc.authorization import authorize_method
from integration_server.rpc.interceptors import compose
from integration_server.rpc.methods import Method, describe_method, method_of
from integrations.v1 import google_calendar_pb2, integration_service_pb2, operator_service_pb2, options_pb2
from tests.fakes.clock import SettableClock
from tests.fakes.inmemory_grpc import FakeContext

OURS = (
    integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"],
    google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"],
    operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"],
)
THIRD_PARTY = (
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
RPCS = [method for service in OURS for method in service.methods]
FULL_ACCESS = options_pb2.Access(
    permission=options_pb2.PERMISSION_READ, audit_action=options_pb2.AUDIT_ACTION_UPDATE, names_user=False
)


@pytest.mark.parametrize("descriptor", RPCS, ids=lambda descriptor: descriptor.name)
def test_every_rpc_declares_its_access_rules(descriptor: Any) -> None:
    access = descriptor.GetOptions().Extensions[options_pb2.access]
    assert access.permission
    assert access.audit_action
    assert access.HasField("names_user")
    assert access.names_user == ("user_id" in descriptor.input_type.fields_by_name)
    # Only a recorded call has an entry to await.
    assert not (access.await_audit and access.audit_action == options_pb2.AUDIT_ACTION_NONE)


def test_the_rules_are_read_from_the_contract() -> None:
    method = describe_method("/integrations.v1.IntegrationService/UpdateIntegration")
    assert (method.permission, method.audit_action) == (Permission.MANAGE, Action.UPDATE)
    assert (method.awaits_audit, method.names_user, method.streams_responses) == (True, True, False)
    assert method.request_class is integration_service_pb2.UpdateIntegrationRequest
    watch = describe_method("/integrations.v1.IntegrationService/WatchIntegrations")
    assert (watch.permission, watch.audit_action, watch.streams_responses) == (Permission.WATCH, None, True)
    assert not describe_method("/integrations.v1.IntegrationService/ListIntegrationTypes").names_user


def test_third_party_services_have_permissions_of_their_own() -> None:
    methods = [method_of(descriptor) for service in THIRD_PARTY for descriptor in service.methods]
    assert {method.permission for method in methods} == TYPELESS_PERMISSIONS
    assert {method.audit_action for method in methods} == {None}


def test_every_permission_has_an_rpc_and_the_contract_names_the_same() -> None:
    used = {method_of(descriptor).permission for service in (*OURS, *THIRD_PARTY) for descriptor in service.methods}
    assert used == set(Permission)
    named = {name.removeprefix("PERMISSION_").lower() for name in options_pb2.Permission.keys()}  # noqa: SIM118
    assert named - {"unspecified"} == set(Permission) - TYPELESS_PERMISSIONS


def test_the_contract_names_every_action_of_an_rpc() -> None:
    named = {name.removeprefix("AUDIT_ACTION_").lower() for name in options_pb2.AuditAction.keys()}  # noqa: SIM118
    assert named - {"unspecified", "none"} == set(Action) - {
        Action.CHANGE_KEYS,
        Action.LOSE_GRANT,
        Action.ERASE_USER,
        Action.STORE_CREDENTIALS,
    }


def build_method(access: options_pb2.Access | None) -> Method:
    """Return the RPC of a new contract with these access rules."""
    file = descriptor_pb2.FileDescriptorProto(name="new.proto", package="new", syntax="proto3")
    file.message_type.add(name="Request")
    rpc = file.service.add(name="Service").method.add(
        name="Call", input_type=".new.Request", output_type=".new.Request"
    )
    options: Any = rpc.options  # extensions are not typed
    if access is not None:
        options.Extensions[options_pb2.access].CopyFrom(access)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return method_of(pool.FindMethodByName("new.Service.Call"))


@pytest.mark.parametrize("incomplete", ["missing", "permission", "audit_action", "names_user", None])
async def test_an_rpc_without_complete_rules_is_denied_to_every_caller(incomplete: str | None) -> None:
    access = options_pb2.Access()
    access.CopyFrom(FULL_ACCESS)
    if incomplete not in {None, "missing"}:
        access.ClearField(incomplete)
    method = build_method(None if incomplete == "missing" else access)

    class Verifier:
        """Accepts every token."""

        keys: object = ()

        async def resolve_identity(self, token: str) -> Identity:
            return Identity(IdentityKind.TOKEN, token)

    async def respond(request: str, _context: object) -> str:
        return request

    caller = Caller("all", Permissions(frozenset(Permission)))
    policy = Policy({(IdentityKind.TOKEN, "all"): caller}, Permissions())
    tokens = TokenAuthenticator(Verifier(), None, SettableClock())
    behavior = compose(method, respond, [authenticate(tokens, SettableClock()), authorize_method(lambda: policy)])
    if incomplete is None:  # the negative control
        assert await behavior("request", FakeContext(token="all")) == "request"
        return
    with pytest.raises(CallerNotAllowed):
        await behavior("request", FakeContext(token="all"))
