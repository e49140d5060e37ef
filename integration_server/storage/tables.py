"""The tables. A change needs a migration; a test compares the two."""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
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

from integration_server.storage.driver_queries import UtcDateTime


class AttemptState(StrEnum):
    """The state of an authorization attempt."""

    STARTED = "started"
    CALLBACK_PENDING = "callback_pending"
    CONSUMED = "consumed"
    FINISHED = "finished"


class DataKeyState(StrEnum):
    """The state of a data key. At most one key is rotating: values are being re-encrypted with it.

    A removed key leaves its row, without the key, as a tombstone.
    """

    ROTATING = "rotating"
    COMPLETE = "complete"
    REMOVED = "removed"


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
    Column("oauth_client", String(64), nullable=False, server_default=""),
    Column("client_key", String(320), nullable=False),
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
    Column("settings_version", BigInteger, nullable=False, server_default="0"),
    Column("webhook_secret_id", String(128), nullable=False, server_default=""),
    Column("refresh_retry_time", UtcDateTime),
    Column("refresh_failures", Integer, nullable=False, server_default="0"),
    Column("refresh_due_time", UtcDateTime),
    Column("check_due_time", UtcDateTime),
    Column("last_webhook_number", BigInteger, nullable=False, server_default="0"),
    Column("token_fingerprint", String(64)),
    Column("encrypted_credentials", LargeBinary),
    Index("ix_integrations_user_id_integration_id", "user_id", "integration_id"),
    Index("ix_integrations_account_id", "account_id", "integration_id"),
    Index("ix_integrations_integration_type_account_id", "integration_type", "account_id"),
    sqlite_autoincrement=True,
)
"""Integrations. `domain/integration.py` describes the columns. Ids are never reused. Rows with the same
`token_fingerprint` have the same token (`OAuthTokens.fingerprint`). `client_key` is that of `domain/oauth_client.py`:
what is due, refused or paused is found for each client."""

is_usable = and_(integrations.c.is_active.is_(True), integrations.c.reauthorization_required.is_(False))
"""The integrations that background jobs work on."""


def _partial_index(name: str, where: ColumnElement[bool], *columns: Column[Any], unique: bool = False) -> None:
    Index(name, *columns, unique=unique, postgresql_where=where, sqlite_where=where)


_partial_index(
    "uq_integrations_user_id_client_key_account_id",
    integrations.c.account_id.is_not(None),
    *(integrations.c.user_id, integrations.c.client_key, integrations.c.account_id),
    unique=True,
)
_partial_index(
    "ix_integrations_token_fingerprint",
    integrations.c.token_fingerprint.is_not(None),
    integrations.c.token_fingerprint,
)
_partial_index("ix_integrations_pending", integrations.c.connect_time.is_(None), integrations.c.integration_id)
_partial_index(
    "ix_integrations_client_key_refresh_retry_time",
    integrations.c.refresh_failures > 0,
    *(integrations.c.client_key, integrations.c.refresh_retry_time),
)
for _due_time in (integrations.c.refresh_due_time, integrations.c.check_due_time):
    _name = f"ix_integrations_client_key_{_due_time.name}"
    _partial_index(_name, is_usable, integrations.c.client_key, _due_time, integrations.c.integration_id)
_partial_index(
    "ix_integrations_integration_type_oauth_client",
    integrations.c.oauth_client != literal_column("''"),
    *(integrations.c.integration_type, integrations.c.oauth_client),
)

