"""Authorization: decides what an authenticated caller may do.

`authorize_method` checks the method's permission before the request is read; `authorize_request` checks the request.
A rejection that depends only on the request (method, type, another user's `user_id`) is CALLER_NOT_ALLOWED. A rejection
that would reveal stored data is reported as if the data did not exist. docs/authentication-and-authorization.md has the
rules.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from cachetools import LRUCache
from google.protobuf.message import Message

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.callers import (
    Caller,
    Permission,
    Policy,
    current_allowed_types,
    current_caller,
    set_current_caller,
)
from integration_server.domain.errors import CallerNotAllowed, IntegrationNotFound
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.rpc import mapping
from integration_server.rpc.authentication import current_identity
from integration_server.rpc.interceptors import first_request, wrap_in_check
from integration_server.rpc.methods import Behavior, Context, Interceptor, Method

IntegrationTypeLookup = Callable[[IntegrationId, UserId], Awaitable[str]]
"""Returns the type of a user's integration. Raises `IntegrationNotFound`."""

CanonicalTypeLookup = Callable[[str], str]
"""Returns the canonical name of an integration type, for its name or an alias."""


# --- interceptors ----------------------------------------------------------------------------------------------------


def authorize_method(policy: Callable[[], Policy]) -> Interceptor:
    """Require the method's permission under the policy in force. Raises `CallerNotAllowed`.

    A stream also ends once the policy no longer grants the permission, or fewer integration types than at its start.
    """

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        def require_permission() -> Caller:
            caller = policy().caller_of(current_identity())
            permissions = caller.permissions
            if method.permission is None or method.permission not in permissions.granted:
                raise CallerNotAllowed
            if method.requires_all_types and permissions.allowed_types.integration_types is not None:
                raise CallerNotAllowed
            return caller

        async def permit(_request: object, _context: Context) -> None:
            set_current_caller(require_permission())

        def require_same_permission() -> None:
            # The next response may be about any type that was allowed at the start.
            if not require_permission().permissions.allowed_types.contains(current_allowed_types()):
                raise CallerNotAllowed

        return wrap_in_check(method, behavior, permit, require_same_permission)

    return wrap


def authorize_request(authorizer: "RequestAuthorizer") -> Interceptor:
    """Bind each request to its caller's user and integration types. It may query the store, so quotas come first."""

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        async def authorize(request: Any, _context: Context) -> None:  # noqa: ANN401  # a message or a stream
            caller = current_caller()
            if caller is None:
                raise RuntimeError("authorize_method has not run")
            await authorizer.authorize(method, first_request(request), caller)

        if method.permission is Permission.REFLECTION:
            return behavior  # no request is about a user
        if method.streams_requests and not method.request_limits.bulk_field:
            # Without one, further requests of a stream could name another user; with one, they have nothing else.
            raise NotImplementedError(f"{method.path} takes a stream of requests, which are not authorized")
        return wrap_in_check(method, behavior, authorize)

    return wrap


def except_health(interceptor: Interceptor) -> Interceptor:
    """Return an interceptor that leaves the health methods to everybody."""

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        return behavior if method.permission is Permission.HEALTH else interceptor(method, behavior)

    return wrap


def only_sidecar(interceptor: Interceptor) -> Interceptor:
    """Return an interceptor for the calls over the Unix socket of the server's sidecar; all others pass."""

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        intercepted = interceptor(method, behavior)

        def choose(request: Any, context: Context) -> Any:  # noqa: ANN401  # as `Behavior`
            is_over_socket = context.peer().startswith("unix:")
            return (intercepted if is_over_socket else behavior)(request, context)

        return choose

    return wrap


class RequestAuthorizer:
    """Checks requests against the users and integration types that their callers may access.

    The type of an integration is looked up once: ids are never reused, and types never change.
    """

    def __init__(
        self, find_type: IntegrationTypeLookup, canonical_type: CanonicalTypeLookup = str, *, cache_size: int = 10_000
    ) -> None:
        self._find_type = find_type
        self._canonical_type = canonical_type
        self._types: LRUCache[tuple[IntegrationId, UserId], str] = LRUCache(cache_size)

    async def authorize(self, method: Method, request: Message, caller: Caller) -> None:
        """Set the `user_id` of a user's request, and check its types. Raises `CallerNotAllowed`, `IntegrationNotFound`
        or `InvalidField`."""
        if caller.user_id is not None and method.names_user:
            _bind_to_user(request, caller.user_id)
        if caller.permissions.allowed_types.integration_types is not None:
            await self._require_allowed_type(caller.permissions.allowed_types, request)

    async def _require_allowed_type(self, allowed_types: AllowedTypes, request: Message) -> None:
        integration_type = getattr(request, "integration_type", "")
        if integration_type and not allowed_types.allows(self._canonical_type(integration_type)):
            raise CallerNotAllowed
        if getattr(request, "integration_id", 0):
            target = mapping.decode_target(request)
            known = self._types.get(target)
            if known is None or not allowed_types.allows(known):
                # Also for a known type that is not allowed: as long as for an id that does not exist.
                known = await self._find_type(*target)
                if not allowed_types.allows(known):
                    raise IntegrationNotFound
                self._types[target] = known


def _bind_to_user(request: Any, user_id: UserId) -> None:  # noqa: ANN401  # a message of any type
    if "user_id" not in request.DESCRIPTOR.fields_by_name:
        raise CallerNotAllowed
    if request.user_id not in {"", user_id}:
        # Decided before any lookup: neither error depends on the other user's data.
        raise IntegrationNotFound if getattr(request, "integration_id", 0) else CallerNotAllowed
    request.user_id = user_id
