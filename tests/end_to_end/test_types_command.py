"""The subcommands of `types` that help authors of declarations, each as a process."""

import json
import shutil
from pathlib import Path

import pytest

from tests.declarations import DECLARATIONS
from tests.end_to_end.processes import run, server_environment
from tests.end_to_end.small_server import run_small_server

UNUSED_DATABASE = "sqlite:///unused.db"


@pytest.mark.slow  # each run starts pytest
async def test_try_prints_a_table_and_fails_if_a_check_fails(tmp_path: Path) -> None:
    environment = server_environment(UNUSED_DATABASE)
    good = tmp_path / "token_prefix.toml"
    shutil.copy(DECLARATIONS / good.name, good)
    tried = await run(tmp_path, environment, "types", "try", str(good))
    assert (tried.code, tried.err) == (0, "")
    lines = {line.partition("  ")[0]: line.split()[-1] for line in tried.out.splitlines() if "  " in line}
    assert lines["a wrong key is rejected and not stored"] == "pass"
    assert lines["refreshes repeatedly"] == "declaration"  # does not apply to it
    assert "0 failed" in tried.out

    listed = await run(tmp_path, environment, "types", "try", str(good), "--json")
    checks = {check["check"]: check["result"] for check in map(json.loads, listed.out.splitlines())}
    assert checks["a wrong key is rejected and not stored"] == "pass"
    assert checks["refreshes repeatedly"] == "n/a"

    # A refresh without the refresh token: the file is valid, and no provider could serve it.
    bad = tmp_path / "no_refresh.toml"
    text = (DECLARATIONS / "region_of_callback.toml").read_text()
    bad.write_text('refresh_params = { refresh_token = "" }\n' + text)
    failed = await run(tmp_path, environment, "types", "try", str(bad))
    assert failed.code == 1
    (line,) = [line for line in failed.out.splitlines() if line.startswith("refreshes repeatedly")]
    assert "FAIL" in line
    assert "refresh_token" in line
    built_in = await run(tmp_path, environment, "types", "try", "twilio")
    assert built_in.code == 0
    login = await run(tmp_path, environment, "types", "try", str(DECLARATIONS / "two_logins.toml"))
    assert (login.code, login.err) == (0, "")
    assert "each refusal of a login ends the integration" in login.out


async def test_try_explains_what_it_cannot_try(tmp_path: Path) -> None:
    environment = server_environment(UNUSED_DATABASE)
    unknown = await run(tmp_path, environment, "types", "try", "unknown")
    assert (unknown.code, unknown.err) == (1, "unknown is neither a file nor a type of this server.\n")
    invalid = tmp_path / "invalid.toml"
    invalid.write_text('integration_type = "x"\nauth_method = "oauth"\n')
    refused = await run(tmp_path, environment, "types", "try", str(invalid))
    assert refused.code == 1
    assert "invalid.toml: auth_method: " in refused.err


async def test_show_prints_requests_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "providers").mkdir()
    shutil.copy(DECLARATIONS / "json_tokens.toml", tmp_path / "providers")
    environment = server_environment(
        UNUSED_DATABASE,
        PROVIDERS_DIR=str(tmp_path / "providers"),
        JSON_TOKENS_CLIENT_ID="the-id",
        JSON_TOKENS_CLIENT_SECRET="the-secret",
    )
    shown = await run(tmp_path, environment, "types", "show", "json_tokens")
    assert (shown.code, shown.err) == (0, "")
    assert "code exchange: to api.notes.example\n  POST https://api.notes.example/v1/oauth/token\n" in shown.out
    assert "the-secret" not in shown.out
    listed = await run(tmp_path, environment, "types", "show", "json_tokens", "--json")
    assert [one["purpose"] for one in json.loads(listed.out)][1:3] == ["code exchange", "verification"]
    unknown = await run(tmp_path, environment, "types", "show", "unknown")
    assert (unknown.code, unknown.err) == (1, "unknown is neither a file nor a type of this server.\n")


async def test_new_writes_a_declaration_from_metadata(tmp_path: Path) -> None:
    metadata: dict[str, object] = {}
    async with run_small_server(lambda _: (200, metadata)) as server:
        metadata |= {name: f"{server.url}/{name}" for name in ("authorization_endpoint", "token_endpoint")}
        metadata |= {"issuer": server.url}
        environment = server_environment(UNUSED_DATABASE, DEV_MODE="")
        # Only in dev mode is loopback reached: the request goes through the guard of all outbound requests.
        refused = await run(tmp_path, environment, "types", "new", "acme", "--discover", server.url)
        assert (refused.code, server.received) == (1, [])
        internal = await run(tmp_path, environment, "types", "new", "acme", "--discover", "https://169.254.169.254")
        assert "no complete response from a public address" in internal.err
        written = await run(tmp_path, environment, "types", "new", "acme", "--dev", "--discover", server.url)
        assert (written.code, written.err) == (0, "")
        assert [one.path for one in server.received] == ["/.well-known/oauth-authorization-server"]
    text = (tmp_path / "acme.toml").read_text()
    assert f'token_url = "{server.url}/token_endpoint"' in text
    again = await run(tmp_path, environment, "types", "new", "acme", "--auth", "basic")
    assert (again.code, again.err) == (1, "acme.toml is there already; --force replaces it.\n")
    assert (tmp_path / "acme.toml").read_text() == text
    forced = await run(tmp_path, environment, "types", "new", "acme", "--auth", "basic", "--force")
    assert forced.code == 0
    checked = await run(tmp_path, environment, "types", "check", "acme.toml")
    assert (checked.code, checked.out) == (0, "acme.toml declares acme.\n")
    (tmp_path / "mine.toml").write_text((tmp_path / "acme.toml").read_text().replace('"acme"', '"github"'))
    taken = await run(tmp_path, environment, "types", "check", "mine.toml")
    assert taken.code == 1
    assert "mine.toml: integration_type: 'github' is taken by " in taken.err
