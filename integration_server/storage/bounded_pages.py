"""Pages of rows that are bounded in bytes by the query itself, so that no more is read than fits."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any

from sqlalchemy import JSON, BigInteger, ColumnElement, LargeBinary, Row, Select, String, func, literal, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from integration_server.storage.engine import Database

_BYTES_PER_JSON_BYTE = 6  # a number takes up to six times as many bytes in a protobuf Struct as in JSON
_FIXED_BYTES = 512  # of a row's numbers, times and flags


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
    lengths = [
        func.coalesce(ByteLength(column), 0) * (_BYTES_PER_JSON_BYTE if isinstance(column.type, JSON) else 1)
        for column in columns
        if isinstance(column.type, String | JSON | LargeBinary)
    ]
    return reduce(add, lengths, literal(_FIXED_BYTES, BigInteger))


async def fetch_page(
    database: Database,
    query: Select[Any],
    key: ColumnElement[int],
    size: ColumnElement[int],
    limit: int,
    max_bytes: int,
    *,
    descending: bool = False,
) -> tuple[Sequence[Row[Any]], bool]:
    """The first rows of a query in the order of `key`, which is unique, and whether they are the last ones.

    At most `limit` rows, of which the `size` is at most `max_bytes` together; but at least one row, if there is any.
    """
    order = key.desc() if descending else key
    first = query.with_only_columns(key.label("key"), size.label("size")).order_by(order).limit(limit + 1).subquery()
    order_of_first = first.c.key.desc() if descending else first.c.key
    sums = select(
        first.c.key,
        first.c.size,
        func.sum(first.c.size).over(order_by=order_of_first, rows=(None, 0)).label("total"),
        func.count().over().label("found"),
    ).subquery()
    page = (
        query.add_columns(sums.c.found)
        .join(sums, key == sums.c.key)
        .where(or_(sums.c.total <= max_bytes, sums.c.total == sums.c.size))
        .order_by(order)
        .limit(limit)
    )
    rows = await database.fetch(page)
    return rows, not rows or rows[0].found == len(rows)
