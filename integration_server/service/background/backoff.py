"""Growing pauses, with jitter, so that those who failed together do not come back together."""

from datetime import timedelta

from integration_server.service.common_types import Jitter


def backoff(failures: int, first: timedelta, longest: timedelta, jitter: Jitter) -> timedelta:
    """The pause after so many failures in a row, from one on: `first`, doubled with each up to `longest`, then cut to
    somewhere between its half and its whole."""
    doubled = first * 2.0 ** min(failures - 1, 16)
    return min(doubled, longest) * (0.5 + jitter() / 2)
