"""Tests of the keyring: associated data, shared data keys, and rejection of wrong keys."""

import asyncio
import base64
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text, update

from integration_server.domain.associated_data import AssociatedData
from integration_server.domain.errors import CredentialsUnreadable
from integration_server.storage.connections import SqlAuthorizationAttempts
from integration_server.storage.data_keys import describe_data_keys, remove_data_key
from integration_server.storage.engine import Database, DatabaseTime, open_database
from integration_server.storage.key_encryption import KeyringError, LocalKey
from integration_server.storage.keyring import Keyring
from integration_server.storage.tables import data_keys, integrations, key_sets
from tests.contracts.integration_rows import (
    NOW,
    SqlRows,
    account,
    new_attempt,
    new_credentials,
    new_integration,
)
from tests.keyrings import KEY, KEY_ID, OTHER_KEY, OTHER_KEY_ID, change_data_keys, complete_rotations, open_test_keyring

ASSOCIATED_DATA = AssociatedData("integrations", "encrypted_credentials", "uid", "ann", "acme")
PLAINTEXT = b'{"access_token":"at-confidential","refresh_token":"rt-confidential"}'


class FakeMonotonic:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def keyring(database: Database) -> Keyring:
    return await open_test_keyring(database)


class TestEncryption:
    @pytest.fixture
    async def keyring(self, sqlite_url: str) -> AsyncIterator[Keyring]:
        async with open_database(sqlite_url) as database:
            yield await open_test_keyring(database)

    @pytest.mark.parametrize("plaintext", [b"", b"\x00", PLAINTEXT, bytes(100_000)], ids=len)
    async def test_decrypts_with_the_same_associated_data(self, keyring: Keyring, plaintext: bytes) -> None:
        encrypted = await keyring.encrypt(plaintext, ASSOCIATED_DATA)
        assert await keyring.decrypt(encrypted, ASSOCIATED_DATA) == plaintext
        assert len(encrypted) == 1 + 8 + 12 + len(plaintext) + 16

    async def test_nonces_are_unique(self, keyring: Keyring) -> None:
        encrypted = [await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA) for _ in range(100)]
        assert len({value[9:21] for value in encrypted}) == 100

    async def test_does_not_decrypt_with_any_bit_flipped(self, keyring: Keyring) -> None:
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        for bit in range(len(encrypted) * 8):
            flipped = bytearray(encrypted)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CredentialsUnreadable):
                await keyring.decrypt(bytes(flipped), ASSOCIATED_DATA)

    @pytest.mark.parametrize(
        "other",
        [
            ASSOCIATED_DATA._replace(table="authorization_attempts"),
            ASSOCIATED_DATA._replace(column="encrypted_details"),
            ASSOCIATED_DATA._replace(bound_values="[1]"),
            ASSOCIATED_DATA._replace(uid="another"),
            ASSOCIATED_DATA._replace(user_id="bob"),
            ASSOCIATED_DATA._replace(integration_type="other"),
            ASSOCIATED_DATA._replace(user_id="annacme", integration_type=""),
            ASSOCIATED_DATA._replace(user_id="", integration_type="annacme"),
            ASSOCIATED_DATA._replace(uid="uidann", user_id=""),
            ASSOCIATED_DATA._replace(user_id="acme", integration_type="ann"),
        ],
        ids=str,
    )
    async def test_does_not_decrypt_with_other_associated_data(self, keyring: Keyring, other: AssociatedData) -> None:
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        with pytest.raises(CredentialsUnreadable):
            await keyring.decrypt(encrypted, other)

    async def test_does_not_decrypt_truncated_or_extended_values(self, keyring: Keyring) -> None:
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        wrong = [encrypted[:length] for length in range(len(encrypted))]
        wrong += [encrypted[length:] for length in range(1, len(encrypted))]
        wrong += [encrypted + b"\x00", encrypted * 2]
        for value in wrong:
            with pytest.raises(CredentialsUnreadable):
                await keyring.decrypt(value, ASSOCIATED_DATA)

    @pytest.mark.parametrize("value", [b"", b"\x01", PLAINTEXT, bytes(64), b"\x01" + bytes(63)])
    async def test_does_not_decrypt_other_bytes(self, keyring: Keyring, value: bytes) -> None:
        with pytest.raises(CredentialsUnreadable):
            await keyring.decrypt(value, ASSOCIATED_DATA)

    async def test_does_not_decrypt_with_another_data_key(self, keyring: Keyring) -> None:
        first = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        await keyring.add_data_key()
        second = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        with pytest.raises(CredentialsUnreadable):
            await keyring.decrypt(second[:9] + first[9:], ASSOCIATED_DATA)
        assert await keyring.decrypt(first, ASSOCIATED_DATA) == PLAINTEXT

    async def test_the_repr_contains_no_keys(self, keyring: Keyring) -> None:
        assert not any(form in repr(keyring).encode() for form in forms_of(KEY))


