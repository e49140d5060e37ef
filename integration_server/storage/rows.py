"""Conversion of rows to the value types of the ports."""

from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import Row

T = TypeVar("T")


def from_row(value_type: type[T], row: Row[Any], **converted: object) -> T:
    """A value of a dataclass: fields that are not in `converted` come from the columns of the same name."""
    names = [field.name for field in fields(value_type) if field.name not in converted]  # type: ignore[arg-type]
    return value_type(**converted, **{name: getattr(row, name) for name in names})
