"""The service cannot be made to ignore what witnesses have seen: by a removed folder, a date, or another name."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance import wiring
from appliance.domain.governance.log_control import RotateLogKey
from appliance.errors import BadInput, Denied, Tampered
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import Checkpoint, cosign, sign_checkpoint, witness_vkey_of
from appliance.formats.log.note import add_signature, encode_note, parse_note
from appliance.formats.signatures.keys import generate_ed25519
from appliance.workflows import witnesses as witness
from appliance.workflows.core.context import Context
from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port
from tests.attacks.keeping import adopt, two
from tests.kit.small_log import heartbeat

W1, W2 = generate_ed25519(), generate_ed25519()
NAMES = {"witness.example/w1": W1, "witness.example/w2": W2}
ONE, TWO = NAMES


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    """Return a stopped site whose policy names two witnesses that have seen no entry."""
    site = found_site(tmp_path_factory.mktemp("w") / "h", free_port())
    try:
        adopt(site, witnesses=[witness_vkey_of(name, key) for name, key in NAMES.items()], witness_quorum=0)
    finally:
        site.stop()
    return site


@pytest.fixture
def site(watched: Appliance, tmp_path: Path) -> Appliance:
    return watched.copy(tmp_path / "h", free_port())


def word(context: Context, name: str, *, lead_s: int = 0, checkpoint: bytes | None = None) -> bytes:
    """Return a cosignature of a witness without checks, by a clock that is so far ahead."""
    note = parse_note(context.ledger.checkpoint() if checkpoint is None else checkpoint)
    time_s = int(parse_time(context.now(context.ledger.state)).timestamp()) + lead_s
    return encode_note(add_signature(note, cosign(note, name, NAMES[name], time_s)))


def forked(context: Context, size: int) -> bytes:
    """Return a checkpoint of the log's own key on another history."""
    (signer,) = context.keyring.log_signers(context.ledger.state.site.origin).values()
    return sign_checkpoint(Checkpoint(context.ledger.state.site.origin, size, bytes(32)), signer)


def seen(context: Context, name: str = ONE) -> bytes:
    """... and the appliance has taken it in."""
    said = word(context, name)
    witness.accept(context, said, "test")
    return said


def grow(context: Context, by: int = 3) -> None:
    context.ledger.append_all([heartbeat()] * by)


def refused(site: Appliance, code: str) -> str:
    with pytest.raises(Tampered) as caught, wiring.service(site.settings):
        pass
    assert caught.value.code == code, caught.value.message
    return caught.value.message


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _dangle(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "not-mounted")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _forge(folder: Path) -> None:
    """Damage the end of the witness's signature, and leave its name and key ID."""
    (path,) = folder.iterdir()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][:-12] + "AAAAAAAAAAA=", ""]))


@pytest.mark.essential
@pytest.mark.parametrize("lose", [_remove, _dangle, _empty, _forge])
def test_a_log_that_a_witness_cosigned_does_not_start_without_its_word(
    site: Appliance, lose: Callable[[Path], None]
) -> None:
    with wiring.service(site.settings) as context:
        said = seen(context)
        path = context.known_checkpoints.path(ONE)
        known = context.ledger.state.witnesses.get(ONE)
        assert known is not None
    lose(site.settings.witnessed)
    message = refused(site, "witness-missing")
    assert (
        f"expected a cosignature of {ONE} over {known.size} entries or more, as in entry {known.index}, got none"
        in message
    )
    assert f"copy the state file from the witness's machine to {path}" in message
    # Which the witness's last word, as it has it itself, puts right.
    if site.settings.witnessed.is_symlink():
        site.settings.witnessed.unlink()
    site.settings.witnessed.mkdir(exist_ok=True)
    path.write_bytes(said)
    with wiring.service(site.settings) as context:
        assert context.missing_from_log == []


def test_the_state_file_of_the_witness_in_the_place_of_what_was_lost_shows_an_older_database(site: Appliance) -> None:
    with wiring.service(site.settings) as context:
        seen(context)
        path = context.known_checkpoints.path(ONE)
    shutil.copy(site.home / "ledger.db", site.home / "yesterday.db")
    with wiring.service(site.settings) as context:
        grow(context)
        said = seen(context)
    restored(site)
    path.unlink()
    refused(site, "witness-missing")
    path.write_bytes(said)
    assert "are lost" in refused(site, "log-truncated")


def restored(site: Appliance) -> None:
    """Yesterday's database, and no sealed snapshot to show it."""
    for name in ("ledger.db-wal", "ledger.db-shm", "state.snapshot"):
        (site.home / name).unlink(missing_ok=True)
    shutil.copy(site.home / "yesterday.db", site.home / "ledger.db")


