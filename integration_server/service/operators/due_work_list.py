"""The operators' list of due background work."""

from collections.abc import Sequence

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.oauth_client import type_of_key
from integration_server.service.background.ports import DueWork, JobKind
from integration_server.service.common_types import Aead
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.operators.ports import SINGLETON_JOBS, DueItem, DuePosition, DueRows

_ORDER = {kind: number for number, kind in enumerate(JobKind)}


class DueWorkList:
    """Lists due work by job and type, the longest due first. Each type is read in the order of its index."""

    def __init__(self, due_work: DueWork, due_rows: DueRows, aead: Aead) -> None:
        self._due_work = due_work
        self._due_rows = due_rows
        self._pages = PageTokens(aead, "due-work-page", DuePosition)

    async def list_due_work(
        self,
        job_kind: JobKind | None,
        integration_type: str,
        page_size: int,
        page_token: str,
        allowed_types: AllowedTypes,
        *,
        oldest_only: bool = False,
    ) -> Page[DueItem]:
        """The due work of a job, or of all if it is None, and of a type, or of all allowed ones if it is empty.

        Jobs of the installation are listed without a type, to callers who may access all types.
        """
        list_id = ("" if job_kind is None else job_kind.value, integration_type, str(oldest_only))
        after = await self._pages.read(page_token, list_id)
        items: list[DueItem] = []
        for kind, job_type in sorted(await self._due_work.due_types(), key=_order):
            if len(items) > page_size:
                break
            if job_kind not in {None, kind} or not _is_listed(kind, job_type, integration_type, allowed_types):
                continue
            if after is None or _order((kind, job_type)) > _order((after.job_kind, after.job_type)):
                items += await self._read(kind, job_type, None, page_size + 1 - len(items), oldest_only=oldest_only)
            elif (kind, job_type) == (after.job_kind, after.job_type) and not oldest_only:
                items += await self._read(kind, job_type, after, page_size + 1, oldest_only=False)
        page = items[:page_size]
        if len(items) == len(page):
            return Page(page, "")
        last = page[-1]
        position = DuePosition(last.job_kind, last.job_type, last.due_time, last.row_id)
        return Page(page, await self._pages.make(list_id, position))

    async def _read(
        self, kind: JobKind, job_type: str, after: DuePosition | None, limit: int, *, oldest_only: bool
    ) -> Sequence[DueItem]:
        if oldest_only:
            return await self._due_rows.oldest_due(kind, job_type)
        return await self._due_rows.list_due(kind, job_type, after, limit)


def _order(due: tuple[JobKind, str]) -> tuple[int, str]:
    kind, job_type = due
    return _ORDER[kind], job_type


def _is_listed(kind: JobKind, job_type: str, integration_type: str, allowed_types: AllowedTypes) -> bool:
    if kind in SINGLETON_JOBS:
        return not integration_type and allowed_types.integration_types is None
    type_of_row = type_of_key(job_type)
    return integration_type in {"", type_of_row} and allowed_types.allows(type_of_row)
