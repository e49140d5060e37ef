"""The SQL statements that code under test runs, with the beginning and end of each transaction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event


@contextmanager
def captured_statements() -> Iterator[list[str]]:
    """Collect the statements that any database of this process runs, without their parameters."""
    captured: list[str] = []

    def execute(_connection: Any, _cursor: Any, statement: str, *_arguments: Any) -> None:
        captured.append(statement)

    def begin(_connection: Connection) -> None:
        captured.append("begin")

    def commit(_connection: Connection) -> None:
        captured.append("commit")

    def rollback(_connection: Connection) -> None:
        captured.append("rollback")

    listeners: dict[str, Callable[..., None]] = {
        "before_cursor_execute": execute,
        "begin": begin,
        "commit": commit,
        "rollback": rollback,
    }
    for name, listener in listeners.items():
        event.listen(Engine, name, listener)
    try:
        yield captured
    finally:
        for name, listener in listeners.items():
            event.remove(Engine, name, listener)
