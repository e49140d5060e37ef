"""Connecting an account with an API key, and replacing the key of an integration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from integration_server.domain.credentials import ApiKey, AuthMethod, OAuthTokens
from integration_server.domain.errors import InvalidField, ProviderRejected
from integration_server.domain.integration import Integration
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import RandomToken
from integration_server.service.connections.account_linking import AccountLinker, AccountRequest
from integration_server.service.integrations.ports import NewIntegration
from integration_server.service.provider_port import Provider, Providers


@dataclass(frozen=True, slots=True)
class ApiKeyConnectionRequest(AccountRequest):
    """A request to connect with a key. Empty strings mean "not given"."""

    api_key: str = field(repr=False)
    api_secret: str = field(default="", repr=False)
    webhook_secret: str = field(default="", repr=False)
    secret_fields: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(eq=False, repr=False)
class ApiKeyConnectionService:
    """Stores keys that their provider accepts."""

    account_linker: AccountLinker
    providers: Providers
    tasks: DetachedTasks
    random_token: RandomToken

    async def connect_with_api_key(self, request: ApiKeyConnectionRequest) -> Integration:
        """Verify the key and store it. Raises `ProviderRejected`, and stores nothing, if the provider rejects it.

        Raises `InvalidField` for what no key of the type can have, without a request to the provider.
        """
        provider = self._api_key_provider(request)
        secrets = _declared_secrets(provider, request.secret_fields)
        target = await self._target(request, provider)
        provider = provider.for_config(target.config)
        key = ApiKey(request.api_key, request.api_secret or None, request.webhook_secret or None, secrets)
        try:
            credentials = await provider.credentials_of(key)
            account = await provider.verify_connection(credentials)
        except ProviderRejected as error:
            error.rejected_fields = error.rejected_fields or _credential_fields(request)
            raise
        scopes = provider.required_scopes if isinstance(credentials, OAuthTokens) else ()
        return await self.tasks.run(self.account_linker.commit(target, account, credentials, scopes))

    def _api_key_provider(self, request: ApiKeyConnectionRequest) -> Provider:
        provider = self.providers[request.integration_type]
        if provider.has_authorization_page:
            raise InvalidField("integration_type", "is connected with Connect")
        for name in provider.required_fields:
            if not getattr(request, name):
                raise InvalidField(name, "is required for this integration type")
        is_keyless = provider.secret_fields or provider.auth_method is AuthMethod.OAUTH2
        if not (request.api_key or request.api_secret or is_keyless):
            raise InvalidField("api_key", "is required, or api_secret")
        for name in ("api_key", "api_secret", "webhook_secret"):
            value = getattr(request, name)
            if value and (problem := provider.key_problem(name, value)) is not None:
                raise InvalidField(name, problem)
        provider.require_configured()
        return provider

    async def _target(self, request: ApiKeyConnectionRequest, provider: Provider) -> Integration | NewIntegration:
        if request.integration_id:
            integration, _ = await self.account_linker.existing(request, provider)
            return integration
        return request.new_integration(provider, self.random_token())


def _credential_fields(request: ApiKeyConnectionRequest) -> Sequence[str]:
    """The fields of a request that have credentials; a provider does not say which of them is wrong."""
    keys = [name for name in ("api_key", "api_secret") if getattr(request, name)]
    return [*keys, *sorted(f"secret_fields.{name}" for name, value in request.secret_fields.items() if value)]


def _declared_secrets(provider: Provider, submitted: Mapping[str, str]) -> Mapping[str, str]:
    """The given secrets with the defaults of those that are not given. Raises `InvalidField`."""
    for name in submitted:
        if name not in provider.secret_fields:
            raise InvalidField(f"secret_fields.{name}", "is not a field of this integration type")
    secrets = {}
    for name, declared in provider.secret_fields.items():
        value = submitted.get(name) or declared.default
        if not value and declared.required:
            raise InvalidField(f"secret_fields.{name}", "is required for this integration type")
        if value and (problem := declared.problem_of(value)) is not None:
            raise InvalidField(f"secret_fields.{name}", problem)
        if value:
            secrets[name] = value
    return secrets
