"""The table of built-in providers. A new provider is added to it."""

from functools import cache

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.providers.built_in import BEHAVIOURS, register_built_in
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.toml_providers import CATALOGUE as DIRECTORY
from integration_server.providers.toml_providers import declaration_files, load_toml_providers
from integration_server.service.provider_port import Provider
from tests.unit.providers.support import FakeTransport, context

CATALOGUE = [
    ("activecampaign", "ActiveCampaign", AuthMethod.API_KEY),
    ("acuity", "Acuity Scheduling", AuthMethod.BASIC),
    ("airtable", "Airtable", AuthMethod.OAUTH2),
    ("asana", "Asana", AuthMethod.OAUTH2),
    ("bigcommerce", "BigCommerce", AuthMethod.API_KEY),
    ("bitbucket", "Bitbucket", AuthMethod.OAUTH2),
    ("booksy", "Booksy", AuthMethod.API_KEY),
    ("brevo", "Brevo", AuthMethod.API_KEY),
    ("calendly", "Calendly", AuthMethod.OAUTH2),
    ("clickup", "ClickUp", AuthMethod.OAUTH2),
    ("cliniko", "Cliniko", AuthMethod.BASIC),
    ("clover", "Clover", AuthMethod.OAUTH2),
    ("confluence", "Confluence", AuthMethod.OAUTH2),
    ("custom", "Custom", AuthMethod.API_KEY),
    ("discord", "Discord", AuthMethod.OAUTH2),
    ("docusign", "DocuSign", AuthMethod.OAUTH2),
    ("dropbox", "Dropbox", AuthMethod.OAUTH2),
    ("etsy", "Etsy", AuthMethod.OAUTH2),
    ("eventbrite", "Eventbrite", AuthMethod.OAUTH2),
    ("figma", "Figma", AuthMethod.OAUTH2),
    ("freshbooks", "FreshBooks", AuthMethod.OAUTH2),
    ("freshdesk", "Freshdesk", AuthMethod.BASIC),
    ("github", "GitHub", AuthMethod.OAUTH2),
    ("gitlab", "GitLab", AuthMethod.OAUTH2),
    ("gmail", "Gmail", AuthMethod.OAUTH2),
    ("gocardless", "GoCardless", AuthMethod.OAUTH2),
    ("google_ads", "Google Ads", AuthMethod.OAUTH2),
    ("google_analytics", "Google Analytics", AuthMethod.OAUTH2),
    ("google_calendar", "Google Calendar", AuthMethod.OAUTH2),
    ("google_contacts", "Google Contacts", AuthMethod.OAUTH2),
    ("google_drive", "Google Drive", AuthMethod.OAUTH2),
    ("google_my_business", "Google Business Profile", AuthMethod.OAUTH2),
    ("help_scout", "Help Scout", AuthMethod.OAUTH2),
    ("hubspot", "HubSpot", AuthMethod.OAUTH2),
    ("instagram", "Instagram", AuthMethod.OAUTH2),
    ("intercom", "Intercom", AuthMethod.OAUTH2),
    ("jira", "Jira", AuthMethod.OAUTH2),
    ("klaviyo", "Klaviyo", AuthMethod.OAUTH2),
    ("lightspeed", "Lightspeed Retail (X-Series)", AuthMethod.OAUTH2),
    ("linear", "Linear", AuthMethod.OAUTH2),
    ("linkedin", "LinkedIn", AuthMethod.OAUTH2),
    ("mailchimp", "Mailchimp", AuthMethod.OAUTH2),
    ("mailgun", "Mailgun", AuthMethod.BASIC),
    ("meta_business", "Meta Business", AuthMethod.OAUTH2),
    ("microsoft_onedrive", "Microsoft OneDrive", AuthMethod.OAUTH2),
    ("microsoft_outlook", "Microsoft Outlook", AuthMethod.OAUTH2),
    ("microsoft_teams", "Microsoft Teams", AuthMethod.OAUTH2),
    ("miro", "Miro", AuthMethod.OAUTH2),
    ("mollie", "Mollie", AuthMethod.OAUTH2),
    ("monday", "monday.com", AuthMethod.OAUTH2),
    ("notion", "Notion", AuthMethod.OAUTH2),
    ("paypal", "PayPal", AuthMethod.OAUTH2),
    ("pipedrive", "Pipedrive", AuthMethod.OAUTH2),
    ("postmark", "Postmark", AuthMethod.API_KEY),
    ("quickbooks", "QuickBooks Online", AuthMethod.OAUTH2),
    ("ringcentral", "RingCentral", AuthMethod.OAUTH2),
    ("salesforce", "Salesforce", AuthMethod.OAUTH2),
    ("sendgrid", "SendGrid", AuthMethod.API_KEY),
    ("shopify", "Shopify", AuthMethod.OAUTH2),
    ("slack", "Slack", AuthMethod.OAUTH2),
    ("square", "Square", AuthMethod.OAUTH2),
    ("stripe", "Stripe", AuthMethod.OAUTH2),
    ("stripe_api_key", "Stripe (API key)", AuthMethod.API_KEY),
    ("sumup", "SumUp", AuthMethod.OAUTH2),
    ("todoist", "Todoist", AuthMethod.OAUTH2),
    ("trello", "Trello", AuthMethod.API_KEY),
    ("twilio", "Twilio", AuthMethod.BASIC),
    ("typeform", "Typeform", AuthMethod.OAUTH2),
    ("webflow", "Webflow", AuthMethod.OAUTH2),
    ("xero", "Xero", AuthMethod.OAUTH2),
    ("youtube", "YouTube", AuthMethod.OAUTH2),
    ("zendesk", "Zendesk", AuthMethod.OAUTH2),
    ("zoho_crm", "Zoho CRM", AuthMethod.OAUTH2),
    ("zoom", "Zoom", AuthMethod.OAUTH2),
]

