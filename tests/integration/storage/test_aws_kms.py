"""Key-encryption keys in AWS KMS, which moto plays: what it is asked, and what each of its refusals means."""

from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws
from sqlalchemy import update

from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.service.ports import Place
from integration_server.storage.aws_kms import AwsKmsKey, open_aws_kms
from integration_server.storage.data_keys import describe_data_keys, rewrap
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import DoesNotUnwrap, KeyEncryptions, KeyringError, LocalKey
from integration_server.storage.keyring import open_keyring
from integration_server.storage.tables import data_keys
from tests.keyrings import KEY, KEY_ID, opened

REGION = "eu-central-1"
DATA_KEY, DATA_KEY_ID = bytes(range(32)), "0123456789abcdef"
PLACE = Place("integrations", "sealed_credentials", "uid", "ann", "acme")


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An operator's own client of KMS."""
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with mock_aws():
        yield botocore.session.get_session().create_client("kms", region_name=REGION)


@pytest.fixture
def arn(kms: Any) -> str:
    """A key."""
    return new_key(kms)


def new_key(kms: Any, **parameters: str) -> str:
    return str(kms.create_key(**parameters)["KeyMetadata"]["Arn"])


async def only(key_id: str) -> AwsKmsKey:
    (key,) = await open_aws_kms([key_id])
    return key