class TestDataKeys:
    async def test_a_new_key_encrypts_and_previous_keys_still_decrypt(
        self, keyring: Keyring, database: Database
    ) -> None:
        before = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        new_id = await keyring.add_data_key()
        after = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)

        assert after[1:9].hex() == new_id != before[1:9].hex()
        assert (
            await keyring.decrypt(before, ASSOCIATED_DATA) == await keyring.decrypt(after, ASSOCIATED_DATA) == PLAINTEXT
        )
        first, second = await describe_data_keys(database)
        assert [first.key_id, second.key_id] == [before[1:9].hex(), new_id]
        assert [first.wrapping_key_id, second.wrapping_key_id] == [KEY_ID, KEY_ID]
        assert [first.is_active, second.is_active] == [False, True]
        assert [first.is_rotation_complete, second.is_rotation_complete] == [True, False]
        assert first.replaced_time == second.active_time

    async def test_an_announced_key_is_known_before_it_encrypts(self, keyring: Keyring, database: Database) -> None:
        announced = await keyring.add_data_key(timedelta(minutes=1))
        other = await keyring_without_lookup(database)
        for server in (keyring, other):
            assert (await server.encrypt(PLAINTEXT, ASSOCIATED_DATA))[1:9].hex() == server.active_key_id != announced
        first, second = await describe_data_keys(database)
        assert [first.is_active, second.is_active, second.is_announced] == [True, False, True]

        await set_active_time(database, announced)
        await keyring.reload()
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        assert encrypted[1:9].hex() == announced
        assert await other.decrypt(encrypted, ASSOCIATED_DATA) == PLAINTEXT

    async def test_negative_control_an_unannounced_key_is_unknown_until_the_next_reload(
        self, keyring: Keyring, database: Database
    ) -> None:
        """Negative control: without the delay, another server cannot decrypt the new key's values yet."""
        other = await keyring_without_lookup(database)
        await keyring.add_data_key()
        with pytest.raises(CredentialsUnreadable):
            await other.decrypt(await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA), ASSOCIATED_DATA)

    async def test_a_key_is_added_only_when_the_previous_rotation_is_complete(
        self, keyring: Keyring, database: Database
    ) -> None:
        await keyring.add_data_key()
        with pytest.raises(KeyringError, match="run `keys rotate` first"):
            await keyring.add_data_key()
        await complete_rotations(database)
        await keyring.add_data_key()
        assert len(await describe_data_keys(database)) == 3

    async def test_keyrings_of_one_database_load_each_others_keys(self, keyring: Keyring, database: Database) -> None:
        other = await open_test_keyring(database)
        for writer, reader in ((keyring, other), (other, keyring)):
            await writer.add_data_key()
            await complete_rotations(database)
            assert await reader.decrypt(await writer.encrypt(PLAINTEXT, ASSOCIATED_DATA), ASSOCIATED_DATA) == PLAINTEXT

    async def test_a_key_added_by_another_process_encrypts_after_a_reload(
        self, keyring: Keyring, database: Database
    ) -> None:
        added = await (await open_test_keyring(database)).add_data_key()
        assert (await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA))[1:9].hex() != added
        await keyring.reload()
        assert (await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA))[1:9].hex() == added

    async def test_a_key_removed_by_another_process_does_not_decrypt_after_a_reload(
        self, keyring: Keyring, database: Database
    ) -> None:
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        await keyring.add_data_key()
        await remove_data_key(await open_test_keyring(database), encrypted[1:9].hex(), force=True)
        assert await keyring.decrypt(encrypted, ASSOCIATED_DATA) == PLAINTEXT
        await keyring.reload()
        with pytest.raises(CredentialsUnreadable):
            await keyring.decrypt(encrypted, ASSOCIATED_DATA)

    async def test_the_oldest_key_encrypts_if_the_clock_precedes_all_activation_times(
        self, keyring: Keyring, database: Database
    ) -> None:
        first = keyring.active_key_id
        second = await keyring.add_data_key(timedelta(minutes=1))
        await set_active_time(database, first, timedelta(seconds=30))
        assert (await open_test_keyring(database)).active_key_id == first
        await set_active_time(database, second)
        assert (await open_test_keyring(database)).active_key_id == second

    async def test_loaded_keys_are_kept_when_the_table_is_empty(self, keyring: Keyring, database: Database) -> None:
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        async with database.write_transaction() as connection:
            await connection.execute(data_keys.delete())
        with pytest.raises(KeyringError, match="was altered in the database"):
            await keyring.reload()
        assert await keyring.decrypt(encrypted, ASSOCIATED_DATA) == PLAINTEXT

    async def test_unknown_key_ids_are_looked_up_once_a_second(self, keyring: Keyring, database: Database) -> None:
        fake_monotonic = FakeMonotonic()
        throttled = await open_test_keyring(database, monotonic=fake_monotonic)
        for _ in range(100):
            with pytest.raises(CredentialsUnreadable):
                await throttled.decrypt(b"\x01" + os.urandom(63), ASSOCIATED_DATA)

        await keyring.add_data_key()
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        with pytest.raises(CredentialsUnreadable):
            await throttled.decrypt(encrypted, ASSOCIATED_DATA)
        fake_monotonic.now += 1
        assert await throttled.decrypt(encrypted, ASSOCIATED_DATA) == PLAINTEXT

    async def test_concurrent_lookups_of_an_unknown_key_are_shared(self, keyring: Keyring, database: Database) -> None:
        other = await open_test_keyring(database, monotonic=FakeMonotonic())
        await keyring.add_data_key()
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        plaintexts = await asyncio.gather(*(other.decrypt(encrypted, ASSOCIATED_DATA) for _ in range(50)))
        assert plaintexts == [PLAINTEXT] * 50

    async def test_a_failed_lookup_is_retried(self, database: Database, database_url: str) -> None:
        keyring = await open_test_keyring(database, monotonic=FakeMonotonic())
        async with open_database(database_url) as other_database:
            other = await open_test_keyring(other_database)
            await other.add_data_key()
            encrypted = await other.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        async with database.write_transaction() as connection:
            await connection.execute(text("ALTER TABLE data_keys RENAME TO renamed"))
        for _ in range(2):
            # Not CredentialsUnreadable: the lookup failed.
            with pytest.raises((asyncpg.UndefinedTableError, sqlite3.OperationalError)):
                await keyring.decrypt(encrypted, ASSOCIATED_DATA)
        async with database.write_transaction() as connection:
            await connection.execute(text("ALTER TABLE renamed RENAME TO data_keys"))
        assert await keyring.decrypt(encrypted, ASSOCIATED_DATA) == PLAINTEXT

    async def test_servers_that_start_concurrently_share_the_first_key(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(open_database(database_url)) for _ in range(5)]
            keyrings = await asyncio.gather(*(open_test_keyring(database) for database in databases))
            encrypted = [await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA) for keyring in keyrings]
            for keyring in keyrings:
                assert [await keyring.decrypt(value, ASSOCIATED_DATA) for value in encrypted] == [PLAINTEXT] * 5
            assert len(await describe_data_keys(databases[0])) == 1

    async def test_concurrent_additions_add_one_key(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(open_database(database_url)) for _ in range(3)]
            keyrings = [await open_test_keyring(database) for database in databases]
            added = await asyncio.gather(*(keyring.add_data_key() for keyring in keyrings), return_exceptions=True)
            assert sum(isinstance(outcome, str) for outcome in added) == 1
            assert sum(isinstance(outcome, KeyringError) for outcome in added) == 2
            assert len(await describe_data_keys(databases[0])) == 2


