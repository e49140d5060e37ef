"""What `types show` prints is what the provider sends, with placeholders for every value."""

import json
from dataclasses import asdict

import pytest

from integration_server.providers.built_in import register_built_in
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.request_preview import PreviewedRequest, preview_requests
from tests.declarations import declared_types
from tests.unit.providers.support import NOW


def factory() -> ProviderFactory:
    factory = ProviderFactory()
    register_built_in(factory)
    factory.register_all(declared_types())
    return factory


async def preview(integration_type: str) -> list[PreviewedRequest]:
    return list(await preview_requests(factory(), integration_type, lambda: NOW))


@pytest.mark.parametrize("integration_type", sorted(factory().integration_types))
async def test_every_type_has_a_preview_with_names_in_place_of_values(integration_type: str) -> None:
    requests = await preview(integration_type)
    text = json.dumps([asdict(request) for request in requests])
    assert requests or integration_type in {"booksy", "custom", "short_forms"}  # these have no API and no verification
    assert "placeholder" not in text
    assert all(request.destination for request in requests)


async def test_the_requests_are_shown_in_order_with_destination_headers_and_content() -> None:
    requests = await preview("json_tokens")
    assert [(request.purpose, request.method, request.destination) for request in requests] == [
        ("authorization, in the user's browser", "GET", "api.notes.example"),
        ("code exchange", "POST", "api.notes.example"),
        ("verification", "GET", "api.notes.example"),
        ("refresh", "POST", "api.notes.example"),
        ("API request", "GET", "api.notes.example"),
        ("revocation", "POST", "api.notes.example"),
    ]
    exchange, revocation = requests[1], requests[-1]
    assert exchange.headers == {
        "Notes-Version": "2026-06-01",
        "Authorization": "Basic base64({client_id}:{client_secret})",
        "Content-Type": "application/json",
    }
    assert exchange.body == {"grant_type": "authorization_code", "code": "{code}", "redirect_uri": "{redirect_uri}"}
    assert revocation.body == {"token": "{access_token}"}
    assert requests[4].url == "https://api.notes.example/v1/{path}"


async def test_a_device_authorization_has_two_requests_and_no_page() -> None:
    begin, poll, *others = await preview("code_on_a_phone")
    assert [begin.purpose, poll.purpose, others[0].purpose] == [
        "device authorization",
        "request for the tokens",
        "verification",
    ]
    assert begin.body == {"client_id": "{client_id}", "scope": "video.readonly email"}
    assert poll.body["device_code"] == "{device_code}"


async def test_a_host_with_a_value_is_shown_with_its_bounds() -> None:
    exchange = (await preview("region_of_callback"))[1]
    assert (exchange.destination, exchange.allowed_hosts) == ("{accounts_server}", ["*.suite.example"])
    (verification, _) = await preview("email_and_token")
    assert verification.url == "https://{subdomain}.desk.example/api/v2/users/me"
    assert verification.headers == {"Authorization": "Basic base64({email}/token:{api_key})"}


async def test_an_assertion_is_not_shown() -> None:
    exchange = (await preview("choice_of_sites"))[1]
    assert exchange.body["client_assertion"] == "{signed JWT}"


@pytest.mark.parametrize("name", ["service_account", "signed_consent", "encrypted_key", "app_installation"])
async def test_a_request_with_a_signed_jwt_is_shown(name: str) -> None:
    token_request = (await preview(name))[0]
    assert token_request.purpose == "token request"
    assert "{signed JWT}" in f"{token_request.headers} {token_request.body}"


async def test_a_url_that_a_file_brings_is_shown_with_its_hosts() -> None:
    token_request = (await preview("service_account"))[0]
    assert (token_request.url, token_request.allowed_hosts) == ("{token_uri}", ["*.cloud.example"])
    assert token_request.destination == "{token_uri}"


async def test_every_request_of_a_login_is_shown() -> None:
    first, second, *_ = await preview("two_logins")
    assert (first.url, first.query) == ("https://api.clinic.example/v2/challenge", [("practice", "{practice}")])
    assert second.url == "https://api.clinic.example/v2/sessions"
    assert second.headers["X-Csrf-Token"] == "{csrf}"
    assert second.body == {"user": "{username}", "password": "{password}", "nonce": "{nonce}"}
    logout = (await preview("session_header"))[-1]
    assert (logout.method, logout.url) == ("DELETE", "https://{host}.storage.example/api/sessions/{session}")


async def test_what_is_shown_follows_the_declaration() -> None:
    types = factory()
    ((build, _),) = [types._builds["json_tokens"]]
    types.replace("json_tokens", lambda context: build(context).with_attributes(token_auth="client_secret_post"))
    exchange = (await preview_requests(types, "json_tokens", lambda: NOW))[1]
    assert "Authorization" not in exchange.headers
    assert exchange.body["client_secret"] == "{client_secret}"
