"""Authentication on a running server: certificates, tokens, the policy, and their reload."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from integration_server.cli.serving import remote_client
from integration_server.settings import Settings
from integration_server.wiring.sidecar import running_sidecar
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.authenticated_system import (
    POLICY,
    AuthenticatedSystem,
    Caller,
    CredentialIssuer,
    connect,
    run_authenticated_system,
    utc_now,
)
from tests.end_to_end.processes import run, run_server_process, server_environment, started
from tests.end_to_end.system import System, run_system
from tests.loopback import accepting
from tests.tokens import TokenIssuer
from tools.certificates import SERVER, Authority, Pair

DEADLINE = 60.0  # seconds until a change of a file is seen: one on an idle machine
TYPES = pb.ListIntegrationTypesRequest()


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    """The status code of a call."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def list_types_code(caller: Caller) -> grpc.StatusCode:
    """The status code of `ListIntegrationTypes`."""
    return await code_of(caller.service.ListIntegrationTypes(TYPES, metadata=caller.metadata, timeout=30))


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until the condition holds."""
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110  # the server sets no event of ours
            await asyncio.sleep(0.05)


async def wait_for_log(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """Wait until the server's log contains the text."""
    reported = ""

    async def is_logged() -> bool:
        nonlocal reported
        reported += "".join(capfd.readouterr())
        return text in reported

    await wait_until(is_logged)


async def call_on_new_channel(
    authenticated: AuthenticatedSystem, pair: Pair | None, roots: bytes | None = None
) -> grpc.StatusCode:
    """The status code of a call on a new connection."""
    # Channels with equal credentials share a connection.
    async with authenticated.credential_issuer.channel(authenticated.system.grpc_address, pair, roots) as channel:
        return await list_types_code(Caller(channel))


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_invalid_certificates_are_rejected_and_the_policy_decides_by_name(
    sqlite_url: str, tmp_path: Path
) -> None:
    spiffe = x509.UniformResourceIdentifier
    dns = x509.DNSName
    async with run_authenticated_system(sqlite_url, tmp_path) as authenticated:
        credential_issuer = authenticated.credential_issuer
        stranger = Authority()
        backend = "spiffe://integrations.example/backend"
        refused = {
            "none": None,
            "expired": credential_issuer.certificate("/backend", lifetime=timedelta(hours=-1)),
            "of another authority": stranger.issue([spiffe(backend)]),
        }
        for pair in refused.values():
            assert (
                await call_on_new_channel(authenticated, pair) == grpc.StatusCode.UNAVAILABLE
            )  # no connection is made
        names: list[tuple[list[x509.GeneralName], grpc.StatusCode]] = [
            ([spiffe(backend)], grpc.StatusCode.OK),
            ([dns("OTHER-TYPE.integrations.example")], grpc.StatusCode.OK),
            ([spiffe(backend.replace("spiffe", "SPIFFE"))], grpc.StatusCode.OK),
            ([spiffe(backend), dns("unlisted.example"), dns("another.example")], grpc.StatusCode.OK),
            ([dns("unlisted.example")], grpc.StatusCode.PERMISSION_DENIED),
            ([dns("unlisted.example"), dns("other-type.integrations.example")], grpc.StatusCode.UNAUTHENTICATED),
            ([dns("other-type.integrations.example\0.evil.example")], grpc.StatusCode.UNAUTHENTICATED),
            ([spiffe(f"{backend}\0/evil")], grpc.StatusCode.UNAUTHENTICATED),
            ([spiffe(backend), spiffe("https://integrations.example")], grpc.StatusCode.UNAUTHENTICATED),
            ([], grpc.StatusCode.UNAUTHENTICATED),  # the common name is ignored
            ([spiffe(backend), spiffe(f"{backend}/2")], grpc.StatusCode.UNAUTHENTICATED),
            ([spiffe("https://integrations.example/backend")], grpc.StatusCode.UNAUTHENTICATED),
            ([spiffe(f"{backend}/")], grpc.StatusCode.UNAUTHENTICATED),
            ([spiffe(backend.upper().replace("SPIFFE", "spiffe"))], grpc.StatusCode.UNAUTHENTICATED),
            ([spiffe(f"{backend[:-1]}{backend[-1].upper()}")], grpc.StatusCode.PERMISSION_DENIED),
            # A SPIFFE ID takes precedence over other names.
            ([spiffe(f"{backend}2"), dns("other-type.integrations.example")], grpc.StatusCode.PERMISSION_DENIED),
            ([dns("*.integrations.example")], grpc.StatusCode.UNAUTHENTICATED),
        ]
        for given, code in names:
            pair = credential_issuer.authority.issue(given, common_name="other-type.integrations.example")
            assert await call_on_new_channel(authenticated, pair) == code, given

        # Negative control: a server that trusts the other authority accepts the same certificate.
        credential_issuer.put("ca.pem", credential_issuer.authority.certificate + stranger.certificate)
        pair = refused["of another authority"]

        async def is_accepted() -> bool:
            return await call_on_new_channel(authenticated, pair) == grpc.StatusCode.OK

        await wait_until(is_accepted)


