"""Builds the use cases that connect and disconnect accounts."""

from dataclasses import dataclass

from integration_server.domain.redirect_allowlist import RedirectAllowlist
from integration_server.service.connections.account_linking import AccountLinker, AttemptLifecycle, TokenStorage
from integration_server.service.connections.api_key_connection import ApiKeyConnectionService
from integration_server.service.connections.device_polling import DeviceAuthorizationPoller
from integration_server.service.connections.oauth_callback import OAuthCallbackService
from integration_server.service.connections.oauth_connection import OAuthConnectionService
from integration_server.service.connections.revocation import RevocationService, RevocationTimes
from integration_server.service.credentials.credential_cipher import AttemptCipher
from integration_server.service.webhooks.webhook_router import WebhookRouter
from integration_server.wiring.service_parts import ServiceParts


@dataclass(frozen=True, slots=True)
class ConnectionUseCases:
    """The OAuth flow, API keys and revocation."""

    oauth_connection: OAuthConnectionService
    oauth_callback: OAuthCallbackService
    device_poller: DeviceAuthorizationPoller
    api_key_connection: ApiKeyConnectionService
    revocation_service: RevocationService


def build_connections(parts: ServiceParts, webhook_router: WebhookRouter) -> ConnectionUseCases:
    """Build them. The router gets the webhook routes of connected accounts."""
    settings, stores, constants = parts.settings, parts.stores, parts.constants
    providers, cipher, tasks, clock = parts.providers, parts.cipher, parts.tasks, parts.clock
    redirects = constants.redirects or RedirectAllowlist(
        settings.public_url,
        settings.allowed_redirect_uris,
        settings.allowed_return_urls,
        settings.default_return_url,
    )
    account_linker = AccountLinker(
        stores.integrations,
        stores.connections,
        providers,
        cipher,
        clock,
        parts.schedule,
        parts.trail.queue.append,
        webhook_router.add,
        waits_for_revocations=constants.keeps_shared_grants,
    )
    revocation_service = RevocationService(
        stores.integrations,
        stores.revocations,
        stores.due_work,
        providers,
        cipher,
        tasks,
        constants.jitter,
        times=RevocationTimes(settings.refresh_lease, constants.revocation_wait, settings.revocation_give_up),
        keeps_shared_grants=constants.keeps_shared_grants,
    )
    lifecycle = AttemptLifecycle(stores.attempts, AttemptCipher(parts.aead), redirects, clock)
    token_storage = TokenStorage(account_linker, revocation_service, providers, clock, pause=constants.pause)
    oauth_connection = OAuthConnectionService(
        stores.attempts,
        lifecycle,
        stores.connections,
        account_linker,
        providers,
        cipher,
        redirects,
        clock,
        constants.random_token,
        skip_confirmation=settings.skip_confirmation,
    )
    oauth_callback = OAuthCallbackService(
        stores.attempts,
        lifecycle,
        stores.integrations,
        token_storage,
        providers,
        cipher,
        redirects,
        tasks,
        clock,
        skip_confirmation=settings.skip_confirmation,
        keeps_outcomes=constants.keeps_outcomes,
        pause=constants.pause,
    )
    device_poller = DeviceAuthorizationPoller(
        lifecycle,
        token_storage,
        stores.attempts,
        stores.integrations,
        providers,
        cipher,
        tasks,
        clock,
        # Longer than a request for the tokens and those that complete them take.
        claim_duration=6 * settings.provider_timeout,
        fences_polls=constants.fences_polls,
        pause=constants.pause,
    )
    api_key_connection = ApiKeyConnectionService(account_linker, providers, tasks, constants.random_token)
    return ConnectionUseCases(oauth_connection, oauth_callback, device_poller, api_key_connection, revocation_service)
