"""API versions are settings, and what ends at a known time is announced ninety days ahead."""

from datetime import date, timedelta

import pytest

from integration_server.cli.operations import EXPIRY_NOTICE, expiry_warnings
from integration_server.providers.base import BaseProvider
from integration_server.providers.built_in import built_in_class, register_built_in
from integration_server.providers.declaration_tables import ExpiringFact, FieldDeclaration
from integration_server.providers.factory import ProviderFactory, ProvidersError
from integration_server.providers.oauth2 import OAuth2Provider
from tests.unit.providers.support import FakeTransport, build_provider, context

HubSpotProvider = built_in_class("hubspot")
InstagramProvider = built_in_class("instagram")
MetaBusinessProvider = built_in_class("meta_business")
ShopifyProvider = built_in_class("shopify")
XeroProvider = built_in_class("xero")
ZoomProvider = built_in_class("zoom")

LAST_CHECK = date(2026, 11, 29)
END = date(2027, 2, 23)


class DatedProvider(OAuth2Provider):
    integration_type = "dated"
    oauth_authorize_url = "https://dated.example/{api_version}/authorize"
    oauth_token_url = "https://dated.example/{api_version}/token"
    settings = {"api_version": FieldDeclaration(default="v1")}  # noqa: RUF012  # as providers do
    expiring_facts = (ExpiringFact("version 1", END, "v1"), ExpiringFact("the old login", END + timedelta(days=1)))


@pytest.mark.parametrize(
    ("days_before", "warnings"),
    [
        (EXPIRY_NOTICE.days + 1, []),
        (EXPIRY_NOTICE.days, ["warning: dated: version 1 ends on 2027-02-23"]),
        (1, ["warning: dated: version 1 ends on 2027-02-23", "warning: dated: the old login ends on 2027-02-24"]),
        (0, ["warning: dated: version 1 ended on 2027-02-23", "warning: dated: the old login ends on 2027-02-24"]),
    ],
)
def test_an_end_is_announced_ninety_days_ahead(days_before: int, warnings: list[str]) -> None:
    provider = build_provider(DatedProvider, FakeTransport())
    assert list(expiry_warnings([provider], END - timedelta(days=days_before))) == warnings


def test_an_end_that_does_not_concern_this_server_is_not_announced() -> None:
    provider = build_provider(DatedProvider, FakeTransport(), DATED_API_VERSION="v2")
    assert list(expiry_warnings([provider], END)) == ["warning: dated: the old login ends on 2027-02-24"]


def test_the_scopes_of_old_apps_end_only_where_they_are_used() -> None:
    day = date(2027, 8, 1)
    assert list(expiry_warnings([build_provider(XeroProvider, FakeTransport())], day)) == []
    old = build_provider(XeroProvider, FakeTransport(), XERO_SCOPES="accounting.transactions offline_access")
    assert list(expiry_warnings([old], day)) == ["warning: xero: the scope accounting.transactions ends on 2027-09-01"]


def test_no_default_has_ended() -> None:
    factory = ProviderFactory()
    register_built_in(factory)
    providers = factory.build(context(FakeTransport())).all()
    assert [fact for provider in providers for fact in provider.facts_ending_by(LAST_CHECK)] == []


@pytest.mark.parametrize(
    ("provider_class", "version", "url"),
    [
        (MetaBusinessProvider, "v27.0", "https://graph.facebook.com/v27.0/oauth/access_token"),
        (HubSpotProvider, "2026-09", "https://api.hubapi.com/oauth/2026-09/token"),
        (InstagramProvider, "v25.0", "https://graph.instagram.com/v25.0/me?fields=user_id,username"),
        (ShopifyProvider, "2026-10", "https://{shop}.myshopify.com/admin/api/2026-10/shop.json"),
    ],
)
def test_a_version_is_a_setting(provider_class: type[BaseProvider], version: str, url: str) -> None:
    name = str(provider_class.integration_type).upper()
    default = build_provider(provider_class, FakeTransport())
    provider = build_provider(provider_class, FakeTransport(), **{f"{name}_API_VERSION": version})
    assert url in provider.url_templates.values()
    assert url not in default.url_templates.values()
    assert not any("api_version" in url_template for url_template in default.url_templates.values())


@pytest.mark.parametrize("version", ["v27.0/..", "../v1", "v1@evil.example", "v 1", "v1?x", "{shop}"])
def test_a_version_is_one_path_segment(version: str) -> None:
    with pytest.raises(ProvidersError, match="META_BUSINESS_API_VERSION"):
        build_provider(MetaBusinessProvider, FakeTransport(), META_BUSINESS_API_VERSION=version)


@pytest.mark.parametrize(
    ("setting", "scopes"),
    [
        ("meeting:read user:read", ("meeting:read", "user:read")),
        ("meeting:read,user:read", ("meeting:read", "user:read")),
        (" user:read:admin ", ("user:read:admin",)),
        ("", ZoomProvider.required_scopes),
    ],
)
def test_the_scopes_of_a_type_are_a_setting(setting: str, scopes: tuple[str, ...]) -> None:
    assert build_provider(ZoomProvider, FakeTransport(), ZOOM_SCOPES=setting).required_scopes == scopes
