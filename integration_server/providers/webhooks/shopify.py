"""Shopify: `X-Shopify-Hmac-Sha256`.

- HMAC-SHA256 in base64 of the body, with the app's client secret: shopify.dev/docs/apps/build/webhooks [H].
- There is no timestamp, and the headers with id, topic and shop are not signed: only the delivery's id shows that a
  request was sent again, and who has recorded one could send it under another. So `app/uninstalled` counts only with
  a body that names the same shop, as that topic's does [K].
- `X-Shopify-Webhook-Id` is one delivery's, and stays when it is tried again [M]; `X-Shopify-Event-Id` is shared by the
  topics that one act of a merchant touches [M], so it would hide some of them.
- The account is the shop's domain, `….myshopify.com` [H].
"""

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, digest, header_text, json_object
from integration_server.providers.webhooks.scheme import SecretSource


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    request = verified.request
    fields = json_object(request.body)
    topic = header_text(request, "X-Shopify-Topic") or UNKNOWN
    shop = header_text(request, "X-Shopify-Shop-Domain")
    event = WebhookEvent(
        event_id=header_text(request, "X-Shopify-Webhook-Id") or digest(topic, shop or "", request.body),
        event_type=topic,
        account_id=shop,
        payload=request.body,
        ends_grant=topic == "app/uninstalled" and shop is not None and text_at(fields, "myshopify_domain") == shop,
    )
    return ReceivedWebhook([event])


SHOPIFY = HmacScheme("X-Shopify-Hmac-Sha256", read=_read, encode=base64_text, secret_source=SecretSource.CLIENT_SECRET)
