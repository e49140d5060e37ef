"""The policy file: TOML that grants permissions to callers. docs/authentication-and-authorization.md describes it."""

import tomllib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
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

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.audit import OPERATOR, SERVER
from integration_server.domain.callers import (
    SIDECAR,
    SIDECAR_CALLER,
    SIDECAR_ONLY_PERMISSIONS,
    TYPELESS_PERMISSIONS,
    USER,
    USER_PERMISSIONS,
    Caller,
    IdentityKind,
    Permission,
    Permissions,
    Policy,
)
from integration_server.domain.text import control_character_problem
from integration_server.hot_reload import Contents, InvalidFile
from integration_server.rpc.authorization import CanonicalTypeLookup
from integration_server.rpc.certificate_names import parse_name

ALL_TYPES = "*"

RESERVED_NAMES = frozenset({SERVER, OPERATOR, SIDECAR, USER})
"""The callers in the audit log that are not services. A service with the same name would look like them."""


def read_policy(
    contents: Contents,
    canonical_type: CanonicalTypeLookup = str,
    *,
    reserved_names: Collection[str] = RESERVED_NAMES,
) -> Policy:
    """Return the policy in the contents of one file. Raises `InvalidFile` with all problems."""
    ((path, content),) = contents.items()
    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:
        raise InvalidFile(f"{path}: cannot be read as TOML: {error}") from None
    problems = list(_duplicate_claims(document))
    try:
        declared = _File.model_validate(document, context=reserved_names)
    except ValidationError as error:
        raise InvalidFile(*(f"{path}: {problem}" for problem in (*_describe_problems(error), *problems))) from None
    if problems:
        raise InvalidFile(*(f"{path}: {problem}" for problem in problems))
    return declared.policy(canonical_type)


def _parse_certificate_name(name: str) -> str:
    try:
        return parse_name(name)
    except ValueError as error:
        raise PydanticCustomError("certificate_name", "{problem}", {"problem": str(error)}) from None


def _comparable(name: str) -> str:
    """Return a certificate's name as it is compared; an invalid one, which the validation reports, as it is."""
    try:
        return parse_name(name)
    except ValueError:
        return name


def _require_user_permission(permission: Permission) -> Permission:
    if permission not in USER_PERMISSIONS:
        raise PydanticCustomError("not_for_users", "cannot be granted to users")
    return permission


def _require_service_permission(permission: Permission) -> Permission:
    if permission in SIDECAR_ONLY_PERMISSIONS:
        raise PydanticCustomError("sidecar_only", "can be granted to the sidecar only")
    return permission


def _reject_control_characters(text: str) -> str:
    if problem := control_character_problem(text):
        raise PydanticCustomError("control_characters", "{problem}", {"problem": problem})
    return text


def _reject_reserved_name(name: str, info: ValidationInfo) -> str:
    # Full-width and other compatibility letters look like those that they stand for.
    if unicodedata.normalize("NFKC", name).strip().casefold() in (info.context or ()):
        raise PydanticCustomError("reserved_name", "is a reserved name: the audit log uses it for another caller")
    return name


Text = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_reject_control_characters)]
ServiceName = Annotated[Text, AfterValidator(_reject_reserved_name)]
CertificateName = Annotated[Text, AfterValidator(_parse_certificate_name)]
UserPermission = Annotated[Permission, AfterValidator(_require_user_permission)]
ServicePermission = Annotated[Permission, AfterValidator(_require_service_permission)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Names(_Section):
    """The names by which a caller authenticates."""

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
    """The permissions of a caller, and the integration types that they apply to."""

    permissions: frozenset[Permission]
    integration_types: frozenset[Text] = Field(frozenset(), validate_default=True)

    @field_validator("integration_types")
    @classmethod
    def _require_types(cls, value: frozenset[str], info: ValidationInfo) -> frozenset[str]:
        if not value and info.data.get("permissions", frozenset()) - TYPELESS_PERMISSIONS:
            raise PydanticCustomError("no_types", 'must name types, or be ["*"] for all, with these permissions')
        return value

    def granted(self, canonical_type: CanonicalTypeLookup) -> Permissions:
        types = self.integration_types
        return Permissions(
            self.permissions,
            ALL_INTEGRATION_TYPES if ALL_TYPES in types else AllowedTypes(frozenset(map(canonical_type, types))),
        )


class _Users(_Grant):
    permissions: frozenset[UserPermission]


class _Service(_Names, _Grant):
    permissions: frozenset[ServicePermission]


class _File(_Section):
    users: _Users | None = None
    sidecar: _Names | None = None
    services: Mapping[ServiceName, _Service] = {}

    def policy(self, canonical_type: CanonicalTypeLookup) -> Policy:
        services = {
            identity: Caller(name, service.granted(canonical_type))
            for name, service in self.services.items()
            for identity in service.identities()
        }
        if self.sidecar is not None:
            services.update(dict.fromkeys(self.sidecar.identities(), SIDECAR_CALLER))
        return Policy(services, Permissions() if self.users is None else self.users.granted(canonical_type))


def _describe_problems(error: ValidationError) -> Iterator[str]:
    messages = {
        "extra_forbidden": "is not a known key",
        "missing": "is required",
        "enum": f"is not one of {', '.join(Permission)}",
    }
    for detail in error.errors():
        location = ".".join(str(part) for part in detail["loc"] if part != "[key]")
        yield f"{location}: {messages.get(detail['type'], detail['msg'])}"


def _duplicate_claims(document: Mapping[str, Any]) -> Iterator[str]:
    """Report names that several callers claim. Values of the wrong type are reported by the validation."""
    services = document.get("services")
    callers = [document.get("sidecar"), *(services.values() if isinstance(services, dict) else ())]
    for key, fold in (("certificates", _comparable), ("tokens", str)):
        lists = (caller.get(key) for caller in callers if isinstance(caller, dict))
        claimed = Counter(
            name for names in lists if isinstance(names, list) for name in {fold(str(name)) for name in names}
        )
        yield from (f"{key}: {name!r} is claimed by several callers" for name, times in claimed.items() if times > 1)
