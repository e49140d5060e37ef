"""Tests of key-encryption keys in AWS KMS, simulated by moto: requests, and the conversion of errors."""

from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws
from sqlalchemy import update

from integration_server.domain.associated_data import AssociatedData
from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.storage.aws_kms import AwsKmsKey, open_aws_kms
from integration_server.storage.data_keys import describe_data_keys, rewrap
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyEncryptionKeys, KeyringError, LocalKey
from integration_server.storage.keyring import open_keyring
from integration_server.storage.tables import data_keys
from tests.contracts.key_encryption_contract import DATA_KEY, DATA_KEY_ID, KeyEncryptionContract
from tests.keyrings import KEY, KEY_ID, open_test_keyring

REGION = "eu-central-1"
ASSOCIATED_DATA = AssociatedData("integrations", "encrypted_credentials", "uid", "ann", "acme")


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A KMS client that creates keys."""
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with mock_aws():
        yield botocore.session.get_session().create_client("kms", region_name=REGION)


@pytest.fixture
def arn(kms: Any) -> str:
    """The ARN of a new key."""
    return new_key(kms)


def new_key(kms: Any, **parameters: str) -> str:
    return str(kms.create_key(**parameters)["KeyMetadata"]["Arn"])


async def open_key(key_id: str) -> AwsKmsKey:
    (key,) = await open_aws_kms([key_id])
    return key


class FailingKms:
    """A KMS client that raises one error for every call."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def decrypt(self, **_parameters: object) -> Mapping[str, Any]:
        raise self.error

    encrypt = decrypt


def client_error(code: str) -> Exception:
    error: Exception = ClientError({"Error": {"Code": code, "Message": "message of AWS"}}, "Decrypt")
    return error


class TestContract(KeyEncryptionContract):
    """The contract of all key-encryption keys."""

    @pytest.fixture
    async def key(self, arn: str) -> AwsKmsKey:
        return await open_key(arn)

    @pytest.fixture
    async def other_key(self, kms: Any) -> AwsKmsKey:
        return await open_key(new_key(kms))


