"""The Dockerfile and compose.yaml as texts: what reaches the image, and how confined its containers are."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration_server.settings import Settings
from tests.compose import image_environment, read_project, start_order

PROJECT = Path(__file__).parents[2]
DOCKERFILE = (PROJECT / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
FINAL = STAGES[-1]
USER = "10001"


def copied_into(stage: str) -> list[str]:
    """What a stage copies from the project."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", stage, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def is_ignored(path: str, rules: str) -> bool:
    """Whether .dockerignore excludes a path: the last rule that matches the path or a parent decides."""
    paths = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    ignored = False
    for rule in (line for line in rules.splitlines() if line and not line.startswith("#")):
        pattern = rule.removeprefix("!").strip("/")
        anywhere = pattern.removeprefix("**/")
        if any(fnmatch(one, anywhere if anywhere == pattern else f"*{anywhere}") for one in paths):
            ignored = not rule.startswith("!")
    return ignored


RULES = (PROJECT / ".dockerignore").read_text()


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    sources = [source for stage in STAGES for source in copied_into(stage)]
    assert set(sources) >= {"pyproject.toml", "integration_server", "requirements-image.lock"}
    assert [source for source in sources if not (PROJECT / source).exists()] == []
    assert [source for source in sources if is_ignored(source, RULES)] == []
    assert not is_ignored("integration_server/providers/catalogue/slack.toml", RULES)


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "data/compose/server.env",
        "data/certs/server-key.pem",
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "integration_server/__pycache__/cli.cpython-313.pyc",
        "protos/baseline.binpb",
    ],
)
def test_secrets_history_and_leftovers_do_not_reach_the_docker_daemon(path: str) -> None:
    assert is_ignored(path, RULES)


@pytest.mark.slow
def test_the_wheel_of_the_image_builds_from_what_is_copied(tmp_path: Path) -> None:
    (stage,) = (stage for stage in STAGES if "pip wheel" in stage)
    for source in copied_into(stage):
        target = tmp_path / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / source).is_dir():
            shutil.copytree(PROJECT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / source, target)
    (command,) = re.findall(r"^RUN python -m pip (wheel .+)$", stage, re.MULTILINE)
    arguments = [sys.executable, "-m", "pip", *command.split(), "--no-deps", "--no-index", "--quiet"]
    subprocess.run(arguments, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("integration_server-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {str(path.relative_to(PROJECT)) for path in (PROJECT / "integration_server").rglob("*") if path.is_file()}
    assert {name for name in ours if "__pycache__" not in name} - names == set()
    assert "integrations/v1/integrations.v1.binpb" in names


def test_the_image_runs_without_a_name_a_shell_or_other_places_to_write() -> None:
    assert re.findall(r"^USER (.+)$", FINAL, re.MULTILINE) == [f"{USER}:{USER}"]
    assert re.findall(r"^RUN ", FINAL, re.MULTILINE) == []
    assert 'ENTRYPOINT ["integration-server"]' in FINAL
    assert 'CMD ["serve"]' in FINAL
    assert 'CMD ["integration-server", "healthcheck"]' in FINAL
    volumes = yaml.safe_load(re.findall(r"^VOLUME (.+)$", FINAL, re.MULTILINE)[0])
    (folder,) = re.findall(r"^WORKDIR (.+)$", FINAL, re.MULTILINE)
    assert volumes == [f"{folder}/data", f"{folder}/journal"]  # SQLite's default is ./data
    assert image_environment()["REFRESH_JOURNAL_DIR"] == f"{folder}/journal"
    # New volumes belong to the user.
    assert f"--owner={USER} --group={USER} /volumes/data /volumes/journal" in DOCKERFILE


def test_base_images_have_exact_tags_and_packages_hashes() -> None:
    bases = [stage.split()[0] for stage in STAGES]
    external = {base for base in bases if base != "base"}
    assert len(external) == 1
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", base) for base in external)
    installs = re.findall(r"pip (?:--python \S+ )?install ([^&\n]+)", DOCKERFILE)
    assert len(installs) == 3
    assert all("--require-hashes" in install or "--no-index" in install for install in installs)


# --- compose.yaml ----------------------------------------------------------------------------------------------------

SERVICES: dict[str, Any] = read_project()["services"]
OWN = [name for name, service in SERVICES.items() if "build" in service]


def test_compose_starts_the_migration_before_the_servers() -> None:
    order = start_order(SERVICES)
    assert order.index("postgres") < order.index("migrate") < order.index("server-1") < order.index("envoy")
    for name in ("server-1", "server-2"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize(
    "services", [{"a": {"depends_on": {"b": {}}}, "b": {"depends_on": {"a": {}}}}, {"a": {"depends_on": {"c": {}}}}]
)
def test_a_circle_or_an_unknown_service_is_found(services: Any) -> None:
    with pytest.raises(ValueError, match="a circle, or no such service"):
        start_order(services)


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "postgres"])
def test_compose_confines_its_containers(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_compose_names_exact_images_and_no_secret(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/-]+:[a-z-]*v?\d+\.\d+[\w.-]*", service["image"])
    known = {field.alias for field in Settings.model_fields.values()}
    if name in OWN:
        variables = service.get("environment", {})
        assert variables.keys() - known == set()
        assert variables.keys() & {"DATABASE_URL", "ENCRYPTION_KEY", "DEV_MODE"} == set()


def test_only_envoy_and_prometheus_are_published() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"envoy": ["8000:8000"], "prometheus": ["127.0.0.1:9090:9090"]}


def test_the_versions_of_the_project_the_chart_and_compose_agree() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((PROJECT / "deploy/helm/integration-server/Chart.yaml").read_text())
    assert chart["appVersion"] == version
    assert {SERVICES[name]["image"] for name in OWN} == {f"integration-server:{version}"}
