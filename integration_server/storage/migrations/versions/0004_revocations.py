"""Credentials to be revoked at their provider."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "revocations",
        sa.Column("revocation_id", _ID, sa.Identity(), nullable=False),
        sa.Column("uid", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("integration_type", sa.String(255), nullable=False),
        sa.Column("account_id", sa.String(255)),
        sa.Column("sealed_credentials", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("due_time", _TIME, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("revocation_id", name="pk_revocations"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_revocations_due_time", "revocations", ["due_time"])


def downgrade() -> None:
    """Take back."""
    op.drop_table("revocations")
