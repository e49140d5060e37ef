"""Alembic's environment, and the revisions in `versions/`."""
