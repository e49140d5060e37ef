"""Encryption with data keys: of credentials, of authorization attempts, and of the opaque tokens that name them."""

import base64
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from struct import Struct
from typing import Annotated, Generic, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field, TypeAdapter, ValidationError

from integration_server.domain.associated_data import (
    AssociatedData,
    attempt_aad,
    bound_values_of,
    callback_aad,
    credentials_aad,
    outcome_aad,
)
from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import CredentialsUnreadable, IntegrationPending
from integration_server.domain.integration import Failure, Integration, StoredIntegration
from integration_server.service.common_types import (
    Aead,
)
from integration_server.service.connections.ports import AttemptDetails, CallbackOutcome, PendingCallback, StateClaims
from integration_server.service.connections.revocation_ports import OrphanedGrant
from integration_server.service.integrations.ports import (
    NewCredentials,
)
from integration_server.service.provider_port import Provider

T = TypeVar("T")

# Each kind has required fields that the others lack: the first that fits is the right one.
_CREDENTIALS: TypeAdapter[Credentials | None] = TypeAdapter(
    Annotated[Credentials | None, Field(union_mode="left_to_right")]
)


class CredentialCipher:
    """Encrypts an integration's credentials as one value, bound to the values of the integration's row.

    The associated data contains all that decides whose credentials they are, which are the newest and where they are
    sent (`bound_values_of`). Whoever alters one of these columns, or puts back an older value of one, makes the
    credentials unreadable. A pending row has a value too, without credentials.
    """

    def __init__(self, aead: Aead) -> None:
        self._aead = aead

    async def encrypt(self, integration: Integration, credentials: Credentials | None) -> bytes:
        """The encrypted credentials. They can be decrypted only as those of this integration, as it is here."""
        return await self._encrypt(credentials, _aad_of(integration))

    async def encrypt_new(
        self,
        integration: Integration,
        credentials: Credentials,
        provider: Provider,
        requested_scopes: Sequence[str],
        schedule: Schedule,
    ) -> NewCredentials:
        """The encrypted credentials with the plaintext columns that describe them.

        `integration` is as it will be stored with them, with its new version, apart from those columns.
        """
        new = _describe(credentials, provider, requested_scopes, schedule)
        return replace(new, encrypted_credentials=await self.encrypt(described_by(new, integration), credentials))

    async def rebind(self, new: NewCredentials, before: Integration, after: StoredIntegration) -> NewCredentials:
        """New credentials for an integration whose settings have changed since they were encrypted.

        Both are as `encrypt_new` had `integration`. Raises `CredentialsUnreadable` if the row `after` was altered.
        """
        await self.decrypt(after)
        credentials = await self._decrypt(new.encrypted_credentials, _aad_of(described_by(new, before)))
        target = described_by(new, replace(after.integration, version=before.version))
        return replace(new, encrypted_credentials=await self.encrypt(target, credentials))

    async def encrypt_orphaned(self, grant: OrphanedGrant, credentials: Credentials) -> bytes:
        """The encrypted credentials of a grant that belongs to no integration."""
        return await self._encrypt(credentials, _aad_of_grant(grant))

    async def decrypt(self, stored: StoredIntegration) -> Credentials:
        """The credentials of a connected integration. Raises `CredentialsUnreadable`, or `IntegrationPending`.

        `CredentialsUnreadable` also means that a value in the row was altered in the database.
        """
        credentials = await self._decrypt(stored.encrypted_credentials or b"", _aad_of(stored.integration))
        if credentials is None:
            raise IntegrationPending
        return credentials

    async def verify(self, stored: StoredIntegration) -> Integration:
        """The integration, if it is as the server has stored it. Raises `CredentialsUnreadable`.

        What is authentic need not be parsed.
        """
        await self._aead.decrypt(stored.encrypted_credentials or b"", _aad_of(stored.integration))
        return stored.integration

    async def redacted(self, stored: StoredIntegration) -> Integration:
        """The integration; if it is not as the server has stored it, only what identifies it.

        Then nothing that somebody else may have written is shown or used. The user can disconnect it, or connect again.
        """
        try:
            return await self.verify(stored)
        except CredentialsUnreadable as error:
            integration = stored.integration
            return replace(
                integration,
                name="",
                config={},
                account_id=None,
                account_label=None,
                scopes=(),
                missing_scopes=(),
                webhook_secret_id="",
                oauth_client="",
                last_error=Failure(error.reason, integration.update_time, str(error)),
            )

    async def decrypt_orphaned(self, grant: OrphanedGrant) -> Credentials:
        """The credentials of an orphaned grant. Raises `CredentialsUnreadable`."""
        credentials = await self._decrypt(grant.encrypted_credentials, _aad_of_grant(grant))
        if credentials is None:
            raise CredentialsUnreadable
        return credentials

    async def _encrypt(self, credentials: Credentials | None, associated_data: AssociatedData) -> bytes:
        return await self._aead.encrypt(_CREDENTIALS.dump_json(credentials), associated_data)

    async def _decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> Credentials | None:
        plaintext = await self._aead.decrypt(encrypted, associated_data)
        try:
            return _CREDENTIALS.validate_json(plaintext)
        except ValidationError:
            raise CredentialsUnreadable from None  # pydantic's error contains its input


