"""Re-sealing under load, on both databases: nothing is overwritten, nothing is lost, whoever dies or helps."""

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import LargeBinary, insert, select, text, update

from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.domain.integration import Integration
from integration_server.service.ports import Place
from integration_server.service.sealing import (
    callback_place,
    chain_key_place,
    credentials_place,
    payload_place,
    verifier_place,
    webhook_secret_place,
)
from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.claims import WorkClaim
from integration_server.storage.clock import DatabaseTime
from integration_server.storage.data_keys import describe_data_keys, remove_data_key, rewrap
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.key_encryption import KeyringError
from integration_server.storage.keyring import Keyring
from integration_server.storage.rotation import Rotated, Rotation, RotationByAge, Step
from integration_server.storage.sealed_columns import SEALED_COLUMNS
from integration_server.storage.tables import (
    audit_chains,
    data_keys,
    integrations,
    metadata,
    revocations,
    webhook_events,
    webhook_secrets,
)
from tests.contracts.store_contract import LATER, NOW, account, new_attempt, new_credentials, new_integration
from tests.keyrings import KEY, KEY_ID, OTHER_KEY, OTHER_KEY_ID, local, opened, settle

AT_ONCE = timedelta(0)


async def nobody(_what: str) -> None:
    """Who is told."""


async def no_wait(_step: Step) -> None:
    """For a rotation that has the database for itself."""


@pytest.fixture
async def keyring(database: Database) -> Keyring:
    return await opened(database)


@pytest.fixture
def rotation(database: Database, keyring: Keyring) -> Rotation:
    return Rotation(database, keyring, activation=AT_ONCE, tell=nobody, batch=7)


async def stored(database: Database, keyring: Keyring, content: bytes, number: int = 0) -> Integration:
    """A connected integration whose sealed credentials have this content."""
    new = new_integration(uid=f"uid-{number}-{os.urandom(4).hex()}")
    sealed = await keyring.seal(content, credentials_place(new.uid, new.user_id, new.integration_type))
    row = await SqlIntegrations(database).add_connected(new, account(None), new_credentials(sealed), NOW)
    assert row is not None
    return row


async def content_of(database: Database, keyring: Keyring, integration: Integration) -> bytes:
    """What the row's credentials open to."""
    row = await SqlIntegrations(database).find(integration.integration_id, integration.user_id)
    assert row is not None
    return await keyring.open(row.sealed_credentials or b"", place_of(integration))


def place_of(integration: Integration) -> Place:
    return credentials_place(integration.uid, integration.user_id, integration.integration_type)


async def store_everywhere(database: Database, keyring: Keyring) -> None:
    """A value in every sealed column; its content is the column's name."""
    row = await stored(database, keyring, b"integrations.sealed_credentials")
    revoked = await keyring.seal(b"revocations.sealed_credentials", place_of(row))
    async with database.writing() as connection:
        await connection.execute(
            insert(revocations).values(
                uid=row.uid,
                user_id=row.user_id,
                integration_type=row.integration_type,
                sealed_credentials=revoked,
                create_time=NOW,
                due_time=NOW,
            )
        )
    await store_webhooks(database, keyring, row)
    chain_id = secrets.token_hex(16)
    chain_key = await keyring.seal(b"audit_chains.sealed_key", chain_key_place(chain_id))
    async with database.writing() as connection:
        await connection.execute(
            insert(audit_chains).values(
                chain_id=chain_id,
                number=secrets.randbits(62),
                sealed_key=chain_key,
                begin_time=NOW,
                entries=0,
                head=b"",
                seal=b"",
            )
        )
    attempt = new_attempt()
    names = (attempt.attempt_id, attempt.user_id, attempt.integration_type)
    verifier = await keyring.seal(b"connection_attempts.sealed_verifier", verifier_place(*names))
    callback = await keyring.seal(b"connection_attempts.sealed_callback", callback_place(*names))
    await SqlAttempts(database).begin(replace(attempt, sealed_verifier=verifier), new_integration())
    await SqlAttempts(database).hold(attempt.attempt_id, callback, NOW)


