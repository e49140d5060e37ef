"""Connections over the whole OAuth flow: completion, errors, and the integration of an account."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio

from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.rpc_errors import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    RpcError,
    expect_rpc_error,
    invalid,
)
from tests.end_to_end.system import (
    APP_CALLBACK,
    BROWSER,
    CONFIRMING,
    DEFAULT_RETURN_URL,
    JSON,
    RETURN_URL,
    System,
    query_of,
    run_system,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]


def callback_of(location: str, **fields: str) -> pb.HandleCallbackRequest:
    """The `HandleCallback` request for a redirect to the app's own callback."""
    query = query_of(location)
    known: dict[str, Any] = {name: query[name] for name in ("code", "state", "iss", "error") if name in query}
    return pb.HandleCallbackRequest(**(known | fields))


async def ids_of(system: System, user_id: str = "ada") -> list[int]:
    """The ids of a user's integrations."""
    listed = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id=user_id))
    return [row.integration_id for row in listed.integrations]


# --- redirects of the browser ----------------------------------------------------------------------------------------


async def test_a_browser_is_redirected_and_a_program_gets_json(system: System) -> None:
    for_browser = await system.begin(return_url=RETURN_URL)
    redirected = await system.follow(await system.decide(for_browser, account="ada"), BROWSER)
    assert redirected.status_code == 303
    assert redirected.headers["Location"] == (
        f"{RETURN_URL}&success=true&integration_id={for_browser.integration_id}&integration_type=sandbox"
    )

    for_program = await system.begin(return_url=RETURN_URL)
    responded = await system.follow(await system.decide(for_program, account="grace"), JSON)
    assert responded.status_code == 200
    document = responded.json()
    assert (document["success"], document["integration_id"]) == (True, for_program.integration_id)
    assert document["redirect_url"].startswith(RETURN_URL)

    without_return_url = await system.begin()
    page = await system.follow(await system.decide(without_return_url, account="linus"), BROWSER)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "Connected" in page.text
    for response in (redirected, responded, page):
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Referrer-Policy"] == "no-referrer"


async def test_the_documented_callback_path_without_a_type_is_served_too(system: System) -> None:
    connect_response = await system.begin()
    location = await system.decide(connect_response)
    response = await system.follow(location.replace("/callback/sandbox?", "/callback?"))
    assert response.json()["success"] is True


async def test_an_app_may_have_its_own_callback(system: System) -> None:
    connect_response = await system.begin(redirect_uri=APP_CALLBACK)
    location = await system.decide(connect_response, account="ada")
    assert location.startswith(APP_CALLBACK)
    response = await system.service.HandleCallback(callback_of(location, user_id="ada"))
    assert (response.success, response.integration_id) == (True, connect_response.integration_id)


async def test_a_denied_consent_is_reported_and_the_user_can_still_allow(system: System) -> None:
    connect_response = await system.begin(return_url=RETURN_URL)
    location = await system.decide(connect_response, allow=False)
    response = await system.follow(location, BROWSER)
    assert response.status_code == 303
    assert response.headers["Location"] == (f"{RETURN_URL}&success=false&reason=access_denied&integration_type=sandbox")
    assert not (await system.get(connect_response.integration_id)).is_connected
    assert not system.sandbox.token_calls

    again = await system.follow(location, BROWSER)
    assert again.headers["Location"] == response.headers["Location"]
    allowed = await system.follow(await system.decide(connect_response, account="ada"), BROWSER)
    assert query_of(allowed.headers["Location"])["success"] == "true"
    assert (await system.get(connect_response.integration_id)).is_connected


async def test_a_browser_returns_to_the_app_also_after_a_failure(system: System) -> None:
    connect_response = await system.begin(return_url=RETURN_URL)
    location = await system.decide(connect_response, account="ada")
    code = query_of(location)["code"]
    for wrong, reason in ((f"{code}x", "PROVIDER_REJECTED"), (code, "STATE_USED")):
        response = await system.follow(location.replace(f"code={code}", f"code={wrong}"), BROWSER)
        assert response.status_code == 303
        assert response.headers["Location"] == (f"{RETURN_URL}&success=false&reason={reason}&integration_type=sandbox")
    assert len(system.sandbox.token_calls) == 1


