"""Lenient JSON parsing for bodies that other systems wrote.

Bodies of up to 64 KiB are parsed even if they are not strict JSON: a byte order mark (RFC 8259 §8.1), bytes that are
not UTF-8, lone surrogates ("\\ud83d"), control characters in strings, and numbers of any length are accepted. All
strings in the result are valid Unicode; characters that could not be decoded become `UNREADABLE`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from integration_server.text_escaping import has_control_characters

UNREADABLE = "\ufffd"

_MAX_TEXT_LENGTH = 255
_MAX_LENIENT_SIZE = 1 << 16  # bytes: far more than a token response has; the slow parser needs about 20 ms for it


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
        value = json.loads(body.decode("utf-8-sig", "replace"), strict=False, parse_int=_parse_int)
        # UTF-16 can encode lone surrogates, and its decoder replaces them.
        encoded = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        return json.loads(encoded.decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return None


def _parse_int(digits: str) -> int | float:
    """An int, or a float for more digits than an identifier has: Python refuses ints of thousands of digits."""
    return int(digits) if len(digits) <= _MAX_TEXT_LENGTH else float(digits)


def field_at(value: object, path: str) -> object:
    """The value at a dotted path, such as "locations.0.merchant_id"; None if it is missing."""
    for name in path.split("."):
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
