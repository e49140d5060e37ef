"""The key-encryption keys, and what rotates the data keys."""

from collections.abc import Sequence
from datetime import timedelta

from integration_server.domain.audit import SERVER, Action, AuditEntry
from integration_server.service.auditing import AuditTrail
from integration_server.service.ports import Clock
from integration_server.settings import Settings
from integration_server.storage.claims import WorkClaim
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyEncryption, KeyEncryptions, KeyringError, LocalKey
from integration_server.storage.keyring import Keyring
from integration_server.storage.rotation import Rotation, RotationByAge
from integration_server.wiring.world import random_name

_ROTATION_SHARE = 0.1  # of the time: calls should not notice
_ROTATION_CLAIM = timedelta(minutes=1)  # longer than any step of a rotation; a crashed server's is free after it


async def open_key_encryptions(settings: Settings, key: bytes | None) -> KeyEncryptions:
    """The key-encryption keys: AWS KMS wraps where it is set up, else `key` does, the local one; the others unwrap.

    Raises `KeyringError` or `StoreUnavailable`.
    """
    local = [LocalKey(one) for one in (key, *settings.encryption_keys_retired) if one is not None]
    kms = await _open_kms([one for one in (settings.kms_key_id, *settings.kms_key_ids_retired) if one is not None])
    current, *former = [*kms, *local] if settings.kms_key_id is not None else [*local, *kms]
    return KeyEncryptions(current, former)


async def _open_kms(key_ids: Sequence[str]) -> Sequence[KeyEncryption]:
    if not key_ids:
        return ()
    try:
        # An optional extra, and a tenth of a second that others should not pay.
        from integration_server.storage.aws_kms import open_aws_kms  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise KeyringError("AWS KMS needs the extra `aws`: pip install 'integration-server[aws]'") from error
    return await open_aws_kms(key_ids)


def rotation_by_age(
    database: Database, keyring: Keyring, trail: AuditTrail, clock: Clock, activation: timedelta, max_age: timedelta
) -> RotationByAge:
    """What replaces data keys that are too old, in the background."""

    async def tell(what: str) -> None:
        await trail.record(AuditEntry(clock(), SERVER, Action.CHANGE_KEYS, purpose=what))

    return RotationByAge(
        database,
        Rotation(database, keyring, activation=activation, tell=tell),
        WorkClaim(database, "data key rotation", random_name(), _ROTATION_CLAIM),
        max_age=max_age,
        share=_ROTATION_SHARE,
    )