class Refusing:
    """A client of KMS that answers everything with one error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def decrypt(self, **_parameters: object) -> Mapping[str, Any]:
        raise self.error

    encrypt = decrypt


def client_error(code: str) -> Exception:
    error: Exception = ClientError({"Error": {"Code": code, "Message": "as told by AWS"}}, "Decrypt")
    return error


async def test_what_it_wraps_it_unwraps_for_the_same_id_only(arn: str) -> None:
    key = await only(arn)
    wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
    assert DATA_KEY not in wrapped
    assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY
    with pytest.raises(DoesNotUnwrap):
        await key.unwrap(wrapped, "fedcba9876543210")


async def test_what_was_altered_does_not_unwrap(arn: str) -> None:
    key = await only(arn)
    wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
    for altered in (b"short", wrapped[:-1] + bytes([wrapped[-1] ^ 1])):
        with pytest.raises(DoesNotUnwrap):
            await key.unwrap(altered, DATA_KEY_ID)


async def test_an_alias_stands_for_the_key_that_it_names(kms: Any, arn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kms.create_alias(AliasName="alias/integrations", TargetKeyId=arn)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    key = await only("alias/integrations")
    assert key.key_id == arn
    assert (await only(arn.rpartition("/")[2])).key_id == arn
    wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
    kms.update_alias(AliasName="alias/integrations", TargetKeyId=new_key(kms))
    assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY


async def test_a_key_without_a_region_is_told(kms: Any) -> None:
    assert kms
    with pytest.raises(KeyringError, match="key alias/integrations has no region: give its ARN, or set AWS"):
        await only("alias/integrations")


async def test_a_key_that_is_not_there_is_told_at_once(kms: Any) -> None:
    gone = f"arn:aws:kms:{REGION}:123456789012:key/00000000-0000-0000-0000-000000000000"
    assert kms
    with pytest.raises(KeyringError, match=f"key {gone} of AWS KMS cannot be used: NotFoundException"):
        await only(gone)


async def test_a_key_for_signing_is_refused(kms: Any) -> None:
    signing = new_key(kms, KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")
    with pytest.raises(KeyringError, match="is not a symmetric key"):
        await only(signing)


@pytest.mark.parametrize("code", ["AccessDeniedException", "DisabledException", "KMSInvalidStateException"])
async def test_what_an_operator_has_to_mend_is_told(code: str) -> None:
    key = AwsKmsKey(Refusing(client_error(code)), "arn:aws:kms:somewhere")
    with pytest.raises(KeyringError, match=f"key arn:aws:kms:somewhere of AWS KMS cannot be used: {code}$"):
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
async def test_what_passes_means_that_it_is_away(error: Exception) -> None:
    key = AwsKmsKey(Refusing(error), "arn:aws:kms:somewhere")
    for call in (key.wrap, key.unwrap):
        with pytest.raises(StoreUnavailable, match="AWS KMS does not answer") as caught:
            await call(DATA_KEY, DATA_KEY_ID)
        assert "arn:" not in str(caught.value)  # callers are told this one


class TestKeyring:
    async def test_data_keys_are_wrapped_by_it(self, database: Database, arn: str) -> None:
        keyring = await open_keyring(database, KeyEncryptions(await only(arn)))
        sealed = await keyring.seal(b"secret", PLACE)
        anew = await open_keyring(database, KeyEncryptions(await only(arn)))
        assert await anew.open(sealed, PLACE) == b"secret"
        assert [key.wrapping_key_id for key in await describe_data_keys(database)] == [arn]

    async def test_another_key_is_refused_by_name(self, database: Database, kms: Any, arn: str) -> None:
        await open_keyring(database, KeyEncryptions(await only(arn)))
        other = new_key(kms)
        for wrong in (KeyEncryptions(await only(other)), KeyEncryptions(LocalKey(KEY))):
            with pytest.raises(KeyringError, match=f"wrapped by key {arn}, which is not configured"):
                await open_keyring(database, wrong)

    async def test_a_running_server_needs_it_for_new_data_keys_only(self, database: Database, arn: str) -> None:
        good = await only(arn)
        keyring = await open_keyring(database, KeyEncryptions(good))
        sealed = await keyring.seal(b"secret", PLACE)
        down = Refusing(EndpointConnectionError(endpoint_url="https://kms.example"))
        keys = KeyEncryptions(good)
        other = await open_keyring(database, keys)
        good._client, working = down, good._client  # it goes down
        await other.reload()
        assert await other.open(sealed, PLACE) == b"secret"

        good._client = working
        await keyring.add_data_key()
        newer = await keyring.seal(b"newer", PLACE)
        good._client = down
        with pytest.raises(StoreUnavailable):
            await other.reload()
        with pytest.raises(StoreUnavailable):  # and not CredentialsUnreadable: nothing is wrong with the value
            await other.open(newer, PLACE)
        assert await other.open(sealed, PLACE) == b"secret"

        good._client = working
        assert await other.open(newer, PLACE) == b"newer"

    async def test_from_local_to_kms_to_another_and_back(self, database: Database, kms: Any, arn: str) -> None:
        keyring = await opened(database)
        sealed = await keyring.seal(b"secret", PLACE)
        other = new_key(kms)
        ways = (
            (KeyEncryptions(await only(arn), [LocalKey(KEY)]), KeyEncryptions(await only(arn)), arn),
            (KeyEncryptions(await only(other), [await only(arn)]), KeyEncryptions(await only(other)), other),
            (KeyEncryptions(LocalKey(KEY), [await only(other)]), KeyEncryptions(LocalKey(KEY)), KEY_ID),
        )
        for both, alone, key_id in ways:
            with pytest.raises(KeyringError, match="which is not configured"):
                await open_keyring(database, alone)
            assert await rewrap(database, both) == 1
            assert await (await open_keyring(database, alone)).open(sealed, PLACE) == b"secret"
            assert [key.wrapping_key_id for key in await describe_data_keys(database)] == [key_id]

    async def test_a_data_key_under_another_id_does_not_unwrap(self, database: Database, arn: str) -> None:
        keyring = await open_keyring(database, KeyEncryptions(await only(arn)))
        async with database.writing() as connection:
            await connection.execute(update(data_keys).values(key_id="f" * 16))
        with pytest.raises(KeyringError, match=f"data key {'f' * 16} does not open with key {arn}"):
            await open_keyring(database, KeyEncryptions(await only(arn)))
        with pytest.raises(CredentialsUnreadable):
            await keyring.open(b"\x01" + bytes(63), PLACE)