@pytest.mark.slow
async def test_certificates_are_reloaded_while_calls_continue(
    sqlite_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with run_authenticated_system(sqlite_url, tmp_path) as authenticated:
        old, credential_issuer = authenticated.credential_issuer.authority, authenticated.credential_issuer
        backend = await authenticated.backend()
        codes: set[grpc.StatusCode] = set()
        calls = 0

        async def keep_calling() -> None:
            nonlocal calls
            while True:
                codes.add(await list_types_code(backend))
                calls += 1

        calls_task = asyncio.create_task(keep_calling())
        new = Authority()
        new_backend = new.issue([x509.UniformResourceIdentifier("spiffe://integrations.example/backend")])
        assert await call_on_new_channel(authenticated, new_backend, new.certificate) == grpc.StatusCode.UNAVAILABLE
        credential_issuer.write("server", new.issue(SERVER))
        credential_issuer.put("ca.pem", new.certificate)

        async def is_new_certificate_served() -> bool:
            return await call_on_new_channel(authenticated, new_backend, new.certificate) == grpc.StatusCode.OK

        await wait_until(is_new_certificate_served)
        old_pair = old.issue([x509.UniformResourceIdentifier("spiffe://integrations.example/backend")])
        assert await call_on_new_channel(authenticated, old_pair, new.certificate) == grpc.StatusCode.UNAVAILABLE
        seen = calls

        async def has_more_calls() -> bool:
            return calls > seen + 10

        await wait_until(has_more_calls)
        calls_task.cancel()
        assert codes == {grpc.StatusCode.OK}

        # A key that does not belong to the certificate is ignored.
        credential_issuer.put("server-key.pem", old.issue(SERVER).key)
        await wait_for_log(capfd, "is not the key of")
        assert await call_on_new_channel(authenticated, new_backend, new.certificate) == grpc.StatusCode.OK


# --- the sidecar -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def sidecar_alone(system: System, settings: Mapping[str, str]) -> AsyncIterator[str]:
    """A sidecar that does not start with the server: it authenticates by a certificate or a token. Yields its URL."""
    environment = {**settings, "GRPC_ADDRESS": system.grpc_address, "SIDECAR_ADDRESS": "127.0.0.1:0"}
    given = Settings.from_environment(environment, needs_key=False)
    async with running_sidecar(given, remote_client(given)) as url:
        yield url


@pytest.mark.slow
async def test_the_sidecar_reconnects_with_a_renewed_certificate(sqlite_url: str, tmp_path: Path) -> None:
    async with (
        run_authenticated_system(sqlite_url, tmp_path) as authenticated,
        sidecar_alone(authenticated.system, authenticated.credential_issuer.settings) as url,
    ):
        system = authenticated.system
        assert (await system.browser.get(f"{url}/readyz")).status_code in {200, 503}

        async def is_ready() -> bool:
            return (await system.browser.get(f"{url}/readyz")).status_code == 200

        async def is_not_ready() -> bool:
            return not await is_ready()

        await wait_until(is_ready)
        authenticated.credential_issuer.write("sidecar", authenticated.credential_issuer.certificate("/somebody-else"))
        await wait_until(is_not_ready)
        authenticated.credential_issuer.write("sidecar", authenticated.credential_issuer.certificate("/sidecar"))
        await wait_until(is_ready)


@pytest.mark.slow
async def test_server_and_sidecar_work_on_loopback_with_tokens_only(sqlite_url: str, tmp_path: Path) -> None:
    credential_issuer = CredentialIssuer(tmp_path)
    credential_issuer.put("policy.toml", POLICY.replace("[sidecar]", '[sidecar]\ntokens = ["sidecar"]').encode())
    credential_issuer.put("sidecar.token", b"not yet")
    settings = {**credential_issuer.token_settings, "SIDECAR_TOKEN_FILE": str(tmp_path / "sidecar.token")}
    async with run_system(sqlite_url, **settings) as system, sidecar_alone(system, settings) as url:
        token = credential_issuer.services.token("sidecar", utc_now(), lifetime=timedelta(hours=1))
        assert (await system.browser.get(f"{url}/readyz")).status_code == 503
        credential_issuer.put("sidecar.token", f"{token}\n".encode())

        async def is_ready() -> bool:
            return (await system.browser.get(f"{url}/readyz")).status_code == 200

        await wait_until(is_ready)
        backend = Caller(system.channel, credential_issuer.services.token("backend", utc_now()))
        user = Caller(system.channel, credential_issuer.users.token("ada", utc_now()))
        connect_response = await user.service.Connect(
            pb.ConnectRequest(integration_type="sandbox"), metadata=user.metadata
        )
        response = await system.follow(await system.decide(connect_response, account="ada"))
        assert response.json()["success"] is True
        own = await user.service.ListIntegrations(pb.ListIntegrationsRequest(), metadata=user.metadata)
        (integration,) = own.integrations
        assert integration.user_id == "ada"
        credentials = pb.GetCredentialsRequest(integration_id=integration.integration_id, user_id="ada")
        assert await code_of(user.service.GetCredentials(credentials, metadata=user.metadata)) == (
            grpc.StatusCode.PERMISSION_DENIED
        )
        assert (await backend.service.GetCredentials(credentials, metadata=backend.metadata)).credentials.bearer_token
        for stranger in (
            Caller(system.channel),
            Caller(system.channel, TokenIssuer(credential_issuer.users.issuer).token("ada", utc_now())),
            Caller(system.channel, credential_issuer.users.token("ada", utc_now(), lifetime=timedelta(minutes=-1))),
            Caller(
                system.channel,
                credential_issuer.services.token("backend", utc_now(), iss=credential_issuer.users.issuer),
            ),
        ):
            assert await list_types_code(stranger) == grpc.StatusCode.UNAUTHENTICATED


async def test_keys_are_fetched_from_the_jwks_url(sqlite_url: str, tmp_path: Path) -> None:
    credential_issuer = CredentialIssuer(tmp_path)
    published, asked = [credential_issuer.users.jwks], []

    async def response(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        body = published[-1]
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()

    async with accepting(response) as port:
        settings = {**credential_issuer.token_settings, "USER_JWT_JWKS": f"http://127.0.0.1:{port}/keys"}
        async with run_system(sqlite_url, **settings) as system:
            assert (
                await list_types_code(Caller(system.channel, credential_issuer.users.token("ada", utc_now())))
                == grpc.StatusCode.OK
            )
            renewed = TokenIssuer(credential_issuer.users.issuer, kid="two")
            published.append(renewed.jwks)
            late = Caller(system.channel, renewed.token("ada", utc_now()))
            assert await list_types_code(late) == grpc.StatusCode.UNAUTHENTICATED  # it was fetched a moment ago
            system.clock.shift = timedelta(seconds=11)
            assert await list_types_code(late) == grpc.StatusCode.OK
    assert [request.split()[1] for request in asked] == [b"/keys", b"/keys"]


@pytest.mark.slow
async def test_negative_control_without_authentication_every_caller_has_all_permissions(
    sqlite_url: str, tmp_path: Path
) -> None:
    """The calls that are rejected above succeed on a server without authentication."""
    async with run_authenticated_system(sqlite_url, tmp_path) as authenticated:
        integration_id = await connect(authenticated, await authenticated.backend())
        request = pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada")
        unidentified = await authenticated.unidentified()
        assert await code_of(unidentified.service.GetCredentials(request)) == grpc.StatusCode.UNAUTHENTICATED
    async with run_system(sqlite_url) as open_to_all:
        assert (await open_to_all.service.GetCredentials(request)).credentials.bearer_token


async def test_the_request_of_an_unauthenticated_caller_is_not_read(sqlite_url: str, tmp_path: Path) -> None:
    """A caller that sends no request is rejected at once. Negative control: gRPC alone waits for it."""

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with run_authenticated_system(sqlite_url, tmp_path) as authenticated:
        unidentified, backend = await authenticated.unidentified(), await authenticated.backend()
        for service, method in (
            ("integrations.v1.IntegrationService", "ListIntegrations"),
            ("no.such.Service", "Nothing"),
        ):
            call: Any = unidentified.channel.stream_unary(f"/{service}/{method}")
            assert await code_of(call(never(), timeout=DEADLINE)) == grpc.StatusCode.UNAUTHENTICATED
        assert await list_types_code(backend) == grpc.StatusCode.OK


# --- the policy ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_changed_policy_is_reloaded_and_an_invalid_one_is_ignored(
    sqlite_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with run_authenticated_system(sqlite_url, tmp_path) as authenticated:
        backend, late = (
            await authenticated.backend(),
            await authenticated.caller(authenticated.credential_issuer.certificate("/late")),
        )
        assert await list_types_code(late) == grpc.StatusCode.PERMISSION_DENIED
        more = POLICY + (
            '\n[services.late]\ncertificates = ["spiffe://integrations.example/late"]\n'
            'permissions = ["read"]\nintegration_types = ["*"]\n'
        )
        authenticated.credential_issuer.put("policy.toml", more.encode())

        async def is_late_accepted() -> bool:
            return await list_types_code(late) == grpc.StatusCode.OK

        await wait_until(is_late_accepted)
        capfd.readouterr()
        authenticated.credential_issuer.put("policy.toml", b'[services.late]\npermissions = ["everything"]\n')
        await wait_for_log(capfd, "reload_failed")
        assert await list_types_code(late) == await list_types_code(backend) == grpc.StatusCode.OK
        authenticated.credential_issuer.put("policy.toml", POLICY.encode())

        async def is_late_rejected() -> bool:
            return await list_types_code(late) == grpc.StatusCode.PERMISSION_DENIED

        await wait_until(is_late_rejected)
        assert await list_types_code(backend) == grpc.StatusCode.OK


@pytest.mark.slow
async def test_a_setting_opens_health_checks_to_unauthenticated_probes(sqlite_url: str, tmp_path: Path) -> None:
    for is_open, code in (("false", grpc.StatusCode.UNAUTHENTICATED), ("true", grpc.StatusCode.OK)):
        async with run_authenticated_system(
            sqlite_url, tmp_path, HEALTH_ALLOW_UNAUTHENTICATED=is_open
        ) as authenticated:
            probe = await authenticated.unidentified()
            health = HealthStub(probe.channel)
            assert await code_of(health.Check(HealthCheckRequest())) == code
            assert await list_types_code(probe) == grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_expires_while_its_connection_stays_open(sqlite_url: str, tmp_path: Path) -> None:
    async with run_authenticated_system(sqlite_url, tmp_path) as authenticated:
        caller = await authenticated.unidentified(
            authenticated.credential_issuer.services.token("backend", authenticated.now, lifetime=timedelta(minutes=5))
        )
        assert await list_types_code(caller) == grpc.StatusCode.OK
        authenticated.clock.shift = timedelta(minutes=5, seconds=5)  # within the leeway of 30 seconds
        assert await list_types_code(caller) == grpc.StatusCode.OK
        authenticated.clock.shift = timedelta(minutes=5, seconds=31)
        assert await list_types_code(caller) == grpc.StatusCode.UNAUTHENTICATED


# --- start -----------------------------------------------------------------------------------------------------------


async def test_a_start_with_invalid_files_reports_all_problems(sqlite_url: str, tmp_path: Path) -> None:
    credential_issuer = CredentialIssuer(tmp_path)
    credential_issuer.put(
        "policy.toml", b'[users]\npermissions = ["credentials"]\n[services.a]\npermissions = ["read"]\n'
    )
    environment = server_environment(sqlite_url, **credential_issuer.settings)
    finished = await run(tmp_path, environment, "serve")
    assert finished.code == 1
    for reported in (
        "policy.toml: users.permissions.0: cannot be granted to users",
        "services.a.tokens: ",
        "services.a.integration_types",
    ):
        assert reported in finished.err, finished.err
    assert "Traceback" not in finished.err
    credential_issuer.put("policy.toml", POLICY.encode())
    credential_issuer.put("users.json", json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}).encode())
    finished = await run(tmp_path, environment, "serve")
    assert finished.code == 1
    assert "USER_JWT_JWKS: " in finished.err
    assert "users.json: has no public key for signatures" in finished.err


@pytest.mark.slow
async def test_server_and_sidecar_run_in_separate_processes(sqlite_url: str, tmp_path: Path) -> None:
    credential_issuer = CredentialIssuer(tmp_path)
    async with run_server_process(tmp_path, sqlite_url, **credential_issuer.settings) as process:
        async with credential_issuer.channel(
            process.grpc_address, credential_issuer.certificate("/backend")
        ) as channel:
            assert await list_types_code(Caller(channel)) == grpc.StatusCode.OK
        alone = {name: value for name, value in credential_issuer.settings.items() if name.startswith("SIDECAR_")} | {
            "GRPC_ADDRESS": process.grpc_address,
            "SIDECAR_ADDRESS": "127.0.0.1:0",
            "METRICS_ADDRESS": "127.0.0.1:0",
        }
        async with started(tmp_path, alone, "sidecar") as command:
            output = await command.wait_for_output('"event": "serving"')
            (line,) = (line for line in output.splitlines() if '"event": "serving"' in line)
            url = json.loads(line)["sidecar"]

            async def is_ready() -> bool:
                return (await process.browser.get(f"{url}/readyz")).status_code == 200

            await wait_until(is_ready)
