"""A restored home is what was copied, with keys that fit; it stays stopped, and a failed restore leaves nothing."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import text

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.log_control import LogKeyRotated, RotateLogKey
from appliance.domain.operations import ArtifactsChecked
from appliance.errors import BadInput, Conflict, Denied, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import Frontier
from appliance.formats.log.checkpoint import Checkpoint, cosign, sign_checkpoint, witness_vkey_of
from appliance.formats.log.note import Note, encode_note, parse_note, vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.database.catalogue import check_catalogue
from appliance.store.database.engine import open_engine
from appliance.store.files import disk
from appliance.store.files.encryption import make_identity
from appliance.store.files.known_checkpoints import KnownCheckpoints
from appliance.wiring.building import read_trust
from appliance.workflows.backups import listing, making, moving, restoring
from appliance.workflows.core.record import append
from appliance.workflows.queries.log import export
from scripts.kit.log_builder import ORIGIN
from scripts.kit.postgres import Server, find_binaries, postgres
from tests.kit.backups import ALL, ANNA, DATA, BackedUp, make_database, on_postgresql, on_sqlite, serving
from tests.kit.cuts import Place, cut_at, find_cuts
from tests.kit.founded import _DEFAULT, policy_set

__all__ = ["postgres"]

CHECKED = ArtifactsChecked(folders=0, size=0, changed=(), unread=())
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def small(tmp_path: Path) -> BackedUp:
    return on_sqlite(tmp_path, "imported")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def modes(home: Path) -> dict[str, tuple[int, bytes | None]]:
    """Return mode and bytes of the files that a backup keeps unchanged."""
    return {
        str(path.relative_to(home)): (
            stat.S_IMODE(path.stat().st_mode),
            path.read_bytes() if path.is_file() else None,
        )
        for name in ("artifacts", "keys", "trust.json")
        for path in ((home / name), *(home / name).rglob("*"))
        if ".pending" not in path.name
    }


def check_nothing(small: BackedUp, home: Path) -> None:
    assert not home.exists()


def test_a_restored_home_serves_on(small: BackedUp, new: Path) -> None:
    made = on_sqlite(new.parent / "serving", "serving")
    made.restore(backup := made.make().backup, new)
    assert modes(new) == modes(made.home)
    assert stat.S_IMODE(new.stat().st_mode) == 0o700
    settings = load_settings(new, {})
    with pytest.raises(Conflict, match="was restored from a backup") as refused:
        wiring.serve(settings, embedded=False)
    assert refused.value.code == "restored"
    assert restoring.read_mark(new).backup == backup.name
    restoring.confirm(new)
    restoring.refuse_restored(new)
    with serving(settings) as context:
        size = context.ledger.state.size
        append(context, CHECKED)
        assert context.ledger.state.size == size + 1
        assert "clauses@1" in context.ledger.state.adapters
    with pytest.raises(NotFound, match="waits to be confirmed"):
        restoring.read_mark(new)


@pytest.mark.thorough
def test_a_restore_into_a_new_postgresql_database(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{find_binaries()}")
    made, home = on_postgresql(tmp_path, postgres, "sealed"), tmp_path / "new"
    done = made.make()
    environment = make_database(postgres)
    with pytest.raises(Conflict, match="expected an empty one"):
        made.restore(done.backup, home)
    check_nothing(made, home)
    with made.site() as site:
        (disclosed,) = (one for one in site.disclosures if one.text == "Name the clause.")
        site.erase(disclosed.commitment)
    newer = write_export(made, tmp_path / "export.tar")
    restored = made.restore(done.backup, home, environment=environment, erasures=newer)
    assert (restored.entries, restored.erased) == (done.entries, 1)
    assert modes(home) == modes(made.home)
    assert not (home / ".dump").exists()
    with wiring.service(load_settings(home, environment), restoration=True) as context:
        append(context, CHECKED)
        assert context.ledger.state.size == done.entries + 1
        assert context.ledger.ask(check_catalogue) == []
        assert context.ledger.disclosures([disclosed.commitment]) == {}


def test_a_home_with_files_is_left_as_it_is(small: BackedUp, new: Path) -> None:
    backup = small.make().backup
    new.mkdir()
    (new / "file").write_text("of somebody")
    for home in (new, new / "file", small.home):
        with pytest.raises(Conflict, match="expected an empty or a new folder"):
            small.restore(backup, home)
    assert (new / "file").read_text() == "of somebody"
    (new / "file").unlink()
    small.restore(backup, new)
    with pytest.raises(Conflict, match="expected an empty or a new folder"):
        small.restore(backup, new)


def test_a_folder_of_the_service_s_account_is_used_as_it_is(small: BackedUp, new: Path) -> None:
    """The folder above it may belong to root, so nothing is written there."""
    backup = small.make().backup
    new.mkdir(0o710)
    before, above = new.stat(), new.parent.stat().st_mtime_ns
    small.restore(backup, new)
    assert (new.stat().st_ino, new.stat().st_mode) == (before.st_ino, before.st_mode)
    assert new.parent.stat().st_mtime_ns == above
    assert not (new / restoring.STAGING).exists()


def test_another_account_than_the_folder_s_owner_is_refused(
    small: BackedUp, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's account could not read what root restores."""
    request = restoring.RestoreRequest(small.make().backup.name, ALL, new, small.trust, small.known_keys())
    new.mkdir()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(Conflict, match="expected its owner"):
        restoring.restore(small.folder, request, making_places, small.clock)
    monkeypatch.undo()
    restoring.restore(small.folder, request, making_places, small.clock)


