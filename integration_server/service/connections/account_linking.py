"""What all connections share: choosing the row of an account, committing credentials, and ending an attempt.

Tokens, of a code or of a device authorization, are committed once their account is verified; else they are revoked.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import structlog

from integration_server.domain.audit import Action, AuditEntry, background_entry
from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import (
    AccountMismatch,
    ErrorRecord,
    IntegrationServerError,
    InvalidField,
    ProviderRejected,
    ProviderUnavailable,
    StateUsed,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.redirect_allowlist import RedirectAllowlist
from integration_server.service.common_types import Clock
from integration_server.service.connections.ports import (
    AttemptDetails,
    AuthorizationAttempt,
    AuthorizationAttemptStore,
    CallbackOutcome,
    ConnectionStore,
    EndedAttempt,
    PendingCallback,
    StateClaims,
)
from integration_server.service.connections.revocation import RevocationService
from integration_server.service.connections.revocation_ports import GrantProof, RevocationInProgress
from integration_server.service.credentials.credential_cipher import AttemptCipher, CredentialCipher
from integration_server.service.integrations.ports import IntegrationStore, NewAccount, NewIntegration
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory
from integration_server.service.provider_port import OAuthProvider, Provider

_MAX_ATTEMPTS = 5  # retries while concurrent connections of the same account commit first

# Seconds between attempts to commit while a revocation may end the new grant, the first for one that has ended. In all
# they last longer than a provider may take to respond to one (10 s), and leave time for the other calls within the
# sidecar's deadline (25 s): otherwise the browser would see a failure of a connection that then succeeds.
_REVOCATION_PAUSES = (0, 0.5, 1, 2, 4, 8)

_UNKNOWN_ACCOUNT = NewAccount(account_id=None, account_label=None)


@dataclass(frozen=True, slots=True)
class AccountRequest:
    """The account to connect, or the integration to reconnect if `integration_id` is not 0."""

    user_id: UserId
    integration_type: str
    _: KW_ONLY
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    integration_id: IntegrationId = IntegrationId(0)

    def new_integration(self, provider: Provider, uid: str) -> NewIntegration:
        """The integration to store for a new account. It has no id yet."""
        return NewIntegration(
            uid,
            self.user_id,
            provider.integration_type,
            provider.auth_method,
            self.name,
            self.config,
            oauth_client=provider.oauth_client.name,
        )


@dataclass(eq=False, repr=False)
class AccountLinker:
    """Commits credentials to the row of their account. An account that is connected again updates its row."""

    integrations: IntegrationStore
    connections: ConnectionStore
    providers: OAuthClientDirectory
    cipher: CredentialCipher
    clock: Clock
    schedule: Schedule
    record_audit: Callable[[AuditEntry], object]
    add_webhook_routes: Callable[[Integration, Collection[str]], Awaitable[None]] | None = None
    waits_for_revocations: bool = True
    """Off for negative controls: then an account is connected while a revocation ends its grants."""

    async def existing(self, request: AccountRequest, provider: Provider) -> tuple[Integration, bool]:
        """The integration to reconnect, and whether its row is as the server has stored it; else it has no content.

        Raises `IntegrationNotFound` or `InvalidField`.
        """
        stored = await self.integrations.get(request.integration_id, request.user_id)
        if stored.integration.integration_type != provider.integration_type:
            raise InvalidField("integration_type", "is not the type of the integration")
        integration = await self.cipher.redacted(stored)
        return integration, integration is stored.integration

    async def commit(
        self,
        requested: Integration | NewIntegration,
        account: NewAccount,
        credentials: Credentials,
        requested_scopes: Sequence[str] = (),
        proof_time: datetime | None = None,
    ) -> Integration:
        """Store credentials in the requested integration, or in the row that has its account already.

        `proof_time`: when the grant was valid for certain, if a revocation may end it.

        `requested` is a pending or connected row, or one that is not stored yet. Raises `AccountMismatch` if a
        connected row has another account, or `RevocationInProgress`.
        """
        provider = await self.providers.for_client(requested.integration_type, requested.oauth_client)
        proof = await self._proof(provider, proof_time)
        for _ in range(_MAX_ATTEMPTS):
            target, now = await self._find_target(requested, account), self.clock()
            if isinstance(target, NewIntegration):
                target = replace(target, integration_id=await self.connections.reserve_id())
                stored = target.as_stored(now)
            else:
                # The grant belongs to the client that the attempt was begun with, whatever an altered row says.
                target = replace(target, oauth_client=requested.oauth_client)
                stored = replace(target, version=target.version + 1)
            after = stored.connected_to(account.account_id, account.account_label, now)
            check = self.schedule.next_check_time(now)
            new = await self.cipher.encrypt_new(after, credentials, provider, requested_scopes, self.schedule)
            if isinstance(target, NewIntegration):
                committed = await self.connections.add_connected(
                    target, account, new, now, check_due_time=check, proof=proof
                )
            else:
                # A pending row is not needed if its account has another row.
                requested_id = requested.integration_id if isinstance(requested, Integration) else None
                superseded_id = requested_id if requested_id != target.integration_id else None
                committed = await self.connections.commit_connection(
                    target, account, new, now, check_due_time=check, superseded_id=superseded_id, proof=proof
                )
            if committed is not None:
                # The caller's entry has no version, which shows a row that was put back.
                version = committed.version
                self.record_audit(background_entry(now, Action.STORE_CREDENTIALS, committed, new_version=version))
                await self._add_webhook_routes(committed, account.webhook_routes)
                return committed
        raise StoreUnavailable

    async def _add_webhook_routes(self, integration: Integration, routes: Sequence[str]) -> None:
        """Store other keys of the account. The connection is not undone if the database fails now."""
        if not routes or self.add_webhook_routes is None:
            return
        try:
            await self.add_webhook_routes(integration, routes)
        except StoreUnavailable:
            structlog.get_logger(__name__).warning("webhook_routes_not_stored", **integration.log_fields)

    async def _proof(self, provider: Provider, time: datetime | None) -> GrantProof | None:
        if time is None or not self.waits_for_revocations:
            return None
        return GrantProof(time, await self.providers.ending(provider))

    async def _find_target(
        self, requested: Integration | NewIntegration, account: NewAccount
    ) -> Integration | NewIntegration:
        """The row for the account's credentials. Of a row that was altered, only the identity is used."""
        known = await self._find_known(requested, account)
        if isinstance(requested, NewIntegration):
            return known or requested
        stored = await self.integrations.get(requested.integration_id, requested.user_id)
        current = await self.cipher.redacted(stored)
        if requested.is_connected:
            _require_same_account(current, account, known)
            return current
        return known or current

    async def _find_known(self, requested: Integration | NewIntegration, account: NewAccount) -> Integration | None:
        """The row that has the account already."""
        if account.account_id is None:
            return None
        stored = await self.connections.find_account(
            requested.user_id, requested.integration_type, account.account_id, requested.oauth_client
        )
        if stored is None:
            return None
        known = await self.cipher.redacted(stored)
        is_altered = known is not stored.integration
        return replace(known, name=requested.name, config=requested.config) if is_altered else known


