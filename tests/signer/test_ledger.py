"""A ledger whose checkpoints a signer signs: whenever a process dies, the signed batch is committed, once."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.entry import EntryDraft
from appliance.errors import Tampered, TooLarge, Unavailable
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.merkle import Frontier, hash_leaf
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.signer import operations as operations_module
from appliance.signer import record as record_module
from appliance.signer.operations import Operations
from appliance.signer.record import FILE, SignerRecord
from appliance.store.database.catalogue import check_catalogue
from appliance.store.database.engine import migrate, open_engine
from appliance.store.files.keyring import Keyring
from appliance.store.ledger import ledger as ledger_module
from appliance.store.ledger import pending as pending_module
from appliance.store.ledger import writer as writer_module
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.pending import FILE as PENDING
from appliance.store.ledger.pending import PendingFile
from tests.kit.cuts import cut_at, find_cuts
from tests.kit.signing import Direct, make_signer, signed_ledger, small_site
from tests.kit.small_log import ORIGIN, Enrolment, SmallLog, heartbeat

FILES = frozenset(
    str(module.__file__) for module in (ledger_module, pending_module, writer_module, operations_module, record_module)
)
TEXT = b"mia Example"


class Place:
    """A home with a log of one entry, and the folder of its signer."""

    def __init__(self, folder: Path, site: SmallLog) -> None:
        self.home, self.signer, self.site = folder / "home", folder / "signer", site

    def open(self) -> Ledger:
        operations = Operations(Keyring(self.signer / "keys"), SignerRecord.in_folder(self.signer))
        return signed_ledger(self.site, f"sqlite:///{self.home / 'ledger.db'}", self.home, Direct(operations))

    def copy(self, folder: Path) -> Place:
        shutil.copytree(self.home, folder / "home")
        shutil.copytree(self.signer, folder / "signer")
        return Place(folder, self.site)

    def signed(self) -> tuple[int, bytes]:
        last = SignerRecord.in_folder(self.signer).read()
        assert last is not None
        return last.after.size, last.after.root()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "first"
    (folder / "home").mkdir(parents=True)
    make_signer(folder / "signer")
    engine = open_engine(f"sqlite:///{folder / 'home' / 'ledger.db'}")
    migrate(engine)
    engine.dispose()
    found = Place(folder, small_site(folder / "signer"))
    with closing(found.open()) as ledger:
        ledger.append(found.site.first_draft())
    return found


@pytest.fixture
def mia(place: Place) -> Enrolment:
    return place.site.enrolment("mia")


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    with closing(place.open()) as opened:
        yield opened


def check_whole(place: Place, opened: Ledger) -> None:
    """Log, checkpoint and signer agree, and no batch is pending."""
    opened.load()
    checkpoint = open_checkpoint(opened.checkpoint(), place.site.log_key)
    assert (checkpoint.size, checkpoint.root) == place.signed() == (opened.state.size, opened.edge.root())
    assert (place.home / PENDING).read_bytes() == b""
    assert opened.check_projections() == [] == opened.ask(check_catalogue)


def test_a_signed_ledger_is_one_as_any_other(place: Place, ledger: Ledger, mia: Enrolment) -> None:
    ledger.append(mia.pending)
    ledger.append_all([mia.enrolled, heartbeat()])
    check_whole(place, ledger)
    with closing(place.open()) as again:
        check_whole(place, again)
        assert again.disclosures([mia.printed_name.commitment])


@pytest.mark.thorough
def test_a_power_cut_in_each_state_of_the_disk_loses_no_signed_batch(
    place: Place, mia: Enrolment, tmp_path: Path
) -> None:
    def append(there: Place) -> None:
        with closing(there.open()) as opened:
            opened.append_all([mia.pending, heartbeat()])

    whole = place.copy(tmp_path / "whole")
    places = find_cuts(tmp_path / "whole", FILES, lambda: append(whole))
    assert len(places) > 8
    outcomes = set()
    for number, cut in enumerate(places):
        there = place.copy(tmp_path / f"cut-{number}")
        assert cut_at(cut, FILES, lambda there=there: append(there))  # type: ignore[misc]
        signed = there.signed()[0] == 3
        with closing(there.open()) as opened:
            check_whole(there, opened)
            assert (opened.state.size == 3) >= signed, cut
            outcomes.add((signed, opened.state.size))
            appended = opened.append(heartbeat())
            assert appended.entry.index in (1, 3)
            check_whole(there, opened)
        shutil.rmtree(there.home.parent)
    assert outcomes == {(False, 1), (True, 3)}


def test_a_batch_is_completed_after_a_commit_that_failed(
    place: Place, ledger: Ledger, mia: Enrolment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callers get an error, and the entry follows before the next one is decided."""
    ledger.load()

    def fail(*_: Any) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.Writer, "commit", fail)
        with pytest.raises(Unavailable):
            ledger.append(mia.pending)
        assert place.signed()[0] == 2
    decided: list[int] = []
    appended = ledger.append(heartbeat(), guard=lambda state, _now: decided.append(state.size))
    assert (appended.entry.index, decided) == (2, [2])
    assert ledger.entry_bytes(1).find(b"order.pending") > 0
    check_whole(place, ledger)


