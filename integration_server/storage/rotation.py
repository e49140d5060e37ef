"""Online rotation of the data key; docs/key-management.md has the steps and the effects of a crash.

Each encrypted value begins with the id of its data key, so the rows themselves say what remains to be re-encrypted. A
rotation needs no other state: it continues after a crash, and several rotations can run at the same time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Row, update

from integration_server.domain.errors import CredentialsUnreadable
from integration_server.service.background.ports import Claim, DueWork
from integration_server.storage.data_keys import DataKey, describe_data_keys
from integration_server.storage.encrypted_columns import ENCRYPTED_COLUMNS, EncryptedColumn, count_values
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyringError
from integration_server.storage.keyring import Keyring
from integration_server.storage.tables import DataKeyState, data_keys

_BATCH = 100
"""Values per transaction, which takes milliseconds. It delays writers of these rows; with SQLite, every writer."""

_POLL_INTERVAL = 1.0  # seconds between reads of the database's clock
_RETRY_INTERVAL = 0.1  # seconds until locked rows are tried again: transactions take milliseconds


@dataclass(frozen=True, slots=True)
class RotationProgress:
    """A step of a rotation: `done` of `total` values are re-encrypted, the last batch in `elapsed` seconds.

    While the rotation waits for the key's activation, `remaining` is the time left.
    """

    done: int = 0
    total: int = 0
    elapsed: float = 0
    remaining: timedelta = timedelta(0)


ProgressCallback = Callable[[RotationProgress], Awaitable[None]]
"""Called between transactions. It may wait, to leave the database to others. An exception from it ends the rotation."""


AuditRecorder = Callable[[str], Awaitable[object]]
"""Called with the operation and the key id, for the audit log."""


@dataclass(frozen=True, slots=True)
class RotationResult:
    """The outcome of a rotation. `unreadable` names the rows whose values cannot be decrypted; they stay unchanged."""

    key_id: str
    reencrypted: int
    unreadable: Sequence[str]


@dataclass(slots=True)
class _Progress:
    total: int
    done: int = 0
    unreadable: list[str] = field(default_factory=list)


class Rotation:
    """Announces a data key, waits until all servers know it, and re-encrypts the values of other keys with it."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        *,
        activation_delay: timedelta,
        record_audit: AuditRecorder,
        batch: int = _BATCH,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._activation_delay = activation_delay
        self._record_audit = record_audit
        self._batch = batch
        self._pause = pause

    async def rotate(self, on_progress: ProgressCallback, *, new_key: bool = True) -> RotationResult:
        """Rotate to a new data key, or to the one that an unfinished rotation has announced.

        Without `new_key` it always rotates to the newest one. Raises `KeyringError` or `StoreUnavailable`; the next
        call continues the rotation.
        """
        key_id = await self._announce_key(new_key=new_key)
        await self._wait(key_id, timedelta(0), on_progress)
        await self._keyring.reload()
        if self._keyring.active_key_id != key_id:
            raise KeyringError(f"data key {key_id} is not the active key: another has replaced it")
        first = await self._reencrypt(key_id, on_progress)
        # Until then, a server that has not read the keys yet may encrypt with the previous key.
        await self._wait(key_id, self._activation_delay, on_progress)
        last = await self._reencrypt(key_id, on_progress)
        # Before the mark: a crash in between repeats the audit entry, and does not lose it.
        await self._record_audit(f"rotate to {key_id}")
        await self._mark_complete(key_id)
        return RotationResult(key_id, first.done + last.done, last.unreadable)

    async def _announce_key(self, *, new_key: bool) -> str:
        newest = (await describe_data_keys(self._database))[-1]
        if not (newest.is_rotation_complete and new_key):
            return newest.key_id
        key_id = await self._keyring.add_data_key(self._activation_delay)
        await self._record_audit(f"add {key_id}")
        return key_id

    async def _wait(self, key_id: str, since_active: timedelta, on_progress: ProgressCallback) -> None:
        """Wait until the key has been active for `since_active`, on the database's clock."""
        while True:
            keys = {key.key_id: key for key in await describe_data_keys(self._database)}
            if key_id not in keys:
                raise KeyringError(f"data key {key_id} was removed during the rotation")
            remaining = keys[key_id].active_time + since_active - keys[key_id].now
            if remaining <= timedelta(0):
                return
            await on_progress(RotationProgress(remaining=remaining))
            await self._pause(min(remaining.total_seconds(), _POLL_INTERVAL))

    async def _mark_complete(self, key_id: str) -> None:
        complete = update(data_keys).where(data_keys.c.key_id == key_id).values(state=DataKeyState.COMPLETE.value)
        await self._database.write(complete)

    # --- re-encryption -----------------------------------------------------------------------------------------------

    async def _reencrypt(self, key_id: str, on_progress: ProgressCallback) -> _Progress:
        """Re-encrypt until no decryptable value of another key is left, including rows that were locked."""
        progress = _Progress(total=await self._count_remaining(key_id))
        remaining = progress.total
        while remaining > len(progress.unreadable):
            progress.unreadable.clear()
            for other in await self._replaced_key_ids(key_id):
                for column in ENCRYPTED_COLUMNS:
                    await self._reencrypt_column(column, other, progress, on_progress)
            remaining = await self._count_remaining(key_id)
            await self._pause(_RETRY_INTERVAL if remaining > len(progress.unreadable) else 0)  # rows were locked
        return progress

    async def _reencrypt_column(
        self, column: EncryptedColumn, key_id: str, progress: _Progress, on_progress: ProgressCallback
    ) -> None:
        last = None
        while True:
            begun = time.monotonic()
            rows = await self._reencrypt_batch(column, key_id, last, progress)
            await on_progress(RotationProgress(progress.done, progress.total, elapsed=time.monotonic() - begun))
            if not rows:
                return
            last = rows[-1].row_id

    async def _reencrypt_batch(
        self, column: EncryptedColumn, key_id: str, last: object, progress: _Progress
    ) -> Sequence[Row[Any]]:
        """Re-encrypt the next unlocked rows after `last`, and return them.

        They are locked from the read to the write, so that no refresh is overwritten. Locked rows are skipped: waiting
        while holding locks can deadlock. The version is unchanged, so that a refresh in progress can still commit.
        """
        query = column.rows_encrypted_with(key_id).order_by(column.row_id).limit(self._batch)
        if last is not None:
            query = query.where(column.row_id > last)
        query = query.with_for_update(skip_locked=True, key_share=True)
        async with self._database.write_transaction() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
            changes = [change for row in rows if (change := await self._reencrypted(column, row, progress)) is not None]
            if changes:
                await connection.execute(column.replacement(), changes)
        progress.done += len(changes)
        return rows

    async def _reencrypted(self, column: EncryptedColumn, row: Row[Any], progress: _Progress) -> dict[str, Any] | None:
        associated_data = column.associated_data(row)
        try:
            plaintext = await self._keyring.decrypt(row.value, associated_data)
        except CredentialsUnreadable:
            progress.unreadable.append(f"{column.name} of {row.row_id}")
            return None
        return {"id": row.row_id, "old": row.value, "new": await self._keyring.encrypt(plaintext, associated_data)}

    async def _replaced_key_ids(self, key_id: str) -> Sequence[str]:
        """The ids of the keys that this one replaces."""
        keys = [key.key_id for key in await describe_data_keys(self._database)]
        return keys[: keys.index(key_id)]

    async def _count_remaining(self, key_id: str) -> int:
        others = await self._replaced_key_ids(key_id)
        async with self._database.read_connection() as connection:
            return sum([sum((await count_values(connection, other)).values()) for other in others])


