"""After a full run at LOG_LEVEL=DEBUG, database and logs contain no secret that passed through the server.

The sandbox issues all tokens, codes and keys; the test reads states, verifiers and confirmation tokens in requests and
responses.
"""

import asyncio
import base64
import json
import os
import secrets
import signal
import subprocess
from collections import defaultdict
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from integration_server.sandbox.behaviour import Fault
from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.faults import RecordedForms
from tests.end_to_end.processes import ProcessSystem, new_key, run_server_process
from tests.end_to_end.secret_scanner import find_secrets, forms
from tests.end_to_end.system import BROWSER, CONFIRMING, RETURN_URL, query_of
from tests.postgres import PostgresServer

# Stored in plaintext as a name, and logged as a path.
CANARY = "canary-" + secrets.token_urlsafe(18) + "+/?"
LOGGED_CANARY = "canary-" + secrets.token_urlsafe(18)


@dataclass(frozen=True, slots=True)
class ScanInput:
    """The sources that a run produces, and the secrets that they must not contain, by kind."""

    secrets: Mapping[str, set[str]] = field(repr=False)
    sources: Mapping[str, bytes] = field(repr=False)


class Run:
    """A run of everything that uses secrets, and these secrets."""

    def __init__(self) -> None:
        self.secrets: dict[str, set[str]] = defaultdict(set)
        self.recorded = RecordedForms()
        self.sandbox = Sandbox(token=self._token)

    def _token(self) -> str:
        token = secrets.token_urlsafe(32)
        self.secrets["code, token or key of the provider"].add(token)
        return token

    def record_secret(self, kind: str, value: str) -> None:
        """Record a secret."""
        self.secrets[kind].add(value)

    def set_faults(self, **faults: Fault) -> None:
        """Set faults of endpoints; the token endpoint records its requests otherwise."""
        every = {"token": self.recorded, "revoke": self.recorded, **faults}
        self.sandbox.behaviour = replace(self.sandbox.behaviour, faults=every)  # type: ignore[arg-type]  # endpoints

    async def run_all_calls(self, system: ProcessSystem) -> None:
        """Make all successful calls, then all failing ones, because errors bring secrets into logs."""
        self.record_secret("client secret", system.client_secret)
        self.set_faults()
        first = await self.connect(system, "ada")
        await self.connect(system, "grace")
        await self.make_other_calls(system, first)
        await self.connect_with_key(system)
        await self.provoke_errors(system, first)
        for form in self.recorded.forms:
            for name in form.keys() & {"code", "code_verifier", "refresh_token", "token", "client_secret"}:
                self.record_secret(name, form[name])

    async def connect(self, system: ProcessSystem, account: str) -> int:
        """Connect through the browser, with confirmation."""
        connect_response = await system.begin(return_url=RETURN_URL, name=CANARY)
        self.record_secret("state", connect_response.state)
        self.record_secret("code challenge", query_of(connect_response.authorization_url)["code_challenge"])
        location = await system.decide(connect_response, account=account)
        self.record_secret("code", query_of(location)["code"])
        response = await system.follow(location, BROWSER)
        token = query_of(response.headers["Location"])["confirmation_token"]
        self.record_secret("confirmation token", token)
        request = pb.ConfirmConnectionRequest(confirmation_token=token, user_id="ada")
        return (await system.service.ConfirmConnection(request)).integration_id

    async def make_other_calls(self, system: ProcessSystem, integration_id: int) -> None:
        """Make each of the other calls."""
        which: dict[str, Any] = {"integration_id": integration_id, "user_id": "ada"}
        self.record_secret("access token", await system.bearer_token(integration_id))
        await system.service.RefreshToken(pb.RefreshTokenRequest(**which, force=True))
        self.record_secret("access token", await system.bearer_token(integration_id))
        await system.service.CheckHealth(pb.CheckHealthRequest(**which))
        await system.service.CheckAllHealth(pb.CheckAllHealthRequest(user_id="ada"))
        page = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada", page_size=1))
        self.record_secret("page token", page.next_page_token)

    async def connect_with_key(self, system: ProcessSystem) -> None:
        """Connect with a right key and with a wrong one."""
        wrong, webhook_secret = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.record_secret("wrong API key", wrong)
        self.record_secret("webhook secret", webhook_secret)
        self.record_secret("API key", system.sandbox.api_key.key)
        for key in (wrong, system.sandbox.api_key.key):
            request = pb.ConnectWithApiKeyRequest(
                user_id="ada", integration_type="sandbox_api_key", api_key=key, webhook_secret=webhook_secret
            )
            await asyncio.gather(system.service.ConnectWithApiKey(request), return_exceptions=True)

    async def provoke_errors(self, system: ProcessSystem, integration_id: int) -> None:
        """Provoke errors: providers that quote requests, failing callbacks, and invalid requests."""
        # Paths are logged on purpose: that of the first request of a peer that fails in a minute.
        await system.browser.get(f"{system.sidecar_url}/{LOGGED_CANARY}")
        quoting = secrets.token_urlsafe(24)
        self.record_secret("what the provider quotes", quoting)
        body = f'{{"error": "{quoting}", "error_description": "{quoting}", "access_token": "{quoting}"'.encode()
        which: dict[str, Any] = {"integration_id": integration_id, "user_id": "ada"}
        refresh = pb.RefreshTokenRequest(**which, force=True)
        for status in (200, 302, 400, 401, 500):
            fault = Fault(status=status, headers={"Location": f"https://evil.example/?{quoting}"}, body=body)
            self.set_faults(token=fault, userinfo=fault)
            await expect_failure(system.service.RefreshToken(refresh))
            await system.service.CheckHealth(pb.CheckHealthRequest(**which))
        connect_response = await system.begin()
        self.record_secret("state", connect_response.state)
        location = await system.decide(connect_response)
        self.record_secret("code", query_of(location)["code"])
        self.set_faults()
        for malformed in (
            location + "&state=again",
            location.replace("iss=", "no="),
            location + "&error=access_denied",
        ):
            await system.follow(malformed)
        for path in ("/", "/api/v1/integrations/callback", "/api/v1/integrations/callback/sandbox/"):
            await system.browser.get(f"{system.sidecar_url}{path}?code={quoting}&state={quoting}")
        self.sandbox.revoke_grants("ada")
        await expect_failure(system.service.RefreshToken(refresh))
        await system.service.DisconnectIntegration(pb.DisconnectIntegrationRequest(**which))
        await expect_failure(system.raw("ConfirmConnection")(quoting.encode()))


