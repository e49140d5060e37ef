"""The database itself tells what happens to integrations, whoever does it."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from integration_server.storage.migrations.event_triggers import EventTriggers

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "integration_events",
        sa.Column("event_number", _ID, sa.Identity(), nullable=False),
        sa.Column("transaction_id", sa.BigInteger()),
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("integration_type", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("status_before", sa.String(16)),
        sa.Column("status_after", sa.String(16)),
        sa.Column("webhook_number", sa.BigInteger()),
        sa.Column("event_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("event_number", name="pk_integration_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_integration_events_transaction_id", "integration_events", ["transaction_id"])
    op.create_index("ix_integration_events_user_id_event_number", "integration_events", ["user_id", "event_number"])
    op.create_index("ix_integration_events_event_time", "integration_events", ["event_time"])
    _triggers().create()


def downgrade() -> None:
    """Take back."""
    _triggers().drop()
    op.drop_table("integration_events")


def _triggers() -> EventTriggers:
    return EventTriggers(op.get_context().dialect.name, time_counts=True)
