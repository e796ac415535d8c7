"""Alembic's scripts: the only thing that creates or changes a table."""
