"""Rows of values as a table of a statement, so that one statement changes many rows, whatever their number.

The text of the statement is the same for any number of rows, so that it is compiled and prepared once. PostgreSQL gets
an array for each column, SQLite one JSON document.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, Column, Dialect, FromClause, Text, bindparam, func, select, type_coerce


class ValueRows:
    """Rows of the columns `columns` for statements of a dialect: `subquery` has them, under the name `name`.

    The statement is run with `parameters`. SQLite cannot take bytes this way.
    """

    def __init__(self, name: str, columns: Sequence[Column[Any]], dialect: str) -> None:
        self._name = name
        self._columns = columns
        self.subquery: FromClause = self._of_json() if dialect == "sqlite" else self._of_arrays()

    def parameters(self, rows: Iterable[Sequence[Any]], dialect: Dialect) -> Mapping[str, Any]:
        """The parameters for these rows, each with the values of the columns in their order."""
        if dialect.name != "sqlite":
            values = list(zip(*rows, strict=True)) or [()] * len(self._columns)
            return {
                self._key(column): list(column_values)
                for column, column_values in zip(self._columns, values, strict=True)
            }
        processors = [column.type.dialect_impl(dialect).bind_processor(dialect) for column in self._columns]
        converted = [
            [value if convert is None else convert(value) for value, convert in zip(row, processors, strict=True)]
            for row in rows
        ]
        return {self._name: json.dumps(converted)}

    def _key(self, column: Column[Any]) -> str:
        return f"{self._name}_{column.name}"

    def _of_arrays(self) -> FromClause:
        arrays = (bindparam(self._key(column), type_=ARRAY(column.type)) for column in self._columns)
        names = (Column(column.name, column.type) for column in self._columns)
        return func.unnest(*arrays).table_valued(*names, name=self._name).render_derived()

    def _of_json(self) -> FromClause:
        value = (
            func.json_each(bindparam(self._name, type_=Text)).table_valued("value", name=f"{self._name}_json").c.value
        )
        return select(
            *(
                type_coerce(func.json_extract(value, f"$[{number}]"), column.type).label(column.name)
                for number, column in enumerate(self._columns)
            )
        ).subquery(self._name)
