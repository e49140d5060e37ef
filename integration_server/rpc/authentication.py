"""Nobody gets in without a name, and nobody gets at what is not theirs: stands before every handler.

It decides before a request is read, so that what an unknown caller sends is never parsed. What is refused for what
the caller itself said (its RPC, its type, another's user_id) is told as CALLER_NOT_ALLOWED; what would tell of things
that are stored is answered as if they were not there. docs/authentication-and-authorization.md has the rules.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NoReturn, cast

import grpc
import structlog
from google.protobuf.message import Message
from grpc_status import rpc_status

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import (
    CallerNotAllowed,
    IntegrationNotFound,
    IntegrationServerError,
)
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.rpc import decoding
from integration_server.rpc.errors import status_of
from integration_server.rpc.interceptors import (
    Context,
    Handler,
    Payload,
    RpcHandler,
    stream_behaviour,
    unary_behaviour,
    wrap_handler,
)
from integration_server.rpc.peer_identity import Identity, TokenVerifier, Unauthenticated, resolve_identity
from integration_server.rpc.permissions import METHOD_PERMISSIONS, USERLESS_METHODS, Permission
from integration_server.rpc.policy import Caller, CanonicalTypeLookup, Policy
from integration_server.service.common_types import Clock

IntegrationTypeLookup = Callable[[IntegrationId, UserId], Awaitable[str]]
"""The type of a user's integration. Raises `IntegrationNotFound`."""


@dataclass(frozen=True, slots=True)
class AuthenticatedCall:
    """A call that was let in."""

    method: str
    identity: Identity
    caller: Caller


_CURRENT_CALL: ContextVar[AuthenticatedCall | None] = ContextVar("authenticated_call", default=None)
"""Of the call that is being answered: gRPC runs each in a task of its own. None where callers are not authenticated."""


def current_allowed_types() -> AllowedTypes:
    """What the call that is being answered may touch: everything, where callers are not authenticated."""
    authenticated_call = _CURRENT_CALL.get()
    return ALL_INTEGRATION_TYPES if authenticated_call is None else authenticated_call.caller.permissions.allowed_types


def caller_of(_context: Context) -> str:
    """The name of the caller whose call is being answered, as the policy has it; empty where none are known."""
    authenticated_call = _CURRENT_CALL.get()
    return "" if authenticated_call is None else authenticated_call.caller.name


def quota_key(context: Context) -> str:
    """Whose limits the call that is being answered counts towards: a service's, or one user's."""
    authenticated_call = _CURRENT_CALL.get()
    user_id = None if authenticated_call is None else authenticated_call.caller.user_id
    return caller_of(context) if user_id is None else f"{caller_of(context)}/{user_id}"


class Authenticator:
    """Decides who gets in. `policy` answers with the one that is in force now."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        token_verifier: TokenVerifier | None,
        clock: Clock,
        *,
        health_is_public: bool,
    ) -> None:
        self._policy = policy
        self._token_verifier = token_verifier
        self._clock = clock
        self._health_is_public = health_is_public

    def is_public(self, method: str) -> bool:
        """Whether the method is for everybody who can reach the port."""
        return self._health_is_public and METHOD_PERMISSIONS.get(method) is Permission.HEALTH

    async def identify(self, context: Context) -> Identity:
        """Who calls. Raises `Unauthenticated`."""
        return await resolve_identity(
            context.invocation_metadata() or (), context.auth_context() or {}, self._token_verifier
        )

    async def authenticate(self, method: str, context: Context) -> AuthenticatedCall:
        """Let a caller in. Raises `Unauthenticated` or `CallerNotAllowed`."""
        identity = await self.identify(context)
        return AuthenticatedCall(method, identity, self._require_permission(method, identity))

    def reauthorize(self, authenticated_call: AuthenticatedCall) -> None:
        """Whether a call that goes on would still be let in. Raises `Unauthenticated` or `CallerNotAllowed`."""
        expire_time = authenticated_call.identity.expire_time
        if expire_time is not None and self._clock() >= expire_time:
            raise Unauthenticated("the token has expired since")
        caller = self._require_permission(authenticated_call.method, authenticated_call.identity)
        if not caller.permissions.allowed_types.contains(authenticated_call.caller.permissions.allowed_types):
            raise CallerNotAllowed  # what the call is about to be told may be out of its reach by now

    def _require_permission(self, method: str, identity: Identity) -> Caller:
        caller = self._policy().caller_of(identity)
        if METHOD_PERMISSIONS.get(method) not in caller.permissions.groups:
            raise CallerNotAllowed
        return caller


class RequestAuthorizer:
    """Keeps requests within what their callers may touch."""

    def __init__(self, find_type: IntegrationTypeLookup, canonical_type: CanonicalTypeLookup = str) -> None:
        self._type_cache = IntegrationTypeCache(find_type)
        self._canonical_type = canonical_type

    async def authorize(self, request: Message, authenticated_call: AuthenticatedCall) -> None:
        """Make a user's request its own, and raise what is to be said of one that reaches too far."""
        caller = authenticated_call.caller
        if caller.user_id is not None and authenticated_call.method not in USERLESS_METHODS:
            _bind_to_user(request, caller.user_id)
        if caller.permissions.allowed_types.integration_types is not None:
            await self._require_allowed_type(caller.permissions.allowed_types, request)

    async def _require_allowed_type(self, allowed_types: AllowedTypes, request: Message) -> None:
        named = getattr(request, "integration_type", "")
        if named and not allowed_types.allows(self._canonical_type(named)):
            raise CallerNotAllowed
        if getattr(request, "integration_id", 0):
            integration_type = await self._type_cache.get(
                decoding.integration_id(getattr(request, "integration_id", 0)),
                decoding.user_id(getattr(request, "user_id", "")),
            )
            if not allowed_types.allows(integration_type):
                raise IntegrationNotFound


