"""Redaction of log events: replaces everything that looks like a secret, whoever logged it.

It is the second defence. The first is that no secret is logged: types hide their secrets in `repr`, error messages are
made of names and numbers, and URLs are logged without their queries. Redaction covers future code and libraries. It
detects secrets by their name and by their format; a secret with neither is not detected.

What is logged is also escaped (`domain/text_escaping.py`): two names that look alike stay different, and no name adds
a line or controls a terminal.
"""

import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import lru_cache

import structlog

from integration_server.domain.text_escaping import EscapedText, cut_marker, escape

REDACTED = "[redacted]"

# As the end of a longer name too: access_token, X-Api-Key, clientSecret.
_NAME = (
    r"[\w-]*(?:token|secret|passwd|password|authorization|cookie|credentials|assertion|signature|verifier"
    r"|(?:api|encryption|private|data)[_-]?key"
    r"|pwd(?!\W{0,8}[/~]))"  # the shell's PWD is a path
)
# These names also denote harmless values, such as an error's code or a row's state. Only random-looking values are
# replaced.
_AMBIGUOUS_NAME = r"(?:code|state|key|nonce|sig)"
_VALUE = r"[^\s\"'&,;\\<>)}\]]"
# The lookahead is bounded, because in key=key=key=… each word begins a value that extends to the end.
_RANDOM = rf"(?={_VALUE}{{0,31}}?(?-i:[a-z]))(?={_VALUE}{{0,31}}?(?-i:[A-Z]|\d)){_VALUE}{{16,}}"

# The beginning of a word, also after an escape: \nword, \u0022word, %22word.
_START = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))"

# name=value, name: value, name => value, "name": "value", 'name': b'value', 'name': ['value'], and each of them escaped
# once more.
_BEFORE = r"(?P<before>{start}{name}[\\\"']{{0,4}}\s*(?:[=:]{{1,2}}>?|%3D|%3A)\s*(?:[\[(]\s*)?(?:b?[\\\"']{{1,4}})?)"
_NAMED_SECRETS = re.compile(
    _BEFORE.format(start=r"(?<![\w-])", name=_NAME) + rf"(?:(?:Bearer|Basic|Token)\s+)?{_VALUE}+", re.IGNORECASE
)
_AMBIGUOUSLY_NAMED_SECRETS = re.compile(_BEFORE.format(start=_START, name=_AMBIGUOUS_NAME) + _RANDOM, re.IGNORECASE)
_IS_SECRET_NAME = re.compile(_NAME, re.IGNORECASE).fullmatch
_IS_AMBIGUOUS_NAME = re.compile(_AMBIGUOUS_NAME, re.IGNORECASE).fullmatch
_LOOKS_RANDOM = re.compile(_RANDOM, re.IGNORECASE).fullmatch

_SECRET_FORMATS = re.compile(
    rf"""
      (?i:\bcookie\s*:\s*)[^\r\n]+                                              # all cookies
    | \b(?:Bearer|Basic)\s+[\w.~+/=-]{{8,}}                                     # RFC 6750, RFC 7617
    | (?i:\b(?:bearer|basic)\s+)(?=[\w.~+/=-]{{0,63}}?(?:\d|[a-z][A-Z]))[\w.~+/=-]{{8,}}  # not a sentence
    | (?<=://)[^\s/@:]*:[^\s/@]+(?:@[^\s/@\"'<>,;]*)*(?=@)                      # a URL's user and password
    | {_START}eyJ[\w-]{{8,}}\.[\w-]*(?:\.[\w-]*)*                               # a JWT or JWE: base64url of {{"
    | {_START}A[Q-Za-f][\w-]{{60,}}                                             # encrypted by us: format 1, key id …
    | {_START}(?:
          (?:sk|rk|pk)_(?:live|test)_\w{{8,}} | whsec_[\w+/=-]{{8,}}            # Stripe
        | xox[a-z]-[\w-]{{8,}} | xapp-[\w-]{{8,}}                               # Slack
        | gh[a-z]_\w{{16,}} | github_pat_\w{{16,}} | glpat-[\w-]{{16,}}         # GitHub, GitLab
        | ya29\.[\w.-]{{8,}} | 1//[\w-]{{16,}} | 4/0[\w-]{{16,}} | GOCSPX-[\w-]{{8,}}
        | AIza[\w-]{{30,}}                                                       # Google
        | EAA[\w-]{{16,}} | sq0[a-z]{{3}}-[\w-]{{16,}}                          # Meta and Square, Square
        | SG\.[\w-]{{8,}}\.[\w-]{{8,}}                                          # SendGrid
        | (?:AC|SK)[0-9a-f]{{32}}                                               # Twilio
        | shp[a-z]{{2}}_[0-9a-f]{{16,}}                                         # Shopify
        | AKIA[0-9A-Z]{{16}} | ASIA[0-9A-Z]{{16}}                               # AWS
      )
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----[\s\S]*?(?:-----END\ [A-Z ]*-----|$)
    """,
    re.VERBOSE | re.ASCII,  # like _START; otherwise a word could begin inside a word, and each would be read again
)

