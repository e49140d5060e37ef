"""The commands that call a running server, each as a process with an identity of its own."""

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.authenticated_system import AuthenticatedSystem, connect, run_authenticated_system
from tests.end_to_end.commands import ROOT, CompletedCommand
from tests.end_to_end.processes import free_port, run, started

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]

NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands as a caller of the server."""

    authenticated: AuthenticatedSystem
    directory: Path
    environment: Mapping[str, str]

    async def __call__(
        self, *arguments: str, code: int = 0, environment: Mapping[str, str] = NOTHING
    ) -> CompletedCommand:
        """Run a command, which ends with the exit code."""
        completed = await run(self.directory, {**self.environment, **environment}, *arguments)
        assert completed.code == code, (arguments, completed)
        assert "Traceback" not in completed.err
        return completed

    async def rows(self, *arguments: str, environment: Mapping[str, str] = NOTHING) -> list[dict[str, Any]]:
        """The objects that a command prints, one on each line."""
        completed = await self(*arguments, "--json", environment=environment)
        return [json.loads(line) for line in completed.out.splitlines()]

    async def connect(self, user: str) -> int:
        """Connect an account of the user."""
        return await connect(self.authenticated, await self.authenticated.backend(), user)

    def user_token(self, user: str) -> str:
        """The path of a file with a user's token."""
        issuer = self.authenticated.credential_issuer
        return str(issuer.put(f"{user}.jwt", issuer.users.token(user, self.authenticated.now).encode()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shell(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shell]:
    folder = tmp_path_factory.mktemp("credentials")
    async with run_authenticated_system(shared_database_url, folder) as authenticated:
        issuer = authenticated.credential_issuer
        issuer.write("backend", issuer.certificate("/backend"))
        issuer.write("proxy", issuer.authority.issue([], common_name="proxy"))
        environment = {
            "INTEGRATIONS_ADDRESS": authenticated.system.grpc_address,
            "INTEGRATIONS_CA_FILE": str(folder / "ca.pem"),
            "INTEGRATIONS_CERT_FILE": str(folder / "backend.pem"),
            "INTEGRATIONS_KEY_FILE": str(folder / "backend-key.pem"),
        }
        yield Shell(authenticated, tmp_path_factory.mktemp("commands"), environment)


@pytest.mark.slow
async def test_integrations_are_listed_shown_checked_refreshed_and_disconnected(shell: Shell) -> None:
    number = str(await shell.connect("ada"))
    listed = await shell("integrations", "list", "--user", "ada")
    header, row = listed.out.splitlines()
    assert header.split()[:2] == ["ID", "TYPE"]
    assert row.split()[:2] == [number, "sandbox"]
    assert "\x1b" not in listed.out
    assert await shell.rows("integrations", "list", "--user", "ada", "--type", "sandbox_api_key") == []

    (as_listed,) = await shell.rows("integrations", "list", "--user", "ada")
    shown = await shell("integrations", "show", number, "--user", "ada", "--json")
    assert json.loads(shown.out) == as_listed
    assert as_listed["integration_id"] == number
    assert "ada@example.com" in (await shell("integrations", "show", number, "--user", "ada")).out

    (check,) = await shell.rows("integrations", "check", number, "--user", "ada")
    assert (check["integration_id"], check["healthy"]) == (number, True)
    assert "yes" in (await shell("integrations", "check", "--user", "ada")).out
    refreshed = await shell("integrations", "refresh", number, "--user", "ada", "--force", "--json")
    assert json.loads(refreshed.out)["refreshed"] is True

    # The input of a script has ended: it is not asked, and nothing happens.
    refused = await shell("integrations", "disconnect", number, "--user", "ada", code=1)
    assert "--yes" in refused.err
    assert len(await shell.rows("integrations", "list", "--user", "ada")) == 1
    done = await shell("integrations", "disconnect", number, "--user", "ada", "--yes", "--json")
    assert json.loads(done.out)["revocation_state"] == "REVOCATION_STATE_REVOKED"
    gone = await shell("integrations", "show", number, "--user", "ada", "--json", code=1)
    assert (gone.out, json.loads(gone.err)["error"]) == (
        "",
        {
            "message": "INTEGRATION_NOT_FOUND: no such integration",
            "status": "NOT_FOUND",
            "reason": "INTEGRATION_NOT_FOUND",
        },
    )


async def test_what_users_choose_does_not_control_the_terminal(shell: Shell) -> None:
    number = await shell.connect("eve")
    backend = await shell.authenticated.backend()
    name = "\u202eno\u2028 [bold]\u00adname\u200b"
    await backend.service.UpdateIntegration(
        pb.UpdateIntegrationRequest(user_id="eve", integration_id=number, name=name, update_mask={"paths": ["name"]})
    )
    for arguments in (["list"], ["show", str(number)], ["check"], ["list", "--json"]):
        completed = await shell("integrations", *arguments, "--user", "eve")
        assert "[bold]" in completed.out
        assert completed.out.replace("\n", "").isprintable(), arguments
    assert (await shell.rows("integrations", "list", "--user", "eve"))[0]["name"] == name


async def test_an_unhealthy_integration_gives_exit_code_1(shell: Shell) -> None:
    number = str(await shell.connect("carol"))
    assert (await shell("integrations", "check", number, "--user", "carol")).err == ""
    shell.authenticated.system.sandbox.revoke_grants("ada")
    await shell("integrations", "check", number, "--user", "carol", code=1)


@pytest.mark.slow
async def test_a_command_has_the_permissions_of_its_caller_only(shell: Shell) -> None:
    number = str(await shell.connect("grace"))
    proxy = {name: str(shell.authenticated.credential_issuer.folder / file) for name, file in PROXY.items()}
    token = ["--token-file", shell.user_token("grace")]
    # With the user's own token, --user is not needed.
    assert [each["integration_id"] for each in await shell.rows("integrations", "list", *token, environment=proxy)] == [
        number
    ]
    other = await shell(
        "integrations", "show", number, "--token-file", shell.user_token("mallory"), code=1, environment=proxy
    )
    assert other.err == "INTEGRATION_NOT_FOUND: no such integration\n"
    for operators in (
        ["webhooks", "unrouted"],
        ["clients", "list"],
        ["clients", "show", "sandbox"],
        ["due-work", "list"],
        ["audit", "list"],
    ):
        assert (await shell(*operators, *token, code=1, environment=proxy)).err.startswith("CALLER_NOT_ALLOWED: ")
        await shell(*operators)  # the negative control: the backend may
    status = json.loads((await shell("status", *token, "--json", environment=proxy)).out)
    states = {part["part"]: part["state"] for part in status["parts"]}
    denied = {part for part, state in states.items() if state == "not permitted"}
    assert denied == {"OAuth clients", "unrouted webhooks", "due work", "integrations"}
    assert (status["counts"], status["due_work"]) == ([], [])

    assert "UNAUTHENTICATED" in (await shell("integrations", "list", "--user", "grace", code=1, environment=proxy)).err


PROXY = {"INTEGRATIONS_CERT_FILE": "proxy.pem", "INTEGRATIONS_KEY_FILE": "proxy-key.pem"}


async def test_events_are_printed_as_they_happen_and_continue_from_a_cursor(shell: Shell) -> None:
    cursor_file = shell.directory / "cursor"
    cursor = str(cursor_file)
    arguments = ["events", "tail", "--user", "heidi", "--cursor-file", cursor]
    async with started(shell.directory, shell.environment, *arguments) as command:
        async with asyncio.timeout(60):
            while not cursor_file.exists():  # noqa: ASYNC110  # the command writes it once the stream runs
                await asyncio.sleep(0.02)
        number = str(await shell.connect("heidi"))
        await command.wait_for_output("PENDING -> ACTIVE")
        command.send(signal.SIGINT)
        completed = await command.finished()
    assert (completed.code, completed.err) == (130, "")
    assert all(number in line.split() and "heidi" in line.split() for line in completed.out.splitlines())

    await shell("integrations", "disconnect", number, "--user", "heidi", "--yes")  # while nothing watches
    events: list[dict[str, Any]] = []
    while not events or events[-1]["kind"] != "INTEGRATION_EVENT_KIND_DISCONNECTED":
        (event,) = await shell.rows(*arguments, "--limit", "1")
        events.append(event)
        assert len(events) < 10
    assert events[-1]["integration_id"] == number


async def test_oauth_clients_and_the_status_are_shown(shell: Shell) -> None:
    number = str(await shell.connect("ivan"))
    clients = await shell.rows("clients", "list")
    (sandbox,) = (each for each in clients if each["integration_type"] == "sandbox")
    assert json.loads((await shell("clients", "show", "sandbox", "--json")).out) == sandbox
    absent = await shell("clients", "show", "sandbox", "absent", code=1)
    assert absent.err == "sandbox has no OAuth client absent.\n"

    status = await shell("status", "--user", "ivan", "--user", "nobody")
    assert "serving" in status.out
    assert [line.split()[:2] for line in status.out.splitlines() if "ivan" in line] == [[number, "ivan"]]
    (counted,) = (line.split() for line in status.out.splitlines() if line.startswith("sandbox  "))
    assert int(counted[1]) >= 1  # active
    document = json.loads((await shell("status", "--user", "ivan", "--json")).out)
    assert [each["integration_id"] for each in document["integrations"]] == [number]
    assert document["parts"][0] == {"part": "server", "state": "serving", "detail": ""}
    assert [each["integration_type"] for each in document["counts"] if each["status"] == "STATUS_ACTIVE"] == ["sandbox"]
    assert {part["part"] for part in document["parts"]} >= {"due work", "integrations"}


@pytest.mark.slow
async def test_operators_search_across_users_and_the_audit_log_shows_it(shell: Shell) -> None:
    numbers = {user: str(await shell.connect(user)) for user in ("olga", "pete")}
    found = await shell.rows("integrations", "list", "--type", "sandbox", "--status", "active")
    assert {user: each["integration_id"] for each in found if (user := each["user_id"]) in numbers} == numbers
    assert [each["integration_id"] for each in found] == sorted((each["integration_id"] for each in found), key=int)
    account = found[-1]["account_id"]
    by_account = ["integrations", "list", "--account", account]
    assert {each["user_id"] for each in await shell.rows(*by_account)} >= set(numbers)
    expired = await shell.rows(*by_account, "--status", "EXPIRED")
    assert not {each["user_id"] for each in expired} & set(numbers)
    assert [each["user_id"] for each in await shell.rows(*by_account, "--user", "pete")] == ["pete"]
    assert await shell.rows(*by_account, "--user", "pete", "--status", "pending") == []
    limited = await shell(*by_account, "--limit", "1")
    assert limited.out.splitlines()[0].split()[:3] == ["ID", "USER", "TYPE"]
    assert (len(limited.out.splitlines()), limited.err) == (
        2,
        "There are more than 1: raise --limit, or narrow the search.\n",
    )

    listing = ["audit", "list", "--action", "find_integrations", "--caller", "backend"]
    async with asyncio.timeout(60):
        while f"account_id={account}" not in {each["details"] for each in await shell.rows(*listing)}:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    details = {each["details"] for each in await shell.rows(*listing)}
    assert details >= {"status=STATUS_ACTIVE", f"status=STATUS_EXPIRED account_id={account}"}
    of_olga = await shell.rows("audit", "list", "--user", "olga", "--integration", numbers["olga"])
    assert {each["action"] for each in of_olga} == {"connect", "complete", "store_credentials"}
    assert {each["user_id"] for each in of_olga} == {"olga"}
    assert await shell.rows("audit", "list", "--since", "2100-01-01") == []
    table = await shell("audit", "list", "--user", "olga", "--limit", "2")
    assert table.out.startswith("TIME (UTC)")
    async with asyncio.timeout(60):  # who reads another's entries is in the log too
        while not await shell.rows("audit", "list", "--user", "olga", "--action", "read_audit_entries"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    for row in await shell.rows("due-work", "list", "--job", "refresh", "--oldest"):
        assert (row["job"], int(row["due_count"]) > 0) == ("JOB_REFRESH", True)
    assert (await shell("due-work", "list", "--job", "no_such", code=2)).out == ""


async def test_mistakes_are_one_line_with_the_cause(shell: Shell) -> None:
    away = f"127.0.0.1:{free_port()}"
    for arguments, code, cause in [
        (["integrations", "list", "--user", "a", "--address", away], 3, "UNAVAILABLE: "),
        (["integrations", "list", "--user", "a", "--no-tls"], 2, "tls: is false"),
        (["integrations", "list", "--user", "a", "--ca-file", "/absent.pem"], 2, "/absent.pem: No such file"),
        (["integrations", "list", "--user", "a", "--token-file", "/absent.jwt"], 2, "/absent.jwt"),
        (["integrations", "list", "--user", "a", "--type", "no_such"], 1, "UNKNOWN_INTEGRATION_TYPE: "),
        (["events", "tail", "--type", "no_such"], 1, "UNKNOWN_INTEGRATION_TYPE: "),
    ]:
        completed = await shell(*arguments, code=code)
        assert completed.out == ""
        assert completed.err.count("\n") == 1, completed.err
        assert cause in completed.err, completed.err
    status = await shell("status", "--address", away, code=3)
    assert "not available" in status.out
    assert "INTEGRATION_ID" in (await shell("integrations", "show", "0", code=2)).err.upper()


@pytest.mark.slow
async def test_a_terminal_of_80_columns_gets_a_table_that_updates(shell: Shell) -> None:
    await shell.connect("kim")
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**shell.environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", "TERM": "xterm"}
    command = [sys.executable, "-m", "integration_server", "status", "--user", "kim", "--interval", "0.5"]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=shell.directory, stdin=child, stdout=child, stderr=child
    )
    os.close(child)
    try:
        shown = await asyncio.to_thread(_read_until, parent, lambda text: text.count("PART") >= 3)
    finally:
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 60)
        os.close(parent)
    assert process.returncode == 130
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in shown.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert any("kim" in line.split() and "ACTIVE" in line for line in lines)
    assert "…" in shown  # a cell that does not fit


def _read_until(descriptor: int, is_complete: Callable[[str], bool]) -> str:
    """What a terminal shows until it is complete, for at most a minute."""
    content, deadline = b"", time.monotonic() + 60
    while not is_complete(content.decode(errors="replace")):
        ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
        assert ready, content
        content += os.read(descriptor, 65536)
    return content.decode(errors="replace")