class AgeBasedRotation:
    """The background job that rotates a data key of a certain age and finishes rotations that were interrupted.

    One process at a time runs it: it holds the claim of the job's row and renews it between transactions. `duty_cycle`
    is the share of time for re-encryption; the database is free for other work for the rest.
    """

    def __init__(
        self,
        database: Database,
        rotation: Rotation,
        due_work: DueWork,
        *,
        max_age: timedelta,
        check_interval: timedelta,
        claim_duration: timedelta,
        duty_cycle: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._rotation = rotation
        self._due_work = due_work
        self._max_age = max_age
        self._check_interval = check_interval
        self._claim_duration = claim_duration
        self._duty_cycle = duty_cycle
        self._pause = pause
        self._log = structlog.get_logger(__name__)

    async def run(self, claim: Claim[None]) -> bool:
        """Rotate if a key is due: the handler of the background job. The next check is due after `check_interval`."""
        keys = await describe_data_keys(self._database)
        if keys and self._is_due(keys[-1]):
            claim = await self._rotate(claim)
        await self._due_work.postpone(claim, self._check_interval)
        return True

    def _is_due(self, newest: DataKey) -> bool:
        return not newest.is_rotation_complete or newest.active_time + self._max_age <= newest.now

    async def _rotate(self, claim: Claim[None]) -> Claim[None]:
        """Rotate until the end or the loss of the claim. Returns the claim as it was last renewed."""

        async def on_progress(step: RotationProgress) -> None:
            nonlocal claim
            renewed = await self._due_work.postpone(claim, self._claim_duration)
            if renewed is None:
                raise _ClaimLost
            claim = renewed
            await self._pause(step.elapsed * (1 / self._duty_cycle - 1))

        self._log.info("data_key_rotation_started")
        try:
            rotated = await self._rotation.rotate(on_progress)
        except _ClaimLost:
            self._log.info("rotation_claim_lost")
            return claim
        self._log.info("data_key_rotated", key_id=rotated.key_id, values=rotated.reencrypted)
        if rotated.unreadable:
            self._log.error("decryption_failed", rows=rotated.unreadable[:10], count=len(rotated.unreadable))
        return claim


class _ClaimLost(Exception):
    """Another process has claimed the rotation."""
