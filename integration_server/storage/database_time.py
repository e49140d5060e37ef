"""The database's own clock, for what several machines must agree on."""

from datetime import datetime, timedelta

from sqlalchemy import bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from integration_server.storage.tables import UtcDateTime


class DatabaseTime(FunctionElement[datetime]):
    """The database's time, `offset` from now: the moment itself, not when the transaction began."""

    name = "database_time"
    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, offset: timedelta = timedelta(0)) -> None:
        super().__init__(bindparam(None, offset.total_seconds(), unique=True))


@compiles(DatabaseTime, "postgresql")
def _postgresql(element: DatabaseTime, compiler: SQLCompiler, **options: object) -> str:
    (seconds,) = element.clauses
    # Not now(), which stands still for the length of a transaction.
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(seconds, **options)}))"


@compiles(DatabaseTime, "sqlite")
def _sqlite(element: DatabaseTime, compiler: SQLCompiler, **options: object) -> str:
    (seconds,) = element.clauses
    # As our times are written there, to the microsecond, so that they compare as text.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(seconds, **options)} || ' seconds')"
