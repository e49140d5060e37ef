"""SQLAlchemy's engines and connections on an event loop.

They do what those of `sqlalchemy.ext.asyncio` do, which imports the ORM: 50 ms of each start, and 7 MB of each worker.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import URL, Connection, CursorResult, Engine, Executable, ScalarResult, create_engine
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class AsyncConnection:
    """A lent connection."""

    sync_connection: Connection

    @property
    def dialect(self) -> Dialect:
        """The dialect of its engine."""
        return self.sync_connection.dialect

    async def execute(self, statement: Executable, parameters: Parameters = None) -> CursorResult[*tuple[Any, ...]]:
        """Execute a statement. The drivers have received all rows when it returns."""
        return await greenlet_spawn(self.sync_connection.execute, statement, parameters)

    async def scalar(self, statement: Executable, parameters: Parameters = None) -> Any:  # noqa: ANN401  # of any type
        """The first column of the first row, None without one."""
        return (await self.execute(statement, parameters)).scalar()

    async def scalars(self, statement: Executable, parameters: Parameters = None) -> ScalarResult[Any]:
        """The first column of the rows."""
        return (await self.execute(statement, parameters)).scalars()

    async def run_sync(self, function: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """Call a function that uses the connection as if it blocked."""
        return await greenlet_spawn(function, self.sync_connection, *args)

    async def get_raw_connection(self) -> PoolProxiedConnection:
        """The connection of the driver."""
        return await greenlet_spawn(getattr, self.sync_connection, "connection")


@dataclass(frozen=True, slots=True)
class AsyncEngine:
    """A pool of connections of a driver that uses the event loop."""

    sync_engine: Engine

    @classmethod
    def create(cls, url: URL, **options: Any) -> "AsyncEngine":  # noqa: ANN401
        """An engine with the options of SQLAlchemy's `create_engine`."""
        return cls(create_engine(url, _is_async=True, **options))  # selects the pool that waits on the event loop

    @property
    def dialect(self) -> Dialect:
        """The dialect of the database."""
        return self.sync_engine.dialect

    def with_options(self, **options: Any) -> "AsyncEngine":  # noqa: ANN401
        """An engine on the same pool whose connections have these execution options."""
        return AsyncEngine(self.sync_engine.execution_options(**options))

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection, which the pool gets back at the end, also of a cancelled task."""
        connection = await greenlet_spawn(self.sync_engine.connect)
        try:
            yield AsyncConnection(connection)
        finally:
            await run_to_completion(greenlet_spawn(connection.close))

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction: committed at the end of the block, rolled back by an exception."""
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self.connect())
            transaction = await greenlet_spawn(connection.sync_connection.begin)
            transaction.__enter__()
            stack.push_async_exit(partial(greenlet_spawn, transaction.__exit__))
            yield connection

    async def dispose(self) -> None:
        """Close the connections that are not lent."""
        await greenlet_spawn(self.sync_engine.dispose)


async def run_to_completion(work: Coroutine[Any, Any, object]) -> None:
    """Run work that must not stop in the middle.

    A cancellation of the caller is raised when it has ended, also in an error: who catches that would miss it.
    """
    task = asyncio.ensure_future(work)
    cancellation = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        raise cancellation from task.exception()
    task.result()  # raises its error
