"""The policy, settings and programs of docs/authentication-and-authorization.md work, and its table is complete."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from integration_server.domain.callers import USER_PERMISSIONS, Permission
from integration_server.rpc.methods import method_of
from integrations.v1 import google_calendar_pb2, integration_service_pb2, operator_service_pb2
from tests.end_to_end.commands import ROOT
from tests.end_to_end.processes import free_port, started

PAGE = (ROOT / "docs" / "authentication-and-authorization.md").read_text()


def code_block(language: str, containing: str) -> str:
    """The code block of the page that contains the text."""
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if containing in text)
    return str(found)


async def run_python(directory: Path, *arguments: str) -> str:
    """The output of a program, run in a working copy."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "generated")])
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
async def test_the_commands_on_the_page_work(tmp_path: Path) -> None:
    await run_python(tmp_path, str(ROOT / "tools" / "certificates.py"))
    address = f"127.0.0.1:{free_port()}"
    for name, text in {
        "policy.toml": code_block("toml", "[users]"),
        "issue.py": code_block("python", "# issue.py"),
        "call.py": code_block("python", "# call.py").replace("127.0.0.1:50051", address),
    }.items():
        (tmp_path / name).write_text(text)
    await run_python(tmp_path, "issue.py")
    settings = dict(re.findall(r"(\w+)=(\S+)", code_block("sh", "export TLS_CERT_FILE")))
    addresses = {
        "GRPC_ADDRESS": address,
        "SIDECAR_ADDRESS": f"127.0.0.1:{free_port()}",
        "SANDBOX_ADDRESS": f"127.0.0.1:{free_port()}",
        "METRICS_ADDRESS": "",
    }
    async with started(tmp_path, {**settings, **addresses}, "dev") as command:
        await command.wait_for_output("Callers must authenticate")
        reported = await run_python(tmp_path, "call.py")
    assert reported.splitlines() == [
        "service may connect: True",
        "user has: [1]",
        "user gets credentials: PERMISSION_DENIED",
    ]


def test_the_table_of_permissions_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (yes|no)", PAGE, re.MULTILINE)
    granted_to_users = {permission for permission, _, users in rows if users == "yes"}
    assert {permission for permission, *_ in rows} == set(Permission)
    assert granted_to_users == USER_PERMISSIONS
    documented = {permission: set(re.findall(r"`(\w+)`", methods)) for permission, methods, _ in rows}
    contract: dict[str, set[str]] = {}
    for file in (integration_service_pb2, google_calendar_pb2, operator_service_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for descriptor in service.methods:
                contract.setdefault(str(method_of(descriptor).permission), set()).add(descriptor.name)
    assert {permission: methods for permission, methods in documented.items() if methods} == contract
