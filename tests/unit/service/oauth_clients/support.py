"""A system with OAuth clients of tenants."""

from collections.abc import Sequence
from typing import Any

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES
from integration_server.service.oauth_clients.oauth_client_manager import OAuthClientChange, OAuthClientInfo
from tests.fakes.system import FakeSystem


async def put_client(
    system: FakeSystem, name: str = "tenant", secret: str = "secret-1", **fields: Any
) -> OAuthClientInfo:
    """Add or change a client of the fake provider that the caller "backend" may name."""
    change = OAuthClientChange(
        **{
            "integration_type": "fake",
            "name": name,
            "client_id": f"id-of-{name}",
            "callers": ("backend",),
            "client_secret": secret,
            **fields,
        }
    )
    return await system.use_cases.oauth_clients.put_oauth_client(change)


async def list_clients(system: FakeSystem) -> Sequence[OAuthClientInfo]:
    """All clients of the fake provider."""
    page = await system.use_cases.oauth_clients.list_oauth_clients("fake", 200, "", ALL_INTEGRATION_TYPES)
    return page.items


async def client(system: FakeSystem, name: str) -> OAuthClientInfo:
    """One client as operators see it."""
    (found,) = [one for one in await list_clients(system) if one.name == name]
    return found
