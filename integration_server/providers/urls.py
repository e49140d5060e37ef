"""Which URLs a provider may have: one grammar for declarations and requests, so that no parsers differ."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    # RFC 3986 §3.3, §3.4. No user name, no fragment: RFC 6749 §3.1 and §3.2 forbid the latter.
    r"(?:[/?](?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PARAM = re.compile(r"\{([A-Za-z_]+)\}")
_PARAM_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_PATTERN = re.compile(rf"\*(?P<domain>(?:\.{_DNS_LABEL})+\.[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?)")

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def url_problem(url: str, *, dev_mode: bool) -> str | None:
    """What is wrong with a URL, or None: only https is right, and in dev mode plain http to loopback."""
    match = _URL.fullmatch(url)
    if match is None or int(match["port"] or 0) > 65535:
        return "is not an absolute http(s) URL without user name and fragment"
    if match["scheme"] == "http" and not (dev_mode and match["host"].lower() in LOOPBACK_HOSTS):
        return "must be https; plain http is for loopback in dev mode only"
    return None


def template_params(url: str) -> tuple[str, ...]:
    """The names in braces that a declared URL leaves open: "https://{shop}.shops.example" has "shop"."""
    return tuple(_PARAM.findall(url))


def has_open_host(url: str) -> bool:
    """Whether one of them is in the host."""
    return bool(template_params(url.partition("://")[2].partition("/")[0]))


def fill(url: str, url_params: Mapping[str, str]) -> str:
    """The URL with its places filled: each by a host, a part of one, or one segment of a path, and by no more.

    Raises `ValueError` for a place that is not known, or that holds anything else.
    """

    def value(match: re.Match[str]) -> str:
        value_text = url_params.get(match[1], "")
        if not _PARAM_VALUE.fullmatch(value_text):
            raise ValueError(f"nothing fit to be {match[1]} in a URL is known")
        return value_text

    return _PARAM.sub(value, url)


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL without problem: "https://acme.example:443"."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("not a URL")
    return f"{match['scheme']}://{match['host'].lower()}:{int(match['port'] or _DEFAULT_PORTS[match['scheme']])}"


def host_pattern_problem(pattern: str) -> str | None:
    """What is wrong with a pattern of hosts, or None: "*.shops.example" is right."""
    if _PATTERN.fullmatch(pattern):
        return None
    return "is not '*.' and a domain of two labels or more in lower case, such as *.shops.example"


@dataclass(frozen=True, slots=True)
class DeclaredOrigins:
    """The origins that a provider's requests may go to: an `x in` for what `origin_of` says."""

    exact: frozenset[str]
    domains: tuple[str, ...] = ()

    @classmethod
    def from_urls(cls, urls: Iterable[str], host_patterns: Iterable[str] = ()) -> Self:
        """The origins of URLs, and those with a host of one of the patterns, for https at its usual port."""
        return cls(frozenset(map(origin_of, urls)), tuple(pattern.removeprefix("*") for pattern in host_patterns))

    def __contains__(self, origin: object) -> bool:
        """Whether an origin is among them. The star of a pattern stands for one label."""
        return origin in self.exact or any(
            re.fullmatch(rf"https://{_DNS_LABEL}{re.escape(domain)}:443", str(origin)) for domain in self.domains
        )