def _require_same_account(current: Integration, account: NewAccount, known: Integration | None) -> None:
    # Where the row has an account, credentials without a known account may be of any other, and are rejected.
    is_different_account = current.account_id is not None and current.account_id != account.account_id
    is_linked_elsewhere = known is not None and known.integration_id != current.integration_id
    if is_different_account or is_linked_elsewhere:
        raise AccountMismatch


# --- attempts --------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class AttemptLifecycle:
    """Reads and ends attempts. The store consumes an attempt atomically, so it is used once.

    The outcome of a code is stored with the attempt, for the callbacks that repeat it.
    """

    attempts: AuthorizationAttemptStore
    cipher: AttemptCipher
    redirects: RedirectAllowlist
    clock: Clock

    async def read_details(self, claims: StateClaims, attempt: AuthorizationAttempt) -> AttemptDetails:
        """The details of an attempt of these claims. Its URLs must still be allowed: the lists may have changed.

        Raises `CredentialsUnreadable` or `RedirectUriNotAllowed`.
        """
        details = await self.cipher.decrypt_details(claims, attempt.encrypted_details)
        self.redirects.redirect_uri(claims.integration_type, details.redirect_uri)
        self.redirects.return_url(details.return_url or "")
        return details

    async def read_outcome(self, claims: StateClaims, attempt: AuthorizationAttempt) -> CallbackOutcome:
        """The outcome of an attempt that has one, perhaps only so far."""
        return await self.cipher.decrypt_outcome(claims, attempt.encrypted_outcome or b"")

    async def hold(
        self, claims: StateClaims, callback: PendingCallback, confirmation_token: str
    ) -> EndedAttempt | None:
        """Store the callback of a started attempt until it is confirmed. None if the attempt was used before."""
        encrypted = await self.cipher.encrypt_callback(claims, callback)
        now = self.clock()
        outcome = CallbackOutcome(digest_of(callback.code), now, confirmation_token=confirmation_token)
        encrypted_outcome = await self.cipher.encrypt_outcome(claims, outcome)
        attempt = await self.attempts.store_pending_callback(claims.attempt_id, encrypted, encrypted_outcome, now)
        return None if attempt is None else EndedAttempt(await self.read_details(claims, attempt), outcome)

    async def complete(
        self, claims: StateClaims, code: str, connect: Callable[[AttemptDetails], Awaitable[Integration]]
    ) -> EndedAttempt | None:
        """Consume a started attempt and connect its integration; its end is stored, also if `connect` raises an error.

        `code` is empty in a device authorization. None, and nothing is connected, if the attempt was used before.
        """
        now = self.clock()
        outcome = CallbackOutcome(digest_of(code), now)
        attempt = await self.attempts.consume(
            claims.attempt_id, await self.cipher.encrypt_outcome(claims, outcome), now
        )
        return None if attempt is None else await self._connect(claims, attempt, outcome, connect, keeps_outcome=True)

    async def complete_held(
        self, claims: StateClaims, connect: Callable[[PendingCallback, AttemptDetails], Awaitable[Integration]]
    ) -> EndedAttempt | None:
        """Like `complete`, with the callback that waits for its confirmation.

        The stored outcome stays that of the callback, which is that it needs a confirmation.
        """
        now = self.clock()
        attempt = await self.attempts.consume_pending_callback(claims.attempt_id, now)
        if attempt is None:
            return None

        async def connect_held(details: AttemptDetails) -> Integration:
            callback = await self.cipher.decrypt_callback(claims, attempt.encrypted_callback or b"")
            return await connect(callback, details)

        return await self._connect(claims, attempt, CallbackOutcome("", now), connect_held, keeps_outcome=False)

    async def _connect(
        self,
        claims: StateClaims,
        attempt: AuthorizationAttempt,
        outcome: CallbackOutcome,
        connect: Callable[[AttemptDetails], Awaitable[Integration]],
        *,
        keeps_outcome: bool,
    ) -> EndedAttempt:
        """Connect the integration of a consumed attempt, and store the outcome if `keeps_outcome`."""
        try:
            details = await self.read_details(claims, attempt)
            integration = await connect(details)
        except Exception as error:
            # Any other error is a fault of this program. Its repetitions find a used state.
            record = ErrorRecord.of(error if isinstance(error, IntegrationServerError) else StateUsed())
            await self._finish(claims, attempt, replace(outcome, error=record) if keeps_outcome else None)
            raise
        label = integration.account_label or integration.account_id or ""
        outcome = replace(outcome, integration_id=integration.integration_id, account_label=label)
        with suppress(StoreUnavailable):  # it is connected; only a repeated callback does not learn it
            await self._finish(claims, attempt, outcome if keeps_outcome else None)
        return EndedAttempt(details, outcome)

    async def _finish(
        self, claims: StateClaims, attempt: AuthorizationAttempt, outcome: CallbackOutcome | None
    ) -> None:
        encrypted = await self.cipher.encrypt_outcome(claims, outcome) if outcome else None
        await self.attempts.finish(attempt, encrypted)


