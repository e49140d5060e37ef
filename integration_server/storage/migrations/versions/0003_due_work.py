"""What the server does by itself, and when: refreshing ahead of need, and checking."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_TIME = sa.DateTime(timezone=True)
_IS_ON = {
    "postgresql": sa.text("is_active IS true AND reauthorization_required IS false"),
    "sqlite": sa.text("is_active IS 1 AND reauthorization_required IS 0"),
}


def upgrade() -> None:
    """Apply. What is connected is checked soon, and refreshed by its end at the latest."""
    for due_time in ("refresh_due_time", "check_due_time"):
        op.add_column("integrations", sa.Column(due_time, _TIME))
        op.create_index(
            f"ix_integrations_{due_time}",
            "integrations",
            [due_time, "integration_type"],
            postgresql_where=_IS_ON["postgresql"],
            sqlite_where=_IS_ON["sqlite"],
        )
    op.create_index("ix_health_checks_check_time", "health_checks", ["check_time"])
    op.execute("UPDATE integrations SET check_due_time = connect_time")
    op.execute("UPDATE integrations SET refresh_due_time = access_token_expire_time WHERE is_renewable IS true")


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_health_checks_check_time", "health_checks")
    for due_time in ("check_due_time", "refresh_due_time"):
        op.drop_index(f"ix_integrations_{due_time}", "integrations")
        op.drop_column("integrations", due_time)