@pytest.mark.slow
async def test_a_browser_without_a_known_attempt_continues_at_the_default_return_url(
    confirming_system: System,
) -> None:
    connect_response = await confirming_system.begin()
    location = await confirming_system.decide(connect_response)
    forged = await confirming_system.follow(location.replace("state=", "state=A"), BROWSER)
    assert forged.headers["Location"] == f"{DEFAULT_RETURN_URL}?success=false&reason=STATE_INVALID"
    held = await confirming_system.follow(location, BROWSER)
    assert held.headers["Location"].startswith(f"{DEFAULT_RETURN_URL}?confirmation_token=")
    assert (await confirming_system.follow(location, BROWSER)).headers["Location"] == held.headers["Location"]


async def test_a_connection_that_nobody_could_confirm_is_refused(database_url: str) -> None:
    async with run_system(database_url, SKIP_CONFIRMATION="false") as system:
        assert await expect_rpc_error(system.begin()) == invalid("return_url")
        assert (await system.begin(return_url=RETURN_URL)).state
        assert (await system.begin(redirect_uri=APP_CALLBACK)).state


# --- completion ------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module")
async def confirming_system(database_url: str) -> AsyncIterator[System]:
    """A system that requires a confirmation by the signed-in user."""
    async with run_system(database_url, **CONFIRMING) as system:
        yield system


@pytest.mark.slow
async def test_a_callback_without_a_user_requires_confirmation(confirming_system: System) -> None:
    system = confirming_system
    connect_response = await system.begin("ada", return_url=RETURN_URL)
    response = await system.follow(await system.decide(connect_response, account="ada"), BROWSER)
    assert response.status_code == 303
    token = query_of(response.headers["Location"])["confirmation_token"]
    assert not system.sandbox.token_calls
    assert (await system.get(connect_response.integration_id)).status == integration_pb2.STATUS_PENDING

    def confirm(user_id: str, token: str = token) -> Awaitable[Any]:
        request = pb.ConfirmConnectionRequest(confirmation_token=token, user_id=user_id)
        return system.service.ConfirmConnection(request)

    invalid = RpcError(INVALID_ARGUMENT, "CONFIRMATION_INVALID")
    assert await expect_rpc_error(confirm("mallory")) == RpcError(grpc.StatusCode.PERMISSION_DENIED, "USER_MISMATCH")
    assert await expect_rpc_error(confirm("ada", token[:-1] + "!")) == invalid
    assert await expect_rpc_error(confirm("ada", connect_response.state)) == invalid

    outcome = await confirm("ada")
    assert (outcome.success, outcome.integration_id) == (True, connect_response.integration_id)
    assert (await system.get(connect_response.integration_id)).status == integration_pb2.STATUS_ACTIVE
    assert await expect_rpc_error(confirm("ada")) == invalid
    assert [call.outcome for call in system.sandbox.token_calls] == ["ok"]


@pytest.mark.slow
async def test_a_confirmation_expires_after_ten_minutes(confirming_system: System) -> None:
    connect_response = await confirming_system.begin("ada")
    response = await confirming_system.follow(await confirming_system.decide(connect_response))
    assert response.json()["success"] is False
    request = pb.ConfirmConnectionRequest(confirmation_token=response.json()["confirmation_token"], user_id="ada")
    confirming_system.clock.shift = timedelta(minutes=10)
    late = await expect_rpc_error(confirming_system.service.ConfirmConnection(request))
    assert late == RpcError(INVALID_ARGUMENT, "CONFIRMATION_INVALID")
    assert not confirming_system.sandbox.token_calls


async def test_a_user_id_in_a_callback_is_always_compared(system: System) -> None:
    connect_response = await system.begin("ada", redirect_uri=APP_CALLBACK)
    location = await system.decide(connect_response, account="ada")
    stolen = callback_of(location, user_id="mallory")
    mismatch = RpcError(grpc.StatusCode.PERMISSION_DENIED, "USER_MISMATCH")
    assert await expect_rpc_error(system.service.HandleCallback(stolen)) == mismatch
    assert not system.sandbox.token_calls
    finished = await system.service.HandleCallback(callback_of(location, user_id="ada"))
    assert finished.success


async def test_negative_control_without_the_comparison_the_same_callback_connects(system: System) -> None:
    """Without a user id, and with `SKIP_CONFIRMATION`, another user's callback succeeds."""
    connect_response = await system.begin("ada", redirect_uri=APP_CALLBACK)
    location = await system.decide(connect_response, account="ada")
    assert (await system.service.HandleCallback(callback_of(location))).success


