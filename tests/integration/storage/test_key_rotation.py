"""Tests of key rotation on both databases, also with concurrent writers and after crashes."""

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import LargeBinary, insert, select, text, update

from integration_server.domain.associated_data import (
    AssociatedData,
    attempt_aad,
    bound_values_of,
    callback_aad,
    chain_key_aad,
    credentials_aad,
    oauth_client_aad,
    outcome_aad,
    payload_aad,
    route_aad,
    unrouted_payload_aad,
    webhook_secret_aad,
)
from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.domain.integration import Integration
from integration_server.service.background.background_worker import BackgroundWorker, DueJob, WorkerLimits
from integration_server.service.background.ports import Claim, JobKind
from integration_server.service.credentials.credential_cipher import (
    described_by,
)
from integration_server.storage.connections import SqlAuthorizationAttempts
from integration_server.storage.data_keys import describe_data_keys, remove_data_key, rewrap
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.encrypted_columns import ENCRYPTED_COLUMNS
from integration_server.storage.engine import Database, DatabaseTime, open_database
from integration_server.storage.key_encryption import KeyEncryptionKeys, KeyringError, LocalKey
from integration_server.storage.keyring import Keyring
from integration_server.storage.rotation import AgeBasedRotation, Rotation, RotationProgress, RotationResult
from integration_server.storage.tables import (
    audit_chains,
    data_keys,
    integrations,
    metadata,
    oauth_clients,
    revocations,
    singleton_jobs,
    unrouted_webhooks,
    webhook_events,
    webhook_routes,
    webhook_secrets,
)
from tests.contracts.integration_rows import (
    LATER,
    NOW,
    SqlRows,
    account,
    new_attempt,
    new_credentials,
    new_integration,
)
from tests.fakes.clock import SettableClock
from tests.fakes.provider import FakeProviders
from tests.keyrings import (
    KEY,
    KEY_ID,
    OTHER_KEY,
    OTHER_KEY_ID,
    change_data_keys,
    complete_rotations,
    local_keys,
    open_test_keyring,
)

NO_DELAY = timedelta(0)


async def ignore_audit(_operation: str) -> None:
    """Discard an audit entry."""


async def skip_wait(_step: RotationProgress) -> None:
    """Continue at once."""


@pytest.fixture
async def keyring(database: Database) -> Keyring:
    return await open_test_keyring(database)


@pytest.fixture
def rotation(database: Database, keyring: Keyring) -> Rotation:
    return Rotation(database, keyring, activation_delay=NO_DELAY, record_audit=ignore_audit, batch=7)


async def store_integration(database: Database, keyring: Keyring, content: bytes, number: int = 0) -> Integration:
    """Store a connected integration whose decrypted credentials have this content."""
    store = SqlRows(database)
    new = new_integration(uid=f"uid-{number}-{os.urandom(4).hex()}", integration_id=await store.reserve_id())
    after = described_by(new_credentials(), new.as_stored(NOW).connected_to(None, None, NOW))
    encrypted = await keyring.encrypt(content, associated_data_of(after))
    row = await store.add_connected(new, account(None), new_credentials(encrypted), NOW)
    assert row is not None
    return row


async def decrypt_credentials(database: Database, keyring: Keyring, integration: Integration) -> bytes:
    """The decrypted credentials of an integration."""
    row = await SqlRows(database).find(integration.integration_id, integration.user_id)
    assert row is not None
    return await keyring.decrypt(row.encrypted_credentials or b"", associated_data_of(integration))


def associated_data_of(integration: Integration) -> AssociatedData:
    names = integration.uid, integration.user_id, integration.integration_type
    return credentials_aad(*names, bound_values_of(integration))