async def set_active_time(database: Database, key_id: str, activation_delay: timedelta = timedelta(0)) -> None:
    """Set the activation time of an announced key."""
    values = {"active_time": DatabaseTime(activation_delay)}
    await change_data_keys(database, update(data_keys).where(data_keys.c.key_id == key_id).values(values))


async def keyring_without_lookup(database: Database) -> Keyring:
    """A keyring that has just looked up unknown keys and does not do so again yet."""
    keyring = await open_test_keyring(database, monotonic=FakeMonotonic())
    with pytest.raises(CredentialsUnreadable):
        await keyring.decrypt(b"\x01" + os.urandom(63), ASSOCIATED_DATA)
    return keyring


class TestWrongKey:
    """The wrapped key of the key set's MAC detects a wrong key, also without data keys."""

    async def test_a_wrong_key_is_rejected_by_an_empty_database(self, database: Database) -> None:
        await open_test_keyring(database)
        with pytest.raises(KeyringError, match=KEY_ID):
            await open_test_keyring(database, OTHER_KEY)
        await open_test_keyring(database)

    async def test_a_wrong_key_is_rejected_without_data_keys(self, database: Database) -> None:
        await open_test_keyring(database)
        async with database.write_transaction() as connection:
            await connection.execute(data_keys.delete())
        with pytest.raises(KeyringError, match=f"wrapped by key {KEY_ID}, which is not configured"):
            await open_test_keyring(database, OTHER_KEY)
        with pytest.raises(KeyringError, match="was altered in the database"):
            await open_test_keyring(database, KEY)

    async def test_negative_control_without_the_key_set_a_wrong_key_is_accepted(
        self, keyring: Keyring, database: Database
    ) -> None:
        """Negative control: a wrong key creates a new first key, and older values do not decrypt."""
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        async with database.write_transaction() as connection:
            await connection.execute(data_keys.delete())
            await connection.execute(key_sets.delete())
        other_keyring = await open_test_keyring(database, OTHER_KEY)
        with pytest.raises(CredentialsUnreadable):
            await other_keyring.decrypt(encrypted, ASSOCIATED_DATA)

    async def test_an_altered_mac_key_is_rejected(self, keyring: Keyring, database: Database) -> None:
        async with database.write_transaction() as connection:
            await connection.execute(update(key_sets).values(wrapped_mac_key=bytes(60)))
        with pytest.raises(KeyringError, match=f"does not unwrap with key {KEY_ID}"):
            await open_test_keyring(database)
        with pytest.raises(KeyringError, match="was altered in the database"):
            await keyring.reload()

    @pytest.mark.parametrize("rows_remain", ["data keys", "integrations"])
    async def test_a_lost_key_set_is_not_replaced_by_a_new_one(
        self, keyring: Keyring, database: Database, rows_remain: str
    ) -> None:
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        await SqlRows(database).add_connected(new_integration(), account("a"), new_credentials(encrypted), NOW)
        async with database.write_transaction() as connection:
            await connection.execute(key_sets.delete())
            await connection.execute((data_keys if rows_remain == "integrations" else integrations).delete())
        with pytest.raises(KeyringError, match="but no key set: restore"):
            await open_test_keyring(database)
        with pytest.raises(KeyringError, match="has no key set"):
            await keyring.reload()

    async def test_of_concurrent_starts_with_different_keys_one_fails(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(open_database(database_url)) for _ in range(2)]
            started = await asyncio.gather(
                *(open_test_keyring(database, key) for database, key in zip(databases, (KEY, OTHER_KEY), strict=True)),
                return_exceptions=True,
            )
        assert sorted(type(outcome).__name__ for outcome in started) == ["Keyring", "KeyringError"]


