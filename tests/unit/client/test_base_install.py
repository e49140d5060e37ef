"""The base install: the built wheel beside the client's three dependencies, and nothing else."""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
MAX_BYTES = 1_000_000  # with the server


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages. `typing_extensions` is a dependency of grpcio."""
    site = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(site)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    (wheel,) = site.glob("*.whl")
    assert wheel.stat().st_size <= MAX_BYTES
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in ("grpc", "google.protobuf", "google.rpc", "google.api", "typing_extensions"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None or spec.submodule_search_locations
        origin = Path(spec.origin) if spec.origin else Path(next(iter(spec.submodule_search_locations or ())))
        source = origin.parent if origin.name == "__init__.py" else origin
        target = site.joinpath(*name.split(".")).with_suffix(source.suffix)
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(source)
    return site


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these packages only."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        env={"PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_client_works_with_three_dependencies(base_install: Path) -> None:
    result = run(
        base_install,
        "-c",
        "from integration_server.client import AsyncIntegrations, Integrations, IntegrationsError\n"
        "with Integrations('127.0.0.1:1') as client:\n"
        "    try:\n"
        "        client.account(user='ada', integration_id=1).credentials()\n"
        "    except IntegrationsError as error:\n"
        "        print(type(error).__name__)\n",
    )
    assert (result.returncode, result.stdout) == (0, "Unavailable\n"), result.stderr


@pytest.mark.slow
def test_the_commands_and_adapters_name_the_extra_to_install(base_install: Path) -> None:
    commands = run(base_install, "-m", "integration_server", "serve")
    assert commands.returncode == 1
    assert "pip install 'integration-server[server]'" in commands.stderr
    adapter = run(
        base_install,
        "-c",
        "from integration_server.client import Integrations\n"
        "Integrations('127.0.0.1:1').account(user='ada', integration_id=1).httpx()",
    )
    assert "pip install 'integration-server[httpx]'" in adapter.stderr


@pytest.mark.slow
def test_negative_control_the_servers_packages_are_not_there(base_install: Path) -> None:
    assert "No module named 'sqlalchemy'" in run(base_install, "-c", "import sqlalchemy").stderr
