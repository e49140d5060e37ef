"""The time and the randomness of the operating system."""

import secrets
import time
from datetime import UTC, datetime
from functools import partial
from random import SystemRandom

utc_now = partial(datetime.now, UTC)
"""Returns the time, with its time zone."""

random_token = partial(secrets.token_urlsafe, 32)
"""Returns 256 random bits as 43 URL-safe characters."""

monotonic = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
"""Returns the seconds since a fixed time, including the time of suspension, if the system counts it."""

jitter = SystemRandom().random
"""Returns a random number from 0 to 1, from the operating system."""
