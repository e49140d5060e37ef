import re
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import (
    IntegrationPending,
    IntegrationServerError,
    InvalidField,
    ProviderNotConfigured,
    RedirectUriNotAllowed,
    UnknownIntegrationType,
)
from integration_server.domain.integration import Status
from tests.fakes.provider import parameter, s256
from tests.fakes.system import ADA, APP_CALLBACK, OWN_CALLBACK, RETURN_URL, FakeSystem


async def test_a_new_integration_is_pending(system: FakeSystem) -> None:
    authorization = await system.begin(name="Work", config={"calendar": "primary"})
    row = system.row(authorization.integration_id)
    assert row.status(system.clock()) is Status.PENDING
    assert (row.user_id, row.integration_type, row.auth_method) == (ADA, "fake", AuthMethod.OAUTH2)
    assert (row.name, row.config) == ("Work", {"calendar": "primary"})
    with pytest.raises(IntegrationPending):
        await system.cipher.decrypt(system.stored(authorization.integration_id))


async def test_the_authorization_url_contains_state_scopes_and_challenge(system: FakeSystem) -> None:
    authorization = await system.begin()
    assert authorization.url.startswith("https://fake.example/authorize?")
    assert parameter(authorization.url, "state") == authorization.state
    assert parameter(authorization.url, "scope") == "read"
    assert parameter(authorization.url, "redirect_uri") == OWN_CALLBACK
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", parameter(authorization.url, "code_challenge"))


async def test_the_verifier_of_the_challenge_is_not_exposed(system: FakeSystem) -> None:
    authorization = await system.begin()
    (verifier,) = [
        token for token in system.random_tokens.issued if s256(token) == parameter(authorization.url, "code_challenge")
    ]
    assert verifier not in authorization.url
    (attempt,) = system.attempt_rows()
    assert verifier.encode() not in attempt.encrypted_details


async def test_attempts_have_different_states_and_challenges(system: FakeSystem) -> None:
    first, second = await system.begin(), await system.begin()
    assert first.state != second.state
    assert parameter(first.url, "code_challenge") != parameter(second.url, "code_challenge")
    assert first.integration_id != second.integration_id


async def test_the_state_is_opaque(system: FakeSystem) -> None:
    authorization = await system.begin()
    assert re.fullmatch(r"[A-Za-z0-9_-]+", authorization.state)
    assert "ada" not in authorization.state


async def test_an_attempt_expires_after_ten_minutes(system: FakeSystem) -> None:
    assert (await system.begin()).expire_time == system.clock() + timedelta(minutes=10)


async def test_required_scopes_are_requested_and_duplicates_removed(system: FakeSystem) -> None:
    authorization = await system.begin(scopes=("write", "read", "write"))
    assert parameter(authorization.url, "scope") == "read write"


async def test_allowed_redirect_and_return_urls_are_used(system: FakeSystem) -> None:
    authorization = await system.begin(redirect_uri=APP_CALLBACK, return_url=RETURN_URL)
    assert parameter(authorization.url, "redirect_uri") == APP_CALLBACK
    (row,) = system.attempt_rows()
    assert not any(APP_CALLBACK in str(value) or RETURN_URL in str(value) for value in row)
    assert (await system.call_back(authorization.state)).redirect_url.startswith(RETURN_URL)
    assert system.provider.exchanges == [("code", APP_CALLBACK)]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"integration_type": "unknown"}, UnknownIntegrationType),
        ({"integration_type": "fake_key"}, InvalidField),
        ({"redirect_uri": APP_CALLBACK + "/"}, RedirectUriNotAllowed),
        ({"return_url": "https://evil.example"}, RedirectUriNotAllowed),
    ],
)
async def test_a_rejected_request_stores_nothing(
    system: FakeSystem, fields: dict[str, Any], error: type[IntegrationServerError]
) -> None:
    with pytest.raises(error):
        await system.begin(**fields)
    assert not system.ids()
    assert not system.attempt_rows()


async def test_an_unconfigured_type_cannot_be_connected(system: FakeSystem) -> None:
    system.provider.missing_settings = ["FAKE_CLIENT_ID"]
    with pytest.raises(ProviderNotConfigured, match="FAKE_CLIENT_ID"):
        await system.begin()
    assert not system.ids()


@pytest.mark.parametrize(
    ("granted", "requested", "expected"),
    [
        (("read", "calendar"), (), ["read", "calendar"]),
        (("read", "calendar"), ("mail", "calendar"), ["read", "mail", "calendar"]),
        (None, ("mail",), ["read", "mail"]),
    ],
)
async def test_a_reconnection_also_requests_the_granted_scopes(
    system: FakeSystem, granted: tuple[str, ...] | None, requested: tuple[str, ...], expected: list[str]
) -> None:
    system.provider.granted_scopes = granted
    integration = await system.connect()
    authorization = await system.begin(integration_id=integration.integration_id, scopes=requested)
    assert parameter(authorization.url, "scope").split() == expected
    assert parameter((await system.begin(scopes=requested)).url, "scope").split() == ["read", *requested]
