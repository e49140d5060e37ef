"""Queries that the driver runs itself: SQLAlchemy compiles them, lends the connection and converts the errors.

SQLAlchemy's execution and its rows cost more than a short query does (docs/decisions/0014-queries-by-the-driver.md).
Here a query is compiled once, PostgreSQL prepares it once per connection, and rows are sequences of values in the order
of the columns.
"""

import sqlite3
import uuid
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import asyncpg
from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Float,
    Select,
    String,
    Table,
    UpdateBase,
    bindparam,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from integration_server.domain.errors import StoreUnavailable

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


class ConstraintViolated(Exception):
    """A statement violates a constraint of its table."""


@dataclass(frozen=True, eq=False)
class DriverQuery:
    """A statement with named parameters, none of which is expanded: a list is one parameter (`is_one_of`)."""

    statement: Select[Any] | CompoundSelect[Any] | UpdateBase

    def named(self, rows: Sequence[Values]) -> Sequence[Any]:
        """Rows of this query whose values are attributes, named as the columns."""
        return list(map(self._row_type._make, rows))

    @cached_property
    def _row_type(self) -> Any:  # noqa: ANN401  # a named tuple
        return namedtuple("Row", [str(column.key) for column in _columns_of(self.statement)])


class CompiledQuery:
    """A query in the SQL of a dialect, with the conversions of its parameters and of its columns."""

    def __init__(self, query: DriverQuery, dialect: Dialect) -> None:
        statement = query.statement
        compiled: Any = statement.compile(dialect=dialect)  # declares no SQL compiler
        self.sql: str = compiled.string
        self._constants: Mapping[str, Any] = compiled.params
        self._parameters: Sequence[tuple[str, _Convert | None]] = [
            (name, compiled._bind_processors.get(name)) for name in compiled.positiontup or ()
        ]
        converters = [_result_converter(column.type, dialect) for column in _columns_of(statement)]
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
                value = row[index]
                if value is not None:  # the conversions leave NULL as it is
                    row[index] = convert(value)
            rows.append(row)
        return rows


def _columns_of(statement: Select[Any] | CompoundSelect[Any] | UpdateBase) -> Iterable[ColumnElement[Any]]:
    return statement.exported_columns if isinstance(statement, UpdateBase) else statement.selected_columns


def _result_converter(column_type: TypeEngine[Any], dialect: Dialect) -> _Convert | None:
    if isinstance(column_type, Float):  # both drivers return floats; SQLAlchemy would decide by the type of each result
        return None
    convert: _Convert | None = column_type.dialect_impl(dialect).result_processor(dialect, None)
    return convert


