"""Time and chance, as the system has them."""

import secrets
import time
from datetime import UTC, datetime
from random import SystemRandom


def utc_now() -> datetime:
    """The time, aware of its zone."""
    return datetime.now(UTC)


def random_token() -> str:
    """256 bits from the system, in 43 URL-safe characters."""
    return secrets.token_urlsafe(32)


def monotonic() -> float:
    """Seconds since some moment, those included for which the machine slept where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def jitter() -> float:
    """A random number from 0 to 1, from the operating system."""
    return SystemRandom().random()