async def test_another_issuer_is_rejected_before_any_token_request(system: System) -> None:
    connect_response = await system.begin(redirect_uri=APP_CALLBACK)
    location = await system.decide(connect_response)
    mismatch = RpcError(INVALID_ARGUMENT, "ISSUER_MISMATCH")
    for issuer in ("", "https://evil.example", system.sandbox_url + "/"):
        assert await expect_rpc_error(system.service.HandleCallback(callback_of(location, iss=issuer))) == mismatch
    assert not system.sandbox.token_calls
    assert (await system.service.HandleCallback(callback_of(location))).success


# --- the integration of an account -----------------------------------------------------------------------------------


async def test_connecting_the_same_account_again_updates_its_integration(system: System) -> None:
    first = await system.connect(account="ada", name="First")
    token = await system.bearer_token(first)
    connect_response = await system.begin(name="Second")
    assert connect_response.integration_id != first
    response = await system.follow(await system.decide(connect_response, account="ada"))
    assert response.json()["integration_id"] == first
    assert await ids_of(system) == [first]
    assert await expect_rpc_error(system.get(connect_response.integration_id)) == NOT_FOUND
    assert await system.bearer_token(first) != token
    assert (await system.get(first)).name == "First"

    other_account = await system.connect(account="grace")
    assert await ids_of(system) == [first, other_account]


async def test_a_key_of_the_same_account_replaces_the_stored_key(system: System) -> None:
    def connect(key: str, integration_id: int = 0) -> Awaitable[Any]:
        return system.service.ConnectWithApiKey(
            pb.ConnectWithApiKeyRequest(
                user_id="ada", integration_type="sandbox_api_key", api_key=key, integration_id=integration_id
            )
        )

    old = system.sandbox.api_key
    first = (await connect(old.key)).integration.integration_id
    system.sandbox.api_key = replace(old, key="a-new-key")
    assert (await connect("a-new-key")).integration.integration_id == first
    system.sandbox.api_key = replace(old, key="a-newer-key")
    assert (await connect("a-newer-key", first)).integration.integration_id == first
    credentials = (
        await system.service.GetCredentials(pb.GetCredentialsRequest(integration_id=first, user_id="ada"))
    ).credentials
    assert credentials.api_key.api_key == "a-newer-key"


async def test_a_reconnection_keeps_id_name_config_and_old_credentials_until_it_completes(system: System) -> None:
    config = {"calendar": "primary"}
    integration_id = await system.connect(account="ada", name="Mine", config=config)
    token = await system.bearer_token(integration_id)
    connect_response = await system.begin(integration_id=integration_id)
    assert connect_response.integration_id == integration_id
    assert await system.bearer_token(integration_id) == token

    refused = await system.follow(await system.decide(connect_response, allow=False))
    assert refused.json()["integration_id"] == integration_id
    assert await system.bearer_token(integration_id) == token

    again = await system.begin(integration_id=integration_id)
    response = await system.follow(await system.decide(again, account="ada"))
    assert response.json()["integration_id"] == integration_id
    assert await system.bearer_token(integration_id) != token
    after = await system.get(integration_id)
    assert (after.name, dict(after.config)) == ("Mine", config)


async def test_a_reconnection_with_another_account_is_rejected_and_changes_nothing(system: System) -> None:
    integration_id = await system.connect(account="ada")
    before, token = await system.get(integration_id), await system.bearer_token(integration_id)
    connect_response = await system.begin(integration_id=integration_id, redirect_uri=APP_CALLBACK)
    location = await system.decide(connect_response, account="grace")
    refused = await expect_rpc_error(system.service.HandleCallback(callback_of(location)))
    assert refused == RpcError(FAILED_PRECONDITION, "ACCOUNT_MISMATCH")
    assert await system.get(integration_id) == before
    assert await system.bearer_token(integration_id) == token


async def test_a_reconnection_replaces_an_invalid_grant(system: System) -> None:
    integration_id = await system.connect(account="ada")
    system.sandbox.revoke_grants("ada")
    refresh = pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True)
    reauthorization_error = RpcError(FAILED_PRECONDITION, "REAUTHORIZATION_REQUIRED")
    assert await expect_rpc_error(system.service.RefreshToken(refresh)) == reauthorization_error
    assert (await system.get(integration_id)).status == integration_pb2.STATUS_EXPIRED
    calls = len(system.sandbox.token_calls)
    assert await expect_rpc_error(system.bearer_token(integration_id)) == reauthorization_error
    assert len(system.sandbox.token_calls) == calls

    connect_response = await system.begin(integration_id=integration_id)
    await system.follow(await system.decide(connect_response, account="ada"))
    assert (await system.get(integration_id)).status == integration_pb2.STATUS_ACTIVE
    assert await system.bearer_token(integration_id)


