"""A signer steps back exactly once for each restoration, to the checkpoint that two administrators keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.service import Heartbeat
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, Tampered, Unavailable
from appliance.formats.core.merkle import hash_leaf, root_of
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from appliance.formats.log.note import parse_note
from appliance.formats.log.restoration import StepBackFile, encode_step_back, parse_step_back
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope
from appliance.formats.signatures.keys import generate_ed25519
from appliance.signer.opening import lock_signer
from appliance.signer.operations import Operations
from appliance.signer.record import SignerRecord
from appliance.signer.server import respond
from appliance.store.files.keyring import LOG_KEY
from appliance.store.ledger.keys import SignerAhead
from scripts.kit.log_builder import ORIGIN, LogBuilder
from tests.kit.restored import edge_at, lose, restore, restored, step_back_file


class OneKey:
    """The signer's key store, with the key of a log in memory."""

    def __init__(self, site: LogBuilder) -> None:
        self.site = site

    def log_signers(self, origin: str) -> dict[str, Any]:
        return {self.site.first.log_key: self.site.log}

    def open_signer(self, uri: str) -> Any:
        assert uri != LOG_KEY
        return generate_ed25519()


class Signing:
    """A signer that has signed the lost log, and the restored log with its orders."""

    def __init__(self, folder: Path, lost: int = 5) -> None:
        self.site, self.other, self.entry = restored(entries=lost)
        self.kept = self.site.state.site.restorations[-1].kept_size
        self.now_ms = self.ordered_ms - 60_000
        self.record = SignerRecord.in_folder(folder)
        self.record.create()
        self.operations = self.start_again()

    def start_again(self) -> Operations:
        """Return a signer of the same keys and record that has just started."""
        keys: Any = OneKey(self.site)
        return Operations(keys, self.record, lambda: self.now_ms)

    @property
    def ordered_ms(self) -> int:
        return int(parse_time(self.site.state.site.restorations[-1].ordered_at).timestamp() * 1000)

    @property
    def trusted(self) -> tuple[str, ...]:
        return tuple(self.site.keys[name].keyid for name in ("anna", "ben"))

    def sign(self, log: LogBuilder, size: int | None = None) -> bytes:
        """Have the rest of a log signed, up to a size."""
        leaves = [hash_leaf(data) for data in log.entries[:size]]
        last = self.record.read()
        before = 0 if last is None else last.after.size
        vkeys = [self.site.first.log_key]
        return self.operations.sign_checkpoint(ORIGIN, before, leaves[before:], root_of(leaves), vkeys)

    def file(self) -> StepBackFile:
        return step_back_file(self.site, self.entry)

    def step(self, made: StepBackFile | None = None, trusted: tuple[str, ...] | None = None, **options: Any) -> None:
        data = encode_step_back(made or self.file())
        self.operations.step_back(data, self.trusted if trusted is None else trusted, **options)

    def size(self) -> int:
        last = self.record.read()
        assert last is not None
        return last.after.size


@pytest.fixture
def signing(tmp_path: Path) -> Signing:
    made = Signing(tmp_path)
    made.sign(made.other)
    made.now_ms = made.ordered_ms
    return made


def test_a_signer_steps_back_as_two_administrators_ordered_and_continues_the_restored_log(signing: Signing) -> None:
    before = signing.record.read()
    assert before is not None
    with pytest.raises(SignerAhead):
        signing.operations.sign_checkpoint(ORIGIN, signing.kept, [b"1" * 32], b"2" * 32, [signing.site.first.log_key])
    signing.step()
    assert signing.size() == signing.kept
    (given_up,) = signing.record.list_given_up()
    assert (given_up.note, given_up.kept_size) == (before.note, signing.kept)
    assert parse_step_back(given_up.orders) == signing.file()
    signing.now_ms += 120_000
    assert signing.sign(signing.site) and signing.size() == signing.site.state.size
    assert signing.operations.describe().steps_back == ((before.after.size, signing.kept),)


