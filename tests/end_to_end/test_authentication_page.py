"""docs/authentication-and-authorization.md works as it stands: its policy, settings and programs, in the order in
which it has them.
"""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from integration_server.rpc.permissions import METHOD_PERMISSIONS, USER_PERMISSIONS, Permission
from tests.end_to_end.commands import ROOT
from tests.end_to_end.processes import free_port, started

PAGE = (ROOT / "docs" / "authentication-and-authorization.md").read_text()


def block(language: str, containing: str) -> str:
    """The one code block of the page with that text."""
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if containing in text)
    return str(found)


async def python(directory: Path, *arguments: str) -> str:
    """What a program prints, run as a reader would from a working copy."""
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


async def test_a_reader_can_run_it(tmp_path: Path) -> None:
    await python(tmp_path, str(ROOT / "tools" / "certificates.py"))
    address = f"127.0.0.1:{free_port()}"
    for name, text in {
        "policy.toml": block("toml", "[users]"),
        "issue.py": block("python", "# issue.py"),
        "call.py": block("python", "# call.py").replace("127.0.0.1:50051", address),
    }.items():
        (tmp_path / name).write_text(text)
    await python(tmp_path, "issue.py")
    settings = dict(re.findall(r"(\w+)=(\S+)", block("sh", "export TLS_CERT_FILE")))
    addresses = {
        "GRPC_ADDRESS": address,
        "SIDECAR_ADDRESS": f"127.0.0.1:{free_port()}",
        "SANDBOX_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    async with started(tmp_path, {**settings, **addresses}, "dev") as command:
        await command.wait_for_output("Callers are authenticated")
        reported = await python(tmp_path, "call.py")
    assert reported.splitlines() == [
        "service may connect: True",
        "user has: [1]",
        "user gets credentials: PERMISSION_DENIED",
    ]


def test_it_has_the_table_of_groups_as_it_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (may|never)", PAGE, re.MULTILINE)
    assert {group: may == "may" for group, _, may in rows} == {group: group in USER_PERMISSIONS for group in Permission}
    reported = {group: set(re.findall(r"`(\w+)`", methods)) for group, methods, _ in rows}
    for path, group in METHOD_PERMISSIONS.items():
        if path.startswith("/integrations."):
            assert path.rpartition("/")[2] in reported[group]
    assert sum(map(len, reported.values())) == sum(path.startswith("/integrations.") for path in METHOD_PERMISSIONS)
