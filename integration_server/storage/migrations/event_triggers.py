"""The triggers that tell what happens to integrations. Migrations make them, and make them anew where they change."""

from collections.abc import Iterator, Sequence

from alembic import op

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


class EventTriggers:
    """The triggers, as the database of this name takes them.

    `time_counts`: whether a token that has run out makes the status "expired" before that is noted.
    """

    def __init__(self, name: str, *, time_counts: bool) -> None:
        self.time_counts = time_counts
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
        has_run_out = f" OR (NOT {row}.is_renewable AND {row}.access_token_expire_time <= {self.now})"
        return (
            f"CASE WHEN {row}.connect_time IS NULL THEN 'pending' "
            f"WHEN NOT {row}.is_active THEN 'inactive' "
            f"WHEN {row}.reauthorization_required{has_run_out if self.time_counts else ''} THEN 'expired' "
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

    def create(self) -> None:
        """Make them."""
        for name, event, condition, statements in self.triggers():
            body = "; ".join(statements)
            if self.is_postgresql:
                op.execute(
                    f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$"
                )
                end = f"EXECUTE FUNCTION {name}()"
            else:
                end = f"BEGIN {body}; END"
            op.execute(f"CREATE TRIGGER {name} AFTER {event} FOR EACH ROW {condition} {end}")

    def drop(self) -> None:
        """Take them away."""
        for name, event, _, _ in self.triggers():
            if self.is_postgresql:
                op.execute(f"DROP TRIGGER {name} {event[event.index('ON') :]}")
                op.execute(f"DROP FUNCTION {name}()")
            else:
                op.execute(f"DROP TRIGGER {name}")
