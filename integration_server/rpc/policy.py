"""What callers may do: a TOML file of the operator's, in which what is not granted is denied. See docs/callers.md."""

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

from integration_server.domain.audit import OPERATOR, SERVER
from integration_server.domain.integration import UserId
from integration_server.domain.reach import EVERYTHING, NOTHING, Reach
from integration_server.reloading import Contents, Unusable
from integration_server.rpc.access import (
    ABOUT_NOTHING_STORED,
    FOR_SIDECAR,
    FOR_SIDECAR_ONLY,
    FOR_USERS,
    Group,
)
from integration_server.rpc.callers import Identity, Kind

NameOf = Callable[[str], str]
"""The own name of an integration type that may be named by an alias."""

ALL_TYPES = "*"
SIDECAR = "sidecar"
USER = "user"

_NOT_FOR_SERVICES = frozenset({SERVER, OPERATOR, SIDECAR, USER})
"""Callers in the audit log that are not services: one of the same name could not be told from them."""


@dataclass(frozen=True, slots=True)
class Rights:
    """Groups of RPCs, and the integration types that they may touch."""

    groups: frozenset[Group] = frozenset()
    reach: Reach = NOTHING


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what it may. One with a `user_id` acts for that user only; others name whom they act for."""

    name: str
    rights: Rights
    user_id: UserId | None = None


class Policy:
    """The rights of everybody that a policy knows."""

    def __init__(self, services: Mapping[tuple[Kind, str], Caller], users: Rights) -> None:
        self._services = services
        self._users = users

    def caller_of(self, identity: Identity) -> Caller:
        """The caller with its rights: none, for one that the policy does not know."""
        if identity.kind is Kind.USER:
            (user_id,) = identity.names
            return Caller(USER, self._users, UserId(user_id))
        known = [self._services.get((identity.kind, name)) for name in identity.names]
        callers = {caller for caller in known if caller is not None}
        if len(callers) != 1:
            # A certificate whose names are of several services is none of them: which one asks cannot be told.
            return Caller(identity.names[0], Rights())
        return callers.pop()


# --- the file ----------------------------------------------------------------------------------------------------


def read_policy(contents: Contents, name_of: NameOf = str) -> Policy:
    """The policy in a file's contents, its types by their own names. Raises `Unusable` with all that is wrong."""
    ((path, content),) = contents.items()
    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:
        raise Unusable(f"{path}: cannot be read as TOML: {error}") from None
    problems = list(_claimed_twice(document))
    try:
        declared = _File.model_validate(document)
    except ValidationError as error:
        raise Unusable(*(f"{path}: {problem}" for problem in (*_told(error), *problems))) from None
    if problems:
        raise Unusable(*(f"{path}: {problem}" for problem in problems))
    return declared.policy(name_of)


def _lower_unless_uri(name: str) -> str:
    # Host names are the same in both cases (RFC 4343); SPIFFE IDs are not.
    return name if name.startswith("spiffe://") else name.lower()


def _for_users(group: Group) -> Group:
    if group not in FOR_USERS:
        raise PydanticCustomError("not_for_users", "is never for users")
    return group


def _for_services(group: Group) -> Group:
    if group in FOR_SIDECAR_ONLY:
        raise PydanticCustomError("for_the_sidecar", "is for the sidecar only")
    return group


def _not_anothers(name: str) -> str:
    if name.strip().lower() in _NOT_FOR_SERVICES:
        raise PydanticCustomError("anothers", "is not for a service: the audit log has another caller of that name")
    return name


Text = Annotated[str, StringConstraints(min_length=1, max_length=255)]
ServiceName = Annotated[Text, AfterValidator(_not_anothers)]
CertificateName = Annotated[Text, AfterValidator(_lower_unless_uri)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Names(_Part):
    """How a service shows who it is."""

    certificates: tuple[CertificateName, ...] = ()
    tokens: tuple[Text, ...] = Field((), validate_default=True)

    @field_validator("tokens")
    @classmethod
    def _has_a_name(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not value and not info.data.get("certificates", True):
            raise PydanticCustomError("nameless", "or certificates must name the caller")
        return value

    def identities(self) -> Iterator[tuple[Kind, str]]:
        yield from ((Kind.CERTIFICATE, name) for name in self.certificates)
        yield from ((Kind.TOKEN, name) for name in self.tokens)


class _Grant(_Part):
    """What is granted."""

    groups: frozenset[Group]
    integration_types: frozenset[Text] = Field(frozenset(), validate_default=True)

    @field_validator("integration_types")
    @classmethod
    def _types_are_said(cls, value: frozenset[str], info: ValidationInfo) -> frozenset[str]:
        if not value and info.data.get("groups", frozenset()) - ABOUT_NOTHING_STORED:
            raise PydanticCustomError("no_types", 'must name types, or be ["*"] for all, with these groups')
        return value

    def rights(self, name_of: NameOf) -> Rights:
        named = self.integration_types
        return Rights(self.groups, EVERYTHING if ALL_TYPES in named else Reach(frozenset(map(name_of, named))))


class _Users(_Grant):
    groups: frozenset[Annotated[Group, AfterValidator(_for_users)]]


class _Service(_Names, _Grant):
    groups: frozenset[Annotated[Group, AfterValidator(_for_services)]]


class _File(_Part):
    users: _Users | None = None
    sidecar: _Names | None = None
    services: Mapping[ServiceName, _Service] = {}

    def policy(self, name_of: NameOf) -> Policy:
        services = {
            identity: Caller(name, service.rights(name_of))
            for name, service in self.services.items()
            for identity in service.identities()
        }
        if self.sidecar is not None:
            sidecar = Caller(SIDECAR, Rights(FOR_SIDECAR, EVERYTHING))
            services.update(dict.fromkeys(self.sidecar.identities(), sidecar))
        return Policy(services, Rights() if self.users is None else self.users.rights(name_of))


def _told(error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        place = ".".join(str(part) for part in detail["loc"] if part != "[key]")
        yield f"{place}: {_SENTENCES.get(detail['type'], detail['msg'])}"


_SENTENCES = {
    "extra_forbidden": "is not known here",
    "missing": "is required",
    "enum": f"is not one of {', '.join(Group)}",
}


def _claimed_twice(document: Mapping[str, Any]) -> Iterator[str]:
    """Problems of names that several callers claim; what is not shaped as it should be is told elsewhere."""
    services = document.get("services")
    callers = [document.get("sidecar"), *(services.values() if isinstance(services, dict) else ())]
    for key, fold in (("certificates", _lower_unless_uri), ("tokens", str)):
        lists = (caller.get(key) for caller in callers if isinstance(caller, dict))
        claimed = Counter(
            name for names in lists if isinstance(names, list) for name in {fold(str(name)) for name in names}
        )
        yield from (f"{key}: {name!r} is claimed by several callers" for name, times in claimed.items() if times > 1)
