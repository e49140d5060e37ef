"""The first schema."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)
_HAS_ACCOUNT = sa.text("account_id IS NOT NULL")
_IS_PENDING = sa.text("connect_time IS NULL")
_IS_ACTIVE = sa.text("state = 'active'")


def upgrade() -> None:
    """Apply."""
    _create_integrations()
    _create_connection_attempts()
    _create_health_checks()
    _create_data_keys()


def _create_integrations() -> None:
    op.create_table(
        "integrations",
        sa.Column("integration_id", _ID, sa.Identity(), nullable=False),
        sa.Column("uid", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("integration_type", sa.String(255), nullable=False),
        sa.Column("auth_method", sa.String(32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("account_id", sa.String(255)),
        sa.Column("account_label", sa.Text()),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("missing_scopes", sa.JSON(), nullable=False),
        sa.Column("lacks_required_scope", sa.Boolean(), nullable=False),
        sa.Column("is_renewable", sa.Boolean(), nullable=False),
        sa.Column("reauthorization_required", sa.Boolean(), nullable=False),
        sa.Column("last_error_class", sa.String(64)),
        sa.Column("last_error_time", _TIME),
        sa.Column("last_error_message", sa.Text()),
        sa.Column("error_count", sa.Integer(), nullable=False),
        sa.Column("last_health_check", _TIME),
        sa.Column("access_token_expire_time", _TIME),
        sa.Column("refresh_token_expire_time", _TIME),
        sa.Column("connect_time", _TIME),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("update_time", _TIME, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("sealed_credentials", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("integration_id", name="pk_integrations"),
        sa.UniqueConstraint("uid", name="uq_integrations_uid"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_integrations_user_id_integration_id", "integrations", ["user_id", "integration_id"])
    op.create_index("ix_integrations_account_id_integration_type", "integrations", ["account_id", "integration_type"])
    op.create_index(
        "uq_integrations_user_id_integration_type_account_id",
        "integrations",
        ["user_id", "integration_type", "account_id"],
        unique=True,
        postgresql_where=_HAS_ACCOUNT,
        sqlite_where=_HAS_ACCOUNT,
    )
    op.create_index(
        "ix_integrations_pending",
        "integrations",
        ["integration_id"],
        postgresql_where=_IS_PENDING,
        sqlite_where=_IS_PENDING,
    )


def _create_connection_attempts() -> None:
    op.create_table(
        "connection_attempts",
        sa.Column("attempt_id", sa.String(255), nullable=False),
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("integration_type", sa.String(255), nullable=False),
        sa.Column("redirect_uri", sa.Text(), nullable=False),
        sa.Column("return_url", sa.Text()),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("sealed_verifier", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_callback", sa.LargeBinary()),
        sa.Column("is_reconnection", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("expire_time", _TIME, nullable=False),
        _integration_reference("fk_connection_attempts_integration_id"),
        sa.PrimaryKeyConstraint("attempt_id", name="pk_connection_attempts"),
    )
    op.create_index("ix_connection_attempts_expire_time", "connection_attempts", ["expire_time"])
    op.create_index("ix_connection_attempts_integration_id", "connection_attempts", ["integration_id"])


def _create_health_checks() -> None:
    op.create_table(
        "health_checks",
        sa.Column("health_check_id", _ID, sa.Identity(), nullable=False),
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("healthy", sa.Boolean(), nullable=False),
        sa.Column("check_time", _TIME, nullable=False),
        sa.Column("latency_microseconds", sa.BigInteger(), nullable=False),
        sa.Column("error_class", sa.String(64)),
        sa.Column("message", sa.Text(), nullable=False),
        _integration_reference("fk_health_checks_integration_id"),
        sa.PrimaryKeyConstraint("health_check_id", name="pk_health_checks"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_health_checks_integration_id_health_check_id", "health_checks", ["integration_id", "health_check_id"]
    )


def _create_data_keys() -> None:
    op.create_table(
        "data_keys",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("wrapping_key_id", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_data_keys"),
    )
    op.create_index(
        "uq_data_keys_state_active",
        "data_keys",
        ["state"],
        unique=True,
        postgresql_where=_IS_ACTIVE,
        sqlite_where=_IS_ACTIVE,
    )


def _integration_reference(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["integration_id"], ["integrations.integration_id"], name=name, ondelete="CASCADE")


def downgrade() -> None:
    """Undo."""
    for table in ("data_keys", "health_checks", "connection_attempts", "integrations"):
        op.drop_table(table)