def _describe(
    credentials: Credentials, provider: Provider, requested_scopes: Sequence[str], schedule: Schedule
) -> NewCredentials:
    """The plaintext columns that describe credentials."""
    if not isinstance(credentials, OAuthTokens):
        return NewCredentials(b"")
    missing = provider.missing_scopes(requested_scopes, credentials)
    granted = [scope for scope in requested_scopes if scope not in missing]
    return NewCredentials(
        b"",
        # Granted scopes keep the names that were requested: responses use other names, or omit offline_access.
        scopes=tuple(dict.fromkeys((*(credentials.scopes or ()), *granted))),
        missing_scopes=tuple(missing),
        lacks_required_scope=not set(missing).isdisjoint(provider.required_scopes),
        is_renewable=credentials.is_renewable,
        access_token_expire_time=credentials.expire_time,
        refresh_token_expire_time=credentials.refresh_token_expire_time,
        refresh_due_time=schedule.refresh_due_time(credentials, provider.renew_after),
        token_fingerprint=credentials.fingerprint,
    )


def described_by(new: NewCredentials, integration: Integration) -> Integration:
    """The integration with the columns that describe its new credentials."""
    return replace(
        integration,
        scopes=new.scopes,
        missing_scopes=new.missing_scopes,
        lacks_required_scope=new.lacks_required_scope,
        is_renewable=new.is_renewable,
        access_token_expire_time=new.access_token_expire_time,
        refresh_token_expire_time=new.refresh_token_expire_time,
    )


def _aad_of(integration: Integration) -> AssociatedData:
    names = integration.uid, integration.user_id, integration.integration_type
    return credentials_aad(*names, bound_values_of(integration))


def _aad_of_grant(grant: OrphanedGrant) -> AssociatedData:
    return credentials_aad(grant.uid, grant.user_id, grant.integration_type, grant.bound_values)


# --- tokens ------------------------------------------------------------------------------------------------------


class EncryptedTokens(Generic[T]):
    """Issues and reads encrypted tokens for one purpose. Their bearers can neither read nor alter them."""

    def __init__(self, aead: Aead, purpose: str, content: type[T]) -> None:
        self._aead = aead
        self._associated_data = AssociatedData(table="tokens", column=purpose, uid="")
        self._content: TypeAdapter[T] = _adapter(content)  # type: ignore[arg-type]  # a class is hashable

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


@lru_cache(maxsize=64)
def _adapter(content: type[T]) -> TypeAdapter[T]:
    """Cached, because making one takes milliseconds, and each service has several."""
    return TypeAdapter(content)


def _to_text(encrypted: bytes) -> str:
    return base64.urlsafe_b64encode(encrypted).rstrip(b"=").decode()


# --- authorization attempts --------------------------------------------------------------------------------------

_PENDING_CALLBACK: TypeAdapter[PendingCallback] = TypeAdapter(PendingCallback)
_DETAILS: TypeAdapter[AttemptDetails] = TypeAdapter(AttemptDetails)
_OUTCOME: TypeAdapter[CallbackOutcome] = TypeAdapter(CallbackOutcome)