oauth_clients = Table(
    "oauth_clients",
    metadata,
    Column("oauth_client_id", _Id, Identity(), primary_key=True),
    Column("uid", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("name", String(64), nullable=False),
    Column("client_id", String(255), nullable=False),
    Column("callers", JSON, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("encrypted_secrets", LargeBinary, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    UniqueConstraint("integration_type", "name"),
    Index("ix_oauth_clients_client_id", "client_id"),
    sqlite_autoincrement=True,
)
"""The OAuth clients besides the operator's own; see `docs/oauth-clients.md`. `encrypted_secrets` are all secrets of a
client, bound to the columns before them. `version` is the time of the last change in microseconds, on the database's
clock, and never becomes lower, also not when a client is deleted and added again."""

oauth_client_alarms = Table(
    "oauth_client_alarms",
    metadata,
    Column("integration_type", String(255), primary_key=True),
    Column("oauth_client", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("refuse_time", UtcDateTime, nullable=False),
)
"""The clients of which the provider has refused a secret, also the operator's own, until it accepts the newest one."""

authorization_attempts = Table(
    "authorization_attempts",
    metadata,
    Column("attempt_id", String(255), primary_key=True),
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="SET NULL"), index=True),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("encrypted_details", LargeBinary, nullable=False),
    Column("encrypted_callback", LargeBinary),
    Column("encrypted_outcome", LargeBinary),
    Column("state", String(16), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("expire_time", UtcDateTime, nullable=False, index=True),
    Column("poll_due_time", UtcDateTime),
    Column("poll_interval_seconds", Float),
    Column("poll_failures", Integer, nullable=False, server_default="0"),
    Index("ix_authorization_attempts_user_id_create_time", "user_id", "create_time"),
)
"""Authorization attempts. They stay until they expire, also without their integration, so that a second callback finds
the outcome of the first in `encrypted_outcome`. All that decides where a browser or a code is sent is in
`encrypted_details`. A started device authorization has a `poll_due_time`, when the provider is asked next for its
tokens, on the database's clock; `poll_failures` counts requests in a row without a response."""

is_polled = and_(
    authorization_attempts.c.poll_due_time.is_not(None), authorization_attempts.c.integration_id.is_not(None)
)
"""The attempts that are polled: started device authorizations."""

_partial_index(
    "ix_authorization_attempts_integration_type_poll_due_time",
    is_polled,
    authorization_attempts.c.integration_type,
    *(authorization_attempts.c.poll_due_time, authorization_attempts.c.attempt_id),
)

refresh_leases = Table(
    "refresh_leases",
    metadata,
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), primary_key=True),
    Column("client_key", String(320), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("owner", String(255), nullable=False),
    Column("expire_time", UtcDateTime, nullable=False),
    Column("call_time", UtcDateTime),
    Column("called_by", String(255)),
    Column("claim_time", UtcDateTime, nullable=False),
    Column("failure", String(64)),
    Column("refusal_time", UtcDateTime),
    Index("ix_refresh_leases_client_key_claim_time", "client_key", "claim_time"),
)
"""Leases of refreshes, on the database's clock. `call_time` is the first call to the provider for this version, and
`called_by` the owner that made it; it is empty once the owner knows that the response is lost. Both stay until the
outcome of the call is known. `claim_time` is the last claim, for any version; `failure` is the reason of the error with
which its refresh ended, if it did. `refusal_time` is the first `invalid_grant` for this version."""

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
    Column("oauth_client", String(64), nullable=False, server_default=""),
    Column("client_key", String(320), nullable=False),
    Column("account_id", String(255)),
    Column("bound_values", Text, nullable=False, server_default=""),
    Column("encrypted_credentials", LargeBinary, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("due_time", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("token_fingerprint", String(64), index=True),
    Column("call_due_time", UtcDateTime),
    Column("revoke_time", UtcDateTime),
    Index("ix_revocations_client_key_due_time", "client_key", "due_time", "revocation_id"),
    Index("ix_revocations_integration_type_account_id", "integration_type", "account_id"),
    sqlite_autoincrement=True,
)
"""The outbox of grants to revoke: credentials of removed integrations, encrypted as in their former row, whose values
that they are bound to are in `bound_values`. `call_due_time` is the `due_time` of the claim that has called the
provider: while they are equal and in the future, the call is in progress. From `revoke_time` on the grant is revoked;
the row stays for a while, without credentials."""

locks = Table("locks", metadata, Column("lock_name", String(64), primary_key=True))
"""Rows to lock in a transaction; the migration inserts them. `revocation`: see `revocations.py`."""

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), primary_key=True),
    Column("uid", String(255), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("webhook_secret_id", String(128), nullable=False),
    Column("encrypted_secret", LargeBinary, nullable=False),
    Column("secret_set_time", UtcDateTime, nullable=False),
    Column("encrypted_previous_secret", LargeBinary),
    Column("previous_expire_time", UtcDateTime),
)
"""Signing secrets of integrations' own webhooks, current and previous. The associated data is that of the integration,
whose uid, user, type and `webhook_secret_id` are copied here, and the times."""

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
"""Received webhook events. `number` counts per integration (`integrations.last_webhook_number`). `event_id` is the
provider's. `uid` is generated before the insert and is part of the payload's associated data."""

user_usage = Table(
    "user_usage",
    metadata,
    Column("user_id", String(255), primary_key=True),
    Column("webhook_bytes", BigInteger, nullable=False),
)
"""What counts against a user's quotas, and the lock under which they are counted; see `user_usage.py`. `webhook_bytes`
are the encrypted payloads of the user's webhook events; a trigger subtracts deleted ones."""

webhook_consumer_offsets = Table(
    "webhook_consumer_offsets",
    metadata,
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), primary_key=True),
    Column("consumer", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
)
"""The last webhook event of an integration that each consumer has acknowledged."""

