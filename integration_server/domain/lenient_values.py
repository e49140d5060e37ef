"""Lenient reading of what other systems wrote: JSON bodies, the values in them, durations and times.

Bodies of up to 64 KiB are parsed even if they are not strict JSON: a byte order mark (RFC 8259 §8.1), bytes that are
not UTF-8, lone surrogates ("\\ud83d"), control characters in strings, and numbers of any length are accepted. All
strings in the result are valid Unicode; characters that could not be decoded become `UNREADABLE`.

One value may be a duration or a time, whatever its name says, because providers put either under any name: lifetimes of
tokens, and Retry-After.

- a number, or a text of one: seconds; a Unix time in seconds, milliseconds, microseconds or nanoseconds if it is that
  large and not in the past
- "3600s", "90 min", "1 hour", "500ms", "1h30m", or an ISO 8601 duration such as "PT1H30M"
- an ISO 8601 time, with "/" or " UTC" too, or a date of RFC 9110 §5.6.7 in any of its three formats; UTC if it has no
  offset
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic_core import from_json

from integration_server.domain.text import has_control_characters

UNREADABLE = "\ufffd"

_MAX_TEXT_LENGTH = 255
_MAX_LENIENT_SIZE = 1 << 16  # bytes: far more than a token response has; the slow parser needs about 20 ms for it

_MIN_UNIX_TIME = 1e9  # seconds: the year 2001 as a time, 31 years as a duration
_PAST_TOLERANCE = 86_400  # seconds: a number that would be a time further in the past is a duration
_NAMES = re.compile(r'"[^"]*"|[^".]+')  # of a dotted path; a name that has a dot is in quotes
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?|[+-]?inf(?:inity)?", re.IGNORECASE)
_UNIT_NAMES = {0.001: ("ms", "msec"), 1: ("s", "sec", "second"), 60: ("m", "min", "minute"), 3600: ("h", "hr", "hour")}
_UNITS = {name: unit for unit, names in {**_UNIT_NAMES, 86_400: ("d", "day")}.items() for name in names}
_WITH_UNIT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([a-z]+) ?")
_ISO_DURATION = re.compile(
    r"P(?:(\d{1,9})W)?(?:(\d{1,9})D)?(?:T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9})(?:\.\d{1,9})?S)?)?"
)
_ISO_DURATION_UNITS = (604_800, 86_400, 3600, 60, 1)
_MAX_TIME_LENGTH = 64  # characters of a text; a longer one is a number of absurd length, or nothing


# --- JSON ------------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> object:
    """The JSON value in a body; None if the body is not JSON."""
    # The exception ends here: it quotes the input, and a caller could chain it.
    try:
        return from_json(body)
    except ValueError:
        return _read_leniently(body) if len(body) <= _MAX_LENIENT_SIZE else None


def read_object(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object in a body; None if the body is anything else."""
    value = read_json(body)
    return value if isinstance(value, dict) else None


def _read_leniently(body: bytes) -> object:
    try:
        value = json.loads(body.decode("utf-8-sig", "replace"), strict=False, parse_int=parse_int)
        # UTF-16 can encode lone surrogates, and its decoder replaces them.
        encoded = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        return json.loads(encoded.decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return None


def parse_int(digits: str) -> int | float:
    """An int, or a float for more digits than an identifier has: Python refuses ints of thousands of digits."""
    return int(digits) if len(digits) <= _MAX_TEXT_LENGTH else float(digits)


def field_at(value: object, path: str) -> object:
    """The value at a dotted path, such as "locations.0.merchant_id" or 'error.".tag"'; None if it is missing.

    A member whose whole name is the path comes first: values outside of a body have such names.
    """
    if isinstance(value, dict) and path in value:
        return value[path]
    names = [name.strip('"') for name in _NAMES.findall(path)] if '"' in path else path.split(".")
    for name in names:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def text_at(value: object, path: str) -> str | None:
    """The string or integer at a dotted path, as text of at most 255 characters, unchanged; None otherwise.

    None as well for blank text, and for text with control characters or lone surrogates. Other characters that are not
    visible, such as joiners and all kinds of spaces, belong to how people write. Text that was not decoded completely
    is None as well: two different identifiers could have become equal.
    """
    return _text(field_at(value, path))


def texts_at(value: object, path: str) -> Iterator[str]:
    """The texts, as of `text_at`, at a dotted path in which "*" stands for each element of a list."""
    head, _, rest = path.partition(".*")
    found = field_at(value, head)
    if head == path:
        texts = [_text(found)]
    elif rest:
        texts = [text for element in _as_list(found) for text in texts_at(element, rest.removeprefix("."))]
    else:
        texts = list(map(_text, _as_list(found)))
    yield from (text for text in texts if text is not None)


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT_LENGTH or value.isspace():
        return None
    return None if UNREADABLE in value or has_control_characters(value) else value


# --- durations and times ---------------------------------------------------------------------------------------------


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
    if len(text) > _MAX_TIME_LENGTH:
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
    if (parts := _WITH_UNIT.findall(text.lower())) and not _WITH_UNIT.sub("", text.lower()):
        units = [_UNITS.get(name, _UNITS.get(name.removesuffix("s"), math.nan)) for _, name in parts]
        seconds = sum(float(number) * unit for (number, _), unit in zip(parts, units, strict=True))
        return None if math.isnan(seconds) else seconds
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
