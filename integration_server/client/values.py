"""Values that the client returns, where those of the contract would print secrets or users' data."""

import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from inspect import isawaitable
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiResponse:
    """A provider's response to a call through the API proxy. Header names are in lower case."""

    status_code: int
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code < 300

    @property
    def text(self) -> str:
        """The body as UTF-8; bytes that are not are replaced."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:  # noqa: ANN401 - as in the standard library
        """The body as JSON. Raises `ValueError`."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The first header of a name, in any case."""
        return next((value for each, value in self.headers if each == name.lower()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """A verified webhook event. `number` starts at 1 within its integration, without gaps."""

    number: int
    event_id: str
    event_type: str
    receive_time: datetime
    payload: bytes = field(repr=False)

    def json(self) -> Any:  # noqa: ANN401 - as in the standard library
        """The payload as JSON. Raises `ValueError`."""
        return json.loads(self.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret:
    """A webhook URL with its new secret, which is empty if the caller has given it."""

    webhook_url: str
    webhook_secret: str = field(default="", repr=False)
    previous_expire_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackResult:
    """The outcome of a provider's redirect, or of a confirmation; `reason` is empty on success."""

    success: bool
    integration_id: int
    message: str
    reason: str
    redirect_url: str = field(default="", repr=False)
    confirmation_token: str = field(default="", repr=False)
    display_name: str = ""
    account_label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A connection that has begun: where to send the user. All but the numbers and times is only for this user."""

    integration_id: int
    user: str
    integration_type: str
    authorization_url: str = field(default="", repr=False)
    state: str = field(default="", repr=False)
    user_code: str = field(default="", repr=False)
    verification_uri: str = ""
    verification_uri_complete: str = field(default="", repr=False)
    expire_time: datetime | None = None


class CursorStore(Protocol):
    """Keeps the cursor of an event stream."""

    def load(self) -> str:
        """Return the cursor; empty the first time."""
        ...

    def save(self, cursor: str) -> None:
        """Store the cursor, in place of the previous one."""
        ...


class AsyncCursorStore(Protocol):
    """Keeps the cursor of an event stream of `AsyncIntegrations`. Either method may be async, or both."""

    def load(self) -> str | Awaitable[str]:
        """Return the cursor; empty the first time."""
        ...

    def save(self, cursor: str) -> Awaitable[None] | None:
        """Store the cursor, in place of the previous one."""
        ...


async def settled(value: ValueT | Awaitable[ValueT]) -> ValueT:
    """Return a value, or what it is awaited for."""
    return await value if isawaitable(value) else value


class MemoryCursorStore:
    """Keeps a cursor in memory: a process that restarts begins with new events."""

    def __init__(self, cursor: str = "") -> None:
        self._cursor = cursor

    def load(self) -> str:
        """Return the cursor."""
        return self._cursor

    def save(self, cursor: str) -> None:
        """Store the cursor."""
        self._cursor = cursor


class FileCursorStore:
    """Keeps a cursor in a file, which is replaced as a whole. One consumer uses it at a time."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def load(self) -> str:
        """Return the cursor; empty without a file."""
        try:
            return self._path.read_text("ascii").strip()
        except FileNotFoundError:
            if not self._path.parent.is_dir():  # `save` would find that only after the first event
                raise
            return ""

    def save(self, cursor: str) -> None:
        """Store the cursor."""
        temporary = self._path.with_name(f"{self._path.name}.{uuid4().hex}")
        try:
            temporary.write_text(cursor, "ascii")
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)  # such as half a file on a full disk
            raise
