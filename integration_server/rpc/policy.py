"""What callers may do: a TOML file of the operator's, in which what is not granted is denied. See
docs/authentication-and-authorization.md.
"""

import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, NO_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.audit import OPERATOR, SERVER
from integration_server.domain.integration import UserId
from integration_server.hot_reload import Contents, InvalidFile
from integration_server.rpc.peer_identity import Identity, IdentityKind
from integration_server.rpc.permissions import (
    SIDECAR_ONLY_PERMISSIONS,
    SIDECAR_PERMISSIONS,
    TYPELESS_PERMISSIONS,
    USER_PERMISSIONS,
    Permission,
)

CanonicalTypeLookup = Callable[[str], str]
"""The own name of an integration type that may be named by an alias."""

ALL_TYPES = "*"
SIDECAR = "sidecar"
USER = "user"

_RESERVED_NAMES = frozenset({SERVER, OPERATOR, SIDECAR, USER})
"""Callers in the audit log that are not services: one of the same name could not be told from them."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Groups of RPCs, and the integration types that they may touch."""

    groups: frozenset[Permission] = frozenset()
    allowed_types: AllowedTypes = NO_INTEGRATION_TYPES


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what it may. One with a `user_id` acts for that user only; others name whom they act for."""

    name: str
    permissions: Permissions
    user_id: UserId | None = None


class Policy:
    """The rights of everybody that a policy knows."""

    def __init__(self, services: Mapping[tuple[IdentityKind, str], Caller], users: Permissions) -> None:
        self._services = services
        self._users = users

    def caller_of(self, identity: Identity) -> Caller:
        """The caller with its rights: none, for one that the policy does not know."""
        if identity.kind is IdentityKind.USER:
            (user_id,) = identity.names
            return Caller(USER, self._users, UserId(user_id))
        known = [self._services.get((identity.kind, name)) for name in identity.names]
        callers = {caller for caller in known if caller is not None}
        if len(callers) != 1:
            # A certificate whose names are of several services is none of them: which one asks cannot be told.
            return Caller(identity.names[0], Permissions())
        return callers.pop()


# --- the file ----------------------------------------------------------------------------------------------------


def read_policy(contents: Contents, canonical_type: CanonicalTypeLookup = str) -> Policy:
    """The policy in a file's contents, its types by their own names. Raises `InvalidFile` with all that is wrong."""
    ((path, content),) = contents.items()
    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:
        raise InvalidFile(f"{path}: cannot be read as TOML: {error}") from None
    problems = list(_duplicate_claims(document))
    try:
        declared = _File.model_validate(document)
    except ValidationError as error:
        raise InvalidFile(*(f"{path}: {problem}" for problem in (*_describe_problems(error), *problems))) from None
    if problems:
        raise InvalidFile(*(f"{path}: {problem}" for problem in problems))
    return declared.policy(canonical_type)


def _lower_unless_uri(name: str) -> str:
    # Host names are the same in both cases (RFC 4343); SPIFFE IDs are not.
    return name if name.startswith("spiffe://") else name.lower()


def _require_user_permission(group: Permission) -> Permission:
    if group not in USER_PERMISSIONS:
        raise PydanticCustomError("not_for_users", "is never for users")
    return group


def _require_service_permission(group: Permission) -> Permission:
    if group in SIDECAR_ONLY_PERMISSIONS:
        raise PydanticCustomError("sidecar_only", "is for the sidecar only")
    return group


def _reject_reserved_name(name: str) -> str:
    if name.strip().lower() in _RESERVED_NAMES:
        raise PydanticCustomError(
            "reserved_name", "is not for a service: the audit log has another caller of that name"
        )
    return name


Text = Annotated[str, StringConstraints(min_length=1, max_length=255)]
ServiceName = Annotated[Text, AfterValidator(_reject_reserved_name)]
CertificateName = Annotated[Text, AfterValidator(_lower_unless_uri)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Names(_Section):
    """How a service shows who it is."""

    certificates: tuple[CertificateName, ...] = ()
    tokens: tuple[Text, ...] = Field((), validate_default=True)

    @field_validator("tokens")
    @classmethod
    def _require_identity(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not value and not info.data.get("certificates", True):
            raise PydanticCustomError("no_identity", "or certificates must name the caller")
        return value

    def identities(self) -> Iterator[tuple[IdentityKind, str]]:
        yield from ((IdentityKind.CERTIFICATE, name) for name in self.certificates)
        yield from ((IdentityKind.TOKEN, name) for name in self.tokens)


class _Grant(_Section):
    """What is granted."""

    groups: frozenset[Permission]
    integration_types: frozenset[Text] = Field(frozenset(), validate_default=True)

    @field_validator("integration_types")
    @classmethod
    def _require_types(cls, value: frozenset[str], info: ValidationInfo) -> frozenset[str]:
        if not value and info.data.get("groups", frozenset()) - TYPELESS_PERMISSIONS:
            raise PydanticCustomError("no_types", 'must name types, or be ["*"] for all, with these groups')
        return value

    def permissions(self, canonical_type: CanonicalTypeLookup) -> Permissions:
        named = self.integration_types
        return Permissions(
            self.groups,
            ALL_INTEGRATION_TYPES if ALL_TYPES in named else AllowedTypes(frozenset(map(canonical_type, named))),
        )


class _Users(_Grant):
    groups: frozenset[Annotated[Permission, AfterValidator(_require_user_permission)]]


class _Service(_Names, _Grant):
    groups: frozenset[Annotated[Permission, AfterValidator(_require_service_permission)]]


class _File(_Section):
    users: _Users | None = None
    sidecar: _Names | None = None
    services: Mapping[ServiceName, _Service] = {}

    def policy(self, canonical_type: CanonicalTypeLookup) -> Policy:
        services = {
            identity: Caller(name, service.permissions(canonical_type))
            for name, service in self.services.items()
            for identity in service.identities()
        }
        if self.sidecar is not None:
            sidecar = Caller(SIDECAR, Permissions(SIDECAR_PERMISSIONS, ALL_INTEGRATION_TYPES))
            services.update(dict.fromkeys(self.sidecar.identities(), sidecar))
        return Policy(services, Permissions() if self.users is None else self.users.permissions(canonical_type))


def _describe_problems(error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        location = ".".join(str(part) for part in detail["loc"] if part != "[key]")
        yield f"{location}: {_MESSAGES.get(detail['type'], detail['msg'])}"


_MESSAGES = {
    "extra_forbidden": "is not known here",
    "missing": "is required",
    "enum": f"is not one of {', '.join(Permission)}",
}


def _duplicate_claims(document: Mapping[str, Any]) -> Iterator[str]:
    """Problems of names that several callers claim; what is not shaped as it should be is told elsewhere."""
    services = document.get("services")
    callers = [document.get("sidecar"), *(services.values() if isinstance(services, dict) else ())]
    for key, fold in (("certificates", _lower_unless_uri), ("tokens", str)):
        lists = (caller.get(key) for caller in callers if isinstance(caller, dict))
        claimed = Counter(
            name for names in lists if isinstance(names, list) for name in {fold(str(name)) for name in names}
        )
        yield from (f"{key}: {name!r} is claimed by several callers" for name, times in claimed.items() if times > 1)
