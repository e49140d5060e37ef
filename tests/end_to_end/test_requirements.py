"""The endpoints of the requirements, used by a backend and a browser in turn."""

from typing import Any

import httpx
import pytest

from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.rpc_errors import NOT_FOUND, expect_rpc_error
from tests.end_to_end.system import System

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]


async def test_the_nine_endpoints_meet_the_requirements(system: System) -> None:
    # POST /connect, the provider's page, GET /callback
    connect_response = await system.begin("ada", "sandbox", name="My sandbox", scopes=["write"])
    pending = await system.get(connect_response.integration_id)
    assert (pending.status, pending.is_connected) == (integration_pb2.STATUS_PENDING, False)
    response = await system.follow(await system.decide(connect_response, account="ada"))
    assert response.json()["success"] is True
    assert response.json()["integration_id"] == connect_response.integration_id
    which: dict[str, Any] = {"integration_id": connect_response.integration_id, "user_id": "ada"}

    # GET /status
    listed = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"))
    assert [row.integration_id for row in listed.integrations] == [connect_response.integration_id]

    # GET /{integration_id}
    integration = await system.get(connect_response.integration_id)
    assert integration == listed.integrations[0]
    assert integration.status == integration_pb2.STATUS_ACTIVE
    assert (integration.name, integration.account_id, integration.account_label) == (
        "My sandbox",
        "ada",
        "ada@example.com",
    )
    assert list(integration.scopes) == ["read", "write"]
    assert not integration.missing_scopes

    # PUT /{integration_id}
    config: dict[str, Any] = {"calendar": "primary", "remind": [10, 60]}
    update = pb.UpdateIntegrationRequest(**which, name="Renamed")
    update.config.update(config)
    updated = (await system.service.UpdateIntegration(update)).integration
    assert (updated.name, dict(updated.config)["calendar"]) == ("Renamed", "primary")
    assert updated == await system.get(connect_response.integration_id)

    # GET /health/{integration_id}
    check = (await system.service.CheckHealth(pb.CheckHealthRequest(**which))).health_check
    assert (check.healthy, check.status, check.error_class) == (True, integration_pb2.STATUS_ACTIVE, "")

    # GET /health/all
    report = await system.service.CheckAllHealth(pb.CheckAllHealthRequest(user_id="ada"))
    assert (report.total_integrations, report.healthy_count, report.error_count, report.inactive_count) == (1, 1, 0, 0)
    assert report.integrations[0].integration_id == connect_response.integration_id

    # POST /{integration_id}/refresh-token
    before = await system.bearer_token(connect_response.integration_id)
    untouched = await system.service.RefreshToken(pb.RefreshTokenRequest(**which))
    assert (untouched.success, untouched.refreshed) == (True, False)
    refreshed = await system.service.RefreshToken(pb.RefreshTokenRequest(**which, force=True))
    assert (refreshed.success, refreshed.refreshed) == (True, True)
    after = await system.bearer_token(connect_response.integration_id)
    assert after != before
    assert await userinfo_status(system, after) == 200

    # DELETE /{integration_id}
    gone = await system.service.DisconnectIntegration(pb.DisconnectIntegrationRequest(**which))
    assert (gone.success, gone.provider_revoked, gone.integration_id) == (True, True, connect_response.integration_id)
    assert await expect_rpc_error(system.get(connect_response.integration_id)) == NOT_FOUND
    assert await userinfo_status(system, after) == 401
    assert not system.sandbox.grants_of("ada")


