"""The audit log of a running server, and the detection of altered entries."""

import json
import signal
from pathlib import Path

import asyncpg
import grpc
import httpx
import pytest
from sqlalchemy import select

from integration_server.storage.tables import audit_entries
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.authenticated_system import begin, run_authenticated_system
from tests.end_to_end.databases import fetch
from tests.end_to_end.processes import new_key, run, run_server_process, server_environment

pytestmark = pytest.mark.slow


async def test_audit_entries_are_listed_and_altered_entries_are_detected(postgres_url: str, tmp_path: Path) -> None:
    key, heads = new_key(), str(tmp_path / "heads.jsonl")
    async with run_server_process(tmp_path, postgres_url, ENCRYPTION_KEY=key, AUDIT_HEADS=heads) as system:
        integration_id = await system.connect()
        for number in range(3):
            await system.service.GetCredentials(
                pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada"),
                metadata=(("x-purpose", f"nightly sync {number}"),),  # equal reads would share an entry
            )
        with pytest.raises(grpc.aio.AioRpcError):
            await system.bearer_token(integration_id, "eve")
        await system.service.RefreshToken(
            pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True)
        )
        await system.service.DisconnectIntegration(
            pb.DisconnectIntegrationRequest(integration_id=integration_id, user_id="ada")
        )
        system.command.send(signal.SIGTERM)  # the last heads are recorded at the end
        assert (await system.command.finished()).code == 0
    environment = server_environment(postgres_url, ENCRYPTION_KEY=key)
    listed = await run(tmp_path, environment, "audit", "list", "--json")
    rows = [json.loads(line) for line in listed.out.splitlines()]
    done = [tuple(row[name] for name in ("action", "user_id", "outcome", "purpose")) for row in rows]
    assert sorted(done) == sorted(
        [
            ("connect", "ada", "OK", ""),
            ("store_credentials", "ada", "OK", ""),  # by the server
            ("complete", "ada", "OK", ""),
            *[("read_credentials", "ada", "OK", f"nightly sync {number}") for number in range(3)],
            ("read_credentials", "eve", "INTEGRATION_NOT_FOUND", ""),
            ("refresh", "ada", "OK", ""),  # by the server, which called the provider
            ("refresh", "ada", "OK", ""),  # by the caller, who requested it
            ("disconnect", "ada", "OK", ""),
        ]
    )
    environment["AUDIT_HEADS"] = heads
    verified = await run(tmp_path, environment, "audit", "verify")
    assert (verified.code, verified.err) == (0, "")
    assert "1 chains, 10 entries. 1 chains were compared" in verified.out
    erased = await run(tmp_path, environment, "audit", "erase-user", "eve", "--yes")
    assert (erased.code, erased.out.splitlines()[-1]) == (0, "The user is erased from 1 entries.")
    verified = await run(tmp_path, environment, "audit", "verify", "--heads", heads)
    assert "2 chains, 11 entries, of which 1 name no user any more. 2 chains were compared" in verified.out

    connection = await asyncpg.connect(postgres_url)
    try:
        # The erasure's chain is removed as a whole. The log is consistent then.
        await connection.execute("DELETE FROM audit_chains WHERE number = 2")
        await connection.execute("DELETE FROM audit_entries WHERE action = 'erase_user'")
        set_back = await run(tmp_path, environment, "audit", "verify")
        assert set_back.code == 1
        assert "is missing: it had 1 entries, as its head shows" in set_back.err
        control = await run(tmp_path, {**environment, "AUDIT_HEADS": ""}, "audit", "verify")
        assert (control.code, "is intact" in control.out) == (0, True)
        await connection.execute("UPDATE audit_entries SET time = '0044-03-15 BC' WHERE user_id = ''")
    finally:
        await connection.close()
    altered = await run(tmp_path, environment, "audit", "verify")
    assert altered.code == 1
    assert "was altered" in altered.err
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    empty.touch()
    for path, message in ((absent, "absent: No such file"), (empty, "empty has no heads")):
        unverified = await run(tmp_path, environment, "audit", "verify", "--heads", str(path))
        assert (unverified.code, message in unverified.err) == (3, True)
    listed = await run(tmp_path, environment, "audit", "list")
    assert (listed.code, listed.out.count("cannot be read: see `audit verify`")) == (0, 1)
    assert "eve" not in listed.out
    assert listed.out.count("nightly sync") == 3
    for arguments in (("erase-user", "", "--yes"), ("list", "--integration", str(2**63)), ("list", "--limit", "0")):
        wrong = await run(tmp_path, environment, "audit", *arguments)
        assert (wrong.code, "Traceback" in wrong.err) == (2, False)


async def test_audit_entries_of_callbacks_have_the_user_and_the_outcome(sqlite_url: str, tmp_path: Path) -> None:
    async with run_authenticated_system(sqlite_url, tmp_path) as authenticated, httpx.AsyncClient() as browser:
        backend = await authenticated.backend()
        callback = authenticated.system.sidecar_url + "/api/v1/integrations/callback/sandbox"
        held = await browser.get(callback, params=await begin(authenticated, backend))
        token = held.json()["confirmation_token"]
        await backend.service.ConfirmConnection(pb.ConfirmConnectionRequest(confirmation_token=token, user_id="ada"))
        refused = {"error": "access_denied", **await begin(authenticated, backend)}
        del refused["code"]
        await browser.get(callback, params=refused)
        await browser.get(callback, params=refused)
        await browser.get(callback, params={**refused, "state": "forged"})
        for code in ("first", "second"):
            await browser.get(callback, params={**refused, "error": "", "code": code})
    columns = (audit_entries.c.caller, audit_entries.c.action, audit_entries.c.user_id, audit_entries.c.outcome)
    assert sorted(map(tuple, await fetch(sqlite_url, select(*columns)))) == [
        ("backend", "confirm", "ada", "OK"),
        ("backend", "connect", "ada", "OK"),
        ("backend", "connect", "ada", "OK"),
        ("server", "store_credentials", "ada", "OK"),
        ("sidecar", "complete", "", "STATE_INVALID"),
        ("sidecar", "complete", "ada", "STATE_USED"),
        ("sidecar", "complete", "ada", "access_denied"),
        ("sidecar", "complete", "ada", "access_denied"),
        ("sidecar", "complete", "ada", "confirmation_required"),
        ("sidecar", "complete", "ada", "confirmation_required"),
    ]
