"""Escaping: different texts stay different, nothing invisible is left, and the original can be restored."""

import itertools
import json
import unicodedata

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from integration_server.domain.text import has_control_characters
from integration_server.domain.text_escaping import EscapedText, escape, escape_again, unescape
from integration_server.redaction import redact, redact_text

# Each looks like "ada", or like another one of these, in some terminal, font or browser.
LOOKALIKES = {
    "plain": "ada",
    "zero width space": "ada\u200b",
    "zero width space in front": "\u200bada",
    "zero width joiner": "a\u200dda",
    "zero width non-joiner": "a\u200cda",
    "word joiner": "ada\u2060",
    "soft hyphen": "a\u00adda",
    "escape": "ada\x1b",
    "colour": "\x1b[8mada",
    "backspace": "adab\b",
    "NUL": "ada\0",
    "delete": "ada\x7f",
    "C1 control": "ada\x9b",
    "right-to-left override": "\u202eada",
    "isolate": "\u2066ada\u2069",
    "right-to-left mark": "ada\u200f",
    "byte order mark": "\ufeffada",
    "tag characters": "ada\U000e0061\U000e0064",
    "variation selector": "ada\ufe0f",
    "variation selector 17": "ada\U000e0100",
    "grapheme joiner": "a\u034fda",
    "Hangul filler": "ada\u3164",
    "Mongolian selector": "ada\u180b",
    "invisible times": "ada\u2062",
    "blank Braille pattern": "ada\u2800",
    "trailing space": "ada ",
    "leading space": " ada",
    "no-break space": "ada\u00a0",
    "ideographic space": "ada\u3000",
    "thin space": "ada\u2009",
    "newline": "ada\n",
    "carriage return": "eve\rada",
    "tabulator": "ada\t",
    "line separator": "ada\u2028",
    "paragraph separator": "ada\u2029",
    "next line": "ada\x85",
    "private use": "ada\ue000",
    "private use, last plane": "ada\U0010fffd",
    "unassigned": "ada\u0378",
    "noncharacter": "ada\uffff",
    "lone surrogate": "ada\ud800",
    "lone low surrogate": "ada\udc00",
    "the escape itself": "ada\\u{200b}",
    "the escape of the escape": "ada\\\\u{200b}",
    "a backslash": "ada\\",
    "composed": "ad\u00e1",
    "decomposed": "ada\u0301",
    "Angstrom sign": "\u212b",
    "A with ring": "\u00c5",
    "Hangul syllable": "\ud55c",
    "Hangul letters": "\u1112\u1161\u11ab",
    "marks in one order": "a\u0316\u0301",
    "marks in the other": "a\u0301\u0316",
    "a mark in front": "\u0301ada",
}


def old_filter(text: str) -> str:
    """What the audit log did before: it dropped what is not printable, and the rest of a long text."""
    return "".join(filter(str.isprintable, text))[:128]


@pytest.mark.parametrize("text", LOOKALIKES.values(), ids=LOOKALIKES)
def test_a_lookalike_is_escaped_reversibly_and_visibly(text: str) -> None:
    escaped = escape(text)
    assert unescape(escaped) == text
    assert is_visible(escaped)
    assert escape(escaped) is escaped  # never escaped twice
    assert escape_again(escaped) == escaped


def is_visible(escaped: str) -> bool:
    """Whether every character has a glyph of its own, whatever a terminal normalizes."""
    return (
        escaped.isprintable()
        and escaped.strip() == escaped
        and unicodedata.is_normalized("NFC", escaped)
        and not ({"Cf", "Cn", "Co", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, escaped)))
    )


def test_no_two_lookalikes_are_recorded_as_one() -> None:
    recorded = [unicodedata.normalize("NFC", escape(text)) for text in LOOKALIKES.values()]
    assert len(set(recorded)) == len(LOOKALIKES)


def test_negative_control_filtering_records_many_users_as_one() -> None:
    assert sum(old_filter(text) == "ada" for text in LOOKALIKES.values()) > 15


