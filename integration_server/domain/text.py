"""The characters that names, keys and other texts may have."""

import unicodedata

_FORBIDDEN_CATEGORIES = {"Cc": "control character", "Cs": "lone surrogate"}


def has_control_characters(text: str) -> bool:
    """Whether a text has a control character or a lone surrogate: Unicode categories Cc and Cs.

    No other character is refused in names: joiners and non-breaking spaces belong to how people write.
    """
    return control_character_problem(text) is not None


def control_character_problem(text: str, allowed: str = "") -> str | None:
    """Which control character or lone surrogate a text has, as the end of a sentence; None if it has none.

    Positions count characters from 1. The characters in `allowed` are no problem.
    """
    if text.isascii() and text.isprintable():
        return None
    for position, character in enumerate(text, start=1):
        kind = _FORBIDDEN_CATEGORIES.get(unicodedata.category(character))
        if kind is not None and character not in allowed:
            return f"contains U+{ord(character):04X} ({kind}) at position {position}"
    return None
