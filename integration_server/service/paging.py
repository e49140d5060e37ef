"""Tokens for the next page of a list: sealed, and good for the list that they came from only."""

from dataclasses import dataclass

from integration_server.domain.errors import InvalidField
from integration_server.service.ports import Sealer
from integration_server.service.sealing import SealedTokens


@dataclass(frozen=True, slots=True)
class PagePlace:
    """The content of a page token: the list, named by what was asked for, and the number of the page's last row."""

    of: tuple[str, ...]
    last: int


class PageTokens:
    """Makes and reads page tokens of one kind of list."""

    def __init__(self, sealer: Sealer, kind: str) -> None:
        self._tokens = SealedTokens(sealer, kind, PagePlace)

    async def make(self, of: tuple[str, ...], last: int) -> str:
        """The token for what follows the row with this number."""
        return await self._tokens.make(PagePlace(of, last))

    async def read(self, token: str, of: tuple[str, ...]) -> int | None:
        """The number of the row that the page before ended with; None without a token. Raises `InvalidField`."""
        if not token:
            return None
        place = await self._tokens.read(token)
        if place is None or place.of != of:
            raise InvalidField("page_token", "is not from this list")
        return place.last
