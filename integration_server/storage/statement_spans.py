"""Spans of SQL statements: their operation and their table. They have neither a statement's text nor a value."""

import re
import time
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine, event

from integration_server.observability.spans import AddSpan, Attributes

_SUMMARY = re.compile(
    r"\s*(?P<operation>[A-Za-z]+)(?:.*?\b(?:FROM|INTO|UPDATE)\s+\"?(?P<table>[A-Za-z_][A-Za-z_0-9]*))?", re.DOTALL
)
_MAX_TEXT = 4096  # characters; a table is named long before
_STATEMENTS = 1024  # whose summaries are kept: the server has fewer, besides lists of parameters

_BEGIN = "_statement_begin"  # the attribute of SQLAlchemy's context of an execution


def summary_of(sql: str) -> str:
    """The operation and the first table of a statement: `SELECT integrations`."""
    match = _SUMMARY.match(f"UPDATE {sql}" if sql.lstrip()[:6].upper() == "UPDATE" else sql, 0, _MAX_TEXT)
    if match is None:
        return "statement"
    operation = match["operation"].upper()
    return f"{operation} {match['table']}" if match["table"] else operation


@lru_cache(_STATEMENTS)
def attributes_of(system: str, sql: str) -> tuple[str, Attributes]:
    """The name and the attributes of a statement's span."""
    summary = summary_of(sql)
    return summary, {"db.system.name": system, "db.query.summary": summary}


def trace_statements(engine: Engine, add_span: AddSpan) -> None:
    """Add a span for each statement that SQLAlchemy executes on an engine.

    An engine with other options has the events of the one that it is made of, and its own: only the first adds a span.
    """
    system = engine.dialect.name

    def begin(_connection: Any, _cursor: Any, _sql: str, _parameters: Any, context: Any, _many: bool) -> None:  # noqa: ANN401
        if context is not None:
            setattr(context, _BEGIN, time.time_ns())

    def end(_connection: Any, _cursor: Any, sql: str, _parameters: Any, context: Any, _many: bool) -> None:  # noqa: ANN401
        add(context, sql, None)

    def fail(error: Any) -> None:  # noqa: ANN401
        add(error.execution_context, error.statement, error.original_exception)

    def add(context: Any, sql: str, error: BaseException | None) -> None:  # noqa: ANN401
        begun = getattr(context, _BEGIN, None)
        if begun is not None:
            setattr(context, _BEGIN, None)
            add_span(*attributes_of(system, sql), begun, error)

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    event.listen(engine, "handle_error", fail)
