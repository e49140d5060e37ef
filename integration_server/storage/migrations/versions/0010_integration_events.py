"""The database itself tells what happens to integrations, whoever does it."""

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)

_STATUS_COLUMNS = (
    "connect_time",
    "is_active",
    "reauthorization_required",
    "is_renewable",
    "access_token_expire_time",
    "last_error_class",
    "lacks_required_scope",
)
_UPDATED_COLUMNS = ("name", "config", "is_active", "account_id", "account_label", "scopes", "missing_scopes")
_JSON_COLUMNS = {"config", "scopes", "missing_scopes"}
_CREDENTIALS_COLUMN = "version"


class _Dialect:
    """What the two databases say differently."""

    def __init__(self, name: str) -> None:
        self.is_postgresql = name == "postgresql"
        self.now = "clock_timestamp()" if self.is_postgresql else "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
        # On SQLite writers come one after another, so that the events' own numbers are in the order of commits.
        self.transaction = "pg_current_xact_id()::text::bigint" if self.is_postgresql else "NULL"

    def differs(self, columns: Sequence[str]) -> str:
        return " OR ".join(map(self._differs, columns))

    def _differs(self, column: str) -> str:
        if not self.is_postgresql:
            return f"OLD.{column} IS NOT NEW.{column}"
        cast = "::text" if column in _JSON_COLUMNS else ""  # JSON has no equality there
        return f"OLD.{column}{cast} IS DISTINCT FROM NEW.{column}{cast}"

    def status(self, row: str) -> str:
        """`Integration.status`, in SQL; a test holds the two together."""
        has_run_out = f"NOT {row}.is_renewable AND {row}.access_token_expire_time <= {self.now}"
        return (
            f"CASE WHEN {row}.connect_time IS NULL THEN 'pending' "
            f"WHEN NOT {row}.is_active THEN 'inactive' "
            f"WHEN {row}.reauthorization_required OR ({has_run_out}) THEN 'expired' "
            f"WHEN {row}.last_error_class IS NOT NULL OR {row}.lacks_required_scope THEN 'error' "
            f"ELSE 'active' END"
        )

    def tell(self, kind: str, row: str, before: str, after: str, number: str = "NULL", condition: str = "") -> str:
        return (
            "INSERT INTO integration_events (transaction_id, integration_id, user_id, integration_type, kind, "
            "status_before, status_after, webhook_number, event_time) "
            f"SELECT {self.transaction}, {row}.integration_id, {row}.user_id, {row}.integration_type, '{kind}', "
            f"{before}, {after}, {number}, {self.now}" + (f" WHERE {condition}" if condition else "")
        )

    def triggers(self) -> Iterator[tuple[str, str, str, Sequence[str]]]:
        """Name, event with table, condition and statements of each."""
        old, new = self.status("OLD"), self.status("NEW")
        was_connected = "OLD.connect_time IS NOT NULL"
        matters = self.differs((*dict.fromkeys((*_STATUS_COLUMNS, *_UPDATED_COLUMNS)), _CREDENTIALS_COLUMN))
        yield "tell_creation", "INSERT ON integrations", "", [self.tell("created", "NEW", "NULL", new)]
        yield (
            "tell_update",
            "UPDATE ON integrations",
            f"WHEN ({matters})",
            [
                # What comes with being connected for the first time is told as that alone.
                self.tell(
                    "updated",
                    "NEW",
                    old,
                    new,
                    condition=f"{was_connected} AND ({self.differs(_UPDATED_COLUMNS)})",
                ),
                self.tell(
                    "credentials_refreshed",
                    "NEW",
                    old,
                    new,
                    condition=f"{was_connected} AND {self.differs([_CREDENTIALS_COLUMN])}",
                ),
                self.tell("status_changed", "NEW", old, new, condition=f"{old} <> {new}"),
            ],
        )
        yield "tell_removal", "DELETE ON integrations", "", [self.tell("disconnected", "OLD", old, "NULL")]
        yield (
            "tell_webhook",
            "INSERT ON webhook_events",
            "",
            [self.tell("webhook_received", "NEW", "NULL", "NULL", "NEW.number")],
        )


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "integration_events",
        sa.Column("event_number", _ID, sa.Identity(), nullable=False),
        sa.Column("transaction_id", sa.BigInteger()),
        sa.Column("integration_id", _ID, nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("integration_type", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("status_before", sa.String(16)),
        sa.Column("status_after", sa.String(16)),
        sa.Column("webhook_number", sa.BigInteger()),
        sa.Column("event_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("event_number", name="pk_integration_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_integration_events_transaction_id", "integration_events", ["transaction_id"])
    op.create_index("ix_integration_events_user_id_event_number", "integration_events", ["user_id", "event_number"])
    op.create_index("ix_integration_events_event_time", "integration_events", ["event_time"])
    dialect = _Dialect(op.get_context().dialect.name)
    for name, event, condition, statements in dialect.triggers():
        body = "; ".join(statements)
        if dialect.is_postgresql:
            op.execute(
                f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$"
            )
            end = f"EXECUTE FUNCTION {name}()"
        else:
            end = f"BEGIN {body}; END"
        op.execute(f"CREATE TRIGGER {name} AFTER {event} FOR EACH ROW {condition} {end}")


def downgrade() -> None:
    """Take back."""
    dialect = _Dialect(op.get_context().dialect.name)
    for name, event, _, _ in dialect.triggers():
        if dialect.is_postgresql:
            op.execute(f"DROP TRIGGER {name} {event[event.index('ON') :]}")
            op.execute(f"DROP FUNCTION {name}()")
        else:
            op.execute(f"DROP TRIGGER {name}")
    op.drop_table("integration_events")
