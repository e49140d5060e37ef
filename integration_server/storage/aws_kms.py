"""A key-encryption key in AWS KMS, which never leaves KMS. Needs the extra `aws`.

KMS wraps a data key when it is created and unwraps it once in each process, so calls are rare; they run in a thread.
Region and credentials come from the default chain of AWS's tools: environment variables, profiles, and the role of the
machine or the container.
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
"""The name in the encryption context, which KMS authenticates and CloudTrail records (KMS developer guide)."""

_CONFIG = Config(
    connect_timeout=3,  # seconds; KMS responds in tens of milliseconds
    read_timeout=5,
    retries={"total_max_attempts": 3, "mode": "standard"},  # throttling and temporary faults
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
"""KMS errors that an operator must correct (API reference: Decrypt, Common Errors). Others may be temporary."""


class AwsKmsKey:
    """A `KeyEncryptionKey` with a symmetric key in KMS. Created by `open_aws_kms`; its id is its ARN."""

    def __init__(self, client: BaseClient, arn: str) -> None:
        self._client = client
        self.key_id = arn

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """Encrypt a data key for this id."""
        response = await _call(
            self._client.encrypt, self.key_id, Plaintext=data_key, EncryptionContext={_CONTEXT: data_key_id}
        )
        return bytes(response["CiphertextBlob"])

    async def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """Decrypt the data key of this id."""
        response = await _call(
            self._client.decrypt, self.key_id, CiphertextBlob=wrapped, EncryptionContext={_CONTEXT: data_key_id}
        )
        return bytes(response["Plaintext"])

    def is_outdated(self, wrapped: bytes) -> bool:
        """False: KMS keeps every version of the material, and does not show which one a key was wrapped with."""
        return False


async def open_aws_kms(key_ids: Sequence[str]) -> Sequence[AwsKmsKey]:
    """Open keys of KMS by ARN, id or alias. Raises `KeyringError` or `StoreUnavailable`.

    An alias is resolved now; the ARN of its key is stored.
    """
    return [await _open(key_id) for key_id in key_ids]


async def _open(key_id: str) -> AwsKmsKey:
    try:
        client = await asyncio.to_thread(_client, _region(key_id))  # reads files, which takes 0.1 s
    except NoRegionError:
        raise _unusable(key_id, "has no region; give its ARN, or set AWS_REGION") from None
    except (BotoCoreError, ValueError) as error:
        raise _unusable(
            key_id, f"cannot be used: {type(error).__name__}; correct the key's id and AWS_REGION"
        ) from error
    described = (await _call(client.describe_key, key_id))["KeyMetadata"]
    if described.get("KeySpec", "SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT":
        raise _unusable(key_id, "is not a symmetric key for encryption; name one that is")
    return AwsKmsKey(client, described["Arn"])


def _unusable(key_id: str, problem: str) -> KeyringError:
    return KeyringError(f"KMS_KEY_ID: key {key_id} of AWS KMS {problem}")


def _client(region: str | None) -> BaseClient:
    session = botocore.session.Session()
    return session.create_client("kms", region_name=region, config=_CONFIG)


def _region(key_id: str) -> str | None:
    """The region in an ARN, which takes precedence over the environment."""
    match = re.match(r"arn:[^:]+:kms:([^:]+):", key_id)
    return None if match is None else match[1]


async def _call(operation: Callable[..., Any], key_id: str, **parameters: object) -> Mapping[str, Any]:
    """Call KMS with this key, and convert its errors. Messages contain KMS's error code but not its message."""
    try:
        response: Mapping[str, Any] = await asyncio.to_thread(operation, KeyId=key_id, **parameters)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code in _UNWRAP_ERROR_CODES:
            raise UnwrapError from None
        if code in _CONFIGURATION_ERROR_CODES:
            raise _unusable(
                key_id, f"cannot be used: {code}; correct the id, or what the key's policy permits"
            ) from error
        raise StoreUnavailable(
            f"KMS_KEY_ID: AWS KMS is unavailable: {code}; check its status, and try again"
        ) from error
    except NoCredentialsError:
        raise _unusable(key_id, "cannot be used: no AWS credentials are found; set AWS_PROFILE or the role") from None
    except BotoCoreError as error:
        raise StoreUnavailable(
            f"KMS_KEY_ID: AWS KMS is unavailable: {type(error).__name__}; check network, proxy and AWS_REGION"
        ) from error
    return response
