"""Tests of local key-encryption keys."""

import base64

import pytest

from integration_server.storage.key_encryption import LocalKey, parse_key
from tests.contracts.key_encryption_contract import KeyEncryptionContract

KEY = bytes(range(0xE0, 0x100))  # its base64 contains the characters that differ between the alphabets
STANDARD = base64.b64encode(KEY).decode()
URL_SAFE = base64.urlsafe_b64encode(KEY).decode()


class TestContract(KeyEncryptionContract):
    """The contract of all key-encryption keys."""

    @pytest.fixture
    def key(self) -> LocalKey:
        return LocalKey(KEY)

    @pytest.fixture
    def other_key(self) -> LocalKey:
        return LocalKey(bytes(32))


def test_the_example_differs_between_the_alphabets() -> None:
    assert STANDARD != URL_SAFE


@pytest.mark.parametrize("text", [STANDARD, URL_SAFE, STANDARD.rstrip("="), URL_SAFE.rstrip("="), f" {URL_SAFE}\n"])
def test_both_alphabets_are_parsed_with_and_without_padding(text: str) -> None:
    assert parse_key(text) == KEY


@pytest.mark.parametrize("length", [0, 1, 16, 31, 33, 64])
def test_the_error_states_the_length(length: int) -> None:
    text = base64.b64encode((KEY * 2)[:length]).decode()
    with pytest.raises(ValueError, match=f"^must be 32 bytes in base64; this is {length} bytes$"):
        parse_key(text)


@pytest.mark.parametrize(
    "text", ["correct horse battery staple", "A" * 41, "ключ", "====A", STANDARD[:20] + " " + STANDARD[20:]]
)
def test_the_error_does_not_quote_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="not base64") as caught:
        parse_key(text)
    assert text not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_key_id_is_stable_and_does_not_reveal_the_key() -> None:
    key = LocalKey(KEY)
    assert key.key_id == LocalKey(KEY).key_id
    assert key.key_id != LocalKey(bytes(32)).key_id
    assert len(key.key_id) == 8
    assert bytes.fromhex(key.key_id) not in KEY


def test_the_repr_contains_no_key() -> None:
    assert repr(LocalKey(KEY)) == f"LocalKey(key_id='{LocalKey(KEY).key_id}')"


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"must be 32 bytes, not {length}"):
        LocalKey(bytes(length))
