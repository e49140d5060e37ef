"""Selection of the key-encryption keys, and the background job that rotates data keys."""

from collections.abc import Sequence

from integration_server.domain.audit import SERVER, Action, AuditEntry
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.background.background_worker import DueJob
from integration_server.service.background.ports import DueWork, JobKind
from integration_server.service.common_types import Clock
from integration_server.settings import Settings
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import (
    OPENBAO_PREFIX,
    KeyEncryptionKey,
    KeyEncryptionKeys,
    KeyringError,
    LocalKey,
)
from integration_server.storage.keyring import Keyring
from integration_server.storage.rotation import CLAIM_DURATION, AgeBasedRotation, Rotation


async def open_key_encryptions(settings: Settings) -> KeyEncryptionKeys:
    """The key-encryption keys. `KMS_KEY_ID` wraps if it is set, else `ENCRYPTION_KEY`; all others only unwrap.

    Raises `KeyringError` or `StoreUnavailable`.
    """
    local_keys = [LocalKey(key) for key in filter(None, (settings.encryption_key, *settings.encryption_keys_retired))]
    kms = await _open_kms(settings)
    current, *previous = [*kms, *local_keys] if settings.kms_key_id is not None else [*local_keys, *kms]
    return KeyEncryptionKeys(current, previous)


async def _open_kms(settings: Settings) -> Sequence[KeyEncryptionKey]:
    """The keys of `KMS_KEY_ID` and `KMS_KEY_IDS_RETIRED`, in this order, each where its id says."""
    key_ids = list(filter(None, (settings.kms_key_id, *settings.kms_key_ids_retired)))
    in_openbao = [key_id for key_id in key_ids if key_id.startswith(OPENBAO_PREFIX)]
    in_aws = [key_id for key_id in key_ids if key_id not in in_openbao]
    opened: dict[str, KeyEncryptionKey] = {}
    if in_openbao:
        opened.update(zip(in_openbao, await _open_openbao_keys(settings, in_openbao), strict=True))
    if in_aws:
        opened.update(zip(in_aws, await _open_aws_kms(in_aws), strict=True))
    return [opened[key_id] for key_id in key_ids]


async def _open_openbao_keys(settings: Settings, key_ids: Sequence[str]) -> Sequence[KeyEncryptionKey]:
    from integration_server.storage import openbao  # noqa: PLC0415 - few servers have keys there

    if settings.openbao_token_file is not None:
        authentication: openbao.TokenFile | openbao.JwtLogin = openbao.TokenFile(settings.openbao_token_file)
    else:
        authentication = openbao.JwtLogin(
            settings.openbao_login_role or "", settings.openbao_login_mount, settings.openbao_login_jwt_file
        )
    server = openbao.OpenBao(
        settings.openbao_address or "",  # the rules of the settings require it
        authentication,
        settings.openbao_namespace,
        settings.openbao_ca_file,
    )
    return await openbao.open_openbao_keys(server, key_ids)


async def _open_aws_kms(key_ids: Sequence[str]) -> Sequence[KeyEncryptionKey]:
    try:
        # An optional extra, whose import takes 0.1 s.
        from integration_server.storage.aws_kms import open_aws_kms  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise KeyringError("AWS KMS needs the extra `aws`: pip install 'integration-server[aws]'") from error
    return await open_aws_kms(key_ids)


def key_rotation_job(
    settings: Settings, database: Database, keyring: Keyring, due_work: DueWork, trail: AuditTrail, clock: Clock
) -> DueJob | None:
    """The background job that replaces old data keys, or None where `DATA_KEY_MAX_AGE_DAYS` is 0."""
    if not settings.data_key_max_age:
        return None

    async def record_audit(description: str) -> None:
        await trail.record(AuditEntry(clock(), SERVER, Action.CHANGE_KEYS, purpose=description))

    rotation = AgeBasedRotation(
        database,
        Rotation(database, keyring, activation_delay=settings.data_key_activation, record_audit=record_audit),
        due_work,
        max_age=settings.data_key_max_age,
    )
    return DueJob(JobKind.KEY_ROTATION, rotation.run, CLAIM_DURATION, needs_provider=False)