def test_a_refused_signature_leaves_the_log_as_it_was(
    place: Place, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.load()

    def fail(*_: Any) -> bool:
        raise Unavailable("signer, record: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(SignerRecord, "swap", fail)
        with pytest.raises(Unavailable):
            ledger.append(heartbeat())
    assert ledger.state.size == 1
    check_whole(place, ledger)


def test_a_signer_that_is_ahead_without_its_batch_stops_the_service(place: Place, ledger: Ledger) -> None:
    ledger.load()
    before = place.copy(place.home.parent / "older")
    ledger.append(heartbeat())
    # The home is put back to an older state, the signer is not.
    shutil.rmtree(before.signer)
    shutil.copytree(place.signer, before.signer)
    with closing(before.open()) as older, pytest.raises(Tampered, match="got one of 2, whose pending batch") as refused:
        older.load()
    assert refused.value.code == "batch-missing"


def test_a_signer_that_was_put_back_stops_the_service(place: Place, ledger: Ledger) -> None:
    ledger.load()
    older = {path.name: path.read_bytes() for path in place.signer.glob(f"{FILE}*")}
    ledger.append(heartbeat())
    ledger.close()
    for path in place.signer.glob(f"{FILE}*"):
        path.unlink()
    for name, data in older.items():
        (place.signer / name).write_bytes(data)
    with closing(place.open()) as opened, pytest.raises(Tampered, match="put back to an older state") as refused:
        opened.load()
    assert refused.value.code == "signer-behind"


def test_a_signer_of_another_log_of_the_same_size_stops_the_service(place: Place, ledger: Ledger) -> None:
    ledger.load()
    for path in place.signer.glob(f"{FILE}*"):
        path.unlink()
    other = Frontier.EMPTY.extend([hash_leaf(b"other")])[0]
    record = SignerRecord.in_folder(place.signer)
    record.create()
    signer = Operations(Keyring(place.signer / "keys"), record)
    signer.sign_checkpoint(ORIGIN, 0, [hash_leaf(b"other")], other.root(), [place.site.log_key])
    with closing(place.open()) as opened, pytest.raises(Tampered, match="another root") as refused:
        opened.load()
    assert refused.value.code == "split-view"


def test_a_pending_batch_that_was_changed_is_not_committed(
    place: Place, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root that was signed is over the entries as they were."""
    ledger.load()
    monkeypatch.setattr(writer_module.Writer, "commit", _unavailable)
    with pytest.raises(Unavailable):
        ledger.append(heartbeat())
    ledger.close()
    data = bytearray((place.home / PENDING).read_bytes())
    data[-20] ^= 1
    (place.home / PENDING).write_bytes(data)
    with closing(place.open()) as opened, pytest.raises(Tampered, match="pending batch is missing"):
        opened.load()


@pytest.mark.parametrize("change", ["entry", "text", "commitment"])
def test_other_bytes_under_the_signed_root_are_not_committed(
    change: str, place: Place, ledger: Ledger, mia: Enrolment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator of the database can change the bytes of a pending batch and leave its size and root."""
    ledger.load()
    monkeypatch.setattr(writer_module.Writer, "commit", _unavailable)
    with pytest.raises(Unavailable):
        ledger.append(mia.pending)
    ledger.close()
    monkeypatch.undo()
    size, root = place.signed()
    stored = PendingFile(place.home / PENDING)
    data = stored.read(size, root)
    assert data is not None
    value = parse_canonical(data)
    if change == "entry":
        entry = parse_canonical(base64.b64decode(value["entry"]))
        value["entry"] = base64.b64encode(encode_canonical({**entry, "time": later(entry["time"])})).decode()
    else:
        value["texts"][0][change] = value["texts"][0][change][:-1] + "0"
    stored.store(size, root, encode_canonical(value))
    with closing(place.open()) as opened:
        with pytest.raises(Tampered, match="pending batch"):
            opened.load()
        stored.store(size, root, data)
        check_whole(place, opened)


def later(time: str) -> str:
    """Return the time some milliseconds later."""
    return time[:-4] + ("9" if time[-4] != "9" else "8") + time[-3:]


def test_a_batch_that_could_not_be_read_again_is_not_signed(
    place: Place, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signer would have signed a size whose entries can never be committed."""
    ledger.load()
    monkeypatch.setattr(pending_module, "MAX_BYTES", 200)
    with pytest.raises(TooLarge, match="pending batch"):
        ledger.append(heartbeat())
    assert place.signed()[0] == 1
    monkeypatch.undo()
    ledger.append(heartbeat())
    check_whole(place, ledger)


def _unavailable(*_: Any) -> None:
    raise Unavailable("no")


def test_the_text_of_a_pending_batch_leaves_no_copy(place: Place, ledger: Ledger, mia: Enrolment) -> None:
    ledger.append(mia.pending)
    erased = mia.printed_name.commitment
    ledger.append(EntryDraft(type="heartbeat", erased=(erased,)))
    ledger.close()
    found = [path.name for path in place.home.parent.rglob("*") if path.is_file() and TEXT in path.read_bytes()]
    assert found == []


def test_a_stale_batch_that_a_power_cut_brought_back_is_removed(place: Place, ledger: Ledger) -> None:
    ledger.load()
    PendingFile(place.home / PENDING).store(1, ledger.edge.root(), TEXT)
    with closing(place.open()) as opened:
        opened.load()
    assert (place.home / PENDING).read_bytes() == b""


def test_a_batch_written_in_part_is_none(tmp_path: Path) -> None:
    stored = PendingFile(tmp_path / PENDING)
    root = bytes(32)
    stored.store(3, root, b"a batch")
    assert stored.read(3, root) == b"a batch"
    assert stored.read(4, root) is None and stored.read(3, bytes(31) + b"1") is None
    whole = (tmp_path / PENDING).read_bytes()
    for length in range(len(whole)):
        os.truncate(tmp_path / PENDING, length)
        assert stored.read(3, root) is None
        (tmp_path / PENDING).write_bytes(whole)
