"""A later build of the appliance: this checkout with another version, another number, and a migration of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.build import COMPATIBILITY, find_folder
from appliance.store.database import catalogue, engine
from appliance.store.database.tables import REVISION

REVISION_OF_TEST = "test"
NOTES = "notes_of_test"
"""The table that the migration makes."""
MIGRATION = f'''
"""A table that only tests have."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{REVISION_OF_TEST}", "{REVISION}", None, None


def upgrade() -> None:
    op.create_table("{NOTES}", sa.Column("id", sa.Integer, primary_key=True))


def downgrade() -> None:
    op.drop_table("{NOTES}")
'''


def write_migrations(folder: Path, url: str, *, leads_back: bool = True) -> None:
    """Write this build's migrations with another one. `url`: an empty database, from which its catalogue is read."""
    shutil.copytree(find_folder("migrations"), folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = MIGRATION if leads_back else MIGRATION.replace(f'op.drop_table("{NOTES}")', "raise NotImplementedError")
    (folder / "versions" / "0002_test.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "find_folder", lambda _: folder)
        made = engine.open_engine(url)
        with engine.begin_migration(made) as connection:
            engine.upgrade(connection)
            found = catalogue.read_catalogue(connection)
        made.dispose()
    (folder / f"catalogue-{made.dialect.name}.json").write_text(json.dumps(found))


@contextmanager
def as_later_build(folder: Path) -> Iterator[None]:
    """Be the build that has these migrations."""
    from appliance.wiring import upgrading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "find_folder", lambda _: folder)
        patch.setattr(engine, "OLDER", (REVISION,))
        patch.setattr(catalogue, "FOLDER", folder)
        for module in (engine, upgrading):
            patch.setattr(module, "REVISION", REVISION_OF_TEST)
        catalogue.expected_catalogue.cache_clear()
        try:
            yield
        finally:
            catalogue.expected_catalogue.cache_clear()


def write_tree(folder: Path, version: str, compatibility: int = COMPATIBILITY) -> None:
    """Write another build of the same tables, as files that an interpreter can run."""
    package = find_folder("migrations").parent
    for name in ("appliance", "policies", "migrations"):
        shutil.copytree(package / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "appliance" / "version.txt").write_text(f"{version}\n")
    _replace(folder / "appliance" / "build.py", "COMPATIBILITY = ", f"COMPATIBILITY = {compatibility}  # ")


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def write_later_tree(folder: Path, version: str, compatibility: int) -> None:
    """Write the later build with its number, and its migration for SQLite."""
    write_tree(folder, version, compatibility)
    shutil.rmtree(folder / "migrations")
    write_migrations(folder / "migrations", f"sqlite:///{folder}/empty.db")
    for old, new in (
        (f'REVISION = "{REVISION}"', f'REVISION = "{REVISION_OF_TEST}"'),
        ("OLDER: tuple[str, ...] = ()", f'OLDER: tuple[str, ...] = ("{REVISION}",)'),
    ):
        _replace(folder / "appliance" / "store" / "database" / "tables.py", old, new)
