"""Rotating the data key while everything goes on: docs/keys.md tells the steps, and what a crash leads to.

What is still to be done is what the rows say: each sealed value begins with the id of its data key. So whoever comes
next, after a crash or at the same time, goes on where the rows are, and nothing else has to be remembered.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Row, update

from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.storage.claims import WorkClaim
from integration_server.storage.data_keys import DataKey, describe_data_keys
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyringError
from integration_server.storage.keyring import Keyring
from integration_server.storage.sealed_columns import SEALED_COLUMNS, SealedColumn, count_values
from integration_server.storage.tables import DataKeyState, data_keys

_BATCH = 100
"""Values a transaction: some milliseconds, for which nobody waits who does not want one of these rows. (With SQLite
every writer does.)"""

_LOOK_EVERY = 1.0  # seconds between looks at the database's clock
_AGAIN = 0.1  # seconds until rows that others held are tried again: transactions take milliseconds


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a rotation: `done` of `total` values are re-sealed, the last ones in `took` seconds.

    While a time is waited for, `left` says how much of it is.
    """

    done: int = 0
    total: int = 0
    took: float = 0
    left: timedelta = timedelta(0)


AfterStep = Callable[[Step], Awaitable[None]]
"""Called between transactions; waits as long as others are to have the database. What it raises ends the rotation."""


Tell = Callable[[str], Awaitable[object]]
"""Called with what was done with which key, for the audit log."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """What became of a rotation. `unreadable` names rows whose value does not open, and stays as it is."""

    key_id: str
    resealed: int
    unreadable: Sequence[str]


@dataclass(slots=True)
class _Tally:
    total: int
    done: int = 0
    unreadable: list[str] = field(default_factory=list)


class Rotation:
    """Announces a data key, waits until all servers know it, and re-seals with it what others have sealed."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        *,
        activation: timedelta,
        tell: Tell,
        batch: int = _BATCH,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._activation = activation
        self._tell = tell
        self._batch = batch
        self._pause = pause

    async def rotate(self, after_step: AfterStep, *, new_key: bool = True) -> Rotated:
        """Rotate to a new data key, or to the one that an unfinished rotation has announced.

        Without `new_key` the newest one is taken in any case. Raises `KeyringError` or `StoreUnavailable`; do it again
        then, to go on.
        """
        key_id = await self._begin(new_key=new_key)
        await self._wait(key_id, timedelta(0), after_step)
        await self._keyring.reload()
        if self._keyring.active_key_id != key_id:
            raise KeyringError(f"data key {key_id} does not seal here: another has taken its place")
        first = await self._reseal(key_id, after_step)
        # A server that has not looked yet may still seal with the former key, until then.
        await self._wait(key_id, self._activation, after_step)
        last = await self._reseal(key_id, after_step)
        await self._tell(f"rotate to {key_id}")  # rather twice than not at all: until it is settled, somebody goes on
        await self._settle(key_id)
        return Rotated(key_id, first.done + last.done, last.unreadable)

    async def _begin(self, *, new_key: bool) -> str:
        newest = (await describe_data_keys(self._database))[-1]
        if not (newest.is_settled and new_key):
            return newest.key_id
        key_id = await self._keyring.add_data_key(self._activation)
        await self._tell(f"add {key_id}")
        return key_id

    async def _wait(self, key_id: str, since_active: timedelta, after_step: AfterStep) -> None:
        """Wait until the key has been active for this long, by the database's clock."""
        while True:
            keys = {key.key_id: key for key in await describe_data_keys(self._database)}
            if key_id not in keys:
                raise KeyringError(f"data key {key_id} was removed meanwhile")
            left = keys[key_id].active_time + since_active - keys[key_id].now
            if left <= timedelta(0):
                return
            await after_step(Step(left=left))
            await self._pause(min(left.total_seconds(), _LOOK_EVERY))

    async def _settle(self, key_id: str) -> None:
        settle = update(data_keys).where(data_keys.c.key_id == key_id).values(state=DataKeyState.SETTLED.value)
        async with self._database.writing() as connection:
            await connection.execute(settle)

    # --- re-sealing --------------------------------------------------------------------------------------------------

    async def _reseal(self, key_id: str, after_step: AfterStep) -> _Tally:
        """Re-seal until no value that opens is left under another key, also those that others held meanwhile."""
        tally = _Tally(total=await self._count_under_others(key_id))
        left = tally.total
        while left > len(tally.unreadable):
            tally.unreadable.clear()
            for other in await self._others(key_id):
                for column in SEALED_COLUMNS:
                    await self._reseal_column(column, other, tally, after_step)
            left = await self._count_under_others(key_id)
            await self._pause(_AGAIN if left > len(tally.unreadable) else 0)  # somebody holds rows
        return tally

    async def _reseal_column(self, column: SealedColumn, key_id: str, tally: _Tally, after_step: AfterStep) -> None:
        last = None
        while True:
            begun = time.monotonic()
            rows = await self._reseal_batch(column, key_id, last, tally)
            await after_step(Step(tally.done, tally.total, took=time.monotonic() - begun))
            if not rows:
                return
            last = rows[-1].row_id

    async def _reseal_batch(self, column: SealedColumn, key_id: str, last: object, tally: _Tally) -> Sequence[Row[Any]]:
        """Re-seal the next rows after `last` that nobody else is changing; which these were.

        They are locked from reading to writing, so that no refresh is overwritten. Rows that are locked already are
        passed over: whoever waits while holding rows can be part of a deadlock. The version stays, since a refresh
        that is under way must find the one that it has read.
        """
        query = column.rows_under(key_id).order_by(column.row_id).limit(self._batch)
        if last is not None:
            query = query.where(column.row_id > last)
        query = query.with_for_update(skip_locked=True, key_share=True)
        async with self._database.writing() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
            changes = [change for row in rows if (change := await self._resealed(column, row, tally)) is not None]
            if changes:
                await connection.execute(column.replacement(), changes)
        tally.done += len(changes)
        return rows

    async def _resealed(self, column: SealedColumn, row: Row[Any], tally: _Tally) -> dict[str, Any] | None:
        place = column.place(row)
        try:
            plaintext = await self._keyring.open(row.value, place)
        except CredentialsUnreadable:
            tally.unreadable.append(f"{column.name} of {row.row_id}")
            return None
        return {"id": row.row_id, "old": row.value, "new": await self._keyring.seal(plaintext, place)}

    async def _others(self, key_id: str) -> Sequence[str]:
        """The keys that this one replaces."""
        keys = [key.key_id for key in await describe_data_keys(self._database)]
        return keys[: keys.index(key_id)]

    async def _count_under_others(self, key_id: str) -> int:
        others = await self._others(key_id)
        async with self._database.reading() as connection:
            return sum([sum((await count_values(connection, other)).values()) for other in others])


