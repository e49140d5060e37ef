import re
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import (
    IntegrationServerError,
    InvalidField,
    ProviderNotConfigured,
    RedirectUriNotAllowed,
    UnknownIntegrationType,
)
from integration_server.domain.integration import Status
from tests.fakes.provider import parameter, s256
from tests.fakes.system import ADA, APP_CALLBACK, OWN_CALLBACK, RETURN_URL, FakeSystem


async def test_a_new_integration_is_pending_from_the_start(system: FakeSystem) -> None:
    begun = await system.begin(name="Work", config={"calendar": "primary"})
    row = system.row(begun.integration_id)
    assert row.status(system.clock()) is Status.PENDING
    assert (row.user_id, row.integration_type, row.auth_method) == (ADA, "fake", AuthMethod.OAUTH2)
    assert (row.name, row.config) == ("Work", {"calendar": "primary"})
    assert system.stored(begun.integration_id).encrypted_credentials is None


async def test_the_browser_is_sent_with_state_scopes_and_challenge(system: FakeSystem) -> None:
    begun = await system.begin()
    assert begun.url.startswith("https://fake.example/authorize?")
    assert parameter(begun.url, "state") == begun.state
    assert parameter(begun.url, "scope") == "read"
    assert parameter(begun.url, "redirect_uri") == OWN_CALLBACK
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", parameter(begun.url, "code_challenge"))


async def test_the_challenge_is_of_a_verifier_that_nobody_sees(system: FakeSystem) -> None:
    begun = await system.begin()
    (verifier,) = [name for name in system.random_tokens.issued if s256(name) == parameter(begun.url, "code_challenge")]
    assert verifier not in begun.url
    (attempt,) = system.attempt_rows()
    assert verifier.encode() not in attempt.encrypted_verifier


async def test_no_two_attempts_have_anything_secret_in_common(system: FakeSystem) -> None:
    one, two = await system.begin(), await system.begin()
    assert one.state != two.state
    assert parameter(one.url, "code_challenge") != parameter(two.url, "code_challenge")
    assert one.integration_id != two.integration_id


async def test_a_browser_cannot_read_the_state(system: FakeSystem) -> None:
    begun = await system.begin()
    assert re.fullmatch(r"[A-Za-z0-9_-]+", begun.state)
    assert "ada" not in begun.state


async def test_an_attempt_is_good_for_ten_minutes(system: FakeSystem) -> None:
    assert (await system.begin()).expire_time == system.clock() + timedelta(minutes=10)


async def test_required_scopes_are_always_asked_for_and_none_twice(system: FakeSystem) -> None:
    begun = await system.begin(scopes=("write", "read", "write"))
    assert parameter(begun.url, "scope") == "read write"


async def test_allowed_addresses_are_kept(system: FakeSystem) -> None:
    begun = await system.begin(redirect_uri=APP_CALLBACK, return_url=RETURN_URL)
    assert parameter(begun.url, "redirect_uri") == APP_CALLBACK
    (row,) = system.attempt_rows()
    assert (row.redirect_uri, row.return_url) == (APP_CALLBACK, RETURN_URL)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"integration_type": "unheard_of"}, UnknownIntegrationType),
        ({"integration_type": "fake_key"}, InvalidField),
        ({"redirect_uri": APP_CALLBACK + "/"}, RedirectUriNotAllowed),
        ({"return_url": "https://evil.example"}, RedirectUriNotAllowed),
    ],
)
async def test_what_is_refused_leaves_nothing_behind(
    system: FakeSystem, given: dict[str, Any], error: type[IntegrationServerError]
) -> None:
    with pytest.raises(error):
        await system.begin(**given)
    assert not system.ids()
    assert not system.attempt_rows()


async def test_a_type_without_its_settings_cannot_be_connected(system: FakeSystem) -> None:
    system.provider.missing_settings = ["FAKE_CLIENT_ID"]
    with pytest.raises(ProviderNotConfigured, match="FAKE_CLIENT_ID"):
        await system.begin()
    assert not system.ids()
