"""The database itself notes what changed of what is served, whoever changes it."""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What a backend that asks for credentials is answered from. Not here: what is noted of checks and failures in passing,
# which is written far more often than it matters to a backend.
_SERVED = (
    "uid",
    "user_id",
    "integration_type",
    "auth_method",
    "sealed_credentials",
    "is_active",
    "reauthorization_required",
    "connect_time",
    "version",
)

_POSTGRES_NOTE = """
CREATE FUNCTION note_integration_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO integration_changes (integration_id, change_time) VALUES (OLD.integration_id, clock_timestamp());
    RETURN NULL;
END
$$
"""

_SQLITE_NOTE = (
    "INSERT INTO integration_changes (integration_id, change_time) "
    "VALUES (OLD.integration_id, strftime('%Y-%m-%d %H:%M:%f000', 'now'))"
)


def upgrade() -> None:
    """Apply."""
    if op.get_context().dialect.name == "postgresql":
        differs = " OR ".join(f"OLD.{column} IS DISTINCT FROM NEW.{column}" for column in _SERVED)
        scopes = "OLD.scopes::text IS DISTINCT FROM NEW.scopes::text"  # JSON has no equality there
        end = "EXECUTE FUNCTION note_integration_change()"
        op.execute(_POSTGRES_NOTE)
    else:
        differs = " OR ".join(f"OLD.{column} IS NOT NEW.{column}" for column in _SERVED)
        scopes = "OLD.scopes IS NOT NEW.scopes"
        end = f"BEGIN {_SQLITE_NOTE}; END"
    op.execute(
        f"CREATE TRIGGER note_integration_update AFTER UPDATE ON integrations "
        f"FOR EACH ROW WHEN ({differs} OR {scopes}) {end}"
    )
    op.execute(f"CREATE TRIGGER note_integration_removal AFTER DELETE ON integrations FOR EACH ROW {end}")


def downgrade() -> None:
    """Take back."""
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER note_integration_update ON integrations")
        op.execute("DROP TRIGGER note_integration_removal ON integrations")
        op.execute("DROP FUNCTION note_integration_change()")
    else:
        op.execute("DROP TRIGGER note_integration_update")
        op.execute("DROP TRIGGER note_integration_removal")
