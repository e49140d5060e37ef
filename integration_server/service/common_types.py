"""Types that all packages of the service share: clock, randomness and encryption."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from integration_server.domain.associated_data import AssociatedData

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


class Aead(Protocol):
    """Authenticated encryption with associated data."""

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """The plaintext, encrypted with the newest key."""

    async def decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> bytes:
        """The plaintext. Raises `CredentialsUnreadable` if value, associated data or key are not those of `encrypt`."""
