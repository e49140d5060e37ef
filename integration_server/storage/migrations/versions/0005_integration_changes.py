"""What changed lately, for those who remember it."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "integration_changes",
        sa.Column("change_id", _ID, sa.Identity(), nullable=False),
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("change_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("change_id", name="pk_integration_changes"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_integration_changes_change_time", "integration_changes", ["change_time"])


def downgrade() -> None:
    """Take back."""
    op.drop_table("integration_changes")