async def fill_encrypted_columns(database: Database, keyring: Keyring) -> None:
    """Store a value in every encrypted column; its content is the column's name."""
    row = await store_integration(database, keyring, b"integrations.encrypted_credentials")
    revoked = await keyring.encrypt(b"revocations.encrypted_credentials", associated_data_of(row))
    async with database.write_transaction() as connection:
        await connection.execute(
            insert(revocations).values(
                uid=row.uid,
                user_id=row.user_id,
                integration_type=row.integration_type,
                client_key=row.client_key,
                bound_values=bound_values_of(row),
                encrypted_credentials=revoked,
                create_time=NOW,
                due_time=NOW,
            )
        )
    await store_webhooks(database, keyring, row)
    await store_oauth_client(database, keyring)
    chain_id = secrets.token_hex(16)
    chain_key = await keyring.encrypt(b"audit_chains.encrypted_key", chain_key_aad(chain_id))
    async with database.write_transaction() as connection:
        await connection.execute(
            insert(audit_chains).values(
                chain_id=chain_id,
                number=secrets.randbits(62),
                encrypted_key=chain_key,
                begin_time=NOW,
                entries=0,
                head=b"",
                checkpoint_mac=b"",
            )
        )
    attempt = new_attempt()
    names = (attempt.attempt_id, attempt.user_id, attempt.integration_type)
    verifier = await keyring.encrypt(b"authorization_attempts.encrypted_details", attempt_aad(*names))
    callback = await keyring.encrypt(b"authorization_attempts.encrypted_callback", callback_aad(*names))
    await SqlAuthorizationAttempts(database).begin(replace(attempt, encrypted_details=verifier), new_integration())
    outcome = await keyring.encrypt(b"authorization_attempts.encrypted_outcome", outcome_aad(*names))
    await SqlAuthorizationAttempts(database).store_pending_callback(attempt.attempt_id, callback, outcome, NOW)


async def store_webhooks(database: Database, keyring: Keyring, row: Integration) -> None:
    """Store a value in every encrypted column of the webhook tables."""
    owner = {
        "integration_id": row.integration_id,
        "uid": row.uid,
        "user_id": row.user_id,
        "integration_type": row.integration_type,
    }
    names = row.uid, row.user_id, row.integration_type
    secret_aad, previous_aad = (
        webhook_secret_aad(*names, "secret-id", column, NOW, None)
        for column in ("encrypted_secret", "encrypted_previous_secret")
    )
    async with database.write_transaction() as connection:
        await connection.execute(
            insert(webhook_secrets).values(
                **owner,
                webhook_secret_id="secret-id",
                encrypted_secret=await keyring.encrypt(b"webhook_secrets.encrypted_secret", secret_aad),
                encrypted_previous_secret=await keyring.encrypt(
                    b"webhook_secrets.encrypted_previous_secret", previous_aad
                ),
                secret_set_time=NOW,
            )
        )
        event_aad = payload_aad(*names, row.integration_id, "event", "type", NOW)
        await connection.execute(
            insert(webhook_events).values(
                **owner,
                number=1,
                event_id="event",
                event_type="type",
                receive_time=NOW,
                encrypted_payload=await keyring.encrypt(b"webhook_events.encrypted_payload", event_aad),
            )
        )
        copy = await keyring.encrypt(b"webhook_routes.encrypted_copy", route_aad(*names, "route"))
        await connection.execute(insert(webhook_routes).values(**owner, route="route", encrypted_copy=copy))
        unrouted_aad = unrouted_payload_aad(row.uid, row.integration_type, "", row.uid, "type", NOW)
        await connection.execute(
            insert(unrouted_webhooks).values(
                uid=row.uid,
                integration_type=row.integration_type,
                client_key=row.client_key,
                event_id=row.uid,
                event_type="type",
                reason="no_account",
                payload_bytes=1,
                receive_time=NOW,
                encrypted_payload=await keyring.encrypt(b"unrouted_webhooks.encrypted_payload", unrouted_aad),
            )
        )


async def store_oauth_client(database: Database, keyring: Keyring) -> None:
    """Store an OAuth client."""
    uid = secrets.token_hex(16)
    associated_data = oauth_client_aad(uid, "acme", uid, "client-id", ["app"], 1)
    async with database.write_transaction() as connection:
        await connection.execute(
            insert(oauth_clients).values(
                uid=uid,
                integration_type="acme",
                name=uid,
                client_id="client-id",
                callers=["app"],
                version=1,
                encrypted_secrets=await keyring.encrypt(b"oauth_clients.encrypted_secrets", associated_data),
                create_time=NOW,
                update_time=NOW,
            )
        )


async def values_encrypted_with(database: Database, key_id: str) -> dict[str, list[Any]]:
    """The rows of each encrypted column whose value has this data key."""
    async with database.read_connection() as connection:
        return {
            column.name: list((await connection.execute(column.rows_encrypted_with(key_id))).all())
            for column in ENCRYPTED_COLUMNS
        }


