"""Attacks on the flow between app, browser and provider, each beside a twin in which its defence is missing.

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
from integration_server.sandbox import Sandbox, decide, run_sandbox
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.databases import wipe
from tests.end_to_end.faults import Recorded
from tests.end_to_end.refusals import FAILED_PRECONDITION, INVALID_ARGUMENT, Refusal, refusal_of
from tests.end_to_end.system import (
    APP_CALLBACK,
    BROWSER,
    PUBLIC_URL,
    RETURN_URL,
    System,
    own_callback,
    query_of,
    running_system,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

HONEST_CLIENT = "honest-client"
SHARED_CALLBACK = f"{PUBLIC_URL}/api/v1/integrations/callback"
MISMATCH = Refusal(grpc.StatusCode.PERMISSION_DENIED, "USER_MISMATCH")


def register_types(evil_url: str, factory: ProviderFactory, honest_url: str) -> None:
    """One honest provider that does not name itself, one without PKCE, and Mallory's with and without an issuer."""

    class Honest(OAuth2Provider):
        integration_type = "honest"
        oauth_authorize_url = f"{honest_url}/oauth/authorize"
        oauth_token_url = f"{honest_url}/oauth/token"
        verify_url = f"{honest_url}/userinfo"
        account_id_field = "sub"
        required_scopes = ("read",)

    class WithoutPkce(Honest):
        integration_type = "without_pkce"
        uses_pkce = False

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
class World:
    """Two servers, one of which has every connection confirmed; the honest provider is the sandbox of each."""

    direct: System
    careful: System
    evil_sandbox: Sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_world(shared_database_url: str) -> AsyncIterator[World]:
    evil = Sandbox()
    environment = {
        f"{name}_CLIENT_{part}": value
        for name in ("HONEST", "WITHOUT_PKCE", "EVIL", "NAMED_EVIL")
        for part, value in (("ID", HONEST_CLIENT), ("SECRET", "the-secret-of-honest"))
    }
    async with run_sandbox(evil) as evil_url:
        running = partial(
            running_system,
            shared_database_url,
            environment=environment,
            further_providers=[partial(register_types, evil_url)],
        )
        async with running() as direct, running(DIRECT_COMPLETION="false") as careful:
            for system in (direct, careful):
                redirects = (own_callback("honest"), own_callback("without_pkce"), SHARED_CALLBACK, APP_CALLBACK)
                system.sandbox.register_client(HONEST_CLIENT, "the-secret-of-honest", redirects)
            yield World(direct, careful, evil)


@pytest_asyncio.fixture(loop_scope="module")
async def world(shared_world: World, shared_database_url: str) -> World:
    """As if it were new."""
    await wipe(shared_database_url)
    shared_world.direct.forget()
    shared_world.careful.forget()
    shared_world.evil_sandbox.token_calls.clear()
    return shared_world


async def connected_of(system: System, user_id: str) -> list[str]:
    """The accounts that a user has connected."""
    listed = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id=user_id))
    return [row.account_id for row in listed.integrations if row.is_connected]


# --- whoever finishes ------------------------------------------------------------------------------------------------


async def test_a_victim_who_finishes_the_attackers_flow_gives_nothing_away(world: World) -> None:
    """Session fixation: Mallory begins, and has Ada consent with her account."""
    begun = await world.careful.begin("mallory", return_url=RETURN_URL)
    arrived = await world.careful.follow(await world.careful.decide(begun, account="ada"), BROWSER)
    token = query_of(arrived.headers["Location"])["confirmation_token"]  # in Ada's browser, for the app's backend
    request = pb.ConfirmConnectionRequest(confirmation_token=token, user_id="ada")
    assert await refusal_of(world.careful.service.ConfirmConnection(request)) == MISMATCH
    assert await connected_of(world.careful, "mallory") == []
    assert not world.careful.sandbox.token_calls


async def test_an_app_that_names_its_user_needs_no_confirmation_against_it(world: World) -> None:
    begun = await world.direct.begin("mallory", redirect_uri=APP_CALLBACK)
    query = query_of(await world.direct.decide(begun, account="ada"))
    request = pb.HandleCallbackRequest(code=query["code"], state=query["state"], iss=query["iss"], user_id="ada")
    assert await refusal_of(world.direct.service.HandleCallback(request)) == MISMATCH
    assert await connected_of(world.direct, "mallory") == []
    assert not world.direct.sandbox.token_calls


async def test_without_the_finisher_check_the_attacker_has_the_victims_account(world: World) -> None:
    begun = await world.direct.begin("mallory", return_url=RETURN_URL)
    await world.direct.follow(await world.direct.decide(begun, account="ada"), BROWSER)
    assert await connected_of(world.direct, "mallory") == ["ada"]
    assert await world.direct.bearer_token(begun.integration_id, "mallory")


async def test_an_attacker_does_not_finish_what_the_victim_has_begun(world: World) -> None:
    """Mallory got hold of the whole redirect, code and state, before Ada's browser followed it."""
    begun = await world.careful.begin("ada", redirect_uri=APP_CALLBACK)
    query = query_of(await world.careful.decide(begun, account="ada"))
    stolen = pb.HandleCallbackRequest(code=query["code"], state=query["state"], iss=query["iss"], user_id="mallory")
    assert await refusal_of(world.careful.service.HandleCallback(stolen)) == MISMATCH
    stolen.user_id = ""
    held = await world.careful.service.HandleCallback(stolen)
    confirm = pb.ConfirmConnectionRequest(confirmation_token=held.confirmation_token, user_id="mallory")
    assert await refusal_of(world.careful.service.ConfirmConnection(confirm)) == MISMATCH
    assert not world.careful.sandbox.token_calls
    assert await connected_of(world.careful, "mallory") == []