def test_the_same_orders_are_refused_a_second_time(signing: Signing) -> None:
    """The restored log soon has the sizes that were given up."""
    signing.step()
    with pytest.raises(Conflict, match="the signer has stepped back already"):
        signing.step()
    # The signer's clock goes back, and the times in its record do not.
    signing.now_ms -= 60_000
    signing.sign(signing.site)
    with pytest.raises(Unavailable, match="set this machine's clock if it is behind"):
        signing.step()
    signing.now_ms += 60_000
    with pytest.raises(Tampered, match="expected a checkpoint from before the order") as refused:
        signing.step()
    assert refused.value.code == "restoration-refused"
    assert signing.size() == signing.site.state.size and len(signing.record.list_given_up()) == 1


def test_an_order_that_is_dated_ahead_of_the_signers_clock_does_not_count_yet(signing: Signing) -> None:
    before = signing.record.read()
    signing.now_ms = signing.ordered_ms // 1000 * 1000 - 1
    with pytest.raises(Unavailable, match="signer, clock: expected a time after the order"):
        signing.step()
    assert signing.record.read() == before
    signing.now_ms += 1
    signing.step()


def test_no_signer_steps_back_before_the_time_of_its_last_signature(tmp_path: Path) -> None:
    """Its clock was years ahead once. Later signatures have that time, too, so every order is earlier."""
    signing = Signing(tmp_path)
    now_ms, signing.now_ms = signing.ordered_ms, 1_924_992_000_000
    signing.sign(signing.other, signing.kept + 1)
    signing.now_ms = now_ms
    signing.sign(signing.other)
    before = signing.record.read()
    with pytest.raises(Unavailable) as refused:
        signing.step()
    ordered_at = signing.site.state.site.restorations[-1].ordered_at
    for words in ("2031-01-01T00:00:00.000Z", f"got {ordered_at}", "docs/operations/signer.md"):
        assert words in refused.value.message
    assert signing.record.read() == before and signing.record.list_given_up() == []


def test_orders_that_were_kept_do_not_count_for_a_log_that_went_on(tmp_path: Path) -> None:
    """The newer database was put back after all, and the log grew."""
    signing = Signing(tmp_path)
    signing.sign(signing.other, signing.kept + 2)
    signing.now_ms += 120_000
    signing.sign(signing.other, signing.kept + 3)
    with pytest.raises(Tampered, match="from before the order"):
        signing.step()


def _one_signature(signing: Signing) -> StepBackFile:
    made = signing.file()
    assert made.countersigned is not None
    return replace(made, order=made.countersigned, countersigned=None)


def _one_twice(signing: Signing) -> StepBackFile:
    made = signing.file()
    assert made.countersigned is not None
    return replace(made, order=made.countersigned)


def _other_kept(signing: Signing) -> StepBackFile:
    size = signing.kept - 1
    return replace(signing.file(), kept=signing.site.checkpoint(size), edge=edge_at(signing.site, size).hashes)


def _other_root(signing: Signing) -> StepBackFile:
    forged = sign_checkpoint(Checkpoint(ORIGIN, signing.kept, b"\1" * 32), signing.site.log)
    return replace(signing.file(), kept=forged)


def _other_edge(signing: Signing) -> StepBackFile:
    made = signing.file()
    return replace(made, edge=(b"\1" * 32, *made.edge[1:]))


def _short_edge(signing: Signing) -> StepBackFile:
    return replace(signing.file(), edge=())


def _unsigned_kept(signing: Signing) -> StepBackFile:
    last = sign_checkpoint(Checkpoint(ORIGIN, signing.kept, root_of([])), generate_ed25519())
    return replace(signing.file(), kept=last)


def _of_another_log(signing: Signing) -> StepBackFile:
    other = Checkpoint("other.example/log", signing.kept, root_of([]))
    made = signing.file()
    return replace(made, kept=sign_checkpoint(other, signing.site.log), lost=sign_checkpoint(other, signing.site.log))


def _of_another_key(signing: Signing) -> StepBackFile:
    key, made = generate_ed25519(), signing.file()
    notes = [parse_checkpoint(parse_note(note).text) for note in (made.kept, made.lost)]
    kept, lost = (sign_checkpoint(note, key) for note in notes)
    return replace(made, kept=kept, lost=lost)


