"""Attacks on the flow between app, browser and provider, each with a negative control without the defence.

The victim is Ada, the attacker Mallory, who is "linus" at the provider. A second sandbox is Mallory's own provider.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlencode

import grpc
import pytest
import pytest_asyncio

from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.databases import wipe
from tests.end_to_end.faults import RecordedForms
from tests.end_to_end.rpc_errors import FAILED_PRECONDITION, INVALID_ARGUMENT, RpcError, expect_rpc_error
from tests.end_to_end.system import (
    APP_CALLBACK,
    BROWSER,
    CONFIRMING,
    PUBLIC_URL,
    RETURN_URL,
    System,
    callback_url,
    query_of,
    run_system,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]

HONEST_CLIENT = "honest-client"
SHARED_CALLBACK = f"{PUBLIC_URL}/api/v1/integrations/callback"
MISMATCH = RpcError(grpc.StatusCode.PERMISSION_DENIED, "USER_MISMATCH")


def register_types(evil_url: str, factory: ProviderFactory, honest_url: str) -> None:
    """Register an honest provider without an issuer, one without PKCE, and Mallory's with and without an issuer."""

    class Honest(OAuth2Provider):
        integration_type = "honest"
        oauth_authorize_url = f"{honest_url}/oauth/authorize"
        oauth_token_url = f"{honest_url}/oauth/token"
        verify_url = f"{honest_url}/userinfo"
        account_id_field = "sub"
        required_scopes = ("read",)

    class WithoutPkce(Honest):
        integration_type = "without_pkce"
        pkce = False

    class Evil(Honest):
        integration_type = "evil"
        oauth_authorize_url = f"{evil_url}/oauth/authorize"
        oauth_token_url = f"{evil_url}/oauth/token"

    class NamedEvil(Evil):
        integration_type = "named_evil"
        issuer = evil_url

    for provider in (Honest, WithoutPkce, Evil, NamedEvil):
        factory.register(provider.integration_type, provider)


@dataclass(frozen=True, slots=True)
class AttackSetup:
    """Two servers, of which one requires confirmation; the honest provider is the sandbox of each."""

    direct: System
    careful: System
    evil_sandbox: Sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_attack_setup(shared_database_url: str) -> AsyncIterator[AttackSetup]:
    evil = Sandbox()
    environment = {
        f"{name}_CLIENT_{part}": value
        for name in ("HONEST", "WITHOUT_PKCE", "EVIL", "NAMED_EVIL")
        for part, value in (("ID", HONEST_CLIENT), ("SECRET", "the-secret-of-honest"))
    }
    async with run_sandbox(evil) as evil_url:
        running = partial(
            run_system,
            shared_database_url,
            environment=environment,
            extra_providers=[partial(register_types, evil_url)],
        )
        async with running() as direct, running(**CONFIRMING) as careful:
            for system in (direct, careful):
                redirects = (callback_url("honest"), callback_url("without_pkce"), SHARED_CALLBACK, APP_CALLBACK)
                system.sandbox.register_client(HONEST_CLIENT, "the-secret-of-honest", redirects)
            yield AttackSetup(direct, careful, evil)


@pytest_asyncio.fixture(loop_scope="module")
async def attack_setup(shared_attack_setup: AttackSetup, shared_database_url: str) -> AttackSetup:
    """The module's servers and sandboxes, reset."""
    await wipe(shared_database_url)
    shared_attack_setup.direct.reset()
    shared_attack_setup.careful.reset()
    shared_attack_setup.evil_sandbox.token_calls.clear()
    return shared_attack_setup


async def connected_of(system: System, user_id: str) -> list[str]:
    """The accounts of a user's integrations."""
    listed = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id=user_id))
    return [row.account_id for row in listed.integrations if row.is_connected]


# --- the user who completes the flow ---------------------------------------------------------------------------------


async def test_a_victim_who_completes_the_attackers_flow_does_not_connect_their_account(
    attack_setup: AttackSetup,
) -> None:
    """Session fixation: Mallory begins the flow, and Ada consents with her account."""
    connect_response = await attack_setup.careful.begin("mallory", return_url=RETURN_URL)
    arrived = await attack_setup.careful.follow(
        await attack_setup.careful.decide(connect_response, account="ada"), BROWSER
    )
    token = query_of(arrived.headers["Location"])["confirmation_token"]  # in Ada's browser, to the app's backend
    request = pb.ConfirmConnectionRequest(confirmation_token=token, user_id="ada")
    assert await expect_rpc_error(attack_setup.careful.service.ConfirmConnection(request)) == MISMATCH
    assert await connected_of(attack_setup.careful, "mallory") == []
    assert not attack_setup.careful.sandbox.token_calls


