"""The baseline schema: frozen SQL, one file per database, statements separated by blank lines."""

from collections.abc import Sequence
from pathlib import Path

from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Create every table, index and trigger."""
    sql = Path(__file__).with_name(f"0001_baseline.{op.get_context().dialect.name}.sql").read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.execute(statement.rstrip().removesuffix(";"))
