"""Queries that the driver runs itself: SQLAlchemy compiles them, lends the connection and converts the errors.

SQLAlchemy's execution and its rows cost more than a short query does (docs/decisions/0014-queries-by-the-driver.md).
Here a query is compiled once, PostgreSQL prepares it once per connection, and rows are sequences of values in the order
of the columns.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import JSON, ColumnElement, Select, String, bindparam
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

# --- running ---------------------------------------------------------------------------------------------------------

Values = Sequence[Any]
"""The values of a row, in the order of the query's columns."""

_Convert = Callable[[Any], Any]

# Of prepared statements, after changes of the schema or of the session. They are prepared again.
_OUTDATED = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    asyncpg.InvalidSQLStatementNameError,
)


@dataclass(frozen=True, eq=False)
class DriverQuery:
    """A query with named parameters, none of which is expanded: a list is one parameter (`is_one_of`)."""

    query: Select[Any]


class CompiledQuery:
    """A query in the SQL of a dialect, with the conversions of its parameters and of its columns."""

    def __init__(self, query: DriverQuery, dialect: Dialect) -> None:
        compiled: Any = query.query.compile(dialect=dialect)  # declares no SQL compiler
        self.sql: str = compiled.string
        self._constants: Mapping[str, Any] = compiled.params
        self._parameters: Sequence[tuple[str, _Convert | None]] = [
            (name, compiled._bind_processors.get(name)) for name in compiled.positiontup or ()
        ]
        converters = [_result_converter(column.type, dialect) for column in query.query.selected_columns]
        self._converters = [(index, convert) for index, convert in enumerate(converters) if convert is not None]

    def arguments(self, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The values of the parameters in the order in which the SQL has them."""
        arguments = []
        for name, convert in self._parameters:
            value = parameters[name] if name in parameters else self._constants[name]
            arguments.append(value if convert is None else convert(value))
        return arguments

    def rows(self, found: Sequence[Values]) -> Sequence[Values]:
        """The rows as the types of the columns define them."""
        if not self._converters:
            return found
        rows = []
        for one in found:
            row = list(one)
            for index, convert in self._converters:
                row[index] = convert(row[index])
            rows.append(row)
        return rows


def _result_converter(column_type: TypeEngine[Any], dialect: Dialect) -> _Convert | None:
    convert: _Convert | None = column_type.dialect_impl(dialect).result_processor(dialect, None)
    return convert


async def run_query(
    connection: PoolProxiedConnection, query: CompiledQuery, parameters: Mapping[str, Any], *, keeps_statements: bool
) -> Sequence[Values]:
    """Run a query on a lent connection. Raises the errors of the driver.

    Without `keeps_statements` the next statement may reach another session, behind a transaction pooler: a statement
    without a name is parsed again in the message that executes it.
    """
    driver, arguments = connection.driver_connection, query.arguments(parameters)
    if not isinstance(driver, asyncpg.Connection):
        return query.rows(await driver.execute_fetchall(query.sql, arguments))  # type: ignore[union-attr]
    if not keeps_statements:
        return query.rows(await (await driver.prepare(query.sql, name="")).fetch(*arguments))
    statements = connection.info  # of this connection to the database: a new one has a new dictionary
    statement = statements.get(query)
    if statement is not None:
        try:
            return query.rows(await statement.fetch(*arguments))
        except _OUTDATED:
            del statements[query]
    statement = statements[query] = await driver.prepare(query.sql, name=f"s_{uuid.uuid4().hex}")
    return query.rows(await statement.fetch(*arguments))


# --- lists as one parameter ------------------------------------------------------------------------------------------


class TextList(TypeDecorator[Sequence[str]]):
    """A list of texts as a parameter: an array in PostgreSQL, JSON in SQLite."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The type of the parameter."""
        return dialect.type_descriptor(ARRAY(String) if dialect.name == "postgresql" else JSON())


class _IsOneOf(FunctionElement[bool]):
    inherit_cache = True


def is_one_of(value: ColumnElement[str], parameter: str) -> ColumnElement[bool]:
    """Whether a text is in the list that is this parameter."""
    return _IsOneOf(value, bindparam(parameter, type_=TextList))


@compiles(_IsOneOf, "postgresql")
def _in_array(element: _IsOneOf, compiler: SQLCompiler, **options: object) -> str:
    value, texts = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{value} = ANY ({texts})"


@compiles(_IsOneOf, "sqlite")
def _in_json(element: _IsOneOf, compiler: SQLCompiler, **options: object) -> str:
    value, texts = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{value} IN (SELECT value FROM json_each({texts}))"  # noqa: S608  # compiled clauses
