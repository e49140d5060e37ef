"""The operators' reads of the audit log."""

from dataclasses import asdict

from integration_server.service.common_types import Aead
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.operators.ports import AuditEntries, AuditFilter, AuditPosition, ListedEntry


class AuditLogReader:
    """Lists entries of the audit log, the newest first."""

    def __init__(self, entries: AuditEntries, aead: Aead) -> None:
        self._entries = entries
        self._pages = PageTokens(aead, "audit-page", AuditPosition)

    async def list_audit_entries(self, condition: AuditFilter, page_size: int, page_token: str) -> Page[ListedEntry]:
        """A page of entries, of all types: not all of them name one. Raises `InvalidField`."""
        list_id = tuple(map(str, asdict(condition).values()))
        after = await self._pages.read(page_token, list_id)
        page = await self._entries.list(condition, after, page_size)
        return Page(page.items, "" if page.last is None else await self._pages.make(list_id, page.last))
