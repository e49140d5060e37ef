"""The policy file: the permissions that it grants, and the reported problems of an invalid file."""

from pathlib import Path

import pytest

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, NO_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.callers import (
    SIDECAR_PERMISSIONS,
    USER_PERMISSIONS,
    Identity,
    IdentityKind,
    Permission,
    Permissions,
    Policy,
)
from integration_server.hot_reload import InvalidFile
from integration_server.rpc.certificate_names import parse_name
from integration_server.rpc.policy import read_policy

PATH = Path("policy.toml")

GOOD = """
[users]
permissions = ["read", "manage"]
integration_types = ["google_calendar"]

[sidecar]
certificates = ["spiffe://example.org/sidecar"]
tokens = ["sidecar"]

[services.sync]
certificates = ["spiffe://example.org/sync", "Sync.Example.org"]
permissions = ["credentials"]
integration_types = ["*"]

[services.probe]
tokens = ["probe"]
permissions = ["health"]
"""


def policy(text: str = GOOD) -> Policy:
    return read_policy({PATH: text.encode()})


def problems_of(text: str) -> list[str]:
    with pytest.raises(InvalidFile) as rejected:
        policy(text)
    assert all(problem.startswith("policy.toml: ") for problem in rejected.value.problems)
    return [problem.removeprefix("policy.toml: ") for problem in rejected.value.problems]


def permissions(kind: IdentityKind, name: str) -> Permissions:
    return policy().caller_of(Identity(kind, name)).permissions


def test_a_service_has_the_permissions_that_it_is_granted() -> None:
    granted = Permissions(frozenset({Permission.CREDENTIALS}), ALL_INTEGRATION_TYPES)
    assert permissions(IdentityKind.CERTIFICATE, "spiffe://example.org/sync") == granted
    assert permissions(IdentityKind.CERTIFICATE, "sync.example.org") == granted
    assert permissions(IdentityKind.TOKEN, "probe") == Permissions(frozenset({Permission.HEALTH}), NO_INTEGRATION_TYPES)


def test_the_sidecar_has_fixed_permissions() -> None:
    for kind, name in ((IdentityKind.CERTIFICATE, "spiffe://example.org/sidecar"), (IdentityKind.TOKEN, "sidecar")):
        assert permissions(kind, name) == Permissions(SIDECAR_PERMISSIONS, ALL_INTEGRATION_TYPES)
    assert problems_of('[sidecar]\ntokens = ["a"]\npermissions = ["read"]\n') == [
        "sidecar.permissions: is not a known key"
    ]


def test_a_user_acts_for_itself_only() -> None:
    caller = policy().caller_of(Identity(IdentityKind.USER, "ada"))
    assert caller.user_id == "ada"
    assert caller.permissions == Permissions(
        frozenset({Permission.READ, Permission.MANAGE}), AllowedTypes(frozenset({"google_calendar"}))
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (IdentityKind.CERTIFICATE, "spiffe://example.org/other"),
        (IdentityKind.CERTIFICATE, "spiffe://example.org/SYNC"),
        (IdentityKind.CERTIFICATE, "probe"),
        (IdentityKind.TOKEN, "spiffe://example.org/sync"),
        (IdentityKind.TOKEN, "sync"),
        (IdentityKind.TOKEN, "users"),
    ],
)
def test_an_unknown_caller_has_no_permissions(kind: IdentityKind, name: str) -> None:
    assert permissions(kind, name) == Permissions()


def test_an_empty_policy_grants_nothing() -> None:
    for identity in (
        Identity(IdentityKind.USER, "ada"),
        Identity(IdentityKind.TOKEN, "a"),
        Identity(IdentityKind.CERTIFICATE, "a"),
    ):
        assert policy("").caller_of(identity).permissions == Permissions()


@pytest.mark.parametrize(
    "name",
    ["spiffe://example.org", "spiffe://example.org/a/", "spiffe://Example.org/a", "*.example.org", "a.example.", "a b"],
)
def test_a_name_that_no_certificate_can_have_is_rejected(name: str) -> None:
    text = f'[services.sync]\ncertificates = ["{name}"]\npermissions = ["health"]\n'
    (problem,) = problems_of(text)
    assert problem.startswith(
        "services.sync.certificates.0: is neither a SPIFFE ID with a path nor the name of one host"
    )


def test_names_are_compared_as_those_of_certificates() -> None:
    text = '[services.sync]\ncertificates = ["SPIFFE://example.org/A"]\npermissions = ["health"]\n'
    named = policy(text).caller_of(Identity(IdentityKind.CERTIFICATE, parse_name("Spiffe://example.org/A")))
    assert named.permissions.granted == {Permission.HEALTH}


@pytest.mark.parametrize("permission", sorted(set(Permission) - USER_PERMISSIONS))
def test_permissions_of_services_cannot_be_granted_to_users(permission: Permission) -> None:
    assert permission in {
        Permission.CREDENTIALS,
        Permission.CALLS,
        Permission.HEALTH,
        Permission.OPERATE,
        Permission.REFLECTION,
        Permission.WEBHOOKS,
        Permission.WEBHOOK_DELIVERY,
    }
    assert problems_of(f'[users]\npermissions = ["{permission}"]\nintegration_types = ["*"]\n') == [
        "users.permissions.0: cannot be granted to users"
    ]


