"""Reading JSON that others wrote, where nothing about its shape is certain.

What is not quite JSON is read too, up to 64 KiB of it: after a byte order mark (RFC 8259 §8.1), with bytes that are no
UTF-8, with half a character ("\\ud83d"), with control characters in texts, with numbers of any length. All that comes
out is valid Unicode: what could not be read of a text is `UNREADABLE` there.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

UNREADABLE = "\ufffd"

_MAX_TEXT_LENGTH = 255
_MAX_LENIENT_SIZE = 1 << 16  # bytes: many times what comes with tokens, and read in some 20 ms at worst
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_object(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object in a body; None if it is anything else."""
    value = _read(body)
    return value if isinstance(value, dict) else None


def read_array(body: bytes) -> list[Any] | None:
    """The JSON array in a body; None if it is anything else."""
    value = _read(body)
    return value if isinstance(value, list) else None


def _read(body: bytes) -> object:
    # Errors end here, so that no caller chains them: they quote what could not be read.
    try:
        return from_json(body)
    except ValueError:
        return _read_leniently(body) if len(body) <= _MAX_LENIENT_SIZE else None


def _read_leniently(body: bytes) -> object:
    try:
        text = body.decode("utf-8-sig", "replace")
        return _replace_lone_surrogates(json.loads(text, strict=False, parse_int=_parse_int))
    except (ValueError, RecursionError):
        return None


def _parse_int(digits: str) -> int | float:
    """Python makes no int of thousands of digits; no identifier has so many, and a float is infinite if need be."""
    return int(digits) if len(digits) <= _MAX_TEXT_LENGTH else float(digits)


def _replace_lone_surrogates(value: object) -> object:
    match value:
        case str():
            return _LONE_SURROGATE.sub(UNREADABLE, value)
        case list():
            return [_replace_lone_surrogates(item) for item in value]
        case dict():
            return {_replace_lone_surrogates(name): _replace_lone_surrogates(item) for name, item in value.items()}
    return value


def field_at(value: object, path: str) -> object:
    """The value at a dotted path, such as "locations.0.merchant_id"; None if there is none."""
    for name in path.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def text_at(value: object, path: str) -> str | None:
    """The text or whole number at a dotted path, as text fit to store and to show.

    None if there is none, or more of it than an identifier or a name has, or not all of it could be read: two that
    differ could have become one.
    """
    found = field_at(value, path)
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    if not isinstance(found, str) or not found.isprintable() or UNREADABLE in found or len(found) > _MAX_TEXT_LENGTH:
        return None
    return found.strip() or None
