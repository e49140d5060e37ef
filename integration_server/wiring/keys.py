"""The key-encryption keys, and what rotates the data keys."""

from collections.abc import Sequence
from datetime import timedelta

from integration_server.domain.audit import SERVER, Action, AuditEntry
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.common_types import Clock
from integration_server.settings import Settings
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyEncryptionKey, KeyEncryptionKeys, KeyringError, LocalKey
from integration_server.storage.keyring import Keyring
from integration_server.storage.rotation import AgeBasedRotation, Rotation
from integration_server.storage.work_leases import WorkLease
from integration_server.wiring.system import random_token

_ROTATION_SHARE = 0.1  # of the time: calls should not notice
_ROTATION_CLAIM = timedelta(minutes=1)  # longer than any step of a rotation; a crashed server's is free after it


async def open_key_encryptions(settings: Settings) -> KeyEncryptionKeys:
    """The key-encryption keys. `KMS_KEY_ID` wraps if it is set, else `ENCRYPTION_KEY`; all others only unwrap.

    Raises `KeyringError` or `StoreUnavailable`.
    """
    local_keys = [
        LocalKey(one) for one in (settings.encryption_key, *settings.encryption_keys_retired) if one is not None
    ]
    kms = await _open_kms([one for one in (settings.kms_key_id, *settings.kms_key_ids_retired) if one is not None])
    current, *previous = [*kms, *local_keys] if settings.kms_key_id is not None else [*local_keys, *kms]
    return KeyEncryptionKeys(current, previous)


async def _open_kms(key_ids: Sequence[str]) -> Sequence[KeyEncryptionKey]:
    if not key_ids:
        return ()
    try:
        # An optional extra, and a tenth of a second that others should not pay.
        from integration_server.storage.aws_kms import open_aws_kms  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise KeyringError("AWS KMS needs the extra `aws`: pip install 'integration-server[aws]'") from error
    return await open_aws_kms(key_ids)


def rotation_by_age(
    database: Database,
    keyring: Keyring,
    trail: AuditTrail,
    clock: Clock,
    activation_delay: timedelta,
    max_age: timedelta,
) -> AgeBasedRotation:
    """What replaces data keys that are too old, in the background."""

    async def record_audit(description: str) -> None:
        await trail.record(AuditEntry(clock(), SERVER, Action.CHANGE_KEYS, purpose=description))

    return AgeBasedRotation(
        database,
        Rotation(database, keyring, activation_delay=activation_delay, record_audit=record_audit),
        WorkLease(database, "data key rotation", random_token(), _ROTATION_CLAIM),
        max_age=max_age,
        duty_cycle=_ROTATION_SHARE,
    )
