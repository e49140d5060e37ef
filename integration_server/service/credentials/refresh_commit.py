"""The commit of refreshed tokens: over the version that they replace, or to the journal while the database fails."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from integration_server.domain.associated_data import bound_values_of
from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationServerError,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, StoredIntegration
from integration_server.service.common_types import Clock
from integration_server.service.connections.revocation_ports import OrphanedGrant, RevocationOutbox
from integration_server.service.credentials.credential_cipher import (
    CredentialCipher,
    described_by,
)
from integration_server.service.credentials.ports import JournaledRefresh, RefreshJournal
from integration_server.service.integrations.ports import (
    IntegrationStore,
    NewCredentials,
)
from integration_server.service.provider_port import Provider

_MAX_ATTEMPTS = 5  # while a user changes settings during the commit


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """Decrypted credentials with their integration, both as they are after a possible refresh.

    `retry_after` is set where a forced refresh did not call the provider: the rest of the minimum interval.
    """

    integration: Integration
    credentials: Credentials = field(repr=False)
    retry_after: timedelta | None = None

    @property
    def tokens(self) -> OAuthTokens:
        """The credentials of an OAuth integration."""
        if not isinstance(self.credentials, OAuthTokens):
            raise TypeError("not OAuth tokens")
        return self.credentials


@dataclass(eq=False, repr=False)
class RefreshCommitter:
    """Reads current tokens and commits refreshed ones.

    The version is the fence: tokens are committed over the version that they replace, whoever holds the lease by then.
    Tokens of an integration that was disconnected meanwhile go into the outbox, to be revoked.
    """

    integrations: IntegrationStore
    journal: RefreshJournal
    revocations: RevocationOutbox
    cipher: CredentialCipher
    clock: Clock
    schedule: Schedule

    def __post_init__(self) -> None:
        self._log = structlog.get_logger(__name__)

    async def read(self, observed: Integration, *, may_have_ended: bool = False) -> RefreshResult:
        """The current tokens of an integration. Raises `IntegrationNotFound`, or the reason why it is not usable."""
        stored = await self.integrations.get(observed.integration_id, observed.user_id)
        return await self.decrypt(stored, may_have_ended=may_have_ended)

    async def decrypt(self, stored: StoredIntegration, *, may_have_ended: bool = False) -> RefreshResult:
        """The tokens of a usable integration, or of one whose grant may have ended."""
        if may_have_ended:
            stored.integration.require_active()
        else:
            stored.integration.require_usable()
        tokens = await self.cipher.decrypt(stored)
        if not isinstance(tokens, OAuthTokens):
            raise ReauthorizationRequired  # reconnected with an API key meanwhile: there is nothing to refresh
        return RefreshResult(stored.integration, tokens)

    async def commit(
        self, integration: Integration, tokens: OAuthTokens, provider: Provider
    ) -> tuple[RefreshResult, bool]:
        """Store refreshed tokens. Returns the current tokens, and whether the database has them.

        If another version was committed meanwhile, its tokens are current. Otherwise, whatever the error, the tokens
        are journaled: the provider issues them only once.
        """
        requested_scopes = (*integration.scopes, *integration.missing_scopes)
        after = _next_version(integration)
        new = await self.cipher.encrypt_new(after, tokens, provider, requested_scopes, self.schedule)
        try:
            committed, current = await self._commit(integration, new)
            if committed is not None:
                return RefreshResult(committed, tokens), True
            return await self._superseding(integration, new, current), True
        except Exception as error:
            if isinstance(error, IntegrationServerError) and not isinstance(error, StoreUnavailable):
                raise  # from the row that superseded the tokens
            await self.journal.append(JournaledRefresh(integration, new))
            self._log.warning("refresh_journaled", **integration.log_fields, kind=type(error).__qualname__)
            return RefreshResult(replace(integration, scopes=new.scopes), tokens), False

    async def is_journaled(self, integration: Integration) -> bool:
        """Whether this machine's journal has tokens that replace this version."""
        key = (integration.integration_id, integration.version)
        pending = await self.journal.pending()
        return any((refresh.integration.integration_id, refresh.integration.version) == key for refresh in pending)

    async def recover_journal(self) -> None:
        """Commit journaled tokens, also those from before a restart, and remove superseded ones.

        Raises `StoreUnavailable` at once. Any other error is raised in the end and delays no other entry.
        """
        errors = []
        for refresh in await self.journal.pending():
            try:
                await self._recover(refresh)
            except StoreUnavailable:
                raise
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("journaled refreshes cannot be stored", errors)

    async def _recover(self, refresh: JournaledRefresh) -> None:
        integration, new = refresh.integration, refresh.credentials
        stored = await self.integrations.find(integration.integration_id, integration.user_id)
        if stored is not None and stored.integration.uid != integration.uid:
            raise LookupError("journaled for an integration of another database")
        committed, current = await self._commit(integration, new)
        if committed is None and current is None:
            await self.revocations.add(_orphaned(integration, new))
        await self.journal.remove(refresh)
        self._log.warning(
            "journaled_refresh_recovered", integration_id=integration.integration_id, superseded=committed is None
        )

    async def _commit(
        self, integration: Integration, new: NewCredentials
    ) -> tuple[Integration | None, StoredIntegration | None]:
        """Commit over the version that was read. Returns the committed integration, else the present row, if any.

        If only settings have changed since, the tokens are bound to the present ones. Raises `CredentialsUnreadable` if
        the row was altered.
        """
        before = integration
        for _ in range(_MAX_ATTEMPTS):
            committed = await self.integrations.commit_refresh(before, new, self.clock())
            if committed is not None:
                return committed, None
            current = await self.integrations.find(integration.integration_id, integration.user_id)
            if current is None or current.integration.version != integration.version:
                return None, current
            new = await self.cipher.rebind(new, _next_version(before), current)
            before = current.integration
        raise StoreUnavailable

    async def _superseding(
        self, integration: Integration, new: NewCredentials, current: StoredIntegration | None
    ) -> RefreshResult:
        if current is None:
            await self.revocations.add(_orphaned(integration, new))
            raise IntegrationNotFound
        return await self.decrypt(current)


def _orphaned(integration: Integration, new: NewCredentials) -> OrphanedGrant:
    return OrphanedGrant(
        integration.uid,
        integration.user_id,
        integration.integration_type,
        integration.account_id,
        new.encrypted_credentials,
        bound_values_of(described_by(new, _next_version(integration))),
        new.token_fingerprint,
        integration.oauth_client,
    )


def _next_version(integration: Integration) -> Integration:
    return replace(integration, version=integration.version + 1)
