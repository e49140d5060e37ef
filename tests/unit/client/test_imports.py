"""What the client imports, what it costs, and what the commands say without the server's dependencies."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integration_server.__main__ import main

PROJECT = Path(__file__).resolve().parents[3]
SERVER_ONLY = (
    "aiosqlite",
    "alembic",
    "asyncpg",
    "authlib",
    "cryptography",
    "httpx",
    "pydantic",
    "sqlalchemy",
    "structlog",
)
PROGRAM = """
import json, sys, time
begin = time.process_time()
import {module}
print(json.dumps([time.process_time() - begin, sorted(sys.modules)]))
"""


def imported(module: str) -> tuple[float, set[str]]:
    """The CPU seconds of an import in a new process, and the modules after it."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        env={"PYTHONPATH": f"{PROJECT}:{PROJECT / 'generated'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, modules = json.loads(result.stdout)
    return seconds, set(modules)


def test_the_client_imports_nothing_of_the_server() -> None:
    _, modules = imported("integration_server.client")
    ours = {name for name in modules if name.startswith("integration_server.")}
    assert {name for name in ours if not name.startswith("integration_server.client")} == set()
    assert modules & {*SERVER_ONLY, "opentelemetry", "requests"} == set()


def test_negative_control_imports_of_the_server_are_seen() -> None:
    _, modules = imported("integration_server.domain.text, structlog")
    assert {"integration_server.domain", "structlog"} <= modules


LOAD = """
import sys
sys.argv = ["integration_server", *{arguments}]
from integration_server.__main__ import _load_commands
_load_commands()
print(*(name for name in ("click", "rich", "sqlalchemy.orm", "typer") if name in sys.modules))
import click, rich.text
"""


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "found"), [(["serve"], ""), (["serve", "--help"], "click rich typer")])
def test_serve_imports_no_library_that_only_other_commands_need(arguments: list[str], found: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOAD.format(arguments=arguments)],
        env={"PYTHONPATH": f"{PROJECT}:{PROJECT / 'generated'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == found


def test_commands_without_the_server_say_how_to_install_it() -> None:
    def load() -> Callable[[], None]:
        raise ModuleNotFoundError("No module named 'typer'", name="typer")

    with pytest.raises(SystemExit, match=r"pip install 'integration-server\[server\]'"):
        main(load)


def test_a_missing_module_of_ours_is_a_defect() -> None:
    def load() -> Callable[[], None]:
        raise ModuleNotFoundError("No module named 'integration_server.cli'", name="integration_server.cli")

    with pytest.raises(ModuleNotFoundError):
        main(load)


def test_the_commands_run_with_the_servers_dependencies() -> None:
    ran: list[bool] = []
    main(lambda: lambda: ran.append(True))
    assert ran == [True]
