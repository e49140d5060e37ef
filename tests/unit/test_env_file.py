"""What `.env` may be, and what a command says about one that cannot be used."""

import codecs
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from integration_server.env_file import MAX_BYTES, EnvFileError, read_env_file

PROJECT = Path(__file__).parents[2]


def is_written(content: bytes) -> Callable[[Path], object]:
    """Makes a file with this content."""
    return lambda path: path.write_bytes(content)


def is_unreadable(path: Path) -> None:
    path.write_bytes(b"A=1")
    path.chmod(0)


def is_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def is_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def leads_to(target: str) -> Callable[[Path], object]:
    """Makes a link."""
    return lambda path: path.symlink_to(target)


UNUSABLE = {
    "Latin-1": (
        is_written("A=1\nNAME=Z\xfcrich\n".encode("latin-1")),
        "is not text in UTF-8 (line 2, byte 7); save it",
    ),
    "Latin-1 after a mark": (is_written(codecs.BOM_UTF8 + b"A=\xff"), "(line 1, byte 3)"),
    "UTF-16": (is_written("A=1\n".encode("utf-16")), "is text in UTF-16; save it in UTF-8"),
    "UTF-16 big-endian": (is_written(codecs.BOM_UTF16_BE + "A=1".encode("utf-16-be")), "is text in UTF-16; save it"),
    "UTF-16 without a mark": (is_written("A=1\n".encode("utf-16-le")), "line 1, byte 2 is NUL"),
    "UTF-32": (is_written("A=1\n".encode("utf-32")), "is text in UTF-16"),
    "NUL": (is_written(b"A=1\nB=x\0y\n"), "line 2, byte 4 is NUL, which no text has; save it as text"),
    "a key in binary": (is_written(bytes(range(1, 200))), "is not text in UTF-8"),
    "gzip": (is_written(b"\x1f\x8b\x08\x00"), "is NUL"),
    "no assignment": (is_written(b"A=1\n=2\n"), "line 2 is not an assignment; write NAME=value"),
    "huge": (is_written(b"#" * (MAX_BYTES + 1)), "has more than 1,048,576 bytes; make it the file with the settings"),
    "a device without end": (leads_to("/dev/zero"), "has more than 1,048,576 bytes"),
    "directory": (Path.mkdir, "is a directory; remove it, or make it the file"),
    "link to a directory": (leads_to("."), "is a directory"),
    "link to itself": (is_link_to_itself, "Too many levels of symbolic links"),
    "socket": (is_socket, "cannot be read (No such device or address); repair or remove it"),
    "pipe without a writer": (os.mkfifo, "nothing came from it within 0.05 s; make it a file, or write to it"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_cannot_be_used_is_one_line_with_its_cause_and_remedy(tmp_path: Path, name: str) -> None:
    make, message = UNUSABLE[name]
    make(tmp_path / ".env")
    with pytest.raises(EnvFileError) as raised:
        read_env_file(tmp_path, max_wait=0.05)
    (problem,) = raised.value.problems
    assert problem.startswith(f"{tmp_path / '.env'}: ")
    assert message in problem
    assert problem.isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_names_the_user(tmp_path: Path) -> None:
    is_unreadable(tmp_path / ".env")
    with pytest.raises(EnvFileError, match=f"permission denied; let the user .* {os.geteuid()}"):
        read_env_file(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "A=1\nB='Zürich'\n",
        "\ufeffA=1\nB='Zürich'\n",
        "A=1\r\nB=Zürich\r\n",
        "# é\nexport A=1\nB=Zürich",
        "A=1\nB=Zürich # ü",
    ],
)
def test_files_that_editors_write_are_read(tmp_path: Path, content: str) -> None:
    (tmp_path / ".env").write_bytes(content.encode())
    assert read_env_file(tmp_path) == {"A": "1", "B": "Zürich"}


def test_no_file_and_an_empty_one_have_no_variables(tmp_path: Path) -> None:
    assert read_env_file(tmp_path) == {}
    (tmp_path / ".env").symlink_to("/dev/null")  # the idiom to hide a file
    assert read_env_file(tmp_path) == {}
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").symlink_to("absent")
    assert read_env_file(tmp_path) == {}


def test_a_named_pipe_of_a_secret_manager_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env")

    def write() -> None:
        with (tmp_path / ".env").open("wb", buffering=0) as pipe:
            for line in (b"A=1\n", b"B=" + b"x" * 100_000):
                pipe.write(line)

    writer = threading.Thread(target=write)
    writer.start()
    found = read_env_file(tmp_path, max_wait=60)
    writer.join(60)
    assert (found["A"], len(found["B"] or "")) == ("1", 100_000)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "healthcheck"])
def test_commands_end_with_the_message(tmp_path: Path, command: str) -> None:
    (tmp_path / ".env").write_bytes(b"LOG_LEVEL=\xff")
    environment = {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'generated'}", "PATH": os.environ["PATH"]}
    completed = subprocess.run(
        [sys.executable, "-m", "integration_server", command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert completed.returncode not in {0, None}
    assert "(line 1, byte 11); save it in UTF-8" in completed.stderr + completed.stdout
    assert "Traceback" not in completed.stderr