async def test_an_alias_is_resolved_to_the_arn(kms: Any, arn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kms.create_alias(AliasName="alias/integrations", TargetKeyId=arn)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    key = await open_key("alias/integrations")
    assert key.key_id == arn
    assert (await open_key(arn.rpartition("/")[2])).key_id == arn
    wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
    kms.update_alias(AliasName="alias/integrations", TargetKeyId=new_key(kms))
    assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY


async def test_a_key_without_a_region_is_reported(kms: Any) -> None:
    assert kms
    with pytest.raises(
        KeyringError, match="KMS_KEY_ID: key alias/integrations of AWS KMS has no region; give its ARN, or set AWS"
    ):
        await open_key("alias/integrations")


async def test_a_missing_key_is_reported_at_start(kms: Any) -> None:
    missing = f"arn:aws:kms:{REGION}:123456789012:key/00000000-0000-0000-0000-000000000000"
    assert kms
    with pytest.raises(KeyringError, match=f"key {missing} of AWS KMS cannot be used: NotFoundException"):
        await open_key(missing)


async def test_a_signing_key_is_rejected(kms: Any) -> None:
    signing = new_key(kms, KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")
    with pytest.raises(KeyringError, match="is not a symmetric key"):
        await open_key(signing)


@pytest.mark.parametrize("code", ["AccessDeniedException", "DisabledException", "KMSInvalidStateException"])
async def test_configuration_errors_are_reported(code: str) -> None:
    key = AwsKmsKey(FailingKms(client_error(code)), "arn:aws:kms:somewhere")
    with pytest.raises(KeyringError, match=f"key arn:aws:kms:somewhere of AWS KMS cannot be used: {code};"):
        await key.unwrap(b"", DATA_KEY_ID)


@pytest.mark.parametrize(
    "error",
    [
        client_error("ThrottlingException"),
        client_error("KMSInternalException"),
        client_error("DependencyTimeoutException"),
        EndpointConnectionError(endpoint_url="https://kms.example"),
    ],
    ids=str,
)
async def test_temporary_errors_are_reported_as_unavailable(error: Exception) -> None:
    key = AwsKmsKey(FailingKms(error), "arn:aws:kms:somewhere")
    for call in (key.wrap, key.unwrap):
        with pytest.raises(StoreUnavailable, match="AWS KMS is unavailable") as caught:
            await call(DATA_KEY, DATA_KEY_ID)
        assert "arn:" not in str(caught.value)  # callers see this message


@pytest.mark.quick_on("sqlite")
class TestKeyring:
    async def test_wraps_data_keys(self, database: Database, arn: str) -> None:
        keyring = await open_keyring(database, KeyEncryptionKeys(await open_key(arn)))
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        reopened = await open_keyring(database, KeyEncryptionKeys(await open_key(arn)))
        assert await reopened.decrypt(encrypted, ASSOCIATED_DATA) == b"secret"
        assert [key.wrapping_key_id for key in await describe_data_keys(database)] == [arn]

    @pytest.mark.slow
    async def test_the_error_names_the_missing_key(self, database: Database, kms: Any, arn: str) -> None:
        await open_keyring(database, KeyEncryptionKeys(await open_key(arn)))
        other = new_key(kms)
        for wrong in (KeyEncryptionKeys(await open_key(other)), KeyEncryptionKeys(LocalKey(KEY))):
            with pytest.raises(KeyringError, match=f"wrapped by key {arn}, which is not configured"):
                await open_keyring(database, wrong)

    @pytest.mark.slow
    async def test_a_running_server_calls_kms_for_new_data_keys_only(self, database: Database, arn: str) -> None:
        kms_key = await open_key(arn)
        keyring = await open_keyring(database, KeyEncryptionKeys(kms_key))
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        down = FailingKms(EndpointConnectionError(endpoint_url="https://kms.example"))
        keys = KeyEncryptionKeys(kms_key)
        other = await open_keyring(database, keys)
        kms_key._client, working = down, kms_key._client  # KMS becomes unavailable
        await other.reload()
        assert await other.decrypt(encrypted, ASSOCIATED_DATA) == b"secret"

        kms_key._client = working
        await keyring.add_data_key()
        newer = await keyring.encrypt(b"newer", ASSOCIATED_DATA)
        kms_key._client = down
        with pytest.raises(StoreUnavailable):
            await other.reload()
        with pytest.raises(StoreUnavailable):  # not CredentialsUnreadable: the value is intact
            await other.decrypt(newer, ASSOCIATED_DATA)
        assert await other.decrypt(encrypted, ASSOCIATED_DATA) == b"secret"

        kms_key._client = working
        assert await other.decrypt(newer, ASSOCIATED_DATA) == b"newer"

    @pytest.mark.slow
    async def test_rewraps_from_local_to_kms_to_another_key_and_back(
        self, database: Database, kms: Any, arn: str
    ) -> None:
        keyring = await open_test_keyring(database)
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        other = new_key(kms)
        steps = (
            (KeyEncryptionKeys(await open_key(arn), [LocalKey(KEY)]), KeyEncryptionKeys(await open_key(arn)), arn),
            (
                KeyEncryptionKeys(await open_key(other), [await open_key(arn)]),
                KeyEncryptionKeys(await open_key(other)),
                other,
            ),
            (KeyEncryptionKeys(LocalKey(KEY), [await open_key(other)]), KeyEncryptionKeys(LocalKey(KEY)), KEY_ID),
        )
        for both, alone, key_id in steps:
            with pytest.raises(KeyringError, match="which is not configured"):
                await open_keyring(database, alone)
            assert await rewrap(database, both, keyring) == 1
            assert await (await open_keyring(database, alone)).decrypt(encrypted, ASSOCIATED_DATA) == b"secret"
            assert [key.wrapping_key_id for key in await describe_data_keys(database)] == [key_id]

    async def test_a_data_key_under_another_id_does_not_unwrap(self, database: Database, arn: str) -> None:
        keyring = await open_keyring(database, KeyEncryptionKeys(await open_key(arn)))
        async with database.write_transaction() as connection:
            await connection.execute(update(data_keys).values(key_id="f" * 16))
        with pytest.raises(KeyringError, match=f"data key {'f' * 16} does not unwrap with key {arn}"):
            await open_keyring(database, KeyEncryptionKeys(await open_key(arn)))
        with pytest.raises(CredentialsUnreadable):
            await keyring.decrypt(b"\x01" + bytes(63), ASSOCIATED_DATA)