async def test_missing_scopes_are_reported(system: System) -> None:
    system.sandbox.behaviour = replace(system.sandbox.behaviour, granted_scopes=("read",))
    integration_id = await system.connect(scopes=["write"])
    integration = await system.get(integration_id)
    assert (list(integration.scopes), list(integration.missing_scopes)) == (["read"], ["write"])
    assert integration.status == integration_pb2.STATUS_ACTIVE
    assert await system.bearer_token(integration_id, required_scopes=["read"])
    missing = await expect_rpc_error(system.bearer_token(integration_id, required_scopes=["write"]))
    assert missing == RpcError(FAILED_PRECONDITION, "SCOPE_MISSING")


async def test_a_missing_required_scope_is_an_error(system: System) -> None:
    system.sandbox.behaviour = replace(system.sandbox.behaviour, granted_scopes=("write",))
    integration_id = await system.connect(scopes=["write"])
    integration = await system.get(integration_id)
    assert (integration.status, list(integration.missing_scopes)) == (integration_pb2.STATUS_ERROR, ["read"])


# --- isolation of users ----------------------------------------------------------------------------------------------


async def test_another_users_integration_has_the_same_response_as_a_missing_one(system: System) -> None:
    graces_id = await system.connect("grace", account="grace")
    before = await system.get(graces_id, "grace")
    unknown_id = graces_id + 1000
    same_id = (("x-request-id", "of-both-calls"),)
    service, key = system.service, system.sandbox.api_key.key
    calls: Sequence[tuple[Any, Any, dict[str, Any]]] = (
        (service.GetIntegration, pb.GetIntegrationRequest, {}),
        (service.UpdateIntegration, pb.UpdateIntegrationRequest, {"name": "Mine now"}),
        (service.DisconnectIntegration, pb.DisconnectIntegrationRequest, {}),
        (service.CheckHealth, pb.CheckHealthRequest, {}),
        (service.RefreshToken, pb.RefreshTokenRequest, {"force": True}),
        (service.GetCredentials, pb.GetCredentialsRequest, {}),
        (service.Connect, pb.ConnectRequest, {"integration_type": "sandbox"}),
        (
            service.ConnectWithApiKey,
            pb.ConnectWithApiKeyRequest,
            {"integration_type": "sandbox_api_key", "api_key": key},
        ),
    )
    for method, request_class, given in calls:
        responses = []
        for integration_id in (graces_id, unknown_id):
            request = request_class(integration_id=integration_id, user_id="mallory", **given)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await method(request, metadata=same_id)
            responses.append((raised.value.code(), raised.value.details(), raised.value.trailing_metadata()))
        assert responses[0] == responses[1]
        assert responses[0][0] == grpc.StatusCode.NOT_FOUND
    assert await system.get(graces_id, "grace") == before
    assert await ids_of(system, "mallory") == []
    report = await system.service.CheckAllHealth(pb.CheckAllHealthRequest(user_id="mallory"))
    assert report.total_integrations == 0


async def test_the_same_account_of_two_users_has_two_integrations(system: System) -> None:
    adas_id, graces_id = await system.connect("ada", account="ada"), await system.connect("grace", account="ada")
    assert adas_id != graces_id
    assert await system.bearer_token(adas_id, "ada") != await system.bearer_token(graces_id, "grace")


# --- single use ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_fifty_concurrent_callbacks_with_one_state_exchange_one_code(system: System) -> None:
    connect_response = await system.begin()
    location = await system.decide(connect_response, account="ada")
    responses = await asyncio.gather(*(system.follow(location) for _ in range(50)))
    reported = Counter((response.status_code, response.json().get("reason")) for response in responses)
    assert reported[200, None] >= 1
    # On a busy machine a callback may wait too long for a database connection.
    assert set(reported) <= {(200, None), (503, "STORE_UNAVAILABLE")}
    assert [(call.grant_type, call.outcome) for call in system.sandbox.token_calls] == [("authorization_code", "ok")]
    assert await ids_of(system) == [connect_response.integration_id]


async def test_an_expired_attempt_is_rejected(system: System) -> None:
    connect_response = await system.begin()
    location = await system.decide(connect_response)
    system.clock.shift = timedelta(minutes=10)
    late = await system.follow(location)
    assert (late.status_code, late.json()["reason"]) == (400, "STATE_EXPIRED")
    assert not system.sandbox.token_calls
