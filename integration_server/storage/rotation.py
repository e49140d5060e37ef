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
from integration_server.storage.data_keys import count_encrypted_values, describe_data_keys
from integration_server.storage.encrypted_columns import ENCRYPTED_COLUMNS, EncryptedColumn
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyringError
from integration_server.storage.keyring import Keyring
from integration_server.storage.tables import DataKeyState, data_keys

_BATCH = 100
"""Values per transaction, which takes milliseconds. It delays writers of these rows; with SQLite, every writer."""

_SLICE = 25
"""Values between which other tasks of the event loop get their turn: some two milliseconds."""

CLAIM_DURATION = timedelta(minutes=1)
"""The claim of the background job, longer than any step of a rotation; a crashed server's claim expires after it."""

_CHECK_INTERVAL = timedelta(seconds=30)  # an old data key is detected within this time
_DUTY_CYCLE = 0.1  # the share of time for re-encryption in the background: RPCs should not become slower
_POLL_INTERVAL = 1.0  # seconds between reads of the database's clock
_RETRY_INTERVAL = 0.1  # seconds until locked rows are tried again: transactions take milliseconds


@dataclass(slots=True)
class RotationProgress:
    """The progress of a rotation: `done` of `total` values are re-encrypted, the last batch in `elapsed` seconds.

    While the rotation waits for the key's activation, `remaining` is the time left. `unreadable` names the rows whose
    values cannot be decrypted.
    """

    total: int = 0
    done: int = 0
    elapsed: float = 0
    remaining: timedelta = timedelta(0)
    unreadable: list[str] = field(default_factory=list)


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


@dataclass(frozen=True, slots=True)
class Rotation:
    """Announces a data key, waits until all servers know it, and re-encrypts the values of other keys with it."""

    database: Database
    keyring: Keyring
    activation_delay: timedelta
    record_audit: AuditRecorder
    batch: int = _BATCH
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def rotate(self, on_progress: ProgressCallback, *, new_key: bool = True) -> RotationResult:
        """Rotate to a new data key, or to the one that an unfinished rotation has announced.

        Without `new_key` it always rotates to the newest one. Raises `KeyringError` or `StoreUnavailable`; the next
        call continues the rotation.
        """
        key_id = await self._announce_key(new_key=new_key)
        await self._wait(key_id, timedelta(0), on_progress)
        await self.keyring.reload()
        if self.keyring.active_key_id != key_id:
            raise KeyringError(f"data key {key_id} is not the active key: another has replaced it")
        first = await self._reencrypt(key_id, on_progress)
        # Until then, a server that has not read the keys yet may encrypt with the previous key.
        await self._wait(key_id, self.activation_delay, on_progress)
        last = await self._reencrypt(key_id, on_progress)
        # Before the mark: a crash in between repeats the audit entry, and does not lose it.
        await self.record_audit(f"rotate to {key_id}")
        await self._mark_complete(key_id)
        return RotationResult(key_id, first.done + last.done, last.unreadable)

    async def _announce_key(self, *, new_key: bool) -> str:
        newest = (await describe_data_keys(self.database))[-1]
        if not (newest.is_rotation_complete and new_key):
            return newest.key_id
        key_id = await self.keyring.add_data_key(self.activation_delay)
        await self.record_audit(f"add {key_id}")
        return key_id

    async def _wait(self, key_id: str, since_active: timedelta, on_progress: ProgressCallback) -> None:
        """Wait until the key has been active for `since_active`, on the database's clock."""
        while True:
            keys = {key.key_id: key for key in await describe_data_keys(self.database)}
            if key_id not in keys:
                raise KeyringError(f"data key {key_id} was removed during the rotation")
            remaining = keys[key_id].active_time + since_active - keys[key_id].now
            if remaining <= timedelta(0):
                return
            await on_progress(RotationProgress(remaining=remaining))
            await self.pause(min(remaining.total_seconds(), _POLL_INTERVAL))

    async def _mark_complete(self, key_id: str) -> None:
        complete = update(data_keys).where(data_keys.c.key_id == key_id).values(state=DataKeyState.COMPLETE.value)
        await self.keyring.change(lambda connection: connection.execute(complete))

    # --- re-encryption -----------------------------------------------------------------------------------------------

    async def _reencrypt(self, key_id: str, on_progress: ProgressCallback) -> RotationProgress:
        """Re-encrypt until no decryptable value of another key is left, including rows that were locked."""
        progress = RotationProgress(total=await self._count_remaining(key_id))
        remaining = progress.total
        while remaining > len(progress.unreadable):
            progress.unreadable.clear()
            for other in await self._replaced_key_ids(key_id):
                for column in ENCRYPTED_COLUMNS:
                    await self._reencrypt_column(column, other, progress, on_progress)
            remaining = await self._count_remaining(key_id)
            await self.pause(_RETRY_INTERVAL if remaining > len(progress.unreadable) else 0)  # rows were locked
        return progress

    async def _reencrypt_column(
        self, column: EncryptedColumn, key_id: str, progress: RotationProgress, on_progress: ProgressCallback
    ) -> None:
        last = None
        while True:
            batch_start = time.monotonic()
            rows = await self._reencrypt_batch(column, key_id, last, progress)
            progress.elapsed = time.monotonic() - batch_start
            await on_progress(progress)
            if not rows:
                return
            last = rows[-1].row_id

    async def _reencrypt_batch(
        self, column: EncryptedColumn, key_id: str, last: object, progress: RotationProgress
    ) -> Sequence[Row[Any]]:
        """Re-encrypt the next unlocked rows after `last`, and return them.

        A value that has changed since it was read stays. The version is unchanged, so that a refresh in progress can
        still commit.
        """
        rows: Sequence[Row[Any]]
        query = column.rows_encrypted_with(key_id).order_by(column.row_id).limit(self.batch)
        if last is not None:
            query = query.where(column.row_id > last)
        if self.database.has_one_writer:
            # Read and encrypted without the lock that all writers share: they wait for the replacement only.
            rows = await self.database.fetch(query)
            changes = await self._reencrypted(column, rows, progress)
            async with self.database.write_transaction() as connection:
                progress.done += await column.replace_values(connection, changes)
            return rows
        # Locked from the read to the write, so that the write waits for no row: waiting while holding locks can
        # deadlock. Locked rows are skipped.
        query = query.with_for_update(skip_locked=True, key_share=True)
        async with self.database.write_transaction() as connection:
            rows = (await connection.execute(query)).all()
            changes = await self._reencrypted(column, rows, progress)
            progress.done += await column.replace_values(connection, changes)
        return rows

    async def _reencrypted(
        self, column: EncryptedColumn, rows: Sequence[Row[Any]], progress: RotationProgress
    ) -> Sequence[tuple[Any, bytes, bytes]]:
        """The id, the present and the new value of each row that can be decrypted."""
        changes = []
        for number, row in enumerate(rows, 1):
            associated_data = column.associated_data(row)
            try:
                plaintext = await self.keyring.decrypt(row.value, associated_data)
            except CredentialsUnreadable:
                progress.unreadable.append(f"{column.name} of {row.row_id}")
            else:
                changes.append((row.row_id, row.value, await self.keyring.encrypt(plaintext, associated_data)))
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return changes

    async def _replaced_key_ids(self, key_id: str) -> Sequence[str]:
        """The ids of the keys that this one replaces."""
        keys = [key.key_id for key in await describe_data_keys(self.database)]
        return keys[: keys.index(key_id)]

    async def _count_remaining(self, key_id: str) -> int:
        others = await self._replaced_key_ids(key_id)
        return sum([await count_encrypted_values(self.database, other) for other in others])


