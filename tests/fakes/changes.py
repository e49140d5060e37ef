"""Changes that a test makes up."""

from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import IntegrationId
from integration_server.service.ports import ChangePlace, News


class FakeChanges:
    """`Changes` in a list; a place is an index. While `away`, nobody is told anything."""

    def __init__(self) -> None:
        self.notices: list[IntegrationId] = []
        self.away = False

    def note(self, integration_id: int) -> None:
        """A change of this integration."""
        self.notices.append(IntegrationId(integration_id))

    async def since(self, place: ChangePlace | None) -> News:
        """All from the place on."""
        if self.away:
            raise StoreUnavailable
        begin = len(self.notices) if place is None else int(place)
        return News(ChangePlace(str(len(self.notices))), frozenset(self.notices[begin:]))
