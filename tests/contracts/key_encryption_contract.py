"""The contract of `KeyEncryptionKey`: a data key unwraps for its own id only, and not when it was altered."""

import pytest

from integration_server.storage.key_encryption import KeyEncryptionKey, KeyringError, UnwrapError

DATA_KEY, DATA_KEY_ID = bytes(range(32)), "0123456789abcdef"

REFUSALS = (UnwrapError, KeyringError)
"""What refuses a key of another key. A KMS may deny the access to the key that it names rather than compare it."""


class KeyEncryptionContract:
    """The subclass has a fixture `key`, a key, and `other_key`, another key in the same place."""

    async def test_a_data_key_unwraps_for_its_own_id_only(self, key: KeyEncryptionKey) -> None:
        wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
        assert DATA_KEY not in wrapped
        assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY
        for other_id in ("fedcba9876543210", "", DATA_KEY_ID + "0", "key-set"):
            with pytest.raises(UnwrapError):
                await key.unwrap(wrapped, other_id)

    async def test_two_wrappings_of_a_key_differ(self, key: KeyEncryptionKey) -> None:
        assert await key.wrap(DATA_KEY, DATA_KEY_ID) != await key.wrap(DATA_KEY, DATA_KEY_ID)

    async def test_an_altered_key_does_not_unwrap(self, key: KeyEncryptionKey) -> None:
        wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
        middle = len(wrapped) - 8
        flipped = wrapped[:middle] + bytes([wrapped[middle] ^ 1]) + wrapped[middle + 1 :]
        for altered in (b"", b"short", flipped):
            with pytest.raises(UnwrapError):
                await key.unwrap(altered, DATA_KEY_ID)
        for foreign in (b"\xff\x00", wrapped[:-8], wrapped + b"=", wrapped * 2, b"vault:v1:" + b"A" * 80):
            with pytest.raises(REFUSALS):
                await key.unwrap(foreign, DATA_KEY_ID)

    async def test_another_key_does_not_unwrap(self, key: KeyEncryptionKey, other_key: KeyEncryptionKey) -> None:
        assert key.key_id != other_key.key_id
        wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
        with pytest.raises(REFUSALS):
            await other_key.unwrap(wrapped, DATA_KEY_ID)
        assert not key.is_outdated(wrapped)

    async def test_the_id_fits_into_the_table(self, key: KeyEncryptionKey) -> None:
        assert 0 < len(key.key_id) <= 255
        assert key.key_id.isascii()
