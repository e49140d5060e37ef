"""What the client reads from files: its token, and the certificates of its channel. Changed files are read again.

A file that is being written, or is invalid, leaves the previous contents in use, with a warning in the log.
"""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from integration_server.client.configuration import Configuration, ConfigurationError, SecretText
from integration_server.client.errors import ClientClosed

logger = logging.getLogger("integration_server.client")

T = TypeVar("T")

_CHECK_INTERVAL = 1.0  # seconds between two checks of the files: a call does not pay for one each time

Signature = Sequence[tuple[int, int, int] | None]


class FileWatcher(Generic[T]):
    """A value that is built from files, and built again after they have changed.

    `build` raises `ConfigurationError` for files that cannot be used.
    """

    def __init__(
        self, paths: Sequence[Path], build: Callable[[], T], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = paths
        self._build = build
        self._monotonic = monotonic
        self._signature = self._sign()
        self._checked = monotonic()
        self.value = build()

    def poll(self, *, now: bool = False) -> T:
        """Return the value of the files as they are, or as they were at most a second ago unless `now`."""
        if not self._paths:
            return self.value
        time_now = self._monotonic()
        if now or time_now - self._checked >= _CHECK_INTERVAL:
            self._checked = time_now
            signature = self._sign()
            if signature != self._signature:
                try:
                    self.value = self._build()
                except ConfigurationError as error:
                    logger.warning("files have changed and cannot be used; the previous contents stay: %s", error)
                else:
                    self._signature = signature
        return self.value

    def _sign(self) -> Signature:
        return [_sign(path) for path in self._paths]


def _sign(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class TokenSource:
    """The client's token: a fixed one, one in a file, or one that a function returns."""

    def __init__(self, configuration: Configuration) -> None:
        token = configuration.token
        self._is_configured = token is not None
        self._configured = SecretText(token) if isinstance(token, str) else token
        path = configuration.token_file
        self._file = None if path is None else FileWatcher([path], lambda: _read_token(path))

    def current(self, *, renewed: bool = False) -> str | Awaitable[str] | None:
        """Return the token; None without one. `renewed`: the server has rejected the last one."""
        if self._file is not None:
            return self._file.poll(now=renewed)
        token = self._configured() if callable(self._configured) else self._configured
        return SecretText(token) if isinstance(token, str) else token

    def get(self, *, renewed: bool = False) -> str | None:
        """Return the token, for a client without asyncio."""
        token = self.current(renewed=renewed)
        if isawaitable(token):
            raise ConfigurationError("token: an async function needs AsyncIntegrations")
        return _checked(token, "token") if self._is_configured else token

    async def get_async(self, *, renewed: bool = False) -> str | None:
        """Return the token."""
        token = self.current(renewed=renewed)
        found = await token if isawaitable(token) else token
        return _checked(found, "token") if self._is_configured else found


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{name}: {path}: {error.strerror or error}") from error


def _read_token(path: Path) -> str:
    return _checked(SecretText(_read("token_file", path).decode("ascii", errors="replace")), f"token_file: {path}")


def _checked(token: object, name: str) -> str:
    """Return a token without the line break that files and variables end with. gRPC's own errors name no cause."""
    if not isinstance(token, str):
        raise ConfigurationError(f"{name}: is of type {type(token).__name__}, and not a token")
    token = SecretText(token.strip())
    if not token:
        raise ConfigurationError(f"{name}: is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(f"{name}: is not a token (without spaces, and without Bearer)")
    return token


@dataclass(frozen=True, slots=True)
class TlsContents:
    """The contents of the files of a channel. Two of them are equal if the files have the same contents."""

    authorities: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        """Return them for gRPC."""
        return grpc.ssl_channel_credentials(self.authorities, self.key, self.certificate)


def watch_tls_files(configuration: Configuration) -> FileWatcher[TlsContents | None]:
    """Return the contents of the files of a channel, or None for a channel without TLS."""
    files: Mapping[str, Path | None] = {
        "ca_file": configuration.ca_file,
        "cert_file": configuration.cert_file,
        "key_file": configuration.key_file,
    }

    def read() -> TlsContents | None:
        if not configuration.uses_tls:
            return None
        authorities, certificate, key = (None if path is None else _read(name, path) for name, path in files.items())
        _validate(configuration)
        return TlsContents(authorities, certificate, key)

    return FileWatcher([path for path in files.values() if path is not None], read)


def _validate(configuration: Configuration) -> None:
    # gRPC accepts any bytes, and then every handshake fails without a reason.
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if configuration.ca_file is not None:
            context.load_verify_locations(configuration.ca_file)
        if configuration.cert_file is not None:
            context.load_cert_chain(configuration.cert_file, configuration.key_file, password=_refuse_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(f"{_names(configuration)}: {getattr(error, 'reason', None) or error}") from error
    except OSError as error:  # replaced meanwhile
        raise ConfigurationError(f"{_names(configuration)}: {error.strerror or error}") from error


def _names(configuration: Configuration) -> str:
    paths = {"ca_file": configuration.ca_file, "cert_file": configuration.cert_file, "key_file": configuration.key_file}
    return ", ".join(f"{name}: {path}" for name, path in paths.items() if path is not None)


def _refuse_password() -> str:
    raise ValueError("the key is encrypted")


class UseGuard:
    """Refuses a client that is closed, or is used in another process or event loop than the one of its first call.

    There gRPC hangs or fails without a reason, and nothing keeps the credentials in memory fresh.
    """

    def __init__(self, process_id: Callable[[], int] = os.getpid) -> None:
        self._process_id = process_id
        self._used_in: int | None = None
        self.is_closed = False

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked process: gRPC's calls hang here, and another thread may have held a lock."""
        return self._used_in is not None and self._used_in != self._process_id()

    def check(self) -> None:
        """Raise `ClientClosed`, or `RuntimeError` in another process or event loop."""
        if self.is_closed:
            raise ClientClosed("the client is closed")
        process_id = self._process_id()
        if self._used_in is None:
            self._used_in = process_id
        elif self._used_in != process_id:
            raise RuntimeError(
                "the process was forked after the first call of this client, and gRPC does not survive that: create "
                "the client, or call it first, in the forked process"
            )


class AsyncUseGuard(UseGuard):
    """`UseGuard` of a client for asyncio."""

    def __init__(self, process_id: Callable[[], int] = os.getpid) -> None:
        super().__init__(process_id)
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        """Raise as `UseGuard` does."""
        super().check()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                "this client belongs to the event loop of its first call, and another one is running: create an "
                "AsyncIntegrations in each event loop, such as inside of what asyncio.run runs"
            )
