"""The base class of all providers. Its names are those of the base class in the requirements.

docs/adding-a-provider.md explains how to write a provider. The class continues those of `provider_model.py` and
`provider_requests.py`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from integration_server.domain.credentials import (
    ApiKey,
    Credentials,
    OAuthTokens,
    RequestAuth,
)
from integration_server.domain.errors import ProviderUnavailable
from integration_server.domain.lenient_values import text_at
from integration_server.domain.text import control_character_problem
from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.declared_values import chosen_account
from integration_server.providers.http import HttpResponse
from integration_server.providers.provider_model import ProviderConfig, ProviderContext
from integration_server.providers.provider_requests import ProviderRequests
from integration_server.providers.webhooks.parsing import unread_event
from integration_server.providers.webhooks.scheme import MalformedWebhook, SecretSource, WebhookKeys
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.provider_port import OAuthProvider

__all__ = ["BaseProvider", "ProviderConfig", "ProviderContext"]

_WHITESPACE = re.compile("[\\s\u200b\u2060\ufeff]")  # also what has no width, and is copied from web pages


class BaseProvider(ProviderRequests):
    """One integration type. Implements the port `Provider`; subclasses declare facts and override what differs."""

    @classmethod
    def register_in(cls, factory: "ProviderRegistrar") -> None:
        """Add the provider to a factory, by its `integration_type`."""
        factory.register(str(cls.integration_type), cls)

    # --- grants

    has_authorization_page = False
    has_device_authorization = False

    @property
    def oauth(self) -> OAuthProvider | None:
        """The same provider, if it has OAuth 2."""
        return None

    def missing_scopes(self, requested_scopes: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """The requested scopes that were not granted."""
        return ()

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the credentials at the provider; False if the provider has no way to."""
        return False

    # --- API keys

    def key_problem(self, field: str, value: str) -> str | None:
        """Why a field of a key cannot be right, as the end of a sentence; None if it can."""
        if field == "webhook_secret":
            return self.webhook_secret_problem(value)
        allows_whitespace = field in self.allows_whitespace_in
        if not allows_whitespace and _WHITESPACE.search(value):
            return "has white space inside it, which no key of this integration type has"
        return control_character_problem(value, allowed="\t\n\v\f\r\x1c\x1d\x1e\x1f\x85" if allows_whitespace else "")

    async def credentials_of(self, key: ApiKey) -> Credentials:
        """The credentials to store for a key: the key itself, or tokens that are obtained with it.

        They have the values of the config, and those that are looked up. Raises `ProviderError`.
        """
        key = replace(key, extras={**self.url_params, **await self.look_up(key)})
        self.require_reachable(key.extras, self.kept_names)
        return key

    # --- accounts

    async def look_up(self, credentials: Credentials) -> Mapping[str, str]:
        """The values that `lookup` declares. Raises `ProviderError`."""
        if self.lookup is None:
            return {}
        provider = self.for_credentials(credentials)
        response = await provider.send_declared(self.lookup, self.request_auth(credentials))
        with self.adding_reason(response.json):
            self._require_good(response, response.is_success and not self._has_dead_code(response))
        choose, found = self.lookup.choose, response.json
        if choose is not None:
            found = chosen_account(choose, found, provider.values.get(choose.by))
        kept = {name: text_at(found, path) for name, path in self.lookup.keep.items()}
        return {name: text for name, text in kept.items() if text is not None}

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Check the credentials at the provider, and return their account. Without a `verify_url` nothing is sent.

        Raises `ProviderRejected` or `ProviderUnavailable`.
        """
        if self.verification is None:
            self.request_auth(credentials)  # raises for credentials that no request can carry
            return self.account_of(credentials, {})
        response = await self.request_verification(credentials)
        paths = {self.account_id_field, self.account_label_field} - {None, *credentials.extras}
        fields = response.json if paths else {}
        if not isinstance(fields, dict):
            raise ProviderUnavailable
        return self.account_of(credentials, fields)

    async def request_verification(self, credentials: Credentials) -> HttpResponse:
        """The response to the verification request. Raises `ProviderRejected` or `ProviderUnavailable`."""
        if self.verification is None:
            raise ProviderUnavailable
        auth = self.verification_auth(credentials)
        response = await self.for_credentials(credentials).send_declared(self.verification, auth)
        with self.adding_reason(response.json):
            self._require_good(response, self.proves_credentials(response))
        return response

    @property
    def has_verification(self) -> bool:
        """Whether there is a request that verifies credentials."""
        return self.verification is not None

    def verification_auth(self, credentials: Credentials) -> RequestAuth:
        """The authentication of the verification request."""
        return self.request_auth(credentials)

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """The account of the credentials, by values stored with them and the JSON of the verification response."""
        paths = self.account_id_field, self.account_label_field
        account_id, label = (path and (credentials.extras.get(path) or text_at(fields, path)) for path in paths)
        return NewAccount(account_id, label)

    # --- webhooks

    @property
    def supports_webhooks(self) -> bool:
        """Whether the provider's webhooks can be verified."""
        return self.webhook_scheme is not None

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """The secrets that sign webhooks: those of our app (None), or those of an integration."""
        if self.webhook_scheme is None:
            return ()
        source = self.webhook_scheme.secret_source
        found: Sequence[str | None] = ()
        if credentials is None:
            client = self.oauth_client
            found = (*client.webhook_secrets, *(client.secrets if source is SecretSource.CLIENT_SECRET else ()))
        elif isinstance(credentials, ApiKey):
            api_secret = credentials.api_secret if source is SecretSource.API_SECRET else None
            found = [credentials.webhook_secret, api_secret]
        return list(dict.fromkeys(secret for secret in found if secret))

    def webhook_secret_problem(self, secret: str) -> str | None:
        """Why webhooks cannot be verified with a secret, as the end of a sentence; None if they can."""
        problem = control_character_problem(secret)
        return problem if problem or self.webhook_scheme is None else self.webhook_scheme.secret_problem(secret)

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """The events in a webhook request that one of the secrets signs. Raises `InvalidWebhookSignature`.

        The body of a signed request that cannot be read is one event.
        """
        if self.webhook_scheme is None:
            raise InvalidWebhookSignature
        token = self.oauth_client.webhook_verify_token
        keys = WebhookKeys([secret for secret in secrets if secret], [token] if token else [])
        try:
            return self.webhook_scheme.receive(request, keys, self._context.clock())
        except MalformedWebhook:
            return ReceivedWebhook([unread_event(request)])


BuildProvider = Callable[[ProviderContext], BaseProvider]
"""Builds a provider; usually the provider's class."""


class ProviderRegistrar(Protocol):
    """Where a provider is added: the factory."""

    def register(self, integration_type: str, build: BuildProvider, /) -> None:
        """Add a type. Raises `ProvidersError` if a name of it is taken."""
