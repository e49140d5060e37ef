"""A directory of OAuth clients for tests that build a part of the service themselves."""

from collections.abc import Collection
from typing import Any, cast

from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.oauth_clients.oauth_client_directory import ClientAuthentication, OAuthClientDirectory
from integration_server.service.oauth_clients.ports import OAuthClientStore, SecretState
from integration_server.service.provider_port import ProviderSet
from tests.fakes.aead import FakeAead


class NoOAuthClients:
    """The part of an `OAuthClientStore` that is used where there are no clients but the operator's own."""

    async def find(self, integration_type: str, name: str) -> None:
        """None."""

    async def names_of(self, integration_types: Collection[str], client_id: str) -> Collection[tuple[str, str]]:
        """None."""
        return ()

    async def set_alarm(self, integration_type: str, name: str, state: SecretState | None) -> None:
        """Not recorded."""


def own_clients(providers: ProviderSet) -> OAuthClientDirectory:
    """A directory of providers with the operator's own clients."""
    store = cast("OAuthClientStore", NoOAuthClients())
    authentication = ClientAuthentication(store, DetachedTasks(), lambda: 0.0)
    return OAuthClientDirectory(providers, store, FakeAead(), authentication, lambda: 0.0)


async def shared_grants(providers: Any, integration_type: str) -> tuple[str, ...]:
    """The types whose grants a revocation of a type ends, all with the operator's own client."""
    scopes = await own_clients(providers).ended_by(providers[integration_type])
    assert {scope.oauth_client for scope in scopes} <= {"", None}
    return tuple(scope.integration_type for scope in scopes)
