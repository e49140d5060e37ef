"""The grammar of provider URLs, and URL templates.

Declarations and requests are checked with the same expression, so that no two parsers can disagree about a host.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo
from pydantic_core import PydanticCustomError

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    # RFC 3986 §3.3, §3.4. No user name and no fragment: RFC 6749 §3.1 and §3.2 forbid the fragment.
    r"(?:[/?](?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PARAM = re.compile(r"\{([A-Za-z_]+)\}")
_PARAM_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_PATTERN = re.compile(rf"\*(?P<domain>(?:\.{_DNS_LABEL})+\.[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?)")

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def url_problem(url: str, *, dev_mode: bool) -> str | None:
    """Why a URL is not allowed, or None. Only https is allowed; in dev mode also plain http to loopback."""
    match = _URL.fullmatch(url)
    if match is None or (match["port"] and not 0 < int(match["port"]) <= 65535):
        return "is not an absolute http(s) URL without user name and fragment"
    if match["scheme"] == "http" and not (dev_mode and match["host"].lower() in LOOPBACK_HOSTS):
        return "must be https; plain http is for loopback in dev mode only"
    return None


def _require_url(value: str, info: ValidationInfo) -> str:
    problem = url_problem(value, dev_mode=bool(info.context and info.context["dev_mode"]))
    if problem is not None:
        raise PydanticCustomError("url", "{problem}", {"problem": problem})
    return value


Url = Annotated[str, AfterValidator(_require_url)]
"""The type of a URL in a model. The validation context has `dev_mode`; without a context, only https is allowed."""


def template_params(url: str) -> tuple[str, ...]:
    """The parameter names of a URL template: `("shop",)` for "https://{shop}.shops.example"."""
    return tuple(_PARAM.findall(url))


def fill(url: str, url_params: Mapping[str, str]) -> str:
    """The URL of a template. A value is a host, a part of a host, or one path segment.

    Raises `ValueError` for a parameter that is missing or has any other value.
    """
    for name in template_params(url):
        if not _PARAM_VALUE.fullmatch(url_params.get(name, "")):
            raise ValueError(f"no valid value for the URL parameter {name}")
    return _PARAM.sub(lambda match: url_params[match[1]], url)


def fill_with_placeholders(url: str) -> str:
    """The URL of a template with "x" for every parameter, for checks of the fixed parts."""
    return _PARAM.sub("x", url)


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL: "https://acme.example:443". Raises `ValueError` if it is not a URL."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("not a URL")
    return f"{match['scheme']}://{match['host'].lower()}:{int(match['port'] or _DEFAULT_PORTS[match['scheme']])}"


def host_pattern_problem(pattern: str) -> str | None:
    """Why a host pattern is not allowed, or None; "*.shops.example" is allowed."""
    if _PATTERN.fullmatch(pattern):
        return None
    return "is not '*.' and a domain of two labels or more in lower case, such as *.shops.example"


class DeclaredOrigins:
    """The set of origins that a provider's requests may go to: `origin_of(url) in origins`.

    It consists of the origins of the URL templates whose host contains no parameter, and of https on port 443 at each
    host that matches a pattern. The star of a pattern stands for one label.
    """

    def __init__(self, urls: Iterable[str], host_patterns: Iterable[str] = ()) -> None:
        fixed = [url for url in urls if not template_params(url.partition("://")[2].partition("/")[0])]
        self._exact = frozenset(origin_of(fill_with_placeholders(url)) for url in fixed)
        self._domains = [re.escape(pattern.removeprefix("*")) for pattern in host_patterns]

    def __contains__(self, origin: object) -> bool:
        """Whether an origin is in the set."""
        return origin in self._exact or any(
            re.fullmatch(rf"https://{_DNS_LABEL}{domain}:443", str(origin)) for domain in self._domains
        )
