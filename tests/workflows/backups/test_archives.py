"""Backups of a log whose old records are archived, from before and after the archive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from appliance import verifier, wiring
from appliance.config.settings import load_settings
from appliance.errors import Tampered
from appliance.formats.log.export import ParsedExport, read_removed
from appliance.formats.log.trust import encode_trust
from appliance.store.database.catalogue import check_catalogue
from appliance.store.files.backups import BackupFolder
from appliance.workflows.backups import making, restoring
from appliance.workflows.queries.log import export
from scripts.kit.postgres import Server, find_binaries, postgres
from tests.kit.archived_log import cosign
from tests.kit.backups import BackedUp, make_database, serving
from tests.kit.founded import Template, context_of
from tests.kit.old_records import archive, make_old, old_template
from tests.kit.restored import restore

pytestmark = pytest.mark.thorough

__all__ = ["postgres"]


class Archived(NamedTuple):
    """An appliance whose records are archived, and its backups from before and after. `folder` has the archive, an
    export and the trust file of an auditor.
    """

    made: BackedUp
    old: Template
    folder: Path
    before: making.MadeBackup
    after: making.MadeBackup
    state: list[object]

    def verify(self, export: Path, file: Path) -> list[int]:
        """Return the exit codes of a verification without the archive and with it."""
        codes = []
        for beside in ([], ["--archive", str(file)]):
            with pytest.raises(SystemExit) as ended:
                verifier.main([str(export), "--trust", str(self.folder / "trust.json"), *beside])
            codes.append(cast(int, ended.value.code))
        return codes


def make_archived(made: BackedUp, old: Template, folder: Path) -> Archived:
    (folder / "trust.json").write_bytes(encode_trust(made.trust))
    before = made.make()
    with context_of(made.home, made.environment) as context:
        (folder / "archive.tar").write_bytes(archive(old.site(made.home, context.ledger)))
        state = list(context.ledger.state.projections())
        (folder / "export.tar").write_bytes(b"".join(export(context)))
    return Archived(made, old, folder, before, made.make(), state)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def archived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archived]:
    folder = tmp_path_factory.mktemp("archived")
    home, backups = folder / "home", BackupFolder(folder / "backups")
    if request.param == "sqlite":
        old = old_template()
        old.copy(home)
        yield make_archived(BackedUp(home, backups), old, folder)
        return
    environment = make_database(cast(Server, request.getfixturevalue("postgres")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:{find_binaries()}")
        yield make_archived(BackedUp(home, backups, environment), make_old(home, environment), folder)


def new_database(archived: Archived, request: pytest.FixtureRequest) -> dict[str, str]:
    return make_database(request.getfixturevalue("postgres")) if archived.made.environment else {}


def test_a_backup_from_after_the_archive_restores_the_log_as_it_was(
    archived: Archived, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    environment = new_database(archived, request)
    assert archived.made.restore(archived.after.backup, tmp_path / "new", environment=environment).lost == []
    restoring.confirm(tmp_path / "new")
    with serving(load_settings(tmp_path / "new", environment)) as context:
        assert sum(read_removed(data) is not None for data in context.ledger.entries()) == 14
        assert list(context.ledger.state.projections()) == archived.state
        assert context.ledger.check_projections() == context.ledger.ask(check_catalogue) == []
        (tmp_path / "later.tar").write_bytes(b"".join(export(context)))
    for file in (tmp_path / "later.tar", archived.folder / "export.tar"):
        assert archived.verify(file, archived.folder / "archive.tar") == [0, 0]


def test_a_backup_from_before_the_archive_brings_the_records_back_and_says_so(
    archived: Archived, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    environment, home, newer = new_database(archived, request), tmp_path / "new", archived.folder / "export.tar"
    restored = archived.made.restore(archived.before.backup, home, environment=environment, erasures=newer)
    at = archived.after.entries - 1
    assert any(f"that the entries {at} archived: order their archive again" in line for line in restored.lost)
    assert restoring.read_mark(home).lost == tuple(restored.lost)
    restoring.confirm(home)
    settings = load_settings(home, environment)
    with pytest.raises(Tampered, match="appliance serve --restoration"), serving(settings):
        """The export shows an entry that is gone."""
    with wiring.service(settings, restoration=True) as context:
        assert all(read_removed(data) is None for data in context.ledger.entries())
        site = archived.old.site(home, context.ledger)
        with newer.open("rb") as stream, ParsedExport(stream) as parsed:
            restore(site, parsed.checkpoint)
        cosign(site)
        (tmp_path / "archive.tar").write_bytes(archive(site))
        context.ledger.load()
        assert sum(read_removed(data) is not None for data in context.ledger.entries()) == 14
        (tmp_path / "later.tar").write_bytes(b"".join(export(context)))
    assert archived.verify(tmp_path / "later.tar", tmp_path / "archive.tar") == [0, 0]
