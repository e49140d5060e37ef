"""Writes docs/providers.md from what the built-in providers declare: `make providers-doc`."""

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.proxy_messages import LimitScope
from integration_server.providers.base import BaseProvider, ProviderContext
from integration_server.providers.built_in import BUILT_IN
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.facts import Fact, facts_of, webhook_facts_of
from integration_server.providers.http import ProviderHttp
from integration_server.providers.oauth2 import OAuth2Provider

PAGE = Path(__file__).parents[1] / "docs" / "providers.md"

HEAD = """# Providers

What the built-in providers declare, and what is known of each. This page is made by `make providers-doc`; change the
declarations in `integration_server/providers/` instead.

How sure a fact is: **H**: the provider's own documentation or software was seen; **M**: secondary sources; **K**:
general knowledge, not confirmed: the text is what was assumed, and the first to be checked when something does not
work. A row without either is what this server makes of the rows above it.

**Config** is what an integration of the type may have in `config`: other fields are refused by name, but for
`metadata`, which may have anything and is kept for the caller's own use. Types without any take whatever they are
given.
"""

UNITS = {name: timedelta(**{name: 1}) for name in ("days", "hours", "minutes", "seconds")}
METHODS = {AuthMethod.OAUTH2: "OAuth 2", AuthMethod.API_KEY: "API key", AuthMethod.BASIC: "API key and secret"}


def page() -> str:
    """The whole page."""
    factory = ProviderFactory()
    for module in BUILT_IN:
        module.register(factory)
    clock = lambda: datetime.now(UTC)  # noqa: E731  # nothing asks it
    providers = factory.build(ProviderContext(ProviderHttp(clock), clock, {})).all()
    lines = [HEAD, *table(OVERVIEW, map(overview, providers))]
    for provider in providers:
        lines += section(provider)
    return "\n".join(lines) + "\n"


OVERVIEW = ("type", "method", "scopes", "config", "refresh token", "revoked", "verified", "webhooks")


def overview(provider: BaseProvider) -> Sequence[str]:
    """Its row of the first table."""
    return (
        f"[`{provider.integration_type}`](#{provider.integration_type})",
        METHODS[provider.auth_method],
        codes(provider.required_scopes),
        codes(config_fields(provider)),
        renewal(provider),
        revocation(provider),
        "yes" if provider.verify_url or type(provider).verification_url is not BaseProvider.verification_url else "no",
        "yes" if provider.supports_webhooks else "no",
    )


def section(provider: BaseProvider) -> Iterator[str]:
    """All about one provider."""
    yield from ("", f"## {provider.integration_type}", "", f"{provider.display_name}.")
    if provider.aliases:
        yield from ("", f"Also called {codes(provider.aliases)}.")
    yield ""
    yield from table(("declared", "as"), declarations(provider))
    yield ""
    yield from table(("fact", "source", "confidence"), map(row_of, facts_of(provider)))
    if provider.webhook_scheme is not None:
        title, facts = webhook_facts_of(provider.webhook_scheme)
        yield from ("", f"Webhooks, {title}:", "")
        yield from table(("fact", "source", "confidence"), map(row_of, facts))


def row_of(fact: Fact) -> Sequence[str]:
    """A fact's row."""
    return (fact.text, link(fact.source), fact.confidence.value)


def declarations(provider: BaseProvider) -> Iterator[tuple[str, str]]:
    """What it declares."""
    for name, url in provider.url_templates.items():
        yield name, f"`{url}`"
    if provider.host_patterns:
        yield "hosts", codes(provider.host_patterns)
    if provider.required_fields:
        yield "fields of `ConnectWithApiKey`", codes(provider.required_fields)
    if provider.missing_settings:
        yield "settings", codes(provider.missing_settings)
    for limit in provider.rate_limits:
        scope_text = "all accounts together" if limit.scope is LimitScope.APP else "one account"
        yield "rate limit", f"{limit.calls:,} calls in {format_duration(limit.window)}, {scope_text}"
    if provider.calls_at_once is not None:
        yield "calls at once", f"{provider.calls_at_once}, one account"
    if provider.renew_after != timedelta.max:
        yield "renewed after", format_duration(provider.renew_after)
    if isinstance(provider, OAuth2Provider):
        yield "client authentication", f"`{provider.token_auth}`"
        yield "PKCE", "S256" if provider.uses_pkce else "not sent"
        yield "between scopes", {" ": "a space", ",": "a comma"}[provider.scope_separator]
        if provider.authorize_params:
            yield "further parameters", codes(f"{name}={value}" for name, value in provider.authorize_params.items())
    for name, field in fields_of(provider.config_model).items():
        yield f"config `{name}`", describe_default(field)


def renewal(provider: BaseProvider) -> str:
    """What becomes of a refresh token that was used."""
    if provider.auth_method is not AuthMethod.OAUTH2:
        return "-"
    if isinstance(provider, OAuth2Provider) and provider.tokens_never_expire:
        return "none"
    grace = provider.refresh_token_grace
    if grace == timedelta.max:
        return "stays good"
    return f"good for {format_duration(grace)} more" if grace else "spent"


def format_duration(time: timedelta) -> str:
    """A length of time."""
    number, unit = next(
        (time // one, name) for name, one in UNITS.items() if time % one == timedelta(0) and time >= one
    )
    return f"{number} {unit}" if number > 1 else f"a {unit.removesuffix('s')}"


def revocation(provider: BaseProvider) -> str:
    """What a disconnection ends."""
    if provider.revoke_url is None:
        return "no"
    return "all of the account" if provider.revokes_whole_account else "the grant"


def config_fields(provider: BaseProvider) -> Sequence[str]:
    """The names of what its config may have."""
    return list(fields_of(provider.config_model))


def fields_of(model: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """The fields of a config, but for that of the callers."""
    return {} if model is None else {name: field for name, field in model.model_fields.items() if name != "metadata"}


def describe_default(field: FieldInfo) -> str:
    """Whether a field is required, or what it is without."""
    if field.is_required():
        return "required"
    return "optional" if field.default in (None, ()) else f"`{field.default}` unless given"


def codes(texts: "Sequence[str] | Iterator[str]") -> str:
    """Each as code."""
    return " ".join(f"`{text}`" for text in texts) or "-"


def link(source: str) -> str:
    """A source that is an address, as a link."""
    return f"<https://{source}>" if "/" in source else source


def table(head: Sequence[str], rows: "Iterator[Sequence[str]] | Sequence[Sequence[str]]") -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def main() -> int:
    """Write the page; with --check only say whether it is as it should be."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
