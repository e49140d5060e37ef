"""The callers of RPCs: how they authenticate, what the policy permits them, and who makes the current call.

A caller is a service, a user or the sidecar.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, NO_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.integration import UserId

USER = "user"
"""The name of callers that are users."""

SIDECAR = "sidecar"
"""The name of the sidecar."""

# --- permissions -----------------------------------------------------------------------------------------------------


class Permission(StrEnum):
    """A set of RPCs that a policy grants together."""

    READ = "read"
    CONNECT = "connect"
    MANAGE = "manage"
    CHECK = "check"
    CREDENTIALS = "credentials"
    CALLS = "calls"
    CALLBACKS = "callbacks"
    WATCH = "watch"
    WEBHOOKS = "webhooks"
    WEBHOOK_DELIVERY = "webhook_delivery"
    OPERATE = "operate"
    HEALTH = "health"
    REFLECTION = "reflection"


USER_PERMISSIONS = frozenset(
    {Permission.READ, Permission.CONNECT, Permission.MANAGE, Permission.CHECK, Permission.CALLBACKS, Permission.WATCH}
)
"""The permissions that a policy can grant to users. The others are for backends and operators only."""

SIDECAR_PERMISSIONS = frozenset({Permission.CALLBACKS, Permission.WEBHOOK_DELIVERY, Permission.HEALTH})
"""The fixed permissions of the sidecar."""

SIDECAR_ONLY_PERMISSIONS = frozenset({Permission.WEBHOOK_DELIVERY})
"""The permissions that a policy cannot grant to any other caller."""

TYPELESS_PERMISSIONS = frozenset({Permission.HEALTH, Permission.REFLECTION})
"""The permissions that need no integration types."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """The permissions that a policy grants a caller, and the integration types that they apply to."""

    granted: frozenset[Permission] = frozenset()
    allowed_types: AllowedTypes = NO_INTEGRATION_TYPES


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller and its permissions. A caller with a `user_id` acts for that user only."""

    name: str
    permissions: Permissions
    user_id: UserId | None = None


SIDECAR_CALLER = Caller(SIDECAR, Permissions(SIDECAR_PERMISSIONS, ALL_INTEGRATION_TYPES))
"""The sidecar, whichever way it authenticates."""

# --- identities ------------------------------------------------------------------------------------------------------


class IdentityKind(StrEnum):
    """How a caller authenticates."""

    CERTIFICATE = "certificate"
    TOKEN = "token"
    USER = "user"
    SIDECAR = "sidecar"  # the secret of the sidecar that the server has started with


@dataclass(frozen=True, slots=True)
class Identity:
    """The authenticated name of a caller, and when it expires."""

    kind: IdentityKind
    name: str
    expire_time: datetime | None = None


class Policy:
    """The permissions of all known callers."""

    def __init__(self, services: Mapping[tuple[IdentityKind, str], Caller], users: Permissions) -> None:
        self._services = services
        self._users = users

    def caller_of(self, identity: Identity) -> Caller:
        """Return the caller with this identity; an unknown caller has no permissions."""
        if identity.kind is IdentityKind.SIDECAR:
            return SIDECAR_CALLER
        if identity.kind is IdentityKind.USER:
            return Caller(USER, self._users, UserId(identity.name))
        return self._services.get((identity.kind, identity.name)) or Caller(identity.name, Permissions())


# --- the current call ------------------------------------------------------------------------------------------------

_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""The caller of the current call. None where callers are not authenticated."""


def current_allowed_types() -> AllowedTypes:
    """Return the integration types that the current call may access: all, where callers are not authenticated."""
    caller = _caller.get()
    return ALL_INTEGRATION_TYPES if caller is None else caller.permissions.allowed_types


def current_caller() -> Caller | None:
    """Return the current call's caller. None where callers are not authenticated."""
    return _caller.get()


def set_current_caller(caller: Caller | None) -> None:
    """Set the current call's caller, whose permission has been checked."""
    _caller.set(caller)


def current_caller_name() -> str | None:
    """Return the name that the policy has for the current call's caller; None where callers are not authenticated."""
    caller = _caller.get()
    return None if caller is None else caller.name
