"""The build hook of the wheel: it has the built-in declarations without their comments.

The comments name the source of each fact, for who maintains a declaration, and are more than half of its bytes.
"""

import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_CATALOGUE = "integration_server/providers/catalogue"


class DeclarationsWithoutComments(BuildHookInterface[Any]):
    """Replaces the declarations, which pyproject.toml excludes. An editable install keeps the files as they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the declarations to a temporary directory, from which the wheel takes them."""
        if version == "editable":
            return
        self._directory = TemporaryDirectory()
        for source in Path(self.root, _CATALOGUE).rglob("*.toml"):
            text = source.read_text(encoding="utf-8")
            short = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
            if tomllib.loads(short) != tomllib.loads(text):
                raise ValueError(f"{source}: a line that begins with # is no comment")
            path = source.relative_to(self.root).as_posix()
            target = Path(self._directory.name, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(short.lstrip(), encoding="utf-8")
            build_data["force_include"][str(target)] = path

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary directory."""
        if version != "editable":
            self._directory.cleanup()