def test_only_services_operate() -> None:
    assert Permission.OPERATE not in USER_PERMISSIONS | SIDECAR_PERMISSIONS
    text = '[services.console]\ntokens = ["console"]\npermissions = ["operate"]\nintegration_types = ["stripe"]\n'
    caller = policy(text).caller_of(Identity(IdentityKind.TOKEN, "console"))
    assert caller.permissions.granted == {Permission.OPERATE}
    assert problems_of(text.replace('integration_types = ["stripe"]\n', "")) == [
        'services.console.integration_types: must name types, or be ["*"] for all, with these permissions'
    ]


def test_only_the_sidecar_delivers_webhooks() -> None:
    assert permissions(IdentityKind.TOKEN, "sidecar").granted >= {Permission.WEBHOOK_DELIVERY}
    granted = '[services.a]\ntokens = ["a"]\npermissions = ["webhook_delivery"]\nintegration_types = ["*"]\n'
    assert problems_of(granted) == ["services.a.permissions.0: can be granted to the sidecar only"]


@pytest.mark.parametrize(
    "name",
    [
        "server",
        "operator",
        "user",
        "sidecar",
        "Server",
        " user",
        "\uff55\uff53\uff45\uff52",
        "\u00a0user\u3000",
        "u\u017fer",
    ],
)
def test_reserved_names_are_rejected(name: str) -> None:
    granted = f'[services."{name}"]\ntokens = ["a"]\npermissions = ["health"]\n'
    assert problems_of(granted) == [f"services.{name}: is a reserved name: the audit log uses it for another caller"]


@pytest.mark.parametrize(
    ("escape", "code_point"),
    [("\\u0000", "0000"), ("\\n", "000A"), ("\\u001b[8m", "001B"), ("\\u007f", "007F"), ("\\u0085", "0085")],
)
def test_names_have_no_control_characters(escape: str, code_point: str) -> None:
    problem = f"contains U+{code_point} (control character) at position 2"
    permissions = 'permissions = ["health"]\n'
    service = f'[services."a{escape}"]\ntokens = ["a"]\n{permissions}'
    assert [found.partition(": ")[2] for found in problems_of(service)] == [problem]
    for key in ("tokens", "certificates"):
        caller = f'[services.a]\n{key} = ["a{escape}"]\n{permissions}'
        assert problems_of(caller) == [f"services.a.{key}.0: {problem}"]
        assert problems_of(f'[sidecar]\n{key} = ["a{escape}"]\n') == [f"sidecar.{key}.0: {problem}"]


def test_names_keep_all_other_characters() -> None:
    text = '[services."a\\u200bb"]\ntokens = ["c\\u3000d"]\npermissions = ["health"]\n'
    policy = read_policy({PATH: text.encode()})
    assert policy.caller_of(Identity(IdentityKind.TOKEN, "c\u3000d")).name == "a\u200bb"


def test_negative_control_a_service_with_a_reserved_name_looks_like_a_user() -> None:
    text = '[services.user]\ntokens = ["a"]\npermissions = ["health"]\n'
    namesake = read_policy({PATH: text.encode()}, reserved_names=())
    callers = [namesake.caller_of(Identity(kind, "a")) for kind in (IdentityKind.TOKEN, IdentityKind.USER)]
    assert [caller.name for caller in callers] == ["user", "user"]


def test_all_problems_are_reported_at_once() -> None:
    problems = problems_of(
        """
colour = "red"
[users]
permissions = ["read", "credentials"]
integration_types = "all"
[sidecar]
[services.nameless]
permissions = ["health"]
[services.first]
tokens = ["same"]
permissions = ["read"]
[services.second]
tokens = ["same"]
permissions = ["everything"]
integration_types = ["*"]
more = 1
"""
    )
    locations = {problem.partition(": ")[0] for problem in problems}
    assert locations == {
        "colour", "users.permissions.1", "users.integration_types", "sidecar.tokens", "services.nameless.tokens",
        "services.first.integration_types", "services.second.permissions.0", "services.second.more", "tokens",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["[users", "services = 1", "[services]\na = 1", "[sidecar]\ntokens = 1", "users = []"])
def test_a_file_with_another_structure_is_rejected(text: str) -> None:
    assert problems_of(text)


def test_bytes_that_are_not_text_are_rejected() -> None:
    with pytest.raises(InvalidFile, match="cannot be read as TOML"):
        read_policy({PATH: b"\xff\xfe"})


def test_a_type_can_be_granted_by_an_alias() -> None:
    text = GOOD.replace('["*"]', '["pretend", "other"]')
    granted = read_policy({PATH: text.encode()}, canonical_type)
    caller = granted.caller_of(Identity(IdentityKind.CERTIFICATE, "sync.example.org"))
    assert caller.permissions.allowed_types.integration_types == frozenset({"fake", "other"})


def canonical_type(name: str) -> str:
    return {"pretend": "fake"}.get(name, name)
