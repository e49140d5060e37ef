"""Templates of declarations: URLs, headers and parameters with names in braces, and host patterns.

A URL template is filled part by part, so that a value cannot change the part that it is in: in the host it is a host or
a part of one, in the path one segment, and in the query one value.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from integration_server.domain.text import has_control_characters
from integration_server.providers.http import DNS_LABEL, is_url

_PARAM = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PARAM_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_PATTERN = re.compile(rf"\*(?P<domain>(?:\.{DNS_LABEL})+\.[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?)")
_PARTS = re.compile(r"(?P<host>(?:[a-z]+://)?[^/?]*)(?P<path>[^?]*)(?P<query>.*)", re.DOTALL)
_SAFE_IN_PATH = "!$&'()*+,;=:@~"  # RFC 3986 §3.3, besides what `quote` leaves unchanged


def template_params(template: str) -> tuple[str, ...]:
    """The parameter names of a template: `("shop",)` for "https://{shop}.shops.example"."""
    return tuple(_PARAM.findall(template))


def host_params(url: str) -> tuple[str, ...]:
    """The parameter names in the host of a URL template."""
    return template_params(_parts(url)[0])


def _parts(url: str) -> tuple[str, str, str]:
    match = _PARTS.fullmatch(url)
    return (match["host"], match["path"], match["query"]) if match else (url, "", "")


class InvalidParam(ValueError):
    """A URL parameter has no value, or one that cannot be in its part of the URL."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no valid value for the URL parameter {name}")
        self.name = name


def fill(url: str, values: Mapping[str, str], *, partial: bool = False) -> str:
    """The URL of a template. Raises `InvalidParam`. With `partial`, parameters without a value stay.

    In the host a value may be written as a URL of a host: "https://acme.shops.example". A template that is a name alone
    stands for a whole URL, which the values bring: `{token_uri}`.
    """
    if (name := _PARAM.fullmatch(url)) and name[1] in values:
        if not is_url(values[name[1]]):
            raise InvalidParam(name[1])
        return values[name[1]]
    if "{" not in url:
        return url
    encoders = (_host_value, _segment, _query_value)
    parts = zip(_parts(url), encoders, strict=True)
    return "".join(_fill(part, values, encode, partial=partial) for part, encode in parts)


def _fill(part: str, values: Mapping[str, str], encode: Callable[[str], str | None], *, partial: bool) -> str:
    def encoded(match: re.Match[str]) -> str:
        if partial and match[1] not in values:
            return match[0]
        text = encode(values.get(match[1], ""))
        if text is None:
            raise InvalidParam(match[1])
        return text

    return _PARAM.sub(encoded, part)


def _host_value(value: str) -> str | None:
    value = value.removeprefix("https://").removesuffix("/")
    return value if is_param_value(value) else None


def _segment(value: str) -> str | None:
    if value in {"", ".", ".."} or "/" in value or "\\" in value or has_control_characters(value):
        return None
    return quote(value, safe=_SAFE_IN_PATH)


def _query_value(value: str) -> str | None:
    return None if has_control_characters(value) else quote(value, safe="")


def is_param_value(value: str) -> bool:
    """Whether a text is a host, a part of a host, or one path segment that needs no encoding."""
    return _PARAM_VALUE.fullmatch(value) is not None


def fill_text(template: str, values: Mapping[str, str]) -> str | None:
    """The text of a template for a header or parameter; None if a value is missing or empty."""
    if not all(values.get(name) for name in template_params(template)):
        return None
    return _PARAM.sub(lambda match: values[match[1]], template)


def fill_texts(templates: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Headers or parameters from their templates, without those that lack a value."""
    filled = {name: fill_text(template, values) for name, template in templates.items()}
    return {name: text for name, text in filled.items() if text is not None}


def fill_json(template: Any, values: Mapping[str, str]) -> Any:  # noqa: ANN401  # any JSON value
    """A JSON value whose texts are templates, without the members that lack a value."""
    if isinstance(template, Mapping):
        members = {name: fill_json(value, values) for name, value in template.items()}
        return {name: value for name, value in members.items() if value is not None}
    if isinstance(template, list | tuple):
        return [fill_json(value, values) for value in template]
    return fill_text(template, values) if isinstance(template, str) else template


def fill_with_placeholders(url: str) -> str:
    """The URL of a template with "x" for every parameter, for checks of the fixed parts."""
    return "https://x" if _PARAM.fullmatch(url) else _PARAM.sub("x", url)


def host_pattern_problem(pattern: str) -> str | None:
    """Why a host pattern is not allowed, or None; "*.shops.example" is allowed."""
    if _PATTERN.fullmatch(pattern):
        return None
    return "is not '*.' and a domain of two labels or more in lower case, such as *.shops.example"


def is_bounded(url: str, patterns: Iterable[str]) -> bool:
    """Whether a host pattern limits the host of a URL template; a host without parameters needs none."""
    if not host_params(url):
        return True
    fixed_end = _parts(url)[0].rpartition("}")[2]
    domains = [pattern.removeprefix("*") for pattern in patterns]
    return any(domain.endswith(fixed_end) or fixed_end.endswith(domain) for domain in domains)
