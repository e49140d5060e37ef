"""Reads `.env`, the file with settings. Nothing else does, so that every command says the same about a wrong file."""

import codecs
import os
import select
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

NAME = ".env"

MAX_BYTES = 1024 * 1024
"""Of the file: a hundred times what all settings with their keys take."""

MAX_WAIT = 10.0
"""Seconds, for the writer of a named pipe: a secret manager may have to ask its user first."""
_READ_SIZE = 64 * 1024

# Byte order marks (Unicode 15 §23.8) of the encodings that Windows' programs call "Unicode".
_OTHER_ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", codecs.BOM_UTF32_BE: "UTF-32"}


class EnvFileError(Exception):
    """The file cannot be used. `problems` has one line for each problem: path: cause; remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def read_env_file(directory: Path, *, interpolate: bool = True, max_wait: float = MAX_WAIT) -> Mapping[str, str | None]:
    """The variables of `.env` in the directory, none if there is no such file. Raises `EnvFileError`.

    A line that is no assignment is a problem, and not skipped: the server would start without what it sets. The file
    may be a named pipe, as secret managers offer, which somebody has to write to within `max_wait` seconds.
    """
    path = directory / NAME
    try:
        content = _decode(path, _read(path, max_wait))
    except FileNotFoundError:
        return {}
    except IsADirectoryError:  # what Docker makes of a file to mount that does not exist
        raise EnvFileError(f"{path}: is a directory; remove it, or make it the file with the settings") from None
    except PermissionError:
        user = f"the user that runs this program (uid {os.geteuid()})"
        raise EnvFileError(f"{path}: permission denied; let {user} read it, or remove it") from None
    except OSError as error:
        raise EnvFileError(f"{path}: cannot be read ({error.strerror}); repair or remove it") from None
    originals = [binding.original for binding in parse_stream(StringIO(content)) if binding.error]
    # The text of an assignment begins with the empty lines before it.
    broken = [each.line + len(each.string) - len(each.string.lstrip("\n")) for each in originals]
    if broken:
        remedy = "write NAME=value, with closed quotation marks, or # before a comment"
        raise EnvFileError(*(f"{path}: line {line} is not an assignment; {remedy}" for line in broken))
    return dotenv_values(stream=StringIO(content), interpolate=interpolate)


def _read(path: Path, max_wait: float) -> bytes:
    """The content of a file of any kind, with limits of size and time."""
    # Without O_NONBLOCK, a pipe that nobody writes to is never opened. For a regular file it changes nothing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    content, deadline = b"", time.monotonic() + max_wait
    try:
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        while True:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise EnvFileError(
                    f"{path}: nothing came from it within {max_wait:g} s; make it a file, or write to it"
                )
            part = os.read(descriptor, _READ_SIZE)
            if not part:
                return content
            content += part
            if len(content) > MAX_BYTES:
                raise EnvFileError(
                    f"{path}: has more than {MAX_BYTES:,} bytes; make it the file with the settings only"
                )
    finally:
        os.close(descriptor)


def _decode(path: Path, content: bytes) -> str:
    for mark, encoding in _OTHER_ENCODINGS.items():
        if content.startswith(mark):
            raise EnvFileError(f"{path}: is text in {encoding}; save it in UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)  # with which Windows' editors begin a file
    if (index := content.find(b"\0")) >= 0:
        raise EnvFileError(f"{path}: {_position(content, index)} is NUL, which no text has; save it as text in UTF-8")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        position = _position(content, error.start)
        raise EnvFileError(f"{path}: is not text in UTF-8 ({position}); save it in UTF-8") from None


def _position(content: bytes, index: int) -> str:
    lines = content[:index].split(b"\n")
    return f"line {len(lines)}, byte {len(lines[-1]) + 1}"
