"""Pages of rows that are bounded in bytes by the query itself, so that no more is read than fits."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    LargeBinary,
    Select,
    String,
    bindparam,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

_BYTES_PER_JSON_BYTE = 6  # a number takes up to six times as many bytes in a protobuf Struct as in JSON
_FIXED_BYTES = 512  # of a row's numbers, times and flags
_ZERO: ColumnElement[int] = literal_column("0")  # not a parameter, of which a statement would have one for each column


class ByteLength(FunctionElement[int]):
    """The length of a text, JSON or binary column in bytes; NULL for NULL."""

    name = "byte_length"
    type = BigInteger()
    inherit_cache = True


@compiles(ByteLength, "postgresql")
def _postgresql(element: ByteLength, compiler: SQLCompiler, **options: object) -> str:
    (column,) = element.clauses
    cast = "" if isinstance(column.type, LargeBinary) else "::text"
    return f"octet_length({compiler.process(column, **options)}{cast})"


@compiles(ByteLength, "sqlite")
def _sqlite(element: ByteLength, compiler: SQLCompiler, **options: object) -> str:
    (column,) = element.clauses
    # `length` counts the characters of a text; `octet_length` exists since SQLite 3.43 only.
    return f"length(CAST({compiler.process(column, **options)} AS BLOB))"


def row_bytes(columns: Iterable[ColumnElement[Any]]) -> ColumnElement[int]:
    """An estimate of the bytes that these columns of a row take in a response: not less than they take."""
    lengths = [_max_bytes(column) for column in columns if isinstance(column.type, String | JSON | LargeBinary)]
    return reduce(add, lengths, literal(_FIXED_BYTES, BigInteger))


def _max_bytes(column: ColumnElement[Any]) -> ColumnElement[int]:
    length = func.coalesce(ByteLength(column), _ZERO)
    return length * _BYTES_PER_JSON_BYTE if isinstance(column.type, JSON) else length


def page_of(query: Select[Any], key: Column[int], size: ColumnElement[int], *, descending: bool = False) -> Select[Any]:
    """The first rows of a query in the order of `key`, which is unique; `is_last_page` says whether they are the last.

    The columns of the query are those of the key's table. At most `page_limit` rows, of which the `size` is at most
    `page_bytes` together; but at least one row, if there is any. Both are parameters.
    """
    order = key.desc() if descending else key
    limit = bindparam("page_limit", type_=Integer)
    first = query.with_only_columns(key.label("key"), size.label("size")).order_by(order).limit(limit + 1).subquery()
    order_of_first = first.c.key.desc() if descending else first.c.key
    total = func.sum(first.c.size).over(order_by=order_of_first, rows=(None, 0)).label("total")
    found = func.count().over().label("found")
    # Not a subquery: PostgreSQL would compute the sums again for each row of the page, where it expects few of them.
    sums = select(first.c.key, first.c.size, total, found).cte("sums").prefix_with("MATERIALIZED")
    fits = or_(sums.c.total <= bindparam("page_bytes", type_=BigInteger), sums.c.total == sums.c.size)
    # By the key alone: with the conditions of the query too, all its rows would be compared with all sums.
    page = select(*query.selected_columns, sums.c.found).join_from(sums, key.table, key == sums.c.key)
    return page.where(fits).order_by(order).limit(limit)


def page_parameters(limit: int, max_bytes: int) -> Mapping[str, int]:
    """The parameters of `page_of`."""
    return {"page_limit": limit, "page_bytes": max_bytes}


def is_last_page(rows: Sequence[Sequence[Any]]) -> bool:
    """Whether no row follows these rows of `page_of`."""
    return not rows or rows[0][-1] == len(rows)
