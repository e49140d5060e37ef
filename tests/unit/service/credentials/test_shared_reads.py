"""Tests of shared reads: callers of one integration share a read, reads of different ones a statement."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import IntegrationId, StoredIntegration, UserId
from integration_server.domain.integration_cache import RaceSafeCache
from integration_server.service.credentials.integration_lookup import SharedReads
from integration_server.service.integrations.ports import (
    FoundIntegrations,
    IntegrationStore,
    IntegrationTarget,
)
from tests.fakes.system import ADA, EVE, FakeSystem


@dataclass
class GatedStore:
    """A store that records its statements, and waits for `gate` after each has read its rows."""

    rows: dict[IntegrationTarget, StoredIntegration]
    statements: list[list[IntegrationTarget]] = field(default_factory=list)
    max_rows: int = 1000
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: BaseException | None = None

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """One row."""
        return (await self.find_many([(integration_id, user_id)], 0)).of((integration_id, user_id))

    async def find_many(self, targets: Collection[IntegrationTarget], max_bytes: int) -> FoundIntegrations:
        """The rows as they were before the wait."""
        self.statements.append(list(targets))
        found = {target[0]: self.rows[target] for target in targets if target in self.rows}
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        omitted = list(found)[self.max_rows :]
        return FoundIntegrations({one: row for one, row in found.items() if one not in omitted}, frozenset(omitted))


class EagerReads(SharedReads):
    """Negative control: a caller joins any read of its integration."""

    def _may_join(self, read: object) -> bool:
        return True


class Fixture:
    def __init__(self, row: StoredIntegration, reads: type[SharedReads] = SharedReads) -> None:
        rows: dict[IntegrationTarget, StoredIntegration] = {}
        for number in map(IntegrationId, range(1, 300)):
            rows[number, ADA] = replace(row, integration=replace(row.integration, integration_id=number))
        self.store = GatedStore(rows)
        self.cache = RaceSafeCache(2**24, lambda: 0.0)
        self.reads = reads(self.cache, cast("IntegrationStore", self.store))

    def start(self, number: int, user_id: UserId = ADA) -> "asyncio.Task[StoredIntegration]":
        """A caller."""
        return asyncio.ensure_future(self.reads.get(IntegrationId(number), user_id))

    async def until_statements(self, count: int) -> None:
        """Wait until this many statements have begun."""
        async with asyncio.timeout(60):
            while len(self.store.statements) < count:  # noqa: ASYNC110  # the store sets no event
                await asyncio.sleep(0)


@pytest.fixture
async def row(system: FakeSystem) -> StoredIntegration:
    return system.stored((await system.connect()).integration_id)


@pytest.fixture
def fixture(row: StoredIntegration) -> Fixture:
    return Fixture(row)


async def test_callers_of_one_integration_share_a_read_also_while_it_runs(fixture: Fixture) -> None:
    callers = [fixture.start(1) for _ in range(5)]
    await fixture.until_statements(1)
    callers += [fixture.start(1) for _ in range(5)]
    await asyncio.sleep(0)
    fixture.store.gate.set()
    assert await asyncio.gather(*callers) == [fixture.store.rows[IntegrationId(1), ADA]] * 10
    assert fixture.store.statements == [[(1, ADA)]]
    await fixture.start(1)
    assert len(fixture.store.statements) == 2  # nothing is kept


async def test_reads_of_different_integrations_are_one_statement(fixture: Fixture) -> None:
    fixture.store.gate.set()
    found = await asyncio.gather(*(fixture.start(number) for number in (1, 2, 3, 2)))
    assert [one.integration.integration_id for one in found] == [1, 2, 3, 2]
    assert fixture.store.statements == [[(1, ADA), (2, ADA), (3, ADA)]]


async def test_a_statement_has_a_bounded_number_of_reads(fixture: Fixture) -> None:
    fixture.store.gate.set()
    await asyncio.gather(*(fixture.start(number) for number in range(1, 251)))
    assert [len(targets) for targets in fixture.store.statements] == [100, 100, 50]


async def test_rows_that_do_not_fit_are_read_by_the_next_statement(fixture: Fixture) -> None:
    fixture.store.gate.set()
    fixture.store.max_rows = 2
    found = await asyncio.gather(*(fixture.start(number) for number in range(1, 6)))
    assert [one.integration.integration_id for one in found] == [1, 2, 3, 4, 5]
    assert [len(targets) for targets in fixture.store.statements] == [5, 3, 1]


async def test_a_read_that_comes_right_after_a_statement_waits_for_others(fixture: Fixture) -> None:
    fixture.store.gate.set()
    await fixture.start(1)
    loop = asyncio.get_running_loop()
    fixture.reads._next_time = loop.time() + 0.05  # instead of a millisecond, which a busy machine sleeps through
    callers = [fixture.start(2)]
    await asyncio.sleep(0)
    callers.append(fixture.start(3))
    await asyncio.gather(*callers)
    assert fixture.store.statements == [[(1, ADA)], [(2, ADA), (3, ADA)]]


@pytest.mark.parametrize("number", [1, 299, 10**9], ids=["foreign", "foreign too", "absent"])
async def test_what_a_user_does_not_have_takes_the_same_statement(fixture: Fixture, number: int) -> None:
    fixture.store.gate.set()
    outcomes = await asyncio.gather(fixture.start(2), fixture.start(number, EVE), return_exceptions=True)
    assert isinstance(outcomes[0], StoredIntegration)
    assert isinstance(outcomes[1], IntegrationNotFound)
    assert fixture.store.statements == [[(2, ADA), (number, EVE)]]


async def test_callers_that_leave_end_the_read_for_nobody(fixture: Fixture) -> None:
    first, second, other = fixture.start(1), fixture.start(1), fixture.start(2)
    await fixture.until_statements(1)
    first.cancel()
    await asyncio.sleep(0)
    fixture.store.gate.set()
    assert (await second).integration.integration_id == 1
    assert (await other).integration.integration_id == 2
    assert first.cancelled()
    assert not fixture.cache._pending_reads


async def test_a_read_that_hangs_at_the_end_of_the_server_is_ended(fixture: Fixture) -> None:
    caller, gone = fixture.start(1), fixture.start(2)
    await fixture.until_statements(1)
    gone.cancel()
    async with asyncio.timeout(60):
        await fixture.reads.aclose()  # the gate stays closed
    with pytest.raises(StoreUnavailable):
        await caller
    assert not fixture.cache._pending_reads


async def test_an_error_reaches_every_caller_and_ends_nothing_later(fixture: Fixture) -> None:
    fixture.store.gate.set()
    fixture.store.error = StoreUnavailable()
    callers = [fixture.start(number) for number in (1, 2, 1)]
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert not fixture.cache._pending_reads
    fixture.store.error = None
    assert (await fixture.start(1)).integration.integration_id == 1


CHANGES = {
    "changed here": lambda cache: cache.invalidate(IntegrationId(1)),
    "changed elsewhere": lambda cache: cache.apply_changes([IntegrationId(1)], 0.0),
    "feed was behind": lambda cache: cache.apply_changes(None, 0.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("reads", "is_found"), [(SharedReads, False), (EagerReads, True)], ids=["", "control"])
async def test_who_calls_after_a_change_does_not_join_a_read_from_before(
    row: StoredIntegration, change: object, reads: type[SharedReads], is_found: bool
) -> None:
    fixture = Fixture(row, reads)
    before = fixture.start(1)
    await fixture.until_statements(1)
    del fixture.store.rows[IntegrationId(1), ADA]
    change(fixture.cache)  # type: ignore[operator]
    after = fixture.start(1)
    await asyncio.sleep(0.01)  # the next statement is due
    fixture.store.gate.set()
    outcomes = await asyncio.gather(before, after, return_exceptions=True)
    assert isinstance(outcomes[0], StoredIntegration)  # its call began before the change
    assert isinstance(outcomes[1], StoredIntegration) is is_found


@pytest.mark.parametrize(("max_age", "statements"), [(0.0, 2), (60.0, 1)], ids=["", "control"])
async def test_a_read_that_hangs_is_not_joined(row: StoredIntegration, max_age: float, statements: int) -> None:
    fixture = Fixture(row)
    fixture.reads = SharedReads(fixture.cache, cast("IntegrationStore", fixture.store), max_age=max_age)
    callers = [fixture.start(1)]
    await fixture.until_statements(1)
    callers.append(fixture.start(1))
    await asyncio.sleep(0.01)
    fixture.store.gate.set()
    await asyncio.gather(*callers)
    assert len(fixture.store.statements) == statements
