"""Every query for a user has a condition on the user: another user finds nothing and changes nothing."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import BinaryExpression, ClauseElement, Connection, Delete, Engine, Select, Update, event, true
from sqlalchemy.sql import visitors

from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.integrations.ports import IntegrationStore, IntegrationUpdate, NewAccount
from integration_server.storage import connections as connections_module
from integration_server.storage import integration_lists as lists_module
from integration_server.storage import integrations as integrations_module
from integration_server.storage.driver_queries import CompiledQuery, DriverQuery
from integration_server.storage.engine import Database
from integration_server.storage.tables import integrations
from tests.contracts.integration_rows import (
    ANN,
    BOB,
    FAILURE,
    LATER,
    NOW,
    IntegrationRows,
    SqlRows,
    list_all,
    list_connected,
    new_credentials,
    new_integration,
)

Attack = Callable[[SqlRows, Integration], Awaitable[Any]]

ACCOUNT = NewAccount("account-1", "ann@example.com")


def as_bob(integration: Integration) -> Integration:
    """Ann's integration with Bob as its user."""
    return replace(integration, user_id=BOB)


async def connect_for_ann(store: SqlRows) -> Integration:
    """Connect an integration that requires reauthorization, which `revert_failure` would revert."""
    anns = await store.add_connected(new_integration(), ACCOUNT, new_credentials(), NOW)
    assert anns is not None
    await store.record_failure(anns, FAILURE, reauthorization_required=True)
    return anns


# Bob sends the id, version and account of Ann's integration.
async def find_many(store: IntegrationStore, integration_id: IntegrationId) -> object:
    """Whether a read of many, of whom one is Bob's by name, says anything of Ann's integration."""
    found = await store.find_many([(integration_id, BOB)], 2**20)
    return [*found.by_id, *found.omitted]


ATTACKS: dict[str, Attack] = {
    "get": lambda store, anns: store.get(anns.integration_id, BOB),
    "find": lambda store, anns: store.find(anns.integration_id, BOB),
    "find_many": lambda store, anns: find_many(store, anns.integration_id),
    "find_account": lambda store, anns: store.find_account(BOB, anns.integration_type, "account-1"),
    "list": lambda store, _: list_all(store, BOB),
    "list_connected": lambda store, _: list_connected(store, BOB),
    "commit_connection": lambda store, anns: store.commit_connection(
        as_bob(anns), ACCOUNT, new_credentials(b"bob's"), LATER
    ),
    "commit_refresh": lambda store, anns: store.commit_refresh(as_bob(anns), new_credentials(b"bob's"), LATER),
    "record_failure": lambda store, anns: store.record_failure(as_bob(anns), FAILURE),
    "revert_failure": lambda store, anns: store.revert_failure(as_bob(anns), LATER),
    "record_call": lambda store, anns: store.record_call(as_bob(anns), FAILURE),
    "update": lambda store, anns: store.update(as_bob(anns), IntegrationUpdate(name="bob's"), b"bob's", LATER),
    "remove": lambda store, anns: store.remove(anns.integration_id, BOB),
}

CROSS_USER_METHODS = {
    *("ping", "now"),
    "reserve_id",  # of a row that does not exist yet
    "list_expiring",  # for operators
    "resume_refreshes",  # of a type: a provider that has recovered works for all users again
    "add_connected",  # creates a row for the user that it names
}


def test_every_method_of_the_store_is_attacked_or_not_limited_to_a_user() -> None:
    methods = {name for name, _ in inspect.getmembers(IntegrationRows, inspect.isfunction) if not name.startswith("_")}
    assert methods == set(ATTACKS) | CROSS_USER_METHODS


@pytest.mark.parametrize("name", ATTACKS)
async def test_another_user_finds_nothing_and_changes_nothing(database: Database, name: str) -> None:
    store = SqlRows(database)
    anns = await connect_for_ann(store)
    before = await store.find(anns.integration_id, ANN)
    with suppress(IntegrationNotFound):
        assert not await ATTACKS[name](store, anns)
    assert await store.find(anns.integration_id, ANN) == before


@pytest.mark.parametrize(
    "name",
    ["commit_connection", "commit_refresh", "record_failure", "revert_failure", "record_call", "update", "remove"],
)
async def test_negative_control_without_the_user_condition_another_user_changes_the_row(
    database: Database, name: str
) -> None:
    store = SqlRows(database)
    anns = await connect_for_ann(store)
    before = await store.find(anns.integration_id, ANN)
    with without_user_conditions(database):
        await ATTACKS[name](store, anns)
    assert await store.find(anns.integration_id, ANN) != before


@contextmanager
def without_user_conditions(database: Database) -> Iterator[None]:
    """Remove `user_id = …` on the table of integrations from every statement."""

    def replace_condition(element: Any, **_options: Any) -> ClauseElement | None:
        is_condition = isinstance(element, BinaryExpression) and element.left is integrations.c.user_id
        return true() if is_condition else None

    def without_condition(statement: Any) -> Any:
        return visitors.replacement_traverse(statement, {}, replace_condition)

    def rewrite(
        _connection: Connection, statement: Any, multiparams: Any, params: Any, _options: Any
    ) -> tuple[Any, Any, Any]:
        if isinstance(statement, Select | Update | Delete):
            statement = without_condition(statement)
        return statement, multiparams, params

    modules = integrations_module, connections_module, lists_module
    values = [value for module in modules for value in vars(module).values()]
    queries = [one for one in values if isinstance(one, DriverQuery)]
    rewritten = [DriverQuery(without_condition(query.statement)) for query in queries]
    compiled = [CompiledQuery(query, database._readers.dialect) for query in rewritten]
    database._driver_queries.update(zip(queries, compiled, strict=True))
    event.listen(Engine, "before_execute", rewrite, retval=True)
    try:
        yield
    finally:
        event.remove(Engine, "before_execute", rewrite)
        database._driver_queries.clear()
