"""The policy file: what it grants, and what is said of a bad one."""

from pathlib import Path

import pytest

from integration_server.domain.reach import EVERYTHING, NOTHING, Reach
from integration_server.reloading import Unusable
from integration_server.rpc.access import FOR_SIDECAR, FOR_USERS, GROUPS, Group
from integration_server.rpc.callers import Identity, Kind
from integration_server.rpc.policy import Policy, Rights, read_policy

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
    with pytest.raises(Unusable) as refused:
        policy(text)
    assert all(problem.startswith("policy.toml: ") for problem in refused.value.problems)
    return [problem.removeprefix("policy.toml: ") for problem in refused.value.problems]


def rights(kind: Kind, *names: str) -> Rights:
    return policy().caller_of(Identity(kind, names)).rights


def test_a_service_has_what_it_is_granted() -> None:
    granted = Rights(frozenset({Group.CREDENTIALS}), EVERYTHING)
    assert rights(Kind.CERTIFICATE, "spiffe://example.org/sync") == granted
    assert rights(Kind.CERTIFICATE, "sync.example.org") == granted
    assert rights(Kind.CERTIFICATE, "unknown.example.org", "sync.example.org") == granted
    assert rights(Kind.TOKEN, "probe") == Rights(frozenset({Group.HEALTH}), NOTHING)


def test_the_sidecar_has_what_it_needs_and_no_policy_gives_it_more() -> None:
    for kind, name in ((Kind.CERTIFICATE, "spiffe://example.org/sidecar"), (Kind.TOKEN, "sidecar")):
        assert rights(kind, name) == Rights(FOR_SIDECAR, EVERYTHING)
    assert problems_of('[sidecar]\ntokens = ["a"]\ngroups = ["read"]\n') == ["sidecar.groups: is not known here"]


def test_a_user_acts_for_itself() -> None:
    caller = policy().caller_of(Identity(Kind.USER, ("ada",)))
    assert caller.user_id == "ada"
    assert caller.rights == Rights(frozenset({Group.READ, Group.MANAGE}), Reach(frozenset({"google_calendar"})))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.CERTIFICATE, "spiffe://example.org/other"),
        (Kind.CERTIFICATE, "spiffe://example.org/SYNC"),
        (Kind.CERTIFICATE, "probe"),
        (Kind.TOKEN, "spiffe://example.org/sync"),
        (Kind.TOKEN, "sync"),
        (Kind.TOKEN, "users"),
    ],
)
def test_whoever_is_not_named_may_do_nothing(kind: Kind, name: str) -> None:
    assert rights(kind, name) == Rights()


def test_an_empty_policy_grants_nothing() -> None:
    for identity in (Identity(Kind.USER, ("ada",)), Identity(Kind.TOKEN, ("a",)), Identity(Kind.CERTIFICATE, ("a",))):
        assert policy("").caller_of(identity).rights == Rights()


def test_a_certificate_with_the_names_of_two_services_is_neither() -> None:
    assert rights(Kind.CERTIFICATE, "sync.example.org", "spiffe://example.org/sidecar") == Rights()
    two = policy('[sidecar]\ncertificates = ["a"]\n[services.other]\ncertificates = ["b"]\ngroups = ["health"]\n')
    assert two.caller_of(Identity(Kind.CERTIFICATE, ("a", "b"))).rights == Rights()
    assert two.caller_of(Identity(Kind.CERTIFICATE, ("b", "c"))).rights.groups == {Group.HEALTH}


@pytest.mark.parametrize("group", sorted(set(Group) - FOR_USERS))
def test_users_are_never_granted_what_is_for_services(group: Group) -> None:
    assert group in {
        Group.CREDENTIALS,
        Group.CALLS,
        Group.HEALTH,
        Group.REFLECTION,
        Group.WEBHOOKS,
        Group.WEBHOOK_DELIVERY,
    }
    assert problems_of(f'[users]\ngroups = ["{group}"]\nintegration_types = ["*"]\n') == [
        "users.groups.0: is never for users"
    ]


def test_webhooks_are_delivered_by_the_sidecar_alone() -> None:
    assert rights(Kind.TOKEN, "sidecar").groups >= {Group.WEBHOOK_DELIVERY}
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
    monkeypatch.setattr("integration_server.rpc.policy._NOT_FOR_SERVICES", frozenset())
    namesake = policy('[services.user]\ntokens = ["a"]\ngroups = ["health"]\n')
    callers = [namesake.caller_of(Identity(kind, ("a",))) for kind in (Kind.TOKEN, Kind.USER)]
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
    with pytest.raises(Unusable, match="cannot be read as TOML"):
        read_policy({PATH: b"\xff\xfe"})


def test_every_group_has_an_rpc() -> None:
    assert set(GROUPS.values()) == set(Group)


def test_a_type_is_granted_by_any_of_its_names() -> None:
    text = GOOD.replace('["*"]', '["pretend", "other"]')
    granted = read_policy({PATH: text.encode()}, own_name)
    caller = granted.caller_of(Identity(Kind.CERTIFICATE, ("sync.example.org",)))
    assert caller.rights.reach.integration_types == frozenset({"fake", "other"})


def own_name(name: str) -> str:
    return {"pretend": "fake"}.get(name, name)