class RotationByAge:
    """Rotates when the newest data key is too old, or a rotation was left unfinished; one server at a time does."""

    def __init__(
        self,
        database: Database,
        rotation: Rotation,
        claim: WorkClaim,
        *,
        max_age: timedelta,
        share: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`share` is the part of the time that re-sealing may take; in the rest, others have the database."""
        self._database = database
        self._rotation = rotation
        self._claim = claim
        self._max_age = max_age
        self._share = share
        self._pause = pause
        self._log = structlog.get_logger(__name__)

    async def look(self) -> None:
        """Rotate if it is time and nobody else does."""
        keys = await describe_data_keys(self._database)
        if not keys or not self._is_due(keys[-1]) or not await self._claim.renew():
            return
        try:
            self._log.info("rotating_data_key")
            rotated = await self._rotation.rotate(self._after_step)
        except _ClaimLost:
            self._log.info("rotation_taken_over")
        else:
            self._log.info("data_key_rotated", key_id=rotated.key_id, values=rotated.resealed)
            if rotated.unreadable:
                self._log.error("values_unreadable", rows=rotated.unreadable[:10], count=len(rotated.unreadable))
        finally:
            with suppress(StoreUnavailable):  # it lapses by itself
                await self._claim.release()

    def _is_due(self, newest: DataKey) -> bool:
        return not newest.is_settled or newest.active_time + self._max_age <= newest.now

    async def _after_step(self, step: Step) -> None:
        if not await self._claim.renew():
            raise _ClaimLost
        await self._pause(step.took * (1 / self._share - 1))


class _ClaimLost(Exception):
    """Another server does the work by now."""
