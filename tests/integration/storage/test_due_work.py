"""The plans of the due-work statements: the rows read do not depend on the backlog."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest
from sqlalchemy import Delete, Dialect, UpdateBase, any_, bindparam, insert, literal, select, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect

from integration_server.domain.integration import UserId
from integration_server.service.background.ports import Claim, JobKind
from integration_server.service.connections.revocation_ports import ClientScope, OrphanedGrant
from integration_server.storage.driver_queries import DriverQuery
from integration_server.storage.due_work import DUE_TYPES, SqlDueWork, claim_statement
from integration_server.storage.engine import Database, DatabaseTime, open_database
from integration_server.storage.list_parameters import IdList
from integration_server.storage.pruning import BATCH_SIZE
from integration_server.storage.revocations import ends_integration
from integration_server.storage.tables import authorization_attempts, due_work_claims, integrations, revocations

PAST = datetime(2000, 1, 1, tzinfo=UTC)
TYPES = ("acme", "beta", "gamma")
LIMIT = 8
BACKLOG = 3000
CLAIMED = 200
MINUTE = timedelta(minutes=1)
Explain = Callable[[Any], Awaitable[int]]
INTEGRATION_JOBS = (JobKind.REFRESH, JobKind.CHECK, JobKind.REVOCATION, JobKind.DEVICE_POLL)


async def add_due_rows(database: Database, count: int) -> None:
    """Store this many due rows of each job, spread over a few types."""
    row = {"user_id": "ann", "encrypted_credentials": b"", "create_time": PAST}
    integration = row | {
        "auth_method": "oauth2",
        "name": "",
        "config": {},
        "is_active": True,
        "scopes": [],
        "missing_scopes": [],
        "lacks_required_scope": False,
        "is_renewable": True,
        "reauthorization_required": False,
        "error_count": 0,
        "update_time": PAST,
        "version": 1,
        "connect_time": PAST,
        "refresh_due_time": PAST,
        "check_due_time": PAST,
    }
    names = [
        {
            "uid": f"uid-{count}-{number}",
            "integration_type": TYPES[number % len(TYPES)],
            "client_key": TYPES[number % len(TYPES)],
            "account_id": f"account-{count}-{number}",
            "token_fingerprint": f"token-{count}-{number}",
        }
        for number in range(count)
    ]
    async with database.write_transaction() as connection:
        await connection.execute(insert(integrations), [integration | name for name in names])
        await connection.execute(insert(revocations), [row | {"due_time": PAST} | name for name in names])
        stored = await connection.execute(
            select(integrations.c.integration_id, integrations.c.integration_type, integrations.c.uid).where(
                integrations.c.uid.startswith(f"uid-{count}-")
            )
        )
        attempt = {"user_id": "ann", "encrypted_details": b"", "state": "started", "create_time": PAST}
        polled = attempt | {"expire_time": PAST, "poll_due_time": PAST, "poll_interval_seconds": 5.0}
        attempts = [
            polled
            | {"attempt_id": one.uid, "integration_id": one.integration_id, "integration_type": one.integration_type}
            for one in stored
        ]
        await connection.execute(insert(authorization_attempts), attempts)


def new_claim(job_kind: JobKind, dialect: str) -> UpdateBase:
    """The claim of a few rows of a type."""
    return claim_statement(job_kind, literal("beta"), literal(LIMIT), MINUTE, dialect)


def compiled(statement: Any, dialect: Dialect) -> tuple[str, Sequence[Any]]:
    """The statement's text and its positional parameters."""
    result = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    parameters = result.construct_params()
    return str(result), [parameters[name] for name in result.positiontup or ()]


def rows_read(plan: dict[str, Any]) -> int:
    """The rows that the scans of a plan returned or discarded."""
    scanned = sum(rows_read(child) for child in plan.get("Plans", ()))
    if "Relation Name" in plan and plan["Node Type"] != "ModifyTable":
        per_loop = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        scanned += round(per_loop * plan["Actual Loops"])
    return scanned