ALIASES = {"mailchimp": ["email_marketing"], "twilio": ["sms_marketing"]}
WITHOUT_SCOPES = {
    *("calendly", "clickup", "clover", "eventbrite", "help_scout", "intercom", "mailchimp", "notion", "paypal"),
    *("pipedrive", "ringcentral"),
}
SETTINGS = {"etsy": ["ETSY_CLIENT_ID", "ETSY_APP_KEY"], "paypal": []}
"""Those of a client without a secret of its own, and of accounts with clients of their own."""


@cache
def all_built() -> ProviderRegistry:
    factory = ProviderFactory()
    register_built_in(factory)
    return factory.build(context(FakeTransport()))


@pytest.mark.parametrize(
    ("integration_type", "display_name", "auth_method"), CATALOGUE, ids=[row[0] for row in CATALOGUE]
)
def test_a_built_in_provider_is_as_listed(integration_type: str, display_name: str, auth_method: AuthMethod) -> None:
    provider: Provider = all_built()[integration_type]
    assert (provider.display_name, provider.auth_method) == (display_name, auth_method)
    if auth_method is AuthMethod.OAUTH2:
        prefix = integration_type.upper()
        settings = SETTINGS.get(integration_type, [f"{prefix}_CLIENT_ID", f"{prefix}_CLIENT_SECRET"])
        assert list(provider.missing_settings) == settings
        assert bool(provider.required_scopes) == (integration_type not in WITHOUT_SCOPES)
        assert provider.issuer is None
    else:
        assert provider.missing_settings == []
        assert "api_key" in provider.required_fields


def test_providers_are_sorted_by_type() -> None:
    assert [provider.integration_type for provider in all_built().all()] == [row[0] for row in CATALOGUE]


def test_the_table_lists_all_built_in_providers() -> None:
    declared = [file.name.removesuffix(".toml") for file in declaration_files(DIRECTORY)]
    assert declared == [row[0] for row in CATALOGUE]
    assert BEHAVIOURS.keys() <= set(declared)


def test_no_declaration_has_a_likely_mistake() -> None:
    """A server's start does not look for them in the catalogue."""
    factory = ProviderFactory()
    load_toml_providers(DIRECTORY, factory, dev_mode=False, behaviours=BEHAVIOURS)  # raises `ProvidersError`
    assert list(factory.integration_types) == [row[0] for row in CATALOGUE]


def test_aliases_resolve_to_their_type() -> None:
    providers = all_built()
    assert {p.integration_type: list(p.aliases) for p in providers.all() if p.aliases} == ALIASES
    for integration_type, aliases in ALIASES.items():
        assert {providers[alias].integration_type for alias in aliases} == {integration_type}