class TestWrappingKeys:
    async def test_a_retired_key_unwraps_and_the_current_key_wraps(self, keyring: Keyring, database: Database) -> None:
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        rotated = await open_test_keyring(database, OTHER_KEY, KEY)
        assert await rotated.decrypt(encrypted, ASSOCIATED_DATA) == PLAINTEXT
        await rotated.add_data_key()
        assert {data_key.wrapping_key_id for data_key in await describe_data_keys(database)} == {KEY_ID, OTHER_KEY_ID}

    @pytest.mark.usefixtures("keyring")
    async def test_the_error_names_the_wrong_key(self, database: Database) -> None:
        with pytest.raises(KeyringError) as caught:
            await open_test_keyring(database, OTHER_KEY, bytes(32))
        message = str(caught.value)
        assert f"is wrapped by key {KEY_ID}, which is not configured" in message
        assert f"configured: {OTHER_KEY_ID}, {LocalKey(bytes(32)).key_id}" in message
        assert not any(form in message.encode() for key in (KEY, OTHER_KEY) for form in forms_of(key))

    @pytest.mark.parametrize("wrapped", [b"", b"short", bytes(60)])
    @pytest.mark.usefixtures("keyring")
    async def test_the_error_names_an_altered_data_key(self, database: Database, wrapped: bytes) -> None:
        async with database.write_transaction() as connection:
            await connection.execute(update(data_keys).values(wrapped_key=wrapped))
        with pytest.raises(KeyringError, match=f"does not unwrap with key {KEY_ID}"):
            await open_test_keyring(database)

    async def test_a_data_key_does_not_unwrap_for_another_id(self, keyring: Keyring, database: Database) -> None:
        await keyring.add_data_key()
        first, second = await describe_data_keys(database)
        wrapped = data_keys.c.wrapped_key
        async with database.write_transaction() as connection:
            moved = await connection.scalar(
                data_keys.select().with_only_columns(wrapped).where(data_keys.c.key_id == first.key_id)
            )
            await connection.execute(
                update(data_keys).where(data_keys.c.key_id == second.key_id).values(wrapped_key=moved)
            )
        with pytest.raises(KeyringError, match=f"data key {second.key_id} does not unwrap"):
            await open_test_keyring(database)

    async def test_an_unknown_data_key_does_not_affect_the_others(self, keyring: Keyring, database: Database) -> None:
        before = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        other = await open_test_keyring(database, OTHER_KEY, KEY)
        await other.add_data_key()
        after = await other.encrypt(PLAINTEXT, ASSOCIATED_DATA)

        with pytest.raises(CredentialsUnreadable):
            await keyring.decrypt(after, ASSOCIATED_DATA)
        with pytest.raises(KeyringError, match=OTHER_KEY_ID):
            await keyring.reload()
        assert await keyring.decrypt(before, ASSOCIATED_DATA) == PLAINTEXT
        assert await other.decrypt(await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA), ASSOCIATED_DATA) == PLAINTEXT

    @pytest.mark.parametrize("length", [0, 16, 31, 33])
    async def test_other_key_lengths_are_rejected(self, database: Database, length: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            await open_test_keyring(database, bytes(length))


def forms_of(secret: bytes) -> Sequence[bytes]:
    """The encodings of a secret that are searched for."""
    return (
        secret,
        secret.hex().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
    )


async def test_the_files_contain_neither_credentials_nor_keys(sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    async with open_database(sqlite_url) as database:
        keyring = await open_test_keyring(database)
        encrypted = await keyring.encrypt(PLAINTEXT, ASSOCIATED_DATA)
        await SqlRows(database).add_connected(new_integration(), account("a"), new_credentials(encrypted), NOW)
        attempt = new_attempt(encrypted_details=encrypted)
        await SqlAuthorizationAttempts(database).begin(attempt, new_integration())
        await SqlAuthorizationAttempts(database).store_pending_callback(attempt.attempt_id, encrypted, encrypted, NOW)
        async with database.read_connection() as connection:
            ((key_id, wrapped_key),) = await connection.execute(text("SELECT key_id, wrapped_key FROM data_keys"))
        data_key = await LocalKey(KEY).unwrap(wrapped_key, key_id)
        files = b"".join(file.read_bytes() for file in path.parent.iterdir())

    assert files.count(encrypted) >= 3  # the files contain the encrypted value
    for secret in (b"at-confidential", b"rt-confidential", PLAINTEXT, data_key, KEY):
        assert not any(form in files for form in forms_of(secret))