class AttemptCipher:
    """Encrypts what is stored of an authorization attempt, bound to the attempt.

    `states` and `confirmations` make and read the tokens that name an attempt. Stored values that were altered, or
    belong to another attempt, raise `CredentialsUnreadable`.
    """

    def __init__(self, aead: Aead) -> None:
        self._aead = aead
        self.states = EncryptedTokens(aead, "state", StateClaims)
        self.confirmations = EncryptedTokens(aead, "confirmation", StateClaims)

    async def encrypt_details(self, claims: StateClaims, details: AttemptDetails) -> bytes:
        """The encrypted details of a new attempt."""
        return await self._aead.encrypt(_DETAILS.dump_json(details), _aad_of_attempt(attempt_aad, claims))

    async def decrypt_details(self, claims: StateClaims, encrypted: bytes) -> AttemptDetails:
        """The details of an attempt."""
        return _DETAILS.validate_json(await self._aead.decrypt(encrypted, _aad_of_attempt(attempt_aad, claims)))

    async def encrypt_callback(self, claims: StateClaims, callback: PendingCallback) -> bytes:
        """An encrypted callback that waits for its confirmation."""
        return await self._aead.encrypt(_PENDING_CALLBACK.dump_json(callback), _aad_of_attempt(callback_aad, claims))

    async def decrypt_callback(self, claims: StateClaims, encrypted: bytes) -> PendingCallback:
        """A callback that waits for its confirmation."""
        plaintext = await self._aead.decrypt(encrypted, _aad_of_attempt(callback_aad, claims))
        return _PENDING_CALLBACK.validate_json(plaintext)

    async def encrypt_outcome(self, claims: StateClaims, outcome: CallbackOutcome) -> bytes:
        """The encrypted outcome of an attempt."""
        return await self._aead.encrypt(_OUTCOME.dump_json(outcome), _aad_of_attempt(outcome_aad, claims))

    async def decrypt_outcome(self, claims: StateClaims, encrypted: bytes) -> CallbackOutcome:
        """The outcome of an attempt, perhaps only so far."""
        return _OUTCOME.validate_json(await self._aead.decrypt(encrypted, _aad_of_attempt(outcome_aad, claims)))


def _aad_of_attempt(make: Callable[..., AssociatedData], claims: StateClaims) -> AssociatedData:
    return make(claims.attempt_id, claims.user_id, claims.integration_type)


# --- data keys ---------------------------------------------------------------------------------------------------

_FORMAT = b"\x01"
KEY_ID_BYTES = 8
_HEADER_BYTES = len(_FORMAT) + KEY_ID_BYTES
_NONCE_BYTES = 12

_PACK_LENGTH = Struct(">I").pack


class DataKeyCipher(ABC):
    """An `Aead` with the data keys that its subclass loads. An encrypted value is

        1 byte format | 8 bytes data key id | 12 bytes nonce | ciphertext and 16 bytes tag

    in AES-256-GCM. The header and the value's associated data are authenticated: an altered, truncated or moved value
    cannot be decrypted. Nonces are random, so a data key must not encrypt more than 2³² values (NIST SP 800-38D §8.3).
    """

    def __init__(self) -> None:
        self._ciphers: Mapping[bytes, AESGCM] = {}
        self._active_id = b""

    def usable_keys(self) -> object:
        """What decrypts, as of the last read: another object once a data key is added, withdrawn or replaced."""
        return self._ciphers

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """Encrypt with the active data key."""
        header = _FORMAT + self._active_id
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._active_id]
        return header + nonce + cipher.encrypt(nonce, plaintext, _encode(header, associated_data))

    async def decrypt(self, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        """Decrypt. Raises `CredentialsUnreadable` if the value, the key or the associated data differs."""
        header, rest = ciphertext[:_HEADER_BYTES], ciphertext[_HEADER_BYTES:]
        nonce, payload = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        if not header.startswith(_FORMAT) or len(nonce) < _NONCE_BYTES:
            raise CredentialsUnreadable
        key_id = header[len(_FORMAT) :]
        cipher = self._ciphers.get(key_id) or await self._load_cipher(key_id)
        try:
            return cipher.decrypt(nonce, payload, _encode(header, associated_data))
        except InvalidTag:
            raise CredentialsUnreadable from None

    @abstractmethod
    async def _load_cipher(self, key_id: bytes) -> AESGCM:
        """The data key that is not known yet. Raises `CredentialsUnreadable` if there is none."""


def _encode(header: bytes, associated_data: AssociatedData) -> bytes:
    table, column, *names = associated_data
    parts = [_encode_column(header, table, column)]
    for name in names:
        encoded = name.encode()
        parts += _PACK_LENGTH(len(encoded)), encoded  # the lengths make the encoding unambiguous
    return b"".join(parts)


@lru_cache(maxsize=256)  # of each column and data key
def _encode_column(header: bytes, table: str, column: str) -> bytes:
    parts = header, table.encode(), column.encode()
    return b"".join(piece for part in parts for piece in (_PACK_LENGTH(len(part)), part))
