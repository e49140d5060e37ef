"""A provider whose webhooks tests can sign: an HMAC of the body in a header."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from integration_server.domain.credentials import ApiKey, Credentials
from integration_server.domain.errors import ProviderRejected
from integration_server.domain.webhooks import (
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
    WebhookResponse,
)
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.webhooks.parsing import EventBatch
from integration_server.service.integrations.ports import NewAccount

SIGNED_WEBHOOK = "signed_webhook"
APP_SECRET_SETTING = "SIGNED_WEBHOOK_WEBHOOK_SECRET"
SIGNATURE = "X-Signature"


def webhook_body(*events: Mapping[str, Any]) -> bytes:
    """A body with these events: each has an `id`, and may have `type`, `account`, `route`, `reports_grant_end`,
    `unstable`.
    """
    return json.dumps({"events": events}).encode()


def signature_headers(body: bytes, secret: str) -> dict[str, str]:
    """The headers that sign a body."""
    return {SIGNATURE: hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def receive(request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
    """The events of a request that one of the secrets has signed. A GET is a handshake with a signed query."""
    content = request.body if request.method == "POST" else urlsplit(request.url).query.encode()
    given = [value for name, value in request.headers if name.lower() == SIGNATURE.lower()]
    if len(given) != 1 or not any(
        hmac.compare_digest(given[0], signature_headers(content, secret)[SIGNATURE].encode()) for secret in secrets
    ):
        raise InvalidWebhookSignature
    if request.method == "GET":
        challenge = parse_qs(content.decode())["challenge"][0]
        return ReceivedWebhook(response=WebhookResponse(body=challenge.encode(), headers={"X-Handshake": "yes"}))
    return ReceivedWebhook(EventBatch(json.loads(content)["events"], _event), WebhookResponse(202, body=b"ok"))


def _event(event: Mapping[str, Any]) -> WebhookEvent:
    return WebhookEvent(
        event_id=event["id"],
        event_type=event.get("type", "changed"),
        account_id=event.get("account"),
        payload=json.dumps(event).encode(),
        reports_grant_end=event.get("reports_grant_end", False),
        has_stable_id=not event.get("unstable", False),
        route=event.get("route"),
    )


class SignedWebhookProvider(ApiKeyProvider):
    """Accepts any key, except of `revoked_accounts`. The part before the colon is the account."""

    revoked_accounts: ClassVar[set[str]] = set()

    integration_type = SIGNED_WEBHOOK
    supports_webhooks = True

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """The account that the key names."""
        assert isinstance(credentials, ApiKey)
        account_id = credentials.api_key.partition(":")[0]
        if account_id in self.revoked_accounts:
            raise ProviderRejected("credentials")
        return NewAccount(account_id, None)

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """The app's secrets from the settings, or the integration's from its credentials."""
        secret = self._setting("WEBHOOK_SECRET") if credentials is None else getattr(credentials, "webhook_secret", "")
        return [secret] if secret else []

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """Verify and read a request."""
        return receive(request, secrets)


def register_signed_webhook_provider(factory: ProviderFactory) -> None:
    """Register the provider."""
    factory.register(SIGNED_WEBHOOK, SignedWebhookProvider)
