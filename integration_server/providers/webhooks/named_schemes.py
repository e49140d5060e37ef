"""The schemes that a declaration names, because the language cannot describe them."""

from collections.abc import Mapping
from types import MappingProxyType

from integration_server.providers.declaration_tables import SchemeName
from integration_server.providers.webhooks.acuity import ACUITY
from integration_server.providers.webhooks.dropbox import DROPBOX
from integration_server.providers.webhooks.github import GITHUB
from integration_server.providers.webhooks.google_channel import GOOGLE_CHANNEL
from integration_server.providers.webhooks.hubspot import HUBSPOT
from integration_server.providers.webhooks.meta import INSTAGRAM, META
from integration_server.providers.webhooks.microsoft_graph import MICROSOFT_GRAPH
from integration_server.providers.webhooks.quickbooks import QUICKBOOKS
from integration_server.providers.webhooks.scheme import WebhookScheme
from integration_server.providers.webhooks.sendgrid import SENDGRID
from integration_server.providers.webhooks.shopify import SHOPIFY
from integration_server.providers.webhooks.slack import SLACK
from integration_server.providers.webhooks.standard import STANDARD
from integration_server.providers.webhooks.stripe import STRIPE
from integration_server.providers.webhooks.twilio import TWILIO
from integration_server.providers.webhooks.zoom import ZOOM

SCHEMES: Mapping[SchemeName, WebhookScheme] = MappingProxyType(
    {
        "acuity": ACUITY,
        "dropbox": DROPBOX,
        "github": GITHUB,
        "google_channel": GOOGLE_CHANNEL,
        "hubspot": HUBSPOT,
        "instagram": INSTAGRAM,
        "meta": META,
        "microsoft_graph": MICROSOFT_GRAPH,
        "quickbooks": QUICKBOOKS,
        "sendgrid": SENDGRID,
        "shopify": SHOPIFY,
        "slack": SLACK,
        "standard": STANDARD,
        "stripe": STRIPE,
        "twilio": TWILIO,
        "zoom": ZOOM,
    }
)