async def test_a_callback_with_another_user_id_is_rejected_without_confirmation(attack_setup: AttackSetup) -> None:
    connect_response = await attack_setup.direct.begin("mallory", redirect_uri=APP_CALLBACK)
    query = query_of(await attack_setup.direct.decide(connect_response, account="ada"))
    request = pb.HandleCallbackRequest(code=query["code"], state=query["state"], iss=query["iss"], user_id="ada")
    assert await expect_rpc_error(attack_setup.direct.service.HandleCallback(request)) == MISMATCH
    assert await connected_of(attack_setup.direct, "mallory") == []
    assert not attack_setup.direct.sandbox.token_calls


async def test_negative_control_without_the_user_check_the_attacker_connects_the_victims_account(
    attack_setup: AttackSetup,
) -> None:
    connect_response = await attack_setup.direct.begin("mallory", return_url=RETURN_URL)
    await attack_setup.direct.follow(await attack_setup.direct.decide(connect_response, account="ada"), BROWSER)
    assert await connected_of(attack_setup.direct, "mallory") == ["ada"]
    assert await attack_setup.direct.bearer_token(connect_response.integration_id, "mallory")


async def test_an_attacker_cannot_complete_the_victims_flow(attack_setup: AttackSetup) -> None:
    """Mallory has intercepted the redirect with code and state before Ada's browser followed it."""
    connect_response = await attack_setup.careful.begin("ada", redirect_uri=APP_CALLBACK)
    query = query_of(await attack_setup.careful.decide(connect_response, account="ada"))
    stolen = pb.HandleCallbackRequest(code=query["code"], state=query["state"], iss=query["iss"], user_id="mallory")
    assert await expect_rpc_error(attack_setup.careful.service.HandleCallback(stolen)) == MISMATCH
    stolen.user_id = ""
    held = await attack_setup.careful.service.HandleCallback(stolen)
    confirm = pb.ConfirmConnectionRequest(confirmation_token=held.confirmation_token, user_id="mallory")
    assert await expect_rpc_error(attack_setup.careful.service.ConfirmConnection(confirm)) == MISMATCH
    assert not attack_setup.careful.sandbox.token_calls
    assert await connected_of(attack_setup.careful, "mallory") == []


# --- code injection --------------------------------------------------------------------------------------------------


async def inject_code(attack_setup: AttackSetup, integration_type: str) -> RpcError | None:
    """Send Ada's state with a code of Mallory's account; the error, or None if it succeeded."""
    system = attack_setup.direct
    system.sandbox.behaviour = type(system.sandbox.behaviour)(require_pkce=False)
    victims = await system.begin("ada", integration_type, redirect_uri=APP_CALLBACK)
    attackers = await system.begin("mallory", integration_type, redirect_uri=APP_CALLBACK)
    code = query_of(await system.decide(attackers, account="linus"))["code"]
    call = system.service.HandleCallback(pb.HandleCallbackRequest(code=code, state=victims.state, user_id="ada"))
    try:
        await call
    except grpc.aio.AioRpcError:
        return await expect_rpc_error(call)
    return None


async def test_a_code_of_another_session_is_rejected(attack_setup: AttackSetup) -> None:
    assert await inject_code(attack_setup, "honest") == RpcError(FAILED_PRECONDITION, "PROVIDER_REJECTED")
    assert await connected_of(attack_setup.direct, "ada") == []
    assert [call.outcome for call in attack_setup.direct.sandbox.token_calls] == ["invalid_grant"]


async def test_negative_control_without_pkce_the_victim_is_connected_to_the_attackers_account(
    attack_setup: AttackSetup,
) -> None:
    assert await inject_code(attack_setup, "without_pkce") is None
    assert await connected_of(attack_setup.direct, "ada") == ["linus"]


# --- mix-up attacks --------------------------------------------------------------------------------------------------