PATTERNS = (
    (_NAMED_SECRETS, rf"\g<before>{REDACTED}"),
    (_AMBIGUOUSLY_NAMED_SECRETS, rf"\g<before>{REDACTED}"),
    (_SECRET_FORMATS, REDACTED),
)
"""The patterns of secrets with their replacements. Each reads a text once."""

_ASSIGNMENTS = ("=", ":", "%3")  # one is in whatever the first two patterns match
_MAX_WORD_LENGTH = 32  # characters

# As `isoformat` writes it, which no pattern matches.
_IS_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{6})?(?:Z|\+00:00)?", re.ASCII).fullmatch
_IS_ORIGIN = re.compile(r"https?://[a-z0-9.-]{1,64}(?::\d{1,5})?", re.ASCII).fullmatch

_STACK = "stack"  # has lines of its own, and no text but of our source code

MAX_LENGTH = 16 * 1024  # characters; our own texts are shorter, and a sender must not make us read longer ones


def redact_text(
    text: str,
    *,
    max_length: int = MAX_LENGTH,
    patterns: Sequence[tuple[re.Pattern[str], str]] = PATTERNS,
    escape: Callable[[str], str] = escape,
) -> str:
    """The text with secrets replaced, then escaped. Of a text of more than `max_length` characters, the beginning."""
    marker = ""
    if isinstance(text, EscapedText):
        escape = str
    if len(text) > max_length:
        marker = cut_marker(text)
        # The word at the cut is removed, because half a secret may not look like one.
        text = "".join(text[:max_length].rsplit(maxsplit=1)[:-1])
    is_assignment = any(sign in text for sign in _ASSIGNMENTS)
    for pattern, replacement in patterns:
        if is_assignment or pattern not in (_NAMED_SECRETS, _AMBIGUOUSLY_NAMED_SECRETS):
            text = pattern.sub(replacement, text)
    return escape(text) + marker


def redact(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The structlog processor that redacts. It must be the last before the renderer."""
    return {_name(name): _redact_value(_name(name), value) for name, value in event.items()}


@lru_cache(maxsize=1024)
def _name(name: object) -> str:
    """The name of an event's field as text. Cached, because the same few names occur in every event."""
    return _text(name)


# Cached as the names are.
_is_secret_name = lru_cache(maxsize=1024)(_IS_SECRET_NAME)
_is_ambiguous_name = lru_cache(maxsize=1024)(_IS_AMBIGUOUS_NAME)


def _redact_value(name: str, value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if _is_secret_name(name):
        return REDACTED
    if isinstance(value, Mapping):
        return {_text(inner): _redact_value(_text(inner), content) for inner, content in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redact_value(name, content) for content in value]
    if name == _STACK:
        return redact_text(str(value), escape=str)
    text = _text(value)
    if _is_ambiguous_name(name) and _LOOKS_RANDOM(text):
        return REDACTED
    return text


def _text(value: object) -> str:
    """The value as redacted text. It calls `repr` where the renderer would, so that the result is redacted too."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, date):
        value = value.isoformat()
    text = value if isinstance(value, str) else repr(value)
    if type(text) is not str:
        return redact_text(text)
    if _IS_TIME(text):
        return text
    # A word without digits, such as an event, a level or a method. Random values are longer or have some.
    is_word = len(text) <= _MAX_WORD_LENGTH and text.isidentifier() and (text.islower() or text.isupper())
    return _frequent(text) if is_word or _IS_ORIGIN(text) else redact_text(text)


@lru_cache(maxsize=1024)
def _frequent(text: str) -> str:
    """The redacted text. Cached, because a few words and providers occur in most events."""
    return redact_text(text)


def strip_exception_text(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """The structlog processor that reduces an exception to type and stack. Its text may quote the invalid input."""
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error and not isinstance(error, BaseException):
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event.setdefault("kind", type(error).__qualname__)
        event.setdefault(_STACK, "".join(traceback.format_tb(error.__traceback__)))
    return event