def _larger_lost(signing: Signing) -> StepBackFile:
    log = signing.other.fork()
    log.add(Heartbeat())
    return replace(signing.file(), lost=log.checkpoint())


def _by_one_person(signing: Signing, name: str = "anna") -> StepBackFile:
    """Countersign the first administrator's own order, under her name or another one."""
    made = signing.file()
    first = parse_envelope(made.first)
    own = signing.site.order(Countersign, name, order=first.pae_digest)
    return replace(made, order=encode_envelope(signing.site.sign(own, signing.site.keys["anna"])))


def _by_one_key_under_two_names(signing: Signing) -> StepBackFile:
    return _by_one_person(signing, "ben")


def _by_one_person_with_two_keys(signing: Signing) -> StepBackFile:
    """Countersign with the key of another trusted administrator, under the same name."""
    made = signing.file()
    own = signing.site.order(Countersign, "anna", order=parse_envelope(made.first).pae_digest)
    return replace(made, order=encode_envelope(signing.site.sign(own, signing.site.keys["ben"])))


def _of_another_order(signing: Signing) -> StepBackFile:
    """Countersign another order as the second administrator."""
    own = signing.site.order(Countersign, "ben", order=f"sha256:{'1' * 64}")
    return replace(signing.file(), order=encode_envelope(signing.site.sign(own)))


def _without_keys(signing: Signing) -> StepBackFile:
    return replace(signing.file(), keys=())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_one_signature, "expected the signatures of 2 administrators, got 1"),
        (_one_twice, "got one twice"),
        (_other_kept, "step-back, kept: expected the checkpoint of"),
        (_other_root, "step-back, kept: expected the checkpoint of"),
        (_other_edge, "step-back, kept: expected the checkpoint of"),
        (_short_edge, "step-back, edge"),
        (_unsigned_kept, "one of the signer's keys has signed"),
        (_without_keys, "expected the public key"),
        (_of_another_log, "one of the signer's keys has signed"),
        (_of_another_key, "one of the signer's keys has signed"),
        (_larger_lost, "restoration, lost"),
        (_by_one_person, "got one twice"),
        (_by_one_key_under_two_names, "got one twice"),
        (_by_one_person_with_two_keys, "got one twice"),
        (_of_another_order, "restoration, countersigned order"),
    ],
)
def test_orders_of_another_step_are_refused(
    signing: Signing, change: Callable[[Signing], StepBackFile], words: str
) -> None:
    before = signing.record.read()
    with pytest.raises(Tampered, match=words):
        signing.step(change(signing))
    assert signing.record.read() == before and signing.record.list_given_up() == []


def test_keys_of_others_do_not_count(signing: Signing) -> None:
    anna, ben = signing.trusted
    outsider = generate_ed25519().keyid
    for trusted in ((anna,), (ben,), (anna, outsider), ()):
        with pytest.raises(Tampered, match="expected the key of a trusted administrator") as refused:
            signing.step(trusted=trusted)
        assert refused.value.code == "trust"
    assert signing.size() == signing.other.state.size
    signing.step()


def test_a_signer_beyond_the_entries_that_are_given_up_does_not_step_back(tmp_path: Path) -> None:
    signing = Signing(tmp_path)
    log = signing.other.fork()
    log.add(Heartbeat())
    signing.sign(log)
    lost = signing.other.state.size
    with pytest.raises(Tampered, match=f"expected a checkpoint of at most {lost} entries, got {lost + 1}"):
        signing.step()


def test_a_signer_that_signed_nothing_or_holds_what_it_did_not_sign_does_not_step_back(tmp_path: Path) -> None:
    signing = Signing(tmp_path)
    with pytest.raises(Conflict, match="got none yet"):
        signing.step()
    signing.sign(signing.other)
    last = signing.record.read()
    assert last is not None
    foreign = sign_checkpoint(Checkpoint(ORIGIN, last.after.size, last.after.root()), generate_ed25519())
    assert signing.record.swap(last, replace(last, note=foreign))
    with pytest.raises(Tampered, match="the record was put back"):
        signing.step()
    with pytest.raises(Tampered, match="expected a checkpoint that one of the signer's keys has signed"):
        signing.start_again().step_back(encode_step_back(signing.file()), signing.trusted)


