"""`generated/` is what `protos/` makes, byte for byte, and the comparison notices when it is not."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from protos import generate

PROJECT = Path(__file__).resolve().parents[2]


TINY_PROTO = 'syntax = "proto3"; package integrations.v1; message Tiny { string name = 1; }'


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    folder = tmp_path / "protos"
    (folder / "integrations" / "v1").mkdir(parents=True)
    (folder / "integrations" / "v1" / "tiny.proto").write_text(TINY_PROTO)
    return folder


def test_generated_is_what_the_protos_make() -> None:
    assert generate.check() == [], "run `make proto`"


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        generate.compile_into(tmp_path / name)

    assert generate.differences(tmp_path / "first", tmp_path / "second") == []


def test_an_edited_file_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "generated"
    shutil.copytree(PROJECT / "generated", copy)
    edited = copy / "integrations" / "v1" / "integration_pb2.pyi"
    edited.write_text(edited.read_text() + "\n")

    assert generate.check(generated=copy) == ["integrations/v1/integration_pb2.pyi"]


def test_a_changed_proto_is_noticed(tmp_path: Path, protos: Path) -> None:
    generated = tmp_path / "generated"
    generate.write(protos, generated)
    (protos / "integrations" / "v1" / "tiny.proto").write_text(TINY_PROTO.replace("name", "title"))

    assert generate.check(protos, generated) == [
        "integrations/v1/tiny_pb2.py",
        "integrations/v1/tiny_pb2.pyi",
    ]


def test_what_no_proto_makes_any_more_is_removed(tmp_path: Path, protos: Path) -> None:
    generated = tmp_path / "generated"
    generate.write(protos, generated)
    (protos / "integrations" / "v1" / "tiny.proto").rename(protos / "integrations" / "v1" / "small.proto")

    changed = generate.write(protos, generated)

    assert "integrations/v1/tiny_pb2.py" in changed
    assert not list(generated.rglob("tiny*"))
    assert generate.check(protos, generated) == []


def test_a_wrong_proto_is_refused_with_file_and_line(tmp_path: Path, protos: Path) -> None:
    (protos / "integrations" / "v1" / "tiny.proto").write_text(TINY_PROTO.replace("string", "strong"))

    with pytest.raises(generate.CompilationFailed, match=r"tiny\.proto:1:.*strong"):
        generate.write(protos, tmp_path / "generated")


def test_google_is_left_to_the_packages_that_own_it() -> None:
    assert not (PROJECT / "generated" / "google").exists()
    assert importlib.util.find_spec("google.rpc.status_pb2") is not None