def test_no_appliance_is_made_in_a_home_that_is_being_restored(small: BackedUp, new: Path) -> None:
    small.restore(small.make().backup, new)
    (new / "trust.json").unlink()
    person = wiring.Person("anna", generate_ed25519().spki)
    with pytest.raises(Conflict, match="was restored from a backup"):
        wiring.init(
            load_settings(new, {}), [person], origin=None, single_administrator=True, policy=encode_value(_DEFAULT)
        )


def test_identities_and_trust_that_do_not_fit(small: BackedUp, new: Path) -> None:
    backup = small.make().backup
    for identities in ((), (DATA,), (DATA, ANNA), ALL[1:], (make_identity(), *ALL[1:])):
        with pytest.raises(Denied):
            small.restore(backup, new, identities)
    other = generate_ed25519()
    genesis = replace(small.trust, genesis=digest_bytes(b"another first entry"))
    people = replace(small.trust, administrators=small.trust.administrators[:1])
    for trust in (genesis, people):
        with pytest.raises(Tampered):
            small.restore(backup, new, trust=trust)
    foreign = replace(small.trust, log_key=vkey_of(small.trust.origin, other))
    with pytest.raises(Tampered):
        small.restore(backup, new, trust=foreign)
    check_nothing(small, new)


@pytest.mark.thorough
def test_an_altered_object_makes_no_home(small: BackedUp, new: Path) -> None:
    backup = small.make().backup
    other_pairs = {pair.object for pair in backup.keyring[1:]}
    for name in backup.by_name.keys() - other_pairs:
        path = small.folder.path / "objects" / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(Tampered):
            small.restore(backup, new)
        path.write_bytes(data)
        check_nothing(small, new)
    small.restore(backup, new)


