"""Nobody gets in without a name, and nobody gets at what is not theirs: stands before every handler.

It decides before a request is read, so that what an unknown caller sends is never parsed. What is refused for what
the caller itself said (its RPC, its type, another's user_id) is told as CALLER_NOT_ALLOWED; what would tell of things
that are stored is answered as if they were not there. docs/callers.md has the rules.
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

from integration_server.domain.errors import (
    CallerNotAllowed,
    IntegrationNotFound,
    IntegrationServerError,
)
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.reach import EVERYTHING, Reach
from integration_server.rpc import decoding
from integration_server.rpc.access import ABOUT_NO_USER, GROUPS, Group
from integration_server.rpc.callers import CallerUnknown, Identity, Tokens, identity_of
from integration_server.rpc.errors import status_of
from integration_server.rpc.handlers import Context, Found, Handler, Payload, answer_of, answers_of, doing
from integration_server.rpc.policy import Caller, NameOf, Policy
from integration_server.service.ports import Clock

TypeOf = Callable[[IntegrationId, UserId], Awaitable[str]]
"""The type of a user's integration. Raises `IntegrationNotFound`."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A call that was let in."""

    method: str
    identity: Identity
    caller: Caller


_ADMISSION: ContextVar[Admission | None] = ContextVar("admission", default=None)
"""Of the call that is being answered: gRPC runs each in a task of its own. None where callers are not authenticated."""


def current_reach() -> Reach:
    """What the call that is being answered may touch: everything, where callers are not authenticated."""
    admission = _ADMISSION.get()
    return EVERYTHING if admission is None else admission.caller.rights.reach


def caller_of(_context: Context) -> str:
    """The name of the caller whose call is being answered, as the policy has it; empty where none are known."""
    admission = _ADMISSION.get()
    return "" if admission is None else admission.caller.name


def limited_as(context: Context) -> str:
    """Whose limits the call that is being answered counts towards: a service's, or one user's."""
    admission = _ADMISSION.get()
    user_id = None if admission is None else admission.caller.user_id
    return caller_of(context) if user_id is None else f"{caller_of(context)}/{user_id}"


class Doorkeeper:
    """Decides who gets in. `policy` answers with the one that is in force now."""

    def __init__(
        self, policy: Callable[[], Policy], tokens: Tokens | None, clock: Clock, *, health_is_open: bool
    ) -> None:
        self._policy = policy
        self._tokens = tokens
        self._clock = clock
        self._health_is_open = health_is_open

    def lets_all_in(self, method: str) -> bool:
        """Whether the method is for everybody who can reach the port."""
        return self._health_is_open and GROUPS.get(method) is Group.HEALTH

    async def identify(self, context: Context) -> Identity:
        """Who calls. Raises `CallerUnknown`."""
        return await identity_of(context.invocation_metadata() or (), context.auth_context() or {}, self._tokens)

    async def admit(self, method: str, context: Context) -> Admission:
        """Let a caller in. Raises `CallerUnknown` or `CallerNotAllowed`."""
        identity = await self.identify(context)
        return Admission(method, identity, self._allowed(method, identity))

    def check_again(self, admission: Admission) -> None:
        """Whether a call that goes on would still be let in. Raises `CallerUnknown` or `CallerNotAllowed`."""
        expire_time = admission.identity.expire_time
        if expire_time is not None and self._clock() >= expire_time:
            raise CallerUnknown("the token has expired since")
        caller = self._allowed(admission.method, admission.identity)
        if not caller.rights.reach.includes(admission.caller.rights.reach):
            raise CallerNotAllowed  # what the call is about to be told may be out of its reach by now

    def _allowed(self, method: str, identity: Identity) -> Caller:
        caller = self._policy().caller_of(identity)
        if GROUPS.get(method) not in caller.rights.groups:
            raise CallerNotAllowed
        return caller


class Confinement:
    """Keeps requests within what their callers may touch."""

    def __init__(self, type_of: TypeOf, name_of: NameOf = str) -> None:
        self._types = RememberedTypes(type_of)
        self._name_of = name_of

    async def confine(self, request: Message, admission: Admission) -> None:
        """Make a user's request its own, and raise what is to be said of one that reaches too far."""
        caller = admission.caller
        if caller.user_id is not None and admission.method not in ABOUT_NO_USER:
            _make_own(request, caller.user_id)
        if caller.rights.reach.integration_types is not None:
            await self._require_within(caller.rights.reach, request)

    async def _require_within(self, reach: Reach, request: Message) -> None:
        named = getattr(request, "integration_type", "")
        if named and not reach.covers(self._name_of(named)):
            raise CallerNotAllowed
        if getattr(request, "integration_id", 0):
            integration_type = await self._types.of(
                decoding.integration_id(getattr(request, "integration_id", 0)),
                decoding.user_id(getattr(request, "user_id", "")),
            )
            if not reach.covers(integration_type):
                raise IntegrationNotFound


