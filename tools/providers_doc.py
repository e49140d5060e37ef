"""Writes docs/providers.md from the declarations of the built-in providers: `make providers-doc`."""

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.proxy_messages import LimitScope
from integration_server.providers import google_calendar_api
from integration_server.providers.api_key import ApiKeyProvider, BasicAuthProvider
from integration_server.providers.base import BaseProvider, ProviderContext
from integration_server.providers.built_in import register_built_in
from integration_server.providers.declaration_tables import SECRET_GRANTS, FieldDeclaration
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import ProviderHttp
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.declared_scheme import DeclaredScheme
from tools.provider_facts import Fact, facts_of, scheme_module, webhook_facts_of

PAGE = Path(__file__).parents[1] / "docs" / "providers.md"

INTRODUCTION = """# Providers

Reference of the built-in providers: what each one declares, and the facts behind it. `make providers-doc` generates
this page from `integration_server/providers/`; edit the declarations and the facts there, not this page.

The columns of the overview:

- **method**: how the server authenticates: OAuth 2, an API key, or a key with a secret (HTTP Basic).
- **scopes**: the OAuth scopes that are always requested and must be granted.
- **config**: the fields of an integration's `config` that the server uses and validates. All other fields belong to
  callers, and are stored and returned as they are.
- **old refresh token**: what happens to a refresh token when a refresh returns a new one. `spent`: it is invalid at
  once; `valid`: it stays valid; `never refreshed`: access tokens do not expire; `none`: secrets obtain further tokens.
- **revocation**: what a disconnect ends at the provider: the grant, all grants of the account to our client, or
  nothing.
- **verified**: whether credentials are checked with a request to the provider.
- **webhooks**: whether webhooks of the provider can be received.

Each fact has a confidence: **H**: from the provider's own documentation or software; **M**: from secondary sources;
**K**: general knowledge, not confirmed; check it first when something does not work. **checked** is the day on which
the fact was last compared with its source. A row without these says how the server uses the facts above it.

Rows **ends** say until when an API version or a scope works. `python -m integration_server types` warns of those that
concern the server ninety days ahead.

Settings of every type: `<TYPE>_API_VERSION` replaces the API version in the addresses of a type that declares one, and
`<TYPE>_SCOPES` the scopes of an OAuth type, separated by spaces or commas.
"""

PYTHON_FILES = """What no key of the language describes, from the first lines of these files:
"""

GENERIC = {
    base.__module__ for generic in (OAuth2Provider, ApiKeyProvider, BasicAuthProvider) for base in generic.__mro__
}
GENERIC |= {"integration_server.providers.toml_providers"}
"""The modules of the classes that all types share."""

UNITS = {name: timedelta(**{name: 1}) for name in ("days", "hours", "minutes", "seconds")}
REVOKED = {"token": "the tokens of one authorization", "grant": "the grant", "account": "all grants of the account"}
METHODS = {AuthMethod.OAUTH2: "OAuth 2", AuthMethod.API_KEY: "API key", AuthMethod.BASIC: "API key and secret"}
OVERVIEW = ("type", "method", "scopes", "config", "old refresh token", "revocation", "verified", "webhooks")


def render_page() -> str:
    """The whole page."""
    factory = ProviderFactory()
    register_built_in(factory)
    clock = lambda: datetime.now(UTC)  # noqa: E731  # not called
    providers = factory.build(ProviderContext(ProviderHttp(clock), clock, {})).all()
    lines = [INTRODUCTION, *table(OVERVIEW, map(overview_row, providers))]
    lines += ["", "## Python files", "", PYTHON_FILES]
    lines += table(("file", "types", "what differs"), python_files(providers))
    for provider in providers:
        lines += section(provider)
    return "\n".join(lines) + "\n"


def python_files(providers: Iterable[BaseProvider]) -> Iterator[Sequence[str]]:
    """The modules that are for single types or families, with their types and their first lines."""
    types: dict[ModuleType, list[str]] = {google_calendar_api: ["google_calendar"]}
    for provider in providers:
        behaviours = [base.__module__ for base in type(provider).__mro__ if base.__module__ not in GENERIC]
        scheme = provider.webhook_scheme
        own_scheme = None if scheme is None or isinstance(scheme, DeclaredScheme) else scheme_module(scheme)
        for name in [*behaviours, *([own_scheme] if own_scheme else [])]:
            types.setdefault(sys.modules[name], []).append(provider.integration_type)
    for module, names in sorted(types.items(), key=lambda item: item[0].__name__):
        path = module.__name__.removeprefix("integration_server.").replace(".", "/")
        yield f"`{path}.py`", codes(names), inspect.cleandoc(module.__doc__ or "").partition("\n")[0]


def overview_row(provider: BaseProvider) -> Sequence[str]:
    """A provider's row of the overview."""
    return (
        f"[`{provider.integration_type}`](#{provider.integration_type})",
        METHODS[provider.auth_method],
        codes(provider.required_scopes),
        codes(config_fields(provider)) or "-",
        old_refresh_token(provider),
        revocation(provider),
        "yes" if provider.has_verification else "no",
        "yes" if provider.supports_webhooks else "no",
    )


