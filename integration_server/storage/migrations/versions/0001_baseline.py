"""The baseline schema: frozen SQL, one file per database, statements separated by blank lines.

Until the first release tag the files may change. `schema.py` refuses a database that was created from other files.
"""

from collections.abc import Sequence
from pathlib import Path

from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
phase: str = "contract"  # no code is older


def upgrade() -> None:
    """Create every table, index and trigger."""
    for statement in read_sql(op.get_context().dialect.name).split(";\n\n"):
        op.execute(statement.rstrip().removesuffix(";"))


def read_sql(dialect_name: str) -> str:
    """The SQL for a database: "sqlite" or "postgresql"."""
    return Path(__file__).with_name(f"0001_baseline.{dialect_name}.sql").read_text(encoding="utf-8")
