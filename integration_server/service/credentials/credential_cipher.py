"""Encryption of credentials, and of the opaque tokens that the server issues."""

import base64
from collections.abc import Sequence
from functools import partial
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import CredentialsUnreadable, IntegrationPending
from integration_server.domain.integration import Integration
from integration_server.service.common_types import Aead, AssociatedData
from integration_server.service.connections.revocation_ports import OrphanedGrant
from integration_server.service.integrations.ports import NewCredentials, NewIntegration, StoredIntegration
from integration_server.service.provider_port import Provider

T = TypeVar("T")

_CREDENTIALS: TypeAdapter[Credentials] = TypeAdapter(Credentials)


class CredentialCipher:
    """Encrypts an integration's credentials as one value, bound to the integration's row."""

    def __init__(self, aead: Aead) -> None:
        self._aead = aead

    async def encrypt(
        self, integration: Integration | NewIntegration | OrphanedGrant, credentials: Credentials
    ) -> bytes:
        """The encrypted credentials. They can be decrypted only as those of this integration."""
        return await self._aead.encrypt(_CREDENTIALS.dump_json(credentials), _aad_of(integration))

    async def encrypt_new(
        self,
        integration: Integration | NewIntegration,
        credentials: Credentials,
        provider: Provider,
        requested_scopes: Sequence[str],
        schedule: Schedule,
    ) -> NewCredentials:
        """The encrypted credentials with the plaintext columns that describe them."""
        encrypted_credentials = await self.encrypt(integration, credentials)
        if not isinstance(credentials, OAuthTokens):
            return NewCredentials(encrypted_credentials)
        missing = provider.missing_scopes(requested_scopes, credentials)
        granted = [scope for scope in requested_scopes if scope not in missing]
        return NewCredentials(
            encrypted_credentials,
            # Granted scopes keep the names that were requested: responses use other names, or omit offline_access.
            scopes=tuple(dict.fromkeys((*(credentials.scopes or ()), *granted))),
            missing_scopes=tuple(missing),
            lacks_required_scope=not set(missing).isdisjoint(provider.required_scopes),
            is_renewable=credentials.refresh_token is not None,
            access_token_expire_time=credentials.expire_time,
            refresh_token_expire_time=credentials.refresh_token_expire_time,
            refresh_due_time=schedule.refresh_due_time(credentials, provider.renew_after),
        )

    async def decrypt(self, stored: StoredIntegration) -> Credentials:
        """The credentials of a connected integration. Raises `CredentialsUnreadable`, or `IntegrationPending`."""
        if stored.encrypted_credentials is None:
            raise IntegrationPending
        return await self._decrypt(stored.encrypted_credentials, _aad_of(stored.integration))

    async def decrypt_orphaned(self, grant: OrphanedGrant) -> Credentials:
        """The credentials of an orphaned grant. Raises `CredentialsUnreadable`."""
        return await self._decrypt(grant.encrypted_credentials, _aad_of(grant))

    async def _decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> Credentials:
        plaintext = await self._aead.decrypt(encrypted, associated_data)
        try:
            return _CREDENTIALS.validate_json(plaintext)
        except ValidationError:
            raise CredentialsUnreadable from None  # pydantic's error contains its input


def _aad_of(integration: Integration | NewIntegration | OrphanedGrant) -> AssociatedData:
    return credentials_aad(integration.uid, integration.user_id, integration.integration_type)


# --- associated data ---------------------------------------------------------------------------------------------


# Called with the uid or other id of the row, its user and its integration type.

credentials_aad = partial(AssociatedData, "integrations", "encrypted_credentials")
"""Of an integration's credentials, also while they wait in the revocation outbox."""

verifier_aad = partial(AssociatedData, "authorization_attempts", "encrypted_verifier")
"""Of the PKCE verifier of an authorization attempt."""

callback_aad = partial(AssociatedData, "authorization_attempts", "encrypted_callback")
"""Of the pending callback of an authorization attempt."""

webhook_secret_aad = partial(AssociatedData, "webhook_secrets", "encrypted_secret")
"""Of the current and the previous webhook secret of an integration."""

payload_aad = partial(AssociatedData, "webhook_events", "encrypted_payload")
"""Of the payload of a webhook event. The uid is the event's."""


def chain_key_aad(chain_id: str, *_owner: str) -> AssociatedData:
    """Of the key of an audit chain, which belongs to no user."""
    return AssociatedData("audit_chains", "encrypted_key", chain_id)


# --- tokens ------------------------------------------------------------------------------------------------------


class EncryptedTokens(Generic[T]):
    """Issues and reads encrypted tokens for one purpose. Their bearers can neither read nor alter them."""

    def __init__(self, aead: Aead, purpose: str, content: type[T]) -> None:
        self._aead = aead
        self._associated_data = AssociatedData(table="tokens", column=purpose, uid="")
        self._content = TypeAdapter(content)

    async def make(self, content: T) -> str:
        """A URL-safe token with this content."""
        return _to_text(await self._aead.encrypt(self._content.dump_json(content), self._associated_data))

    async def read(self, token: str) -> T | None:
        """The token's content, or None if this server did not issue it for this purpose."""
        try:
            encrypted = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            # Several texts decode to the same bytes; only the issued one is valid.
            if _to_text(encrypted) != token:
                return None
            return self._content.validate_json(await self._aead.decrypt(encrypted, self._associated_data))
        except (ValueError, CredentialsUnreadable):  # binascii's and pydantic's errors are ValueErrors
            return None


def _to_text(encrypted: bytes) -> str:
    return base64.urlsafe_b64encode(encrypted).rstrip(b"=").decode()
