from datetime import timedelta

import pytest

from integration_server.domain.errors import UnknownIntegrationType
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.base import BaseProvider
from integration_server.providers.factory import ProviderFactory, ProvidersError
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.service.provider_port import ProviderSet
from tests.fakes.oauth_clients import shared_grants
from tests.unit.providers.support import FakeTransport, context, registry


class Acme(OAuth2Provider):
    integration_type = "acme"
    oauth_authorize_url = "https://acme.example/authorize"
    oauth_token_url = "https://acme.example/token"


class Bravo(Acme):
    integration_type = "bravo"


class Charlie(Acme):
    integration_type = "charlie"
    oauth_token_url = "https://charlie.example/token"


class WholeAccount(Acme):
    integration_type = "whole_account"
    revocation_ends = "grant"


def test_finds_providers_by_type() -> None:
    providers: ProviderSet = registry(context(FakeTransport()), Charlie, Acme, Bravo)
    assert providers["bravo"].integration_type == "bravo"
    assert [provider.integration_type for provider in providers.all()] == ["acme", "bravo", "charlie"]


@pytest.mark.parametrize("integration_type", ["", "other", "ACME"])
def test_an_unknown_type_is_rejected(integration_type: str) -> None:
    with pytest.raises(UnknownIntegrationType):
        registry(context(FakeTransport()), Acme)[integration_type]


def test_builds_each_provider_once() -> None:
    built: list[BaseProvider] = []

    def build(given: object) -> BaseProvider:
        built.append(Acme(context(FakeTransport())))
        return built[-1]

    factory = ProviderFactory()
    factory.register("acme", build)
    providers = factory.build(context(FakeTransport()))
    assert [providers["acme"], providers["acme"]] == built * 2


def test_a_type_cannot_be_registered_twice() -> None:
    factory = ProviderFactory()
    factory.register("acme", Acme, origin="providers/acme.toml")
    with pytest.raises(ProvidersError) as raised:
        factory.register("acme", Bravo)
    error_text = str(raised.value)
    assert "providers/acme.toml" in error_text
    assert f"{__name__}.Bravo" in error_text
    assert "'acme'" in error_text


def test_reports_all_problems_of_all_providers() -> None:
    class Invalid(Acme):
        integration_type = "Wrong Name"
        oauth_token_url = "http://acme.example/token"
        verify_url = "acme.example/me"
        rate_limits = (RateLimit(0, timedelta(seconds=1)),)
        renew_after = timedelta(0)
        calls_at_once = 0
        host_patterns = ("*.acme.example", "*.example")

    factory = ProviderFactory()
    factory.register("wrong", Invalid)
    factory.register("acme", Bravo)
    with pytest.raises(ProvidersError) as raised:
        factory.build(context(FakeTransport()))
    fields = [problem.split(": ")[1] for problem in raised.value.problems]
    assert fields == [
        *("integration_type", "integration_type", "oauth_token_url", "verify_url"),
        *("rate_limits", "renew_after", "calls_at_once", "host_patterns"),
        "integration_type",
    ]
    assert all(f"{__name__}." in problem for problem in raised.value.problems)


def test_a_loopback_url_is_allowed_in_dev_mode_only() -> None:
    class Local(Acme):
        integration_type = "local"
        oauth_token_url = "http://localhost:8090/token"

    assert registry(context(FakeTransport(), dev_mode=True), Local).all()
    with pytest.raises(ProvidersError):
        registry(context(FakeTransport()), Local)


def test_by_default_a_revocation_ends_one_grant() -> None:
    assert registry(context(FakeTransport()), Acme, Bravo)["acme"].shares_grants_with == ()


@pytest.mark.parametrize(
    ("acme_client", "shared"),
    [("one", ("acme", "whole_account")), ("another", ("whole_account",)), ("", ("whole_account",))],
)
async def test_types_with_the_same_client_and_server_share_grants(acme_client: str, shared: tuple[str, ...]) -> None:
    settings = {"WHOLE_ACCOUNT_CLIENT_ID": "one", "ACME_CLIENT_ID": acme_client, "CHARLIE_CLIENT_ID": "one"}
    providers = registry(context(FakeTransport(), settings), Acme, Bravo, Charlie, WholeAccount)
    assert tuple(providers["whole_account"].shares_grants_with) == ("acme", "bravo", "whole_account")
    assert await shared_grants(providers, "whole_account") == shared
    for name, provider in providers.items():
        ending = [one.integration_type for one in providers.all() if name in one.shares_grants_with]
        assert list(provider.grants_ended_by) == ending


async def test_a_type_without_a_client_id_shares_nothing() -> None:
    providers = registry(context(FakeTransport()), Acme, Bravo, WholeAccount)
    assert await shared_grants(providers, "whole_account") == ("whole_account",)


def test_an_oauth_provider_requires_both_endpoints() -> None:
    class WithoutEndpoints(OAuth2Provider):
        integration_type = "without_endpoints"

    factory = ProviderFactory()
    factory.register("without_endpoints", WithoutEndpoints)
    with pytest.raises(TypeError, match="oauth_authorize_url, oauth_token_url"):
        factory.build(context(FakeTransport()))
