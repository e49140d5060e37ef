"""Providers that are TOML files only, with the shapes of real ones, each against a server of its own.

Each runs through connect, credentials, a refresh under a race, a failure, and disconnect, on both databases.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.declared_types import CLIENT_ID, CLIENT_SECRET, Scenario, scenario
from tests.end_to_end.replicas import wait_until
from tests.end_to_end.rpc_errors import expect_rpc_error
from tests.end_to_end.small_server import Received
from tests.end_to_end.system import query_of
from tests.rsa_key import RSA_KEY

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.quick_on("sqlite")]

BASIC = base64.b64encode(b"our+id:our%3Asecret").decode()
RAW_BASIC = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
UNAUTHORIZED = (401, {"error": "unauthorized"})


async def test_json_token_requests(tmp_path: Path, shared_database_url: str) -> None:
    def handle(request: Received) -> tuple[int, Any]:
        if request.headers.get("notes-version") != "2026-06-01" and request.path != "/v1/oauth/revoke":
            return 400, {"error": "version"}
        is_client = request.headers.get("authorization") == f"Basic {BASIC}"
        if request.path == "/v1/oauth/token" and is_client and request.json["code"] == "c0de":
            return 200, {"access_token": "at-1", "workspace": {"id": "w1", "name": "Acme"}}
        if request.path == "/v1/oauth/revoke" and is_client and request.json == {"token": "at-1"}:
            return 200, {}
        is_user = request.headers.get("authorization") == "Bearer at-1"
        return (200, {"object": "user"}) if is_user else UNAUTHORIZED

    hosts = {"api.notes.example": ""}
    async with scenario(tmp_path, shared_database_url, "json_tokens", hosts, handle) as run:
        integration_id = await run.connect()
        integration = await run.clients.get(integration_id)
        assert (integration.account_id, integration.account_label) == ("w1", "Acme")
        assert await run.headers(integration_id) == {"Authorization": "Bearer at-1", "Notes-Version": "2026-06-01"}
        assert await run.call(integration_id, "/pages") == 200
        check = await run.health(integration_id)
        assert (check.healthy, check.message) == (True, "The provider accepts the credentials")
        assert await run.disconnect(integration_id) is True
        assert len(run.provider.calls("/v1/oauth/revoke")) == 1


@dataclass
class VideoServer:
    """Issues numbered tokens, with the names of `other_names.toml`; `dead` refuses each refresh."""

    issued: int = 0
    dead: bool = False
    refreshes: list[str] = field(default_factory=list)

    def __call__(self, request: Received) -> tuple[int, Any]:
        """Respond to a request."""
        if request.path == "/v2/user/info/":
            is_good = request.headers.get("authorization", "").startswith("Bearer at-") and request.form == {
                "open_id": "o1"
            }
            return (200, {}) if is_good else UNAUTHORIZED
        if request.headers.get("authorization") != f"Client {RAW_BASIC}":
            return 200, {"data": {"error_code": 10003}}
        if request.path == "/v2/oauth/token/":
            names = {"grant_type", "redirect_uri", "client_key", "auth_code", "verifier"}
            if set(request.form) != names or request.form["auth_code"] != "c0de":
                return 200, {"data": {"error_code": 10010}}
        elif request.path == "/v2/oauth/refresh/":
            self.refreshes.append(request.form["token"])
            if self.dead or request.form != {"grant_type": "renew", "token": "rt", "scope": "user.info,video.list"}:
                return 200, {"data": {"error_code": 10010}}
        self.issued += 1
        tokens = {"token": f"at-{self.issued}", "renewal": "rt", "valid_for": 3600, "renewal_valid_for": 86400 * 30}
        return 200, {"data": {**tokens, "granted": "user.info,video.list", "open_id": "o1"}}


async def test_other_names_and_a_refresh_under_a_race(tmp_path: Path, shared_database_url: str) -> None:
    server, hosts = VideoServer(), {"www.video.example": "", "open.video.example": ""}
    async with scenario(tmp_path, shared_database_url, "other_names", hosts, server) as run:
        integration_id = await run.connect()
        assert await run.headers(integration_id) == {"Authorization": "Bearer at-1"}
        run.clock.shift = timedelta(hours=2)
        found = await asyncio.gather(*(run.headers(integration_id) for _ in range(30)))
        assert found == [{"Authorization": "Bearer at-2"}] * 30
        assert server.refreshes == ["rt"]
        server.dead = True
        run.clock.shift = timedelta(hours=4)
        error = await expect_rpc_error(run.headers(integration_id))
        assert error.reason == "REAUTHORIZATION_REQUIRED"
        assert (await run.clients.get(integration_id)).status == integration_pb2.STATUS_EXPIRED
        assert await run.disconnect(integration_id) is False


async def test_a_choice_of_accounts(tmp_path: Path, shared_database_url: str) -> None:
    public = RSAKey.import_key(RSA_KEY.public_key())
    token_url = ""

    def is_client(request: Received) -> bool:
        claims = jwt.decode(request.form["client_assertion"], public, algorithms=["RS256"]).claims
        return (claims["iss"], claims["sub"], claims["aud"]) == (CLIENT_ID, CLIENT_ID, token_url)

    def handle(request: Received) -> tuple[int, Any]:
        if request.path in {"/auth/oauth/token", "/auth/oauth/revoke"}:
            if not is_client(request):
                return 401, {"error": "invalid_client"}
            return 200, {"access_token": "at-1", "refresh_token": "rt-1", "expires_in": 3600}
        if request.headers.get("authorization") != "Bearer at-1":
            return UNAUTHORIZED
        sites = [{"id": "s1", "name": "One"}, {"id": "s2", "name": "Two"}]
        return 200, {"sites": sites} if request.path.endswith("accessible-resources") else {"me": 1}

    hosts = {"auth.tracker.example": "/auth", "api.tracker.example": "/api"}
    async with scenario(tmp_path, shared_database_url, "choice_of_sites", hosts, handle) as run:
        token_url = f"{run.provider.url}/auth/oauth/token"
        issuer = f"{run.provider.url}/auth"
        integration_id = await run.connect({"site": "s2"}, {"iss": issuer})
        integration = await run.clients.get(integration_id)
        assert (integration.account_id, integration.account_label) == ("s2", "Two")
        assert await run.call(integration_id, "/issues") == 200
        assert run.provider.received[-1].path == "/api/ex/s2/rest/issues"
        begun = await run.clients.begin("ada", "choice_of_sites")
        callback = pb.HandleCallbackRequest(
            state=query_of(begun.authorization_url)["state"], code="c0de", iss=issuer, user_id="ada"
        )
        error = await expect_rpc_error(run.clients.service.HandleCallback(callback))
        assert (error.reason, "s1 (One), s2 (Two)" in error.message) == ("ACCOUNT_NOT_CHOSEN", True)
        assert await run.disconnect(integration_id) is True


@pytest.mark.slow
async def test_the_region_of_a_callback(tmp_path: Path, shared_database_url: str) -> None:
    def handle(request: Received) -> tuple[int, Any]:
        if request.path == "/eu/oauth/v2/token":
            return 200, {"access_token": "at-1", "refresh_token": "rt-1", "expires_in": 3600, "api_domain": "eu-api"}
        if request.path == "/eu/oauth/v2/token/revoke":
            return (200, {}) if (request.method, request.query) == ("DELETE", {"token": "rt-1"}) else UNAUTHORIZED
        is_user = request.headers.get("authorization") == "Suite-oauthtoken at-1"
        return (200, {"org": [{"id": "9"}]}) if is_user and request.path.startswith("/eu-api/crm") else UNAUTHORIZED

    hosts = {
        "accounts.suite.example": "/global",
        "{accounts_server}": "/{accounts_server}",
        "{api_domain}": "/{api_domain}",
    }
    async with scenario(tmp_path, shared_database_url, "region_of_callback", hosts, handle) as run:
        integration_id = await run.connect(callback={"accounts-server": "eu"})
        assert (await run.clients.get(integration_id)).account_id == "9"
        assert await run.headers(integration_id) == {"Authorization": "Suite-oauthtoken at-1"}
        assert await run.call(integration_id, "/Leads") == 200
        assert await run.disconnect(integration_id) is True


@dataclass
class PartnerServer:
    """Issues tokens to the client "abc" for an hour; `refuses` makes it refuse the client."""

    token_requests: int = 0
    refuses: bool = False

    def __call__(self, request: Received) -> tuple[int, Any]:
        """Respond to a request."""
        if request.path == "/login/acme/oauth2/token":
            self.token_requests += 1
            if self.refuses or (request.form.get("client_id"), request.form.get("client_secret")) != ("abc", "s-1"):
                return 401, {"error": "invalid_client"}
            return 200, {"access_token": f"at-{self.token_requests}", "expires_in": 3600}
        is_good = request.headers.get("authorization", "").startswith("Bearer at-")
        return (200, {"id": "c-1", "name": "Acme"}) if is_good else UNAUTHORIZED


async def test_client_credentials_and_a_refresh_under_a_race(tmp_path: Path, shared_database_url: str) -> None:
    server, hosts = PartnerServer(), {"login.partner.example": "/login", "api.partner.example": ""}
    async with scenario(tmp_path, shared_database_url, "own_client", hosts, server) as run:
        fields: dict[str, Any] = {"config": {"tenant": "acme"}}
        good = {"client_id": "abc", "client_secret": "s-1"}
        integration = await run.connect_key("", secret_fields=good, **fields)
        integration_id = integration.integration_id
        assert (integration.account_id, integration.status) == ("c-1", integration_pb2.STATUS_ACTIVE)
        assert list(integration.scopes) == ["orders", "stock"]
        assert await run.headers(integration_id) == {"Authorization": "Bearer at-1"}
        run.clock.shift = timedelta(hours=2)
        assert (
            await asyncio.gather(*(run.headers(integration_id) for _ in range(30)))
            == [{"Authorization": "Bearer at-2"}] * 30
        )
        assert server.token_requests == 2
        wrong = await expect_rpc_error(run.connect_key("", secret_fields={**good, "client_secret": "x"}, **fields))
        assert wrong.reason == "PROVIDER_REJECTED"
        server.refuses = True
        run.clock.shift = timedelta(hours=4)
        assert (await expect_rpc_error(run.headers(integration_id))).reason == "REAUTHORIZATION_REQUIRED"
        server.refuses = False
        again = await run.connect_key("", secret_fields=good, integration_id=integration_id)
        assert again.status == integration_pb2.STATUS_ACTIVE
        assert (await expect_rpc_error(run.clients.begin("ada", "own_client"))).reason == "INVALID_FIELD"


@dataclass
class DeviceServer:
    """A service of devices with the answers of two real ones: `errors` has theirs. Decides at the second request."""

    errors: Mapping[str, tuple[int, Any]]
    begun: tuple[int, Any]
    polls: int = 0
    issued: int = 0
    denies: bool = False
    dead: bool = False

    def __call__(self, request: Received) -> tuple[int, Any]:
        """Respond to a request."""
        if request.path in {"/oauth/device/code", "/graph/v20.0/device/login"}:
            self.polls = 0
            return self.begun
        if "refresh_token" in request.form and request.form.get("grant_type") == "refresh_token":
            return (400, {"error": "invalid_grant"}) if self.dead else self.tokens()
        if request.path in {"/oauth/token", "/graph/v20.0/device/login_status"}:
            self.polls += 1
            if self.polls == 1 and not self.denies:
                return self.errors["pending"]
            return self.errors["denied"] if self.denies else self.tokens()
        if request.path == "/oauth/revoke":
            return 200, {}
        is_user = request.headers.get("authorization", "").startswith("Bearer at-")
        return (200, {"sub": "u-1", "id": "u-1", "email": "ada@video.example"}) if is_user else UNAUTHORIZED

    def tokens(self) -> tuple[int, Any]:
        """The next tokens."""
        self.issued += 1
        return 200, {"access_token": f"at-{self.issued}", "refresh_token": "rt", "expires_in": 3600}


def is_status(run: Scenario, integration_id: int, status: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        listed = await run.clients.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"))
        found = {integration.integration_id: integration.status for integration in listed.integrations}
        return found.get(integration_id, integration_pb2.STATUS_UNSPECIFIED) == status

    return check


VIDEO = DeviceServer(
    {
        "pending": (428, {"error": "authorization_pending", "error_description": "Precondition Required"}),
        "denied": (403, {"error": "access_denied", "error_description": "Forbidden"}),
    },
    (200, {"device_code": "4/4-GMMhm", "user_code": "GQVQ-JKEC", "verification_url": "https://video.example/device"}),
)
SOCIAL = DeviceServer(
    {
        "pending": (400, {"error": {"code": 31, "error_subcode": 1349174}}),
        "denied": (400, {"error": {"code": 31, "error_subcode": 1349152}}),
    },
    (200, {"login": {"code": "92a2b2e351", "user_code": "A1NWZ9", "uri": "https://social.example/device"}}),
)
_DEVICE_HOSTS = {
    "oauth.video.example": "/oauth",
    "openid.video.example": "/openid",
    "video.example/api": "/api",
    "graph.social.example": "/graph",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["code_on_a_phone", "numbered_errors"])
async def test_a_code_that_is_entered_on_another_device(tmp_path: Path, shared_database_url: str, name: str) -> None:
    server = deepcopy(VIDEO if name == "code_on_a_phone" else SOCIAL)
    body = server.begun[1].get("login", server.begun[1])
    body["interval" if name == "code_on_a_phone" else "every"] = 1
    async with scenario(tmp_path, shared_database_url, name, _DEVICE_HOSTS, server) as run:
        begun = await run.clients.begin("ada", name)
        assert (begun.user_code, begun.verification_uri) == (
            body["user_code"],
            body.get("verification_url") or body["uri"],
        )
        integration_id = begun.integration_id
        await wait_until(is_status(run, integration_id, integration_pb2.STATUS_ACTIVE))
        assert (await run.clients.get(integration_id)).account_id == "u-1"
        assert await run.headers(integration_id) == {"Authorization": "Bearer at-1"}
        run.clock.shift = timedelta(hours=2)
        found = await asyncio.gather(*(run.headers(integration_id) for _ in range(30)))
        assert (found, server.issued) == ([{"Authorization": "Bearer at-2"}] * 30, 2)
        server.dead = True
        run.clock.shift = timedelta(hours=4)
        assert (await expect_rpc_error(run.headers(integration_id))).reason == "REAUTHORIZATION_REQUIRED"
        server.denies = True
        again = await run.clients.begin("ada", name, integration_id=integration_id)
        result = pb.HandleCallbackRequest(state=again.state, user_id="ada")

        async def is_over() -> bool:
            try:
                return (await run.clients.service.HandleCallback(result)).reason != "authorization_pending"
            except grpc.aio.AioRpcError:
                return True

        await wait_until(is_over)
        error = await expect_rpc_error(run.clients.service.HandleCallback(result))
        assert (error.reason, error.message) == ("PROVIDER_REJECTED", "the provider rejected the device code")
        assert (await run.clients.get(integration_id)).status == integration_pb2.STATUS_EXPIRED
        await run.disconnect(integration_id)


@pytest.mark.slow
async def test_two_keys_in_headers(tmp_path: Path, shared_database_url: str) -> None:
    def handle(request: Received) -> tuple[int, Any]:
        names = ("x-api-key", "x-application-key", "x-version")
        is_good = [request.headers.get(name) for name in names] == ["k-1", "0a1b2c3d", "2026-01"]
        return (200, {}) if is_good and request.path.startswith("/eu/") else (403, {})

    async with scenario(
        tmp_path, shared_database_url, "two_headers", {"{region}.monitor.example": "/{region}"}, handle
    ) as run:
        good = {"config": {"region": "eu", "mine": [1]}, "secret_fields": {"application_key": "0a1b2c3d"}}
        integration = await run.connect_key("k-1", **good)
        assert dict(integration.config)["mine"][0] == 1
        assert (await run.headers(integration.integration_id))["X-Application-Key"] == "0a1b2c3d"
        assert await run.call(integration.integration_id, "/metrics") == 200
        changes: list[dict[str, Any]] = [
            {"secret_fields": {"application_key": "wrong"}},
            {"secret_fields": {}},
            {"secret_fields": {"application_key": "0a1b2c3d", "more": "x"}},
            {"config": {"region": "asia"}},
        ]
        for change in changes:
            error = await expect_rpc_error(run.connect_key("k-1", **{**good, **change}))
            assert error.reason == "INVALID_FIELD", change
        error = await expect_rpc_error(run.connect_key("k-2", **good))
        assert error.reason == "PROVIDER_REJECTED"
        types = await run.clients.service.ListIntegrationTypes(pb.ListIntegrationTypesRequest(page_size=200))
        (listed,) = (
            integration_type
            for integration_type in types.integration_types
            if integration_type.integration_type == "two_headers"
        )
        assert [secret_field.name for secret_field in listed.secret_fields] == ["application_key"]
        assert {config_field.name: config_field.required for config_field in listed.config_fields} == {
            "region": False,
            "team": False,
        }


async def test_basic_authentication_of_a_help_desk(tmp_path: Path, shared_database_url: str) -> None:
    expected = "Basic " + base64.b64encode(b"ada@acme.example/token:t0ken").decode()

    def handle(request: Received) -> tuple[int, Any]:
        is_good = request.headers.get("authorization") == expected and request.path.startswith("/acme/")
        return (200, {"user": {"id": 5, "email": "ada@acme.example"}}) if is_good else UNAUTHORIZED

    hosts = {"{subdomain}.desk.example": "/{subdomain}"}
    async with scenario(tmp_path, shared_database_url, "email_and_token", hosts, handle) as run:
        config = {"subdomain": "acme", "email": "ada@acme.example"}
        integration = await run.connect_key("t0ken", config=config)
        assert integration.account_id == "5"
        assert await run.headers(integration.integration_id) == {"Authorization": expected}
        update = pb.UpdateIntegrationRequest(
            user_id="ada", integration_id=integration.integration_id, config={**config, "subdomain": "evil"}
        )
        await run.clients.service.UpdateIntegration(update)
        assert await run.call(integration.integration_id, "/tickets") == 200
        assert not [one for one in run.provider.received if one.path.startswith("/evil")]


@pytest.mark.slow
async def test_a_key_in_the_path_and_no_verification(tmp_path: Path, shared_database_url: str) -> None:
    def handle(request: Received) -> tuple[int, Any]:
        is_good = request.path.startswith("/bot123:abc/")
        return (200, {"ok": True, "result": {"id": 7}}) if is_good else (404, {"ok": False, "error_code": 404})

    async with scenario(tmp_path, shared_database_url, "key_in_path", {"api.bots.example": ""}, handle) as run:
        integration = await run.connect_key("123:abc")
        assert (await run.headers(integration.integration_id)) == {}
        assert await run.call(integration.integration_id, "/getMe") == 200
        assert (await expect_rpc_error(run.connect_key("123:wrong"))).reason == "PROVIDER_REJECTED"
    async with scenario(tmp_path, shared_database_url, "short_forms", {}, handle) as run:
        integration = await run.connect_key("k")
        check = await run.health(integration.integration_id)
        assert check.healthy
        assert check.message.startswith("Not verified: ")
