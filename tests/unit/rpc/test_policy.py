"""The policy file: what it grants, and what is said of a bad one."""

from pathlib import Path

import pytest

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, NO_INTEGRATION_TYPES, AllowedTypes
from integration_server.hot_reload import InvalidFile
from integration_server.rpc.peer_identity import Identity, IdentityKind
from integration_server.rpc.permissions import METHOD_PERMISSIONS, SIDECAR_PERMISSIONS, USER_PERMISSIONS, Permission
from integration_server.rpc.policy import Permissions, Policy, read_policy

PATH = Path("policy.toml")

GOOD = """
[users]
groups = ["read", "manage"]
integration_types = ["google_calendar"]

[sidecar]
certificates = ["spiffe://example.org/sidecar"]
tokens = ["sidecar"]

[services.sync]
certificates = ["spiffe://example.org/sync", "Sync.Example.org"]
groups = ["credentials"]
integration_types = ["*"]

[services.probe]
tokens = ["probe"]
groups = ["health"]
"""


def policy(text: str = GOOD) -> Policy:
    return read_policy({PATH: text.encode()})


def problems_of(text: str) -> list[str]:
    with pytest.raises(InvalidFile) as refused:
        policy(text)
    assert all(problem.startswith("policy.toml: ") for problem in refused.value.problems)
    return [problem.removeprefix("policy.toml: ") for problem in refused.value.problems]


def permissions(kind: IdentityKind, *names: str) -> Permissions:
    return policy().caller_of(Identity(kind, names)).permissions


def test_a_service_has_what_it_is_granted() -> None:
    granted = Permissions(frozenset({Permission.CREDENTIALS}), ALL_INTEGRATION_TYPES)
    assert permissions(IdentityKind.CERTIFICATE, "spiffe://example.org/sync") == granted
    assert permissions(IdentityKind.CERTIFICATE, "sync.example.org") == granted
    assert permissions(IdentityKind.CERTIFICATE, "unknown.example.org", "sync.example.org") == granted
    assert permissions(IdentityKind.TOKEN, "probe") == Permissions(frozenset({Permission.HEALTH}), NO_INTEGRATION_TYPES)


def test_the_sidecar_has_what_it_needs_and_no_policy_gives_it_more() -> None:
    for kind, name in ((IdentityKind.CERTIFICATE, "spiffe://example.org/sidecar"), (IdentityKind.TOKEN, "sidecar")):
        assert permissions(kind, name) == Permissions(SIDECAR_PERMISSIONS, ALL_INTEGRATION_TYPES)
    assert problems_of('[sidecar]\ntokens = ["a"]\ngroups = ["read"]\n') == ["sidecar.groups: is not known here"]


def test_a_user_acts_for_itself() -> None:
    caller = policy().caller_of(Identity(IdentityKind.USER, ("ada",)))
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
def test_whoever_is_not_named_may_do_nothing(kind: IdentityKind, name: str) -> None:
    assert permissions(kind, name) == Permissions()


def test_an_empty_policy_grants_nothing() -> None:
    for identity in (
        Identity(IdentityKind.USER, ("ada",)),
        Identity(IdentityKind.TOKEN, ("a",)),
        Identity(IdentityKind.CERTIFICATE, ("a",)),
    ):
        assert policy("").caller_of(identity).permissions == Permissions()


def test_a_certificate_with_the_names_of_two_services_is_neither() -> None:
    assert permissions(IdentityKind.CERTIFICATE, "sync.example.org", "spiffe://example.org/sidecar") == Permissions()
    two = policy('[sidecar]\ncertificates = ["a"]\n[services.other]\ncertificates = ["b"]\ngroups = ["health"]\n')
    assert two.caller_of(Identity(IdentityKind.CERTIFICATE, ("a", "b"))).permissions == Permissions()
    assert two.caller_of(Identity(IdentityKind.CERTIFICATE, ("b", "c"))).permissions.groups == {Permission.HEALTH}


@pytest.mark.parametrize("group", sorted(set(Permission) - USER_PERMISSIONS))
def test_users_are_never_granted_what_is_for_services(group: Permission) -> None:
    assert group in {
        Permission.CREDENTIALS,
        Permission.CALLS,
        Permission.HEALTH,
        Permission.REFLECTION,
        Permission.WEBHOOKS,
        Permission.WEBHOOK_DELIVERY,
    }
    assert problems_of(f'[users]\ngroups = ["{group}"]\nintegration_types = ["*"]\n') == [
        "users.groups.0: is never for users"
    ]


def test_webhooks_are_delivered_by_the_sidecar_alone() -> None:
    assert permissions(IdentityKind.TOKEN, "sidecar").groups >= {Permission.WEBHOOK_DELIVERY}
    granted = '[services.a]\ntokens = ["a"]\ngroups = ["webhook_delivery"]\nintegration_types = ["*"]\n'
    assert problems_of(granted) == ["services.a.groups.0: is for the sidecar only"]


@pytest.mark.parametrize("name", ["server", "operator", "user", "sidecar", "Server", " user"])
def test_no_service_has_the_name_of_another_caller_in_the_audit_log(name: str) -> None:
    granted = f'[services."{name}"]\ntokens = ["a"]\ngroups = ["health"]\n'
    assert problems_of(granted) == [
        f"services.{name}: is not for a service: the audit log has another caller of that name"
    ]


def test_were_a_service_named_so_it_could_not_be_told_from_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    monkeypatch.setattr("integration_server.rpc.policy._RESERVED_NAMES", frozenset())
    namesake = policy('[services.user]\ntokens = ["a"]\ngroups = ["health"]\n')
    callers = [namesake.caller_of(Identity(kind, ("a",))) for kind in (IdentityKind.TOKEN, IdentityKind.USER)]
    assert [caller.name for caller in callers] == ["user", "user"]


def test_all_problems_are_told_at_once() -> None:
    problems = problems_of(
        """
colour = "red"
[users]
groups = ["read", "credentials"]
integration_types = "all"
[sidecar]
[services.nameless]
groups = ["health"]
[services.first]
tokens = ["same"]
groups = ["read"]
[services.second]
tokens = ["same"]
groups = ["everything"]
integration_types = ["*"]
more = 1
"""
    )
    places = {problem.partition(": ")[0] for problem in problems}
    assert places == {
        "colour", "users.groups.1", "users.integration_types", "sidecar.tokens", "services.nameless.tokens",
        "services.first.integration_types", "services.second.groups.0", "services.second.more", "tokens",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["[users", "services = 1", "[services]\na = 1", "[sidecar]\ntokens = 1", "users = []"])
def test_what_is_not_a_policy_is_refused(text: str) -> None:
    assert problems_of(text)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidFile, match="cannot be read as TOML"):
        read_policy({PATH: b"\xff\xfe"})


def test_every_group_has_an_rpc() -> None:
    assert set(METHOD_PERMISSIONS.values()) == set(Permission)


def test_a_type_is_granted_by_any_of_its_names() -> None:
    text = GOOD.replace('["*"]', '["pretend", "other"]')
    granted = read_policy({PATH: text.encode()}, canonical_type)
    caller = granted.caller_of(Identity(IdentityKind.CERTIFICATE, ("sync.example.org",)))
    assert caller.permissions.allowed_types.integration_types == frozenset({"fake", "other"})


def canonical_type(name: str) -> str:
    return {"pretend": "fake"}.get(name, name)
