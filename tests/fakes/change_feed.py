"""Changes that a test makes up."""

from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import IntegrationId
from integration_server.service.integrations.ports import ChangeBatch, ChangeCursor


class FakeChangeFeed:
    """`ChangeFeed` in a list; a place is an index. While `away`, nobody is told anything."""

    def __init__(self) -> None:
        self.count_changes: list[IntegrationId] = []
        self.away = False

    def record_change(self, integration_id: int) -> None:
        """A change of this integration."""
        self.count_changes.append(IntegrationId(integration_id))

    async def since(self, cursor: ChangeCursor | None) -> ChangeBatch:
        """All from the place on."""
        if self.away:
            raise StoreUnavailable
        begin = len(self.count_changes) if cursor is None else int(cursor)
        return ChangeBatch(ChangeCursor(str(len(self.count_changes))), frozenset(self.count_changes[begin:]))
