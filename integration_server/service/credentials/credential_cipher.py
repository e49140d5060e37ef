"""Credentials, and the tokens that we hand out ourselves, as sealed values."""

import base64
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from integration_server.domain.credentials import Credentials
from integration_server.domain.errors import CredentialsUnreadable, IntegrationPending
from integration_server.domain.integration import Integration
from integration_server.service.common_types import Aead, AssociatedData
from integration_server.service.connections.revocation_ports import OrphanedGrant
from integration_server.service.integrations.ports import NewIntegration, StoredIntegration

T = TypeVar("T")

_CREDENTIALS: TypeAdapter[Credentials] = TypeAdapter(Credentials)


class CredentialCipher:
    """Seals an integration's credentials as one value, bound to the integration's row."""

    def __init__(self, aead: Aead) -> None:
        self._aead = aead

    async def encrypt(
        self, integration: Integration | NewIntegration | OrphanedGrant, credentials: Credentials
    ) -> bytes:
        """The credentials, readable only as those of this integration."""
        associated_data = credentials_aad(integration.uid, integration.user_id, integration.integration_type)
        return await self._aead.encrypt(_CREDENTIALS.dump_json(credentials), associated_data)

    async def decrypt(self, stored: StoredIntegration) -> Credentials:
        """The credentials of a connected integration. Raises `CredentialsUnreadable`, or `IntegrationPending`."""
        if stored.encrypted_credentials is None:
            raise IntegrationPending
        return await self._decrypt(stored.encrypted_credentials, _aad_of(stored.integration))

    async def decrypt_orphaned(self, grant: OrphanedGrant) -> Credentials:
        """The credentials of an integration that is gone. Raises `CredentialsUnreadable`."""
        return await self._decrypt(grant.encrypted_credentials, _aad_of(grant))

    async def _decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> Credentials:
        plaintext = await self._aead.decrypt(encrypted, associated_data)
        try:
            return _CREDENTIALS.validate_json(plaintext)
        except ValidationError:
            raise CredentialsUnreadable from None  # pydantic's error quotes its input


def _aad_of(integration: Integration | NewIntegration | OrphanedGrant) -> AssociatedData:
    return credentials_aad(integration.uid, integration.user_id, integration.integration_type)


# --- places ------------------------------------------------------------------------------------------------------


def credentials_aad(uid: str, user_id: str, integration_type: str) -> AssociatedData:
    """Where an integration's credentials belong. Those that wait to be revoked keep it, when their row is gone."""
    return AssociatedData("integrations", "encrypted_credentials", uid, user_id, integration_type)


def verifier_aad(attempt_id: str, user_id: str, integration_type: str) -> AssociatedData:
    """Where an attempt's PKCE verifier belongs."""
    return AssociatedData("authorization_attempts", "encrypted_verifier", attempt_id, user_id, integration_type)


def callback_aad(attempt_id: str, user_id: str, integration_type: str) -> AssociatedData:
    """Where the callback that an attempt holds belongs."""
    return AssociatedData("authorization_attempts", "encrypted_callback", attempt_id, user_id, integration_type)


def webhook_secret_aad(uid: str, user_id: str, integration_type: str) -> AssociatedData:
    """Where the secret of an integration's webhooks belongs. A former one keeps it, beside the one that came after."""
    return AssociatedData("webhook_secrets", "encrypted_secret", uid, user_id, integration_type)


def payload_aad(uid: str, user_id: str, integration_type: str) -> AssociatedData:
    """Where the payload of a webhook event belongs. The uid is the event's."""
    return AssociatedData("webhook_events", "encrypted_payload", uid, user_id, integration_type)


def chain_key_aad(chain_id: str, *_owner: str) -> AssociatedData:
    """Where the key of a chain of the audit log belongs. A chain is nobody's."""
    return AssociatedData("audit_chains", "encrypted_key", chain_id)


# --- tokens ------------------------------------------------------------------------------------------------------


class EncryptedTokens(Generic[T]):
    """Opaque tokens for one purpose that we hand out and get back: whoever carries one can't read or alter it."""

    def __init__(self, aead: Aead, purpose: str, content: type[T]) -> None:
        self._aead = aead
        self._associated_data = AssociatedData(table="tokens", column=purpose, uid="")
        self._content = TypeAdapter(content)

    async def make(self, content: T) -> str:
        """A token with this content, safe in a URL."""
        encrypted = await self._aead.encrypt(self._content.dump_json(content), self._associated_data)
        return _to_text(encrypted)

    async def read(self, token: str) -> T | None:
        """The token's content, or None if it was not made here for this purpose."""
        try:
            encrypted = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            # Several spellings decode to the same bytes; only the one that we wrote is ours.
            if _to_text(encrypted) != token:
                return None
            return self._content.validate_json(await self._aead.decrypt(encrypted, self._associated_data))
        except (ValueError, CredentialsUnreadable):  # binascii's and pydantic's errors are ValueErrors
            return None


def _to_text(encrypted: bytes) -> str:
    return base64.urlsafe_b64encode(encrypted).rstrip(b"=").decode()
