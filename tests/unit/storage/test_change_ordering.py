"""Tests of the cursors that the two orderings derive from their engines' snapshots and ids."""

from datetime import timedelta

from integration_server.service.events.ports import ChangeCursor
from integration_server.storage.change_ordering import SequenceOrdering, SnapshotOrdering, sqlite_ordering
from tests.fakes.clock import NOON

LIMIT = timedelta(seconds=10)


def test_a_snapshot_lists_the_transactions_in_progress() -> None:
    cursor = SnapshotOrdering().advance(None, "10:20:10,14,15", (), NOON)
    assert (cursor.end, set(cursor.missing), cursor.horizon) == (20, {10, 14, 15}, 10)
    assert SnapshotOrdering().advance(cursor, "20:20:", (), NOON).horizon == 20


class TestSequenceOrdering:
    ordering = SequenceOrdering("SELECT 1", LIMIT)

    def test_skipped_ids_hold_the_horizon_until_they_are_read(self) -> None:
        cursor = self.ordering.advance(ChangeCursor(10), "14", {10, 12, 14}, NOON)
        assert (cursor.end, set(cursor.missing), cursor.horizon) == (15, {11, 13}, 11)
        cursor = self.ordering.advance(cursor, "14", {11}, NOON)
        assert (set(cursor.missing), cursor.horizon) == ({13}, 13)

    def test_skipped_ids_are_dropped_after_the_transaction_limit(self) -> None:
        cursor = self.ordering.advance(ChangeCursor(10), "11", {11}, NOON)
        cursor = self.ordering.advance(cursor, "13", {13}, NOON + LIMIT / 2)
        assert set(cursor.missing) == {10, 12}
        cursor = self.ordering.advance(cursor, "13", (), NOON + LIMIT)
        assert (set(cursor.missing), cursor.horizon) == ({12}, 12)

    def test_a_first_poll_treats_the_last_ids_as_skipped(self) -> None:
        assert set(self.ordering.advance(None, "3", (), NOON).missing) == {1, 2, 3}
        assert len(self.ordering.advance(None, "3000", (), NOON).missing) == 100

    def test_sqlite_skips_no_ids(self) -> None:
        cursor = sqlite_ordering().advance(ChangeCursor(10), "14", {10, 14}, NOON)
        assert (cursor.end, cursor.missing) == (15, {})
