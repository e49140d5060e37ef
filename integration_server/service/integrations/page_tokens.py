"""Page tokens: encrypted, and valid only for the list that they were issued for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from integration_server.domain.errors import InvalidField
from integration_server.service.common_types import Aead
from integration_server.service.credentials.credential_cipher import EncryptedTokens

T = TypeVar("T")
PositionT = TypeVar("PositionT")


@dataclass(frozen=True, slots=True)
class PageCursor(Generic[PositionT]):
    """The content of a page token: the parameters that identify the list, and the position of the page's last row."""

    list_id: tuple[str, ...]
    last: PositionT


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list. `next_page_token` is empty on the last page."""

    items: Sequence[T]
    next_page_token: str


class PageTokens(Generic[PositionT]):
    """Issues and reads the page tokens of one kind of list, whose rows have positions of this type."""

    def __init__(self, aead: Aead, kind: str, position: type[PositionT]) -> None:
        self._tokens = EncryptedTokens(aead, kind, PageCursor[position])  # type: ignore[valid-type]  # at run time

    async def make(self, list_id: tuple[str, ...], last: PositionT) -> str:
        """The token of the page after the row at this position."""
        return await self._tokens.make(PageCursor(list_id, last))

    async def read(self, token: str, list_id: tuple[str, ...]) -> PositionT | None:
        """The position of the previous page's last row; None without a token. Raises `InvalidField`."""
        if not token:
            return None
        cursor = await self._tokens.read(token)
        if cursor is None or cursor.list_id != list_id:
            raise InvalidField("page_token", "is not from this list")
        return cursor.last
