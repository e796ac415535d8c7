"""What witnesses have seen cannot be made to be forgotten: by a folder that is gone, by a date, by another word."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import wiring
from appliance.errors import BadInput, Denied, Tampered
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.cosignature import cosign, witness_vkey_of
from appliance.formats.log.note import add_signature, encode_note, parse_note
from appliance.formats.signatures.keys import generate_ed25519
from appliance.workflows.core.context import Context
from appliance.workflows.witnesses import exchange as witness
from scripts.kit.appliance import Appliance, found_site, free_port
from tests.attacks.keeping import adopt
from tests.kit.small_log import heartbeat

W1, W2 = generate_ed25519(), generate_ed25519()
NAMES = {"witness.example/w1": W1, "witness.example/w2": W2}
ONE, TWO = NAMES


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    """Stopped; its policy names two witnesses, of whom neither has seen anything."""
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
    """What a witness says that believes whatever it is shown, by a clock that is so far ahead."""
    note = parse_note(context.ledger.checkpoint() if checkpoint is None else checkpoint)
    time_s = int(parse_time(context.now(context.ledger.state)).timestamp()) + lead_s
    return encode_note(add_signature(note, cosign(note, name, NAMES[name], time_s)))


def forked(context: Context, size: int) -> bytes:
    """A checkpoint of the log's own key on another history."""
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
    """The witness's name, and not its signature."""
    (path,) = folder.iterdir()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][:-12] + "AAAAAAAAAAA=", ""]))


@pytest.mark.parametrize("lose", [_remove, _dangle, _empty, _forge])
def test_a_log_that_a_witness_cosigned_does_not_start_without_its_word(
    site: Appliance, lose: Callable[[Path], None]
) -> None:
    with wiring.service(site.settings) as context:
        said = seen(context)
        path = context.witnessed.path(ONE)
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
        path = context.witnessed.path(ONE)
    shutil.copy(site.home / "ledger.db", site.home / "yesterday.db")
    with wiring.service(site.settings) as context:
        grow(context)
        said = seen(context)
    restored(site)
    path.unlink()
    refused(site, "witness-missing")
    path.write_bytes(said)
    assert "are lost" in refused(site, "behind")


def restored(site: Appliance) -> None:
    """Yesterday's database, and no sealed fold to show it."""
    for name in ("ledger.db-wal", "ledger.db-shm", "fold.snapshot"):
        (site.home / name).unlink(missing_ok=True)
    shutil.copy(site.home / "yesterday.db", site.home / "ledger.db")


def test_an_older_word_on_another_medium_is_not_enough(site: Appliance) -> None:
    with wiring.service(site.settings) as context:
        older = seen(context)
        grow(context)
        seen(context)
        path = context.witnessed.path(ONE)
    path.write_bytes(older)
    assert "got one over" in refused(site, "witness-missing")


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
        assert context.witnessed.notes() == [said]
        with pytest.raises(Denied, match="cosignature, time: expected one until"):
            witness.accept(context, word(context, TWO, lead_s=40 * 86_400), "test")
        assert context.witnessed.notes() == [said]


def test_an_earlier_word_on_as_many_entries_leaves_nothing(site: Appliance) -> None:
    with wiring.service(site.settings) as context:
        first = context.ledger.checkpoint()
        said = word(context, ONE, checkpoint=first, lead_s=1)
        witness.accept(context, said, "test")
        with pytest.raises(Denied, match="its cosignature before"):
            witness.accept(context, word(context, ONE, checkpoint=first, lead_s=-60), "test")
        assert context.witnessed.notes() == [said]


def test_what_shows_a_loss_is_kept_whatever_it_is_dated(site: Appliance) -> None:
    """Else whoever set the clock back, with the older database, would have the witness's word refused."""
    with wiring.service(site.settings) as context:
        size = context.ledger.state.size
        said = word(context, ONE, lead_s=40 * 86_400, checkpoint=forked(context, size + 100))
        with pytest.raises(Tampered, match="are lost"):
            witness.accept(context, said, "test")
        assert context.witnessed.notes() == [said]
    refused(site, "behind")


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
        assert context.witnessed.notes() == [evidence]
        assert context.missing_from_log
    with pytest.raises(Tampered), wiring.service(site.settings):
        pass


def test_of_two_witnesses_who_were_shown_two_histories_the_other_one_is_heard(site: Appliance) -> None:
    """The one that saw this log says nothing against the other's word."""
    with wiring.service(site.settings) as context:
        ours = seen(context, TWO)
        other = word(context, ONE, checkpoint=forked(context, context.ledger.state.size - 1))
        with pytest.raises(Tampered, match="fork") as caught:
            witness.accept(context, other, "test")
        assert caught.value.code == "fork"
        grow(context)
        with pytest.raises(Tampered, match="fork"):
            witness.accept(context, word(context, TWO), "test")
        assert other in context.witnessed.notes() and len(context.witnessed.notes()) == 2
        assert ours != other
    refused(site, "fork")


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
    assert TWO in refused(site, "behind")


def test_what_a_witness_signed_with_a_key_that_policy_replaced_is_refused_and_not_kept(site: Appliance) -> None:
    site.start()
    adopt(site, witnesses=[witness_vkey_of(ONE, W2)], witness_quorum=0)
    site.stop()
    with wiring.service(site.settings) as context:
        with pytest.raises(BadInput, match="expected the line of one witness of the policy in force"):
            witness.accept(context, word(context, ONE), "test")
        assert context.witnessed.notes() == []
