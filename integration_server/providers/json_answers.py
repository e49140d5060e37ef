"""Reading JSON that others wrote, where nothing about its shape is certain."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

_LONGEST_TEXT = 255


def read_object(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object in a body; None if it is anything else."""
    try:
        value = from_json(body)
    except ValueError:  # and so not chained by callers: it quotes what it could not read
        return None
    return value if isinstance(value, dict) else None


def read_array(body: bytes) -> list[Any] | None:
    """The JSON array in a body; None if it is anything else."""
    try:
        value = from_json(body)
    except ValueError:  # likewise
        return None
    return value if isinstance(value, list) else None


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

    None if there is none, or more of it than an identifier or a name has.
    """
    found = field_at(value, path)
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    if not isinstance(found, str) or not found.isprintable() or len(found) > _LONGEST_TEXT:
        return None
    return found.strip() or None