@given(st.text(max_size=40), st.text(max_size=40))
@example("ada", "ada\u200b")
@example("a\\", "a\\\\")
@example("a" * 41 + "x", "a" * 41 + "y")
@example("\ud83d\ude00", "\U0001f600")
def test_different_texts_stay_different(first: str, second: str) -> None:
    assert unescape(escape(first)) == first
    for limit in (None, 8):
        are_equal = unicodedata.normalize("NFC", escape(first, limit)) == unicodedata.normalize(
            "NFC", escape(second, limit)
        )
        assert are_equal == (first == second)


def test_a_cut_text_is_marked_with_its_length_and_digest() -> None:
    long, other = "x" * 300, "x" * 299 + "y"
    cut = escape(long, 128)
    assert cut.startswith("x" * 128 + "\\{300 characters, sha256 ")
    assert cut != escape(other, 128)
    assert escape(str(cut), 1000) != cut  # a caller that sends the marker does not get it
    with pytest.raises(ValueError, match="complete"):
        unescape(cut)
    assert len(escape("\U0010ffff" * 300, 128)) < 128 * 10 + 120


@pytest.mark.parametrize(
    "text", ["Zoë", "Ада", "张伟", "नमस्ते", "مریم", "李 雷", "👩 🦆", 'O\'Brien "Bob"', "naïve café"]
)
def test_what_people_write_stays_readable(text: str) -> None:
    assert escape(unicodedata.normalize("NFC", text)) == unicodedata.normalize("NFC", text)


def test_a_sequence_that_joins_characters_is_escaped_and_can_be_restored() -> None:
    family = "👩\u200d👩\u200d👧"
    assert escape(family) == "👩\\u{200d}👩\\u{200d}👧"
    assert unescape(escape(family)) == family


def test_only_control_characters_and_surrogates_are_refused_in_names() -> None:
    refused = {name for name, text in LOOKALIKES.items() if has_control_characters(text)}
    assert refused == {
        *("escape", "colour", "backspace", "NUL", "delete", "C1 control", "newline", "carriage return", "tabulator"),
        *("next line", "lone surrogate", "lone low surrogate"),
    }
    assert not has_control_characters("")


def test_a_log_event_keeps_lookalikes_apart_and_a_stack_readable() -> None:
    lines = [json.dumps(redact(None, "info", {"event": "called", "caller": text})) for text in LOOKALIKES.values()]
    assert len({json.loads(line)["caller"] for line in lines}) == len(LOOKALIKES)
    assert all(is_visible(json.loads(line)["caller"]) for line in lines)
    places = ({"event": "x\x1b"}, {"a\x1b": 1}, {"a": ["x\x1b"]}, {"a": {"b\x1b": "x\x1b"}}, {"a": b"x\x1b"})
    assert not any("\x1b" in str(redact(None, "info", dict(place))) for place in places)
    stack = "  File x\n    call()\n"
    assert redact(None, "info", {"stack": stack}) == {"stack": stack}
    assert redact(None, "info", {"caller": EscapedText("a\\u{200b}")}) == {"caller": "a\\u{200b}"}


def test_a_terminal_gets_no_control_character_of_a_name() -> None:
    for text in LOOKALIKES.values():
        event = redact(None, "info", {"event": text, "caller": text})
        line = str(structlog.dev.ConsoleRenderer(colors=False)(None, "info", dict(event)))
        assert is_visible(line.strip())
    assert "\x1b" in redact_text("ada\x1b", escape=str)  # the negative control


def test_everything_that_is_not_ascii_is_escaped_in_a_text_that_is_not_normalized() -> None:
    for base, mark in itertools.product("eи가", "\u0301\u0308\u11a8"):
        decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFC", base + mark))
        composed = unicodedata.normalize("NFC", decomposed)
        if composed != decomposed:
            assert escape(composed) != escape(decomposed)
            assert is_visible(escape(decomposed))
