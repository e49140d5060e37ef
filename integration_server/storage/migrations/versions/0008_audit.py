"""The audit log."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "audit_chains",
        sa.Column("chain_id", sa.String(32), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.Column("begin_time", _TIME, nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
        sa.Column("seal", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain_id", name="pk_audit_chains"),
        sa.UniqueConstraint("number", name="uq_audit_chains_number"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("chain_id", sa.String(32), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("caller", sa.String(255), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("integration_id", sa.BigInteger(), nullable=False),
        sa.Column("integration_type", sa.String(255), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(255), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain_id", "sequence", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_user_id_time", "audit_entries", ["user_id", "time"])
    op.create_index("ix_audit_entries_time", "audit_entries", ["time"])


def downgrade() -> None:
    """Take back."""
    op.drop_table("audit_entries")
    op.drop_table("audit_chains")
