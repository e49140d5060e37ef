"""Direct access to a server's database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Executable, Row, delete

from integration_server.storage.engine import open_database
from integration_server.storage.tables import (
    authorization_attempts,
    health_checks,
    integration_changes,
    integrations,
    revocations,
    unrouted_webhooks,
)


async def execute(database_url: str, *statements: Executable) -> None:
    """Run statements in one transaction."""
    async with open_database(database_url, pool_size=1) as database, database.write_transaction() as connection:
        for statement in statements:
            await connection.execute(statement)


async def fetch(database_url: str, statement: Executable) -> Sequence[Row[Any]]:
    """The rows of a query."""
    async with open_database(database_url, pool_size=1) as database, database.read_connection() as connection:
        return (await connection.execute(statement)).all()


async def wipe(database_url: str) -> None:
    """Delete all rows except the keys."""
    tables = (authorization_attempts, health_checks, integrations, revocations, integration_changes, unrouted_webhooks)
    await execute(database_url, *map(delete, tables))
