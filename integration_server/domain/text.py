"""The characters that names, keys and other texts may have."""

import unicodedata

_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs"})


def has_control_characters(text: str) -> bool:
    """Whether a text has a control character or a lone surrogate: Unicode categories Cc and Cs.

    No other character is refused in names: joiners and non-breaking spaces belong to how people write.
    """
    is_plain = text.isascii() and text.isprintable()
    return not is_plain and any(unicodedata.category(character) in _FORBIDDEN_CATEGORIES for character in text)