@pytest.mark.postgres
class TestPostgresPlans:
    @pytest.fixture
    async def explain(self, postgres_url: str) -> AsyncIterator[Explain]:
        """Runs a statement over a backlog; returns the number of rows that it read."""
        async with open_database(postgres_url) as database:
            await add_due_rows(database, BACKLOG)
        connection = await asyncpg.connect(postgres_url)
        await connection.execute("ANALYZE")

        async def explain(statement: Any) -> int:
            sql, parameters = compiled(statement, asyncpg_dialect.dialect())  # type: ignore[no-untyped-call]
            plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *parameters)
            return rows_read(json.loads(plan)[0]["Plan"])

        yield explain
        await connection.close()

    @pytest.mark.slow
    @pytest.mark.parametrize("account_id", ["account", None])
    @pytest.mark.parametrize("of_type", ["beta", "of no integration"])
    async def test_the_decision_to_send_a_revocation_reads_few_rows(
        self, explain: Explain, of_type: str, account_id: str | None
    ) -> None:
        """Also of a type without integrations, among which no search ends early."""
        grant = OrphanedGrant("uid", UserId("ann"), of_type, account_id, b"", token_fingerprint="token")
        for whose in (integrations.c.user_id == "bob", integrations.c.user_id != "bob"):
            assert await explain(ends_integration(grant, [ClientScope(of_type, None)], [of_type], whose)) <= LIMIT

    async def test_a_poll_reads_two_rows_per_job_and_type(self, explain: Explain) -> None:
        assert await explain(DUE_TYPES) <= 2 * (len(TYPES) + 1) * len(JobKind)

    @pytest.mark.slow
    @pytest.mark.parametrize("job_kind", INTEGRATION_JOBS)
    async def test_a_claim_reads_only_the_rows_that_it_claims(self, explain: Explain, job_kind: JobKind) -> None:
        assert await explain(new_claim(job_kind, "postgresql")) <= LIMIT

    @pytest.mark.slow
    @pytest.mark.parametrize("job_kind", INTEGRATION_JOBS)
    async def test_a_claim_passes_over_the_rows_that_are_claimed(
        self, postgres_url: str, explain: Explain, job_kind: JobKind
    ) -> None:
        async with open_database(postgres_url) as database:
            due_work = SqlDueWork(database)
            claims: list[Claim[Any]] = []
            while len(claims) < CLAIMED:
                claims += await due_work.claim(job_kind, "beta", LIMIT, claim_duration=MINUTE)
            # Each is read with its claim.
            assert 2 * CLAIMED < await explain(new_claim(job_kind, "postgresql")) <= 2 * CLAIMED + 3 * LIMIT
            assert await explain(DUE_TYPES) <= 2 * CLAIMED + 3 * (len(TYPES) + 1) * len(JobKind)
            for claim in claims:
                await due_work.postpone(claim, MINUTE)
            assert await explain(new_claim(job_kind, "postgresql")) <= 3 * LIMIT  # all have expired already

    @pytest.mark.slow
    async def test_negative_control_a_query_for_all_due_rows_reads_the_backlog(self, explain: Explain) -> None:
        """Negative control: the measure detects a scan."""
        assert await explain(select(revocations.c.uid).where(revocations.c.due_time <= DatabaseTime())) >= BACKLOG


@pytest.mark.postgres
class TestPostgresPlansOnce:
    """A statement whose parameters seem to matter to its cost is planned anew by each execution."""

    EXECUTIONS = 12
    FIRST = 5  # PostgreSQL plans so many executions of each statement before it compares the costs

    async def plans_of(self, database: Database, work: Callable[[], Awaitable[object]]) -> Sequence[int]:
        """How often each statement of the only connection was planned for the values of its parameters."""
        for _ in range(self.EXECUTIONS):
            await work()
        plans = text("SELECT custom_plans FROM pg_prepared_statements WHERE custom_plans + generic_plans >= :executed")
        async with database.read_connection() as connection:
            return (await connection.execute(plans, {"executed": self.EXECUTIONS})).scalars().all()

    @pytest.mark.slow
    async def test_polls_and_claims_are_planned_once(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1) as database:
            await add_due_rows(database, BACKLOG)
            async with database.write_transaction() as connection:
                await connection.execute(text("ANALYZE"))
            due_work = SqlDueWork(database)

            async def poll() -> None:
                await due_work.due_types()
                claims = await due_work.claim(JobKind.REFRESH, "beta", 2, claim_duration=MINUTE)
                assert [await due_work.postpone(claim, MINUTE) for claim in claims]

            plans = await self.plans_of(database, poll)
        assert len(plans) == 4
        assert max(plans) <= self.FIRST, plans

    async def test_negative_control_a_list_whose_length_is_known_is_planned_by_each_execution(
        self, postgres_url: str
    ) -> None:
        """Negative control: the planner expects ten of the ids, and finds fewer cheaper."""
        ids = bindparam("ids", type_=IdList)
        read = DriverQuery(select(integrations).where(integrations.c.integration_id == any_(ids)))
        async with open_database(postgres_url, pool_size=1) as database:
            await add_due_rows(database, BACKLOG)
            async with database.write_transaction() as connection:
                await connection.execute(text("ANALYZE"))
            assert await self.plans_of(database, lambda: database.read(read, ids=[1, 2])) == [self.EXECUTIONS]