@pytest.mark.thorough
def test_keys_that_do_not_fit_make_no_backup(small: BackedUp, tmp_path: Path) -> None:
    """A backup whose keys open nothing would be found out when it is needed."""
    keys = small.home / "keys"
    dataset = next(keys.glob("dataset-*.secret"))
    for path, data in (
        (keys / "adapter.pem", (keys / "log.pem").read_bytes()),
        (keys / "log.pem", (keys / "adapter.pem").read_bytes()),
        (keys / "adapter.pem", None),
        (keys / "log.pem", None),
        (keys / "request-digests.secret", None),
        (dataset, b"K" * 32),
        (dataset, None),
    ):
        before = path.read_bytes()
        path.unlink()
        if data is not None:
            disk.write_file(path, data)
        with pytest.raises((Tampered, NotFound)):
            small.make()
        path.unlink(missing_ok=True)
        disk.write_file(path, before)
    assert small.folder.names() == []
    small.make()


def test_a_restored_key_that_does_not_fit_makes_no_home(
    small: BackedUp, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keyring in the backup is another one than the log's, as after a mistake in the folder."""
    pack = making._pack_secrets
    monkeypatch.setattr(making, "_pack_secrets", lambda places: pack(replace(places, keys=small.home / "other")))
    (small.home / "other").mkdir(0o700)
    backup = small.make().backup
    with pytest.raises(Tampered, match="keys: expected the log's"):
        small.restore(backup, new)
    check_nothing(small, new)


def test_settings_name_places_outside_the_home(tmp_path: Path) -> None:
    made, new, outside = on_sqlite(tmp_path, "imported"), tmp_path / "new", tmp_path / "outside"
    for name in ("keys", "artifacts"):
        place = outside / ("keys" if name == "keys" else "shared/artifacts")
        place.parent.mkdir(parents=True, exist_ok=True)
        (made.home / name).rename(place)
    (outside / "cert.pem").write_text("certificate")
    (made.home / "cert.key").write_text("private")
    lines = {
        "keys": outside / "keys",
        "shared": outside / "shared",
        "certificate": outside / "cert.pem",
        "certificate_key": made.home / "cert.key",
    }
    (made.home / "appliance.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in lines.items()))
    backup = made.make().backup
    with pytest.raises(Conflict, match="expected an empty or a new folder"):
        made.restore(backup, new)
    check_nothing(made, new)
    made.home.rename(tmp_path / "lost")
    outside.rename(tmp_path / "lost-outside")
    trust = read_trust(load_settings(tmp_path / "lost", {"APPLIANCE_KEYS": str(tmp_path / "lost-outside/keys")}))
    request = restoring.RestoreRequest(backup.name, ALL, made.home, trust, listing.given_keys(trust))
    done = restoring.restore(made.folder, request, lambda staged: making_places(staged), made.clock)
    assert (outside / "keys/log.pem").exists() and list((outside / "shared/artifacts").iterdir())
    assert not (made.home / "artifacts").exists()
    assert (made.home / "cert.key").read_text() == "private"
    assert (made.home / "restored/cert.pem").read_text() == "certificate"
    assert done.moved == [f"certificate: {made.home / 'restored/cert.pem'}, for {outside / 'cert.pem'}"]
    assert [path.name for path in outside.iterdir() if "restoring" in path.name] == []


def test_a_failed_restore_leaves_no_key_outside_of_the_home(tmp_path: Path) -> None:
    """Settings place keys and database elsewhere, and the trust file that the person gives is another one's."""
    made, request, outside = make_outside(tmp_path)
    other = replace(request.trust, genesis=digest_bytes(b"another first entry"))
    with pytest.raises(Tampered):
        restoring.restore(made.folder, replace(request, trust=other), making_places, made.clock)
    check_nothing(made, request.home)
    assert [path for path in outside.rglob("*") if not path.is_dir()] == []
    restoring.restore(made.folder, request, making_places, made.clock)
    assert (outside / "keys/log.pem").exists() and (outside / "log.db").exists()


def make_outside(folder: Path) -> tuple[BackedUp, restoring.RestoreRequest, Path]:
    """Return a backup of a lost home whose settings place keys and database in another folder, and its restore."""
    made, outside = on_sqlite(folder, "initialized"), folder / "outside"
    outside.mkdir()
    lines = {"keys": outside / "keys", "database_url": f"sqlite:///{outside / 'log.db'}"}
    made.settings.keys.rename(outside / "keys")
    for path in made.home.glob("*.db*"):
        path.rename(outside / path.name.replace(path.name.partition(".")[0], "log", 1))
    (made.home / "appliance.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in lines.items()))
    backup = made.make().backup
    request = restoring.RestoreRequest(backup.name, ALL, folder / "new", made.trust, made.known_keys())
    outside.rename(folder / "lost")
    return made, request, outside


def making_places(staged: Path) -> making.Places:
    from appliance.wiring.backups import find_places

    return find_places(load_settings(staged, {}))


def test_a_backup_after_a_rotation_of_the_log_s_key(small: BackedUp, new: Path) -> None:
    """The person names the present key, and the replay from the trust file's key leads to it."""
    with small.site() as site:
        vkey = site.keyring.next_log_key(ORIGIN, [key.vkey for key in site.state.site.log_keys])
        site.two(
            LogKeyRotated(policy=site.in_force), site.order(RotateLogKey, "anna", log_key=vkey, old_until=site.now)
        )
        before = small.make().backup
    assert before.log_key == vkey and small.verify(before, *ALL).keyring
    first = small.trust.log_key
    other = vkey_of(ORIGIN, generate_ed25519())
    for log_key in (first, other):
        request = restoring.RestoreRequest(before.name, ALL, new, small.trust, listing.given_keys(small.trust, log_key))
        with pytest.raises(Tampered, match="if the log's key was rotated"):
            restoring.restore(small.folder, request, making_places, small.clock)
    request = restoring.RestoreRequest(before.name, ALL, new, small.trust, listing.given_keys(small.trust, vkey))
    restoring.restore(small.folder, request, making_places, small.clock)
    restoring.confirm(new)
    with serving(load_settings(new, {})) as context:
        append(context, CHECKED)


# Newer erasures.


def write_export(made: BackedUp, path: Path) -> Path:
    with serving(made.settings) as context:
        path.write_bytes(b"".join(export(context)))
    return path


def texts(home: Path) -> bytes:
    engine = open_engine(f"sqlite:///{home / 'ledger.db'}")
    with engine.connect() as connection:
        found = connection.execute(text("SELECT text FROM disclosures")).scalars().all()
    engine.dispose()
    return "\n".join(found).encode()


@pytest.mark.thorough
def test_erasures_after_the_backup_are_applied(small: BackedUp, new: Path) -> None:
    with small.site() as site:
        (disclosed,) = (one for one in site.disclosures if one.text == "Name the clause.")
        done = small.make()
        site.erase(disclosed.commitment)
        size, backup, before = site.state.size, done.backup, done.entries
    newer = write_export(small, new.with_name("export.tar"))
    plain = small.restore(backup, new.with_name("plain"))
    assert plain.erased == 0 and b"Name the clause." in texts(plain.home)
    restored = small.restore(backup, new, erasures=newer)
    assert restored.erased == 1
    assert restored.lost == [f"the export has the entries {before} to {size - 1}, which the backup lacks"]
    assert b"Name the clause." not in texts(new)
    assert not any(b"Name the clause." in path.read_bytes() for path in new.glob("ledger.db*"))
    assert restoring.read_mark(new).lost == tuple(restored.lost)
    with pytest.raises(Tampered, match="appliance serve --restoration") as lost, serving(load_settings(new, {})):
        """The export shows entries that are gone."""
    assert lost.value.code == "log-truncated"
    with wiring.service(load_settings(new, {}), restoration=True) as context:
        assert context.ledger.state.size == before and context.awaits_restoration


@pytest.mark.thorough
def test_an_export_that_is_older_other_or_altered(small: BackedUp, new: Path, tmp_path: Path) -> None:
    older = write_export(small, tmp_path / "older.tar")
    with serving(small.settings) as context:
        append(context, CHECKED)
    backup = small.make().backup
    other = on_sqlite(tmp_path / "other", "imported")
    with serving(other.settings) as context:
        append(context, CHECKED.model_copy(update={"folders": 7}))
    fork = write_export(other, tmp_path / "fork.tar")
    good = write_export(small, tmp_path / "good.tar").read_bytes()
    altered = tmp_path / "altered.tar"
    altered.write_bytes(good.replace(b'"actor":"anna"', b'"actor":"anno"', 1))
    for path, error in (
        (older, "entries or more"),
        (fork, "fork of it"),
        (altered, "expected a verified one"),
        (tmp_path / "none", "readable file"),
    ):
        with pytest.raises((BadInput, Tampered), match=error):
            small.restore(backup, new, erasures=path)
        check_nothing(small, new)


# Witnesses.


@pytest.mark.thorough
def test_what_witnesses_have_seen_is_compared(tmp_path: Path) -> None:
    made, new = on_sqlite(tmp_path, "imported"), tmp_path / "new"
    witness, name = generate_ed25519(), "witness.example/w1"
    with made.site() as site:
        site.adopt(policy_set(witnesses=(witness_vkey_of(name, witness),), witness_quorum=1))
        body, documents = site.cosigned(witness, name)
        KnownCheckpoints(made.home / "witnessed").store_cosigned(name, documents["note"])
        site.add(body, documents=documents)
        done = made.make()
        append_count = 3
        for _ in range(append_count):
            site.add(CHECKED)
        _, newer = site.cosigned(witness, name)
        size = site.state.size

    def note(data: bytes) -> Path:
        path = tmp_path / f"{digest_bytes(data)[7:15]}.note"
        path.write_bytes(data)
        return path

    assert made.restore(done.backup, new, checkpoints=[note(documents["note"])]).lost == []
    with serving(load_settings(new, {})):
        """The service finds the witness's note, without which it does not start."""
    lost = made.restore(done.backup, tmp_path / "older", checkpoints=[note(newer["note"])]).lost
    (said,) = lost
    assert said.endswith(f"others have seen the entries {done.entries} to {size - 1}, which the backup lacks")
    restoring.confirm(tmp_path / "older")
    with pytest.raises(Tampered, match="appliance serve --restoration"), serving(load_settings(tmp_path / "older", {})):
        """It is kept beside the log."""
    fork = sign_checkpoint(Checkpoint(made.trust.origin, 5, Frontier.EMPTY.root()), site.log)
    parsed = parse_note(fork)
    signed = Note(parsed.text, (*parsed.signatures, cosign(parsed, name, witness, 1_800_000_000)))
    with pytest.raises(Tampered, match="fork of it"):
        made.restore(done.backup, tmp_path / "fork", checkpoints=[note(encode_note(signed))])
    with pytest.raises(Tampered, match="fork of it"):
        made.restore(done.backup, tmp_path / "fork", checkpoints=[note(fork)])
    foreign = sign_checkpoint(Checkpoint(made.trust.origin, size, Frontier.EMPTY.root()), generate_ed25519())
    for data in (foreign, b"no note"):
        with pytest.raises(BadInput, match="expected a checkpoint of this log"):
            made.restore(done.backup, tmp_path / "fork", checkpoints=[note(data)])
    with pytest.raises(BadInput, match="readable file"):
        made.restore(done.backup, tmp_path / "fork", checkpoints=[tmp_path / "none"])
    check_nothing(made, tmp_path / "fork")


# The power may be cut.

MOVERS = frozenset({restoring.__file__, moving.__file__})
"""The files with the moves of a restore."""

MOVED: Place = (moving.__file__, Path(moving.__file__).read_text().splitlines().index("    staged.rmdir()") + 1, 1)
"""A place after the moves out of the first staging folder, before the folder is removed."""


@pytest.mark.thorough
def test_a_power_cut_in_each_state_of_the_disk_in_a_restore_leaves_no_home_or_a_whole_one(tmp_path: Path) -> None:
    made = on_sqlite(tmp_path, "initialized")
    backup = made.make().backup
    numbers = count()

    def restore_new(home: Path) -> None:
        made.restore(backup, home)

    places = find_cuts(tmp_path / "whole", MOVERS, lambda: restore_new(tmp_path / "whole"))
    assert len(places) > 16
    expected, found = modes(tmp_path / "whole"), set()
    for place in places:
        home = tmp_path / f"n{next(numbers)}"
        assert cut_at(place, MOVERS, lambda home=home: restore_new(home))
        is_home = (home / "trust.json").exists()
        found.add(is_home)
        if not is_home:
            with pytest.raises((Conflict, NotFound)):
                wiring.serve(load_settings(home, {}), embedded=False)
            made.restore(backup, home)
        assert modes(home) == expected
        assert restoring.read_mark(home).backup == backup.name
        restoring.confirm(home)
        assert not (home / restoring.STAGING).exists()
    assert found == {False, True}


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the mode and bytes of each file."""
    return {
        str(path.relative_to(folder)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.thorough
def test_a_restore_to_other_folders_can_be_repeated_after_a_power_cut_in_each_state_of_the_disk(tmp_path: Path) -> None:
    """Also after a second cut, while the second try takes back what the first one moved."""
    made, request, outside = make_outside(tmp_path)
    home = request.home

    def again() -> None:
        restoring.restore(made.folder, request, making_places, made.clock)

    def remove_all() -> None:
        disk.remove_tree(home)
        disk.remove_tree(outside)

    places = find_cuts(tmp_path, MOVERS, again)
    expected = files_below(outside)
    assert "keys/log.pem" in expected and "log.db" in expected

    def check_whole() -> None:
        if not (home / "trust.json").exists():
            again()
        assert files_below(outside) == expected
        restoring.confirm(home)
        assert [path for path in (*home.rglob("*"), *outside.rglob("*")) if "restoring" in path.name] == []

    found = set()
    for place in places:
        remove_all()
        assert cut_at(place, MOVERS, again)
        found.add(((outside / "keys/log.pem").exists(), (home / "trust.json").exists()))
        check_whole()
    assert found == {(False, False), (True, False), (True, True)}
    remove_all()
    assert cut_at(MOVED, MOVERS, again)
    back = find_cuts(tmp_path, MOVERS, lambda: moving.take_back_moves(home))
    assert len(back) > 8
    for place in back:
        remove_all()
        assert cut_at(MOVED, MOVERS, again) and (outside / "keys/log.pem").exists()
        assert cut_at(place, MOVERS, again)
        check_whole()


@pytest.mark.parametrize("name", ["keys/log.pem", "log.db", "keys/another"])
def test_a_repeated_restore_leaves_what_another_put_into_its_folders(tmp_path: Path, name: str) -> None:
    made, request, outside = make_outside(tmp_path)

    def again() -> None:
        restoring.restore(made.folder, request, making_places, made.clock)

    assert cut_at(MOVED, MOVERS, again)
    (outside / name).write_bytes(b"live")
    for _ in range(2):
        with pytest.raises(Conflict, match=r"got one.*; if an interrupted restore left that there, remove it"):
            again()
        assert (outside / name).read_bytes() == b"live"
    (outside / name).unlink()
    again()
    assert (outside / "keys/log.pem").exists() and (outside / "log.db").exists()


def test_a_record_of_moves_that_is_another_file_moves_nothing(tmp_path: Path) -> None:
    made, request, _ = make_outside(tmp_path)
    (request.home / restoring.STAGING).mkdir(parents=True, mode=0o700)
    (request.home / moving.MOVES).write_text('[["one"]]')
    with pytest.raises(Tampered, match="expected the moves of a restore, got another file"):
        restoring.restore(made.folder, request, making_places, made.clock)
