"""What each command prints with `--json`: one document, or an object on each line; after an error, an object.

The commands that call a server are run without one here; test_command_line.py has their results.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.declarations import DECLARATIONS
from tests.end_to_end.commands import CompletedCommand
from tests.end_to_end.processes import free_port, run, server_environment
from tests.unit.cli.test_json_option import TREE, WITHOUT_RESULT

pytestmark = pytest.mark.slow  # a process for each command

INVALID: Mapping[str, str] = {
    "DATABASE_URL": "postgresql://ada:secret@127.0.0.1:1/x",
    "PROVIDERS_DIR": "absent",
    "SIDECAR_ADDRESS": f"127.0.0.1:{free_port()}",
    "INTEGRATIONS_CA_FILE": "absent.pem",
}
REQUIRED_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "types check": ("absent.toml",),
    "types show": ("absent",),
    "types try": ("absent",),
    "types new": ("github",),
    "keys remove": ("1",),
    "audit erase-user": ("ada", "--yes"),
    "integrations show": ("1",),
    "integrations refresh": ("1",),
    "integrations disconnect": ("1", "--yes"),
    "clients show": ("github",),
}
CANNOT_FAIL = {"types schema"}
LOCAL = {"migrate", "restored", "doctor", "expiring", "healthcheck", "types", "keys", "audit"}
NOT_VERIFIED = 3  # the exit code of `audit verify`


def documents(text: str) -> Iterator[Any]:
    """The JSON documents of a text, which has nothing else."""
    decoder = json.JSONDecoder()
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        yield document
        text = text[end:]


async def test_every_command_reports_an_error_as_an_object(tmp_path: Path) -> None:
    environment = server_environment("", **INVALID, DEV_MODE="false")
    for name in sorted(TREE.keys() - WITHOUT_RESULT.keys() - CANNOT_FAIL):
        failed = await run(tmp_path, environment, *name.split(), *REQUIRED_ARGUMENTS.get(name, ()), "--json")
        expected = NOT_VERIFIED if name == "audit verify" else 1 if name.split()[0] in LOCAL else 2
        assert failed.code == expected, (name, failed)
        if name == "doctor":  # its document says what is wrong
            assert len(list(documents(failed.out))) == 1
            continue
        assert failed.out == "", name
        assert json.loads(failed.err.splitlines()[-1])["error"]["message"], name


async def test_local_commands_print_documents(tmp_path: Path, sqlite_url: str) -> None:
    environment = server_environment(sqlite_url, DEV_MODE="false", DATA_KEY_ACTIVATION_SECONDS="1")
    shutil.copy(DECLARATIONS / "token_prefix.toml", tmp_path)

    async def printed(*arguments: str, code: int = 0) -> list[Any]:
        completed: CompletedCommand = await run(tmp_path, environment, *arguments, "--json")
        assert completed.code == code, (arguments, completed)
        if code:
            assert completed.out == ""
            return [json.loads(completed.err.splitlines()[-1])["error"]]
        return list(documents(completed.out))

    assert await printed("migrate") == [{"schema": "up to date"}]
    assert await printed("restored") == [{"database": "restored"}]
    (added,) = await printed("keys", "add")
    assert added["activation_seconds"] == 1
    (refused,) = await printed("keys", "add", code=1)
    assert "run `keys rotate` first" in refused["message"]
    (rotated,) = await printed("keys", "rotate", "--no-new-key")
    assert (rotated["data_key"], rotated["unreadable_values"]) == (added["data_key"], [])
    (old,) = rotated["removable"]
    assert [key["data_key"] for key in await printed("keys", "show")] == [old["data_key"], added["data_key"]]
    (early,) = await printed("keys", "remove", old["data_key"], code=1)
    assert old["data_key"] in early["message"]
    assert await printed("keys", "remove", old["data_key"], "--force") == [{"removed_data_key": old["data_key"]}]
    (rewrapped,) = await printed("keys", "rewrap")
    assert (rewrapped["rewrapped_data_keys"], len(rewrapped["wrapped_by"]) > 0) == (0, True)

    (verified,) = await printed("audit", "verify")
    assert (verified["intact"], verified["problems"]) == (True, [])
    assert verified["entries"] == len(await printed("audit", "list")) > 0
    assert await printed("audit", "erase-user", "ada") == [{"erased_entries": 0, "altered_entries": []}]
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    with closing(connection), connection:
        connection.execute("UPDATE audit_entries SET user_id = 'ada'")
    (unconfirmed,) = await printed("audit", "erase-user", "ada", code=1)  # the input of a script has ended
    assert "--yes" in unconfirmed["message"]
    altered = await run(tmp_path, environment, "audit", "verify", "--json")
    (document,) = documents(altered.out)
    assert (altered.code, document["intact"], len(document["problems"]) > 0) == (1, False, True)

    assert {check["check"] for check in (await printed("doctor"))[0]} > {"database", "keys"}
    assert await printed("expiring") == []
    assert {each["type"] for each in await printed("types")} > {"github"}
    assert (await printed("types", "schema"))[0]["$schema"].startswith("https://json-schema.org/")
    assert await printed("types", "check", "token_prefix.toml") == [
        {"file": "token_prefix.toml", "integration_type": "token_prefix"}
    ]
    assert await printed("types", "new", "acme") == [{"file": "acme.toml", "integration_type": "acme"}]
    assert (await printed("types", "show", "token_prefix.toml"))[0][0]["purpose"]
