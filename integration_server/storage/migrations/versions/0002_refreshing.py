"""One refresh at a time: leases, and when to try again."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.add_column("integrations", sa.Column("refresh_retry_time", _TIME))
    op.add_column("integrations", sa.Column("refresh_refusals", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "refresh_leases",
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("expire_time", _TIME, nullable=False),
        sa.Column("call_time", _TIME),
        sa.PrimaryKeyConstraint("integration_id", name="pk_refresh_leases"),
        sa.ForeignKeyConstraint(
            ["integration_id"],
            ["integrations.integration_id"],
            name="fk_refresh_leases_integration_id",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("refresh_leases")
    op.drop_column("integrations", "refresh_refusals")
    op.drop_column("integrations", "refresh_retry_time")
