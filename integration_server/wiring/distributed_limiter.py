"""Selects where calls to providers are counted."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from integration_server.settings import SettingsError

if TYPE_CHECKING:
    from integration_server.storage.redis_limits import RedisLimiter


@asynccontextmanager
async def open_distributed_limiter(url: str | None) -> "AsyncIterator[RedisLimiter | None]":
    """The limiter for all servers that use the same Redis; None without a URL: each server counts for itself only."""
    if url is None:
        yield None
        return
    try:
        from integration_server.storage.redis_limits import RedisLimiter  # noqa: PLC0415  # an optional extra
    except ModuleNotFoundError as error:
        message = "RATE_LIMIT_REDIS_URL: needs the extra `redis`: pip install 'integration-server[redis]'"
        raise SettingsError([message]) from error
    async with aclosing(RedisLimiter(url)) as distributed_limiter:
        yield distributed_limiter
