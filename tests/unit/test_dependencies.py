"""The bounds of dependencies in pyproject.toml, and the lock files from which everything is installed."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2]
SERVER = ("server", "aws", "redis", "traces")
CLIENT = ("azure", "botocore", "github", "google", "httpx", "otel", "requests", "slack", "stripe", "twilio")
PUBLISHED = (*SERVER, *CLIENT)
LOCK, RUN_LOCK, IMAGE_LOCK = "requirements.lock", "requirements-run.lock", "requirements-image.lock"
TOOL_LOCKS = ("requirements-checks.lock", "requirements-deploy.lock")


def declared(text: str, *extras: str) -> list[Requirement]:
    """The direct dependencies, and those of the extras."""
    table = tomllib.loads(text)["project"]
    lists = [table["dependencies"], *(table["optional-dependencies"][extra] for extra in extras)]
    found = [Requirement(line) for lines in lists for line in lines]
    return [requirement for requirement in found if requirement.name != table["name"]]


def locked(name: str) -> dict[str, Requirement]:
    """The pinned packages of a lock file by name."""
    lines = re.findall(r"^([A-Za-z0-9][^\\\n]*?) *\\?$", (PROJECT / name).read_text(), re.MULTILINE)
    pins = [Requirement(line) for line in lines]
    return {canonicalize_name(pin.name): pin for pin in pins}


def pinned_version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


def violations(requirements: Sequence[Requirement], lock: Mapping[str, Requirement]) -> Iterator[str]:
    """The requirements that the lock does not keep."""
    for requirement in requirements:
        pin = lock.get(canonicalize_name(requirement.name))
        if pin is None or pinned_version(pin) not in requirement.specifier:
            yield f"{requirement} is locked as {pin}"


PYPROJECT = (PROJECT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        (LOCK, (*PUBLISHED, "build", "dev")),
        (RUN_LOCK, ("build", "server")),
        (IMAGE_LOCK, SERVER),
        *((name, (name.removeprefix("requirements-").removesuffix(".lock"),)) for name in TOOL_LOCKS),
    ],
)
def test_the_lock_files_keep_the_bounds(lock: str, extras: Sequence[str]) -> None:
    assert list(violations(declared(PYPROJECT, *extras), locked(lock))) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("grpcio<1.86", "grpcio<1.85"),
        ("limits>=5,<6", "limits>=6"),
        ("limits>=5,<6", "not-locked>=1"),
    ],
)
def test_negative_control_a_bound_that_the_lock_file_breaks_is_found(before: str, after: str) -> None:
    assert before in PYPROJECT
    assert len(list(violations(declared(PYPROJECT.replace(before, after), "server"), locked(LOCK)))) == 1


@pytest.mark.parametrize("name", [RUN_LOCK, IMAGE_LOCK, *TOOL_LOCKS])
def test_all_lock_files_have_the_same_versions(name: str) -> None:
    everything = {package: pinned_version(pin) for package, pin in locked(LOCK).items()}
    pins = {package: pinned_version(pin) for package, pin in locked(name).items()}
    shared = pins.keys() & everything.keys()
    assert shared
    assert name in TOOL_LOCKS or shared == pins.keys()
    assert {package: everything[package] for package in shared} == {package: pins[package] for package in shared}


@pytest.mark.parametrize("name", [LOCK, RUN_LOCK, IMAGE_LOCK, *TOOL_LOCKS])
def test_lock_files_have_hashes_and_name_no_index(name: str) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", (PROJECT / name).read_text())[1:]
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert [entry for entry in entries if "://" in entry] == []


def test_the_tests_run_with_the_versions_in_the_lock_file() -> None:
    pins = {name: pin for name, pin in locked(LOCK).items() if pin.marker is None or pin.marker.evaluate()}
    assert len(pins) > 50
    assert {name: version(name) for name in pins} == {name: pinned_version(pin) for name, pin in pins.items()}


def test_every_dependency_has_an_upper_bound_or_the_reason_why_not() -> None:
    reasons = dict(re.findall(r'^.*"([^",]+)"\]?,? # no upper bound: (.+)$', PYPROJECT, re.MULTILINE))
    unbounded = [
        requirement
        for requirement in declared(PYPROJECT, *PUBLISHED, "build")
        if not any(specifier.operator == "<" for specifier in requirement.specifier)
    ]
    assert {str(requirement) for requirement in unbounded} == set(reasons)
