"""`doctor` names what is wrong with a server's settings and surroundings, and changes nothing."""

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from integration_server.storage.engine import open_database
from integration_server.storage.key_encryption import KeyEncryptionKeys, LocalKey
from integration_server.storage.keyring import open_keyring
from tests.end_to_end.commands import CompletedCommand
from tests.end_to_end.processes import run, server_environment
from tools.certificates import Authority

pytestmark = pytest.mark.slow


def findings(finished: CompletedCommand) -> Mapping[str, list[tuple[str, str]]]:
    """What each check has found: statuses and details."""
    found: dict[str, list[tuple[str, str]]] = {}
    for finding in json.loads(finished.out):
        found.setdefault(finding["check"], []).append((finding["status"], finding["detail"]))
    return found


async def test_a_good_server(sqlite_url: str, tmp_path: Path) -> None:
    environment = server_environment(sqlite_url, DEV_MODE="false")
    finished = await run(tmp_path, environment, "doctor", "--json")
    found = findings(finished)
    assert finished.code == 0, finished
    assert {check: status for check, [(status, _), *_] in found.items() if status == "failed"} == {}
    assert found["schema"] == [("ok", "this version runs on it")]
    assert found["keys"] == [("ok", "unwraps all data keys: 0")]
    assert not (tmp_path / "data" / "refresh-journal").exists()
    assert environment["ENCRYPTION_KEY"] not in finished.out


async def test_in_dev_mode_the_key_of_the_working_copy_is_checked(sqlite_url: str, tmp_path: Path) -> None:
    environment = server_environment(sqlite_url, ENCRYPTION_KEY="")
    first = findings(await run(tmp_path, environment, "doctor", "--json"))
    assert [status for status, _ in first["keys"]] == ["skipped"]
    assert (await run(tmp_path, environment, "keys", "show")).code == 0  # makes the key
    async with open_database(sqlite_url) as database:
        key = LocalKey((tmp_path / "data" / "encryption.key").read_bytes())
        await open_keyring(database, KeyEncryptionKeys(key))
    assert findings(await run(tmp_path, environment, "doctor", "--json"))["keys"] == [
        ("ok", "unwraps all data keys: 1")
    ]
    (tmp_path / "data" / "encryption.key").write_bytes(os.urandom(32))
    finished = await run(tmp_path, environment, "doctor", "--json")
    assert finished.code == 1
    assert [status for status, _ in findings(finished)["keys"]] == ["failed"]


async def test_what_is_wrong_is_named_with_a_remedy(sqlite_url: str, tmp_path: Path) -> None:
    async with open_database(sqlite_url) as database:
        await open_keyring(database, KeyEncryptionKeys(LocalKey(os.urandom(32))))
    (tmp_path / ".env").write_text("DATABSE_URL=x\nNOTION_CLIENT_ID=1\n")
    (tmp_path / "policy.toml").write_text("[services.a]\npermissions = 'all of them'\n")
    (tmp_path / "jwks.json").write_text("{}")
    pair = Authority().issue([x509.DNSName("server")], lifetime=timedelta(days=3))
    certificate, key = tmp_path / "server.pem", tmp_path / "server-key.pem"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    environment = server_environment(
        sqlite_url,
        DEV_MODE="false",
        TLS_CERT_FILE=str(certificate),
        TLS_KEY_FILE=str(key),
        POLICY_FILE=str(tmp_path / "policy.toml"),
        JWT_JWKS=str(tmp_path / "jwks.json"),
        JWT_ISSUER="https://issuer.example",
        JWT_AUDIENCE="integrations",
        REFRESH_JOURNAL_DIR=str(tmp_path / "policy.toml" / "journal"),
        RATE_LIMIT_REDIS_URL="redis://127.0.0.1:1/0",
    )
    finished = await run(tmp_path, environment, "doctor", "--json")
    found = findings(finished)
    assert finished.code == 1
    for check, status, detail in (
        ("names", "warning", "DATABSE_URL in .env is not a setting and is not read; did you mean DATABASE_URL?"),
        ("keys", "failed", "set ENCRYPTION_KEY or KMS_KEY_ID to that key again"),
        ("providers", "warning", "notion: some of its settings are set; missing: NOTION_CLIENT_SECRET"),
        ("certificates", "warning", "TLS_CERT_FILE: expires on"),
        ("policy", "failed", "policy.toml"),
        ("token issuers", "failed", "jwks.json"),
        ("Redis", "failed", "no response"),
        ("refresh journal", "failed", "REFRESH_JOURNAL_DIR"),
    ):
        assert any(found_status == status and detail in text for found_status, text in found[check]), found[check]


async def test_invalid_settings_and_an_unavailable_database(tmp_path: Path) -> None:
    invalid = await run(tmp_path, {"GRPC_ADDRESS": "nonsense"}, "doctor", "--json")
    assert invalid.code == 1
    assert any("GRPC_ADDRESS" in detail for _, detail in findings(invalid)["settings"])

    environment = server_environment("postgresql://ada:secret@127.0.0.1:1/x", DEV_MODE="false")
    finished = await run(tmp_path, environment, "doctor", "--json")
    assert finished.code == 1
    assert "connection refused by 127.0.0.1:1" in str(findings(finished)["database"])
    assert "secret" not in finished.out
    table = await run(tmp_path, environment, "doctor")
    lines = [line.split() for line in table.out.splitlines()]
    assert lines[0] == ["CHECK", "STATUS", "DETAIL"]
    assert len(lines) == 1 + len(json.loads(finished.out))  # each finding is one line in a pipe
