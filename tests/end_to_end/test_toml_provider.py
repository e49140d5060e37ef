"""A provider that is declared by a TOML file and two environment variables only.

The provider is django-oauth-toolkit, an independent OAuth server that requires PKCE and rotates refresh tokens. The
server runs in its own process, migrated and configured as an operator does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.dot.server import DotServer, running_dot
from tests.end_to_end.processes import run, server_environment, serving
from tests.end_to_end.rpc_errors import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, RpcError, expect_rpc_error
from tests.end_to_end.system import BROWSER, RETURN_URL, callback_url, clients_of, query_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DotServer]:
    """The OAuth server."""
    callbacks = f"{callback_url('acme')} {callback_url('acme_without_issuer')}"
    with running_dot(tmp_path_factory.mktemp("dot"), callbacks) as server:
        yield server


@pytest.fixture
def environment(dot: DotServer, empty_database_url: str, tmp_path: Path) -> dict[str, str]:
    """The complete configuration of the server under test."""
    providers = tmp_path / "providers"
    providers.mkdir()
    (providers / "acme.toml").write_text(dot.declaration("acme"))
    without_issuer = "\n".join(
        line for line in dot.declaration("acme_without_issuer").splitlines() if not line.startswith("issuer")
    )
    (providers / "acme_without_issuer.toml").write_text(without_issuer)
    return server_environment(
        empty_database_url,
        PROVIDERS_DIR=str(providers),
        ACME_CLIENT_ID=dot.options.client_id,
        ACME_CLIENT_SECRET=dot.options.client_secret,
        ACME_WITHOUT_ISSUER_CLIENT_ID=dot.options.client_id,
        ACME_WITHOUT_ISSUER_CLIENT_SECRET=dot.options.client_secret,
    )


@pytest.mark.quick_on("sqlite")
async def test_a_toml_file_and_two_variables_add_a_working_provider(
    dot: DotServer, environment: dict[str, str], tmp_path: Path
) -> None:
    migrated = await run(tmp_path, environment, "migrate")
    assert migrated.code == 0, migrated.err
    async with (
        serving(tmp_path, environment) as server,
        clients_of(server.serving["grpc"], server.serving["sidecar"]) as clients,
    ):
        # connect
        connect_response = await clients.begin("ada", "acme", return_url=RETURN_URL)
        question = query_of(connect_response.authorization_url)
        assert question["code_challenge_method"] == "S256"
        assert question["redirect_uri"] == callback_url("acme")
        assert question["scope"] == "read offline_access"

        # callback
        location = await dot.sign_in_and_decide(connect_response.authorization_url)
        assert query_of(location)["iss"] == dot.issuer
        response = await clients.follow(location, BROWSER)
        assert response.status_code == 303, server.output
        assert query_of(response.headers["Location"])["success"] == "true"
        integration = await clients.get(connect_response.integration_id)
        assert integration.status == integration_pb2.STATUS_ACTIVE
        assert integration.account_label == dot.options.email
        assert list(integration.scopes) == ["read", "offline_access"]

        # GetCredentials
        which: dict[str, Any] = {"integration_id": connect_response.integration_id, "user_id": "ada"}
        first = (await clients.service.GetCredentials(pb.GetCredentialsRequest(**which))).credentials
        assert dict(first.headers) == {"Authorization": f"Bearer {first.bearer_token}"}
        assert await dot.accepts_token(first.bearer_token)

        # refresh twice: the second uses the refresh token of the first
        for _ in range(2):
            renewed = await clients.service.RefreshToken(pb.RefreshTokenRequest(**which, force=True))
            assert (renewed.success, renewed.refreshed) == (True, True)
        token = await clients.bearer_token(connect_response.integration_id)
        assert token != first.bearer_token
        assert await dot.accepts_token(token)
        assert not await dot.accepts_token(first.bearer_token)

        # health
        check = (await clients.service.CheckHealth(pb.CheckHealthRequest(**which))).health_check
        assert (check.healthy, check.error_class) == (True, "")

        # disconnect with revocation
        gone = await clients.service.DisconnectIntegration(pb.DisconnectIntegrationRequest(**which))
        assert (gone.success, gone.provider_revoked) == (True, True)
        assert not await dot.accepts_token(token)
        assert await expect_rpc_error(clients.get(connect_response.integration_id)) == NOT_FOUND

        # a denied consent is a result, after which the user can still allow
        refused = await clients.begin("ada", "acme_without_issuer", return_url=RETURN_URL)
        location = await dot.sign_in_and_decide(refused.authorization_url, allow=False)
        back = query_of((await clients.follow(location, BROWSER)).headers["Location"])
        assert (back["success"], back["reason"]) == ("false", "access_denied")
        assert (await clients.get(refused.integration_id)).status == integration_pb2.STATUS_PENDING

        # django-oauth-toolkit sends no issuer in an error response, although RFC 9207 §2 requires it. With a declared
        # issuer, the sender of the error is unknown: the attempt stays until it expires.
        unnamed = await clients.begin("ada", "acme")
        location = await dot.sign_in_and_decide(unnamed.authorization_url, allow=False)
        assert "iss" not in query_of(location)
        assert (await clients.follow(location)).json()["reason"] == "ISSUER_MISMATCH"
        pending = await clients.get(unnamed.integration_id)
        assert pending.status == integration_pb2.STATUS_PENDING

        # a state is valid once; the issuer is checked before it
        used = pb.HandleCallbackRequest(state=connect_response.state, code="any", iss=dot.issuer)
        assert await expect_rpc_error(clients.service.HandleCallback(used)) == RpcError(
            FAILED_PRECONDITION, "STATE_USED"
        )
        used.iss = "https://evil.example"
        assert await expect_rpc_error(clients.service.HandleCallback(used)) == RpcError(
            INVALID_ARGUMENT, "ISSUER_MISMATCH"
        )
