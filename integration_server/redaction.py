"""The second net under the logs: takes out of an event whatever looks like a secret, whoever put it there.

The first net is that no secret is logged: types hide theirs, errors are written from names and numbers, and addresses
are logged without their queries. This one is for the line that somebody adds one day, and for what libraries write. It
knows secrets by the name they go by and by their shape; a secret that has neither passes.
"""

import re
import sys
import traceback
from collections.abc import Mapping
from datetime import date
from functools import lru_cache

import structlog

REDACTED = "[redacted]"

# As the end of a longer name too: access_token, X-Api-Key, clientSecret.
_NAME = (
    r"[\w-]*(?:token|secret|passwd|password|authorization|cookie|credentials|assertion|signature|verifier"
    r"|(?:api|encryption|private|data)[_-]?key"
    r"|pwd(?!\W{0,8}[/~]))"  # of a shell it is where it is
)
# What is also called so without being a secret: an error's code, a row's state. Of these only what looks random goes.
_AMBIGUOUS_NAME = r"(?:code|state|key|nonce|sig)"
_VALUE = r"[^\s\"'&,;\\<>)}\]]"
# How far it is looked is bounded: in key=key=key=… each word begins a value that goes on to the end.
_RANDOM = rf"(?={_VALUE}{{0,31}}?(?-i:[a-z]))(?={_VALUE}{{0,31}}?(?-i:[A-Z]|\d)){_VALUE}{{16,}}"

# Where a word begins, also behind an escape: \nword, \u0022word, %22word.
_START = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))"

# name=value, name: value, name => value, "name": "value", 'name': b'value', 'name': ['value'], and the same where it
# was escaped once more.
_BEFORE = r"(?P<before>{start}{name}[\\\"']{{0,4}}\s*(?:[=:]{{1,2}}>?|%3D|%3A)\s*(?:[\[(]\s*)?(?:b?[\\\"']{{1,4}})?)"
_NAMED = re.compile(
    _BEFORE.format(start=r"(?<![\w-])", name=_NAME) + rf"(?:(?:Bearer|Basic|Token)\s+)?{_VALUE}+", re.IGNORECASE
)
_NAMED_AMBIGUOUSLY = re.compile(_BEFORE.format(start=_START, name=_AMBIGUOUS_NAME) + _RANDOM, re.IGNORECASE)
_IS_SECRET_NAME = re.compile(_NAME, re.IGNORECASE).fullmatch
_IS_AMBIGUOUS_NAME = re.compile(_AMBIGUOUS_NAME, re.IGNORECASE).fullmatch
_LOOKS_RANDOM = re.compile(_RANDOM, re.IGNORECASE).fullmatch

_SHAPES = re.compile(
    rf"""
      (?i:\bcookie\s*:\s*)[^\r\n]+                                              # all of them
    | \b(?:Bearer|Basic)\s+[\w.~+/=-]{{8,}}                                     # RFC 6750, RFC 7617
    | (?i:\b(?:bearer|basic)\s+)(?=[\w.~+/=-]{{0,63}}?(?:\d|[a-z][A-Z]))[\w.~+/=-]{{8,}}  # and no words
    | (?<=://)[^\s/@:]*:[^\s/@]+(?:@[^\s/@\"'<>,;]*)*(?=@)                      # a URL's user and password
    | {_START}eyJ[\w-]{{8,}}\.[\w-]*(?:\.[\w-]*)*                               # a JWT or JWE: base64url of {{"
    | {_START}A[Q-Za-f][\w-]{{60,}}                                             # sealed by us: format 1, key id …
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
    re.VERBOSE | re.ASCII,  # as _START is: otherwise a word could begin within a word, and be read once for each
)

_MAX_LENGTH = 16 * 1024
"""Characters of a text: one of ours is shorter, and whoever sends a longer one must not make us read it."""


def redact_text(text: str) -> str:
    """The text without what looks like a secret, and no longer than is worth reading."""
    if len(text) <= _MAX_LENGTH:
        return _without_secrets(text)
    # The word that is cut through goes whole: half a secret may not look like one.
    begins = text[:_MAX_LENGTH].rsplit(maxsplit=1)[:-1]
    return f"{''.join(map(_without_secrets, begins))} [cut: {len(text)} characters]".lstrip()


def _without_secrets(text: str) -> str:
    for pattern in (_NAMED, _NAMED_AMBIGUOUSLY):
        text = pattern.sub(rf"\g<before>{REDACTED}", text)
    return _SHAPES.sub(REDACTED, text)


def redact(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A structlog processor, the last before the renderer: what comes after it is not looked at."""
    return {_name(name): _redact_value(_name(name), value) for name, value in event.items()}


@lru_cache(maxsize=1024)
def _name(name: object) -> str:
    """The name of an event's field as text. There are few of them, and they come with every line."""
    return _text(name)


def _redact_value(name: str, value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if _IS_SECRET_NAME(name):
        return REDACTED
    if isinstance(value, Mapping):
        return {_text(inner): _redact_value(_text(inner), content) for inner, content in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redact_value(name, content) for content in value]
    text = _text(value)
    if _IS_AMBIGUOUS_NAME(name) and _LOOKS_RANDOM(text):
        return REDACTED
    return text


def _text(value: object) -> str:
    """As text, without secrets. Whatever a renderer would ask for its `repr` is asked here."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, date):
        value = value.isoformat()
    return redact_text(value if isinstance(value, str) else repr(value))


def strip_exception_text(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A structlog processor: of an exception its kind and place stay. Its text may quote what it choked on."""
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error and not isinstance(error, BaseException):
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event.setdefault("kind", type(error).__qualname__)
        event.setdefault("stack", "".join(traceback.format_tb(error.__traceback__)))
    return event
