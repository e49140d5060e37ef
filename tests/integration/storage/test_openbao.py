"""Tests of key-encryption keys in OpenBao, with a real server: requests, authentication, conversion of errors."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.jwk import ECKey
from sqlalchemy import select, update

from integration_server.domain.associated_data import AssociatedData
from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.data_keys import describe_data_keys, rewrap
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyEncryptionKeys, KeyringError, LocalKey, UnwrapError
from integration_server.storage.keyring import open_keyring
from integration_server.storage.openbao import JwtLogin, OpenBao, OpenBaoKey, TokenFile, open_openbao_keys
from integration_server.storage.tables import data_keys, key_sets
from tests.contracts.key_encryption_contract import DATA_KEY, DATA_KEY_ID, KeyEncryptionContract
from tests.keyrings import KEY, KEY_ID, open_test_keyring
from tests.openbao import RunningOpenBao

ASSOCIATED_DATA = AssociatedData("integrations", "encrypted_credentials", "uid", "ann", "acme")


@pytest.fixture
def mount() -> str:
    """The path of an engine that no other test uses."""
    return f"teams/{uuid4().hex[:8]}"


@pytest.fixture
def key_id(bao: RunningOpenBao, mount: str) -> str:
    """The id of a new key."""
    return bao.new_key(mount, "main")


@pytest.fixture
def token_path(bao: RunningOpenBao, mount: str, key_id: str, tmp_path: Path) -> Path:
    """A file with a token that may use the keys `main` and `other` of the mount, and nothing else."""
    assert key_id
    bao.new_key(mount, "other")
    path = tmp_path / "token"
    prefix = mount.replace("/", "-")
    path.write_text(bao.new_token(f"{prefix}-main", f"{prefix}-other") + "\n")
    return path


async def open_key(server: OpenBao, key_id: str) -> OpenBaoKey:
    (key,) = await open_openbao_keys(server, [key_id])
    return key


def read_token(path: Path) -> str:
    return path.read_text().strip()


def write_token(path: Path, token: str) -> None:
    path.write_text(f"{token}\n")


class TestContract(KeyEncryptionContract):
    """The contract of all key-encryption keys."""

    @pytest.fixture
    async def key(self, bao: RunningOpenBao, token_path: Path, key_id: str) -> OpenBaoKey:
        return await open_key(bao.server(token_path), key_id)

    @pytest.fixture
    async def other_key(self, bao: RunningOpenBao, token_path: Path, mount: str) -> OpenBaoKey:
        return await open_key(bao.server(token_path), f"openbao:{mount}/other")


@pytest.mark.parametrize(
    "parameters",
    [{"type": "chacha20-poly1305"}, {"type": "aes128-gcm96"}, {"derived": True}],
    ids=json.dumps,
)
async def test_other_types_of_keys_bind_the_id_too(
    bao: RunningOpenBao, mount: str, tmp_path: Path, parameters: dict[str, Any]
) -> None:
    key_id = bao.new_key(mount, "main", **parameters)
    write_token(tmp_path / "token", bao.new_token(f"{mount.replace('/', '-')}-main"))
    key = await open_key(bao.server(tmp_path / "token"), key_id)
    wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
    assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY
    with pytest.raises(UnwrapError):
        await key.unwrap(wrapped, "fedcba9876543210")


async def test_without_the_binding_a_key_unwraps_for_another_id(
    bao: RunningOpenBao, token_path: Path, key_id: str
) -> None:
    """The negative control of the contract."""
    key = OpenBaoKey(bao.server(token_path), key_id, binds_data_key_id=False)
    wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
    assert await key.unwrap(wrapped, "fedcba9876543210") == DATA_KEY


class TestAuthentication:
    async def test_a_renewed_token_is_read_from_the_file(
        self, bao: RunningOpenBao, token_path: Path, key_id: str, mount: str
    ) -> None:
        key = await open_key(bao.server(token_path), key_id)
        wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
        ended = read_token(token_path)
        bao.call("POST", "auth/token/revoke", {"token": ended})
        with pytest.raises(KeyringError, match=r"^OPENBAO_TOKEN_FILE: OpenBao denies permission") as caught:
            await key.unwrap(wrapped, DATA_KEY_ID)
        assert f"update of {mount}/encrypt/main" in str(caught.value)
        assert ended not in str(caught.value)
        write_token(token_path, bao.new_token(f"{mount.replace('/', '-')}-main"))
        assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY

    @pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", "ключ".encode(), b"a\r\nX-Evil: 1"])
    async def test_a_file_without_a_token_is_named_and_not_quoted(
        self, bao: RunningOpenBao, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "token"
        path.write_bytes(content)
        with pytest.raises(KeyringError) as caught:
            await open_key(bao.server(path), "openbao:transit/main")
        assert str(caught.value) == f"OPENBAO_TOKEN_FILE: {path} has no token; check what writes the file"

    async def test_a_missing_and_an_oversized_file_are_named(self, bao: RunningOpenBao, tmp_path: Path) -> None:
        path = tmp_path / "token"
        with pytest.raises(KeyringError, match=r"cannot read .*No such file"):
            await open_key(bao.server(path), "openbao:transit/main")
        path.write_bytes(b"a" * 1_000_000)
        with pytest.raises(KeyringError, match="has no token"):
            await open_key(bao.server(path), "openbao:transit/main")

    async def test_a_policy_for_another_key_denies(
        self, bao: RunningOpenBao, token_path: Path, mount: str, key_id: str
    ) -> None:
        write_token(token_path, bao.new_token(f"{mount.replace('/', '-')}-other"))
        with pytest.raises(KeyringError, match=rf"denies permission for key {key_id}; .* read of {mount}/keys/main"):
            await open_key(bao.server(token_path), key_id)

    async def test_a_role_logs_in_with_the_jwt_of_a_file(
        self, bao: RunningOpenBao, tmp_path: Path, mount: str, key_id: str
    ) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        login_mount = f"cluster-{uuid4().hex[:8]}"
        bao.call("POST", f"sys/auth/{login_mount}", {"type": "jwt"})
        bao.call("POST", f"auth/{login_mount}/config", {"jwt_validation_pubkeys": [public.decode()]})
        role = {
            "role_type": "jwt",
            "bound_audiences": ["openbao"],
            "user_claim": "sub",
            "policies": [f"{mount.replace('/', '-')}-main"],
        }
        bao.call("POST", f"auth/{login_mount}/role/integration-server", role)
        path = tmp_path / "jwt"

        def write_jwt(audience: str) -> None:
            now = int(time.time())
            claims = {"sub": "system:serviceaccount:a:b", "aud": audience, "iat": now, "exp": now + 600}
            path.write_text(jwt.encode({"alg": "ES256"}, claims, ECKey.import_key(private), algorithms=["ES256"]))

        server = OpenBao(bao.address, JwtLogin("integration-server", login_mount, path), ca_path=bao.ca_path)
        write_jwt("openbao")
        key = await open_key(server, key_id)
        wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
        assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY
        write_jwt("another service")
        with pytest.raises(KeyringError, match=r"^OPENBAO_LOGIN_ROLE: OpenBao refused the login") as caught:
            await key.unwrap(wrapped, DATA_KEY_ID)
        assert read_token(path) not in str(caught.value)
        write_jwt("openbao")
        assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY

    async def test_a_key_in_a_namespace(self, bao: RunningOpenBao, tmp_path: Path, mount: str) -> None:
        namespace = f"team-{uuid4().hex[:8]}"
        bao.call("POST", f"sys/namespaces/{namespace}")
        key_id = bao.new_key(mount, "main", namespace=namespace)
        path = tmp_path / "token"
        write_token(path, bao.new_token(f"{mount.replace('/', '-')}-main", namespace=namespace))
        key = await open_key(bao.server(path, namespace=namespace), key_id)
        assert await key.unwrap(await key.wrap(DATA_KEY, DATA_KEY_ID), DATA_KEY_ID) == DATA_KEY
        with pytest.raises(KeyringError, match=r"^OPENBAO_NAMESPACE: OpenBao has no such namespace"):
            await open_key(bao.server(path, namespace="none"), key_id)


class TestErrors:
    async def test_a_missing_key_and_a_missing_engine_are_told_apart(
        self, bao: RunningOpenBao, token_path: Path, mount: str
    ) -> None:
        bao.call("PUT", "sys/policies/acl/reads", {"policy": 'path "*" { capabilities = ["read"] }'})
        write_token(token_path, bao.new_token("reads"))
        server = bao.server(token_path)
        with pytest.raises(KeyringError, match=rf"^KMS_KEY_ID: OpenBao has no key absent at {mount}; correct"):
            await open_key(server, f"openbao:{mount}/absent")
        with pytest.raises(KeyringError, match=r"^KMS_KEY_ID: OpenBao has no transit engine at nowhere; correct"):
            await open_key(server, "openbao:nowhere/main")

    @pytest.mark.parametrize("key_type", ["rsa-2048", "ed25519", "hmac"])
    async def test_a_key_that_binds_nothing_is_refused(
        self, bao: RunningOpenBao, tmp_path: Path, mount: str, key_type: str
    ) -> None:
        parameters: dict[str, Any] = {"key_size": 32} if key_type == "hmac" else {}
        key_id = bao.new_key(mount, "main", type=key_type, **parameters)
        write_token(tmp_path / "token", bao.new_token(f"{mount.replace('/', '-')}-main"))
        with pytest.raises(
            KeyringError, match="does not authenticate associated data; create one of type aes256-gcm96"
        ):
            await open_key(bao.server(tmp_path / "token"), key_id)

    async def test_a_deleted_key_is_named_and_never_made_anew(
        self, bao: RunningOpenBao, token_path: Path, mount: str, key_id: str
    ) -> None:
        key = await open_key(bao.server(token_path), key_id)
        wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
        bao.call("POST", f"{mount}/keys/main/config", {"deletion_allowed": True})
        bao.call("DELETE", f"{mount}/keys/main")
        with pytest.raises(KeyringError, match=rf"^KMS_KEY_ID: OpenBao has no key main at {mount}"):
            await key.unwrap(wrapped, DATA_KEY_ID)
        # OpenBao creates a missing key for a token that may, which the documented policy does not allow.
        with pytest.raises(KeyringError):
            await key.wrap(DATA_KEY, DATA_KEY_ID)
        bao.new_key(mount, "main")  # the same name, another key
        with pytest.raises(UnwrapError):
            await key.unwrap(wrapped, DATA_KEY_ID)

    async def test_a_sealed_server_is_unavailable(self, bao: RunningOpenBao, token_path: Path, key_id: str) -> None:
        key = await open_key(bao.server(token_path), key_id)
        wrapped = await key.wrap(DATA_KEY, DATA_KEY_ID)
        with bao.sealed():
            for attempt in (key.describe(), key.wrap(DATA_KEY, DATA_KEY_ID), key.unwrap(wrapped, DATA_KEY_ID)):
                with pytest.raises(StoreUnavailable) as caught:
                    await attempt
                assert str(caught.value) == "OPENBAO_ADDRESS: OpenBao is unavailable: it is sealed; unseal it"
        assert await key.unwrap(wrapped, DATA_KEY_ID) == DATA_KEY

    async def test_an_unreachable_server_is_unavailable(
        self, bao: RunningOpenBao, token_path: Path, key_id: str
    ) -> None:
        for address, cause in (
            ("http://127.0.0.1:1", "connection refused; check address"),
            ("https://openbao.invalid", "no connection"),
            (bao.address.replace("https:", "http:"), "HTTP 400|no connection|unexpected response|refuses"),
        ):
            with pytest.raises((StoreUnavailable, KeyringError), match=cause) as caught:
                await open_key(OpenBao(address, TokenFile(token_path)), key_id)
            assert read_token(token_path) not in str(caught.value)

    async def test_only_the_named_authority_is_trusted(
        self, bao: RunningOpenBao, token_path: Path, key_id: str, tmp_path: Path
    ) -> None:
        untrusting = OpenBao(bao.address, TokenFile(token_path))
        with pytest.raises(StoreUnavailable, match="certificate is not trusted; set OPENBAO_CA_FILE"):
            await open_key(untrusting, key_id)
        write_token(tmp_path / "ca.pem", "no certificate")
        with pytest.raises(KeyringError, match=r"^OPENBAO_CA_FILE: .* has no usable certificate"):
            await open_key(OpenBao(bao.address, TokenFile(token_path), ca_path=tmp_path / "ca.pem"), key_id)
        assert (await open_key(bao.server(token_path), key_id)).key_id == key_id  # control: with the authority


@asynccontextmanager
async def answering(*responses: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that sends these responses, one for each connection, and what it was sent."""
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        received.append(head)
        writer.write(responses[min(len(received), len(responses)) - 1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", received


def http(status: str, content: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


DESCRIPTION = json.dumps({"data": {"type": "aes256-gcm96", "latest_version": 1}}).encode()


class TestHostileServer:
    """What answers at the address may be something else, or an OpenBao that somebody controls."""

    @pytest.fixture
    def token(self, tmp_path: Path) -> TokenFile:
        (tmp_path / "token").write_text("s.secret-token")
        return TokenFile(tmp_path / "token")

    async def test_a_redirect_is_not_followed(self, token: TokenFile) -> None:
        async with (
            answering(http("200 OK", DESCRIPTION)) as (elsewhere, stolen),
            answering(http("307 Temporary Redirect", b"", f"Location: {elsewhere}/v1/transit/keys/main")) as (first, _),
        ):
            with pytest.raises(StoreUnavailable, match="redirects to another server, which is not followed"):
                await open_key(OpenBao(first, token), "openbao:transit/main")
            assert stolen == []
            # Control: with redirections the other server gets the token.
            await open_key(OpenBao(first, token, follows_redirects=True), "openbao:transit/main")
            assert b"s.secret-token" in stolen[0]

    async def test_a_response_is_bounded(self, token: TokenFile) -> None:
        padded = DESCRIPTION + b" " * 1_000_000
        async with answering(http("200 OK", padded)) as (address, _):
            with pytest.raises(StoreUnavailable, match="a response over 65,536 bytes"):
                await open_key(OpenBao(address, token), "openbao:transit/main")
            unbounded = OpenBao(address, token, max_response_bytes=10_000_000)
            await open_key(unbounded, "openbao:transit/main")  # control: the whole response is read

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"<html>",
            b"[]",
            b"[" * 60_000,
            b"null",
            b'{"data": 5}',
            b'{"data": {"ciphertext": 5, "plaintext": 5}}',
            b'{"data": {"ciphertext": "plain", "plaintext": "\\ud800"}}',
            b'{"data": {"ciphertext": "vault:v1:", "plaintext": "!"}}',
            b'{"errors": {}}',
        ],
    )
    async def test_an_unexpected_response_is_an_outage(self, token: TokenFile, content: bytes) -> None:
        async with answering(http("200 OK", content)) as (address, _):
            key = OpenBaoKey(OpenBao(address, token), "openbao:transit/main")
            with pytest.raises(StoreUnavailable, match="an unexpected response"):
                await key.wrap(DATA_KEY, DATA_KEY_ID)
            with pytest.raises(StoreUnavailable, match="an unexpected response"):
                await key.unwrap(b"vault:v1:AAAA", DATA_KEY_ID)
            with pytest.raises(KeyringError, match="does not authenticate"):
                await open_key(OpenBao(address, token), "openbao:transit/main")

    @pytest.mark.parametrize(
        "status", ["429 Too Many", "472 Standby", "473 Standby", "500 Error", "501 Error", "502 Bad"]
    )
    async def test_failures_of_the_server_are_outages_and_its_text_is_not_shown(
        self, token: TokenFile, status: str
    ) -> None:
        async with answering(http(status, b'{"errors": ["text of the server"]}')) as (address, _):
            with pytest.raises(StoreUnavailable, match=status[:3]) as caught:
                await open_key(OpenBao(address, token), "openbao:transit/main")
            assert "text of the server" not in str(caught.value)
            assert address not in str(caught.value)  # callers see this message

    async def test_a_server_that_closes_the_connection_is_unavailable(self, token: TokenFile) -> None:
        async with answering(b"", b"nonsense\r\n\r\n") as (address, _):
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="no connection"):
                    await open_key(OpenBao(address, token), "openbao:transit/main")

    async def test_a_server_that_ignores_associated_data_is_refused(self, token: TokenFile) -> None:
        content = json.dumps({"data": {"ciphertext": "vault:v1:AAAA", "plaintext": "AAAA"}}).encode()
        async with answering(http("200 OK", content)) as (address, _):
            key = OpenBaoKey(OpenBao(address, token), "openbao:transit/main")
            with pytest.raises(KeyringError, match="ignores associated data; update it"):
                await key.wrap(DATA_KEY, DATA_KEY_ID)
            unbound = OpenBaoKey(OpenBao(address, token), "openbao:transit/main", binds_data_key_id=False)
            assert await unbound.wrap(DATA_KEY, DATA_KEY_ID) == b"vault:v1:AAAA"  # control

    def test_nothing_secret_is_in_the_representation(self, token: TokenFile) -> None:
        assert "s.secret-token" not in repr(OpenBao("http://127.0.0.1:1", token))


