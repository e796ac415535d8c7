"""A real service whose log lost its end serves no unit until two administrators restore the log."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.domain.governance.restoration import RestoreLog
from appliance.domain.retention import PlaceHold
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64
from appliance.formats.log.checkpoint import Checkpoint, claimed_size, open_checkpoint, sign_checkpoint
from appliance.store.files.keyring import Keyring
from appliance.store.files.known_checkpoints import KnownCheckpoints
from scripts.kit.appliance import Appliance, Refused, found_site
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for

pytestmark = pytest.mark.thorough


def wait_until_restarted(site: Appliance, started: int) -> None:
    """Wait until a service that had started so many times has started once more and answers people."""
    wait_for(lambda: site.log().count("service.started") > started, lambda: f"a start: {site.log()[-2000:]}")
    site.wait_until_up()


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    made = found_site(tmp_path_factory.mktemp("r") / "h", free_port())
    yield made
    made.stop()


def lose(site: Appliance, more: int) -> bytes:
    """Another process of this log committed more entries, before an older state was restored under this home."""
    about = site.ask("GET", "/v1/about", None)
    known = open_checkpoint(about["checkpoint"].encode(), site.trust.log_key)
    signer = Keyring(site.settings.keys).log_signers(site.trust.origin)[site.trust.log_key]
    note = sign_checkpoint(Checkpoint(known.origin, known.size + more, hashlib.sha256(b"lost").digest()), signer)
    site.stop()
    KnownCheckpoints(site.settings.witnessed).store_committed("other", note)
    for path in site.settings.witnessed.iterdir():
        # An order gives up what was seen before its second.
        os.utime(path, (time.time() - 2, time.time() - 2))
    return note


def order(site: Appliance, note: bytes, by: str, **changes: Any) -> RestoreLog:
    answer = site.ask("GET", "/v1/restoration", None)
    lost = open_checkpoint(note, site.trust.log_key)
    fields = {
        "kept_size": answer["kept_size"],
        "kept_root": f"sha256:{parse_base64(answer['kept_root'], 'root').hex()}",
        "lost": digest_bytes(note),
        "lost_size": lost.size,
        "lost_root": f"sha256:{lost.root.hex()}",
    }
    return RestoreLog(**fields | changes, **site.terms(by))


def test_a_service_that_awaits_a_restoration_serves_nobody_and_takes_that_order_alone(site: Appliance) -> None:
    site.enrol("nora", "auditor")
    note = lose(site, 40)
    site.start(wait=False)
    assert site.service is not None and site.service.wait(90) == 6
    assert "appliance serve --restoration" in site.log()
    site.start("--restoration")
    answer = site.ask("GET", "/v1/restoration", None)
    assert answer["waits"] is True and [loss["size"] for loss in answer["losses"]] == [claimed_size(note)]
    before = open_checkpoint(parse_base64(answer["checkpoint"], "note"), site.trust.log_key).size

    # Nothing else is recorded or read.
    for act in (lambda: site.session("axel"), lambda: site.ask("GET", "/v1/ledger", None)):
        with pytest.raises(Refused) as refused:
            act()
        assert (refused.value.status, refused.value.code) == (503, "awaits-restoration")
    with pytest.raises(Refused) as refused:
        site.order(PlaceHold(subject="principal:rita", **site.terms("axel")))
    assert (refused.value.status, refused.value.code) == (503, "awaits-restoration")
    assert site.ask("GET", "/v1/restoration", None)["checkpoint"] == answer["checkpoint"]

    # Neither one alone, nor somebody else, nor another root, nor another note.
    with pytest.raises(Refused, match="This action needs administrator"):
        site.order(order(site, note, "olga"), lost=note)
    with pytest.raises(Refused, match="another root at"):
        site.order(order(site, note, "anna", kept_root=digest_bytes(b"another")), lost=note)
    with pytest.raises(Refused, match="lost: expected"):
        site.order(order(site, note, "anna", lost_size=9_999), lost=note)
    first = site.order(order(site, note, "anna", kept_size=before, kept_root=root_at(site, before)), lost=note)
    assert first["outcome"] == "pending"
    with pytest.raises(Refused, match="signed this order and cannot countersign it"):
        site.countersign(first["order"], by="anna")
    assert site.ask("GET", "/v1/restoration", None)["waits"] is True

    started = site.log().count("service.started")
    assert site.countersign(first["order"])["type"] == "log.restored"
    wait_until_restarted(site, started)
    site.order(PlaceHold(subject="principal:rob", **site.terms("axel")))
    report = site.verify()
    assert (report["verdict"], report["findings"]) == ("verified", [])
    assert any(f"gave up a log of {claimed_size(note)}, by anna and ben" in text for text in report["remarks"])

    # The same note shows no loss any more, and a start finds it as it was; another note does.
    site.stop()
    site.start()
    assert KnownCheckpoints(site.settings.witnessed).list_given_up() == [note]
    lose(site, 5)
    site.start(wait=False)
    assert site.service is not None and site.service.wait(90) == 6


def root_at(site: Appliance, size: int) -> str:
    answer = site.ask("GET", f"/v1/restoration?kept={size}", None)
    return f"sha256:{parse_base64(answer['kept_root'], 'root').hex()}"


def put_back(site: Appliance) -> bytes:
    """Restore an older copy of the database under a home that has nothing but its snapshot to show the loss."""
    database = site.settings.database_file
    assert database is not None
    older = site.home.parent / "older.db"
    site.stop()
    shutil.copy(database, older)
    site.start()
    site.enrol("late", "auditor")
    site.stop()
    assert not list(site.settings.witnessed.glob("*.note")) or not site.settings.witnessed.exists()
    for name in ("-wal", "-shm"):
        database.with_name(database.name + name).unlink(missing_ok=True)
    note = sealed_checkpoint(site)
    older.rename(database)
    snapshot = site.settings.snapshot
    # An order gives up what was seen before its second.
    os.utime(snapshot, (time.time() - 2, time.time() - 2))
    return note


def sealed_checkpoint(site: Appliance) -> bytes:
    length, _, rest = site.settings.snapshot.read_bytes().partition(b"\n")
    return parse_base64(rest[int(length) :].split(b"\n")[1].decode(), "checkpoint")


def test_a_loss_that_the_state_snapshot_alone_shows_is_restored_as_any_other(site: Appliance) -> None:
    note = put_back(site)
    snapshot, evidence = site.settings.snapshot, site.home / "state.snapshot-1.lost"
    data = snapshot.read_bytes()
    site.start(wait=False)
    assert site.service is not None and site.service.wait(90) == 6
    assert "[log-truncated]" in site.log() and "appliance serve --restoration" in site.log()
    assert snapshot.read_bytes() == data and not evidence.exists()

    site.start("--restoration")
    answer = site.ask("GET", "/v1/restoration", None)
    assert answer["waits"] is True and [loss["size"] for loss in answer["losses"]] == [claimed_size(note)]
    assert parse_base64(answer["losses"][0]["note"], "note") == note
    with pytest.raises(Refused) as refused:
        site.session("axel")
    assert refused.value.code == "awaits-restoration"
    # A service that ends here has recorded nothing: the next start is refused again.
    site.kill()
    site.start(wait=False)
    assert site.service is not None and site.service.wait(90) == 6

    site.start("--restoration")
    started = site.log().count("service.started")
    first = site.order(order(site, note, "anna"), lost=note)
    assert first["outcome"] == "pending" and site.ask("GET", "/v1/restoration", None)["waits"] is True
    with pytest.raises(Refused, match="signed this order and cannot countersign it"):
        site.countersign(first["order"], by="anna")
    assert site.countersign(first["order"])["type"] == "log.restored"
    wait_until_restarted(site, started)
    assert evidence.read_bytes() == data
    # The restored log grows beyond the snapshot with other entries, and a power cut leaves it without a newer one.
    while len(site.entries()) <= claimed_size(note):
        site.order(PlaceHold(subject="principal:rob", **site.terms("axel")))
    site.kill()
    site.start()
    report = site.verify()
    assert (report["verdict"], report["findings"]) == ("verified", [])
    assert any(f"gave up a log of {claimed_size(note)}, by anna and ben" in text for text in report["remarks"])
    assert KnownCheckpoints(site.settings.witnessed).list_given_up() == [note]


def test_another_process_gives_its_snapshot_up_for_a_restoration_that_the_log_has(site: Appliance) -> None:
    note = put_back(site)
    snapshot = site.settings.snapshot
    data = snapshot.read_bytes()
    site.start("--restoration")
    first = site.order(order(site, note, "anna"), lost=note)
    assert site.countersign(first["order"])["type"] == "log.restored"
    site.wait_until_up()
    site.kill()
    # The home of another host has its own snapshot of the lost log.
    (site.home / "state.snapshot-1.lost").rename(snapshot)
    os.utime(snapshot, (time.time() - 600, time.time() - 600))
    site.start()
    assert (site.home / "state.snapshot-1.lost").read_bytes() == data
    site.stop()
    # The same checkpoint after the restoration is a second loss, which no order gives up.
    (site.home / "state.snapshot-1.lost").rename(snapshot)
    os.utime(snapshot, (time.time() + 600, time.time() + 600))
    site.start(wait=False)
    assert site.service is not None and site.service.wait(90) == 6


def test_a_log_that_grew_other_entries_beside_the_lost_snapshot_is_refused_and_restored(site: Appliance) -> None:
    """Somebody put an older database in place, hid the snapshot, and let the log grow beyond its size."""
    note = put_back(site)
    snapshot, hidden = site.settings.snapshot, site.home.parent / "hidden"
    snapshot.rename(hidden)
    site.start()
    for name in ("mallory", "trudy"):
        site.enrol(name, "auditor")
    assert len(site.entries()) > claimed_size(note)
    site.stop()
    hidden.replace(snapshot)
    site.start(wait=False)
    assert site.service is not None and site.service.wait(90) == 6
    assert "[split-view]" in site.log() and snapshot.exists()
    # The checkpoint is among the notes now: without the snapshot the start is refused all the same.
    snapshot.unlink()
    site.start(wait=False)
    assert site.service is not None and site.service.wait(90) == 6
    site.start("--restoration")
    answer = site.ask("GET", "/v1/restoration", None)
    assert answer["waits"] is True and [loss["size"] for loss in answer["losses"]] == [claimed_size(note)]
