"""Rejected starts: exit code 1, a message with the remedy, and no key in the output."""

import asyncio
import base64
import os
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from integration_server.storage.engine import open_database
from integration_server.storage.key_encryption import KeyEncryptionKeys, LocalKey
from integration_server.storage.keyring import open_keyring
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import CompletedCommand
from tests.end_to_end.processes import new_key, run, server_environment, serving
from tests.end_to_end.system import clients_of

SHORT_KEY = base64.b64encode(b"sixteen bytes...").decode()


async def make_data_key(database_url: str, key: bytes) -> str:
    """Create a data key in the database; the id of the key that wraps it."""
    async with open_database(database_url) as database:
        await open_keyring(database, KeyEncryptionKeys(LocalKey(key)))
    return LocalKey(key).key_id


def assert_refused(finished: CompletedCommand, *reported: str) -> None:
    """Assert exit code 1, these parts in the error message, and no traceback."""
    assert finished.code == 1, finished
    assert finished.out == ""
    for part in reported:
        assert part in finished.err, finished.err
    assert "Traceback" not in finished.err


@pytest.mark.slow
async def test_a_missing_or_wrong_key_is_rejected_with_the_id_of_the_right_one(sqlite_url: str, tmp_path: Path) -> None:
    key = os.urandom(32)
    key_id = await make_data_key(sqlite_url, key)
    environment = server_environment(sqlite_url, DEV_MODE="false")
    starts = {
        "": "ENCRYPTION_KEY: is not set",
        new_key(): f"is wrapped by key {key_id}, which is not configured",
    }
    finished = await asyncio.gather(
        *(
            run(make_directory(tmp_path, number), {**environment, "ENCRYPTION_KEY": given}, "serve")
            for number, given in enumerate(starts)
        )
    )
    for (given, reported), end in zip(starts.items(), finished, strict=True):
        assert_refused(end, reported, key_id)
        assert not given or given not in end.err
        assert base64.b64encode(key).decode() not in end.err


@pytest.mark.postgres
async def test_a_wrong_key_is_rejected_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    key_id = await make_data_key(postgres_url, os.urandom(32))
    wrong = os.urandom(32)
    environment = server_environment(postgres_url, DEV_MODE="false", ENCRYPTION_KEY=base64.b64encode(wrong).decode())
    finished = await run(tmp_path, environment, "serve")
    assert_refused(finished, f"is wrapped by key {key_id}, which is not configured", LocalKey(wrong).key_id)
    assert environment["ENCRYPTION_KEY"] not in finished.err


@pytest.mark.slow
async def test_negative_control_the_right_key_starts_the_server_also_as_a_retired_key(
    sqlite_url: str, tmp_path: Path
) -> None:
    """The same start succeeds with the right key."""
    key = os.urandom(32)
    await make_data_key(sqlite_url, key)
    right = base64.urlsafe_b64encode(key).decode().rstrip("=")
    given = ({"ENCRYPTION_KEY": right}, {"ENCRYPTION_KEY": new_key(), "ENCRYPTION_KEYS_RETIRED": right})
    async with AsyncExitStack() as stack:
        for number, keys in enumerate(given):
            environment = server_environment(sqlite_url, DEV_MODE="false", **keys)
            command = await stack.enter_async_context(serving(make_directory(tmp_path, number), environment))
            assert command.serving["grpc"]


def make_directory(parent: Path, number: int) -> Path:
    """A directory for one of several commands."""
    directory = parent / str(number)
    directory.mkdir()
    return directory


