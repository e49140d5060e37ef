"""Each RPC calls its use case and maps the result; `test_bad_input.py` tests invalid requests."""

from datetime import UTC, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from integration_server.domain.errors import ProviderUnavailable
from integration_server.domain.integration import Integration
from integration_server.providers.declaration_tables import FieldDeclaration
from integration_server.rpc.integration_service import IntegrationService
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.inmemory_grpc import InMemoryGrpc
from tests.fakes.provider import HOUR, parameter
from tests.fakes.system import ADA, CONFIRMING, EVE, RETURN_URL, FakeSystem
from tests.unit.rpc.conftest import client_of
from tests.unit.rpc.requests import METHODS, good


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect(name="Mine", config={"a": 1})


def config_of(**content: Any) -> Struct:
    config = Struct()
    config.update(content)
    return config


def test_every_rpc_is_implemented() -> None:
    assert set(METHODS) <= set(vars(IntegrationService))


async def test_connects_over_oauth(client: InMemoryGrpc, system: FakeSystem) -> None:
    started = await client.call(
        "Connect",
        good("Connect", name="Mine", config=config_of(a=1), scopes=["write"], return_url=RETURN_URL),
    )
    assert parameter(started.authorization_url, "state") == started.state
    assert started.expire_time.ToDatetime(UTC) == system.clock() + timedelta(minutes=10)
    done = await client.call(
        "HandleCallback",
        pb.HandleCallbackRequest(
            state=started.state, code="code", integration_type="fake", user_id=ADA, query="code=code&realmId=9"
        ),
    )
    assert done.success
    assert (done.integration_id, done.reason, done.confirmation_token) == (started.integration_id, "", "")
    assert done.redirect_url.startswith(RETURN_URL)
    assert system.row(done.integration_id).scopes == ("read", "write")
    assert (await system.tokens(done.integration_id)).extras == {"realmId": "9"}


async def test_an_error_response_is_a_result(client: InMemoryGrpc) -> None:
    started = await client.call("Connect", good("Connect"))
    done = await client.call("HandleCallback", pb.HandleCallbackRequest(state=started.state, error="access_denied"))
    assert (done.success, done.reason, done.integration_id) == (False, "access_denied", 0)


async def test_a_connection_is_confirmed(system: FakeSystem) -> None:
    system = FakeSystem(dict(CONFIRMING))
    client = client_of(system)
    started = await client.call("Connect", good("Connect"))
    pending = await client.call("HandleCallback", good("HandleCallback", state=started.state, user_id=""))
    assert (pending.success, pending.reason) == (False, "confirmation_required")
    done = await client.call(
        "ConfirmConnection", good("ConfirmConnection", confirmation_token=pending.confirmation_token)
    )
    assert (done.success, done.integration_id) == (True, started.integration_id)


async def test_connects_with_an_api_key(client: InMemoryGrpc) -> None:
    request = good("ConnectWithApiKey", name="Mine", api_secret="secret", webhook_secret="hook")
    response = await client.call("ConnectWithApiKey", request)
    assert response.integration.status == integration_pb2.STATUS_ACTIVE
    assert response.integration.auth_method == integration_pb2.AUTH_METHOD_API_KEY
    for secret in (b"secret", b"hook"):
        assert secret not in response.SerializeToString()


async def test_lists_page_by_page(client: InMemoryGrpc, system: FakeSystem) -> None:
    for number in range(3):
        await system.connect_account(f"account-{number}")
    await system.connect_account("hers", EVE)
    first = await client.call("ListIntegrations", good("ListIntegrations", page_size=2))
    rest = await client.call(
        "ListIntegrations", good("ListIntegrations", page_size=2, page_token=first.next_page_token)
    )
    assert [row.integration_id for row in (*first.integrations, *rest.integrations)] == [1, 2, 3]
    assert not rest.next_page_token


async def test_returns_one_integration(client: InMemoryGrpc, integration: Integration) -> None:
    found = (await client.call("GetIntegration", good("GetIntegration"))).integration
    assert (found.integration_id, found.user_id, found.name) == (integration.integration_id, ADA, "Mine")


