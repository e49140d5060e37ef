"""Extracts facts about providers from the files that declare them, and from the modules of webhook schemes.

The facts are in the docstring of a module, or in the first comment of a TOML file. Those of a webhook scheme that the
file declares are in the comment before `[webhook]`. Each item ("- …") contains facts. A fact ends with its confidence
(`[H]`, `[M]`, `[K]`: see `integration_server/providers/__init__.py`) and the day of its last check, if that is not
`FIRST_CHECK`. It may name its source: "Endpoints: docs.example.com/oauth [H]." The text after the last mark of an item
says how the server uses the facts.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from integration_server.providers.base import BaseProvider
from integration_server.providers.webhooks.declared_scheme import DeclaredScheme
from integration_server.providers.webhooks.hmac_scheme import HmacScheme
from integration_server.providers.webhooks.scheme import WebhookScheme

_ITEM = re.compile(r"^- (.*(?:\n  .*)*)", re.MULTILINE)
_FACT = re.compile(r"(?P<text>.+?)\s*\[(?P<mark>[HMK])(?: (?P<checked>[0-9]{4}-[0-9]{2}-[0-9]{2}))?\][.,:;]?\s*")
_SOURCE = re.compile(r"(?:[a-z0-9-]+\.)+[a-z]{2,}/[^\s,)]*[^\s,).:;]")


class Confidence(StrEnum):
    """The confidence of a fact."""

    HIGH = "H"
    MEDIUM = "M"
    KNOWLEDGE = "K"
    DERIVED = ""
    """Not a fact about the provider, but how the server uses one."""


FIRST_CHECK = "2026-11-22"
"""The day on which all facts were gathered; a fact that was checked later has its own day."""

DEFAULT_SOURCES = {
    Confidence.HIGH: "public documentation or software",
    Confidence.MEDIUM: "secondary sources",
    Confidence.KNOWLEDGE: "general knowledge: not confirmed",
    Confidence.DERIVED: "",
}
"""The source of a fact that names none."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement about a provider."""

    text: str
    source: str
    confidence: Confidence
    checked: str = ""
    """The day of the last check, as YYYY-MM-DD; empty for a text that is not a fact about the provider."""


def facts_of(provider: BaseProvider) -> Sequence[Fact]:
    """The facts in a provider's own file, then those in the modules of its base classes that have any."""
    modules = dict.fromkeys(base.__module__ for base in type(provider).__mro__ if issubclass(base, BaseProvider))
    texts = [*map(_first_comment, _files_of(provider)), *map(_docstring, modules)]
    return [fact for text in texts if text is texts[0] or _FACT.search(text) for fact in facts_in(text)]


def webhook_facts_of(provider: BaseProvider) -> tuple[str, Sequence[Fact]]:
    """The title and the facts of a provider's webhook scheme."""
    scheme = provider.webhook_scheme
    if isinstance(scheme, DeclaredScheme):
        text = next(text for file in _files_of(provider) if (text := _webhook_comment(file)))
    else:
        text = "" if scheme is None else _docstring(scheme_module(scheme))
    return text.partition("\n")[0].rstrip("."), facts_in(text)


def scheme_module(scheme: WebhookScheme) -> str:
    """The name of the module of a scheme that is Python."""
    return scheme.read.__module__ if isinstance(scheme, HmacScheme) else type(scheme).__module__


def _files_of(provider: BaseProvider) -> Sequence[str]:
    return [file.read_text(encoding="utf-8") for file in provider.declared_in]


def _first_comment(toml: str) -> str:
    lines = (line for line in toml.splitlines() if not line.startswith("#:"))
    return _uncommented(takewhile(_is_comment, lines))


def _webhook_comment(toml: str) -> str:
    lines = toml.partition("\n[webhook]")[0].splitlines()
    return _uncommented(reversed(list(takewhile(_is_comment, reversed(lines)))))


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def _uncommented(lines: Iterable[str]) -> str:
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def facts_in(docstring: str) -> Sequence[Fact]:
    """The facts in a docstring."""
    return [fact for item in _ITEM.findall(docstring) for fact in _facts(" ".join(item.split()))]


def _docstring(module: str) -> str:
    return inspect.cleandoc(sys.modules[module].__doc__ or "")


def _facts(item: str) -> Iterator[Fact]:
    named = _SOURCE.findall(item)
    end = 0
    for match in _FACT.finditer(item):
        confidence = Confidence(match["mark"])
        own = _SOURCE.findall(match["text"])
        source = (own or named or [DEFAULT_SOURCES[confidence]])[-1 if own else 0]
        if confidence is not Confidence.HIGH and not own:
            source = DEFAULT_SOURCES[confidence]
        yield Fact(_without_sources(match["text"]), source, confidence, match["checked"] or FIRST_CHECK)
        end = match.end()
    rest = item[end:].strip()
    if rest:
        yield Fact(_without_sources(rest), "", Confidence.DERIVED)


def _without_sources(text: str) -> str:
    text = re.sub(rf":?\s*(?:{_SOURCE.pattern})", "", text).strip()
    return text[:1].upper() + text[1:].rstrip(".,;: ")
