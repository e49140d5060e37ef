"""Completion in a real bash, with the script that `--show-completion` prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration_server.cli.program import program_name

# The options then take the name of the shell; otherwise it is that of the parent process.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(sys.path),
    "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
}
COMPLETE = """
source "$1"
shift
COMP_WORDS=(integration-server "$@")
COMP_CWORD=$#
_integration_server_completion integration-server
echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, beside the command `integration-server`."""
    directory = tmp_path_factory.mktemp("bin")
    command = directory / "integration-server"
    command.write_text(f"#!{sys.executable}\nfrom integration_server.__main__ import main\nmain()\n")
    command.chmod(0o755)
    arguments = [sys.executable, "-m", "integration_server", "--show-completion", "bash"]
    printed = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=120)
    path = directory / "completion.sh"
    path.write_text(printed.stdout)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["integ"], ["integrations"]),
        (["integrations", "re"], ["refresh"]),
        (["keys", "r"], ["rotate", "rewrap", "remove"]),
        (["status", "--inter"], ["--interval"]),
    ],
)
def test_bash_completes_commands_and_options(words: list[str], completed: list[str], script: Path) -> None:
    environment = {**ENVIRONMENT, "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(script), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert run.stdout.split() == completed, run.stderr


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/usr/lib/integration_server/__main__.py", "types"], "python -m integration_server"),
        (["/usr/lib/integration_server/__main__.py", "--install-completion"], "integration-server"),
        (["/usr/bin/integration-server", "types"], "integration-server"),
    ],
)
def test_help_names_the_program_as_it_was_started(argv: list[str], name: str) -> None:
    assert program_name(argv) == name
