"""The time and the randomness of the operating system."""

import secrets
import time
from datetime import UTC, datetime
from random import SystemRandom


def utc_now() -> datetime:
    """The time, with its time zone."""
    return datetime.now(UTC)


def random_token() -> str:
    """256 random bits as 43 URL-safe characters."""
    return secrets.token_urlsafe(32)


def monotonic() -> float:
    """Seconds since some moment, including the time for which the machine slept, if the system counts it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def jitter() -> float:
    """A random number from 0 to 1, from the operating system."""
    return SystemRandom().random()
