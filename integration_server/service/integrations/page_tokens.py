"""Tokens for the next page of a list: sealed, and good for the list that they came from only."""

from dataclasses import dataclass

from integration_server.domain.errors import InvalidField
from integration_server.service.common_types import Aead
from integration_server.service.credentials.credential_cipher import EncryptedTokens


@dataclass(frozen=True, slots=True)
class PageCursor:
    """The content of a page token: the list, named by what was asked for, and the number of the page's last row."""

    list_id: tuple[str, ...]
    last_number: int


class PageTokens:
    """Makes and reads page tokens of one kind of list."""

    def __init__(self, aead: Aead, kind: str) -> None:
        self._tokens = EncryptedTokens(aead, kind, PageCursor)

    async def make(self, list_id: tuple[str, ...], last_number: int) -> str:
        """The token for what follows the row with this number."""
        return await self._tokens.make(PageCursor(list_id, last_number))

    async def read(self, token: str, list_id: tuple[str, ...]) -> int | None:
        """The number of the row that the page before ended with; None without a token. Raises `InvalidField`."""
        if not token:
            return None
        cursor = await self._tokens.read(token)
        if cursor is None or cursor.list_id != list_id:
            raise InvalidField("page_token", "is not from this list")
        return cursor.last_number
