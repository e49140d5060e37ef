"""Deletion of rows that are older than their retention time."""

from datetime import datetime

from sqlalchemy import Column, ColumnElement, delete, select, tuple_

from integration_server.storage.engine import Database

BATCH_SIZE = 1000  # rows; short transactions block no other


async def prune(database: Database, time: Column[datetime], before: ColumnElement[datetime] | datetime) -> int:
    """Delete a batch of the rows whose `time` is before `before`. Returns how many."""
    row_id = time.table.primary_key
    old = select(*row_id).where(time < before).order_by(time).limit(BATCH_SIZE)
    # Rows that another server prunes at the same time are skipped.
    old = old.with_for_update(skip_locked=True)
    return await database.write(delete(time.table).where(tuple_(*row_id).in_(old)))
