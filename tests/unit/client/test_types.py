"""The types of the client hold in an application's code, for both type checkers; a mistake is found by both."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
SAMPLE = Path(__file__).parent / "samples" / "application.py"


def check(checker: str, source: Path) -> subprocess.CompletedProcess[str]:
    """Run a type checker on a file outside of the project, as users do."""
    if checker == "mypy":
        command = ["-m", "mypy", "--strict", "--config-file=", "--cache-dir=.mypy_cache", str(source)]
    else:
        config = source.parent / "pyrightconfig.json"
        roots = f'["{PROJECT}", "{PROJECT / "generated"}"]'
        config.write_text(f'{{"include": ["{source.name}"], "extraPaths": {roots}, "typeCheckingMode": "strict"}}')
        command = ["-m", "basedpyright", "--project", str(config), "--pythonpath", sys.executable]
    return subprocess.run(
        [sys.executable, *command],
        cwd=source.parent,
        env={"MYPYPATH": f"{PROJECT}:{PROJECT / 'generated'}", "PATH": "/usr/bin:/bin", "HOME": str(source.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_an_applications_code_has_no_errors(checker: str, tmp_path: Path) -> None:
    source = tmp_path / "application.py"
    shutil.copy(SAMPLE, source)
    result = check(checker, source)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("reason: str = error.reason", "reason: int = error.reason"),
        ("client.list(user=user)", "client.list(user=7)"),
        ("account.credentials()).access_token", "account.credentials()).expire_time"),
    ],
)
def test_negative_control_a_mistake_is_found(checker: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = SAMPLE.read_text()
    assert right in text
    source = tmp_path / "application.py"
    source.write_text(text.replace(right, wrong))
    assert check(checker, source).returncode == 1
