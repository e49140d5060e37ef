"""The factory that builds providers, and the registry of built providers.

Imports have no side effects: each provider's module exports `register(factory)`, and bootstrap calls it.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from datetime import timedelta
from urllib.parse import urlsplit

from integration_server.domain.errors import UnknownIntegrationType
from integration_server.providers.base import BaseProvider, BuildProvider, ProviderContext
from integration_server.providers.declaration_tables import INTEGRATION_TYPE, MIN_RENEW_AFTER
from integration_server.providers.http import url_problem
from integration_server.providers.url_templates import (
    InvalidParam,
    fill_with_placeholders,
    host_params,
    host_pattern_problem,
    is_bounded,
)
from integration_server.service.proxy.proxy_policy import declaration_problem


class ProvidersError(Exception):
    """Invalid provider declarations. `problems` has all of them, each with its origin."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ProviderRegistry(dict[str, BaseProvider]):
    """The providers of this server, by type and by alias. Implements the port `Providers`."""

    def __init__(self, providers: Iterable[BaseProvider]) -> None:
        by_type = {provider.integration_type: provider for provider in providers}
        super().__init__({alias: provider for provider in by_type.values() for alias in provider.aliases} | by_type)
        self._all = [by_type[name] for name in sorted(by_type)]
        servers = {provider.integration_type: _servers_of(provider) for provider in self._all}
        for provider in self._all:
            ended = [other for other in self._all if _ends_grants(provider, other, servers)]
            provider.shares_grants_with = tuple(other.integration_type for other in ended)
            alike = (other.integration_type for other in ended if _naming_of(other) == _naming_of(provider))
            provider.names_accounts_like = tuple(alike)
        for provider in self._all:
            name = provider.integration_type
            provider.grants_ended_by = tuple(
                other.integration_type for other in self._all if name in other.shares_grants_with
            )

    def __missing__(self, integration_type: str) -> BaseProvider:
        raise UnknownIntegrationType

    def all(self) -> Sequence[BaseProvider]:
        """All providers, sorted by type."""
        return self._all


class ProviderFactory:
    """Registers how providers are built, and builds each of them once."""

    def __init__(self) -> None:
        self._builds: dict[str, tuple[BuildProvider, str]] = {}
        self._owners: dict[str, str] = {}  # of types and aliases

    def register(self, integration_type: str, build: BuildProvider, *, origin: str | None = None) -> None:
        """Add a type. `origin` identifies it in messages. Raises `ProvidersError` if a name of it is taken."""
        origin = origin or _origin_of(build)
        aliases = getattr(build, "aliases", ())
        declared = aliases if isinstance(aliases, list | tuple) else ()  # others are known when it is built
        names = [("integration_type", integration_type), *(("aliases", alias) for alias in declared)]
        conflicts = [(key, name, self._owners[name]) for key, name in names if name in self._owners]
        if conflicts:
            raise ProvidersError(f"{origin}: {key}: {name!r} is taken by {owner}" for key, name, owner in conflicts)
        self._builds[integration_type] = (build, origin)
        self._owners |= {name: origin for _, name in names}

    def register_all(self, other: "ProviderFactory") -> None:
        """Add all types of another factory. Raises `ProvidersError` if one is taken."""
        for integration_type, (build, origin) in other._builds.items():
            self.register(integration_type, build, origin=origin)

    def replace(self, integration_type: str, build: BuildProvider) -> None:
        """Replace the provider of a type, for example by a simulated one in development and tests."""
        self._builds[integration_type] = (build, _origin_of(build))

    @property
    def integration_types(self) -> Collection[str]:
        """The registered types."""
        return self._builds.keys()

    def build(self, context: ProviderContext, *, only: str | None = None) -> ProviderRegistry:
        """Build every provider, or the one of a type. Raises `ProvidersError` with all problems of declarations."""
        builds = self._builds if only is None else {only: self._builds[only]}
        providers = {integration_type: build(context) for integration_type, (build, _) in builds.items()}
        problems = [
            f"{self._builds[integration_type][1]}: {problem}"
            for integration_type, provider in providers.items()
            for problem in _problems_of(provider, integration_type, dev_mode=context.http.dev_mode)
        ]
        problems += self._alias_conflicts(providers)
        if problems:
            raise ProvidersError(problems)
        return ProviderRegistry(providers.values())

    def _alias_conflicts(self, providers: Mapping[str, BaseProvider]) -> Iterator[str]:
        owners = {name: origin for name, (_, origin) in self._builds.items()}
        for integration_type, provider in providers.items():
            origin = self._builds[integration_type][1]
            for alias in provider.aliases:
                if alias in owners:
                    yield f"{origin}: aliases: {alias!r} is taken by {owners[alias]}"
                owners.setdefault(alias, origin)


