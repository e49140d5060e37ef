"""Data keys that are announced before they are used, a key check, and what re-sealing needs."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply. The key that sealed goes on sealing; where there are others, it still has to replace them."""
    op.drop_index("uq_data_keys_state_active", "data_keys")
    op.add_column("data_keys", sa.Column("active_time", _TIME))
    op.execute("UPDATE data_keys SET active_time = create_time")
    op.execute(
        "UPDATE data_keys SET active_time = (SELECT max(create_time) FROM data_keys), state = 'arriving'"
        " WHERE state = 'active'"
    )
    op.execute("UPDATE data_keys SET state = 'settled' WHERE state = 'retired'")
    op.execute("UPDATE data_keys SET state = 'settled' WHERE (SELECT count(*) FROM data_keys) = 1")
    with op.batch_alter_table("data_keys", copy_from=_data_keys(16)) as data_keys:
        data_keys.alter_column("active_time", existing_type=_TIME, nullable=False)
        data_keys.alter_column("wrapping_key_id", existing_type=sa.String(16), type_=sa.String(255))
    _one_at_a_time("arriving")
    op.create_table(
        "key_checks",
        sa.Column("check_id", sa.String(16), nullable=False),
        sa.Column("wrapped_check", sa.LargeBinary(), nullable=False),
        sa.Column("wrapping_key_id", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("check_id", name="pk_key_checks"),
    )
    op.create_table(
        "work_claims",
        sa.Column("work", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("expire_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("work", name="pk_work_claims"),
    )
    op.create_index(
        "ix_integrations_data_key_id",
        "integrations",
        [sa.text("substr(sealed_credentials, 2, 8)"), "integration_id"],
    )


def downgrade() -> None:
    """Take back. The newest key seals, also where it was only announced; names of keys in a KMS keep their room."""
    op.drop_index("ix_integrations_data_key_id", "integrations")
    op.drop_table("work_claims")
    op.drop_table("key_checks")
    op.drop_index("uq_data_keys_state_arriving", "data_keys")
    op.execute("UPDATE data_keys SET state = 'retired'")
    op.execute(
        "UPDATE data_keys SET state = 'active' WHERE key_id ="
        " (SELECT key_id FROM data_keys ORDER BY active_time DESC, key_id DESC LIMIT 1)"
    )
    with op.batch_alter_table("data_keys", copy_from=_data_keys(255)) as data_keys:
        data_keys.drop_column("active_time")
    _one_at_a_time("active")


def _data_keys(wrapping_key_id_length: int) -> sa.Table:
    """The table as it stands, for SQLite, which changes a column by copying the table."""
    return sa.Table(
        "data_keys",
        sa.MetaData(),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("wrapping_key_id", sa.String(wrapping_key_id_length), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("active_time", _TIME),
        sa.PrimaryKeyConstraint("key_id", name="pk_data_keys"),
    )


def _one_at_a_time(state: str) -> None:
    where = sa.text(f"state = '{state}'")
    op.create_index(
        f"uq_data_keys_state_{state}",
        "data_keys",
        ["state"],
        unique=True,
        postgresql_where=where,
        sqlite_where=where,
    )
