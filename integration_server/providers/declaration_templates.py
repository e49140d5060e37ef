"""Templates in declarations: texts with names in braces, and which names each place may use.

What is sent to a browser or returned to a backend cannot contain our client's secret.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from integration_server.domain.text import has_control_characters
from integration_server.providers.http import url_problem
from integration_server.providers.url_templates import (
    fill_with_placeholders,
    host_params,
    is_bounded,
    template_params,
)


@dataclass(frozen=True, slots=True)
class DeclaredNames:
    """The names that a file declares, read leniently, so that its templates can be checked beside its other problems.

    The validation context has them, because the parts of a file are validated apart from each other.
    """

    config: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    host_patterns: Sequence[str] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "DeclaredNames":
        """The names in the values of a file, whatever else is wrong with it."""

        def keys(*path: str | int) -> frozenset[str]:
            found: Any = values
            for name in path:
                if isinstance(name, int):
                    found = found[name]
                else:
                    found = found.get(name) if isinstance(found, Mapping) else None
            return frozenset(found) if isinstance(found, Mapping) else frozenset()

        def texts(name: str) -> list[str]:
            found = values.get(name)
            return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []

        of_callback = {name.replace("-", "_") for name in texts("keep_callback")}
        kept = keys("token_response", "keep") | keys("lookup", "keep") | of_callback
        login = values.get("login")
        for index in range(len(login) if isinstance(login, list) else 0):
            kept |= keys("login", index, "keep")
        secrets = keys("secret_fields")
        secrets = secrets.union(*(keys("secret_fields", name, "keep") for name in secrets))
        return cls(keys("config_fields"), secrets, keys("settings"), kept, texts("host_patterns"))


@dataclass(frozen=True, slots=True)
class Names:
    """A validator of templates: `groups` of declared names, and names that the server knows, may occur."""

    groups: tuple[str, ...]
    own: tuple[str, ...] = ()
    is_url: bool = False

    def __call__(self, value: str, info: ValidationInfo) -> str:
        """Return the template. Raises `PydanticCustomError`.

        Without a context, as for a value in Python, the names are not known; the factory checks the hosts then.
        """
        problem = None if info.context is None else next(self._problems(value, info.context), None)
        if problem is not None:
            raise PydanticCustomError("template", "{problem}", {"problem": problem})
        return value

    def _problems(self, template: str, context: Mapping[str, Any]) -> Iterator[str]:
        declared: DeclaredNames = context["names"]
        allowed = {*self.own, *(name for group in self.groups for name in getattr(declared, group))}
        for name in template_params(template):
            if name not in allowed:
                close = "".join(
                    f"; did you mean {{{close_match}}}?" for close_match in get_close_matches(name, allowed, n=1)
                )
                yield f"has {{{name}}}, which is not one of: {', '.join(sorted(allowed)) or 'none'}{close}"
        if re.search(r"\{[^{}\s]*\}", fill_with_placeholders(template)):
            yield "has braces around something that is not a name"
        elif not self.is_url and template.count("{") != template.count("}"):
            yield "has a brace without its counterpart; a name is written {name}"
        if any(name in allowed for name in re.findall(r"\{\s+(\w+)\s*\}|\{\w+\s+\}", template)):
            yield "has spaces in braces; a name is written {name}"
        if re.search(r"[$%]\{[A-Za-z_]\w*\}", template):
            yield "has ${…}; a name is written {name}"
        if has_control_characters(template):
            yield "has a control character"
        if not self.is_url:
            return
        if problem := url_problem(fill_with_placeholders(template), dev_mode=bool(context.get("dev_mode"))):
            yield problem
        elif not is_bounded(template, declared.host_patterns):
            names = ", ".join(f"{{{name}}}" for name in host_params(template))
            yield f"has {names} in its host, which no entry of host_patterns limits"


_OF_ACCOUNT = ("config", "secrets", "settings", "kept")
OF_REQUEST = ("client_id", "access_token", "api_key", "api_secret")

Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Template = Annotated[str, StringConstraints(max_length=2048)]
PublicUrl = Annotated[str, AfterValidator(Names(("config", "settings"), ("client_id",), is_url=True))]
PublicTemplate = Annotated[Template, AfterValidator(Names(("config", "settings"), ("client_id",)))]
TokenUrl = Annotated[str, AfterValidator(Names(("config", "secrets", "settings", "kept"), ("client_id",), is_url=True))]
TOKEN_NAMES = ("client_id", "client_secret")
ClientTemplate = Annotated[
    Template, AfterValidator(Names(("config", "secrets", "settings", "kept"), (*TOKEN_NAMES, "basic", "assertion")))
]
CodeTemplate = Annotated[
    Template,
    AfterValidator(
        Names(
            ("config", "secrets", "settings", "kept"),
            (*TOKEN_NAMES, "code", "redirect_uri", "code_verifier", "device_code", "scope", "assertion"),
        )
    ),
]
DeviceTemplate = Annotated[Template, AfterValidator(Names(("config", "settings"), (*TOKEN_NAMES, "scope")))]
RefreshTemplate = Annotated[
    Template,
    AfterValidator(
        Names(("config", "secrets", "settings", "kept"), (*TOKEN_NAMES, "refresh_token", "access_token", "scope")),
    ),
]
RequestUrl = Annotated[str, AfterValidator(Names(_OF_ACCOUNT, OF_REQUEST, is_url=True))]
RequestTemplate = Annotated[Template, AfterValidator(Names(_OF_ACCOUNT, OF_REQUEST))]
RevokeUrl = Annotated[
    str, AfterValidator(Names(_OF_ACCOUNT, (*OF_REQUEST, "client_secret", "refresh_token", "token"), is_url=True))
]
RevokeTemplate = Annotated[
    Template,
    AfterValidator(Names(_OF_ACCOUNT, (*OF_REQUEST, "client_secret", "refresh_token", "token", "basic"))),
]


LoginUrl = Annotated[str, AfterValidator(Names(_OF_ACCOUNT, TOKEN_NAMES, is_url=True))]
LoginTemplate = Annotated[Template, AfterValidator(Names(_OF_ACCOUNT, (*TOKEN_NAMES, "basic")))]
KeyTemplate = Annotated[Template, AfterValidator(Names(("secrets", "settings")))]


def texts_in(value: object) -> Iterator[str]:
    """The texts in a value as of JSON, at all levels."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_in(part)


@dataclass(frozen=True, slots=True)
class _NamesInJson:
    """A validator of JSON values whose texts are templates."""

    check: Names

    def __call__(self, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for text in texts_in(value):
            self.check(text, info)
        return value


RequestBody = Annotated[dict[str, Any], AfterValidator(_NamesInJson(Names(_OF_ACCOUNT, OF_REQUEST)))]
LoginBody = Annotated[dict[str, Any], AfterValidator(_NamesInJson(Names(_OF_ACCOUNT, TOKEN_NAMES)))]
Claims = Annotated[
    dict[str, Any], AfterValidator(_NamesInJson(Names(("config", "secrets", "settings"), ("client_id", "scope"))))
]
SignedTemplate = Annotated[Template, AfterValidator(Names((), ("body", "timestamp", "method", "url", "id")))]
