"""Lists as one parameter of a query: its SQL is the same for any number of values."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    String,
    bindparam,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

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
    of_ids = any(isinstance(clause.type, IdList) for clause in element.clauses)
    value, values = (compiler.process(clause, **options) for clause in element.clauses)
    # A subquery hides the number of ids from the planner. It expects ten, and would plan each execution with fewer anew
    # where rows are many. The plan for ids does not depend on them, as that for texts may.
    return f"{value} = ANY ({f'(SELECT {values})::bigint[]' if of_ids else values})"


@compiles(_IsOneOf, "sqlite")
def _in_json(element: _IsOneOf, compiler: SQLCompiler, **options: object) -> str:
    value, texts = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{value} IN (SELECT value FROM json_each({texts}))"  # noqa: S608  # nosec B608  # compiled clauses
