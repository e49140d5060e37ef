"""Every query for a user carries the user: another one finds nothing and changes nothing, on both databases."""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.integrations.ports import IntegrationStore, NewAccount
from integration_server.storage import integrations as sql
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from tests.contracts.store_contract import ANN, BOB, FAILURE, LATER, NOW, new_credentials, new_integration

Attack = Callable[[SqlIntegrations, Integration], Awaitable[Any]]

ACCOUNT = NewAccount("account-1", "ann@example.com")


def as_bob(integration: Integration) -> Integration:
    """Ann's integration, as bob would have it."""
    return replace(integration, user_id=BOB)


async def connect_for_ann(store: SqlIntegrations) -> Integration:
    """Connected, and its grant noted as dead, so that there is something to take back."""
    anns = await store.add_connected(new_integration(), ACCOUNT, new_credentials(), NOW)
    assert anns is not None
    await store.record_failure(anns, FAILURE, reauthorization_required=True)
    return anns


# Bob, with the very id, version and account of ann's integration.
ATTACKS: dict[str, Attack] = {
    "find": lambda store, anns: store.find(anns.integration_id, BOB),
    "find_account": lambda store, anns: store.find_account(BOB, anns.integration_type, "account-1"),
    "list": lambda store, _: store.list(BOB, None, IntegrationId(0), 10),
    "list_connected": lambda store, _: store.list_connected(BOB),
    "commit_connection": lambda store, anns: store.commit_connection(
        as_bob(anns), ACCOUNT, new_credentials(b"bob's"), LATER
    ),
    "commit_refresh": lambda store, anns: store.commit_refresh(as_bob(anns), new_credentials(b"bob's"), LATER),
    "record_failure": lambda store, anns: store.record_failure(as_bob(anns), FAILURE),
    "revert_failure": lambda store, anns: store.revert_failure(as_bob(anns), LATER),
    "record_call": lambda store, anns: store.record_call(as_bob(anns), FAILURE),
    "update": lambda store, anns: store.update(anns.integration_id, BOB, LATER, name="bob's"),
    "remove": lambda store, anns: store.remove(anns.integration_id, BOB),
}

CROSS_USER_METHODS = {
    "ping",
    "list_expiring",  # for operators
    "add_connected",  # makes a row for the user that it names
    "shares_grant",  # looks at all users on purpose, and answers with yes or no only: would a revocation harm another?
}


def test_every_method_of_the_store_is_attacked_or_is_for_no_user() -> None:
    methods = {name for name, _ in inspect.getmembers(IntegrationStore, inspect.isfunction) if not name.startswith("_")}
    assert methods == set(ATTACKS) | CROSS_USER_METHODS


@pytest.mark.parametrize("name", ATTACKS)
async def test_another_user_finds_nothing_and_changes_nothing(database: Database, name: str) -> None:
    store = SqlIntegrations(database)
    anns = await connect_for_ann(store)
    before = await store.find(anns.integration_id, ANN)
    assert not await ATTACKS[name](store, anns)
    assert await store.find(anns.integration_id, ANN) == before


@pytest.mark.parametrize(
    "name",
    ["commit_connection", "commit_refresh", "record_failure", "revert_failure", "record_call", "update", "remove"],
)
async def test_a_query_without_the_user_lets_another_in(
    database: Database, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin, for all that changes a row."""
    store = SqlIntegrations(database)
    anns = await connect_for_ann(store)
    before = await store.find(anns.integration_id, ANN)
    monkeypatch.setattr(
        sql, "matches_integration", lambda integration_id, _user_id: (sql._T.integration_id == integration_id,)
    )
    await ATTACKS[name](store, anns)
    assert await store.find(anns.integration_id, ANN) != before
