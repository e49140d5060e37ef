"""What is generated is up to date with `protos/`, byte for byte; breaking changes are found."""

import ast
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import sysconfig
import tokenize
import tomllib
import zipfile
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from protos import generate

PROJECT = Path(__file__).resolve().parents[2]
CATALOGUE = PROJECT / "integration_server" / "providers" / "catalogue"
DESCRIPTOR_SET = PROJECT / "protos" / "integrations.v1.binpb"
BASELINE = PROJECT / "protos" / "baseline.binpb"

TINY_PROTO = 'syntax = "proto3"; package integrations.v1; message Tiny { string name = 1; }'


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    folder = tmp_path / "protos"
    (folder / "integrations" / "v1").mkdir(parents=True)
    (folder / "integrations" / "v1" / "tiny.proto").write_text(TINY_PROTO)
    return folder


@pytest.mark.slow
def test_the_output_is_up_to_date() -> None:
    assert generate.check() == [], "run `make proto`"


@pytest.mark.slow
def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        generate.compile_into(tmp_path / name)

    assert generate.differences(tmp_path / "first", tmp_path / "second") == []
    assert generate.descriptor_set() == generate.descriptor_set()


@pytest.mark.slow
def test_an_edited_file_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "generated"
    shutil.copytree(PROJECT / "generated", copy)
    edited = copy / "integrations" / "v1" / "integration_pb2.pyi"
    edited.write_text(edited.read_text() + "\n")

    assert generate.check(generated=copy) == ["generated/integrations/v1/integration_pb2.pyi"]


@pytest.mark.slow
def test_a_changed_proto_is_found(tmp_path: Path, protos: Path) -> None:
    generated = tmp_path / "generated"
    generate.write(protos, generated)
    assert generate.check(protos, generated) == []
    (protos / "integrations" / "v1" / "tiny.proto").write_text(TINY_PROTO.replace("name", "title"))

    assert generate.check(protos, generated) == [
        "generated/integrations/v1/tiny_pb2.py",
        "generated/integrations/v1/tiny_pb2.pyi",
        "protos/integrations.v1.binpb",
    ]


@pytest.mark.slow
def test_a_generated_file_without_a_proto_is_removed(tmp_path: Path, protos: Path) -> None:
    generated = tmp_path / "generated"
    generate.write(protos, generated)
    (protos / "integrations" / "v1" / "tiny.proto").rename(protos / "integrations" / "v1" / "small.proto")

    changed = generate.write(protos, generated)

    assert "generated/integrations/v1/tiny_pb2.py" in changed
    assert not list(generated.rglob("tiny*"))
    assert generate.check(protos, generated) == []


def test_an_invalid_proto_is_rejected_with_file_and_line(tmp_path: Path, protos: Path) -> None:
    (protos / "integrations" / "v1" / "tiny.proto").write_text(TINY_PROTO.replace("string", "strong"))

    with pytest.raises(generate.CompilationFailed, match=r"tiny\.proto:1:.*strong"):
        generate.write(protos, tmp_path / "generated")


def test_google_protos_are_imported_from_their_own_packages() -> None:
    assert not (PROJECT / "generated" / "google").exists()
    assert importlib.util.find_spec("google.rpc.status_pb2") is not None


# --- the descriptor set ----------------------------------------------------------------------------------------------


def test_the_descriptor_set_is_complete() -> None:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTOR_SET.read_bytes()).file:
        pool.Add(file)  # raises an error if an import is missing
    assert pool.FindServiceByName("integrations.v1.IntegrationService").methods
    for name in ("google.rpc.ErrorInfo", "google.rpc.Status", "integrations.v1.Access"):
        assert pool.FindMessageTypeByName(name).fields


@pytest.mark.slow
def test_the_wheel_has_the_descriptor_set_and_files_without_comments(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("integrations/v1/integrations.v1.binpb") == DESCRIPTOR_SET.read_bytes()
        for file in CATALOGUE.rglob("*.toml"):
            declaration = archive.read(file.relative_to(PROJECT).as_posix()).decode()
            assert tomllib.loads(declaration) == tomllib.loads(file.read_text(encoding="utf-8"))
            assert not re.search("^#", declaration, re.MULTILINE)
        for file in (PROJECT / "integration_server").rglob("*.py"):
            shipped = archive.read(file.relative_to(PROJECT).as_posix())
            assert _code(shipped) == _code(file.read_bytes())
            assert not any(token.type == tokenize.COMMENT for token in tokenize.tokenize(io.BytesIO(shipped).readline))


def _code(source: bytes) -> str:
    """What a module means, with the line of each part."""
    return ast.dump(ast.parse(source), include_attributes=True)


def breaking_changes(descriptor_set: Path) -> str:
    """Return the report of `make lint` about a contract, compared with the baseline; empty without breaking changes."""
    buf = f"{sysconfig.get_path('scripts')}/buf"
    files = [str(descriptor_set), "--against", str(BASELINE), "--config", str(PROJECT / "protos" / "buf.yaml")]
    result = subprocess.run(
        [buf, "breaking", *files, "--path", "integrations"], capture_output=True, text=True, check=False, timeout=300
    )
    assert (result.returncode == 0) == (not result.stdout), result.stderr
    return result.stdout


def test_the_contract_has_no_breaking_changes() -> None:
    assert not breaking_changes(DESCRIPTOR_SET), "if they are intended: make proto-baseline, and a line in CHANGELOG.md"


def test_a_removed_field_is_a_breaking_change(tmp_path: Path) -> None:
    files = FileDescriptorSet.FromString(BASELINE.read_bytes())
    (service,) = (file for file in files.file if file.name == "integrations/v1/integration_service.proto")
    (request,) = (message for message in service.message_type if message.name == "GetCredentialsRequest")
    removed = request.field.pop()
    (tmp_path / "changed.binpb").write_bytes(files.SerializeToString())

    assert f'field "{removed.number}" with name "{removed.name}"' in breaking_changes(tmp_path / "changed.binpb")
