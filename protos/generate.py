"""Compiles the contract in `protos/` into the source root `generated/`.

Messages are made by protoc itself (`.py` and `.pyi`), services by gRPC's plugin, and their types by
mypy-protobuf's, so that a strict type checker passes on a caller's code. Third-party protos (`google/api`,
`google/rpc`) come from the installed googleapis-common-protos, and none is copied in.

    python protos/generate.py                writes generated/, and removes what no proto makes any more
    python protos/generate.py --check        compares only: lists what differs and exits with 1
    python protos/generate.py --image PATH   writes a descriptor image, with imports and source info, for buf
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
GENERATED = PROTOS.parent / "generated"
PACKAGE = "integrations"

PACKAGE_INIT = '"""What protoc makes of protos/: never edited by hand, see protos/generate.py."""\n'


class CompilationFailed(Exception):
    """protoc refused the protos; `str()` has what it said, with file and line."""


def write(protos: Path = PROTOS, generated: Path = GENERATED) -> list[str]:
    """Brings `generated` up to date and answers with the paths that changed, relative to it."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        compile_into(fresh, protos)
        changed = differences(fresh, generated)
        for path in changed:
            target = generated / path
            if (fresh / path).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((fresh / path).read_bytes())
            else:
                target.unlink()
    return changed


def check(protos: Path = PROTOS, generated: Path = GENERATED) -> list[str]:
    """Answers with the paths, relative to `generated`, whose bytes are not what the protos make."""
    with tempfile.TemporaryDirectory() as scratch:
        compile_into(Path(scratch), protos)
        return differences(Path(scratch), generated)


def compile_into(target: Path, protos: Path = PROTOS) -> None:
    """Compiles every proto under `protos` into the existing folder `target`, as a complete source root.

    Raises:
        CompilationFailed: a proto is wrong.
    """
    protoc(
        protos,
        f"--plugin=protoc-gen-mypy_grpc={_script('protoc-gen-mypy_grpc')}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out={target}",
    )
    package = target / PACKAGE
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(PACKAGE_INIT, encoding="utf-8")
    (package / "py.typed").touch()


def write_image(image: Path, protos: Path = PROTOS) -> None:
    """Writes the FileDescriptorSet that buf reads in place of sources, with all that the protos import."""
    image.parent.mkdir(parents=True, exist_ok=True)
    protoc(protos, f"--descriptor_set_out={image}", "--include_imports", "--include_source_info")


def protoc(protos: Path, *options: str) -> None:
    """Runs grpcio-tools' protoc, which brings `google/protobuf` along, on every proto under `protos`."""
    # Sorted, since the order of an image's files follows it.
    sources = sorted(path.relative_to(protos).as_posix() for path in (protos / PACKAGE).rglob("*.proto"))
    if not sources:
        raise CompilationFailed(f"no .proto file under {protos / PACKAGE}")
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        *(f"--proto_path={root}" for root in [protos, _third_party_protos()]),
        *options,
        *sources,
    ]
    # The plugin is a Python program: a fixed seed keeps any set that it walks in one order.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    result = subprocess.run(command, cwd=protos, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CompilationFailed(result.stderr.strip() or f"protoc ended with {result.returncode}")


def differences(fresh: Path, generated: Path) -> list[str]:
    """The paths, relative to both folders, that only one of them has or whose bytes differ."""
    expected, found = _files(fresh), _files(generated)
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


def _files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def _third_party_protos() -> Path:
    # `google` is a namespace that several installed packages share, so it is asked where its `api` is.
    spec = importlib.util.find_spec("google.api")
    if spec is None or not spec.submodule_search_locations:
        raise CompilationFailed("googleapis-common-protos is not installed: run `make setup`")
    return Path(next(iter(spec.submodule_search_locations))).parent.parent


def _script(name: str) -> Path:
    return Path(sysconfig.get_path("scripts")) / (name + (".exe" if os.name == "nt" else ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line described above; answers with the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare only; exit with 1 where files differ")
    what.add_argument("--image", type=Path, metavar="PATH", help="write a descriptor image instead")
    options = parser.parse_args(arguments)
    try:
        if options.image:
            write_image(options.image.resolve())
            return 0
        if options.check:
            return _report_check(check())
        _report_write(write())
    except CompilationFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _report_check(stale: list[str]) -> int:
    for path in stale:
        print(f"generated/{path} is not what the protos make: run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def _report_write(changed: list[str]) -> None:
    for path in changed:
        print(f"{'wrote' if (GENERATED / path).exists() else 'removed'} generated/{path}")
    if not changed:
        print("generated/ is up to date")


if __name__ == "__main__":
    sys.exit(main())
