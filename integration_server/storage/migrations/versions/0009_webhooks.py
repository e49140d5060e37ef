"""What webhooks bring, what they are signed with, and who has read how far."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def _of_integration(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["integration_id"],
        ["integrations.integration_id"],
        name=f"fk_{table}_integration_id",
        ondelete="CASCADE",
    )


def upgrade() -> None:
    """Apply."""
    op.add_column("integrations", sa.Column("last_webhook_number", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "webhook_secrets",
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("uid", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("integration_type", sa.String(255), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("set_time", _TIME, nullable=False),
        sa.Column("sealed_former_secret", sa.LargeBinary()),
        sa.Column("former_expire_time", _TIME),
        sa.PrimaryKeyConstraint("integration_id", name="pk_webhook_secrets"),
        _of_integration("webhook_secrets"),
    )
    op.create_table(
        "webhook_events",
        sa.Column("webhook_event_id", _ID, sa.Identity(), nullable=False),
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.String(255), nullable=False),
        sa.Column("uid", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("integration_type", sa.String(255), nullable=False),
        sa.Column("event_type", sa.String(255), nullable=False),
        sa.Column("receive_time", _TIME, nullable=False),
        sa.Column("sealed_payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("webhook_event_id", name="pk_webhook_events"),
        sa.UniqueConstraint("integration_id", "number", name="uq_webhook_events_integration_id_number"),
        sa.UniqueConstraint("integration_id", "event_id", name="uq_webhook_events_integration_id_event_id"),
        _of_integration("webhook_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_webhook_events_receive_time", "webhook_events", ["receive_time"])
    op.create_table(
        "webhook_places",
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("consumer", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("integration_id", "consumer", name="pk_webhook_places"),
        _of_integration("webhook_places"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("webhook_places")
    op.drop_table("webhook_events")
    op.drop_table("webhook_secrets")
    op.drop_column("integrations", "last_webhook_number")
