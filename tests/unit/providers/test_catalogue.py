"""The providers that come with the server. Who adds one adds its line here."""

from types import ModuleType

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.providers import (
    google_calendar,
    google_my_business,
    sendgrid,
    square,
    stripe,
    twilio,
)
from integration_server.providers.factory import ProviderFactory
from integration_server.service.ports import Provider, Providers
from tests.unit.providers.support import Network, context

CATALOGUE = [
    (google_calendar, "google_calendar", "Google Calendar", AuthMethod.OAUTH2),
    (google_my_business, "google_my_business", "Google Business Profile", AuthMethod.OAUTH2),
    (sendgrid, "sendgrid", "SendGrid", AuthMethod.API_KEY),
    (square, "square", "Square", AuthMethod.OAUTH2),
    (stripe, "stripe", "Stripe", AuthMethod.OAUTH2),
    (twilio, "twilio", "Twilio", AuthMethod.BASIC),
]


def all_built() -> Providers:
    factory = ProviderFactory()
    for module, *_ in CATALOGUE:
        module.register(factory)
    return factory.build(context(Network()))


@pytest.mark.parametrize(
    ("module", "integration_type", "display_name", "auth_method"), CATALOGUE, ids=[row[1] for row in CATALOGUE]
)
def test_is_in_the_catalogue(
    module: ModuleType, integration_type: str, display_name: str, auth_method: AuthMethod
) -> None:
    provider: Provider = all_built().get(integration_type)
    assert (provider.display_name, provider.auth_method) == (display_name, auth_method)
    assert module.__doc__
    if auth_method is AuthMethod.OAUTH2:
        prefix = integration_type.upper()
        assert list(provider.missing_settings) == [f"{prefix}_CLIENT_ID", f"{prefix}_CLIENT_SECRET"]
        assert provider.required_scopes
        assert provider.issuer is None
    else:
        assert provider.missing_settings == ()
        assert "api_key" in provider.required_fields


def test_lists_all_by_their_type() -> None:
    assert [provider.integration_type for provider in all_built().all()] == [row[1] for row in CATALOGUE]
