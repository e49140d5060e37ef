"""Releases of this code that do not exist yet: with further migrations, or a whole copy whose code needs them."""

import shutil
from pathlib import Path

from alembic.script import ScriptDirectory

import integration_server

PACKAGE = Path(integration_server.__file__).parent
VERSIONS = Path("storage") / "migrations" / "versions"

EXPAND = "ALTER TABLE integrations ADD COLUMN extra VARCHAR(16) DEFAULT 'none' NOT NULL"
CONTRACT = "ALTER TABLE integrations RENAME COLUMN name TO display_name"

WRITTEN = "written"
"""What code that knows the column of `EXPAND` writes into it, with each update of a row."""

_REVISION = """
from alembic import op

revision = {revision!r}
down_revision = {down_revision!r}
phase = {phase!r}

def upgrade():
    op.execute({sql!r})
"""
_COLUMN = f"""
from sqlalchemy import text

written = text("'{WRITTEN}'")
integrations.append_column(Column("extra", String(16), nullable=False, server_default="none", onupdate=written))
"""


def newer_versions(folder: Path, *revisions: tuple[str, str]) -> Path:
    """Create the revisions of newer code: the current ones, and one for each phase and SQL statement."""
    shutil.copytree(PACKAGE / VERSIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    add_revisions(folder, *revisions)
    return folder


def add_revisions(folder: Path, *revisions: tuple[str, str]) -> str:
    """Add the revisions `next1`, `next2` … to a folder; the last one's name."""
    (revision,) = ScriptDirectory(str((PACKAGE / VERSIONS).parent)).get_heads()
    for number, (phase, sql) in enumerate(revisions, start=1):
        down_revision, revision = revision, f"next{number}"
        text = _REVISION.format(revision=revision, down_revision=down_revision, phase=phase, sql=sql)
        (folder / f"{revision}.py").write_text(text)
    return revision


def next_release(folder: Path) -> Path:
    """A copy of the package, to be imported from `folder`, whose code reads and writes the column of `EXPAND`."""
    package = folder / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    revision = add_revisions(package / VERSIONS, ("expand", EXPAND))
    with (package / "storage" / "tables.py").open("a") as tables:
        tables.write(_COLUMN)
    schema = package / "storage" / "schema.py"
    current = 'OLDEST_SUPPORTED_REVISION = "0001"'
    text = schema.read_text()
    assert current in text
    schema.write_text(text.replace(current, f'OLDEST_SUPPORTED_REVISION = "{revision}"'))
    return folder
