"""Reversible escaping of texts that others choose, for the audit log and the server's log.

A backslash becomes `\\\\`, and a character that is not visible on its own becomes `\\u{200b}`, its code point in
hexadecimal. Two different texts are therefore never recorded as the same one, also not after Unicode normalization, and
nothing that a terminal obeys is left. Different characters that look alike stay as they are.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping

# Beyond these categories: letters, marks and symbols that have no glyph. Most are Default_Ignorable_Code_Point in
# DerivedCoreProperties.txt of Unicode: grapheme joiner, Hangul fillers, Khmer vowels, Mongolian and other variation
# selectors. The last two are the blank Braille pattern and the musical null note.
_WITHOUT_GLYPH = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0000-\U000e0fff\u2800\U0001d159]"
)

_BACKSLASH: Mapping[str, str] = {"\\": "\\\\"}
_ESCAPED = re.compile(r"\\(?:\\|u\{([0-9a-f]{1,6})\})")


class EscapedText(str):
    """A text that `escape` has returned. It is not escaped again."""

    __slots__ = ()


def escape(text: str, max_length: int | None = None) -> EscapedText:
    r"""Return the escaped text. `unescape` returns the original.

    Of a text of more than `max_length` characters, only that many are kept, and the length and the SHA-256 of the whole
    follow: `abc\{300 characters, sha256 …}`. No other text becomes the same.
    """
    if isinstance(text, EscapedText):
        return text
    if max_length is None or len(text) <= max_length:
        return EscapedText(_escape(text, _BACKSLASH))
    return EscapedText(_escape(text[:max_length], _BACKSLASH) + cut_marker(text))


def is_plain(texts: Iterable[str]) -> bool:
    """Whether no text needs to be escaped, at the price of one. False if that is not certain."""
    joined = f"|{'|'.join(texts)}|"
    is_visible = joined.isascii() and joined.isprintable() and "\\" not in joined
    return is_visible and " |" not in joined and "| " not in joined  # spaces at the edge of a text


def cut_marker(text: str) -> str:
    """Return what follows the escaped beginning of a text that is cut. No escaped text contains it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"\\{{{len(text)} characters, sha256 {digest}}}"


def unescape(escaped: str) -> str:
    """Return the original of an escaped text. Raises `ValueError` for a text that was cut, or was never escaped."""
    if "\\" in _ESCAPED.sub("", escaped):
        raise ValueError("is not a complete escaped text")
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)) if match[1] else "\\", escaped)


def escape_again(escaped: str) -> str:
    """Return a text that should be escaped already. Only what `escape` never leaves is escaped.

    For terminals: somebody may have written the text to the database past this program.
    """
    return _escape(escaped, {})


def _escape(text: str, replacements: Mapping[str, str]) -> str:
    if text.isascii() and text.isprintable() and text == text.strip(" ") and replacements.keys().isdisjoint(text):
        return text
    # A text that is not normalized looks like its normal form, another text: then only ASCII stays.
    is_normalized = unicodedata.is_normalized("NFC", text)
    edges = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))  # spaces at an edge are invisible
    escaped, is_kept = [], False
    for index, character in enumerate(text):
        category = unicodedata.category(character)
        # A mark would be drawn on the escape sequence, or on whatever precedes the text.
        is_kept = (
            (character.isascii() or is_normalized)
            and (category[0] not in "CZ" or (character == " " and edges[0] <= index < edges[1]))
            and not _WITHOUT_GLYPH.match(character)
            and (category[0] != "M" or is_kept)
        )
        escaped.append(replacements.get(character, character) if is_kept else f"\\u{{{ord(character):x}}}")
    return "".join(escaped)
