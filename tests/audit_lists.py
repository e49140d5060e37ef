"""The entries of an audit log, as operators list them."""

from collections.abc import Sequence

from integration_server.domain.audit import AuditEntry
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.operators.ports import AuditFilter, AuditPosition, ListedEntry
from integration_server.storage.audit_reading import SqlAuditEntries
from integration_server.storage.engine import Database


async def list_entries(
    database: Database, condition: AuditFilter, page_size: int = 100, max_examined: int = 10_000
) -> Sequence[Sequence[ListedEntry]]:
    """The pages of the entries that meet the conditions."""
    log, pages, position = SqlAuditEntries(database, max_examined=max_examined), [], AuditPosition(None)
    while True:
        page = await log.list(condition, position, page_size)
        pages.append(page.items)
        if page.last is None:
            return pages
        position = page.last


async def list_audit_entries(
    database: Database, user_id: str = "", integration_id: int = 0, limit: int = 100
) -> list[AuditEntry | None]:
    """The newest entries of a user or an integration. None stands for one that cannot be read."""
    condition = AuditFilter(UserId(user_id), IntegrationId(integration_id))
    page = await SqlAuditEntries(database).list(condition, None, limit)
    return [listed.entry for listed in page.items]