def test_an_older_word_on_another_medium_is_not_enough(site: Appliance) -> None:
    with wiring.service(site.settings) as context:
        older = seen(context)
        grow(context)
        seen(context)
        path = context.known_checkpoints.path(ONE)
    path.write_bytes(older)
    assert "got one over" in refused(site, "witness-missing")


@pytest.mark.thorough
def test_a_witness_that_policy_names_no_more_need_not_be_kept(site: Appliance) -> None:
    with wiring.service(site.settings) as context:
        seen(context)
    site.start()
    adopt(site, witnesses=[witness_vkey_of(TWO, W2)], witness_quorum=0)
    site.stop()
    shutil.rmtree(site.settings.witnessed)
    with wiring.service(site.settings) as context:
        assert context.missing_from_log == []


def test_a_word_that_is_dated_ahead_leaves_nothing(site: Appliance) -> None:
    with wiring.service(site.settings) as context:
        said = seen(context)
        grow(context)
        with pytest.raises(Denied, match="cosignature, time: expected one until"):
            witness.accept(context, word(context, ONE, lead_s=40 * 86_400), "test")
        assert context.known_checkpoints.list_notes() == [said]
        with pytest.raises(Denied, match="cosignature, time: expected one until"):
            witness.accept(context, word(context, TWO, lead_s=40 * 86_400), "test")
        assert context.known_checkpoints.list_notes() == [said]


def test_an_earlier_word_on_as_many_entries_leaves_nothing(site: Appliance) -> None:
    with wiring.service(site.settings) as context:
        first = context.ledger.checkpoint()
        said = word(context, ONE, checkpoint=first, lead_s=1)
        witness.accept(context, said, "test")
        with pytest.raises(Denied, match="its cosignature before"):
            witness.accept(context, word(context, ONE, checkpoint=first, lead_s=-60), "test")
        assert context.known_checkpoints.list_notes() == [said]


def test_what_shows_a_loss_is_kept_whatever_it_is_dated(site: Appliance) -> None:
    """Else whoever set the clock back, with the older database, would have the witness's word refused."""
    with wiring.service(site.settings) as context:
        size = context.ledger.state.size
        said = word(context, ONE, lead_s=40 * 86_400, checkpoint=forked(context, size + 100))
        with pytest.raises(Tampered, match="are lost"):
            witness.accept(context, said, "test")
        assert context.known_checkpoints.list_notes() == [said]
    refused(site, "log-truncated")


@pytest.mark.parametrize("lead", [0, 100])
def test_what_shows_a_loss_gives_way_to_no_word_of_the_same_witness_that_does_not(site: Appliance, lead: int) -> None:
    """A witness that signs two histories, or whoever holds its key, does not make the appliance forget the other."""
    with wiring.service(site.settings) as context:
        evidence = word(context, ONE, checkpoint=forked(context, context.ledger.state.size - 1 + lead))
        with pytest.raises(Tampered):
            witness.accept(context, evidence, "test")
        grow(context)
        with pytest.raises(Tampered):
            witness.accept(context, word(context, ONE), "test")
        assert context.known_checkpoints.list_notes() == [evidence]
        assert context.missing_from_log
    with pytest.raises(Tampered), wiring.service(site.settings):
        pass


def test_of_two_witnesses_who_were_shown_two_histories_the_other_one_is_heard(site: Appliance) -> None:
    """The cosignature of the one that saw this log does not cancel the other's."""
    with wiring.service(site.settings) as context:
        ours = seen(context, TWO)
        other = word(context, ONE, checkpoint=forked(context, context.ledger.state.size - 1))
        with pytest.raises(Tampered, match="fork") as caught:
            witness.accept(context, other, "test")
        assert caught.value.code == "split-view"
        grow(context)
        with pytest.raises(Tampered, match="fork"):
            witness.accept(context, word(context, TWO), "test")
        assert other in context.known_checkpoints.list_notes() and len(context.known_checkpoints.list_notes()) == 2
        assert ours != other
    refused(site, "split-view")


def test_a_witness_that_lags_is_no_loss_and_the_other_one_shows_what_it_has_not_seen(site: Appliance) -> None:
    with wiring.service(site.settings) as context:
        seen(context, ONE)
    shutil.copy(site.home / "ledger.db", site.home / "yesterday.db")
    with wiring.service(site.settings) as context:
        grow(context)
        seen(context, TWO)
    with wiring.service(site.settings) as context:
        assert context.missing_from_log == [], "the first one lags"
    restored(site)
    assert TWO in refused(site, "log-truncated")


@pytest.mark.thorough
def test_what_a_witness_signed_with_a_key_that_policy_replaced_is_refused_and_not_kept(site: Appliance) -> None:
    site.start()
    adopt(site, witnesses=[witness_vkey_of(ONE, W2)], witness_quorum=0)
    site.stop()
    with wiring.service(site.settings) as context:
        with pytest.raises(BadInput, match="expected the line of one witness of the valid policy"):
            witness.accept(context, word(context, ONE), "test")
        assert context.known_checkpoints.list_notes() == []