def _origin_of(build: BuildProvider) -> str:
    return f"{build.__module__}.{getattr(build, '__qualname__', build)}"


def _problems_of(provider: BaseProvider, registered_as: str, *, dev_mode: bool) -> Iterator[str]:
    if provider.integration_type != registered_as:
        yield f"integration_type: is {provider.integration_type!r}, but was registered as {registered_as!r}"
    if not INTEGRATION_TYPE.fullmatch(provider.integration_type):
        yield f"integration_type: {provider.integration_type!r} does not match {INTEGRATION_TYPE.pattern}"
    yield from _setting_problems(provider, registered_as)
    yield from _url_problems(provider, registered_as, dev_mode=dev_mode)
    for limit in provider.rate_limits:
        if limit.calls < 1 or limit.window < timedelta(seconds=1):
            yield f"rate_limits: {limit.calls} calls in {limit.window} is less than 1, or in less than a second"
        if limit.resource and not any(limit.resource == name or "{" in name for name in provider.rate_limit_resources):
            yield f"rate_limits: {limit.resource!r} is not one of rate_limit_resources"
    for name, pattern in provider.rate_limit_resources.items():
        if unknown := set(re.findall(r"\{(\w+)\}", name)) - re.compile(pattern).groupindex.keys():
            yield f"rate_limit_resources: {name!r} names a group that its pattern lacks: {', '.join(sorted(unknown))}"
    if provider.renew_after < MIN_RENEW_AFTER:
        yield f"renew_after: {provider.renew_after} is less than {MIN_RENEW_AFTER}"
    if provider.calls_at_once is not None and provider.calls_at_once < 1:
        yield f"calls_at_once: {provider.calls_at_once} is less than 1"
    yield from _header_and_host_problems(provider)


def _url_problems(provider: BaseProvider, registered_as: str, *, dev_mode: bool) -> Iterator[str]:
    try:
        templates = provider.url_templates
    except InvalidParam as error:
        yield f"{registered_as.upper()}_{error.name.upper()}: cannot be part of a URL"
        return
    for name, url in templates.items():
        if problem := url_problem(fill_with_placeholders(url), dev_mode=dev_mode):
            yield f"{name}: {problem}"
        elif not is_bounded(url, provider.host_patterns):
            names = ", ".join(f"{{{param}}}" for param in host_params(url))
            yield f"{name}: has {names} in its host, which no entry of host_patterns limits"


def _setting_problems(provider: BaseProvider, registered_as: str) -> Iterator[str]:
    for name, value in provider.setting_values.items():
        if problem := provider.settings[name].problem_of(value):
            yield f"{registered_as.upper()}_{name.upper()}: {problem}"


def _header_and_host_problems(provider: BaseProvider) -> Iterator[str]:
    for header in provider.allowed_request_headers:
        if problem := declaration_problem(header):
            yield f"allowed_request_headers: {header!r} {problem}"
    for pattern in provider.host_patterns:
        if problem := host_pattern_problem(pattern):
            yield f"host_patterns: {pattern!r} {problem}"


def _ends_grants(provider: BaseProvider, other: BaseProvider, servers: Mapping[str, Set[str]]) -> bool:
    """Whether a revocation of a provider may end grants of another: of the same account, and of the same client.

    The client counts unless it ends those of every client; each integration has its own. `servers` are those of types.
    """
    if provider.revocation_ends == "token":
        return False
    return provider is other or not servers[provider.integration_type].isdisjoint(servers[other.integration_type])


def _naming_of(provider: BaseProvider) -> object:
    """Equal for types that name accounts alike."""
    verification = provider.verification
    return provider.account_naming or (verification and verification.url, provider.account_id_field)


def _servers_of(provider: BaseProvider) -> set[str]:
    """The hosts of the authorization server: two declarations may name different endpoints of it."""
    urls = provider.oauth_token_url, provider.revoke_url
    return {urlsplit(url).netloc for url in urls if url is not None}
