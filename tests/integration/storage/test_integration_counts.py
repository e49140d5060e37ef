"""The statements of the metrics: their results, and the rows that they read."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect

from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import Integration
from integration_server.observability.metrics import METRICS, UNKNOWN, Sample
from integration_server.service.background.ports import JobKind
from integration_server.storage.due_work import OLDEST_DUE, SqlDueWork
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integration_counts import IntegrationCount, batch_statement, count_batch
from integration_server.storage.integrations import integration_of
from integration_server.storage.refresh_journal import FileRefreshJournal
from integration_server.storage.tables import integrations, webhook_consumer_offsets
from integration_server.wiring.metrics import DatabaseSampler
from tests.integration.storage.test_due_work import add_due_rows, compiled, count_steps, rows_read
from tests.keyrings import open_test_keyring

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
WITHIN = (7 * DAY, 30 * DAY)
PAST, SOON, LATER, FAR = (NOW + days * DAY for days in (-1, 3, 20, 300))

ROW: Mapping[str, Any] = {
    "user_id": "ann", "integration_type": "acme", "auth_method": "oauth2", "name": "", "config": {}, "is_active": True,
    "scopes": [], "missing_scopes": [], "lacks_required_scope": False, "is_renewable": True,
    "reauthorization_required": False, "error_count": 0, "create_time": PAST, "update_time": PAST, "connect_time": PAST,
    "version": 1, "last_error_class": None, "last_error_time": None, "last_error_message": None,
    "access_token_expire_time": None, "refresh_token_expire_time": None, "refresh_failures": 0,
    "last_webhook_number": 0, "encrypted_credentials": b"",
}  # fmt: skip
FAILURE = {"last_error_class": "PROVIDER_UNAVAILABLE", "last_error_time": PAST, "last_error_message": "no response"}
CHOICES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "connected": [{}, {"connect_time": None}],
    "active": [{}, {"is_active": False}],
    "reauthorization": [{}, {"reauthorization_required": True}],
    "error": [{}, FAILURE],
    "scope": [{}, {"lacks_required_scope": True}],
    "renewable": [{}, {"is_renewable": False}],
    "token": [{"access_token_expire_time": time} for time in (None, PAST, NOW, SOON, LATER)],
    "grant": [{"refresh_token_expire_time": time} for time in (None, SOON, FAR)],
}


async def add(database: Database, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store integrations."""
    async with database.write_transaction() as connection:
        values = [{**ROW, **row, "uid": f"uid-{number}"} for number, row in enumerate(rows)]
        values = [{**value, "client_key": value["integration_type"]} for value in values]
        for start in range(0, len(values), 500):
            await connection.execute(insert(integrations), values[start : start + 500])


async def count_all(database: Database, batch: int) -> dict[tuple[str, str], IntegrationCount]:
    """The groups of a database, all of whose integrations fit into a batch."""
    groups = await count_batch(database, 0, batch, NOW, WITHIN)
    return {(group.integration_type, group.status): group for group in groups}


async def test_the_status_is_that_of_the_domain_in_every_case(database: Database) -> None:
    rows = [
        dict(itertools.chain(*(choice.items() for choice in case))) for case in itertools.product(*CHOICES.values())
    ]
    await add(database, rows)
    stored: list[Integration] = [integration_of(row) for row in await database.fetch(select(integrations))]
    counted = await count_all(database, len(rows) + 1)
    assert len(stored) == len(rows) == sum(group.count for group in counted.values()) >= 900
    assert {status: group.count for (_, status), group in counted.items()} == Counter(
        str(one.status(NOW)) for one in stored
    )
    assert len(counted) == 5  # each status occurs
    for end, name in zip(WITHIN, ("ending_soon", "ending_later"), strict=True):
        expected = [
            one
            for one in stored
            if one.is_usable and one.grant_expire_time is not None and NOW < one.grant_expire_time <= NOW + end
        ]
        assert sum(getattr(group, name) for group in counted.values()) == len(expected) > 0


async def test_failing_refreshes_and_unacknowledged_events_are_counted(database: Database) -> None:
    failing = {**FAILURE, "refresh_failures": 3}
    rows: list[Mapping[str, Any]] = [
        failing,
        {**failing, "reauthorization_required": True},  # expired
        FAILURE,
        {"refresh_failures": 1},  # active
        {"integration_type": "beta", **failing},
        {"last_webhook_number": 10},
        {"last_webhook_number": 7},
        {"last_webhook_number": 5},
    ]
    await add(database, rows)
    offsets = [(6, "slow", 4), (6, "fast", 10), (7, "only", 6)]  # the last one has no consumer
    values = [{"integration_id": one, "consumer": name, "number": number} for one, name, number in offsets]
    async with database.write_transaction() as connection:
        await connection.execute(insert(webhook_consumer_offsets), values)
    counted = await count_all(database, 100)
    assert {key: group.refresh_failing for key, group in counted.items() if group.refresh_failing} == {
        ("acme", "error"): 1,
        ("beta", "error"): 1,
    }
    assert sum(group.unacknowledged for group in counted.values()) == 6 + 1
    assert {type(value) for group in counted.values() for value in astuple(group)} == {int, str}