def digest_of(code: str) -> str:
    """The form in which an outcome keeps its code."""
    return hashlib.sha256(code.encode()).hexdigest()


@dataclass(eq=False, repr=False)
class TokenStorage:
    """Stores the tokens of attempts in the row of their account."""

    account_linker: AccountLinker
    revocation_service: RevocationService
    providers: OAuthClientDirectory
    clock: Clock
    _: KW_ONLY
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def now(self) -> datetime:
        """The database's clock, to be read before tokens are requested."""
        return await self.account_linker.connections.now()

    async def store(
        self,
        claims: StateClaims,
        details: AttemptDetails,
        provider: OAuthProvider,
        target: Integration,
        tokens: OAuthTokens,
        proof_time: datetime,
    ) -> Integration:
        """Verify the account of the tokens of an attempt, and commit them. Tokens that are not stored are revoked.

        `proof_time`: a time of `now`, before the provider issued them.
        """
        account = _UNKNOWN_ACCOUNT
        try:
            for pause in (*_REVOCATION_PAUSES, None):
                account = await _verify_account(provider, tokens, details.scopes)
                try:
                    return await self.account_linker.commit(target, account, tokens, details.scopes, proof_time)
                except RevocationInProgress:
                    if pause is None:
                        break
                await self.pause(pause)
                # The revocation may have ended this grant too. Then the provider rejects its tokens.
                proof_time = await self.now()
                if tokens.refresh_token is not None:
                    refreshed = await self.providers.authenticated(provider, partial(_refresh, tokens))
                    tokens = tokens.updated_with(refreshed, self.clock())
            # It says no more: the revocation may be another user's.
            raise ProviderUnavailable("the account cannot be connected at the moment; connect again")
        except StoreUnavailable:
            raise  # it is not known whether the tokens were committed
        except Exception:
            await self.revocation_service.discard(claims, details.oauth_client, account, tokens)
            raise

    async def discard(self, claims: StateClaims, oauth_client: str, tokens: OAuthTokens) -> None:
        """Have tokens revoked that an attempt received for a client and no integration can keep."""
        await self.revocation_service.discard(claims, oauth_client, _UNKNOWN_ACCOUNT, tokens)


async def _refresh(tokens: OAuthTokens, provider: OAuthProvider) -> OAuthTokens:
    return await provider.refresh(tokens)


async def _verify_account(provider: Provider, tokens: OAuthTokens, requested_scopes: Sequence[str]) -> NewAccount:
    try:
        return await provider.verify_connection(tokens)
    except ProviderRejected:
        # The account request may need a scope that the user denied; the integration then shows the missing scope.
        if set(provider.missing_scopes(requested_scopes, tokens)).isdisjoint(provider.required_scopes):
            raise
        return _UNKNOWN_ACCOUNT
