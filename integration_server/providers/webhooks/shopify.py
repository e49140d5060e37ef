"""Shopify: `X-Shopify-Hmac-Sha256`. The same key signs callbacks, and headers have id, type and account.

- HMAC-SHA256 in base64 of the body, with the app's client secret: shopify.dev/docs/apps/build/webhooks [H].
- There is no timestamp, and the headers with id, topic and shop are not signed: only the delivery's id reveals a
  replayed request, and an attacker can replay one under another id. So `app/uninstalled` counts only with a body that
  names the same shop, as the body of that topic does [K], and as for every provider it only causes a question there.
- Callbacks are signed with the same key. A callback's signed message begins with the name of a parameter and has a "=",
  so a body with "=" is a webhook only if it begins with "{". Bodies of webhooks are JSON objects [H]; the headers
  identify the account also of a body that cannot be read.
- `X-Shopify-Webhook-Id` identifies a delivery, and stays the same when it is retried [M]; `X-Shopify-Event-Id` is
  shared by all topics of one action of a merchant [M], so it would hide some of them.
- The account is the shop's domain, `….myshopify.com` [H].
"""

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookEvent
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, base64_text
from integration_server.providers.webhooks.json_text import read_json_text
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, digest
from integration_server.providers.webhooks.scheme import SecretSource


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    if b"=" in verified.body and not verified.body.startswith(b"{"):
        raise InvalidWebhookSignature  # it may be a callback
    body = read_json_text(verified.body)
    fields = {} if body is None else body.value
    topic = verified.header("X-Shopify-Topic") or UNKNOWN
    shop = verified.header("X-Shopify-Shop-Domain")
    event = WebhookEvent(
        event_id=verified.header("X-Shopify-Webhook-Id") or digest(topic, shop or "", verified.body),
        event_type=topic,
        account_id=shop,
        payload=verified.body,
        reports_grant_end=topic == "app/uninstalled"
        and shop is not None
        and text_at(fields, "myshopify_domain") == shop,
    )
    return ReceivedWebhook([event])


SHOPIFY = HmacScheme("X-Shopify-Hmac-Sha256", read=_read, encode=base64_text, secret_source=SecretSource.CLIENT_SECRET)