@pytest.mark.parametrize(
    ("given", "mask", "changed"),
    [
        ({"name": "New"}, [], {"name": "New"}),
        ({"name": ""}, [], {"name": ""}),
        ({"is_active": False}, [], {"is_active": False}),
        ({"config": config_of(b=2)}, [], {"config": {"b": 2}}),
        ({"config": config_of()}, [], {"config": {}}),
        ({}, [], {}),
        ({"name": "New", "is_active": False}, ["is_active"], {"is_active": False}),
        ({"name": "New"}, ["name", "config"], {"name": "New", "config": {}}),
        ({}, ["name"], {"name": ""}),
    ],
)
@pytest.mark.usefixtures("integration")
async def test_updates_the_masked_fields_or_else_the_present_ones(
    client: InMemoryGrpc, given: dict[str, Any], mask: list[str], changed: dict[str, Any]
) -> None:
    request = good("UpdateIntegration", **given)
    request.update_mask.paths.extend(mask)
    response = (await client.call("UpdateIntegration", request)).integration
    returned = {"name": response.name, "config": dict(response.config), "is_active": response.is_active}
    assert returned == {"name": "Mine", "config": {"a": 1}, "is_active": True, **changed}


async def test_fields_outside_the_mask_are_not_validated(client: InMemoryGrpc, integration: Integration) -> None:
    request = good("UpdateIntegration", name="a\0b", is_active=False)
    request.update_mask.paths.append("is_active")
    assert (await client.call("UpdateIntegration", request)).integration.name == integration.name


@pytest.mark.parametrize("can_revoke", [True, False])
@pytest.mark.usefixtures("integration")
async def test_disconnects_and_reports_the_revocation(
    client: InMemoryGrpc, system: FakeSystem, can_revoke: bool
) -> None:
    system.provider.can_revoke = can_revoke
    response = await client.call("DisconnectIntegration", good("DisconnectIntegration"))
    assert (response.success, response.integration_id, response.provider_revoked) == (True, 1, can_revoke)
    assert response.message
    assert not system.ids()


@pytest.mark.usefixtures("integration")
async def test_checks_one_integration(client: InMemoryGrpc, system: FakeSystem) -> None:
    assert (await client.call("CheckHealth", good("CheckHealth"))).health_check.healthy
    system.provider.verify_error = ProviderUnavailable()
    failed = (await client.call("CheckHealth", good("CheckHealth"))).health_check
    assert (failed.healthy, failed.status) == (False, integration_pb2.STATUS_ERROR)
    assert failed.error_class == "PROVIDER_UNAVAILABLE"


@pytest.mark.usefixtures("integration")
async def test_checks_all_integrations_and_the_counts_add_up(client: InMemoryGrpc, system: FakeSystem) -> None:
    system.corrupt((await system.connect_account("spoilt")).integration_id)
    off = await system.connect_account("off")
    await client.call(
        "UpdateIntegration", good("UpdateIntegration", integration_id=off.integration_id, is_active=False)
    )
    await system.begin()
    report = await client.call("CheckAllHealth", good("CheckAllHealth"))
    assert (report.total_integrations, report.healthy_count, report.error_count, report.inactive_count) == (3, 1, 1, 1)
    assert [check.integration_id for check in report.integrations] == [1, 2, 3]
    assert report.HasField("check_time")


async def test_health_is_checked_in_pages_and_all_integrations_are_counted(
    client: InMemoryGrpc, system: FakeSystem
) -> None:
    for number in range(60):
        await system.connect_account(f"account-{number}")
    for page_size, sizes in ((0, [50, 10]), (1000, [50, 10]), (25, [25, 25, 10])):
        found, token = list[int](), ""
        for size in sizes:
            report = await client.call("CheckAllHealth", good("CheckAllHealth", page_size=page_size, page_token=token))
            assert (len(report.integrations), report.total_integrations, report.healthy_count) == (size, 60, 60)
            found += [check.integration_id for check in report.integrations]
            token = report.next_page_token
        assert (found, token) == (list(range(1, 61)), "")


