"""Accounts whose credentials are those of a fake source."""

from datetime import timedelta

from integration_server.client.adapters.account_adapters import AccountAdapters, AsyncAccountAdapters
from integration_server.client.credentials import Credentials
from tests.integration.client_adapters.provider import AsyncFakeSource, FakeSource


class FakeAccount(AccountAdapters):
    """An account with the methods of the client's accounts."""

    def __init__(self, source: FakeSource) -> None:
        self._source = source

    def credentials(self, min_ttl: timedelta | None = None) -> Credentials:
        """The current secret."""
        return self._source.credentials(min_ttl)

    def renew(self, rejected: Credentials) -> Credentials:
        """The next secret."""
        return self._source.renew(rejected)


class AsyncFakeAccount(AsyncAccountAdapters):
    """`FakeAccount` for asyncio."""

    def __init__(self, source: AsyncFakeSource) -> None:
        self._source = source

    async def credentials(self, min_ttl: timedelta | None = None) -> Credentials:
        """The current secret."""
        return await self._source.credentials(min_ttl)

    async def renew(self, rejected: Credentials) -> Credentials:
        """The next secret."""
        return await self._source.renew(rejected)
