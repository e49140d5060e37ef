"""Where calls to providers are counted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from integration_server.service.throttling import NothingShared, SharedBudgets
from integration_server.settings import SettingsError


@asynccontextmanager
async def shared_budgets(url: str | None) -> AsyncIterator[SharedBudgets]:
    """What counts calls to providers for all servers that name the same storage; without one each counts its own."""
    if url is None:
        yield NothingShared()
        return
    try:
        from integration_server.storage.budgets import RedisBudgets  # noqa: PLC0415  # an optional extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            ["RATE_LIMIT_URL: needs the extra `redis`: pip install 'integration-server[redis]'"]
        ) from error
    async with RedisBudgets(url) as budgets:
        yield budgets