def test_a_file_that_is_none_is_refused(signing: Signing) -> None:
    data = encode_step_back(signing.file())
    for wrong in (data[:-1], b"{}\n", data.replace(b'"version":1', b'"version":2')):
        with pytest.raises(BadInput):
            signing.operations.step_back(wrong, signing.trusted)


def test_a_step_that_cannot_be_stored_changes_nothing(signing: Signing, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signing.record.read()

    class Full:
        def execute(self, *_: object) -> None:
            raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("appliance.signer.record._INSERT_GIVEN_UP", Full())
        with pytest.raises((ApplianceError, OSError)):
            signing.step()
    assert signing.record.read() == before and signing.record.list_given_up() == []
    signing.step()


def test_an_order_that_has_expired_does_not_count(signing: Signing) -> None:
    before = signing.record.read()
    signing.now_ms = signing.ordered_ms + 600_000
    with pytest.raises(Denied, match="both administrators have to sign again") as refused:
        signing.step()
    assert refused.value.code == "expired" and signing.record.read() == before
    signing.now_ms -= 1
    signing.step()


def test_an_earlier_file_does_not_count_after_a_later_restoration(signing: Signing) -> None:
    first = signing.file()
    signing.step()
    signing.now_ms += 2_000
    signing.sign(signing.site)
    site = signing.site
    lost = lose(site, 9)
    signing.sign(lost)
    entry = restore(site, lost.checkpoint())
    signing.now_ms = int(parse_time(site.now).timestamp() * 1000)
    for _ in range(2):
        with pytest.raises(Tampered, match="restoration: expected a checkpoint") as refused:
            signing.step(first)
        assert refused.value.code == "restoration-refused"
        if len(signing.record.list_given_up()) == 1:
            signing.kept = site.state.site.restorations[-1].kept_size
            signing.step(step_back_file(site, entry))
    sizes = [(lost_size, kept) for lost_size, kept in signing.operations.describe().steps_back]
    assert len(sizes) == 2 and signing.size() == sizes[-1][1]


def test_a_signer_that_runs_during_a_step_back_refuses_until_it_is_started_again(signing: Signing) -> None:
    """It would else continue what was given up, or take the record that somebody put back."""
    running = signing.start_again()
    assert running.find_log() == ORIGIN
    signing.step()
    vkeys = [signing.site.first.log_key]
    leaf = hash_leaf(b"other")
    with pytest.raises(Tampered, match="start this signer again if that was a step back"):
        running.sign_checkpoint(ORIGIN, signing.kept, [leaf], edge_at(signing.site, signing.kept).root(), vkeys)
    signing.operations.find_log()
    signing.start_again().find_log()


def test_a_signer_that_has_stepped_back_takes_no_other_record(signing: Signing) -> None:
    signing.step()
    last = signing.record.read()
    assert last is not None
    earlier = edge_at(signing.site, signing.kept - 1)
    assert signing.record.swap(last, replace(last, after=earlier, before=earlier))
    with pytest.raises(Tampered, match="the record was put back"):
        signing.operations.find_log()


def test_no_request_of_the_service_is_a_step_back(signing: Signing) -> None:
    before = signing.record.read()
    for operation in ("step-back", "step_back"):
        header, _ = respond(signing.operations, {"operation": operation}, encode_step_back(signing.file()))
        assert "signer, operation" in str(header)
    assert signing.record.read() == before


def test_a_signer_that_serves_has_the_lock_of_its_folder(tmp_path: Path) -> None:
    with lock_signer(tmp_path), pytest.raises(Conflict, match="stop that signer first") as refused:
        lock_signer(tmp_path)
    assert refused.value.code == "locked"
    lock_signer(tmp_path).release()


def test_one_signature_is_enough_for_a_site_with_one_administrator(signing: Signing) -> None:
    made = _one_signature(signing)
    with pytest.raises(Tampered, match="expected the key of a trusted administrator"):
        signing.step(made, signing.trusted[1:], signatures=1)
    signing.step(made, signing.trusted[:1], signatures=1)
    assert signing.size() == signing.kept