def _bind_to_user(request: Message, user_id: UserId) -> None:
    if "user_id" not in request.DESCRIPTOR.fields_by_name:
        raise CallerNotAllowed
    named = getattr(request, "user_id")  # noqa: B009  # of whatever message it is
    if named not in {"", user_id}:
        # Before anything is looked at: neither answer depends on what the other user has.
        raise IntegrationNotFound if getattr(request, "integration_id", 0) else CallerNotAllowed
    setattr(request, "user_id", user_id)  # noqa: B010  # likewise


class IntegrationTypeCache:
    """Types of integrations, each looked up once: an id is never used again, and a type never changes."""

    def __init__(self, find_type: IntegrationTypeLookup, max_size: int = 10_000) -> None:
        self._find_type = find_type
        self._max_size = max_size
        self._entries: OrderedDict[tuple[IntegrationId, UserId], str] = OrderedDict()

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> str:
        """The type. Raises `IntegrationNotFound`."""
        key = integration_id, user_id
        if key not in self._entries:
            found = await self._find_type(integration_id, user_id)
            self._entries[key] = found
            if len(self._entries) > self._max_size:
                self._entries.popitem(last=False)
            return found
        self._entries.move_to_end(key)
        return self._entries[key]


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):
    """Lets callers in: stands before every handler, also those of health and reflection, and where there is none."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return self._unknown_method_handler()
        if self._authenticator.is_public(method):
            return handler

        async def respond(request: Payload, context: Context) -> Payload:
            await self._authenticate(method, context)
            return await unary_behaviour(handler)(request, context)

        async def respond_stream(request: Payload, context: Context) -> AsyncGenerator[Payload, None]:
            authenticated_call = await self._authenticate(method, context)
            async for response in stream_behaviour(handler)(request, context):
                await self._reauthorize(authenticated_call, context)
                yield response

        return wrap_handler(handler, respond, respond_stream)

    def _unknown_method_handler(self) -> Handler:
        async def reject(_requests: object, context: Context) -> None:
            try:
                await self._authenticator.identify(context)
            except Unauthenticated as error:  # who does not learn what there is
                await _reject_unauthenticated("unknown", context, error)  # the name is the client's own text
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # in gRPC's own words

        return grpc.stream_unary_rpc_method_handler(reject)  # nothing of the request is waited for

    async def _authenticate(self, method: str, context: Context) -> AuthenticatedCall:
        try:
            authenticated_call = await self._authenticator.authenticate(method, context)
        except Unauthenticated as error:
            await _reject_unauthenticated(method, context, error)
        except CallerNotAllowed as error:
            await _reject(method, context, error)
        _CURRENT_CALL.set(authenticated_call)
        return authenticated_call

    async def _reauthorize(self, authenticated_call: AuthenticatedCall, context: Context) -> None:
        try:
            self._authenticator.reauthorize(authenticated_call)
        except Unauthenticated as error:
            await _reject_unauthenticated(authenticated_call.method, context, error)
        except CallerNotAllowed as error:
            await _reject(authenticated_call.method, context, error)


class AuthorizationInterceptor(grpc.aio.ServerInterceptor):
    """Keeps requests within what the callers who were let in may touch.

    That may look into the database: what limits a caller's calls stands before it.
    """

    def __init__(self, authenticator: Authenticator, request_authorizer: RequestAuthorizer) -> None:
        self._authenticator = authenticator
        self._request_authorizer = request_authorizer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler: RpcHandler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or self._authenticator.is_public(method) or handler.stream_stream is not None:
            return cast("Handler", handler)  # a conversation, which is reflection's, is about no user
        if handler.stream_unary is not None:
            raise NotImplementedError(f"{method} is of a kind that nothing confines")

        async def respond(request: Message, context: Context) -> Payload:
            await self._authorize(request, context)
            return await handler.unary_unary(request, context)

        async def respond_stream(request: Message, context: Context) -> AsyncGenerator[Payload, None]:
            await self._authorize(request, context)
            async for response in handler.unary_stream(request, context):
                yield response

        return wrap_handler(handler, respond, respond_stream)

    async def _authorize(self, request: Message, context: Context) -> None:
        authenticated_call = _CURRENT_CALL.get()
        if authenticated_call is None:
            raise RuntimeError("nobody was let in")
        try:
            await self._request_authorizer.authorize(request, authenticated_call)
        except IntegrationServerError as error:
            await _reject(authenticated_call.method, context, error, caller=authenticated_call.caller.name)


async def _reject_unauthenticated(method: str, context: Context, error: Unauthenticated) -> NoReturn:
    structlog.get_logger(__name__).info("unauthenticated", method=method, problem=str(error))
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the caller is not known")


async def _reject(method: str, context: Context, error: IntegrationServerError, **fields: str) -> NoReturn:
    structlog.get_logger(__name__).info("rpc_rejected", method=method, reason=error.reason, **fields)
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
