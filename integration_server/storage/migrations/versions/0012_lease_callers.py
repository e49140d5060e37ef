"""Which holder of a lease was the first to call the provider."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply."""
    op.add_column("refresh_leases", sa.Column("called_by", sa.String(255)))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("refresh_leases") as table:
        table.drop_column("called_by")
