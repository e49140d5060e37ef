"""The tables. Every change to them comes with a migration; a test compares the two."""

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    func,
    literal_column,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone, to the microsecond. SQLite has no zones: there it is stored in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone: nobody could tell which one was meant."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The time in UTC."""
        return None if value is None else value.replace(tzinfo=UTC)


class AttemptState(StrEnum):
    """How far an attempt to connect has come."""

    STARTED = "started"
    CALLBACK_PENDING = "callback_pending"
    CONSUMED = "consumed"


class DataKeyState(StrEnum):
    """How far a data key's rotation has come. One at a time is arriving: what is sealed is being re-sealed with it."""

    ROTATING = "rotating"
    COMPLETE = "complete"


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

schema_compatibility = Table(
    "schema_compatibility",
    metadata,
    Column("oldest_compatible_revision", String(32), primary_key=True),
    Column("baseline_fingerprint", String(64), nullable=False),
)
"""One row, written by each migration: which code the schema supports (see `schema.py`)."""

_Id = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows in an INTEGER only, which has 64 bits

integrations = Table(
    "integrations",
    metadata,
    Column("integration_id", _Id, Identity(), primary_key=True),
    Column("uid", String(255), nullable=False, unique=True),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("auth_method", String(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("config", JSON, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("account_id", String(255)),
    Column("account_label", Text),
    Column("scopes", JSON, nullable=False),
    Column("missing_scopes", JSON, nullable=False),
    Column("lacks_required_scope", Boolean, nullable=False),
    Column("is_renewable", Boolean, nullable=False),
    Column("reauthorization_required", Boolean, nullable=False),
    Column("last_error_class", String(64)),
    Column("last_error_time", UtcDateTime),
    Column("last_error_message", Text),
    Column("error_count", Integer, nullable=False),
    Column("last_health_check", UtcDateTime),
    Column("access_token_expire_time", UtcDateTime),
    Column("refresh_token_expire_time", UtcDateTime),
    Column("connect_time", UtcDateTime),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("refresh_retry_time", UtcDateTime),
    Column("refresh_refusals", Integer, nullable=False, server_default="0"),
    Column("refresh_failures", Integer, nullable=False, server_default="0"),
    Column("refresh_due_time", UtcDateTime),
    Column("check_due_time", UtcDateTime),
    Column("last_webhook_number", BigInteger, nullable=False, server_default="0"),
    Column("encrypted_credentials", LargeBinary),
    Index("ix_integrations_user_id_integration_id", "user_id", "integration_id"),
    Index("ix_integrations_account_id_integration_type", "account_id", "integration_type"),
    sqlite_autoincrement=True,
)
"""Integrations. `domain/integration.py` says what the columns mean; an id is never given twice."""

_has_account = integrations.c.account_id.is_not(None)

Index(
    "uq_integrations_user_id_integration_type_account_id",
    integrations.c.user_id,
    integrations.c.integration_type,
    integrations.c.account_id,
    unique=True,
    postgresql_where=_has_account,
    sqlite_where=_has_account,
)

_is_pending = integrations.c.connect_time.is_(None)

Index(
    "ix_integrations_pending",
    integrations.c.integration_id,
    postgresql_where=_is_pending,
    sqlite_where=_is_pending,
)

is_usable = and_(integrations.c.is_active.is_(True), integrations.c.reauthorization_required.is_(False))
"""The integrations that background jobs work on: the condition of the partial indexes below."""

for _due_time in (integrations.c.refresh_due_time, integrations.c.check_due_time):
    Index(
        f"ix_integrations_integration_type_{_due_time.name}",
        integrations.c.integration_type,
        _due_time,
        postgresql_where=is_usable,
        sqlite_where=is_usable,
    )

authorization_attempts = Table(
    "authorization_attempts",
    metadata,
    Column("attempt_id", String(255), primary_key=True),
    Column(
        "integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("redirect_uri", Text, nullable=False),
    Column("return_url", Text),
    Column("scopes", JSON, nullable=False),
    Column("encrypted_verifier", LargeBinary, nullable=False),
    Column("encrypted_callback", LargeBinary),
    Column("is_reconnection", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("expire_time", UtcDateTime, nullable=False, index=True),
)
"""Attempts to connect, kept until they expire, so that a second callback finds them taken."""

refresh_leases = Table(
    "refresh_leases",
    metadata,
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("owner", String(255), nullable=False),
    Column("expire_time", UtcDateTime, nullable=False),
    Column("call_time", UtcDateTime),
    Column("called_by", String(255)),
)
"""Who refreshes what. Times are the database's; `call_time` is when the provider was first called for this version, and
`called_by` the owner who did. They stay until it is known what became of the call."""

health_checks = Table(
    "health_checks",
    metadata,
    Column("health_check_id", _Id, Identity(), primary_key=True),
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("healthy", Boolean, nullable=False),
    Column("check_time", UtcDateTime, nullable=False),
    Column("latency_microseconds", BigInteger, nullable=False),
    Column("error_class", String(64)),
    Column("message", Text, nullable=False),
    Index("ix_health_checks_integration_id_health_check_id", "integration_id", "health_check_id"),
    Index("ix_health_checks_check_time", "check_time"),
    sqlite_autoincrement=True,
)
"""The history of health checks."""

revocations = Table(
    "revocations",
    metadata,
    Column("revocation_id", _Id, Identity(), primary_key=True),
    Column("uid", String(255), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("account_id", String(255)),
    Column("encrypted_credentials", LargeBinary, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("due_time", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Index("ix_revocations_integration_type_due_time", "integration_type", "due_time"),
    sqlite_autoincrement=True,
)
"""The outbox of grants to revoke: credentials of removed integrations, encrypted as in their former row."""

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), primary_key=True),
    Column("uid", String(255), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("encrypted_secret", LargeBinary, nullable=False),
    Column("secret_set_time", UtcDateTime, nullable=False),
    Column("encrypted_previous_secret", LargeBinary),
    Column("previous_expire_time", UtcDateTime),
)
"""What integrations' own webhooks are signed with, where that was set, and was before. Sealed for the place of its
integration, whose uid, user and type stand beside it."""

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("webhook_event_id", _Id, Identity(), primary_key=True),
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("event_id", String(255), nullable=False),
    Column("uid", String(255), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("event_type", String(255), nullable=False),
    Column("receive_time", UtcDateTime, nullable=False, index=True),
    Column("encrypted_payload", LargeBinary, nullable=False),
    UniqueConstraint("integration_id", "number"),
    UniqueConstraint("integration_id", "event_id"),
    sqlite_autoincrement=True,
)
"""What webhooks have brought, numbered for each integration as `integrations.last_webhook_number` counts. `event_id` is
the provider's; `uid` is the row's own, made before it, which its payload is bound to."""

webhook_consumer_offsets = Table(
    "webhook_consumer_offsets",
    metadata,
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), primary_key=True),
    Column("consumer", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
)
"""How far each consumer has acknowledged an integration's webhook events."""

integration_changes = Table(
    "integration_changes",
    metadata,
    Column("change_id", _Id, Identity(), primary_key=True),
    Column("transaction_id", BigInteger, index=True),
    Column("integration_id", _Id, nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("status_before", String(16)),
    Column("status_after", String(16)),
    Column("webhook_number", BigInteger),
    Column("change_time", UtcDateTime, nullable=False, index=True),
    Index("ix_integration_changes_user_id_change_id", "user_id", "change_id"),
    sqlite_autoincrement=True,
)
"""The change log, written by triggers on `integrations` and `webhook_events`, on the database's clock. Rows outlive
their integration. `transaction_id` is the writing transaction on PostgreSQL, else NULL. `kind` is an `EventKind`, or
`internal` for a change that only caches need."""

audit_chains = Table(
    "audit_chains",
    metadata,
    Column("chain_id", String(32), primary_key=True),
    Column("number", BigInteger, nullable=False, unique=True),
    Column("encrypted_key", LargeBinary, nullable=False),
    Column("begin_time", UtcDateTime, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("checkpoint_mac", LargeBinary, nullable=False),
)
"""The chains of the audit log, one for each writing process, numbered without gaps. `audit.py` says what holds them."""

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("chain_id", String(32), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("caller", String(255), nullable=False),
    Column("action", String(32), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("integration_id", BigInteger, nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("purpose", String(255), nullable=False),
    Column("mac", LargeBinary, nullable=False),
    Column("details", String(512), nullable=False, server_default=""),
    Index("ix_audit_entries_user_id_time", "user_id", "time"),
    Index("ix_audit_entries_time", "time"),
)
"""Who did what to which integration. Kept when the integration is gone, so that nothing refers to it."""

data_keys = Table(
    "data_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("wrapping_key_id", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("active_time", UtcDateTime, nullable=False),
)
"""The keys that values are sealed with, themselves encrypted. All open; the newest seals, from its `active_time` on.
Times are the database's."""

_is_rotating = data_keys.c.state == DataKeyState.ROTATING.value

Index(
    "uq_data_keys_state_rotating",
    data_keys.c.state,
    unique=True,
    postgresql_where=_is_rotating,
    sqlite_where=_is_rotating,
)

key_checks = Table(
    "key_checks",
    metadata,
    Column("check_id", String(16), primary_key=True),
    Column("wrapped_check", LargeBinary, nullable=False),
    Column("wrapping_key_id", String(255), nullable=False),
)
"""One row, made with the first data key: it unwraps with the right key-encryption key only."""

singleton_jobs = Table(
    "singleton_jobs",
    metadata,
    Column("job_name", String(64), primary_key=True),
    Column("due_time", UtcDateTime, nullable=False),
)
"""Background jobs that have one row for the whole installation. The migration inserts the rows; see `due_work.py`."""


def data_key_id(ciphertext: ColumnElement[bytes]) -> ColumnElement[bytes]:
    """The id of the data key that a value is sealed with, out of its header; see `keyring.py`."""
    # Numbers written out: SQLite uses the index below only where the expression is the same to the letter.
    return func.substr(ciphertext, literal_column("2"), literal_column("8"), type_=LargeBinary)


Index(
    "ix_integrations_data_key_id",
    data_key_id(integrations.c.encrypted_credentials),
    integrations.c.integration_id,
)
