"""Sealed values open in their place only, keyrings share their data keys, and wrong keys are refused by name."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text, update

from integration_server.domain.errors import CredentialsUnreadable
from integration_server.service.ports import Place
from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.keyring import (
    DataKeyInfo,
    Keyring,
    KeyringError,
    WrappingKey,
    describe_data_keys,
    open_keyring,
)
from integration_server.storage.tables import data_keys
from tests.contracts.store_contract import NOW, account, new_attempt, new_credentials, new_integration

KEY, OTHER_KEY = bytes(range(32)), bytes(range(100, 132))
KEY_ID, OTHER_KEY_ID = WrappingKey(KEY).key_id, WrappingKey(OTHER_KEY).key_id
PLACE = Place("integrations", "sealed_credentials", "uid", "ann", "acme")
PLAINTEXT = b'{"access_token":"at-confidential","refresh_token":"rt-confidential"}'


def clock() -> datetime:
    return datetime(2026, 3, 1, tzinfo=UTC)


class Stopwatch:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def keyring(database: Database) -> Keyring:
    return await open_keyring(database, KEY, clock=clock)


class TestSealing:
    @pytest.fixture
    async def keyring(self, sqlite_url: str) -> AsyncIterator[Keyring]:
        async with open_database(sqlite_url) as database:
            yield await open_keyring(database, KEY, clock=clock)

    @pytest.mark.parametrize("plaintext", [b"", b"\x00", PLAINTEXT, bytes(100_000)], ids=len)
    async def test_opens_in_its_place(self, keyring: Keyring, plaintext: bytes) -> None:
        sealed = await keyring.seal(plaintext, PLACE)
        assert await keyring.open(sealed, PLACE) == plaintext
        assert len(sealed) == 1 + 8 + 12 + len(plaintext) + 16

    async def test_never_looks_the_same_twice(self, keyring: Keyring) -> None:
        sealed = [await keyring.seal(PLAINTEXT, PLACE) for _ in range(100)]
        assert len({value[9:21] for value in sealed}) == 100

    async def test_does_not_open_with_any_bit_flipped(self, keyring: Keyring) -> None:
        sealed = await keyring.seal(b"secret", PLACE)
        for bit in range(len(sealed) * 8):
            flipped = bytearray(sealed)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CredentialsUnreadable):
                await keyring.open(bytes(flipped), PLACE)

    @pytest.mark.parametrize(
        "elsewhere",
        [
            replace(PLACE, table="connection_attempts"),
            replace(PLACE, column="sealed_verifier"),
            replace(PLACE, uid="another"),
            replace(PLACE, user_id="bob"),
            replace(PLACE, integration_type="other"),
            replace(PLACE, user_id="annacme", integration_type=""),
            replace(PLACE, user_id="", integration_type="annacme"),
            replace(PLACE, uid="uidann", user_id=""),
            replace(PLACE, user_id="acme", integration_type="ann"),
        ],
        ids=str,
    )
    async def test_does_not_open_elsewhere(self, keyring: Keyring, elsewhere: Place) -> None:
        sealed = await keyring.seal(PLAINTEXT, PLACE)
        with pytest.raises(CredentialsUnreadable):
            await keyring.open(sealed, elsewhere)

    async def test_does_not_open_when_cut_or_continued(self, keyring: Keyring) -> None:
        sealed = await keyring.seal(b"secret", PLACE)
        wrong = [sealed[:length] for length in range(len(sealed))]
        wrong += [sealed[length:] for length in range(1, len(sealed))]
        wrong += [sealed + b"\x00", sealed * 2]
        for value in wrong:
            with pytest.raises(CredentialsUnreadable):
                await keyring.open(value, PLACE)

    @pytest.mark.parametrize("value", [b"", b"\x01", PLAINTEXT, bytes(64), b"\x01" + bytes(63)])
    async def test_does_not_open_what_was_never_sealed(self, keyring: Keyring, value: bytes) -> None:
        with pytest.raises(CredentialsUnreadable):
            await keyring.open(value, PLACE)

    async def test_does_not_open_under_another_data_key(self, keyring: Keyring) -> None:
        first = await keyring.seal(PLAINTEXT, PLACE)
        await keyring.add_data_key()
        second = await keyring.seal(PLAINTEXT, PLACE)
        with pytest.raises(CredentialsUnreadable):
            await keyring.open(second[:9] + first[9:], PLACE)
        assert await keyring.open(first, PLACE) == PLAINTEXT

    async def test_hides_its_keys(self, keyring: Keyring) -> None:
        assert not any(form in repr(keyring).encode() for form in forms_of(KEY))


class TestDataKeys:
    async def test_a_new_one_seals_and_former_ones_go_on_opening(self, keyring: Keyring, database: Database) -> None:
        before = await keyring.seal(PLAINTEXT, PLACE)
        new_id = await keyring.add_data_key()
        after = await keyring.seal(PLAINTEXT, PLACE)

        assert after[1:9].hex() == new_id != before[1:9].hex()
        assert await keyring.open(before, PLACE) == await keyring.open(after, PLACE) == PLAINTEXT
        described = sorted(await describe_data_keys(database), key=lambda data_key: data_key.is_active)
        assert described == [
            DataKeyInfo(before[1:9].hex(), KEY_ID, is_active=False, create_time=clock()),
            DataKeyInfo(new_id, KEY_ID, is_active=True, create_time=clock()),
        ]

    async def test_keyrings_of_one_database_learn_each_others(self, keyring: Keyring, database: Database) -> None:
        other = await open_keyring(database, KEY, clock=clock)
        for one, another in ((keyring, other), (other, keyring)):
            await one.add_data_key()
            assert await another.open(await one.seal(PLAINTEXT, PLACE), PLACE) == PLAINTEXT

    async def test_one_that_was_added_elsewhere_seals_after_a_reload(
        self, keyring: Keyring, database: Database
    ) -> None:
        added = await (await open_keyring(database, KEY, clock=clock)).add_data_key()
        assert (await keyring.seal(PLAINTEXT, PLACE))[1:9].hex() != added
        await keyring.reload()
        assert (await keyring.seal(PLAINTEXT, PLACE))[1:9].hex() == added

    async def test_forged_key_ids_are_looked_for_once_a_second(self, keyring: Keyring, database: Database) -> None:
        stopwatch = Stopwatch()
        flooded = await open_keyring(database, KEY, clock=clock, monotonic=stopwatch)
        for _ in range(100):
            with pytest.raises(CredentialsUnreadable):
                await flooded.open(b"\x01" + os.urandom(63), PLACE)

        await keyring.add_data_key()
        sealed = await keyring.seal(PLAINTEXT, PLACE)
        with pytest.raises(CredentialsUnreadable):
            await flooded.open(sealed, PLACE)
        stopwatch.now += 1
        assert await flooded.open(sealed, PLACE) == PLAINTEXT

    async def test_many_readers_of_an_unknown_key_look_once(self, keyring: Keyring, database: Database) -> None:
        other = await open_keyring(database, KEY, clock=clock, monotonic=Stopwatch())
        await keyring.add_data_key()
        sealed = await keyring.seal(PLAINTEXT, PLACE)
        opened = await asyncio.gather(*(other.open(sealed, PLACE) for _ in range(50)))
        assert opened == [PLAINTEXT] * 50

    async def test_servers_that_start_at_once_make_one_and_share_it(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(open_database(database_url)) for _ in range(5)]
            keyrings = await asyncio.gather(*(open_keyring(database, KEY, clock=clock) for database in databases))
            sealed = [await keyring.seal(PLAINTEXT, PLACE) for keyring in keyrings]
            for keyring in keyrings:
                assert [await keyring.open(value, PLACE) for value in sealed] == [PLAINTEXT] * 5
            assert len(await describe_data_keys(databases[0])) == 1

    async def test_one_is_active_whoever_adds(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(open_database(database_url)) for _ in range(3)]
            keyrings = [await open_keyring(database, KEY, clock=clock) for database in databases]
            added = await asyncio.gather(*(keyring.add_data_key() for keyring in keyrings), return_exceptions=True)
            assert all(isinstance(outcome, str | KeyringError) for outcome in added)
            described = await describe_data_keys(databases[0])
            assert sum(data_key.is_active for data_key in described) == 1
            assert len(described) == 1 + sum(isinstance(outcome, str) for outcome in added)


class TestWrappingKeys:
    async def test_a_retired_one_still_unwraps_and_the_new_one_wraps(
        self, keyring: Keyring, database: Database
    ) -> None:
        sealed = await keyring.seal(PLAINTEXT, PLACE)
        rotated = await open_keyring(database, OTHER_KEY, [KEY], clock=clock)
        assert await rotated.open(sealed, PLACE) == PLAINTEXT
        await rotated.add_data_key()
        assert {data_key.wrapping_key_id for data_key in await describe_data_keys(database)} == {KEY_ID, OTHER_KEY_ID}

    @pytest.mark.usefixtures("keyring")
    async def test_a_wrong_one_is_refused_by_name(self, database: Database) -> None:
        with pytest.raises(KeyringError) as caught:
            await open_keyring(database, OTHER_KEY, [bytes(32)], clock=clock)
        message = str(caught.value)
        assert f"is wrapped by key {KEY_ID}, which is not configured" in message
        assert f"configured: {OTHER_KEY_ID}, {WrappingKey(bytes(32)).key_id}" in message
        assert not any(form in message.encode() for key in (KEY, OTHER_KEY) for form in forms_of(key))

    @pytest.mark.parametrize("wrapped", [b"", b"short", bytes(60)])
    @pytest.mark.usefixtures("keyring")
    async def test_an_altered_data_key_is_refused_by_name(self, database: Database, wrapped: bytes) -> None:
        async with database.writing() as connection:
            await connection.execute(update(data_keys).values(wrapped_key=wrapped))
        with pytest.raises(KeyringError, match=f"does not open with key {KEY_ID}"):
            await open_keyring(database, KEY, clock=clock)

    async def test_a_data_key_does_not_open_under_another_id(self, keyring: Keyring, database: Database) -> None:
        await keyring.add_data_key()
        first, second = await describe_data_keys(database)
        wrapped = data_keys.c.wrapped_key
        async with database.writing() as connection:
            moved = await connection.scalar(
                data_keys.select().with_only_columns(wrapped).where(data_keys.c.key_id == first.key_id)
            )
            await connection.execute(
                update(data_keys).where(data_keys.c.key_id == second.key_id).values(wrapped_key=moved)
            )
        with pytest.raises(KeyringError, match=f"data key {second.key_id} does not open"):
            await open_keyring(database, KEY, clock=clock)

    async def test_one_that_is_unknown_here_leaves_the_others_open(self, keyring: Keyring, database: Database) -> None:
        before = await keyring.seal(PLAINTEXT, PLACE)
        elsewhere = await open_keyring(database, OTHER_KEY, [KEY], clock=clock)
        await elsewhere.add_data_key()
        after = await elsewhere.seal(PLAINTEXT, PLACE)

        with pytest.raises(CredentialsUnreadable):
            await keyring.open(after, PLACE)
        with pytest.raises(KeyringError, match=OTHER_KEY_ID):
            await keyring.reload()
        assert await keyring.open(before, PLACE) == PLAINTEXT
        assert await elsewhere.open(await keyring.seal(PLAINTEXT, PLACE), PLACE) == PLAINTEXT

    @pytest.mark.parametrize("length", [0, 16, 31, 33])
    async def test_another_length_is_refused(self, database: Database, length: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            await open_keyring(database, bytes(length), clock=clock)


def forms_of(secret: bytes) -> Sequence[bytes]:
    """How a secret might be written down."""
    return (
        secret,
        secret.hex().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
    )


async def test_the_files_hold_neither_credentials_nor_keys(sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    async with open_database(sqlite_url) as database:
        keyring = await open_keyring(database, KEY, clock=clock)
        sealed = await keyring.seal(PLAINTEXT, PLACE)
        await SqlIntegrations(database).add_connected(new_integration(), account("a"), new_credentials(sealed), NOW)
        attempt = new_attempt(sealed_verifier=sealed)
        await SqlAttempts(database).begin(attempt, new_integration())
        await SqlAttempts(database).hold(attempt.attempt_id, sealed, NOW)
        async with database.reading() as connection:
            ((key_id, wrapped_key),) = await connection.execute(text("SELECT key_id, wrapped_key FROM data_keys"))
        data_key = WrappingKey(KEY).unwrap(wrapped_key, key_id)
        files = b"".join(file.read_bytes() for file in path.parent.iterdir())

    assert files.count(sealed) >= 3  # so this is where to look
    for secret in (b"at-confidential", b"rt-confidential", PLAINTEXT, data_key, KEY):
        assert not any(form in files for form in forms_of(secret))