unrouted_webhooks = Table(
    "unrouted_webhooks",
    metadata,
    Column("unrouted_webhook_id", _Id, Identity(), primary_key=True),
    Column("integration_type", String(255), nullable=False),
    Column("oauth_client", String(64), nullable=False, server_default=""),
    Column("client_key", String(320), nullable=False),
    Column("event_id", String(255), nullable=False),
    Column("uid", String(255), nullable=False),
    Column("event_type", String(255), nullable=False),
    Column("account_id", String(255)),
    Column("route", String(255)),
    Column("reason", String(32), nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("receive_time", UtcDateTime, nullable=False, index=True),
    Column("encrypted_payload", LargeBinary, nullable=False),
    UniqueConstraint("client_key", "event_id"),
    Index("ix_unrouted_webhooks_integration_type", "integration_type", "unrouted_webhook_id"),
    Index("ix_unrouted_webhooks_client_key", "client_key", "unrouted_webhook_id"),
    sqlite_autoincrement=True,
)
"""Verified webhook events that belong to no integration. `uid` is as in `webhook_events`."""

webhook_routes = Table(
    "webhook_routes",
    metadata,
    Column("webhook_route_id", _Id, Identity(), primary_key=True),
    Column("integration_id", _Id, ForeignKey(integrations.c.integration_id, ondelete="CASCADE"), nullable=False),
    Column("uid", String(255), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("integration_type", String(255), nullable=False),
    Column("route", String(255), nullable=False),
    Column("encrypted_copy", LargeBinary, nullable=False),
    Column("expire_time", UtcDateTime, index=True),
    UniqueConstraint("integration_id", "route"),
    Index("ix_webhook_routes_integration_type_route", "integration_type", "route"),
    sqlite_autoincrement=True,
)
"""Keys of integrations, such as subscriptions, by which events are routed that do not name the account. `uid`, user and
type are copies of the integration's; `encrypted_copy` is the route, encrypted and bound to them."""

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
"""The chains of the audit log, one per writing process, numbered without gaps; see `audit.py`."""

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("chain_id", String(32), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("caller", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("user_id", Text, nullable=False),
    Column("integration_id", BigInteger, nullable=False),
    Column("integration_type", Text, nullable=False),
    Column("integration_version", BigInteger, nullable=False),
    Column("call_count", BigInteger, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("salt", LargeBinary),
    Column("commitment", LargeBinary, nullable=False),
    Column("erasure_mac", LargeBinary),
    Column("mac", LargeBinary, nullable=False),
    Index("ix_audit_entries_user_id_time", "user_id", "time"),
    Index("ix_audit_entries_time", "time"),
)
"""The entries of the audit log. They outlive their integration, so there is no foreign key. `mac` covers `commitment`
in place of the personal fields `user_id`, `purpose` and `details`, so that these and `salt` can be erased."""

data_keys = Table(
    "data_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("wrapping_key_id", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("active_time", UtcDateTime, nullable=False),
    Column("remove_time", UtcDateTime),
)
"""The data keys, wrapped. All decrypt; the newest one encrypts from its `active_time` on, on the database's clock."""

_is_rotating = data_keys.c.state == DataKeyState.ROTATING.value
_partial_index("uq_data_keys_state_rotating", _is_rotating, data_keys.c.state, unique=True)

key_sets = Table(
    "key_sets",
    metadata,
    Column("key_set_id", String(16), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("wrapped_mac_key", LargeBinary, nullable=False),
    Column("wrapping_key_id", String(255), nullable=False),
    Column("mac", LargeBinary, nullable=False),
)
"""One row: the MAC over all rows of `data_keys`, and its wrapped key; see `key_set.py`. Changes count `version`."""

restores = Table(
    "restores",
    metadata,
    Column("restore_id", _Id, Identity(), primary_key=True),
    Column("uid", String(32), nullable=False),
    Column("restore_time", UtcDateTime, nullable=False),
)
"""A row for each time that this database was restored from a backup, with random `uid`; see `database_identity.py`."""

singleton_jobs = Table(
    "singleton_jobs",
    metadata,
    Column("job_name", String(64), primary_key=True),
    Column("due_time", UtcDateTime, nullable=False),
)
"""Background jobs that have one row for the whole installation. The migration inserts the rows; see `due_work.py`."""


due_work_claims = Table(
    "due_work_claims",
    metadata,
    Column("job_kind", String(32), primary_key=True),
    Column("row_id", String(255), primary_key=True),
    Column("due_time", UtcDateTime, nullable=False),
    Column("expire_time", UtcDateTime, nullable=False),
    Column("replaced_expire_time", UtcDateTime),
    Column("expired_claims", Integer, nullable=False, server_default="0"),
    # So that a table with few claims has many pages, and keeps them: PostgreSQL would plan to scan a small table for
    # each due row, and keep the plan while it grows.
    postgresql_with={"fillfactor": 10, "vacuum_truncate": "false"},
)
"""The claims of due work; see `due_work_claims.py`. `row_id` is the primary key in the table of the job, as text.
`replaced_expire_time` is the end of the claim of the same row that this one has replaced. `expired_claims` is the
number of claims of the same due time that have expired before it; one less once it was released."""


def data_key_id(ciphertext: ColumnElement[bytes]) -> ColumnElement[bytes]:
    """The id of the data key of an encrypted value, from its header; see `keyring.py`."""
    # Literals: SQLite uses the index below only if the expression is identical.
    return func.substr(ciphertext, literal_column("2"), literal_column("8"), type_=LargeBinary)


Index(
    "ix_integrations_data_key_id",
    data_key_id(integrations.c.encrypted_credentials),
    integrations.c.integration_id,
)
