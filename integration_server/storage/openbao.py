"""A key-encryption key in the transit engine of OpenBao or Vault, which never leaves it. Over its HTTP API (`/v1`).

OpenBao wraps a data key when it is created and unwraps it once in each process, so calls are rare. Each has a
connection of its own, and reads the token and the authority's certificate anew, because something else renews them.
A wrapped key is OpenBao's ciphertext, `vault:vVERSION:BASE64`. Source: OpenBao's API documentation, "Transit secrets
engine", "JWT/OIDC auth method" and "HTTP API".
"""

import asyncio
import base64
import json
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.key_encryption import OPENBAO_PREFIX, KeyringError, UnwrapError

_AUTHENTICATED_CIPHERS = frozenset({"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
"""The types of keys that authenticate associated data."""

_CALL_SECONDS = 10.0
"""For a whole call; OpenBao responds in milliseconds, and an external seal or storage takes a second."""

MAX_RESPONSE_BYTES = 64 * 1024
"""A wrapped key is a hundred bytes, and a description has a line for each version of the key."""

_MAX_FILE_BYTES = 64 * 1024
"""Of a token: OpenBao's have some 100 bytes (batch tokens, hundreds), a JWT of Kubernetes a thousand."""

_DECISIONS = frozenset({200, 400, 403, 404, 405})
"""The statuses of a server that decides. Others are outages: limits, standby servers (472, 473), seals, proxies."""

_CIPHERTEXT = re.compile(rb"vault:v([0-9]{1,9}):[A-Za-z0-9+/]{1,4096}={0,2}")

_ADDRESS_SETTING = "OPENBAO_ADDRESS"


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token in a file that something else renews, such as OpenBao's or Vault's agent."""

    path: Path

    @property
    def setting(self) -> str:
        """The setting to correct when OpenBao refuses the token."""
        return "OPENBAO_TOKEN_FILE"


@dataclass(frozen=True, slots=True)
class JwtLogin:
    """A role of the auth method `kubernetes` or `jwt`, whose mount is `mount`, with the JWT in a file."""

    role: str
    mount: str
    jwt_path: Path

    @property
    def setting(self) -> str:
        """The setting to correct when OpenBao refuses the login or what the role may do."""
        return "OPENBAO_LOGIN_ROLE"


@dataclass(frozen=True, slots=True)
class OpenBao:
    """A server of OpenBao or Vault, and how this process authenticates to it.

    `follows_redirects` and larger `max_response_bytes` are negative controls.
    """

    address: str
    authentication: TokenFile | JwtLogin
    namespace: str | None = None
    ca_path: Path | None = None
    max_response_bytes: int = MAX_RESPONSE_BYTES
    follows_redirects: bool = False

    async def call(self, method: str, path: str, body: Mapping[str, str] | None = None) -> "Response":
        """Send a request with a token. Raises `KeyringError` or `StoreUnavailable`; see `Response` for the rest."""
        try:
            async with asyncio.timeout(_CALL_SECONDS), await self._client() as client:
                token = await self._token(client)
                return await self._send(client, method, path, body, {"X-Vault-Token": token})
        except TimeoutError:
            raise _unavailable(f"no response in {_CALL_SECONDS:g} s; check address and network") from None
        except httpx.InvalidURL:
            raise KeyringError(f"{_ADDRESS_SETTING}: is not a valid URL; correct it") from None
        except httpx.HTTPError as error:
            raise _unavailable(_explain_transport(error)) from None

    async def _client(self) -> httpx.AsyncClient:
        try:
            context: ssl.SSLContext | bool = self.address.startswith("https:")
            if context:
                context = await asyncio.to_thread(ssl.create_default_context, cafile=self.ca_path)
        except OSError as error:  # and `ssl.SSLError`
            raise KeyringError(f"OPENBAO_CA_FILE: {self.ca_path} has no usable certificate in PEM: {error}") from None
        # Without proxies and redirections, which would receive the token and the data keys.
        return httpx.AsyncClient(
            verify=context, trust_env=False, follow_redirects=self.follows_redirects, timeout=_CALL_SECONDS
        )

    async def _token(self, client: httpx.AsyncClient) -> str:
        if isinstance(self.authentication, TokenFile):
            return await asyncio.to_thread(_read_secret, self.authentication.path, self.authentication.setting)
        login = self.authentication
        jwt = await asyncio.to_thread(_read_secret, login.jwt_path, "OPENBAO_LOGIN_JWT_FILE")
        response = await self._send(client, "POST", f"auth/{login.mount}/login", {"role": login.role, "jwt": jwt}, {})
        if response.status != httpx.codes.OK:
            raise KeyringError(
                f"{login.setting}: OpenBao refused the login (HTTP {response.status}); check the role, "
                "OPENBAO_LOGIN_MOUNT, OPENBAO_LOGIN_JWT_FILE and OPENBAO_NAMESPACE"
            )
        return response.text_at("auth", "client_token")

    async def _send(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        body: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> "Response":
        # X-Vault-Request: an agent's listener may require it, against requests that a browser was led to send.
        sent = {"X-Vault-Request": "true", "Accept-Encoding": "identity", **headers}
        if self.namespace is not None:
            sent["X-Vault-Namespace"] = self.namespace
        url = f"{self.address.rstrip('/')}/v1/{path}"
        async with client.stream(method, url, json=body, headers=sent) as response:
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > self.max_response_bytes:
                    raise _unavailable(f"a response over {self.max_response_bytes:,} bytes; check the address")
        found = Response(response.status_code, _parse(bytes(content)))
        if response.is_redirect:
            raise _unavailable("redirects to another server, which is not followed; name the active server")
        if found.status not in _DECISIONS:
            is_sealed = any("sealed" in error for error in found.errors)
            cause = "it is sealed; unseal it" if is_sealed else f"HTTP {found.status}; check the server"
            raise _unavailable(cause)
        return found


@dataclass(frozen=True, slots=True)
class Response:
    """A response that is neither a redirection nor a failure of the server. `content` may contain secrets."""

    status: int
    content: Mapping[str, Any] = field(repr=False)

    @property
    def errors(self) -> Sequence[str]:
        """OpenBao's messages, which decide but are never shown."""
        errors = self.content.get("errors")
        return [error for error in errors if isinstance(error, str)] if isinstance(errors, list) else ()

    def has_error(self, *texts: str) -> bool:
        """Whether a message has one of the texts."""
        return any(text in error for error in self.errors for text in texts)

    def text_at(self, part: str, name: str) -> str:
        """A text in a part of the response. Raises `StoreUnavailable` if there is none."""
        found = self.content.get(part)
        text = found.get(name) if isinstance(found, dict) else None
        if not isinstance(text, str) or not text.isascii():
            raise _unavailable("an unexpected response; check the address")
        return text


class OpenBaoKey:
    """A `KeyEncryptionKey` in a transit engine. Created by `open_openbao_keys`; its id is `openbao:MOUNT/NAME`.

    Without `binds_data_key_id`, a negative control, a wrapped key unwraps for any id.
    """

    def __init__(
        self, server: OpenBao, key_id: str, *, latest_version: int = 0, binds_data_key_id: bool = True
    ) -> None:
        self._server = server
        self.key_id = key_id
        self._mount, _, self._name = key_id.removeprefix(OPENBAO_PREFIX).rpartition("/")
        self._latest_version = latest_version
        self._binds_data_key_id = binds_data_key_id

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """Encrypt a data key for this id."""
        response = await self._call("encrypt", {"plaintext": _encode(data_key)}, data_key_id)
        self._require_success(response)
        wrapped = response.text_at("data", "ciphertext").encode()
        if not _CIPHERTEXT.fullmatch(wrapped):
            raise _unavailable("an unexpected response; check the address")
        if self._binds_data_key_id:
            await self._require_binding(wrapped, data_key_id)
        return wrapped

    async def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """Decrypt the data key of this id."""
        if not _CIPHERTEXT.fullmatch(wrapped):
            raise UnwrapError
        response = await self._call("decrypt", {"ciphertext": wrapped.decode()}, data_key_id)
        if response.has_error("message authentication failed", "invalid ciphertext"):
            raise UnwrapError
        self._require_success(response)
        try:
            return base64.b64decode(response.text_at("data", "plaintext"), validate=True)
        except ValueError:
            raise _unavailable("an unexpected response; check the address") from None

    def is_outdated(self, wrapped: bytes) -> bool:
        """Whether an older version of the key has wrapped this than the latest one when the key was opened."""
        match = _CIPHERTEXT.fullmatch(wrapped)
        return match is not None and int(match[1]) < self._latest_version

    async def describe(self) -> Mapping[str, Any]:
        """What OpenBao knows of the key, without the key."""
        response = await self._server.call("GET", f"{self._mount}/keys/{self._name}")
        self._require_success(response)
        found = response.content.get("data")
        return found if isinstance(found, dict) else {}

    async def _require_binding(self, wrapped: bytes, data_key_id: str) -> None:
        """Check that the server does not ignore associated data, as versions before it had them do."""
        try:
            await self.unwrap(wrapped, f"not {data_key_id}")
        except UnwrapError:
            return
        raise KeyringError(
            f"key {self.key_id} cannot be used: the server at {_ADDRESS_SETTING} ignores associated data; update it"
        )

    async def _call(self, operation: str, body: Mapping[str, str], data_key_id: str) -> Response:
        binding = _encode(data_key_id.encode())
        # A key with `derived` takes the id as its context too.
        bound = {"associated_data": binding, "context": binding} if self._binds_data_key_id else {}
        return await self._server.call("POST", f"{self._mount}/{operation}/{self._name}", {**body, **bound})

    def _require_success(self, response: Response) -> None:
        """Convert a refusal into a `KeyringError` with setting, cause and remedy."""
        if response.status == httpx.codes.OK:
            return
        raise KeyringError(self._explain_refusal(response))

    def _explain_refusal(self, response: Response) -> str:
        if response.status == httpx.codes.FORBIDDEN:
            setting = self._server.authentication.setting
            return (
                f"{setting}: OpenBao denies permission for key {self.key_id}; its token must be valid and its policy "
                f"allow read of {self._mount}/keys/{self._name}, and update of {self._mount}/encrypt/{self._name} and "
                f"{self._mount}/decrypt/{self._name}"
            )
        if response.has_error("too old"):
            return (
                f"key {self.key_id} has a min_decryption_version above the version that wrapped a data key; lower it, "
                "run `keys rewrap`, and raise it again"
            )
        if response.has_error("namespace not found"):
            return "OPENBAO_NAMESPACE: OpenBao has no such namespace; correct it"
        if response.has_error("no handler for route"):
            return f"KMS_KEY_ID: OpenBao has no transit engine at {self._mount}; correct {self.key_id}, or enable it"
        if response.status == httpx.codes.NOT_FOUND or response.has_error("key not found"):
            return (
                f"KMS_KEY_ID: OpenBao has no key {self._name} at {self._mount}; correct {self.key_id}, or create the "
                "key; a key that was deleted comes back only from a backup of OpenBao"
            )
        return f"key {self.key_id} cannot be used: OpenBao refuses the request (HTTP {response.status})"


async def open_openbao_keys(server: OpenBao, key_ids: Sequence[str]) -> Sequence[OpenBaoKey]:
    """Open keys by their ids, `openbao:MOUNT/NAME`. Raises `KeyringError` or `StoreUnavailable`."""
    return [await _open(server, key_id) for key_id in key_ids]


async def _open(server: OpenBao, key_id: str) -> OpenBaoKey:
    described = await OpenBaoKey(server, key_id).describe()
    key_type, version = described.get("type"), described.get("latest_version")
    if key_type not in _AUTHENTICATED_CIPHERS or not isinstance(version, int):
        raise KeyringError(
            f"KMS_KEY_ID: the type of key {key_id} does not authenticate associated data; create one of type "
            f"aes256-gcm96, or of {', '.join(sorted(_AUTHENTICATED_CIPHERS - {'aes256-gcm96'}))}"
        )
    if described.get("soft_deleted") is True:
        raise KeyringError(f"KMS_KEY_ID: key {key_id} is soft-deleted in OpenBao; restore it there")
    return OpenBaoKey(server, key_id, latest_version=version)


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _parse(content: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _read_secret(path: Path, setting: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyringError(f"{setting}: cannot read {path}: {error.strerror}; check what writes the file") from None
    text = content.strip()
    if not text or len(content) > _MAX_FILE_BYTES or not text.isascii() or len(text.split()) != 1:
        raise KeyringError(f"{setting}: {path} has no token; check what writes the file")
    return text.decode()


def _unavailable(cause: str) -> StoreUnavailable:
    """An outage, without the address: callers see this message."""
    return StoreUnavailable(f"{_ADDRESS_SETTING}: OpenBao is unavailable: {cause}")


_TRANSPORT_CAUSES: Sequence[tuple[Callable[[BaseException], bool], str]] = (
    (
        lambda cause: isinstance(cause, ssl.SSLCertVerificationError),
        "its certificate is not trusted; set OPENBAO_CA_FILE to its authority, and use a name of the certificate",
    ),
    (lambda cause: isinstance(cause, ssl.SSLError), "no TLS; check scheme and port of the address"),
    (lambda cause: isinstance(cause, ConnectionRefusedError), "connection refused; check address, and that it runs"),
)


def _explain_transport(error: BaseException) -> str:
    """The cause of an error of httpx, and a remedy. The libraries below chain the error of the operating system."""
    cause: BaseException | None = error
    while cause is not None:
        for matches, text in _TRANSPORT_CAUSES:
            if matches(cause):
                return text
        cause = cause.__cause__ or cause.__context__
    return f"no connection ({type(error).__name__}); check address and network"
