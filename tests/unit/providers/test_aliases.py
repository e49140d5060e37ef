"""Aliases of integration types."""

import pytest

from integration_server.domain.errors import StateInvalid
from integration_server.domain.integration import UserId
from integration_server.providers.built_in import built_in_class
from integration_server.providers.factory import ProviderFactory, ProvidersError
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest
from tests.fakes.system import ADA, FakeSystem

SendGridProvider = built_in_class("sendgrid")


@pytest.fixture
def system() -> FakeSystem:
    system = FakeSystem()
    system.provider.aliases = ("pretend",)
    system.key_provider.aliases = ("pretend_key",)
    system.providers.__init__(system.provider, system.key_provider)  # type: ignore[misc]  # with the aliases
    return system


async def test_an_integration_is_stored_with_the_canonical_type(system: FakeSystem) -> None:
    async with system.tasks:
        begun = await system.begin(integration_type="pretend")
        outcome = await system.call_back(begun.state, integration_type="pretend")
        keyed = await system.api_key_connection.connect_with_api_key(ApiKeyConnectionRequest(ADA, "pretend_key", "k"))
    assert system.row(outcome.integration_id).integration_type == "fake"
    assert keyed.integration_type == "fake_key"


async def test_lists_by_type_or_alias(system: FakeSystem) -> None:
    async with system.tasks:
        connected = await system.connect()
    for name in ("fake", "pretend"):
        page = await system.integration_manager.list_integrations(UserId("ada"), name, 10, "")
        assert [row.integration_id for row in page.items] == [connected.integration_id]


async def test_reconnects_by_type_or_alias(system: FakeSystem) -> None:
    async with system.tasks:
        connected = await system.connect()
        begun = await system.begin(integration_type="pretend", integration_id=connected.integration_id)
    assert begun.integration_id == connected.integration_id


async def test_a_callback_of_another_type_is_rejected(system: FakeSystem) -> None:
    begun = await system.begin(integration_type="pretend")
    with pytest.raises(StateInvalid):
        await system.call_back(begun.state, integration_type="pretend_key")


def test_resolves_the_canonical_type(system: FakeSystem) -> None:
    names = {name: system.integration_manager.canonical_type(name) for name in ("fake", "pretend", "unknown")}
    assert names == {"fake": "fake", "pretend": "fake", "unknown": "unknown"}


class First(OAuth2Provider):
    integration_type = "first"
    aliases = ("sendgrid", "both")
    oauth_authorize_url = "https://first.example/authorize"
    oauth_token_url = "https://first.example/token"


class Second(First):
    integration_type = "second"
    aliases = ("both", "unlike")


def test_a_taken_alias_is_an_error() -> None:
    factory = ProviderFactory()
    factory.register("sendgrid", SendGridProvider)
    problems: list[str] = []
    for provider in (First, Second):
        try:
            factory.register(str(provider.integration_type), provider)
        except ProvidersError as error:
            problems += error.problems
    assert [problem.partition(": ")[2].partition(" by ")[0] for problem in problems] == ["aliases: 'sendgrid' is taken"]
    factory = ProviderFactory()
    factory.register("second", Second)
    with pytest.raises(ProvidersError, match="aliases: 'both' is taken by "):
        factory.register("first", First)
    with pytest.raises(ProvidersError, match="integration_type: 'both' is taken by "):
        factory.register("both", SendGridProvider)
