"""JSON values together with the text that they were read from, so that a part of a body is kept byte for byte.

Verified bodies are read leniently, because an event that cannot be read cannot be routed:

- The encoding is that of the byte order mark, or UTF-16 or UTF-32 by the zero bytes of the first characters
  (RFC 4627 §3), or UTF-8; a body that is not UTF-8 may be in the single-byte encoding that its Content-Type names.
- Numbers of any length, NaN, control characters in strings, lone surrogates and repeated names (the last one counts)
  are accepted, and so is text after the value.
- A value that is nested deeper than the parser reads is None; what is beside it is read. So is a value with an error
  inside that is deeper than `_LEVELS`; any other error makes the body unreadable.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from json import JSONDecoder
from typing import Any

from integration_server.domain.lenient_values import parse_int

_DECODER = JSONDecoder(strict=False, parse_int=parse_int)
_SPACE = re.compile(r"[ \t\n\r]*")
_SEPARATOR = re.compile(r"[ \t\n\r]*(,?)[ \t\n\r]*")
# A string, also one without an end, or brackets. Possessive, so that the time is linear in the length of the text.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]++|[\]}]++', re.DOTALL)
_CHARSET = re.compile(rb"""charset\s*=\s*["']?(iso-?8859-1?\d|latin-?1|(?:windows-|cp)125\d)\b""", re.IGNORECASE)
# The longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xfe\xff", "utf-16-be"),
    (b"\xff\xfe", "utf-16-le"),
)
_ZEROS = (
    (re.compile(rb"\0\0\0[^\0]"), "utf-32-be"),
    (re.compile(rb"[^\0]\0\0\0"), "utf-32-le"),
    (re.compile(rb"\0[^\0]"), "utf-16-be"),
    (re.compile(rb"[^\0]\0"), "utf-16-le"),
)
# Lists and objects of a body, counted by their brackets. A parser needs about 20 ms for so many, during which the event
# loop waits; 350,000 empty ones fit into 1 MiB. A batch of 1,000 rich events has some 20,000.
_MAX_CONTAINERS = 100_000
# Levels of a value that are read member by member. Events name their type and account at the second to fourth.
_LEVELS = 6
# Members that are read one by one although the parser could read all at once, which is faster: then they need not be
# read again to find where they are.
_MAX_WALKED = 64
# Members and elements that are read one by one while a body is read for the first time, each of which takes about 3 µs.
# A batch of 1,000 events of which one is nested too deeply needs somewhat more than 1,000.
_MAX_STEPS = 8000

_Span = tuple[int, int, int, Any]
"""Where a member with its name, or an element, begins; where its value begins and ends; and the value."""

_Spans = Generator[_Span, None, int]
"""The members or elements of an object or list. Returns the index after it."""


@dataclass(frozen=True, slots=True)
class _Body:
    """A decoded body. Encoding a part of the text again results in the same bytes.

    `walked` has the members of objects that were read one by one, by the index of the object. `steps` ends when no more
    members and elements may be read one by one.
    """

    text: str = field(repr=False)
    encoding: str
    walked: dict[int, Sequence[_Span]] = field(default_factory=dict, repr=False)
    steps: Iterator[object] = field(default_factory=lambda: iter(range(_MAX_STEPS)), repr=False)

    def encode(self, text: str) -> bytes:
        return text.encode(self.encoding, _errors_of(self.encoding))

    # All of the following raise `ValueError` for text that is not JSON.

    def read(self, at: int, levels: int = _LEVELS, *, walks: bool = True) -> tuple[Any, int]:
        """The value at this index, and the index after it. Objects are read member by member if `walks`."""
        opening, spans, found = self.text[at : at + 1], None, list[_Span]()
        if walks and levels and opening == "{":
            spans = self.members(at, levels - 1)
            end = self._take(spans, found)
            if end is not None:
                self.walked[at] = found
                return self._object(found), end
        try:
            return _DECODER.raw_decode(self.text, at)
        except (RecursionError, ValueError):
            # At which depth the parser ends depends on the caller's stack, and so does which of the two it raises. What
            # is returned must not: a value that was read once can be read again.
            if opening not in {"{", "["}:
                raise
            if not levels:
                return None, self._skip(at)
        if opening == "[":
            end = self._take_all(self.elements(at, levels - 1, walks=False), found)
            return [value for *_, value in found], end
        end = self._take_all(self.members(at, levels - 1) if spans is None else spans, found)
        self.walked[at] = found
        return self._object(found), end

    def _take(self, spans: _Spans, into: list[_Span]) -> int | None:
        """Append the next spans. Returns the index after their list or object; None if there may be more."""
        while len(into) < _MAX_WALKED and next(self.steps, None) is not None:
            try:
                into.append(next(spans))
            except StopIteration as stop:
                return int(stop.value)
        return None

    def _take_all(self, spans: _Spans, into: list[_Span]) -> int:
        while next(self.steps, None) is not None:
            try:
                into.append(next(spans))
            except StopIteration as stop:
                return int(stop.value)
        raise ValueError("too many values")

    def elements(self, at: int, levels: int, *, walks: bool = True) -> _Spans:
        """The elements of the list at this index."""
        text, at = self.text, _after_space(self.text, at + 1)
        while not text.startswith("]", at):
            value, end = self.read(at, levels, walks=walks)
            yield at, at, end, value
            at = _after_separator(text, end, "]")
        return at + 1

    def members(self, at: int, levels: int) -> _Spans:
        """The members of the object at this index."""
        text, at = self.text, _after_space(self.text, at + 1)
        while not text.startswith("}", at):
            begin = at
            at = _after_space(text, self._name_at(begin)[1])
            if not text.startswith(":", at):
                raise ValueError("no value")
            start = _after_space(text, at + 1)
            value, end = self.read(start, levels)
            yield begin, start, end, value
            at = _after_separator(text, end, "}")
        return at + 1

    def name_of(self, member: _Span) -> str:
        """The name of a member."""
        return self._name_at(member[0])[0]

    def _name_at(self, at: int) -> tuple[str, int]:
        if not self.text.startswith('"', at):
            raise ValueError("no name")
        name, end = _DECODER.raw_decode(self.text, at)
        return str(name), end

    def _object(self, members: Iterable[_Span]) -> Mapping[str, Any]:
        return {self.name_of(member): member[-1] for member in members}

    def _skip(self, at: int) -> int:
        """The index after the list or object at this index, however deep it is nested."""
        depth = 0
        for token in _TOKEN.finditer(self.text, at):
            first, length = self.text[token.start()], token.end() - token.start()
            if first in "[{":
                depth += length
            elif first in "]}":
                if depth <= length:
                    return token.start() + depth
                depth -= length
        raise ValueError("no end")