async def mix_up(attack_setup: AttackSetup, evil_type: str, registered: str) -> str:
    """Ada begins at Mallory's provider, which redirects her to the honest one with its own state and challenge.

    `registered` is the redirect URI of our client at the honest one. Returns the URL that her browser reaches.
    """
    connect_response = await attack_setup.direct.begin("ada", evil_type)
    query = query_of(connect_response.authorization_url)
    onwards = query | {"client_id": HONEST_CLIENT, "redirect_uri": registered}
    url = f"{attack_setup.direct.sandbox_url}/oauth/authorize?{urlencode(onwards)}"
    return await decide(attack_setup.direct.browser, url, account="ada")


@pytest.fixture
def evil_forms(attack_setup: AttackSetup) -> list[dict[str, str]]:
    """Record the forms that reach the token endpoint of Mallory's provider."""
    recorded = RecordedForms()
    attack_setup.evil_sandbox.behaviour = type(attack_setup.evil_sandbox.behaviour)(faults={"token": recorded})
    return recorded.forms


async def test_a_mix_up_fails_at_the_callback_path_of_the_other_type(
    attack_setup: AttackSetup, evil_forms: list[dict[str, str]]
) -> None:
    location = await mix_up(attack_setup, "evil", callback_url("honest"))
    response = await attack_setup.direct.follow(location)
    assert (response.status_code, response.json()["reason"]) == (400, "STATE_INVALID")
    assert not evil_forms


async def test_negative_control_on_a_shared_path_the_honest_code_goes_to_the_attacker(
    attack_setup: AttackSetup, evil_forms: list[dict[str, str]]
) -> None:
    location = await mix_up(attack_setup, "evil", SHARED_CALLBACK)
    await attack_setup.direct.follow(location)
    assert [form["code"] for form in evil_forms] == [query_of(location)["code"]]


async def test_on_a_shared_path_a_declared_issuer_is_compared(
    attack_setup: AttackSetup, evil_forms: list[dict[str, str]]
) -> None:
    """RFC 9207. The negative control is the test above, where the type declares no issuer."""
    location = await mix_up(attack_setup, "named_evil", SHARED_CALLBACK)
    response = await attack_setup.direct.follow(location)
    assert (response.status_code, response.json()["reason"]) == (400, "ISSUER_MISMATCH")
    without = location.replace("iss=", "not_iss=")
    assert (await attack_setup.direct.follow(without)).json()["reason"] == "ISSUER_MISMATCH"
    assert not evil_forms


@pytest.mark.slow
async def test_a_state_is_bound_to_its_type_on_every_path(attack_setup: AttackSetup) -> None:
    connect_response = await attack_setup.direct.begin("ada", "honest")
    location = await attack_setup.direct.decide(connect_response, account="ada")
    invalid = RpcError(INVALID_ARGUMENT, "STATE_INVALID")
    for other in ("evil", "without_pkce", "sandbox", "no_such_type", "HONEST", "honest%20"):
        response = await attack_setup.direct.follow(location.replace("/callback/honest", f"/callback/{other}"))
        assert (response.status_code, response.json()["reason"]) == (400, "STATE_INVALID"), other
    query = query_of(location)
    request = pb.HandleCallbackRequest(code=query["code"], state=query["state"], integration_type="evil")
    assert await expect_rpc_error(attack_setup.direct.service.HandleCallback(request)) == invalid
    assert (await attack_setup.direct.follow(location)).json()["success"] is True


@pytest.mark.slow
async def test_a_code_is_exchanged_with_the_redirect_uri_of_its_authorization_request(
    attack_setup: AttackSetup,
) -> None:
    """The code of a callback at another path is exchanged with the redirect URI of the attempt."""
    connect_response = await attack_setup.direct.begin("ada", "honest", redirect_uri=APP_CALLBACK)
    code = query_of(await attack_setup.direct.decide(connect_response, account="ada"))["code"]
    recorded = RecordedForms()
    attack_setup.direct.sandbox.behaviour = type(attack_setup.direct.sandbox.behaviour)(faults={"token": recorded})
    elsewhere = (
        f"{callback_url('honest')}?{urlencode({'code': code, 'state': connect_response.state, 'redirect_uri': 'x'})}"
    )
    assert (await attack_setup.direct.follow(elsewhere)).json()["success"] is True
    assert [form["redirect_uri"] for form in recorded.forms] == [APP_CALLBACK]
