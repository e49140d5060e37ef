"""The end of a token that cannot be renewed is due work, and told when it is noted; before, only time made it."""

from collections.abc import Sequence

from alembic import op

from integration_server.storage.migrations.event_triggers import EventTriggers

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply."""
    _triggers(time_counts=True).drop()
    _triggers(time_counts=False).create()
    op.execute("UPDATE integrations SET refresh_due_time = access_token_expire_time WHERE is_renewable IS false")


def downgrade() -> None:
    """Take back."""
    op.execute("UPDATE integrations SET refresh_due_time = NULL WHERE is_renewable IS false")
    _triggers(time_counts=False).drop()
    _triggers(time_counts=True).create()


def _triggers(*, time_counts: bool) -> EventTriggers:
    return EventTriggers(op.get_context().dialect.name, time_counts=time_counts)
