"""The build hook of the wheel: its Python files and the built-in declarations have no comments.

Comments are for those who maintain a file: they state reasons, and the source of each fact of a declaration. They are
a twentieth of the wheel, and with them it has more than a megabyte. Docstrings stay, and so does the number of each
line, so that a traceback names the lines of the repository.
"""

import ast
import io
import tokenize
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WithoutComments(BuildHookInterface[Any]):
    """Replaces files by copies without comments. An editable install keeps the files as they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the copies to a temporary directory, from which the wheel takes them."""
        if version == "editable":
            return
        self._directory = TemporaryDirectory()
        for file in self.build_config.builder.recurse_included_files():
            source = Path(file.path)
            if (shorten := _SHORTEN.get(source.suffix)) is None:
                continue
            target = Path(self._directory.name, file.distribution_path)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(shorten(source.read_bytes()))
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from error
            build_data["force_include"][str(target)] = file.distribution_path

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary directory."""
        if version != "editable":
            self._directory.cleanup()


def _python_without_comments(content: bytes) -> bytes:
    lines = content.splitlines()
    for token in tokenize.tokenize(io.BytesIO(content).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1].decode()[:column].rstrip().encode()
    short = b"".join(line + b"\n" for line in lines)
    if ast.dump(ast.parse(short), include_attributes=True) != ast.dump(ast.parse(content), include_attributes=True):
        raise ValueError("means something else without its comments")
    return short


def _toml_without_comments(content: bytes) -> bytes:
    text = content.decode()
    short = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    if tomllib.loads(short) != tomllib.loads(text):
        raise ValueError("a line that begins with # is no comment")
    return short.lstrip().encode()


_SHORTEN: Mapping[str, Callable[[bytes], bytes]] = {".py": _python_without_comments, ".toml": _toml_without_comments}