def section(provider: BaseProvider) -> Iterator[str]:
    """The section of one provider."""
    yield from ("", f"## {provider.integration_type}", "", f"{provider.display_name}.")
    if provider.aliases:
        yield from ("", f"Aliases: {codes(provider.aliases)}.")
    yield ""
    yield from table(("declaration", "value"), declarations(provider))
    yield ""
    yield from table(("fact", "source", "confidence", "checked"), map(fact_row, facts_of(provider)))
    if provider.webhook_scheme is not None:
        title, facts = webhook_facts_of(provider)
        yield from ("", f"Webhooks, {title}:", "")
        yield from table(("fact", "source", "confidence", "checked"), map(fact_row, facts))


def fact_row(fact: Fact) -> Sequence[str]:
    """The row of a fact."""
    return (fact.text, link(fact.source), fact.confidence.value, fact.checked)


def limit_rows(provider: BaseProvider) -> Iterator[tuple[str, str]]:
    """The rows of a provider's rate limits."""
    for limit in provider.rate_limits:
        per = "all accounts together" if limit.scope is LimitScope.APP else "each account"
        resource = f", of `{limit.resource}`" if limit.resource else ""
        yield "rate limit", f"{limit.calls:,} calls per {format_duration(limit.window)} for {per}{resource}"
    for name, pattern in provider.rate_limit_resources.items():
        yield "own limits for", f"`{name}`: `{pattern}`".replace("|", "\\|")
    if provider.rate_limit_resource_paths:
        yield "resource of a limit in responses", codes(provider.rate_limit_resource_paths)


def declarations(provider: BaseProvider) -> Iterator[tuple[str, str]]:
    """The rows of a provider's declarations."""
    for name, url in provider.url_templates.items():
        yield name, f"`{url}`"
    yield from version_rows(provider)
    if provider.host_patterns:
        yield "host patterns", codes(provider.host_patterns)
    if provider.required_fields:
        yield "fields of `ConnectWithApiKey`", codes(provider.required_fields)
    if provider.missing_settings:
        yield "required settings", codes(provider.missing_settings)
    yield from limit_rows(provider)
    if provider.calls_at_once is not None:
        yield "concurrent calls", f"{provider.calls_at_once} per account"
    if provider.allowed_request_headers:
        yield "request headers of callers", ", ".join(f"`{name}`" for name in provider.allowed_request_headers)
    if provider.renew_after != timedelta.max:
        yield "access token renewed after", format_duration(provider.renew_after)
    if isinstance(provider, OAuth2Provider):
        yield from oauth_rows(provider)
    for name, default in config_fields(provider).items():
        yield f"config `{name}`", default


def oauth_rows(provider: OAuth2Provider) -> Iterator[tuple[str, str]]:
    """The rows of a provider's OAuth declarations."""
    if provider.grant in SECRET_GRANTS:
        yield "grant", f"`{provider.grant}`"
    if provider.grant != "login":
        yield "client authentication", f"`{provider.token_auth}`"
    if provider.has_authorization_page:
        yield "PKCE", "S256" if provider.pkce else "not sent"
    if provider.grant != "login":
        yield "scope separator", {" ": "space", ",": "comma"}[provider.scope_separator]
    if provider.authorize_params:
        parameters = codes(f"{name}={value}" for name, value in provider.authorize_params.items())
        yield "authorization URL parameters", parameters


def version_rows(provider: BaseProvider) -> Iterator[tuple[str, str]]:
    """The API version, and what ends at a known time."""
    if provider.api_version:
        yield "API version", f"`{provider.api_version}`"
    for fact in provider.expiring_facts:
        yield "ends", f"{fact.subject}: {fact.end}"


def old_refresh_token(provider: BaseProvider) -> str:
    """The validity of a refresh token after a refresh has returned a new one."""
    if provider.auth_method is not AuthMethod.OAUTH2:
        return "-"
    if isinstance(provider, OAuth2Provider) and provider.grant in SECRET_GRANTS:
        return "none"
    if isinstance(provider, OAuth2Provider) and provider.never_expires:
        return "never refreshed"
    grace = provider.refresh_token_grace
    if grace == timedelta.max:
        return "valid"
    return f"valid for {format_duration(grace)}" if grace else "spent"


def format_duration(time: timedelta) -> str:
    """A duration in its largest whole unit: "30 minutes", "1 hour"."""
    number, unit = next(
        (time // duration, name)
        for name, duration in UNITS.items()
        if time % duration == timedelta(0) and time >= duration
    )
    return f"{number} {unit if number > 1 else unit.removesuffix('s')}"


def revocation(provider: BaseProvider) -> str:
    """The grants that a disconnect ends at the provider."""
    if provider.revoke_url is None:
        return "nothing"
    return REVOKED[provider.revocation_ends]


def config_fields(provider: BaseProvider) -> dict[str, str]:
    """The fields of a config, and whether each is required, or its default."""
    return {name: describe_default(field) for name, field in provider.config_fields.items()}


def describe_default(field: FieldDeclaration) -> str:
    """Whether a field is required, or its default."""
    if field.default is not None:
        return f"optional, default `{field.default}`"
    return "required" if field.required else "optional"


def codes(texts: Iterable[str]) -> str:
    """Each text as inline code."""
    return " ".join(f"`{text}`" for text in texts) or "-"


def link(source: str) -> str:
    """A source as a link, if it is an address."""
    return f"<https://{source}>" if "/" in source else source


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