@pytest.mark.usefixtures("integration")
async def test_lists_checks_in_pages_with_the_error_rates(client: InMemoryGrpc, system: FakeSystem) -> None:
    await client.call("CheckHealth", good("CheckHealth"))
    system.provider.verify_error = ProviderUnavailable()
    await client.call("CheckHealth", good("CheckHealth"))
    first = await client.call("ListHealthChecks", good("ListHealthChecks", page_size=1))
    rest = await client.call("ListHealthChecks", good("ListHealthChecks", page_token=first.next_page_token))
    assert [check.healthy for check in (*first.health_checks, *rest.health_checks)] == [False, True]
    assert not rest.next_page_token
    assert [
        (error_rate.window.ToTimedelta().days, error_rate.checks, error_rate.failures, error_rate.rate)
        for error_rate in rest.error_rates
    ] == [
        (0, 2, 1, 0.5),
        (1, 2, 1, 0.5),
        (7, 2, 1, 0.5),
    ]


@pytest.mark.usefixtures("integration")
async def test_refreshes_a_valid_token_only_by_force(client: InMemoryGrpc, system: FakeSystem) -> None:
    still = await client.call("RefreshToken", good("RefreshToken"))
    forced = await client.call("RefreshToken", good("RefreshToken", force=True))
    assert [(response.success, response.refreshed) for response in (still, forced)] == [(True, False), (True, True)]
    assert forced.HasField("access_token_expire_time")


async def test_lists_integration_types(client: InMemoryGrpc, system: FakeSystem) -> None:
    system.provider.missing_settings = ["FAKE_CLIENT_ID"]
    types = (await client.call("ListIntegrationTypes", good("ListIntegrationTypes"))).integration_types
    assert [(one.integration_type, one.configured) for one in types] == [("fake", False), ("fake_key", True)]


async def test_a_type_lists_the_fields_that_a_form_asks_for(client: InMemoryGrpc, system: FakeSystem) -> None:
    shop = FieldDeclaration(help="The part before .shops.example", pattern="[a-z]+")
    region = FieldDeclaration(title="Data region", choices=["eu", "us"], default="eu")
    system.key_provider.config_fields = {"shop_name": shop, "region": region}
    system.key_provider.secret_fields = {"password": FieldDeclaration(required=False)}
    types = (await client.call("ListIntegrationTypes", good("ListIntegrationTypes"))).integration_types
    (keyed,) = (one for one in types if one.integration_type == "fake_key")
    assert [
        (config_field.name, config_field.title, config_field.required, config_field.default)
        for config_field in keyed.config_fields
    ] == [
        ("shop_name", "Shop name", True, ""),
        ("region", "Data region", False, "eu"),
    ]
    assert (keyed.config_fields[0].help, keyed.config_fields[0].pattern) == (shop.help, shop.pattern)
    assert list(keyed.config_fields[1].choices) == ["eu", "us"]
    assert [(secret_field.name, secret_field.required) for secret_field in keyed.secret_fields] == [("password", False)]


@pytest.mark.usefixtures("integration")
async def test_returns_credentials(client: InMemoryGrpc) -> None:
    response = await client.call("GetCredentials", good("GetCredentials", required_scopes=["read"]))
    assert response.credentials.bearer_token == "access-1"
    assert dict(response.credentials.headers) == {"Authorization": "Bearer access-1"}


@pytest.mark.usefixtures("integration")
async def test_a_min_ttl_of_zero_differs_from_an_unset_one(client: InMemoryGrpc, system: FakeSystem) -> None:
    system.clock.advance(HOUR - timedelta(minutes=1))
    any_life = await client.call("GetCredentials", good("GetCredentials", min_ttl=Duration()))
    assert any_life.credentials.bearer_token == "access-1"
    usual = await client.call("GetCredentials", good("GetCredentials"))
    assert usual.credentials.bearer_token == "renewed-access-1"
