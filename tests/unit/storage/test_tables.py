"""Times on their way into the database and out of it."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.engine.default import DefaultDialect

from integration_server.storage.engine import UtcDateTime

DIALECT = DefaultDialect()


def test_stores_a_time_in_utc() -> None:
    in_tokyo = datetime(2026, 3, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    stored = UtcDateTime().process_bind_param(in_tokyo, DIALECT)
    assert stored == datetime(2026, 3, 1, tzinfo=UTC)
    assert stored.tzinfo is UTC


def test_refuses_a_time_without_a_zone() -> None:
    with pytest.raises(ValueError, match="without a zone"):
        UtcDateTime().process_bind_param(datetime(2026, 3, 1), DIALECT)  # noqa: DTZ001


def test_gives_back_a_time_in_utc_where_the_database_has_no_zones() -> None:
    given = UtcDateTime().process_result_value(datetime(2026, 3, 1), DIALECT)  # noqa: DTZ001
    assert given == datetime(2026, 3, 1, tzinfo=UTC)