async def store_webhooks(database: Database, keyring: Keyring, row: Integration) -> None:
    """The same for what belongs to webhooks."""
    owner = {
        "integration_id": row.integration_id,
        "uid": row.uid,
        "user_id": row.user_id,
        "integration_type": row.integration_type,
    }
    secret_place = webhook_secret_place(row.uid, row.user_id, row.integration_type)
    event_place = payload_place(row.uid, row.user_id, row.integration_type)
    async with database.writing() as connection:
        await connection.execute(
            insert(webhook_secrets).values(
                **owner,
                sealed_secret=await keyring.seal(b"webhook_secrets.sealed_secret", secret_place),
                sealed_former_secret=await keyring.seal(b"webhook_secrets.sealed_former_secret", secret_place),
                set_time=NOW,
            )
        )
        await connection.execute(
            insert(webhook_events).values(
                **owner,
                number=1,
                event_id="event",
                event_type="type",
                receive_time=NOW,
                sealed_payload=await keyring.seal(b"webhook_events.sealed_payload", event_place),
            )
        )


async def values_under(database: Database, key_id: str) -> dict[str, list[Any]]:
    """The rows of each sealed column whose value has this data key."""
    async with database.reading() as connection:
        return {
            column.name: list((await connection.execute(column.rows_under(key_id))).all()) for column in SEALED_COLUMNS
        }


async def opened_under(database: Database, keyring: Keyring, key_id: str) -> dict[str, list[bytes]]:
    """The same, opened."""
    rows = await values_under(database, key_id)
    return {
        column.name: [await keyring.open(row.value, column.place(row)) for row in rows[column.name]]
        for column in SEALED_COLUMNS
    }


def test_every_sealed_column_is_known() -> None:
    sealed = {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, LargeBinary) and not column.name.startswith("wrapped_")
        if column.name not in {"mac", "head", "seal"}  # of the audit log, which anybody may see
    }
    assert {column.name for column in SEALED_COLUMNS} == sealed


