"""A key-encryption key in AWS KMS: it never leaves there. Needs the extra `aws`.

A data key goes to KMS to be wrapped when it is made, and to be unwrapped once in each process that learns of it: calls
are rare, and made in a thread. Region and credentials are found as AWS's own tools find them: in environment variables,
profiles, the machine's or the container's role.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.key_encryption import KeyringError, UnwrapError

_CONTEXT = "integration-server-data-key"
"""The encryption context's name: KMS authenticates it, and CloudTrail records it (KMS developer guide)."""

_CONFIG = Config(
    connect_timeout=3,  # seconds; KMS answers in tens of milliseconds
    read_timeout=5,
    retries={"total_max_attempts": 3, "mode": "standard"},  # throttling and passing faults
)

_UNWRAP_ERROR_CODES = frozenset({"IncorrectKeyException", "InvalidCiphertextException"})

_CONFIGURATION_ERROR_CODES = frozenset(
    {
        "AccessDeniedException", "DisabledException", "ExpiredTokenException", "IncompleteSignature",
        "InvalidArnException", "InvalidClientTokenId", "InvalidGrantTokenException", "InvalidKeyUsageException",
        "InvalidSignatureException", "KMSInvalidStateException", "NotFoundException", "UnrecognizedClientException",
        "ValidationException",
    }
)  # fmt: skip
"""What an operator has to mend, of KMS's errors (API reference: Decrypt, Common Errors). The others may pass."""


class AwsKmsKey:
    """A `KeyEncryptionKey` by a symmetric key in KMS. Made by `open_aws_kms`; its id is its ARN."""

    def __init__(self, client: BaseClient, arn: str) -> None:
        self._client = client
        self.key_id = arn

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """The data key, encrypted by KMS for this id."""
        response = await _call(
            self._client.encrypt, self.key_id, Plaintext=data_key, EncryptionContext={_CONTEXT: data_key_id}
        )
        return bytes(response["CiphertextBlob"])

    async def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """The data key of this id."""
        response = await _call(
            self._client.decrypt, self.key_id, CiphertextBlob=wrapped, EncryptionContext={_CONTEXT: data_key_id}
        )
        return bytes(response["Plaintext"])


async def open_aws_kms(key_ids: Sequence[str]) -> Sequence[AwsKmsKey]:
    """These keys of KMS: ARNs, ids, or aliases of either. Raises `KeyringError` or `StoreUnavailable`.

    An alias stands for the key that it names now; the ARN of that is what is kept.
    """
    return [await _open(key_id) for key_id in key_ids]


async def _open(key_id: str) -> AwsKmsKey:
    try:
        client = await asyncio.to_thread(_client, _region(key_id))  # reads files, for a tenth of a second
    except NoRegionError:
        raise KeyringError(f"key {key_id} has no region: give its ARN, or set AWS_REGION") from None
    except (BotoCoreError, ValueError) as error:
        raise KeyringError(f"key {key_id} of AWS KMS cannot be used: {type(error).__name__}") from error
    described = (await _call(client.describe_key, key_id))["KeyMetadata"]
    if described.get("KeySpec", "SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT":
        raise KeyringError(f"key {key_id} of AWS KMS is not a symmetric key for encryption")
    return AwsKmsKey(client, described["Arn"])


def _client(region: str | None) -> BaseClient:
    session = botocore.session.Session()
    return session.create_client("kms", region_name=region, config=_CONFIG)


def _region(key_id: str) -> str | None:
    """The region in an ARN: a key is in that one, whatever the environment says."""
    match = re.match(r"arn:[^:]+:kms:([^:]+):", key_id)
    return None if match is None else match[1]


async def _call(operation: Callable[..., Any], key_id: str, **parameters: object) -> Mapping[str, Any]:
    """Call KMS for this key; its errors as ours. They quote KMS's error code, and not its message."""
    try:
        response: Mapping[str, Any] = await asyncio.to_thread(operation, KeyId=key_id, **parameters)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code in _UNWRAP_ERROR_CODES:
            raise UnwrapError from None
        if code in _CONFIGURATION_ERROR_CODES:
            raise KeyringError(f"key {key_id} of AWS KMS cannot be used: {code}") from error
        raise StoreUnavailable(f"AWS KMS does not answer: {code}") from error
    except NoCredentialsError:
        raise KeyringError(f"key {key_id} of AWS KMS cannot be used: no AWS credentials are found") from None
    except BotoCoreError as error:
        raise StoreUnavailable(f"AWS KMS does not answer: {type(error).__name__}") from error
    return response
