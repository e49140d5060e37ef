"""Credentials, and the tokens that we hand out ourselves, as sealed values."""

import base64
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from integration_server.domain.credentials import Credentials
from integration_server.domain.errors import CredentialsUnreadable, IntegrationPending
from integration_server.domain.integration import Integration
from integration_server.service.ports import NewIntegration, OrphanedGrant, Place, Sealer, StoredIntegration

T = TypeVar("T")

_CREDENTIALS: TypeAdapter[Credentials] = TypeAdapter(Credentials)


class Vault:
    """Seals an integration's credentials as one value, bound to the integration's row."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    async def seal(self, integration: Integration | NewIntegration | OrphanedGrant, credentials: Credentials) -> bytes:
        """The credentials, readable only as those of this integration."""
        place = credentials_place(integration.uid, integration.user_id, integration.integration_type)
        return await self._sealer.seal(_CREDENTIALS.dump_json(credentials), place)

    async def open(self, stored: StoredIntegration) -> Credentials:
        """The credentials of a connected integration. Raises `CredentialsUnreadable`, or `IntegrationPending`."""
        if stored.sealed_credentials is None:
            raise IntegrationPending
        return await self._open(stored.sealed_credentials, _place_of(stored.integration))

    async def open_orphaned(self, grant: OrphanedGrant) -> Credentials:
        """The credentials of an integration that is gone. Raises `CredentialsUnreadable`."""
        return await self._open(grant.sealed_credentials, _place_of(grant))

    async def _open(self, sealed: bytes, place: Place) -> Credentials:
        plaintext = await self._sealer.open(sealed, place)
        try:
            return _CREDENTIALS.validate_json(plaintext)
        except ValidationError:
            raise CredentialsUnreadable from None  # pydantic's error quotes its input


def _place_of(integration: Integration | NewIntegration | OrphanedGrant) -> Place:
    return credentials_place(integration.uid, integration.user_id, integration.integration_type)


# --- places ------------------------------------------------------------------------------------------------------


def credentials_place(uid: str, user_id: str, integration_type: str) -> Place:
    """Where an integration's credentials belong. Those that wait to be revoked keep it, when their row is gone."""
    return Place("integrations", "sealed_credentials", uid, user_id, integration_type)


def verifier_place(attempt_id: str, user_id: str, integration_type: str) -> Place:
    """Where an attempt's PKCE verifier belongs."""
    return Place("connection_attempts", "sealed_verifier", attempt_id, user_id, integration_type)


def callback_place(attempt_id: str, user_id: str, integration_type: str) -> Place:
    """Where the callback that an attempt holds belongs."""
    return Place("connection_attempts", "sealed_callback", attempt_id, user_id, integration_type)


def webhook_secret_place(uid: str, user_id: str, integration_type: str) -> Place:
    """Where the secret of an integration's webhooks belongs. A former one keeps it, beside the one that came after."""
    return Place("webhook_secrets", "sealed_secret", uid, user_id, integration_type)


def payload_place(uid: str, user_id: str, integration_type: str) -> Place:
    """Where the payload of a webhook event belongs. The uid is the event's."""
    return Place("webhook_events", "sealed_payload", uid, user_id, integration_type)


def chain_key_place(chain_id: str, *_owner: str) -> Place:
    """Where the key of a chain of the audit log belongs. A chain is nobody's."""
    return Place("audit_chains", "sealed_key", chain_id)


# --- tokens ------------------------------------------------------------------------------------------------------


class SealedTokens(Generic[T]):
    """Opaque tokens for one purpose that we hand out and get back: whoever carries one can't read or alter it."""

    def __init__(self, sealer: Sealer, purpose: str, content: type[T]) -> None:
        self._sealer = sealer
        self._place = Place(table="tokens", column=purpose, uid="")
        self._content = TypeAdapter(content)

    async def make(self, content: T) -> str:
        """A token with this content, safe in a URL."""
        sealed = await self._sealer.seal(self._content.dump_json(content), self._place)
        return _to_text(sealed)

    async def read(self, token: str) -> T | None:
        """The token's content, or None if it was not made here for this purpose."""
        try:
            sealed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            # Several spellings decode to the same bytes; only the one that we wrote is ours.
            if _to_text(sealed) != token:
                return None
            return self._content.validate_json(await self._sealer.open(sealed, self._place))
        except (ValueError, CredentialsUnreadable):  # binascii's and pydantic's errors are ValueErrors
            return None


def _to_text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
