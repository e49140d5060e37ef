"""Who did what is written down, and altering it shows."""

from pathlib import Path

import asyncpg
import grpc
import pytest

from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.processes import new_key, run, running_process, server_environment


async def test_what_was_done_is_listed_and_what_was_altered_shows(postgres_url: str, tmp_path: Path) -> None:
    key = new_key()
    async with running_process(tmp_path, postgres_url, ENCRYPTION_KEY=key) as system:
        integration_id = await system.connect()
        for _ in range(3):
            await system.service.GetCredentials(
                pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada"),
                metadata=(("x-purpose", "nightly sync"),),
            )
        with pytest.raises(grpc.aio.AioRpcError):
            await system.bearer_token(integration_id, "eve")
        await system.service.RefreshToken(
            pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True)
        )
        await system.service.DisconnectIntegration(
            pb.DisconnectIntegrationRequest(integration_id=integration_id, user_id="ada")
        )
    environment = server_environment(postgres_url, ENCRYPTION_KEY=key, COLUMNS="250")
    listed = await run(tmp_path, environment, "audit", "list")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in listed.out.splitlines() if "│" in line]
    done = [(action, user, outcome, purpose) for _, _, action, user, _, outcome, purpose, _ in rows][::-1]
    assert sorted(done) == sorted(
        [
            ("connect", "ada", "OK", ""),
            ("complete", "ada", "OK", ""),
            *[("read_credentials", "ada", "OK", "nightly sync")] * 3,
            ("read_credentials", "eve", "INTEGRATION_NOT_FOUND", ""),
            ("refresh", "ada", "OK", ""),  # by the server, which asked the provider
            ("refresh", "ada", "OK", ""),  # by the caller, who asked for it
            ("disconnect", "ada", "OK", ""),
        ]
    )
    verified = await run(tmp_path, environment, "audit", "verify")
    assert (verified.code, verified.err) == (0, "")
    assert "1 chains, 9 entries" in verified.out

    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("UPDATE audit_entries SET user_id = 'ada' WHERE user_id = 'eve'")
    finally:
        await connection.close()
    altered = await run(tmp_path, environment, "audit", "verify")
    assert altered.code == 1
    assert "was altered" in altered.err
