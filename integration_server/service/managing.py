"""Looking at integrations, and changing them."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from integration_server.domain.errors import IntegrationNotFound, IntegrationPending, UnknownIntegrationType
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.reach import EVERYTHING, Reach
from integration_server.service.paging import PageTokens
from integration_server.service.ports import (
    Clock,
    IntegrationStore,
    Provider,
    Providers,
    Sealer,
)

_LARGEST_PAGE = 3 * 1024 * 1024
"""Bytes, by a generous estimate. gRPC's clients take messages of 4 MiB unless they are told otherwise."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; `next_page_token` is empty on the last."""

    integrations: Sequence[Integration]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Change:
    """What to set of an integration; None stays as it is."""

    name: str | None = None
    config: Mapping[str, Any] | None = None
    is_active: bool | None = None


class Managing:
    """What a user does with integrations that are there."""

    def __init__(self, integrations: IntegrationStore, providers: Providers, sealer: Sealer, clock: Clock) -> None:
        self._integrations = integrations
        self._providers = providers
        self._clock = clock
        self._pages = PageTokens(sealer, "page")

    def list_integration_types(self, reach: Reach = EVERYTHING) -> Sequence[Provider]:
        """The types that this server knows and that are within reach, by name."""
        return [provider for provider in self._providers.all() if reach.covers(provider.integration_type)]

    def own_name(self, integration_type: str) -> str:
        """The name under which integrations of a type are stored; one that no type has stays as it is."""
        try:
            return self._providers.get(integration_type).integration_type
        except UnknownIntegrationType:
            return integration_type

    async def list_integrations(
        self,
        user_id: UserId,
        integration_type: str,
        page_size: int,
        page_token: str,
        reach: Reach = EVERYTHING,
    ) -> Page:
        """A page of the user's integrations, oldest first; an empty type means all within reach."""
        if integration_type:
            integration_type = self._providers.get(integration_type).integration_type
        this_list = (user_id, integration_type)
        after = IntegrationId(await self._pages.read(page_token, this_list) or 0)
        types = {integration_type} if integration_type else reach.integration_types
        rows = await self._integrations.list(user_id, types, after, page_size + 1)
        page = rows[: min(page_size, _fitting(rows))]
        if len(rows) == len(page):
            return Page(page, "")
        return Page(page, await self._pages.make(this_list, page[-1].integration_id))

    async def get_integration(self, integration_id: IntegrationId, user_id: UserId) -> Integration:
        """The user's integration. Raises `IntegrationNotFound`."""
        stored = await self._integrations.find(integration_id, user_id)
        if stored is None:
            raise IntegrationNotFound
        return stored.integration

    async def update_integration(self, integration_id: IntegrationId, user_id: UserId, change: Change) -> Integration:
        """Change name, config or whether it is on. Raises `IntegrationNotFound` or `IntegrationPending`."""
        current = await self.get_integration(integration_id, user_id)
        if not current.is_connected:
            raise IntegrationPending
        if change == Change():
            return current
        if change.config is not None:
            self._providers.get(current.integration_type).at(change.config)  # raises what is wrong with it
        changed = await self._integrations.update(
            integration_id,
            user_id,
            self._clock(),
            name=change.name,
            config=change.config,
            is_active=change.is_active,
        )
        if changed is None:
            raise IntegrationNotFound
        return changed


def _fitting(rows: Sequence[Integration]) -> int:
    """How many of the first rows fit into one page; one always does."""
    totals = itertools.accumulate(map(_weight, rows))
    return max(1, sum(total <= _LARGEST_PAGE for total in totals))


def _weight(row: Integration) -> int:
    # In a protobuf Struct a number takes up to six times the space that it takes in JSON.
    scopes = sum(map(len, (*row.scopes, *row.missing_scopes)))
    return 4096 + scopes + 6 * len(json.dumps(row.config))