async def test_an_api_key_is_verified_stored_and_returned(system: System) -> None:
    key = system.sandbox.api_key.key
    made = await system.service.ConnectWithApiKey(
        pb.ConnectWithApiKeyRequest(user_id="ada", integration_type="sandbox_api_key", name="Key", api_key=key)
    )
    integration = made.integration
    assert integration.status == integration_pb2.STATUS_ACTIVE
    assert integration.auth_method == integration_pb2.AUTH_METHOD_API_KEY
    assert integration.account_id == "acct_sandbox"
    assert key not in str(made)

    which: dict[str, Any] = {"integration_id": integration.integration_id, "user_id": "ada"}
    credentials = (await system.service.GetCredentials(pb.GetCredentialsRequest(**which))).credentials
    assert credentials.api_key.api_key == key
    assert dict(credentials.headers) == {"X-Api-Key": key}
    async with httpx.AsyncClient(base_url=system.sandbox_url, headers=dict(credentials.headers)) as backend:
        assert (await backend.get("/api/account")).status_code == 200

    check = (await system.service.CheckHealth(pb.CheckHealthRequest(**which))).health_check
    assert check.healthy
    gone = await system.service.DisconnectIntegration(pb.DisconnectIntegrationRequest(**which))
    assert gone.success
    assert await expect_rpc_error(system.get(integration.integration_id)) == NOT_FOUND


async def test_a_wrong_api_key_is_rejected_and_not_stored(system: System) -> None:
    call = system.service.ConnectWithApiKey(
        pb.ConnectWithApiKeyRequest(user_id="ada", integration_type="sandbox_api_key", api_key="wrong")
    )
    refused = await expect_rpc_error(call)
    assert refused.reason == "PROVIDER_REJECTED"
    assert "wrong" not in refused.message
    listed = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"))
    assert not listed.integrations


# The types of the requirements, except the two that are aliases, and further common ones.
REQUIRED = {
    "google_calendar",
    "google_my_business",
    "google_ads",
    "meta_business",
    "stripe",
    "sendgrid",
    "twilio",
    "square",
    "shopify",
    "acuity",
    "booksy",
    "custom",
}
FURTHER = {
    "gmail",
    "stripe_api_key",
    "mailchimp",
    "microsoft_outlook",
    "zoom",
    "slack",
    "hubspot",
    "quickbooks",
    "xero",
    "salesforce",
    "dropbox",
    "github",
    "instagram",
}


async def test_integration_types_are_listed_with_their_missing_settings(system: System) -> None:
    response = await system.service.ListIntegrationTypes(pb.ListIntegrationTypesRequest())
    types = {info.integration_type: info for info in response.integration_types}
    assert types.keys() > REQUIRED | FURTHER
    aliases = {alias: name for name, info in types.items() for alias in info.aliases}
    assert aliases == {"email_marketing": "mailchimp", "sms_marketing": "twilio"}
    assert types["sandbox"].configured
    assert list(types["sandbox"].scopes) == ["read"]
    assert list(types["sandbox_api_key"].required_fields) == ["api_key"]
    assert not types["google_calendar"].configured
    assert list(types["google_calendar"].missing_settings) == [
        "GOOGLE_CALENDAR_CLIENT_ID",
        "GOOGLE_CALENDAR_CLIENT_SECRET",
    ]


async def test_a_list_is_paged_without_gaps_or_duplicates(system: System) -> None:
    ids = [await system.connect(account=account) for account in ("ada", "grace", "linus")]
    await system.connect("somebody-else", account="ada")
    assert await pages(system, page_size=1) == [ids[:1], ids[1:2], ids[2:]]
    assert await pages(system, page_size=2) == [ids[:2], ids[2:]]
    assert await pages(system, page_size=3) == [ids]


async def pages(system: System, page_size: int) -> list[list[int]]:
    """The ids of a user's integrations, page by page."""
    found: list[list[int]] = []
    token = ""
    while token or not found:
        page = await system.service.ListIntegrations(
            pb.ListIntegrationsRequest(user_id="ada", page_size=page_size, page_token=token)
        )
        found.append([row.integration_id for row in page.integrations])
        token = page.next_page_token
    return found


async def userinfo_status(system: System, token: str) -> int:
    """The provider's status code for a bearer token."""
    response = await system.browser.get(f"{system.sandbox_url}/userinfo", headers={"Authorization": f"Bearer {token}"})
    return response.status_code