async def test_a_short_key_is_reported_with_all_other_problems(sqlite_url: str, tmp_path: Path) -> None:
    key_id = await make_data_key(sqlite_url, os.urandom(32))
    finished = await run(
        tmp_path,
        {
            "DATABASE_URL": sqlite_url,
            "GRPC_ADDRESS": "0.0.0.0:50051",
            "SIDECAR_ADDRESS": "nonsense",
            "PUBLIC_URL": "http://integrations.example",
            "ALLOWED_REDIRECT_URIS": "https://app.example/#here",
            "REFRESH_BUFFER_SECONDS": "soon",
            "ENCRYPTION_KEY": SHORT_KEY,
            "ENCRYPTION_KEYS_RETIRED": SHORT_KEY,
        },
        "serve",
    )
    assert_refused(
        finished,
        "GRPC_ADDRESS",
        "SIDECAR_ADDRESS",
        "PUBLIC_URL",
        "ALLOWED_REDIRECT_URIS",
        "REFRESH_BUFFER_SECONDS",
        "ENCRYPTION_KEY: must be 32 bytes in base64; this is 16 bytes",
        "ENCRYPTION_KEYS_RETIRED",
        f"wrapped by key {key_id}",
    )
    assert SHORT_KEY not in finished.err


@pytest.mark.parametrize("content", [b"too small", SHORT_KEY.encode() * 2, b""], ids=["short", "base64", "empty"])
async def test_an_invalid_key_file_is_reported_and_unchanged(content: bytes, sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "data" / "encryption.key"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    finished = await run(tmp_path, server_environment(sqlite_url, ENCRYPTION_KEY=""), "keys", "show")
    assert_refused(finished, "data/encryption.key is not a key", "must be 32 bytes", f"it is {len(content)} bytes")
    assert path.read_bytes() == content
    assert not content or content.decode() not in finished.err
    path.unlink()  # negative control: without the file the same command creates one
    finished = await run(tmp_path, server_environment(sqlite_url, ENCRYPTION_KEY=""), "keys", "show")
    assert (finished.code, len(path.read_bytes())) == (0, 32)


async def test_a_development_key_that_is_not_random_is_reported_and_unchanged(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "data" / "encryption.key"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(32))
    finished = await run(tmp_path, server_environment(sqlite_url, ENCRYPTION_KEY=""), "keys", "show")
    assert_refused(finished, "data/encryption.key is not a random key")
    assert path.read_bytes() == bytes(32)


@pytest.mark.parametrize("command", ["serve", "dev", "sidecar"])
async def test_what_a_server_would_protect_badly_is_refused_all_at_once(
    command: str, sqlite_url: str, tmp_path: Path
) -> None:
    """Negative control: `test_settings.py` has each of these settings beside the same one that is accepted."""
    key = base64.b64encode(b"password" * 4).decode()
    open_to_all = {
        "ENCRYPTION_KEY": key,
        "GRPC_ADDRESS": "0.0.0.0:0",
        "SIDECAR_ADDRESS": "[::]:0",
        "METRICS_ADDRESS": "0.0.0.0:0",
        "SANDBOX_ADDRESS": "0.0.0.0:0",
        "PUBLIC_URL": "https://integrations.example",
    }
    expected = set(open_to_all) - ({"GRPC_ADDRESS"} if command == "sidecar" else set())  # where the server is
    finished = await run(tmp_path, server_environment(sqlite_url, **open_to_all), command)
    assert_refused(finished, *(f"  {name}: " for name in expected))
    assert len(finished.err.splitlines()) == 1 + len(expected)
    assert key not in finished.err


async def test_the_sandbox_starts_in_dev_mode_only(sqlite_url: str, tmp_path: Path) -> None:
    environment = server_environment(sqlite_url, DEV_MODE="false")
    assert_refused(await run(tmp_path, environment, "dev"), "SANDBOX_ADDRESS: the sandbox is for dev mode only")


@pytest.mark.slow
@pytest.mark.parametrize("dev_mode", [False, True])
async def test_a_server_outside_dev_mode_warns_that_it_skips_confirmation(
    dev_mode: bool, sqlite_url: str, tmp_path: Path
) -> None:
    environment = server_environment(sqlite_url, DEV_MODE=str(dev_mode), SKIP_CONFIRMATION="true")
    async with serving(tmp_path, environment) as command:
        assert ("confirmation_skipped" in command.output) is not dev_mode


async def test_invalid_provider_files_are_reported_with_path_field_and_problem(sqlite_url: str, tmp_path: Path) -> None:
    providers = tmp_path / "providers"
    providers.mkdir()
    (providers / "broken.toml").write_text("integration_type = ")
    (providers / "first.toml").write_text(
        'integration_type = "Not A Name"\nauth_method = "oauth2"\n'
        'authorize_url = "http://plain.example/"\ncolour = "red"\n'
    )
    (providers / "second.toml").write_text('integration_type = "second"\nauth_method = "magic"\n')
    (providers / "third.toml").write_text(
        'integration_type = "stripe"\nauth_method = "api_key"\nverify_url = "https://api.example/me"\n'
    )
    finished = await run(tmp_path, server_environment(sqlite_url, PROVIDERS_DIR=str(providers)), "serve")
    assert_refused(finished)
    assert set(problems_of(finished.err, providers)) >= {
        ("broken.toml", "cannot be read as TOML"),
        ("first.toml", "integration_type"),
        ("first.toml", "authorize_url"),
        ("first.toml", "token_url"),
        ("first.toml", "colour"),
        ("second.toml", "auth_method"),
        ("third.toml", "integration_type"),
    }


def problems_of(text: str, providers: Path) -> list[tuple[str, str]]:
    """File and field of each reported problem."""
    found = []
    for line in text.splitlines():
        path, separator, rest = line.strip().partition(": ")
        if separator and path.startswith(str(providers)):
            field, colon, problem = rest.partition(": ")
            assert colon, line
            assert problem, line
            found.append((Path(path).name, field))
    return found


@pytest.mark.slow  # four servers
async def test_a_used_address_is_reported_with_its_setting(sqlite_url: str, tmp_path: Path) -> None:
    environment = server_environment(sqlite_url, METRICS_ADDRESS="127.0.0.1:0")
    async with (
        serving(tmp_path, environment) as first,
        clients_of(first.serving["grpc"], first.serving["sidecar"]) as clients,
    ):
        taken = {
            "GRPC_ADDRESS": first.serving["grpc"],
            "SIDECAR_ADDRESS": first.serving["sidecar"].removeprefix("http://"),
            "METRICS_ADDRESS": first.serving["metrics"].removeprefix("http://").removesuffix("/metrics"),
        }
        finished = await asyncio.gather(
            *(
                run(make_directory(tmp_path, number), {**environment, setting: taken[setting]}, "serve")
                for number, setting in enumerate(taken)
            )
        )
        for (setting, address), end in zip(taken.items(), finished, strict=True):
            assert end.code == 1
            last_line = end.err.strip().splitlines()[-1]
            assert address in last_line
            assert setting in last_line
        # the first server still has the port alone
        for _ in range(5):
            assert (await clients.service.ListIntegrationTypes(pb.ListIntegrationTypesRequest())).integration_types


@pytest.mark.slow
async def test_a_database_of_another_baseline_is_rejected_with_one_sentence(sqlite_url: str, tmp_path: Path) -> None:
    async with open_database(sqlite_url) as database, database.write_transaction() as connection:
        await connection.execute(text("UPDATE schema_compatibility SET baseline_fingerprint = 'another'"))
    for number, command in enumerate(["serve", "dev", "migrate"]):
        mode = {"SANDBOX_ADDRESS": "127.0.0.1:0"} if command == "dev" else {"DEV_MODE": "false"}
        environment = server_environment(sqlite_url, **mode)
        finished = await run(make_directory(tmp_path, number), environment, command)
        assert_refused(finished, "set DATABASE_URL to a new database")
        assert len(finished.err.strip().splitlines()) == 1


async def test_a_missing_schema_is_reported_with_the_command_to_run(empty_sqlite_url: str, tmp_path: Path) -> None:
    finished = await run(tmp_path, server_environment(empty_sqlite_url, DEV_MODE="false"), "serve")
    assert_refused(finished, "python -m integration_server migrate")


async def test_an_unreachable_database_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"postgresql://ada:hunter2@127.0.0.1:{unused.getsockname()[1]}/nothing"
        finished = await run(tmp_path, server_environment(url, DEV_MODE="false"), "serve")
    assert_refused(finished, "database")
    assert "hunter2" not in finished.err
