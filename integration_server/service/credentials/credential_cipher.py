"""Encryption of credentials, and of the opaque tokens that the server issues."""

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Annotated, Generic, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import CredentialsUnreadable, IntegrationPending
from integration_server.domain.integration import Failure, Integration, StoredIntegration
from integration_server.service.common_types import Aead, AssociatedData
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


# --- associated data ---------------------------------------------------------------------------------------------


def bound_values_of(integration: Integration) -> str:
    """The values of the row that the credentials are bound to, beside uid, user and type, in canonical JSON.

    They are those that identify the row, the versions, and all that is set together with one of them. What changes
    alone (errors, due times, `reauthorization_required`) is not among them.
    """
    return _to_json(
        integration.integration_id,
        integration.version,
        integration.settings_version,
        integration.webhook_secret_id,
        integration.auth_method,
        integration.oauth_client,
        integration.account_id,
        integration.account_label,
        integration.name,
        integration.config,
        integration.is_active,
        integration.scopes,
        integration.missing_scopes,
        integration.lacks_required_scope,
        integration.is_renewable,
        integration.access_token_expire_time,
        integration.refresh_token_expire_time,
        integration.connect_time,
    )


def _time_text(value: object) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} is not expected in a row")
    return value.astimezone(UTC).isoformat(timespec="microseconds")


_encode_json = json.JSONEncoder(sort_keys=True, check_circular=False, default=_time_text).encode


def _to_json(*values: object) -> str:
    return _encode_json(values)


def _aad_of(integration: Integration) -> AssociatedData:
    names = integration.uid, integration.user_id, integration.integration_type
    return credentials_aad(*names, bound_values_of(integration))


def _aad_of_grant(grant: OrphanedGrant) -> AssociatedData:
    return credentials_aad(grant.uid, grant.user_id, grant.integration_type, grant.bound_values)


# Called with the uid or other id of the row, its user, its integration type, and the values that they are bound to.

credentials_aad = partial(AssociatedData, "integrations", "encrypted_credentials")
"""Of an integration's credentials, also while they wait in the revocation outbox."""

attempt_aad = partial(AssociatedData, "authorization_attempts", "encrypted_details")
"""Of the details of an authorization attempt."""

callback_aad = partial(AssociatedData, "authorization_attempts", "encrypted_callback")
"""Of the pending callback of an authorization attempt."""

outcome_aad = partial(AssociatedData, "authorization_attempts", "encrypted_outcome")
"""Of the outcome of the callback of an authorization attempt."""


def oauth_client_aad(
    uid: str, integration_type: str, name: str, client_id: str, callers: Sequence[str], version: int
) -> AssociatedData:
    """Of the secrets of an OAuth client, which belongs to no user."""
    bound_values = _to_json(name, client_id, callers, version)
    return AssociatedData("oauth_clients", "encrypted_secrets", uid, "", integration_type, bound_values)


def webhook_secret_aad(
    uid: str,
    user_id: str,
    integration_type: str,
    secret_id: str,
    column: str,
    set_time: datetime,
    previous_expire_time: datetime | None,
) -> AssociatedData:
    """Of a webhook secret of an integration: in `column`, of the secrets with this id."""
    bound_values = _to_json(secret_id, set_time, previous_expire_time)
    return AssociatedData("webhook_secrets", column, uid, user_id, integration_type, bound_values)


def payload_aad(
    uid: str,
    user_id: str,
    integration_type: str,
    integration_id: int,
    event_id: str,
    event_type: str,
    receive_time: datetime,
) -> AssociatedData:
    """Of the payload of a webhook event. The uid is the event's."""
    bound_values = _to_json(integration_id, event_id, event_type, receive_time)
    return AssociatedData("webhook_events", "encrypted_payload", uid, user_id, integration_type, bound_values)


def route_aad(uid: str, user_id: str, integration_type: str, route: str) -> AssociatedData:
    """Of the copy of a route of an integration's webhooks."""
    return AssociatedData("webhook_routes", "encrypted_copy", uid, user_id, integration_type, _to_json(route))


def unrouted_payload_aad(
    uid: str, integration_type: str, oauth_client: str, event_id: str, event_type: str, receive_time: datetime
) -> AssociatedData:
    """Of the payload of a webhook event without an integration, which belongs to no user."""
    bound_values = _to_json(oauth_client, event_id, event_type, receive_time)
    return AssociatedData("unrouted_webhooks", "encrypted_payload", uid, "", integration_type, bound_values)


def chain_key_aad(chain_id: str) -> AssociatedData:
    """Of the key of an audit chain, which belongs to no user."""
    return AssociatedData("audit_chains", "encrypted_key", chain_id)


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
