"""The software bill of materials of the image."""

from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError

import pytest

from tests.unit.test_dependencies import IMAGE_LOCK, locked, pinned_version
from tools.sbom import LOCK, build_sbom

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("cyclonedx_py") is None, reason="no cyclonedx-py: `make lint` installs it, and these tests run too"
    ),
]


def test_it_lists_every_locked_package_with_its_hashes() -> None:
    document = build_sbom()  # validated against the schema
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "integration-server"
    components = {component["name"]: component for component in document["components"]}
    pins = {name: pinned_version(pin) for name, pin in locked(IMAGE_LOCK).items()}
    assert {name: component["version"] for name, component in components.items()} == pins
    for name, component in components.items():
        assert component["purl"] == f"pkg:pypi/{name}@{pins[name]}"
        assert component["externalReferences"][0]["hashes"]


def test_the_same_lock_file_gives_the_same_document() -> None:
    assert build_sbom() == build_sbom()


def test_a_lock_file_that_is_missing_fails(tmp_path: Path) -> None:
    with pytest.raises(CalledProcessError):
        build_sbom(tmp_path / LOCK.name)