async def decrypted_with(database: Database, keyring: Keyring, key_id: str) -> dict[str, list[bytes]]:
    """The decrypted values of each column that have this data key."""
    rows = await values_encrypted_with(database, key_id)
    return {
        column.name: [await keyring.decrypt(row.value, column.associated_data(row)) for row in rows[column.name]]
        for column in ENCRYPTED_COLUMNS
    }


def test_the_list_of_encrypted_columns_is_complete() -> None:
    encrypted = {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, LargeBinary) and not column.name.startswith("wrapped_")
        # Values of the audit log that are not encrypted.
        if column.name not in {"mac", "head", "checkpoint_mac", "salt", "commitment", "erasure_mac"}
    }
    assert {column.name for column in ENCRYPTED_COLUMNS} == encrypted


class TestRotation:
    async def test_values_of_every_column_are_reencrypted(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        await fill_encrypted_columns(database, keyring)
        old = keyring.active_key_id
        assert await rotation.rotate(skip_wait) == RotationResult(keyring.active_key_id, len(ENCRYPTED_COLUMNS), [])
        assert keyring.active_key_id != old
        assert not any((await values_encrypted_with(database, old)).values())
        assert await decrypted_with(database, keyring, keyring.active_key_id) == {
            column.name: [column.name.encode()] for column in ENCRYPTED_COLUMNS
        }
        assert [key.is_rotation_complete for key in await describe_data_keys(database)] == [True, True]

    async def test_no_other_column_changes(self, database: Database, keyring: Keyring, rotation: Rotation) -> None:
        row = await store_integration(database, keyring, b"content")
        await rotation.rotate(skip_wait)
        after = await SqlRows(database).find(row.integration_id, row.user_id)
        assert after is not None
        assert after.integration == row

    async def test_all_values_decrypt_after_the_previous_key_is_removed(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        rows = [await store_integration(database, keyring, b"%d" % number, number) for number in range(20)]
        old = keyring.active_key_id
        await rotation.rotate(skip_wait)
        await remove_data_key(keyring, old, force=True)
        reopened = await open_test_keyring(database)
        assert [await decrypt_credentials(database, reopened, row) for row in rows] == [
            b"%d" % number for number in range(20)
        ]
        assert [key.key_id for key in await describe_data_keys(database)] == [keyring.active_key_id]

    async def test_a_new_key_is_not_used_before_its_activation_time(self, database: Database, keyring: Keyring) -> None:
        await store_integration(database, keyring, b"content")
        old = keyring.active_key_id
        await set_replaced_for(database, old, timedelta(days=1))
        waits: list[float] = []

        async def wait(seconds: float) -> None:
            """Set the activation time to the past instead of waiting."""
            if seconds:
                waits.append(seconds)
                assert keyring.active_key_id == old or not any((await values_encrypted_with(database, old)).values())
                earlier = DatabaseTime(timedelta(seconds=-30 * len(waits)))
                newest = (await describe_data_keys(database))[-1].key_id
                statement = update(data_keys).where(data_keys.c.key_id == newest).values(active_time=earlier)
                await change_data_keys(database, statement)

        rotation = Rotation(
            database, keyring, activation_delay=timedelta(seconds=40), record_audit=ignore_audit, pause=wait
        )
        steps: list[RotationProgress] = []

        async def record_step(step: RotationProgress) -> None:
            steps.append(step)

        await rotation.rotate(record_step)
        assert len(waits) >= 2  # until all servers know the key, and until none encrypts with the previous one
        assert timedelta(seconds=35) < steps[0].remaining <= timedelta(seconds=40)

    async def test_an_unfinished_rotation_is_continued_before_a_new_one_starts(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        row = await store_integration(database, keyring, b"content")
        announced = await keyring.add_data_key()
        assert (await rotation.rotate(skip_wait)).key_id == announced
        assert (await rotation.rotate(skip_wait)).key_id != announced
        assert len(await describe_data_keys(database)) == 3
        assert await decrypt_credentials(database, keyring, row) == b"content"

    async def test_without_a_new_key_remaining_values_are_reencrypted_with_the_newest(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        outdated = await open_test_keyring(database)
        await rotation.rotate(skip_wait)
        row = await store_integration(database, outdated, b"late")
        assert await rotation.rotate(skip_wait, new_key=False) == RotationResult(keyring.active_key_id, 1, [])
        assert await decrypt_credentials(database, keyring, row) == b"late"

    async def test_undecryptable_values_are_reported_and_kept(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        rows = [await store_integration(database, keyring, b"%d" % number, number) for number in range(10)]
        old, broken = keyring.active_key_id, rows[4]
        async with database.write_transaction() as connection:
            corrupt = bytes.fromhex("01" + old) + bytes(40)
            where = integrations.c.integration_id == broken.integration_id
            await connection.execute(update(integrations).where(where).values(encrypted_credentials=corrupt))
        rotated = await rotation.rotate(skip_wait)
        assert rotated.reencrypted == 9
        assert rotated.unreadable == [f"integrations.encrypted_credentials of {broken.integration_id}"]
        (remaining,) = (await values_encrypted_with(database, old))["integrations.encrypted_credentials"]
        assert remaining.value == corrupt
        with pytest.raises(KeyringError, match="still encrypts 1 of integrations"):
            await remove_data_key(keyring, old, force=True)

    @pytest.mark.slow
    async def test_adding_and_activating_a_key_is_audited(self, database: Database, keyring: Keyring) -> None:
        reported: list[str] = []

        async def record_audit(operation: str) -> None:
            reported.append(operation)

        async def interrupt(_step: RotationProgress) -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            await Rotation(database, keyring, activation_delay=timedelta(seconds=1), record_audit=record_audit).rotate(
                interrupt
            )
        key_id = (await describe_data_keys(database))[-1].key_id
        assert reported == [f"add {key_id}"]
        await Rotation(database, keyring, activation_delay=timedelta(seconds=1), record_audit=record_audit).rotate(
            skip_wait
        )
        assert reported == [f"add {key_id}", f"rotate to {key_id}"]

    async def test_rotation_is_not_complete_when_auditing_fails(self, database: Database, keyring: Keyring) -> None:
        async def record_audit(_operation: str) -> None:
            raise StoreUnavailable

        await keyring.add_data_key()
        with pytest.raises(StoreUnavailable):
            await Rotation(database, keyring, activation_delay=NO_DELAY, record_audit=record_audit).rotate(skip_wait)
        assert not (await describe_data_keys(database))[-1].is_rotation_complete

    @pytest.mark.slow
    async def test_concurrent_rotations_share_the_work(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(open_database(database_url)) for _ in range(3)]
            keyrings = [await open_test_keyring(database) for database in databases]
            rows = [await store_integration(databases[0], keyrings[0], b"%d" % number, number) for number in range(60)]
            rotations = [
                Rotation(database, keyring, activation_delay=timedelta(seconds=1), record_audit=ignore_audit, batch=5)
                for database, keyring in zip(databases, keyrings, strict=True)
            ]
            rotated = await asyncio.gather(
                *(rotation.rotate(skip_wait) for rotation in rotations), return_exceptions=True
            )
            finished = [result for result in rotated if isinstance(result, RotationResult)]
            assert finished
            assert len({result.key_id for result in finished}) == 1
            # A rotation that starts at the same moment as another fails with `KeyringError`.
            assert all(isinstance(result, RotationResult | KeyringError) for result in rotated)
            assert sum(result.reencrypted for result in finished) == 60
            assert [await decrypt_credentials(databases[0], keyrings[0], row) for row in rows] == [
                b"%d" % number for number in range(60)
            ]

    async def test_rows_of_a_key_are_found_by_an_index(self, database: Database) -> None:
        """Sequential scans are off in PostgreSQL, because they are the cheapest plan for an empty table."""
        query = ENCRYPTED_COLUMNS[0].rows_encrypted_with("41" * 8).order_by(integrations.c.integration_id).limit(5)
        async with database.write_transaction() as connection:
            is_postgres = connection.dialect.name == "postgresql"
            if is_postgres:
                await connection.execute(text("SET LOCAL enable_seqscan = off"))
                await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
            options = {"literal_binds": True}
            written = query.compile(dialect=connection.dialect, compile_kwargs=options)
            explain = f"EXPLAIN {'' if is_postgres else 'QUERY PLAN'} {written}"
            plan = await connection.run_sync(lambda blocking: blocking.exec_driver_sql(explain))
            reported = " ".join(str(row) for row in plan.all())
        assert "ix_integrations_data_key_id" in reported
        assert "Sort" not in reported
        assert "TEMP B-TREE" not in reported


class KeyringWithCallback(Keyring):
    """A keyring that calls a function before it encrypts."""

    before_encrypt: Callable[[], Awaitable[None]] | None = None

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """Call `before_encrypt` once, then encrypt."""
        callback, self.before_encrypt = self.before_encrypt, None
        if callback is not None:
            await callback()
        return await super().encrypt(plaintext, associated_data)


class TestConcurrentRefresh:
    """Reencryption does not overwrite a refresh that commits between the read and the write of a row."""

    async def refresh(self, database: Database, keyring: Keyring, row: Integration) -> None:
        encrypted = await keyring.encrypt(b"refreshed", associated_data_of(row))
        committed = await SqlRows(database).commit_refresh(row, new_credentials(encrypted), LATER)
        assert committed is not None

    @pytest.mark.slow
    async def test_a_refresh_waits_for_the_reencryption_and_is_kept(
        self, database: Database, database_url: str
    ) -> None:
        reencrypting = KeyringWithCallback(database, local_keys(KEY), monotonic=time.monotonic)
        await reencrypting.prepare()
        async with open_database(database_url) as other_database:
            refreshing = await open_test_keyring(other_database)
            row = await store_integration(database, refreshing, b"stale")
            tasks: list[asyncio.Task[None]] = []

            async def before_encrypt() -> None:
                tasks.append(asyncio.create_task(self.refresh(other_database, refreshing, row)))
                await asyncio.wait(tasks, timeout=0.5)

            reencrypting.before_encrypt = before_encrypt
            await Rotation(database, reencrypting, activation_delay=NO_DELAY, record_audit=ignore_audit).rotate(
                skip_wait
            )
            await asyncio.gather(*tasks)
            assert tasks
            assert await decrypt_credentials(database, refreshing, row) == b"refreshed"

    async def test_negative_control_without_the_row_lock_the_refresh_is_lost(
        self, database: Database, keyring: Keyring
    ) -> None:
        """Negative control: the row is not locked between read and write."""
        row = await store_integration(database, keyring, b"stale")
        before = await decrypt_credentials(database, keyring, row)
        await self.refresh(database, keyring, row)
        again = await keyring.encrypt(before, associated_data_of(row))
        where = integrations.c.integration_id == row.integration_id
        async with database.write_transaction() as connection:
            await connection.execute(update(integrations).where(where).values(encrypted_credentials=again))
        assert await decrypt_credentials(database, keyring, row) == b"stale"

    @pytest.mark.postgres
    async def test_locked_rows_are_skipped_and_reencrypted_later(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database, open_database(postgres_url) as other_database:
            keyring = await open_test_keyring(database)
            rows = [await store_integration(database, keyring, b"%d" % number, number) for number in range(3)]
            old = keyring.active_key_id
            where = integrations.c.integration_id == rows[1].integration_id
            async with other_database.write_transaction() as connection:
                await connection.execute(select(integrations.c.uid).where(where).with_for_update())
                rotating = asyncio.create_task(
                    Rotation(database, keyring, activation_delay=NO_DELAY, record_audit=ignore_audit).rotate(skip_wait)
                )
                async with asyncio.timeout(60):
                    while len((await values_encrypted_with(database, old))["integrations.encrypted_credentials"]) != 1:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert not rotating.done()
            assert (await rotating).reencrypted == 3


class TestRemoval:
    async def test_active_and_announced_keys_are_not_removed(self, database: Database, keyring: Keyring) -> None:
        announced = await keyring.add_data_key(timedelta(minutes=1))
        for key_id in (keyring.active_key_id, announced):
            with pytest.raises(KeyringError, match="is the active or the next key"):
                await remove_data_key(keyring, key_id, force=True)

    async def test_an_unknown_key_is_not_removed(self, database: Database, keyring: Keyring) -> None:
        with pytest.raises(KeyringError, match="there is no data key 0123456789abcdef"):
            await remove_data_key(keyring, "0123456789abcdef", force=True)
        assert await describe_data_keys(database)
        assert keyring.active_key_id

    @pytest.mark.quick_on("sqlite")
    @pytest.mark.parametrize("column", ENCRYPTED_COLUMNS, ids=lambda column: column.name)
    async def test_a_key_is_not_removed_while_a_value_needs_it(
        self, database: Database, keyring: Keyring, column: Any
    ) -> None:
        await fill_encrypted_columns(database, keyring)
        old = keyring.active_key_id
        await keyring.add_data_key()
        for other in ENCRYPTED_COLUMNS:
            if other is not column:
                rows = (await values_encrypted_with(database, old))[other.name]
                async with database.write_transaction() as connection:
                    for row in rows:
                        new = await keyring.encrypt(b"", other.associated_data(row))
                        assert await other.replace_values(connection, [(row.row_id, row.value, new)]) == 1
        with pytest.raises(KeyringError, match=f"still encrypts 1 of {column.name}: run"):
            await remove_data_key(keyring, old, force=True)

    async def test_a_key_replaced_less_than_a_day_ago_is_not_removed_without_force(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        first = keyring.active_key_id
        await rotation.rotate(skip_wait)
        second = keyring.active_key_id
        with pytest.raises(KeyringError, match="can be removed from"):
            await remove_data_key(keyring, first)
        await set_replaced_for(database, second, timedelta(hours=23, minutes=59))
        with pytest.raises(KeyringError, match="can be removed from"):
            await remove_data_key(keyring, first)
        await set_replaced_for(database, second, timedelta(hours=24, minutes=1))
        await remove_data_key(keyring, first)
        assert [key.key_id for key in await describe_data_keys(database)] == [second]


async def set_replaced_for(database: Database, key_id: str, age: timedelta) -> None:
    """Make this the newest key, active since `age`."""
    await change_data_keys(
        database,
        update(data_keys).values(active_time=DatabaseTime(-age - timedelta(days=1))),
        update(data_keys).where(data_keys.c.key_id == key_id).values(active_time=DatabaseTime(-age)),
    )


class TestAssociatedData:
    """A stored value decrypts only with its own associated data."""

    async def values(self, database: Database) -> list[tuple[str, str, bytes, AssociatedData]]:
        """Every stored value with its data key, the name of its column and its associated data."""
        found = []
        for key in await describe_data_keys(database):
            rows = await values_encrypted_with(database, key.key_id)
            for column in ENCRYPTED_COLUMNS:
                found += [
                    (key.key_id, column.name, row.value, column.associated_data(row)) for row in rows[column.name]
                ]
        return found

    @pytest.fixture
    async def stored_values(self, database: Database, keyring: Keyring) -> list[tuple[str, str, bytes, AssociatedData]]:
        """Three rows of each table with each of two data keys."""
        for _ in range(2):
            for _ in range(3):
                await fill_encrypted_columns(database, keyring)
            await keyring.add_data_key()
            await complete_rotations(database)
        values = await self.values(database)
        assert len(values) == 2 * 3 * len(ENCRYPTED_COLUMNS)
        return values

    async def test_values_of_other_rows_and_columns_do_not_decrypt(
        self, keyring: Keyring, stored_values: list[tuple[str, str, bytes, AssociatedData]]
    ) -> None:
        results = []
        for (_, here, value, own), (_, there, _, associated_data) in itertools.permutations(stored_values, 2):
            try:
                assert (await keyring.decrypt(value, associated_data)).decode() == here
            except CredentialsUnreadable:
                assert associated_data != own
                results.append("rejected")
            else:
                assert associated_data == own
                # The intended pair: the outbox stores credentials of a removed integration.
                assert {here, there} == {"integrations.encrypted_credentials", "revocations.encrypted_credentials"}
                results.append("decrypted")
        assert results.count("decrypted") == 2 * 6
        assert len(results) == len(stored_values) * (len(stored_values) - 1)

    async def test_values_with_other_key_ids_do_not_decrypt(
        self, keyring: Keyring, database: Database, stored_values: list[tuple[str, str, bytes, AssociatedData]]
    ) -> None:
        key_ids = [key.key_id for key in await describe_data_keys(database)]
        for own_id, name, value, associated_data in stored_values:
            for key_id in key_ids:
                renamed = value[:1] + bytes.fromhex(key_id) + value[9:]
                if key_id == own_id:
                    assert (await keyring.decrypt(renamed, associated_data)).decode() == name
                    continue
                with pytest.raises(CredentialsUnreadable):
                    await keyring.decrypt(renamed, associated_data)

    async def test_values_with_any_changed_byte_do_not_decrypt(
        self, keyring: Keyring, stored_values: list[tuple[str, str, bytes, AssociatedData]]
    ) -> None:
        for _, name, value, associated_data in stored_values:
            assert (await keyring.decrypt(value, associated_data)).decode() == name
            for position in range(len(value)):
                corrupt = value[:position] + bytes([value[position] ^ 0xFF]) + value[position + 1 :]
                with pytest.raises(CredentialsUnreadable):
                    await keyring.decrypt(corrupt, associated_data)

    async def test_wrapped_keys_of_other_data_keys_do_not_unwrap(
        self, database: Database, stored_values: list[tuple[str, str, bytes, AssociatedData]]
    ) -> None:
        assert stored_values
        keys = local_keys(KEY)
        async with database.read_connection() as connection:
            rows = (await connection.execute(select(data_keys))).all()
        assert len(rows) == 3
        for row, other in itertools.permutations(rows, 2):
            assert await keys.unwrap(row.wrapped_key, row.key_id, row.wrapping_key_id)
            with pytest.raises(KeyringError, match=other.key_id):
                await keys.unwrap(row.wrapped_key, other.key_id, row.wrapping_key_id)


class TestRewrap:
    async def test_after_a_rewrap_the_retired_key_is_not_needed(self, database: Database, keyring: Keyring) -> None:
        row = await store_integration(database, keyring, b"content")
        await keyring.add_data_key()
        with pytest.raises(KeyringError, match=KEY_ID):
            await open_test_keyring(database, OTHER_KEY)
        assert await rewrap(database, local_keys(OTHER_KEY, KEY), keyring) == 2
        reopened = await open_test_keyring(database, OTHER_KEY)
        assert await decrypt_credentials(database, reopened, row) == b"content"
        assert {key.wrapping_key_id for key in await describe_data_keys(database)} == {OTHER_KEY_ID}
        with pytest.raises(KeyringError, match=OTHER_KEY_ID):
            await open_test_keyring(database, KEY)

    async def test_a_second_rewrap_changes_nothing(self, database: Database, keyring: Keyring) -> None:
        assert keyring.active_key_id
        await rewrap(database, local_keys(OTHER_KEY, KEY), keyring)
        assert await rewrap(database, local_keys(OTHER_KEY, KEY), keyring) == 0

    async def test_an_interrupted_rewrap_changes_nothing_and_can_be_repeated(
        self, database: Database, keyring: Keyring
    ) -> None:
        row = await store_integration(database, keyring, b"content")
        await keyring.add_data_key()
        with pytest.raises(StoreUnavailable):
            await rewrap(database, KeyEncryptionKeys(FailingKey(OTHER_KEY, calls=1), [LocalKey(KEY)]), keyring)
        assert await decrypt_credentials(database, await open_test_keyring(database, KEY), row) == b"content"
        assert await rewrap(database, local_keys(OTHER_KEY, KEY), keyring) == 2
        assert await decrypt_credentials(database, await open_test_keyring(database, OTHER_KEY), row) == b"content"


@dataclass
class FailingKey:
    """A key-encryption key whose store becomes unavailable after some calls."""

    key: bytes
    calls: int

    def __post_init__(self) -> None:
        self._local = LocalKey(self.key)
        self.key_id = self._local.key_id

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """Encrypt a data key, or raise `StoreUnavailable`."""
        self.calls -= 1
        if self.calls < 0:
            raise StoreUnavailable
        return await self._local.wrap(data_key, data_key_id)

    async def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """Decrypt a data key."""
        return await self._local.unwrap(wrapped, data_key_id)

    def is_outdated(self, wrapped: bytes) -> bool:
        """As the local key."""
        return self._local.is_outdated(wrapped)


class TestAgeBasedRotation:
    @pytest.fixture
    def due_work(self, database: Database) -> SqlDueWork:
        return SqlDueWork(database)

    async def claim(self, due_work: SqlDueWork, duration: timedelta = timedelta(minutes=1)) -> Claim[None] | None:
        """A claim on the job, if it is due."""
        claims = await due_work.claim(JobKind.KEY_ROTATION, "key_rotation", 1, claim_duration=duration)
        return claims[0] if claims else None

    def job(self, database: Database, rotation: Rotation, pause: Callable[[float], Awaitable[None]]) -> DueJob:
        """The rotation job, whose next check is due at once."""
        rotation_job = AgeBasedRotation(
            database,
            rotation,
            SqlDueWork(database),
            max_age=timedelta(days=90),
            check_interval=timedelta(seconds=-1),
            pause=pause,
        )
        return DueJob(JobKind.KEY_ROTATION, rotation_job.run, timedelta(minutes=1), needs_provider=False)

    async def run(
        self,
        database: Database,
        rotation: Rotation,
        pause: Callable[[float], Awaitable[None]] | None = None,
    ) -> bool:
        """Run the job if it is due; returns whether it was."""
        claim = await self.claim(SqlDueWork(database))
        return claim is not None and await self.job(database, rotation, pause or no_pause).handler(claim)

    async def set_key_age(self, database: Database, age: timedelta) -> None:
        await change_data_keys(database, update(data_keys).values(active_time=DatabaseTime(-age)))

    async def test_a_key_below_the_maximum_age_is_not_replaced(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        await self.set_key_age(database, timedelta(days=89))
        assert await self.run(database, rotation)
        assert [key.key_id for key in await describe_data_keys(database)] == [keyring.active_key_id]

    async def test_an_old_key_is_replaced_once(self, database: Database, keyring: Keyring, rotation: Rotation) -> None:
        row = await store_integration(database, keyring, b"content")
        old = keyring.active_key_id
        await self.set_key_age(database, timedelta(days=91))
        for _ in range(2):
            assert await self.run(database, rotation)
        assert [key.key_id for key in await describe_data_keys(database)] == [old, keyring.active_key_id]
        assert not any((await values_encrypted_with(database, old)).values())
        assert await decrypt_credentials(database, keyring, row) == b"content"

    async def test_the_background_worker_runs_the_rotation(
        self, database: Database, keyring: Keyring, rotation: Rotation
    ) -> None:
        await self.set_key_age(database, timedelta(days=91))
        worker = BackgroundWorker(
            [self.job(database, rotation, no_pause)],
            SqlDueWork(database),
            FakeProviders(),
            SettableClock(),
            lambda: 0.5,
            limits=WorkerLimits(1, 100),
        )
        async with worker, asyncio.timeout(30):
            while [key.is_rotation_complete for key in await describe_data_keys(database)] != [True, True]:
                await worker.poll()
                await asyncio.sleep(0.01)
        assert keyring.active_key_id == (await describe_data_keys(database))[-1].key_id

    async def test_one_process_rotates_at_a_time_and_another_takes_over_after_a_crash(
        self, database: Database, keyring: Keyring, rotation: Rotation, due_work: SqlDueWork
    ) -> None:
        await self.set_key_age(database, timedelta(days=91))
        crashed = await self.claim(due_work)
        assert crashed is not None
        assert not await self.run(database, rotation)
        assert len(await describe_data_keys(database)) == 1
        assert await due_work.postpone(crashed, timedelta(seconds=-1))  # the claim of the crashed process expires
        assert await self.run(database, rotation)
        assert len(await describe_data_keys(database)) == 2
        assert keyring.active_key_id

    async def test_a_process_that_loses_the_claim_stops(
        self, database: Database, keyring: Keyring, rotation: Rotation, due_work: SqlDueWork
    ) -> None:
        for number in range(20):
            await store_integration(database, keyring, b"", number)
        old = keyring.active_key_id
        await self.set_key_age(database, timedelta(days=91))
        other: list[Claim[None] | None] = []

        async def lose_claim(_seconds: float) -> None:
            async with database.write_transaction() as connection:
                await connection.execute(update(singleton_jobs).values(due_time=DatabaseTime()))
            other.append(await self.claim(due_work))

        assert await self.run(database, rotation, lose_claim)
        # It stops after the next batch.
        assert len((await values_encrypted_with(database, old))["integrations.encrypted_credentials"]) == 6
        (claim,) = other
        assert claim is not None
        assert (
            await due_work.postpone(claim, timedelta(minutes=1)) is not None
        )  # the claim of the other process is still valid


async def no_pause(_seconds: float) -> None:
    """Continue at once."""