@pytest.mark.postgres
@pytest.mark.parametrize("is_fenced", [True, False])
async def test_a_claim_that_began_before_another_gets_none_of_its_rows(postgres_url: str, *, is_fenced: bool) -> None:
    """The second case is the negative control: without the condition on conflicts, the rows are claimed twice."""
    statement = claim_statement(JobKind.REFRESH, literal("beta"), literal(LIMIT), MINUTE, "postgresql")
    sql, parameters = compiled(statement, asyncpg_dialect.dialect())  # type: ignore[no-untyped-call]
    fence = " WHERE due_work_claims.expire_time = excluded.replaced_expire_time"
    assert fence in sql
    async with open_database(postgres_url) as database, AsyncExitStack() as stack:
        await add_due_rows(database, LIMIT * len(TYPES))
        first, second, third = [await asyncpg.connect(postgres_url) for _ in range(3)]
        for connection in (first, second, third):
            stack.push_async_callback(connection.close)
        async with first.transaction():
            claimed = await first.fetch(sql, *parameters)
            assert len(claimed) == LIMIT
            # Each row has an outcome, is due again, and is claimed again: the second claim sees none of this.
            await first.execute("UPDATE integrations SET refresh_due_time = refresh_due_time + interval '1 second'")
            assert len(await first.fetch(sql, *parameters)) == LIMIT
            waiting = asyncio.create_task(second.fetch(sql if is_fenced else sql.replace(fence, ""), *parameters))
            async with asyncio.timeout(60):
                while not await third.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    pass
        assert len(await waiting) == (0 if is_fenced else LIMIT)
        kept = await third.fetch(
            "SELECT FROM due_work_claims JOIN integrations ON row_id = integration_id::text"
            " AND due_time = refresh_due_time"
        )
        assert len(kept) == (LIMIT if is_fenced else 0)


class DatabaseWhereClaimsExpire:
    """A database in which another claim expires before each deletion of expired ones."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.deletions = 0

    async def write(self, statement: Delete) -> int:
        """Run a deletion."""
        self.deletions += 1
        assert self.deletions < 10
        new = {"job_kind": "check", "row_id": f"new-{self.deletions}", "due_time": PAST, "expire_time": PAST}
        await self.database.write(insert(due_work_claims).values(new))
        return await self.database.write(statement)


async def test_the_deletion_of_claims_ends_although_others_expire_meanwhile(sqlite_url: str) -> None:
    async with open_database(sqlite_url) as database:
        async with database.write_transaction() as connection:
            expired = {"job_kind": "refresh", "due_time": PAST, "expire_time": PAST}
            await connection.execute(
                insert(due_work_claims), [expired | {"row_id": str(number)} for number in range(2 * BATCH_SIZE)]
            )
        while_expiring = DatabaseWhereClaimsExpire(database)
        assert await SqlDueWork(cast("Database", while_expiring)).prune() == 2 * BATCH_SIZE + 3
        assert while_expiring.deletions == 3


class TestSqliteSteps:
    async def test_the_cost_does_not_depend_on_the_backlog(self, sqlite_url: str) -> None:
        claims = [new_claim(job_kind, "sqlite") for job_kind in INTEGRATION_JOBS]
        scan = select(revocations.c.uid).where(revocations.c.due_time <= DatabaseTime())  # negative control
        async with open_database(sqlite_url) as database:
            await add_due_rows(database, 2 * LIMIT * len(TYPES))
            few = [count_steps(sqlite_url, statement) for statement in (DUE_TYPES, *claims, scan)]
            await add_due_rows(database, BACKLOG)
        many = [count_steps(sqlite_url, statement) for statement in (DUE_TYPES, *claims, scan)]
        growth = [large / small for small, large in zip(few, many, strict=True)]
        assert max(growth[:-1]) < 1.2, growth
        assert growth[-1] > 10


def count_steps(url: str, statement: Any) -> int:
    """The number of virtual machine instructions that SQLite runs for a statement; its changes are rolled back."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.set_progress_handler(count, 1)
        connection.execute(*compiled(statement, sqlite.dialect())).fetchall()
        connection.set_progress_handler(None, 1)
        connection.execute("ROLLBACK")
    return steps


async def test_key_rotation_is_due_in_a_new_database(database: Database) -> None:
    due_work = SqlDueWork(database)
    assert await due_work.due_types() == [(JobKind.KEY_ROTATION, "key_rotation")]
    (claim,) = await due_work.claim(JobKind.KEY_ROTATION, "key_rotation", 5, claim_duration=MINUTE)
    assert await due_work.due_types() == []
    assert await due_work.postpone(claim, -MINUTE) is not None
    assert await due_work.postpone(claim, -MINUTE) is None
    assert len(await due_work.due_types()) == 1
