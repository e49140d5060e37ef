"""Writes the software bill of materials (SBOM) of the image, in CycloneDX.

    python -m tools.sbom [FILE]      default: build/sbom.cdx.json

Its components are the packages of `requirements-image.lock`, from which the Dockerfile installs: versions, hashes and
package URLs. What the base image has is not part of it. The same lock file gives the same document, which is valid
against the schema of CycloneDX.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
LOCK = PROJECT / "requirements-image.lock"
TARGET = PROJECT / "build" / "sbom.cdx.json"
SPECIFICATION = "1.6"


def build_sbom(lock: Path = LOCK) -> dict[str, Any]:
    """The SBOM of a lock file. Raises `CalledProcessError` if it is not valid."""
    command = [
        *(
            sys.executable,
            "-m",
            "cyclonedx_py",
            "requirements",
            str(lock),
            "--pyproject",
            str(PROJECT / "pyproject.toml"),
        ),
        *("--spec-version", SPECIFICATION, "--output-format", "JSON", "--output-reproducible", "--validate"),
    ]
    result = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own arguments
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def main() -> None:
    """Write the file of the command line."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    document = build_sbom()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{target}: {len(document['components'])} packages, CycloneDX {SPECIFICATION}")


if __name__ == "__main__":
    main()
