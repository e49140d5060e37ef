"""Rate limits in response headers: how many calls remain, and until when.

The supported headers:

- `RateLimit: "name";r=5;t=30` (draft-ietf-httpapi-ratelimit-headers, from -08), its predecessor
  `RateLimit: limit=10, remaining=5, reset=30` (-07), and `RateLimit-Remaining` with `RateLimit-Reset` (up to -06).
- `X-RateLimit-Remaining` with `X-RateLimit-Reset`, also spelt `X-Rate-Limit-…`. The reset is in Unix seconds for
  GitHub [H], and in seconds from now for others; the size of the number distinguishes them.
- `X-HubSpot-RateLimit-Remaining` with `X-HubSpot-RateLimit-Interval-Milliseconds` [K].
- `X-Shopify-Shop-Api-Call-Limit: 39/40`, a leaky bucket of two calls a second [K].
- `X-MinLimit-Remaining` and `X-AppMinLimit-Remaining` of Xero, per minute [K].

A header that cannot be parsed is ignored. A reset is capped at one day.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from integration_server.domain.proxy_messages import Quota

_MAX_RESET = timedelta(days=1)
_PAIRS = (
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-rate-limit-remaining", "x-rate-limit-reset"),
)
_NUMBER = re.compile(r"[0-9]{1,16}(?:\.[0-9]{1,9})?")
_PARAMETER = re.compile(r"(?:^|[;,\s])(r|t|remaining|reset)=([0-9]{1,16})(?=$|[;,\s])")
_SHOPIFY = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_MIN_UNIX_TIME = 100_000_000  # seconds: three years as a duration, the year 1973 as a time
_MIN_UNIX_TIME_MS = 100_000_000_000


def parse_rate_limit_headers(headers: Mapping[str, str], now: datetime) -> Sequence[Quota]:
    """The quotas in the headers, whose names are lower case."""
    return tuple(_read(headers, now))


def _read(headers: Mapping[str, str], now: datetime) -> Iterator[Quota]:
    yield from _parse_ratelimit_field(headers.get("ratelimit", ""))
    for remaining_name, reset_name in _PAIRS:
        yield from _quota(_number(headers.get(remaining_name)), _seconds_until(headers.get(reset_name), now))
    interval = _number(headers.get("x-hubspot-ratelimit-interval-milliseconds"))
    yield from _quota(_number(headers.get("x-hubspot-ratelimit-remaining")), interval and interval / 1000)
    if bucket := _SHOPIFY.fullmatch(headers.get("x-shopify-shop-api-call-limit", "")):
        used, size = map(int, bucket.groups())
        yield from _quota(max(0, size - used), 0.5)
    for name in ("x-minlimit-remaining", "x-appminlimit-remaining"):
        yield from _quota(_number(headers.get(name)), 60)


def _parse_ratelimit_field(value: str) -> Iterator[Quota]:
    for policy in value.split(',"'):  # each of several policies begins with its name
        found = {name: int(number) for name, number in _PARAMETER.findall(policy)}
        yield from _quota(found.get("r", found.get("remaining")), found.get("t", found.get("reset")))


def _number(value: str | None) -> float | None:
    return float(value) if value is not None and _NUMBER.fullmatch(value) else None


def _seconds_until(value: str | None, now: datetime) -> float | None:
    number = _number(value)
    if number is None or number < _MIN_UNIX_TIME:
        return number
    seconds = number / 1000 if number >= _MIN_UNIX_TIME_MS else number
    return max(0.0, seconds - now.timestamp())


def _quota(remaining: float | None, seconds: float | None) -> Iterator[Quota]:
    if remaining is not None and seconds is not None:
        yield Quota(math.floor(min(remaining, 1e9)), min(timedelta(seconds=min(seconds, 1e6)), _MAX_RESET))
