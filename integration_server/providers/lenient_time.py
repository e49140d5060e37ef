"""Lenient reading of durations and times that other systems wrote: lifetimes of tokens, and Retry-After.

One value may be a duration or a time, whatever its name says, because providers put either under any name:

- a number, or a text of one: seconds; a Unix time in seconds, milliseconds, microseconds or nanoseconds if it is that
  large and not in the past
- "3600s", "90 min", "1 hour", or an ISO 8601 duration such as "PT1H30M"
- an ISO 8601 time, with "/" or " UTC" too, or a date of RFC 9110 §5.6.7 in any of its three formats; UTC if it has no
  offset
"""

import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_MIN_UNIX_TIME = 1e9  # seconds: the year 2001 as a time, 31 years as a duration
_PAST_TOLERANCE = 86_400  # seconds: a number that would be a time further in the past is a duration
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?|[+-]?inf(?:inity)?", re.IGNORECASE)
_UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86_400,
    "day": 86_400,
}
_WITH_UNIT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([a-z]+?)s?")
_ISO_DURATION = re.compile(
    r"P(?:(\d{1,9})W)?(?:(\d{1,9})D)?(?:T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9})(?:\.\d{1,9})?S)?)?"
)
_ISO_DURATION_UNITS = (604_800, 86_400, 3600, 60, 1)
_MAX_LENGTH = 64  # characters of a text; a longer one is a number of absurd length, or nothing


def seconds_until(value: object, now: datetime) -> float | None:
    """The seconds of a duration, or from `now` to a time; infinite for an absurd one, None if it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _seconds_of_number(value, now)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return _seconds_of_number(float(text), now)
    if len(text) > _MAX_LENGTH:
        return None
    if (duration := _seconds_of_duration(text)) is not None:
        return duration
    moment = _read_time(text)
    return None if moment is None else (moment - now).total_seconds()


def _seconds_of_number(value: float, now: datetime) -> float | None:
    try:
        number = float(value)
    except OverflowError:  # an int of hundreds of digits
        return math.inf if value > 0 else 0.0
    if math.isnan(number):
        return None
    moment = number
    for _ in range(3):
        if moment >= 100 * _MIN_UNIX_TIME:
            moment /= 1000
    until = moment - now.timestamp()
    return until if moment >= _MIN_UNIX_TIME and until >= -_PAST_TOLERANCE else number


def _seconds_of_duration(text: str) -> float | None:
    if match := _WITH_UNIT.fullmatch(text.lower()):
        unit = _UNITS.get(match[2])
        return None if unit is None else float(match[1]) * unit
    if (match := _ISO_DURATION.fullmatch(text)) and any(match.groups()):
        return float(sum(int(part or 0) * unit for part, unit in zip(match.groups(), _ISO_DURATION_UNITS, strict=True)))
    return None


def _read_time(text: str) -> datetime | None:
    for parse in (_parse_iso, parsedate_to_datetime):
        try:
            moment = parse(text)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError, IndexError, TypeError):
            continue
    return None


def _parse_iso(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("/", "-").removesuffix("UTC").removesuffix("GMT").rstrip())


def bounded(seconds: float, longest: timedelta) -> timedelta:
    """A duration of at least zero and at most `longest`."""
    return timedelta(seconds=min(max(seconds, 0.0), longest.total_seconds()))