@dataclass(frozen=True, slots=True)
class AgeBasedRotation:
    """The background job that rotates a data key of a certain age and finishes rotations that were interrupted.

    One process at a time runs it: it holds the claim of the job's row and renews it between transactions.
    """

    database: Database
    rotation: Rotation
    due_work: DueWork
    max_age: timedelta
    check_interval: timedelta = _CHECK_INTERVAL
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self, claim: Claim[None]) -> bool:
        """Rotate if a key is due: the handler of the background job. The next check is due after `check_interval`."""
        keys = await describe_data_keys(self.database)
        if keys and (not keys[-1].is_rotation_complete or keys[-1].active_time + self.max_age <= keys[-1].now):
            claim = await self._rotate(claim)
        await self.due_work.postpone(claim, self.check_interval)
        return True

    async def _rotate(self, claim: Claim[None]) -> Claim[None]:
        """Rotate until the end or the loss of the claim. Returns the claim as it was last renewed."""

        async def on_progress(step: RotationProgress) -> None:
            nonlocal claim
            renewed = await self.due_work.postpone(claim, CLAIM_DURATION)
            if renewed is None:
                raise _ClaimLost
            claim = renewed
            await self.pause(step.elapsed * (1 / _DUTY_CYCLE - 1))

        log = structlog.get_logger(__name__)
        log.info("data_key_rotation_started")
        try:
            rotated = await self.rotation.rotate(on_progress)
        except _ClaimLost:
            log.info("rotation_claim_lost")
            return claim
        log.info("data_key_rotated", key_id=rotated.key_id, values=rotated.reencrypted)
        if rotated.unreadable:
            log.error("decryption_failed", rows=rotated.unreadable[:10], count=len(rotated.unreadable))
        return claim


class _ClaimLost(Exception):
    """Another process has claimed the rotation."""