# --- whose code ------------------------------------------------------------------------------------------------------


async def inject_code(world: World, integration_type: str) -> Refusal | None:
    """Ada's state with a code that Mallory got for an account of his own. None: it went through."""
    system = world.direct
    system.sandbox.behaviour = type(system.sandbox.behaviour)(require_pkce=False)
    victims = await system.begin("ada", integration_type, redirect_uri=APP_CALLBACK)
    attackers = await system.begin("mallory", integration_type, redirect_uri=APP_CALLBACK)
    code = query_of(await system.decide(attackers, account="linus"))["code"]
    call = system.service.HandleCallback(pb.HandleCallbackRequest(code=code, state=victims.state, user_id="ada"))
    try:
        await call
    except grpc.aio.AioRpcError:
        return await refusal_of(call)
    return None


async def test_a_code_of_another_session_is_refused(world: World) -> None:
    assert await inject_code(world, "honest") == Refusal(FAILED_PRECONDITION, "PROVIDER_REJECTED")
    assert await connected_of(world.direct, "ada") == []
    assert [call.outcome for call in world.direct.sandbox.token_calls] == ["invalid_grant"]


async def test_without_pkce_the_victim_is_connected_to_the_attackers_account(world: World) -> None:
    assert await inject_code(world, "without_pkce") is None
    assert await connected_of(world.direct, "ada") == ["linus"]


# --- whose answer ----------------------------------------------------------------------------------------------------


async def mix_up(world: World, evil_type: str, registered: str) -> str:
    """Ada begins at Mallory's provider, which sends her on to the honest one with its own state and challenge.

    `registered` is the redirect address that our client has at the honest one. Where her browser ends up.
    """
    begun = await world.direct.begin("ada", evil_type)
    query = query_of(begun.authorization_url)
    onwards = query | {"client_id": HONEST_CLIENT, "redirect_uri": registered}
    url = f"{world.direct.sandbox_url}/oauth/authorize?{urlencode(onwards)}"
    return await decide(world.direct.browser, url, account="ada")


@pytest.fixture
def evil_forms(world: World) -> list[dict[str, str]]:
    """What reaches the token endpoint of Mallory's provider."""
    recorded = Recorded()
    world.evil_sandbox.behaviour = type(world.evil_sandbox.behaviour)(faults={"token": recorded})
    return recorded.forms


async def test_a_mix_up_ends_at_the_path_of_the_type_that_was_not_begun(
    world: World, evil_forms: list[dict[str, str]]
) -> None:
    location = await mix_up(world, "evil", own_callback("honest"))
    answer = await world.direct.follow(location)
    assert (answer.status_code, answer.json()["reason"]) == (400, "STATE_INVALID")
    assert not evil_forms


async def test_on_one_path_for_all_types_the_honest_code_goes_to_the_attacker(
    world: World, evil_forms: list[dict[str, str]]
) -> None:
    location = await mix_up(world, "evil", SHARED_CALLBACK)
    await world.direct.follow(location)
    assert [form["code"] for form in evil_forms] == [query_of(location)["code"]]


async def test_on_one_path_for_all_types_a_declared_issuer_is_compared(
    world: World, evil_forms: list[dict[str, str]]
) -> None:
    """RFC 9207: the twin is the test above, where the type declares no issuer."""
    location = await mix_up(world, "named_evil", SHARED_CALLBACK)
    answer = await world.direct.follow(location)
    assert (answer.status_code, answer.json()["reason"]) == (400, "ISSUER_MISMATCH")
    without = location.replace("iss=", "not_iss=")
    assert (await world.direct.follow(without)).json()["reason"] == "ISSUER_MISMATCH"
    assert not evil_forms


async def test_a_state_is_bound_to_its_type_on_every_path(world: World) -> None:
    begun = await world.direct.begin("ada", "honest")
    location = await world.direct.decide(begun, account="ada")
    invalid = Refusal(INVALID_ARGUMENT, "STATE_INVALID")
    for other in ("evil", "without_pkce", "sandbox", "no_such_type", "HONEST", "honest%20"):
        answer = await world.direct.follow(location.replace("/callback/honest", f"/callback/{other}"))
        assert (answer.status_code, answer.json()["reason"]) == (400, "STATE_INVALID"), other
    query = query_of(location)
    request = pb.HandleCallbackRequest(code=query["code"], state=query["state"], integration_type="evil")
    assert await refusal_of(world.direct.service.HandleCallback(request)) == invalid
    assert (await world.direct.follow(location)).json()["success"] is True


async def test_a_code_is_traded_with_the_redirect_address_that_was_begun_with(world: World) -> None:
    """An answer that arrives elsewhere is traded under the address that the attempt has, not under that one."""
    begun = await world.direct.begin("ada", "honest", redirect_uri=APP_CALLBACK)
    code = query_of(await world.direct.decide(begun, account="ada"))["code"]
    recorded = Recorded()
    world.direct.sandbox.behaviour = type(world.direct.sandbox.behaviour)(faults={"token": recorded})
    elsewhere = f"{own_callback('honest')}?{urlencode({'code': code, 'state': begun.state, 'redirect_uri': 'x'})}"
    assert (await world.direct.follow(elsewhere)).json()["success"] is True
    assert [form["redirect_uri"] for form in recorded.forms] == [APP_CALLBACK]
