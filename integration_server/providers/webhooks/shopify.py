"""Shopify: `X-Shopify-Hmac-Sha256`.

- HMAC-SHA256 in base64 of the body, with the app's client secret: shopify.dev/docs/apps/build/webhooks [H].
- There is no timestamp, and the headers with id, topic and shop are not signed: only the delivery's id reveals a
  replayed request, and an attacker can replay one under another id. So `app/uninstalled` is accepted only with a body
  that names the same shop, as the body of that topic does [K].
- `X-Shopify-Webhook-Id` identifies a delivery, and stays the same when it is retried [M]; `X-Shopify-Event-Id` is
  shared by all topics of one action of a merchant [M], so it would hide some of them.
- The account is the shop's domain, `….myshopify.com` [H].
"""

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, digest
from integration_server.providers.webhooks.scheme import SecretSource


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    fields = verified.json_object()
    topic = verified.header("X-Shopify-Topic") or UNKNOWN
    shop = verified.header("X-Shopify-Shop-Domain")
    event = WebhookEvent(
        event_id=verified.header("X-Shopify-Webhook-Id") or digest(topic, shop or "", verified.body),
        event_type=topic,
        account_id=shop,
        payload=verified.body,
        ends_grant=topic == "app/uninstalled" and shop is not None and text_at(fields, "myshopify_domain") == shop,
    )
    return ReceivedWebhook([event])


SHOPIFY = HmacScheme("X-Shopify-Hmac-Sha256", read=_read, encode=base64_text, secret_source=SecretSource.CLIENT_SECRET)
