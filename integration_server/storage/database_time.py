"""The database's clock as an SQL expression, for times that several machines compare."""

from datetime import datetime, timedelta

from sqlalchemy import bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from integration_server.storage.engine import UtcDateTime


class DatabaseTime(FunctionElement[datetime]):
    """The current time of the database plus `offset`; not the start of the transaction."""

    name = "database_time"
    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, offset: timedelta = timedelta(0)) -> None:
        super().__init__(bindparam(None, offset.total_seconds(), unique=True))


@compiles(DatabaseTime, "postgresql")
def _postgresql(element: DatabaseTime, compiler: SQLCompiler, **options: object) -> str:
    (seconds,) = element.clauses
    # Not now(), which is constant within a transaction.
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(seconds, **options)}))"


@compiles(DatabaseTime, "sqlite")
def _sqlite(element: DatabaseTime, compiler: SQLCompiler, **options: object) -> str:
    (seconds,) = element.clauses
    # The text format of `UtcDateTime` in SQLite, so that times compare as text.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(seconds, **options)} || ' seconds')"
