"""Opens the database with its keyring, and builds the stores over it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from integration_server.domain.integration import IntegrationId
from integration_server.observability.spans import AddSpan
from integration_server.service.audit.audit_heads import Head
from integration_server.service.background.ports import DueWork
from integration_server.service.common_types import Record, record_nothing
from integration_server.service.connections.ports import AuthorizationAttemptStore, ConnectionStore
from integration_server.service.connections.revocation_ports import RevocationOutbox
from integration_server.service.credentials.ports import RefreshJournal, RefreshLeases
from integration_server.service.events.ports import ChangeFeed
from integration_server.service.health.ports import HealthHistory
from integration_server.service.integrations.ports import IntegrationLists, IntegrationStore
from integration_server.service.oauth_clients.ports import OAuthClientStore
from integration_server.service.operators.ports import AuditEntries, DueRows, IntegrationSearchStore
from integration_server.service.webhooks.ports import UnroutedWebhooks, WebhookEndpoints, WebhookInbox, WebhookRoutes
from integration_server.settings import Settings
from integration_server.storage.audit import SqlAuditLog
from integration_server.storage.audit_reading import SqlAuditEntries
from integration_server.storage.change_feed import SqlChangeFeed
from integration_server.storage.connections import SqlAuthorizationAttempts, SqlConnections
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.due_work_list import SqlDueRows
from integration_server.storage.engine import Database, open_database
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integration_lists import SqlIntegrationLists
from integration_server.storage.integration_search import SqlIntegrationSearch
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.key_encryption import KeyEncryptionKeys
from integration_server.storage.keyring import Keyring, open_keyring
from integration_server.storage.oauth_clients import SqlOAuthClients
from integration_server.storage.refresh_journal import FileRefreshJournal
from integration_server.storage.refresh_leases import SqlRefreshLeases
from integration_server.storage.revocations import SqlRevocationOutbox
from integration_server.storage.webhook_endpoints import SqlWebhookEndpoints
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from integration_server.storage.webhook_routing import SqlUnroutedWebhooks, SqlWebhookRoutes, UnroutedLimits
from integration_server.wiring.keys import open_key_encryptions


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores that the use cases read and write."""

    integrations: IntegrationStore
    integration_lists: IntegrationLists
    connections: ConnectionStore
    history: HealthHistory
    due_work: DueWork
    attempts: AuthorizationAttemptStore
    leases: RefreshLeases
    revocations: RevocationOutbox
    journal: RefreshJournal
    endpoints: WebhookEndpoints
    inbox: WebhookInbox
    webhook_routes: WebhookRoutes
    unrouted_webhooks: UnroutedWebhooks
    change_feed: ChangeFeed
    oauth_clients: OAuthClientStore
    integration_search: IntegrationSearchStore
    due_rows: DueRows
    audit_entries: AuditEntries


BuildStores = Callable[[Settings, Database, Callable[[IntegrationId], None]], Stores]
"""Builds the stores over a database. They report each integration that they change to the callback."""


@dataclass(frozen=True, slots=True)
class Storage:
    """An open database, the keyring that encrypts and decrypts its values, and its audit log."""

    database: Database
    keys: KeyEncryptionKeys
    keyring: Keyring
    audit_log: SqlAuditLog

    def heads(self) -> Sequence[Head]:
        """The heads of what this process has written, and of the key set, to be recorded outside the database."""
        return [*self.audit_log.heads(), self.keyring.head]


@asynccontextmanager
async def open_storage(
    settings: Settings, record_wait: Record = record_nothing, add_span: AddSpan | None = None
) -> AsyncIterator[Storage]:
    """Open the database and its keyring. `record_wait` gets the seconds of each wait for a connection, and `add_span`
    adds a span for each statement.

    Raises `KeyringError` or `StoreUnavailable`.
    """
    keys = await open_key_encryptions(settings)
    pool_size = settings.database_pool_size
    async with open_database(
        settings.database_url, pool_size=pool_size, record_wait=record_wait, add_span=add_span
    ) as database:
        keyring = await open_keyring(database, keys)
        yield Storage(database, keys, keyring, SqlAuditLog(database, keyring))


def sql_stores(settings: Settings, database: Database, on_change: Callable[[IntegrationId], None]) -> Stores:
    """The stores in SQL, and the refresh journal on disk, which is used while the database is unavailable."""
    return Stores(
        SqlIntegrations(database, on_change),
        SqlIntegrationLists(database),
        SqlConnections(database, on_change, settings.user_quotas),
        SqlHealthHistory(database),
        SqlDueWork(database),
        SqlAuthorizationAttempts(database, settings.user_quotas),
        SqlRefreshLeases(database, settings.refresh_lease, settings.forced_refresh_min_interval),
        SqlRevocationOutbox(database),
        FileRefreshJournal(settings.refresh_journal_dir),
        SqlWebhookEndpoints(database, on_change),
        SqlWebhookInbox(database, settings.user_quotas),
        SqlWebhookRoutes(database),
        SqlUnroutedWebhooks(database, UnroutedLimits(max_bytes=settings.unrouted_webhook_max_bytes)),
        SqlChangeFeed(database),
        SqlOAuthClients(database),
        SqlIntegrationSearch(database),
        SqlDueRows(database),
        SqlAuditEntries(database),
    )


@dataclass(frozen=True, slots=True)
class NotReady:
    """Why a server is not ready: the class and the first line of an error."""

    kind: str
    message: str


async def why_not_ready(integrations: IntegrationStore, keyring: Keyring) -> NotReady | None:
    """Why the database does not respond or this process cannot unwrap every data key in it; None if all is well."""
    try:
        await integrations.ping()
        await keyring.reload()
    except Exception as error:  # any failure means not ready
        first_line = str(error).partition("\n")[0]
        return NotReady(type(error).__name__, first_line)
    return None


class ReadinessLog:
    """Logs each change of the server's readiness: `ready`, or `not_ready` with its cause.

    Another kind of cause is a change too; another text of the same kind is none, because texts may have times in them.
    """

    def __init__(self) -> None:
        self._last: str | None = ""  # no kind of cause
        self._log = structlog.get_logger(__name__)

    def note(self, cause: NotReady | None) -> bool:
        """Whether the server is ready: `cause` is None."""
        kind = None if cause is None else cause.kind
        if kind != self._last:
            self._last = kind
            if cause is None:
                self._log.info("ready")
            else:
                self._log.warning("not_ready", kind=cause.kind, message=cause.message)
        return cause is None