def test_entries_of_another_process_that_were_not_read_yet_are_not_lost(site: Appliance) -> None:
    """Otherwise a cosignature over them closes every slot of this process."""
    with wiring.service(site.settings) as one, wiring.service(site.settings) as other:
        before = other.ledger.state.size
        one.ledger.append_all([heartbeat()])
        other.processes = SimpleNamespace(alone=False, name="other")  # type: ignore[assignment]
        assert other.ledger.state.size == before
        witness.accept(other, word(one, ONE), "test")
        assert other.missing_from_log == []


@contextmanager
def two_processes(site: Appliance) -> Iterator[tuple[Context, Context]]:
    with wiring.service(site.settings) as one, wiring.service(site.settings) as other:
        for name, context in (("one", one), ("other", other)):
            context.processes = SimpleNamespace(alone=False, name=name)  # type: ignore[assignment]
        yield one, other


def copied_database(source: Path, target: Path) -> None:
    """As whoever can write the database puts an earlier content in its place."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.mark.parametrize("goes_on", [0, 1, 3])
def test_what_another_process_committed_and_somebody_removed_closes_this_one(
    site: Appliance, tmp_path: Path, goes_on: int
) -> None:
    """It may be a revocation that this process has not read: it would respond for ever."""
    database, before = site.home / "ledger.db", tmp_path / "before.db"
    with two_processes(site) as (one, other):
        size = other.ledger.state.size
        copied_database(database, before)
        one.ledger.append_all([heartbeat()])
        copied_database(before, database)
        with pytest.raises(Tampered):
            witness.HeadExchange(one).run(one.refresh)
        if goes_on:
            grow(other, goes_on)
        asked: list[str] = []
        other.recheck_answers.connect(lambda: asked.append("asked"))
        heads = witness.HeadExchange(other)
        for _ in range(2):
            heads.run(other.refresh)
        (loss,) = other.missing_from_log
        assert loss.code == ("split-view" if goes_on else "log-truncated")
        assert "a process of this log has committed" in loss.message or "another process has seen" in loss.message
        assert asked == ["asked"]
        assert other.ledger.state.size == size + goes_on
    expected = "another process has seen" if goes_on else "a process of this log has committed"
    assert expected in refused(site, loss.code)


def test_processes_that_read_each_others_entries_miss_none(site: Appliance) -> None:
    with two_processes(site) as (one, other):
        heads = [(context, witness.HeadExchange(context)) for context in (one, other)]
        for turn in (one, other, one):
            turn.refresh()
            grow(turn)
            for context, exchange in heads:
                exchange.run(context.refresh)
                assert context.missing_from_log == []
        names = sorted(path.name for path in one.known_checkpoints.folder.iterdir())
        assert names == ["process-one.note", "process-other.note"]


def test_what_another_process_commits_while_this_one_starts_is_not_lost(site: Appliance) -> None:
    """A start reads the log before it compares it."""
    with two_processes(site) as (one, other):
        grow(one)
        witness.HeadExchange(one).run(one.refresh)
        assert other.ledger.state.size < one.ledger.state.size
        assert witness.compare(other) == []


def test_a_file_that_the_log_never_signed_closes_no_process_that_runs(site: Appliance) -> None:
    with two_processes(site) as (one, _):
        one.known_checkpoints.store_committed("outsider", b"no note")
        witness.HeadExchange(one).run(lambda: None)
        assert one.missing_from_log == []


@pytest.mark.thorough
def test_a_key_that_was_replaced_claims_no_entries_even_with_a_hostile_witness(site: Appliance) -> None:
    """Whoever stole it would stop the service for ever. The log has a new key since an entry before that size."""
    with wiring.service(site.settings) as context:
        origin = context.ledger.state.site.origin
        (stolen,) = context.keyring.log_signers(origin).values()
        claimed = sign_checkpoint(Checkpoint(origin, 1_000_000, bytes(32)), stolen)
    site.start()
    try:
        vkey = site.ask("POST", "/v1/log-keys", "anna", json={})["vkey"]
        two(site, RotateLogKey(log_key=vkey, old_until=site.now(), **site.terms("anna")))
    finally:
        site.stop()
    with wiring.service(site.settings) as context:
        said = word(context, ONE, checkpoint=claimed)
        with pytest.raises(Tampered, match="expected a signature by the key of this log at its size"):
            witness.accept(context, said, "test")
        assert (context.missing_from_log, context.known_checkpoints.list_notes()) == ([], [])
        seen(context)
        assert context.missing_from_log == []
