"""Exponential backoff with jitter, so that callers that failed together do not retry together."""

from datetime import timedelta

from integration_server.service.common_types import Jitter


def backoff(failures: int, first: timedelta, longest: timedelta, jitter: Jitter) -> timedelta:
    """The pause after `failures` failures in a row (≥ 1): `first`, doubled with each failure up to `longest`, times a
    random factor between 0.5 and 1."""
    doubled = first * 2.0 ** min(failures - 1, 16)
    return min(doubled, longest) * (0.5 + jitter() / 2)