def _make_own(request: Message, user_id: UserId) -> None:
    if "user_id" not in request.DESCRIPTOR.fields_by_name:
        raise CallerNotAllowed
    named = getattr(request, "user_id")  # noqa: B009  # of whatever message it is
    if named not in {"", user_id}:
        # Before anything is looked at: neither answer depends on what the other user has.
        raise IntegrationNotFound if getattr(request, "integration_id", 0) else CallerNotAllowed
    setattr(request, "user_id", user_id)  # noqa: B010  # likewise


class RememberedTypes:
    """Types of integrations, each looked up once: an id is never used again, and a type never changes."""

    def __init__(self, type_of: TypeOf, most: int = 10_000) -> None:
        self._type_of = type_of
        self._most = most
        self._known: OrderedDict[tuple[IntegrationId, UserId], str] = OrderedDict()

    async def of(self, integration_id: IntegrationId, user_id: UserId) -> str:
        """The type. Raises `IntegrationNotFound`."""
        key = integration_id, user_id
        if key not in self._known:
            found = await self._type_of(integration_id, user_id)
            self._known[key] = found
            if len(self._known) > self._most:
                self._known.popitem(last=False)
            return found
        self._known.move_to_end(key)
        return self._known[key]


class CallerInterceptor(grpc.aio.ServerInterceptor):
    """Lets callers in: stands before every handler, also those of health and reflection, and where there is none."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return self._no_handler()
        if self._doorkeeper.lets_all_in(method):
            return handler

        async def answer(request: Payload, context: Context) -> Payload:
            await self._admit(method, context)
            return await answer_of(handler)(request, context)

        async def answers(request: Payload, context: Context) -> AsyncGenerator[Payload, None]:
            admission = await self._admit(method, context)
            async for response in answers_of(handler)(request, context):
                await self._check_again(admission, context)
                yield response

        return doing(handler, answer, answers)

    def _no_handler(self) -> Handler:
        async def nothing(_requests: object, context: Context) -> None:
            try:
                await self._doorkeeper.identify(context)
            except CallerUnknown as error:  # who does not learn what there is
                await _turn_away("unknown", context, error)  # the name is the client's own text
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # in gRPC's own words

        return grpc.stream_unary_rpc_method_handler(nothing)  # nothing of the request is waited for

    async def _admit(self, method: str, context: Context) -> Admission:
        try:
            admission = await self._doorkeeper.admit(method, context)
        except CallerUnknown as error:
            await _turn_away(method, context, error)
        except CallerNotAllowed as error:
            await _refuse(method, context, error)
        _ADMISSION.set(admission)
        return admission

    async def _check_again(self, admission: Admission, context: Context) -> None:
        try:
            self._doorkeeper.check_again(admission)
        except CallerUnknown as error:
            await _turn_away(admission.method, context, error)
        except CallerNotAllowed as error:
            await _refuse(admission.method, context, error)


class ConfinementInterceptor(grpc.aio.ServerInterceptor):
    """Keeps requests within what the callers who were let in may touch.

    That may look into the database: what limits a caller's calls stands before it.
    """

    def __init__(self, doorkeeper: Doorkeeper, confinement: Confinement) -> None:
        self._doorkeeper = doorkeeper
        self._confinement = confinement

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler: Found = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or self._doorkeeper.lets_all_in(method) or handler.stream_stream is not None:
            return cast("Handler", handler)  # a conversation, which is reflection's, is about no user
        if handler.stream_unary is not None:
            raise NotImplementedError(f"{method} is of a kind that nothing confines")

        async def answer(request: Message, context: Context) -> Payload:
            await self._confine(request, context)
            return await handler.unary_unary(request, context)

        async def answers(request: Message, context: Context) -> AsyncGenerator[Payload, None]:
            await self._confine(request, context)
            async for response in handler.unary_stream(request, context):
                yield response

        return doing(handler, answer, answers)

    async def _confine(self, request: Message, context: Context) -> None:
        admission = _ADMISSION.get()
        if admission is None:
            raise RuntimeError("nobody was let in")
        try:
            await self._confinement.confine(request, admission)
        except IntegrationServerError as error:
            await _refuse(admission.method, context, error, caller=admission.caller.name)


async def _turn_away(method: str, context: Context, error: CallerUnknown) -> NoReturn:
    structlog.get_logger(__name__).info("caller_unknown", method=method, problem=str(error))
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the caller is not known")


async def _refuse(method: str, context: Context, error: IntegrationServerError, **who: str) -> NoReturn:
    structlog.get_logger(__name__).info("refused", method=method, reason=error.reason, **who)
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