@pytest.mark.postgres
async def test_a_batch_reads_its_rows_only_on_postgres(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        await add_due_rows(database, 3000)
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("ANALYZE")

        async def explain(statement: Any) -> int:
            sql, parameters = compiled(statement, asyncpg_dialect.dialect())  # type: ignore[no-untyped-call]
            plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *parameters)
            return rows_read(json.loads(plan)[0]["Plan"])

        for after in (0, 1500, 2990):
            assert await explain(batch_statement(after, 100, NOW, WITHIN)) <= 100
        assert await explain(OLDEST_DUE) <= 2 * (3 + 1) * len(JobKind)  # probes of three types
        # Negative control: the measure detects a scan.
        everything = select(integrations.c.integration_type, func.count()).group_by(integrations.c.integration_type)
        assert await explain(everything) >= 3000
    finally:
        await connection.close()


async def test_the_cost_of_a_statement_does_not_depend_on_the_number_of_rows_on_sqlite(sqlite_url: str) -> None:
    everything = select(integrations.c.integration_type, func.count()).group_by(integrations.c.integration_type)
    statements = (batch_statement(0, 100, NOW, WITHIN), OLDEST_DUE, everything)
    async with open_database(sqlite_url) as database:
        await add_due_rows(database, 150)
        few = [count_steps(sqlite_url, statement) for statement in statements]
        await add_due_rows(database, 3000)
    many = [count_steps(sqlite_url, statement) for statement in statements]
    growth = [large / small for small, large in zip(few, many, strict=True)]
    assert max(growth[:-1]) < 1.2, growth
    assert growth[-1] > 10  # negative control: a scan


async def test_the_age_of_the_oldest_due_row_of_each_job_and_type(database: Database) -> None:
    due_work = SqlDueWork(database)
    await add_due_rows(database, 6)
    ages = await due_work.oldest_ages()
    assert {kind for kind, _ in ages} == set(JobKind)
    assert {job_type for kind, job_type in ages if kind is JobKind.REFRESH} == {"acme", "beta", "gamma"}
    assert min(age for (kind, _), age in ages.items() if kind is not JobKind.KEY_ROTATION) > 365 * DAY
    claims = [await due_work.claim(JobKind.CHECK, name, 10, claim_duration=DAY) for name in ("acme", "beta", "gamma")]
    assert sum(map(len, claims)) == 6
    assert {age for (kind, _), age in (await due_work.oldest_ages()).items() if kind is JobKind.CHECK} == {timedelta(0)}


class Unavailable:
    """A database that can be taken away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_away = False
        self.statements = 0

    async def fetch(self, query: Any, parameters: Any = None) -> Any:
        """As `Database.fetch`."""
        self.statements += 1
        if self.is_away:
            raise StoreUnavailable
        return await self._database.fetch(query, parameters)


def sampler_of(database: Any, now: list[float], journal: Any, **options: Any) -> DatabaseSampler:
    """A sampler on a clock that tests set."""
    return DatabaseSampler(
        database, SqlDueWork(database), FileRefreshJournal(journal), {"acme"}, lambda: NOW, lambda: now[0], **options
    )


def by_metric(sampler: DatabaseSampler) -> dict[str, dict[tuple[str, ...], float]]:
    """The samples by name and labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    samples: Sequence[Sample] = list(sampler.read())
    for metric, labels, value in samples:
        found.setdefault(metric.name, {})[labels] = value
    return found


async def with_data_key(database: Database) -> None:
    """Create the key set."""
    await open_test_keyring(database)


async def test_a_count_takes_several_statements_and_other_types_are_counted_together(
    database: Database, tmp_path: Any
) -> None:
    await with_data_key(database)
    await add(database, [{"integration_type": name} for name in ("acme", "gone", "acme", "removed", "acme")])
    now, watched = [0.0], Unavailable(database)
    sampler = sampler_of(watched, now, tmp_path, batch=2)
    for second in range(3):
        assert METRICS.integrations.name not in by_metric(sampler)
        now[0] = float(second)
        await sampler.poll()
    assert by_metric(sampler)[METRICS.integrations.name] == {("acme", "active"): 3, (UNKNOWN, "active"): 2}
    assert by_metric(sampler)[METRICS.data_key_age.name][()] >= 0
    before = watched.statements
    for second in range(3, 15):  # nothing is due
        now[0] = float(second)
        await sampler.poll()
    assert watched.statements == before
    now[0] = 15.0
    await sampler.poll()
    assert watched.statements > before


async def test_without_a_database_its_metrics_are_absent_and_come_back(database: Database, tmp_path: Any) -> None:
    await with_data_key(database)
    await add(database, [{}])
    now, watched = [0.0], Unavailable(database)
    sampler = sampler_of(watched, now, tmp_path)
    await sampler.poll()
    assert by_metric(sampler)[METRICS.integrations.name] == {("acme", "active"): 1}
    watched.is_away, now[0] = True, 16.0
    with pytest.raises(StoreUnavailable):
        await sampler.poll()
    assert by_metric(sampler) == {METRICS.database_up.name: {(): 0}}
    watched.is_away, now[0] = False, 17.0
    await sampler.poll()
    assert by_metric(sampler)[METRICS.database_up.name] == {(): 1}
    assert by_metric(sampler)[METRICS.integrations.name] == {("acme", "active"): 1}
    now[0] += 61.0  # the event loop hangs
    assert by_metric(sampler) == {}
