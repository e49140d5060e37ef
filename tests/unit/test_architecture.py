"""The import contracts in pyproject.toml hold, and each of them can fail."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def lint_imports(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run import-linter as `make lint` does, on the package in `project`."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-logo", "--no-cache", *options],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy_of_the_code(tmp_path: Path) -> Path:
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    shutil.copytree(
        PROJECT / "integration_server",
        tmp_path / "integration_server",
        ignore=shutil.ignore_patterns("__pycache__", ".*"),
    )
    return tmp_path


def test_every_contract_is_kept() -> None:
    result = lint_imports(PROJECT)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contract", "module", "violation"),
    [
        pytest.param("layers", "domain", "import integration_server.service", id="domain-imports-service"),
        pytest.param("layers", "service", "import integration_server.providers", id="service-imports-providers"),
        pytest.param("layers", "rpc", "import integration_server.storage", id="rpc-imports-storage"),
        pytest.param("grpc", "service", "import grpc", id="service-imports-grpc"),
        pytest.param("grpc", "storage", "import integrations.v1", id="storage-imports-protobuf"),
        pytest.param("sql", "service", "import sqlalchemy", id="service-imports-sql"),
        pytest.param("sql", "rpc", "import asyncpg", id="rpc-imports-sql"),
        pytest.param("http", "service", "import httpx", id="service-imports-http"),
        pytest.param("http", "sandbox", "import httpx", id="sandbox-imports-http"),
        pytest.param("sidecar", "sidecar", "import integration_server.service", id="sidecar-imports-service"),
        pytest.param("client", "client", "import integration_server.domain.text_escaping", id="client-imports-server"),
        pytest.param("client", "client", "import structlog", id="client-imports-structlog"),
        pytest.param("metrics", "service", "import prometheus_client", id="service-imports-prometheus"),
        pytest.param("settings", "providers", "import integration_server.settings", id="providers-import-settings"),
        pytest.param("sandbox", "sandbox", "import integration_server.domain", id="sandbox-imports-domain"),
        pytest.param(
            "circles",
            "providers/grants",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import integration_server.providers.oauth2",
            id="grants-import-what-imports-them",
        ),
    ],
)
def test_a_violation_breaks_its_contract(copy_of_the_code: Path, contract: str, module: str, violation: str) -> None:
    with (copy_of_the_code / "integration_server" / module / "__init__.py").open("a") as source:
        source.write(f"\n{violation}\n")

    result = lint_imports(copy_of_the_code, "--contract", contract)

    assert result.returncode == 1
    assert "1 broken" in result.stdout


def test_a_new_module_must_be_assigned_to_a_layer(copy_of_the_code: Path) -> None:
    (copy_of_the_code / "integration_server" / "helpers.py").write_text("")

    result = lint_imports(copy_of_the_code, "--contract", "layers")

    assert result.returncode == 1
    assert "helpers" in result.stdout


SERVICE = PROJECT / "integration_server" / "service"


def stated_imports(package: Path) -> set[str]:
    """What a package of the service may import of the others, as the docstring of its `__init__` states it."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    return set(re.findall(r"`([\w.]+)`", docstring.partition("of `service`:")[2]))


def service_imports(package: Path, source: str) -> set[str]:
    """What a module of a package imports of the rest of the service: `common_types`, `credentials.ports`."""
    modules = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    prefix = "integration_server.service."
    paths = [module.removeprefix(prefix) for module in modules if module.startswith(prefix)]
    return {path for path in paths if path.partition(".")[0] != package.name}


def import_problems(package: Path, sources: Iterable[str]) -> list[str]:
    """Imports that the docstring of a package does not state, and statements that no import needs."""
    stated, needed, problems = stated_imports(package), set[str](), []
    for path in sorted(set().union(*(service_imports(package, source) for source in sources))):
        if found := stated & {path, path.partition(".")[0]}:
            needed |= found
        else:
            problems.append(f"imports {path}")
    return problems + [f"does not import {name}" for name in sorted(stated - needed)]


PACKAGES = sorted(path.parent for path in SERVICE.glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_service_package_imports_what_its_docstring_states(package: Path) -> None:
    assert import_problems(package, [path.read_text() for path in package.glob("*.py")]) == []


def test_negative_control_another_import_of_a_service_package_is_a_problem() -> None:
    sources = [path.read_text() for path in (SERVICE / "audit").glob("*.py")]
    sources.append("from integration_server.service.credentials.ports import Lease")
    assert import_problems(SERVICE / "audit", sources) == ["imports credentials.ports"]
    assert import_problems(SERVICE / "audit", []) == ["does not import common_types"]