class DriverConnection:
    """A lent connection on which the driver runs statements. Raises the errors of the driver, or `ConstraintViolated`.

    Without `keeps_statements` the next statement may reach another session, behind a transaction pooler: a statement
    without a name is parsed again in the message that executes it. `compiled` returns the text of a statement.
    """

    def __init__(
        self,
        connection: PoolProxiedConnection,
        compiled: Callable[[DriverQuery], CompiledQuery],
        *,
        keeps_statements: bool,
    ) -> None:
        self._driver: Any = connection.driver_connection  # of asyncpg or aiosqlite
        self._is_postgres = isinstance(self._driver, asyncpg.Connection)
        self.dialect_name = "postgresql" if self._is_postgres else "sqlite"
        # Of this connection to the database: a new one has a new dictionary.
        self._statements: dict[Any, Any] | None = connection.info if keeps_statements else None
        self._compiled = compiled
        self._is_in_transaction = False

    async def run(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:  # noqa: ANN401
        """The rows of a statement."""
        compiled = self._compiled(query)
        return compiled.rows(await self._execute(compiled, "fetch", compiled.arguments(parameters)))

    async def run_many(self, query: DriverQuery, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each of these rows of parameters."""
        compiled = self._compiled(query)
        await self._execute(compiled, "executemany", list(map(compiled.arguments, rows)))

    async def copy_rows(
        self, table: Table, columns: Sequence[str], parts: AsyncIterator[Sequence[tuple[Any, ...]]]
    ) -> None:
        """Insert rows by PostgreSQL's COPY, in a transaction. `parts` may await between them.

        The values are the driver's: the types of the columns do not convert them.
        """

        async def rows() -> AsyncIterator[tuple[Any, ...]]:
            async for part in parts:
                for row in part:
                    yield row

        await self._driver.copy_records_to_table(table.name, columns=columns, records=rows())

    async def begin(self) -> None:
        """Begin a transaction, in SQLite with the lock of writers (`engine.py`)."""
        await self._control("BEGIN" if self._is_postgres else "BEGIN IMMEDIATE")
        self._is_in_transaction = True

    async def commit(self) -> None:
        """Commit the transaction."""
        await self._control("COMMIT")

    async def rollback(self) -> None:
        """Roll the transaction back, if there is one. SQLite ends it itself after some errors."""
        if self._is_postgres or self._driver.in_transaction:
            await self._control("ROLLBACK")

    async def _control(self, sql: str) -> None:
        await (self._driver.execute(sql) if self._is_postgres else self._driver.execute_fetchall(sql))

    async def _execute(self, compiled: CompiledQuery, method: str, arguments: Sequence[Any]) -> Sequence[Values]:
        try:
            if not self._is_postgres:
                return await self._execute_sqlite(compiled.sql, method, arguments)
            return await self._execute_postgres(compiled, method, arguments) or ()
        except (asyncpg.IntegrityConstraintViolationError, sqlite3.IntegrityError) as error:
            raise ConstraintViolated from error

    async def _execute_sqlite(self, sql: str, method: str, arguments: Sequence[Any]) -> Sequence[Values]:
        if method == "fetch":
            rows: Sequence[Values] = await self._driver.execute_fetchall(sql, arguments)
            return rows
        cursor = await self._driver.executemany(sql, arguments)
        await cursor.close()
        return ()

    async def _execute_postgres(self, compiled: CompiledQuery, method: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401
        if self._statements is None:
            statement = await self._driver.prepare(compiled.sql, name="")
            return await self._call(statement, method, arguments)
        statement = self._statements.get(compiled)
        if statement is not None:
            try:
                return await self._call(statement, method, arguments)
            except _OUTDATED as error:
                del self._statements[compiled]
                if self._is_in_transaction:  # which the error has ended
                    raise StoreUnavailable from error
        statement = await self._driver.prepare(compiled.sql, name=f"s_{uuid.uuid4().hex}")
        self._statements[compiled] = statement
        return await self._call(statement, method, arguments)

    async def _call(self, statement: Any, method: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401  # asyncpg's
        return await (statement.fetch(*arguments) if method == "fetch" else statement.executemany(arguments))


# --- lists as one parameter ------------------------------------------------------------------------------------------


class TextList(TypeDecorator[Sequence[str]]):
    """A list of texts as a parameter: an array in PostgreSQL, JSON in SQLite."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The type of the parameter."""
        return dialect.type_descriptor(ARRAY(String) if dialect.name == "postgresql" else JSON())


class IdList(TextList):
    """The same of ids."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The type of the parameter."""
        return dialect.type_descriptor(ARRAY(BigInteger) if dialect.name == "postgresql" else JSON())


class _IsOneOf(FunctionElement[bool]):
    inherit_cache = True


def is_one_of(value: ColumnElement[str] | ColumnElement[int], parameter: str) -> ColumnElement[bool]:
    """Whether a text or an id is in the list that is this parameter."""
    return _IsOneOf(value, bindparam(parameter, type_=TextList if isinstance(value.type, String) else IdList))


@compiles(_IsOneOf, "postgresql")
def _in_array(element: _IsOneOf, compiler: SQLCompiler, **options: object) -> str:
    value, texts = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{value} = ANY ({texts})"


@compiles(_IsOneOf, "sqlite")
def _in_json(element: _IsOneOf, compiler: SQLCompiler, **options: object) -> str:
    value, texts = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{value} IN (SELECT value FROM json_each({texts}))"  # noqa: S608  # nosec B608  # compiled clauses
