"""Types that all packages of the service share: clock, randomness and encryption."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

Clock = Callable[[], datetime]
"""The current time, as an aware datetime in UTC."""

RandomToken = Callable[[], str]
"""Returns an unguessable token of 43 to 128 URL-safe characters, valid as a PKCE verifier (RFC 7636 §4.1)."""

Jitter = Callable[[], float]
"""Returns a random number from 0 to 1."""

Record = Callable[..., object]
"""Records an event for the metrics: an optional number, and labels, of which none is chosen by users or callers."""


def loop_time() -> float:
    """The clock of the running event loop, in seconds."""
    return asyncio.get_running_loop().time()


def record_nothing(*_: object) -> None:
    """The default `Record`."""


@dataclass(frozen=True, slots=True)
class AssociatedData:
    """The associated data of an encrypted value. It decrypts only with the same data.

    They are its table, column and row, and `bound_values`: in canonical JSON, the other values of the row that decide
    whether it is the newest and where it is sent.
    """

    table: str
    column: str
    uid: str
    user_id: str = ""
    integration_type: str = ""
    bound_values: str = ""


class Aead(Protocol):
    """Authenticated encryption with associated data."""

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """The plaintext, encrypted with the newest key."""

    async def decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> bytes:
        """The plaintext. Raises `CredentialsUnreadable` if value, associated data or key are not those of `encrypt`."""
