"""Each SQL statement is a span with its operation and its table, whether SQLAlchemy or the driver runs it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from sqlalchemy import func, select, text

from integration_server.observability.tracing import RecordedSpan, SpanTracing
from integration_server.storage.driver_queries import DriverQuery
from integration_server.storage.engine import Database, open_database
from integration_server.storage.tables import integrations

COUNT = select(func.count()).select_from(integrations)
COUNT_QUERY = DriverQuery(COUNT)
FAILING = text("SELECT nothing FROM integrations")
FAILING_QUERY = DriverQuery(select(text("nothing")).select_from(integrations))


class Traces:
    """Traces that are kept in memory."""

    def __init__(self) -> None:
        self.spans: list[RecordedSpan] = []
        self.tracing = SpanTracing(self.spans.append)

    @contextmanager
    def call(self, flags: str = "01") -> Iterator[None]:
        """Run a block in the span of a call."""
        with self.tracing.root("call", {}) if flags == "01" else self._unsampled():
            yield

    @contextmanager
    def _unsampled(self) -> Iterator[None]:
        self.tracing.begin("call", {}, f"00-{1:032x}-{1:016x}-00")
        yield

    @property
    def statements(self) -> list[tuple[str, Mapping[str, str | int], bool]]:
        """Name, attributes and failure of each statement's span."""
        return [(span.name, span.attributes, span.has_failed) for span in self.spans if span.kind == "client"]


async def run_both(database: Database) -> None:
    """Run a statement by SQLAlchemy, and one by the driver."""
    async with database.read_connection() as connection:
        await connection.execute(COUNT)
    await database.read(COUNT_QUERY)


async def test_a_statement_has_one_span_whoever_runs_it(database_url: str, database: Database) -> None:
    traces = Traces()
    async with open_database(database_url, add_span=traces.tracing.add_request) as traced:
        with traces.call():
            await run_both(traced)
    expected = {"db.system.name": database.dialect_name, "db.query.summary": "SELECT integrations"}
    assert traces.statements == [("SELECT integrations", expected, False)] * 2
    *statements, call = traces.spans
    for span in statements:
        assert (span.trace_id, span.parent_id) == (call.trace_id, call.span_id)
        assert call.begin <= span.begin <= span.end <= call.end


@pytest.mark.parametrize("by_driver", [False, True])
async def test_a_statement_that_fails_has_one_span_with_the_class_of_the_error(
    database_url: str, database: Database, *, by_driver: bool
) -> None:
    traces = Traces()

    async def fail(traced: Database) -> None:
        if by_driver:
            await traced.read(FAILING_QUERY)
        async with traced.read_connection() as connection:
            await connection.execute(FAILING)

    async with open_database(database_url, add_span=traces.tracing.add_request) as traced:
        with traces.call():
            with pytest.raises(Exception, match="nothing"):
                await fail(traced)
            await traced.read(COUNT_QUERY)  # its span is not failed
    (name, attributes, has_failed), succeeded = traces.statements
    assert (name, has_failed, succeeded[2]) == ("SELECT integrations", True, False)
    assert str(attributes["error.type"]).endswith(("OperationalError", "UndefinedColumnError", "ProgrammingError"))
    assert "error.type" not in succeeded[1]


async def test_statements_outside_a_recorded_call_have_no_span(database_url: str, database: Database) -> None:
    traces = Traces()
    async with open_database(database_url, add_span=traces.tracing.add_request) as traced:
        await run_both(traced)
        with traces.call("00"):
            await run_both(traced)
    assert traces.spans == []
