"""URL templates and host patterns of declarations."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from integration_server.providers.http import DNS_LABEL, url_problem

_PARAM = re.compile(r"\{([A-Za-z_]+)\}")
_PARAM_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_PATTERN = re.compile(rf"\*(?P<domain>(?:\.{DNS_LABEL})+\.[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?)")


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
        if not is_param_value(url_params.get(name, "")):
            raise ValueError(f"no valid value for the URL parameter {name}")
    return _PARAM.sub(lambda match: url_params[match[1]], url)


def is_param_value(value: str) -> bool:
    """Whether a text is a host, a part of a host, or one path segment."""
    return _PARAM_VALUE.fullmatch(value) is not None


def fill_with_placeholders(url: str) -> str:
    """The URL of a template with "x" for every parameter, for checks of the fixed parts."""
    return _PARAM.sub("x", url)


def host_pattern_problem(pattern: str) -> str | None:
    """Why a host pattern is not allowed, or None; "*.shops.example" is allowed."""
    if _PATTERN.fullmatch(pattern):
        return None
    return "is not '*.' and a domain of two labels or more in lower case, such as *.shops.example"