@pytest.mark.quick_on("sqlite")
class TestKeyring:
    async def test_wraps_data_keys(
        self, database: Database, bao: RunningOpenBao, token_path: Path, key_id: str
    ) -> None:
        server = bao.server(token_path)
        keyring = await open_keyring(database, KeyEncryptionKeys(await open_key(server, key_id)))
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        reopened = await open_keyring(database, KeyEncryptionKeys(await open_key(server, key_id)))
        assert await reopened.decrypt(encrypted, ASSOCIATED_DATA) == b"secret"
        assert [key.wrapping_key_id for key in await describe_data_keys(database)] == [key_id]

    async def test_a_running_server_needs_openbao_for_new_data_keys_only(
        self, database: Database, bao: RunningOpenBao, token_path: Path, key_id: str
    ) -> None:
        keys = KeyEncryptionKeys(await open_key(bao.server(token_path), key_id))
        keyring, other = await open_keyring(database, keys), await open_keyring(database, keys)
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        with bao.sealed():
            await other.reload()
            assert await other.decrypt(encrypted, ASSOCIATED_DATA) == b"secret"
            assert await other.encrypt(b"written", ASSOCIATED_DATA)
            with pytest.raises(StoreUnavailable, match="sealed"):
                await keyring.add_data_key()
            with pytest.raises(StoreUnavailable, match="sealed"):  # a server that starts
                await open_keyring(database, keys)
        await keyring.add_data_key()
        newer = await keyring.encrypt(b"newer", ASSOCIATED_DATA)
        with bao.sealed():
            with pytest.raises(StoreUnavailable):
                await other.reload()
            with pytest.raises(StoreUnavailable):  # not CredentialsUnreadable: the value is intact
                await other.decrypt(newer, ASSOCIATED_DATA)
            assert await other.decrypt(encrypted, ASSOCIATED_DATA) == b"secret"
        await other.reload()
        assert await other.decrypt(newer, ASSOCIATED_DATA) == b"newer"

    async def test_rewrap_moves_all_keys_to_the_newest_version(
        self, database: Database, bao: RunningOpenBao, token_path: Path, mount: str, key_id: str
    ) -> None:
        server = bao.server(token_path)
        keys = KeyEncryptionKeys(await open_key(server, key_id))
        keyring = await open_keyring(database, keys)
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        await keyring.add_data_key()
        assert await rewrap(database, keys, keyring) == 0
        bao.call("POST", f"{mount}/keys/main/rotate")
        assert await (await open_keyring(database, keys)).decrypt(encrypted, ASSOCIATED_DATA) == b"secret"

        bao.call("POST", f"{mount}/keys/main/config", {"min_decryption_version": 2})
        with pytest.raises(KeyringError, match=r"min_decryption_version .* lower it, run `keys rewrap`"):
            await open_keyring(database, keys)
        bao.call("POST", f"{mount}/keys/main/config", {"min_decryption_version": 1})

        reopened = KeyEncryptionKeys(await open_key(server, key_id))
        assert await rewrap(database, reopened, keyring) == 2
        assert await rewrap(database, reopened, keyring) == 0
        bao.call("POST", f"{mount}/keys/main/config", {"min_decryption_version": 2})
        assert await (await open_keyring(database, keys)).decrypt(encrypted, ASSOCIATED_DATA) == b"secret"
        for column in (data_keys.c.wrapped_key, key_sets.c.wrapped_mac_key):
            assert all(row[0].startswith(b"vault:v2:") for row in await database.fetch(select(column)))

    async def test_rewraps_from_local_to_openbao_to_another_key_and_back(
        self, database: Database, bao: RunningOpenBao, token_path: Path, mount: str, key_id: str
    ) -> None:
        keyring = await open_test_keyring(database)
        encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
        server, other_id = bao.server(token_path), f"openbao:{mount}/other"
        main, other = await open_openbao_keys(server, [key_id, other_id])
        steps = (
            (KeyEncryptionKeys(main, [LocalKey(KEY)]), KeyEncryptionKeys(main), key_id),
            (KeyEncryptionKeys(other, [main]), KeyEncryptionKeys(other), other_id),
            (KeyEncryptionKeys(LocalKey(KEY), [other]), KeyEncryptionKeys(LocalKey(KEY)), KEY_ID),
        )
        for both, alone, wrapping_id in steps:
            with pytest.raises(KeyringError, match="which is not configured"):
                await open_keyring(database, alone)
            assert await rewrap(database, both, keyring) == 1
            assert await (await open_keyring(database, alone)).decrypt(encrypted, ASSOCIATED_DATA) == b"secret"
            assert [key.wrapping_key_id for key in await describe_data_keys(database)] == [wrapping_id]

    async def test_the_key_of_another_row_does_not_unwrap(
        self, database: Database, bao: RunningOpenBao, token_path: Path, key_id: str
    ) -> None:
        keys = KeyEncryptionKeys(await open_key(bao.server(token_path), key_id))
        keyring = await open_keyring(database, keys)
        (first,) = await database.fetch(select(data_keys.c.wrapped_key))
        second_id = await keyring.add_data_key()
        async with database.write_transaction() as connection:
            moved = update(data_keys).where(data_keys.c.key_id == second_id).values(wrapped_key=first[0])
            await connection.execute(moved)
        with pytest.raises(KeyringError, match=rf"data key {second_id} does not unwrap with key {key_id}"):
            await open_keyring(database, keys)
        # Control: keys that are bound to nothing unwrap wherever they are put.
        unbound = OpenBaoKey(bao.server(token_path), key_id, binds_data_key_id=False)
        wrapped = await unbound.wrap(os.urandom(32), DATA_KEY_ID)
        assert len(await unbound.unwrap(wrapped, second_id)) == 32