async def expect_failure(call: Awaitable[Any]) -> None:
    """Expect a call to fail."""
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def collect_scan_input(run: Run, system: ProcessSystem, dumps: Mapping[str, bytes]) -> ScanInput:
    """Stop the server, and collect its output and its database."""
    system.command.send(signal.SIGTERM)
    finished = await system.command.finished()
    assert finished.code == 0
    logs = {"stdout": finished.out.encode(), "stderr": finished.err.encode()}
    return ScanInput(run.secrets, {**dumps, **logs})


def assert_scan_is_clean(scan_input: ScanInput, encryption_key: str, *databases: str) -> None:
    """Assert that no source contains a secret, and that the scanner finds the values that are stored in plaintext."""
    assert len(scan_input.secrets["code, token or key of the provider"]) > 8
    for kind in ("state", "code_verifier", "code", "refresh_token", "confirmation token", "client secret", "API key"):
        assert scan_input.secrets[kind], kind
    searched = {**scan_input.secrets, "encryption key": {encryption_key}}
    assert find_secrets(searched, scan_input.sources) == set()

    plaintext = find_secrets({"name": {CANARY}, "path": {LOGGED_CANARY}}, scan_input.sources)
    assert {(kind, source) for kind, source, form in plaintext if form == "plain"} == {
        ("path", "stderr"),
        *(("name", database) for database in databases),
    }
    assert b'"event": "refresh_completed"' in scan_input.sources["stderr"]
    assert b'"event": "rpc_rejected"' in scan_input.sources["stderr"]
    assert b"/api/v1/integrations/callback/sandbox" in scan_input.sources["stderr"]


def contents_of(path: Path) -> bytes:
    """The content of a file."""
    return path.read_bytes()


@pytest.mark.slow
async def test_no_secret_is_in_an_sqlite_file_its_wal_or_the_logs(sqlite_url: str, tmp_path: Path) -> None:
    run, key = Run(), new_key()
    async with run_server_process(
        tmp_path,
        sqlite_url,
        sandbox=run.sandbox,
        LOG_LEVEL="DEBUG",
        **CONFIRMING,
        ENCRYPTION_KEY=key,
    ) as system:
        await run.run_all_calls(system)
        path = Path(sqlite_url.removeprefix("sqlite:///"))
        # While the server runs, because the WAL is deleted with the last connection.
        wal = contents_of(path.with_name(path.name + "-wal"))
        assert wal
        scan_input = await collect_scan_input(run, system, {"WAL": wal})
    sources = {**scan_input.sources, "file": contents_of(path)}
    assert_scan_is_clean(replace(scan_input, sources=sources), key, "file", "WAL")


@pytest.mark.slow
@pytest.mark.postgres
async def test_no_secret_is_in_a_postgresql_dump_or_the_logs(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    run, key = Run(), new_key()
    async with run_server_process(
        tmp_path,
        postgres_url,
        sandbox=run.sandbox,
        LOG_LEVEL="DEBUG",
        **CONFIRMING,
        ENCRYPTION_KEY=key,
    ) as system:
        await run.run_all_calls(system)
        pg_dump = Path(postgres_server.process.bin_path) / "pg_dump"
        dump = subprocess.run(  # noqa: ASYNC221  # nothing else is to happen meanwhile
            [str(pg_dump), "--inserts", postgres_url],
            check=True,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout
        assert b"INSERT INTO public.integrations" in dump
        scan_input = await collect_scan_input(run, system, {"dump": dump})
    assert_scan_is_clean(scan_input, key, "dump")


@pytest.mark.parametrize("form", [name for name, _ in forms(CANARY)])
def test_the_scanner_finds_each_form_of_a_secret(form: str) -> None:
    needle = dict(forms(CANARY))[form]
    for planted in (needle, b"before" + needle + b"after", b"\\x" + needle.hex().encode(), needle.hex().encode()):
        assert ("canary", "place", form) in find_secrets({"canary": {CANARY}}, {"place": planted})


def test_the_scanner_finds_a_secret_inside_an_encoded_text() -> None:
    for before in ("", "x", "xx", "xxx"):
        document = json.dumps({before: CANARY}).encode()
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            assert find_secrets({"canary": {CANARY}}, {"place": encode(document)})
    assert not find_secrets({"canary": {CANARY}}, {"place": base64.b64encode(os.urandom(4000))})