class TestRotating:
    async def test_values_of_every_column_are_resealed(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        await store_everywhere(database, keyring)
        old = keyring.active_key_id
        assert await rotation.rotate(no_wait) == Rotated(keyring.active_key_id, len(SEALED_COLUMNS), [])
        assert keyring.active_key_id != old
        assert not any((await values_under(database, old)).values())
        assert await opened_under(database, keyring, keyring.active_key_id) == {
            column.name: [column.name.encode()] for column in SEALED_COLUMNS
        }
        assert [key.is_settled for key in await describe_data_keys(database)] == [True, True]

    async def test_nothing_else_of_a_row_changes(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        row = await stored(database, keyring, b"content")
        await rotation.rotate(no_wait)
        after = await SqlIntegrations(database).find(row.integration_id, row.user_id)
        assert after is not None
        assert after.integration == row

    async def test_the_former_key_is_removed_and_everything_still_reads(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        rows = [await stored(database, keyring, b"%d" % number, number) for number in range(20)]
        old = keyring.active_key_id
        await rotation.rotate(no_wait)
        await remove_data_key(database, old, force=True)
        anew = await opened(database)
        assert [await content_of(database, anew, row) for row in rows] == [b"%d" % number for number in range(20)]
        assert [key.key_id for key in await describe_data_keys(database)] == [keyring.active_key_id]

    async def test_the_key_is_not_used_before_its_time(self, database: Database, keyring: Keyring) -> None:
        await stored(database, keyring, b"content")
        old = keyring.active_key_id
        await replaced_since(database, old, timedelta(days=1))
        waits: list[float] = []

        async def wait(seconds: float) -> None:
            """Instead of waiting, have it that the time has come."""
            if seconds:
                waits.append(seconds)
                assert keyring.active_key_id == old or not any((await values_under(database, old)).values())
                earlier = DatabaseTime(timedelta(seconds=-30 * len(waits)))
                newest = (await describe_data_keys(database))[-1].key_id
                async with database.writing() as connection:
                    statement = update(data_keys).where(data_keys.c.key_id == newest).values(active_time=earlier)
                    await connection.execute(statement)

        rotation = Rotation(database, keyring, activation=timedelta(seconds=40), tell=nobody, pause=wait)
        steps: list[Step] = []

        async def note(step: Step) -> None:
            steps.append(step)

        await rotation.rotate(note)
        assert len(waits) >= 2  # until it is known to all, and until none seals with the former one
        assert timedelta(seconds=35) < steps[0].left <= timedelta(seconds=40)

    async def test_an_unfinished_rotation_is_finished_and_a_finished_one_is_followed_by_another(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        row = await stored(database, keyring, b"content")
        announced = await keyring.add_data_key()
        assert (await rotation.rotate(no_wait)).key_id == announced
        assert (await rotation.rotate(no_wait)).key_id != announced
        assert len(await describe_data_keys(database)) == 3
        assert await content_of(database, keyring, row) == b"content"

    async def test_without_a_new_key_stragglers_are_resealed_with_the_newest(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        straggler = await opened(database)
        await rotation.rotate(no_wait)
        row = await stored(database, straggler, b"late")
        assert await rotation.rotate(no_wait, new_key=False) == Rotated(keyring.active_key_id, 1, [])
        assert await content_of(database, keyring, row) == b"late"

    async def test_values_that_do_not_open_are_told_and_stay(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        rows = [await stored(database, keyring, b"%d" % number, number) for number in range(10)]
        old, broken = keyring.active_key_id, rows[4]
        async with database.writing() as connection:
            flipped = bytes.fromhex("01" + old) + bytes(40)
            where = integrations.c.integration_id == broken.integration_id
            await connection.execute(update(integrations).where(where).values(sealed_credentials=flipped))
        rotated = await rotation.rotate(no_wait)
        assert rotated.resealed == 9
        assert rotated.unreadable == [f"integrations.sealed_credentials of {broken.integration_id}"]
        (left,) = (await values_under(database, old))["integrations.sealed_credentials"]
        assert left.value == flipped
        with pytest.raises(KeyringError, match="still seals 1 of integrations"):
            await remove_data_key(database, old, force=True)

    async def test_a_key_is_told_of_when_it_is_there_and_when_it_has_taken_over(
        self, database: Database, keyring: Keyring
    ) -> None:
        told: list[str] = []

        async def tell(what: str) -> None:
            told.append(what)

        async def die(_step: Step) -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            await Rotation(database, keyring, activation=timedelta(seconds=1), tell=tell).rotate(die)
        key_id = (await describe_data_keys(database))[-1].key_id
        assert told == [f"add {key_id}"]
        await Rotation(database, keyring, activation=timedelta(seconds=1), tell=tell).rotate(no_wait)
        assert told == [f"add {key_id}", f"rotate to {key_id}"]

    async def test_what_cannot_be_told_of_is_not_settled(self, database: Database, keyring: Keyring) -> None:
        async def tell(_what: str) -> None:
            raise StoreUnavailable

        await keyring.add_data_key()
        with pytest.raises(StoreUnavailable):
            await Rotation(database, keyring, activation=AT_ONCE, tell=tell).rotate(no_wait)
        assert not (await describe_data_keys(database))[-1].is_settled

    async def test_several_at_once_help_each_other(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(open_database(database_url)) for _ in range(3)]
            keyrings = [await opened(database) for database in databases]
            rows = [await stored(databases[0], keyrings[0], b"%d" % number, number) for number in range(60)]
            rotations = [
                Rotation(database, keyring, activation=timedelta(seconds=1), tell=nobody, batch=5)
                for database, keyring in zip(databases, keyrings, strict=True)
            ]
            rotated = await asyncio.gather(
                *(rotation.rotate(no_wait) for rotation in rotations), return_exceptions=True
            )
            finished = [one for one in rotated if isinstance(one, Rotated)]
            assert finished
            assert len({one.key_id for one in finished}) == 1
            assert all(isinstance(one, Rotated | KeyringError) for one in rotated)  # begun at the same moment
            assert sum(one.resealed for one in finished) == 60
            assert [await content_of(databases[0], keyrings[0], row) for row in rows] == [
                b"%d" % number for number in range(60)
            ]

    async def test_rows_under_a_key_are_found_by_an_index(self, database: Database) -> None:
        """PostgreSQL is asked not to scan, which is cheapest in an empty table."""
        query = SEALED_COLUMNS[0].rows_under("41" * 8).order_by(integrations.c.integration_id).limit(5)
        async with database.writing() as connection:
            is_postgres = connection.dialect.name == "postgresql"
            if is_postgres:
                await connection.execute(text("SET LOCAL enable_seqscan = off"))
                await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
            options = {"literal_binds": True}
            written = query.compile(dialect=connection.dialect, compile_kwargs=options)
            plan = await connection.exec_driver_sql(f"EXPLAIN {'' if is_postgres else 'QUERY PLAN'} {written}")
            told = " ".join(str(row) for row in plan.all())
        assert "ix_integrations_data_key_id" in told
        assert "Sort" not in told
        assert "TEMP B-TREE" not in told


class Interrupted(Keyring):
    """A keyring that has something else happen while it seals."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def seal(self, plaintext: bytes, place: Place) -> bytes:
        """Sealed, after something else had the time to happen."""
        happening, self.meanwhile = self.meanwhile, None
        if happening is not None:
            await happening()
        return await super().seal(plaintext, place)


class TestRefreshingMeanwhile:
    """A refresh that is committed between the reading and the writing of a row is not overwritten."""

    async def refresh(self, database: Database, keyring: Keyring, row: Integration) -> None:
        sealed = await keyring.seal(b"refreshed", place_of(row))
        committed = await SqlIntegrations(database).commit_refresh(row, new_credentials(sealed), LATER)
        assert committed is not None

    async def test_it_waits_for_the_resealing_and_wins(self, database: Database, database_url: str) -> None:
        resealing = Interrupted(database, local(KEY), monotonic=time.monotonic)
        await resealing.prepare()
        async with open_database(database_url) as elsewhere:
            refreshing = await opened(elsewhere)
            row = await stored(database, refreshing, b"stale")
            tasks: list[asyncio.Task[None]] = []

            async def meanwhile() -> None:
                tasks.append(asyncio.create_task(self.refresh(elsewhere, refreshing, row)))
                await asyncio.wait(tasks, timeout=0.5)

            resealing.meanwhile = meanwhile
            await Rotation(database, resealing, activation=AT_ONCE, tell=nobody).rotate(no_wait)
            await asyncio.gather(*tasks)
            assert tasks
            assert await content_of(database, refreshing, row) == b"refreshed"

    async def test_without_holding_the_row_it_would_be_lost(self, database: Database, keyring: Keyring) -> None:
        """The twin: read, overtaken, written."""
        row = await stored(database, keyring, b"stale")
        before = await content_of(database, keyring, row)
        await self.refresh(database, keyring, row)
        again = await keyring.seal(before, place_of(row))
        where = integrations.c.integration_id == row.integration_id
        async with database.writing() as connection:
            await connection.execute(update(integrations).where(where).values(sealed_credentials=again))
        assert await content_of(database, keyring, row) == b"stale"

    @pytest.mark.postgres
    async def test_rows_that_others_hold_are_passed_over_and_done_later(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database, open_database(postgres_url) as elsewhere:
            keyring = await opened(database)
            rows = [await stored(database, keyring, b"%d" % number, number) for number in range(3)]
            old = keyring.active_key_id
            where = integrations.c.integration_id == rows[1].integration_id
            async with elsewhere.writing() as connection:
                await connection.execute(select(integrations.c.uid).where(where).with_for_update())
                rotating = asyncio.create_task(
                    Rotation(database, keyring, activation=AT_ONCE, tell=nobody).rotate(no_wait)
                )
                async with asyncio.timeout(20):
                    while len((await values_under(database, old))["integrations.sealed_credentials"]) != 1:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert not rotating.done()
            assert (await rotating).resealed == 3


class TestRemoving:
    async def test_not_the_one_that_seals_nor_one_that_is_announced(self, database: Database, keyring: Keyring) -> None:
        announced = await keyring.add_data_key(timedelta(minutes=1))
        for key_id in (keyring.active_key_id, announced):
            with pytest.raises(KeyringError, match="is the one that seals, or will"):
                await remove_data_key(database, key_id, force=True)

    async def test_not_one_that_is_unknown(self, database: Database, keyring: Keyring) -> None:
        with pytest.raises(KeyringError, match="there is no data key 0123456789abcdef"):
            await remove_data_key(database, "0123456789abcdef", force=True)
        assert await describe_data_keys(database)
        assert keyring.active_key_id

    @pytest.mark.parametrize("column", SEALED_COLUMNS, ids=lambda column: column.name)
    async def test_not_while_a_value_of_any_column_needs_it(
        self, database: Database, keyring: Keyring, column: Any
    ) -> None:
        await store_everywhere(database, keyring)
        old = keyring.active_key_id
        await keyring.add_data_key()
        for other in SEALED_COLUMNS:
            if other is not column:
                rows = (await values_under(database, old))[other.name]
                async with database.writing() as connection:
                    for row in rows:
                        new = await keyring.seal(b"", other.place(row))
                        await connection.execute(other.replacement(), {"id": row.row_id, "old": row.value, "new": new})
        with pytest.raises(KeyringError, match=f"still seals 1 of {column.name}: run"):
            await remove_data_key(database, old, force=True)

    async def test_for_a_day_only_by_force(self, database: Database, keyring: Keyring, rotation: Rotation) -> None:
        first = keyring.active_key_id
        await rotation.rotate(no_wait)
        second = keyring.active_key_id
        with pytest.raises(KeyringError, match="may be removed from"):
            await remove_data_key(database, first)
        await replaced_since(database, second, timedelta(hours=23, minutes=59))
        with pytest.raises(KeyringError, match="may be removed from"):
            await remove_data_key(database, first)
        await replaced_since(database, second, timedelta(hours=24, minutes=1))
        await remove_data_key(database, first)
        assert [key.key_id for key in await describe_data_keys(database)] == [second]


async def replaced_since(database: Database, key_id: str, age: timedelta) -> None:
    """Have it that this key has sealed for so long, after all others."""
    async with database.writing() as connection:
        await connection.execute(update(data_keys).values(active_time=DatabaseTime(-age - timedelta(days=1))))
        await connection.execute(
            update(data_keys).where(data_keys.c.key_id == key_id).values(active_time=DatabaseTime(-age))
        )


class TestSwapping:
    """What is stored in one place opens in no other, whatever the places have in common."""

    async def values(self, database: Database) -> list[tuple[str, str, bytes, Place]]:
        """Every stored value, with its data key, the name of its column, and its place."""
        found = []
        for key in await describe_data_keys(database):
            rows = await values_under(database, key.key_id)
            for column in SEALED_COLUMNS:
                found += [(key.key_id, column.name, row.value, column.place(row)) for row in rows[column.name]]
        return found

    @pytest.fixture
    async def stored_values(self, database: Database, keyring: Keyring) -> list[tuple[str, str, bytes, Place]]:
        """Three rows of each table under each of two data keys."""
        for _ in range(2):
            for _ in range(3):
                await store_everywhere(database, keyring)
            await keyring.add_data_key()
            await settle(database)
        values = await self.values(database)
        assert len(values) == 2 * 3 * len(SEALED_COLUMNS)
        return values

    async def test_every_pair_of_rows_and_columns(
        self, keyring: Keyring, stored_values: list[tuple[str, str, bytes, Place]]
    ) -> None:
        outcomes = []
        for (_, here, value, own), (_, there, _, place) in itertools.permutations(stored_values, 2):
            try:
                assert (await keyring.open(value, place)).decode() == here
            except CredentialsUnreadable:
                assert place != own
                outcomes.append("refused")
            else:
                assert place == own
                # The pairs that are meant: what was an integration's credentials waits to be revoked, and what was a
                # webhook's secret is good beside the one that came after.
                assert {here, there} in (
                    {"integrations.sealed_credentials", "revocations.sealed_credentials"},
                    {"webhook_secrets.sealed_secret", "webhook_secrets.sealed_former_secret"},
                )
                outcomes.append("opened")
        assert outcomes.count("opened") == 2 * 2 * 6
        assert len(outcomes) == len(stored_values) * (len(stored_values) - 1)

    async def test_every_pair_of_key_ids(
        self, keyring: Keyring, database: Database, stored_values: list[tuple[str, str, bytes, Place]]
    ) -> None:
        key_ids = [key.key_id for key in await describe_data_keys(database)]
        for own_id, name, value, place in stored_values:
            for key_id in key_ids:
                renamed = value[:1] + bytes.fromhex(key_id) + value[9:]
                if key_id == own_id:
                    assert (await keyring.open(renamed, place)).decode() == name
                    continue
                with pytest.raises(CredentialsUnreadable):
                    await keyring.open(renamed, place)

    async def test_every_byte_of_every_value(
        self, keyring: Keyring, stored_values: list[tuple[str, str, bytes, Place]]
    ) -> None:
        for _, name, value, place in stored_values:
            assert (await keyring.open(value, place)).decode() == name
            for position in range(len(value)):
                flipped = value[:position] + bytes([value[position] ^ 0xFF]) + value[position + 1 :]
                with pytest.raises(CredentialsUnreadable):
                    await keyring.open(flipped, place)

    async def test_wrapped_keys_of_every_pair_of_data_keys(
        self, database: Database, stored_values: list[tuple[str, str, bytes, Place]]
    ) -> None:
        assert stored_values
        keys = local(KEY)
        async with database.reading() as connection:
            rows = (await connection.execute(select(data_keys))).all()
        assert len(rows) == 3
        for one, another in itertools.permutations(rows, 2):
            assert await keys.unwrap(one.wrapped_key, one.key_id, one.wrapping_key_id)
            with pytest.raises(KeyringError, match=another.key_id):
                await keys.unwrap(one.wrapped_key, another.key_id, one.wrapping_key_id)


class TestRewrapping:
    async def test_then_the_retired_key_is_not_needed(self, database: Database, keyring: Keyring) -> None:
        row = await stored(database, keyring, b"content")
        await keyring.add_data_key()
        with pytest.raises(KeyringError, match=KEY_ID):
            await opened(database, OTHER_KEY)
        assert await rewrap(database, local(OTHER_KEY, KEY)) == 2
        anew = await opened(database, OTHER_KEY)
        assert await content_of(database, anew, row) == b"content"
        assert {key.wrapping_key_id for key in await describe_data_keys(database)} == {OTHER_KEY_ID}
        with pytest.raises(KeyringError, match=OTHER_KEY_ID):
            await opened(database, KEY)

    async def test_a_second_time_there_is_nothing_to_do(self, database: Database, keyring: Keyring) -> None:
        assert keyring.active_key_id
        await rewrap(database, local(OTHER_KEY, KEY))
        assert await rewrap(database, local(OTHER_KEY, KEY)) == 0

    async def test_it_goes_on_after_a_crash(self, database: Database, keyring: Keyring) -> None:
        row = await stored(database, keyring, b"content")
        await keyring.add_data_key()
        await rewrap(database, local(OTHER_KEY, KEY))
        # As if it had died before the first one.
        first = (await describe_data_keys(database))[0].key_id
        async with database.reading() as connection:
            query = select(data_keys.c.wrapped_key).where(data_keys.c.key_id == first)
            key = await local(OTHER_KEY).unwrap((await connection.execute(query)).scalar_one(), first, OTHER_KEY_ID)
        values = {"wrapped_key": await local(KEY).wrap(key, first), "wrapping_key_id": KEY_ID}
        async with database.writing() as connection:
            await connection.execute(update(data_keys).where(data_keys.c.key_id == first).values(values))
        assert await content_of(database, await opened(database, OTHER_KEY, KEY), row) == b"content"
        assert await rewrap(database, local(OTHER_KEY, KEY)) == 1
        assert await content_of(database, await opened(database, OTHER_KEY), row) == b"content"


class TestRotatingByAge:
    def by_age(self, database: Database, rotation: Rotation, owner: str = "one", **changes: Any) -> RotationByAge:
        claim = WorkClaim(database, "rotation", owner, changes.pop("claim", timedelta(minutes=1)))
        return RotationByAge(
            database, rotation, claim, max_age=timedelta(days=90), share=0.5, pause=no_pause, **changes
        )

    async def aged(self, database: Database, age: timedelta) -> None:
        async with database.writing() as connection:
            await connection.execute(update(data_keys).values(active_time=DatabaseTime(-age)))

    async def test_a_key_of_less_age_stays(self, database: Database, keyring: Keyring, rotation: Rotation) -> None:
        await self.aged(database, timedelta(days=89))
        await self.by_age(database, rotation).look()
        assert [key.key_id for key in await describe_data_keys(database)] == [keyring.active_key_id]

    async def test_an_older_one_is_replaced_once(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        row = await stored(database, keyring, b"content")
        old = keyring.active_key_id
        await self.aged(database, timedelta(days=91))
        for _ in range(2):
            await self.by_age(database, rotation).look()
        assert [key.key_id for key in await describe_data_keys(database)] == [old, keyring.active_key_id]
        assert not any((await values_under(database, old)).values())
        assert await content_of(database, keyring, row) == b"content"

    async def test_one_server_at_a_time_does_and_another_takes_over(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        await self.aged(database, timedelta(days=91))
        gone = WorkClaim(database, "rotation", "gone", timedelta(minutes=1))
        assert await gone.renew()
        await self.by_age(database, rotation).look()
        assert len(await describe_data_keys(database)) == 1
        assert await WorkClaim(database, "rotation", "gone", timedelta(seconds=-1)).renew()  # lapsed
        await self.by_age(database, rotation).look()
        assert len(await describe_data_keys(database)) == 2
        assert keyring.active_key_id

    async def test_who_loses_the_claim_stops(self, database: Database, keyring: Keyring, rotation: Rotation) -> None:
        for number in range(20):
            await stored(database, keyring, b"", number)
        old = keyring.active_key_id
        await self.aged(database, timedelta(days=91))
        slept = WorkClaim(database, "rotation", "one", timedelta(seconds=-1))
        other = WorkClaim(database, "rotation", "other", timedelta(minutes=1))

        async def sleep_past_the_claim(_seconds: float) -> None:
            await slept.renew()
            await other.renew()

        by_age = RotationByAge(
            database,
            rotation,
            WorkClaim(database, "rotation", "one", timedelta(minutes=1)),
            max_age=timedelta(days=90),
            share=0.5,
            pause=sleep_past_the_claim,
        )
        await by_age.look()
        assert (
            len((await values_under(database, old))["integrations.sealed_credentials"]) == 6
        )  # it noticed after the next batch
        assert await other.renew()  # it is still the other's


async def no_pause(_seconds: float) -> None:
    """Instead of a pause."""