@dataclass(frozen=True, slots=True)
class JsonText:
    """A JSON value, and where it is in the body. `levels` of it were read member by member where necessary."""

    body: _Body
    start: int
    end: int
    value: Any = field(repr=False)
    levels: int = _LEVELS

    @property
    def text(self) -> str:
        """The text of the value in the body."""
        return self.body.text[self.start : self.end]

    @property
    def raw(self) -> bytes:
        """The bytes of the value in the body."""
        return self.body.encode(self.text)

    def elements(self) -> Iterator["JsonText"]:
        """The elements of a list; none for another value."""
        if isinstance(self.value, list):
            levels, walks = self._inner_levels, len(self.value) <= _MAX_WALKED
            for _, start, end, value in self.body.elements(self.start, levels, walks=walks):
                yield JsonText(self.body, start, end, value, levels)

    def members(self) -> Iterator["JsonMember"]:
        """The members of an object, also those with the same name; none for another value."""
        if isinstance(self.value, dict):
            levels = self._inner_levels
            for member in self.body.walked.get(self.start) or self.body.members(self.start, levels):
                begin, start, end, value = member
                yield JsonMember(self.body.name_of(member), begin, JsonText(self.body, start, end, value, levels))

    @property
    def _inner_levels(self) -> int:
        # The same as when the value was read first: with more, an error that was skipped then would be found.
        return max(0, self.levels - 1)

    def at(self, path: str) -> "JsonText | None":
        """The value at a dotted path of names; None if it is missing."""
        found: JsonText | None = self
        for name in path.split("."):
            found = None if found is None else {member.name: member.value for member in found.members()}.get(name)
        return found

    def raw_without(self, name: str) -> bytes:
        """The bytes of an object without the members of this name, and otherwise unchanged."""
        whole, kept, last = self.body.text, "", self.start + 1
        for member in self.members():
            if member.name != name:
                # What follows the bracket instead of a removed member needs no comma.
                is_first = not kept and last > self.start + 1
                kept += whole[member.start if is_first else last : member.value.end]
            last = member.value.end
        return self.body.encode("{" + kept + whole[last : self.end])

    def raw_object(self, members: Iterable[str]) -> bytes:
        """The bytes of an object of these members, in the encoding of the body."""
        return self.body.encode("{" + ",".join(members) + "}")


@dataclass(frozen=True, slots=True)
class JsonMember:
    """A member of an object. `start` is where its name begins."""

    name: str
    start: int
    value: JsonText

    @property
    def text(self) -> str:
        """The text of the member in the body, with its name."""
        return self.value.body.text[self.start : self.value.end]


def read_json_text(body: bytes, content_type: bytes = b"") -> JsonText | None:
    """The JSON value in a body; None if there is none, or if it has more lists and objects than providers send."""
    if body.count(b"{") + body.count(b"[") > _MAX_CONTAINERS:
        return None
    source = _Body(*_decode(body, content_type))
    start = _after_space(source.text, 0)
    try:
        value, end = source.read(start)
    except ValueError:  # quotes the body, so it must not be chained
        return None
    # What was read once can be read again, at most a few times, and its events are made in slices.
    return JsonText(replace(source, steps=repeat(True)), start, end, value)


# --- decoding


def _decode(body: bytes, content_type: bytes) -> tuple[str, str]:
    """The text without a byte order mark, and its encoding."""
    for mark, encoding in _MARKS:
        if body.startswith(mark):
            return _decode_as(encoding, body[len(mark) :])
    for zeros, encoding in _ZEROS:
        if zeros.match(body):
            return _decode_as(encoding, body)
    charset = _CHARSET.search(content_type)
    if charset is not None:
        try:
            return body.decode(), "utf-8"  # whatever the header says: latin-1 can decode everything
        except UnicodeDecodeError:
            return _decode_as(charset[1].decode(), body)
    return _decode_as("utf-8", body)


def _decode_as(encoding: str, body: bytes) -> tuple[str, str]:
    try:
        return body.decode(encoding, _errors_of(encoding)), encoding
    except (LookupError, UnicodeDecodeError):  # an unknown encoding, or half a character of UTF-16
        return _decode_as("utf-8", body)


def _errors_of(encoding: str) -> str:
    """The error handler with which decoding and encoding are inverse. Characters that it makes are lone surrogates."""
    return "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


# --- reading


def _after_separator(text: str, at: int, closing: str) -> int:
    """The index of the next element or member, or of the closing bracket."""
    found = _SEPARATOR.match(text, at)
    if found is None or not (found[1] or text.startswith(closing, found.end())):
        raise ValueError("no comma")
    return found.end()


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
