"""Tests of the conversion of times for the database."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.engine.default import DefaultDialect

from integration_server.storage.driver_queries import UtcDateTime

DIALECT = DefaultDialect()


def test_times_are_stored_in_utc() -> None:
    tokyo_time = datetime(2026, 3, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    stored = UtcDateTime().process_bind_param(tokyo_time, DIALECT)
    assert stored == datetime(2026, 3, 1, tzinfo=UTC)
    assert stored.tzinfo is UTC


def test_times_without_a_zone_are_rejected() -> None:
    with pytest.raises(ValueError, match="without a zone"):
        UtcDateTime().process_bind_param(datetime(2026, 3, 1), DIALECT)  # noqa: DTZ001


def test_times_are_returned_in_utc_if_the_database_has_no_zones() -> None:
    convert = UtcDateTime().result_processor(DIALECT, None)
    assert convert is not None
    assert convert("2026-03-01 00:00:00.000000") == datetime(2026, 3, 1, tzinfo=UTC)
