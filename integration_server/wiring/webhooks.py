"""Builds the use cases of webhooks."""

from dataclasses import dataclass

from integration_server.observability.metrics import METRICS
from integration_server.service.credentials.grant_confirmation import GrantConfirmation
from integration_server.service.webhooks.unrouted_webhooks import UnroutedWebhookLog
from integration_server.service.webhooks.webhook_delivery import WebhookDelivery
from integration_server.service.webhooks.webhook_ingestion import EndpointCache, WebhookIngestion
from integration_server.service.webhooks.webhook_router import WebhookRouter
from integration_server.service.webhooks.webhook_secrets import WebhookSecrets
from integration_server.wiring.service_parts import ServiceParts


@dataclass(frozen=True, slots=True)
class WebhookUseCases:
    """Ingestion, delivery to consumers, secrets, and events without a recipient."""

    ingestion: WebhookIngestion
    delivery: WebhookDelivery
    secrets: WebhookSecrets
    unrouted: UnroutedWebhookLog


def build_webhooks(
    parts: ServiceParts, router: WebhookRouter, grant_confirmation: GrantConfirmation
) -> WebhookUseCases:
    """Build them. The end of a grant that an event reports is confirmed with the provider."""
    settings, stores, metrics, constants = parts.settings, parts.stores, parts.metrics, parts.constants
    providers, aead, clock = parts.providers, parts.aead, parts.clock
    unrouted = UnroutedWebhookLog(
        stores.unrouted_webhooks,
        aead,
        clock,
        constants.random_token,
        retention=settings.unrouted_webhook_retention,
        monotonic=constants.monotonic,
    )
    secrets = WebhookSecrets(
        stores.endpoints,
        providers,
        aead,
        clock,
        constants.random_token,
        public_url=settings.public_url,
        grace=settings.webhook_secret_grace,
    )
    ingestion = WebhookIngestion(
        EndpointCache(stores.endpoints, constants.monotonic),
        stores.inbox,
        router,
        unrouted,
        secrets,
        providers,
        aead,
        clock,
        constants.random_token,
        grant_confirmation.start,
        retention=settings.webhook_retention,
        monotonic=constants.monotonic,
        record_outcome=metrics.counter(METRICS.webhooks),
        record_unrouted=metrics.counter(METRICS.webhooks_unrouted),
    )
    delivery = WebhookDelivery(stores.integrations, stores.inbox, aead, max_page_bytes=parts.max_payload_bytes)
    return WebhookUseCases(ingestion, delivery, secrets, unrouted)
