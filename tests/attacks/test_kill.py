"""kill -9 of the service just before, within and just after each kind of entry, and of its workers.

What must hold whenever it dies: it starts again, its ledger verifies, what was open is closed, nothing is half-sealed,
and what was asked either stands or can be asked again, never both.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.domain import orders
from appliance.domain.names import add_seconds, encode_value
from appliance.domain.policy_files import assemble_policy
from appliance.formats.commitment import disclose
from appliance.formats.digest import digest_bytes
from appliance.formats.keys import generate_ed25519
from tests.attacks.keeping import cosigned, erase_order, files_with, hand_in, watched
from tests.attacks.killer import KILL
from tests.ml.tiny import build_base, clauses
from tests.site import ROOT, Refused, Site, free_port

Act = Callable[[], Any]
KILLER = (str(Path(__file__).with_name("killer.py")),)
ENDED = {"sealed", "failed", "cancelled"}


def copy_of(golden: Site, place: Path) -> Site:
    site = golden.copy(place / "h", free_port())
    site.launcher = KILLER
    site.start()
    return site


def end(site: Site) -> None:
    if site.service is not None:
        site.kill()


@pytest.fixture(scope="module")
def shared(golden: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One copy whose service dies over and over: each test leaves it whole, which is the point."""
    site = copy_of(golden, tmp_path_factory.mktemp("k"))
    site.approve()
    site.activate()
    yield site
    end(site)


@pytest.fixture
def town(shared: Site) -> Site:
    (shared.home / KILL).unlink(missing_ok=True)
    if shared.service is None or shared.service.poll() is not None:
        # Its test failed; a run that it left waiting must not die of the next test's order.
        shared.start()
        for run in shared.get("/v1/runs"):
            shared.wait_run(run["id"])
    return shared


@pytest.fixture
def own(golden: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A copy for what cannot be undone."""
    site = copy_of(golden, tmp_path_factory.mktemp("o"))
    yield site
    end(site)


# --- dying ------------------------------------------------------------------------------------------------------------


def arm(site: Site, when: str) -> None:
    (site.home / KILL).write_text(when)


def await_death(site: Site) -> None:
    assert site.service is not None
    assert site.service.wait(90) == -signal.SIGKILL, site.log()[-2000:]
    (site.home / KILL).unlink(missing_ok=True)
    site.service = None


def die(site: Site, when: str, act: Act) -> None:
    """Lets the service die at `when` while it does `act`, and starts it again."""
    arm(site, when)
    with suppress(httpx.TransportError):
        act()
    await_death(site)
    site.start()


def count(site: Site, type_: str) -> int:
    return len(site.entries(type=type_))


def check_whole(site: Site) -> None:
    """What must hold of every service that started again."""
    for run in site.get("/v1/runs"):
        if run["status"] not in ENDED:
            site.wait_run(run["id"])
    runs = {run["id"]: run["status"] for run in site.get("/v1/runs")}
    assert set(runs.values()) <= ENDED, runs
    report = site.verify()
    assert (report["verdict"], report["local_findings"]) == ("verified", []), report
    entries = site.entries()
    bodies: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        bodies.setdefault(entry["type"], []).append(entry["body"])
    finished = [body["request"] for body in bodies.get("request.finished", [])]
    assert sorted(body["request"] for body in bodies.get("request.admitted", [])) == sorted(finished)
    asked = len(bodies["import.requested"])
    assert asked == sum(len(bodies.get(t, [])) for t in ("base.imported", "dataset.imported", "import.failed"))
    check_folders(site)


def check_folders(site: Site) -> None:
    """Every sealed folder is named by an entry (whether each holds its bytes, verify says); none is half-made."""
    named = {base["digest"] for base in site.get("/v1/bases")}
    named |= {dataset["digest"] for dataset in site.get("/v1/datasets")}
    named |= {adapter["manifest"] for adapter in site.get("/v1/adapters")}
    names = os.listdir(site.home / "artifacts")
    assert {f"sha256:{name}" for name in names if re.fullmatch("[0-9a-f]{64}", name)} == named
    await_no_staging(site)


def await_no_staging(site: Site) -> None:
    """What a run, a worker or a dead service left half-made is gone; a living engine has one folder of its own."""
    assert site.service is not None
    deadline = time.monotonic() + 10
    while True:
        left = [name for name in os.listdir(site.home / "artifacts") if name.startswith(".staging-")]
        if len(left) <= (workers(site.service.pid, "appliance.worker.serve") != []):
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def once(site: Site, type_: str, act: Act, replay: int | None, sides: tuple[str, ...] = ("before", "after")) -> None:
    """Dies on each side of the entry: before it nothing stands, and the same act works; after it, it stands.

    `replay` is how the service answers the very same act once it stands; None where it may be done again.
    """
    known = count(site, type_)
    for side in sides:
        die(site, f"{side}:{type_}", act)
        assert count(site, type_) == known + (side == "after"), side
        check_whole(site)
    if replay is None:
        act()
        assert count(site, type_) == known + 2
        return
    with pytest.raises(Refused) as refused:
        act()
    assert refused.value.status == replay, refused.value
    assert count(site, type_) == known + 1


# --- governance -------------------------------------------------------------------------------------------------------


def endorsing(site: Site, digest: str) -> Act:
    envelope = site.sign(orders.Endorse(order=digest, **site.terms("ben")))
    return lambda: site.send(envelope)


def pending(site: Site) -> Act:
    envelope, printed, proof = site.propose_enrolment("pia", "auditor")
    return lambda: site.send(envelope, printed, possession=proof)


def enrolled(site: Site) -> Act:
    envelope, printed, proof = site.propose_enrolment("nora", "operator")
    site.send(envelope, printed, possession=proof)
    return endorsing(site, envelope.pae_digest)


def granted(site: Site) -> Act:
    envelope = site.sign(orders.Grant(principal="rita", role="reviewer:legal", **site.terms("anna")))
    site.send(envelope)
    return endorsing(site, envelope.pae_digest)


def principal_revoked(site: Site) -> Act:
    site.enroll("gone", "operator")
    envelope = site.sign(orders.RevokePrincipal(principal="gone", **site.terms("anna")))
    return lambda: site.send(envelope)


def adopted(site: Site) -> Act:
    files = {path.name: path.read_bytes() for path in (ROOT / "policies" / "default").iterdir()}
    document = encode_value(assemble_policy("second", files))
    envelope = site.sign(orders.AdoptPolicy(policy=digest_bytes(document), **site.terms("anna")))
    site.send(envelope, policy=document)
    return endorsing(site, envelope.pae_digest)


def reviewed(site: Site) -> Act:
    order, meaning = site.review_order("rita")
    envelope = site.sign(order)
    return lambda: site.send(envelope, meaning)


def activated(site: Site) -> Act:
    envelope = site.sign(
        orders.Activate(unit="legal", task="labels", **site.on("clauses@1"), **site.terms("lou")),
    )
    return lambda: site.send(envelope)


def key_revoked(site: Site) -> Act:
    site.enroll("lost", "operator")
    order = orders.RevokeKey(principal="lost", keyid=site.keys["lost"].keyid, since=None, **site.terms("anna"))
    envelope = site.sign(order)
    return lambda: site.send(envelope)


def log_key_rotated(site: Site) -> Act:
    vkey = site.ask("POST", "/v1/log-keys", "anna")["vkey"]
    until = add_seconds(site.now(), 3_600)
    pended = site.order(orders.RotateLogKey(log_key=vkey, old_until=until, **site.terms("anna")))
    return endorsing(site, pended["order"])


GOVERNANCE: dict[str, tuple[Callable[[Site], Act], int]] = {
    "order.pending": (pending, 409),
    "principal.enrolled": (enrolled, 403),
    "principal.granted": (granted, 403),
    "principal.revoked": (principal_revoked, 403),
    "policy.adopted": (adopted, 403),
    "review.recorded": (reviewed, 409),
    "release.activated": (activated, 409),
    "key.revoked": (key_revoked, 403),
    "log-key.rotated": (log_key_rotated, 403),
}
"""By entry: how it is asked for, and how the service answers who asks again with the very same order.

An endorsement names an order that no longer waits, which is a reason of its own.
"""


@pytest.mark.family(keep=4)
@pytest.mark.parametrize("type_", GOVERNANCE)
def test_an_order_stands_once_whenever_the_service_dies(town: Site, type_: str) -> None:
    make, replay = GOVERNANCE[type_]
    sides = ("before", "within", "after") if type_ in ("order.pending", "review.recorded") else ("before", "after")
    once(town, type_, make(town), replay, sides)


def test_a_text_is_erased_with_its_entry_or_not_at_all(town: Site) -> None:
    said = "who took the minutes of the eleventh"
    town.enroll("clerk", "operator")
    reason = disclose(said, os.urandom(32))
    town.order(orders.RevokePrincipal(principal="clerk", **town.terms("anna"), reason=reason.commitment), reason)
    act = endorsing(town, town.order(erase_order(town, reason.commitment), reason)["order"])
    known = count(town, "text.erased")
    for side in ("before", "within", "after"):
        die(town, f"{side}:text.erased", act)
        erased = side == "after"
        assert count(town, "text.erased") == known + erased
        assert (files_with(town, said) == []) == erased, side
        check_whole(town)
    with pytest.raises(Refused):
        act()


def test_a_cosignature_is_an_entry_once_and_what_was_seen_is_kept_before_it(town: Site) -> None:
    witness = generate_ed25519()
    watched(town, witness, quorum=0)
    note = cosigned(town, witness)
    known = count(town, "checkpoint.cosigned")
    for side in ("before", "within", "after"):
        die(town, f"{side}:checkpoint.cosigned", lambda: hand_in(town, note))
        assert count(town, "checkpoint.cosigned") == known + (side == "after")
        assert [path.read_text() for path in town.settings.witnessed.iterdir()] == [note], side
        check_whole(town)
    with pytest.raises(Refused):
        hand_in(town, note)


def test_a_refusal_that_was_cut_off_is_a_refusal_still(town: Site) -> None:
    order, meaning = town.review_order("rita", field="model-risk")
    envelope = town.sign(order)

    def act() -> None:
        with pytest.raises(Refused) as refused:
            town.send(envelope, meaning)
        assert refused.value.status == 403

    once(town, "order.refused", act, None)


def test_a_session_dies_with_the_service(town: Site) -> None:
    known = count(town, "session.opened")  # itself by axel's session
    for side, more in (("before", 1), ("after", 3)):
        town.sessions.clear()
        die(town, f"{side}:session.opened", lambda: town.session("olga"))
        # The entries are read by a new session each time.
        assert count(town, "session.opened") == known + more
    check_whole(town)


@pytest.mark.parametrize("type_", ["service.started", "heartbeat"])
def test_a_service_that_dies_of_its_own_entries_starts_again(town: Site, type_: str) -> None:
    known = count(town, type_)
    town.kill()
    for side in ("before", "within", "after"):
        arm(town, f"{side}:{type_}")
        town.start(wait=False)
        await_death(town)
    town.start()
    # Only what was committed: one by the service that died after it, and each service's own start.
    assert count(town, type_) == known + {"service.started": 2, "heartbeat": 1}[type_]
    check_whole(town)


def test_an_end_that_was_cut_off_is_no_end(town: Site) -> None:
    known = count(town, "service.stopped")
    for side in ("before", "after"):
        assert town.service is not None
        arm(town, f"{side}:service.stopped")
        town.service.send_signal(signal.SIGTERM)
        await_death(town)
        town.start()
        assert count(town, "service.stopped") == known + (side == "after")
    check_whole(town)


# --- imports ----------------------------------------------------------------------------------------------------------


def csv_rows() -> bytes:
    return b"text,label\n" + b"".join(f"{text},{label}\n".encode() for text, label in clauses())


def test_an_import_that_was_cut_off_failed_and_can_be_asked_for_again(town: Site) -> None:
    def act() -> dict[str, Any]:
        return town.import_dataset(csv_rows(), "cut-off")

    for side, failed in (("before", 0), ("after", 1)):
        known = count(town, "import.failed")
        die(town, f"{side}:import.requested", act)
        assert count(town, "import.failed") == known + failed
        check_whole(town)
    known = count(town, "import.failed")
    die(town, "before:dataset.imported", act)
    assert count(town, "import.failed") == known + 1
    check_whole(town)
    die(town, "after:dataset.imported", act)
    assert count(town, "import.failed") == known + 1
    check_whole(town)
    assert [d["version"] for d in town.get("/v1/datasets") if d["name"] == "cut-off"] == [1]
    assert act()["status"] == "finished"


@pytest.mark.parametrize("side", ["before", "after"])
def test_an_import_that_failed_failed_once(town: Site, side: str) -> None:
    known = count(town, "import.failed")
    die(town, f"{side}:import.failed", lambda: town.import_dataset(b"text,label\nno label here\n", "broken"))
    assert count(town, "import.failed") == known + 1
    check_whole(town)
    assert "broken" not in {dataset["name"] for dataset in town.get("/v1/datasets")}


INIT = """
import hashlib, os, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from appliance import wiring
from appliance.config import load_settings
from appliance.domain.policy_files import assemble_policy
from appliance.formats.keys import Ed25519Signer
from appliance.store.ledger import Ledger

home, side, policy, names = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
append = Ledger.append

def dying(ledger, draft, **more):
    if side == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    appended = append(ledger, draft, **more)
    if side == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return appended

Ledger.append = dying
keys = {name: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()) for name in names}
people = [wiring.Person(name, Ed25519Signer(key).spki) for name, key in keys.items()]
files = {path.name: path.read_bytes() for path in policy.iterdir()}
trust = wiring.init(
    load_settings(home, {}), people, origin="bank.example/k", single_administrator=False,
    policy=assemble_policy("default", files),
)
print(trust.genesis)
"""


@pytest.mark.parametrize("side", ["before", "after"])
def test_an_init_that_was_cut_off_is_made_anew_or_found(tmp_path: Path, side: str) -> None:
    def init(when: str, *names: str) -> subprocess.CompletedProcess[str]:
        given = names or ("anna", "ben")
        command = [sys.executable, "-c", INIT, str(tmp_path / "h"), when, str(ROOT / "policies" / "default"), *given]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    assert init(side).returncode == -signal.SIGKILL
    if side == "after":
        other = init("never", "anna", "carl")
        assert other.returncode != 0
        assert "Conflict: appliance bank.example/k, begun before: administrators: expected anna" in other.stderr
    assert not (tmp_path / "h" / "trust.json").exists()
    again = init("never")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() in (tmp_path / "h" / "trust.json").read_text()
    assert "expected none yet, got one with a ledger" in init("never").stderr


def test_a_base_is_there_whole_or_not_at_all(town: Site, tmp_path: Path) -> None:
    folder = build_base(tmp_path / "base", "qwen2")

    def act() -> dict[str, Any]:
        return town.import_base(folder, "second")

    die(town, "before:base.imported", act)
    assert not list((town.home / "artifacts").glob(".*")), "what was sealed and not recorded is gone"
    check_whole(town)
    assert [base["name"] for base in town.get("/v1/bases")] == ["tiny"]
    die(town, "after:base.imported", act)
    check_whole(town)
    assert sorted(base["name"] for base in town.get("/v1/bases")) == ["second", "tiny"]


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "sides"),
    [
        ("adapter.admitted", ("before", "after")),
        ("adapter.loaded", ("before", "after")),
        ("request.admitted", ("after",)),  # before it is after adapter.loaded
        ("request.finished", ("before", "after")),
    ],
)
def test_a_request_that_was_cut_off_is_closed_and_the_next_goes_on(
    town: Site, type_: str, sides: tuple[str, ...]
) -> None:
    for side in sides:
        known, answered = count(town, type_), count(town, "request.finished")
        open_ = (type_, side) in (("request.admitted", "after"), ("request.finished", "before"))
        die(town, f"{side}:{type_}", lambda: town.chat("legal", "labels"))
        last = town.entries(type="request.finished")
        assert len(last) - answered == (open_ or (type_, side) == ("request.finished", "after"))
        if open_:
            assert (last[-1]["outcome"], last[-1]["body"]["finish_reason"]) == ("interrupted", "interrupted")
        if not open_:
            assert count(town, type_) == known + (side == "after")
        check_whole(town)


def test_a_refused_request_stays_refused(town: Site) -> None:
    def act() -> None:
        with pytest.raises(Refused) as refused:
            town.chat("legal", "payroll")
        assert refused.value.status == 404

    once(town, "request.refused", act, None)


def test_what_was_taken_back_does_not_answer_after_a_death(own: Site) -> None:
    own.approve()
    own.activate()
    assert own.chat("legal", "labels")["choices"]
    # The rejection is durable, the service dies before it has taken the adapter out.
    order, meaning = own.review_order("rita", decision="reject")
    envelope = own.sign(order)
    die(own, "before:adapter.unloaded", lambda: own.send(envelope, meaning))
    for side in ("before", "after"):
        known = count(own, "admission.refused")
        die(own, f"{side}:admission.refused", lambda: own.chat("legal", "labels"))
        assert count(own, "admission.refused") == known + (side == "after")
        check_whole(own)
    with pytest.raises(Refused) as refused:
        own.chat("legal", "labels")
    assert (refused.value.status, refused.value.code) == (403, "not-admitted")
    # ... and so does one that nobody may ever release again.
    revoke = own.sign(orders.RevokeAdapter(**own.on("clauses@1"), **own.terms("rob")))
    once(own, "adapter.revoked", lambda: own.send(revoke), 403)


def test_changed_bytes_are_quarantined_by_the_next_request(own: Site) -> None:
    own.approve()
    own.activate()
    manifest = own.adapter()["manifest"]
    weights = own.home / "artifacts" / manifest.removeprefix("sha256:") / "adapter_model.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for side in ("before", "after"):
        die(own, f"{side}:adapter.quarantined", lambda: own.chat("legal", "labels"))
        assert (own.adapter()["quarantined"] is not None) == (side == "after")
    with pytest.raises(Refused):
        own.chat("legal", "labels")
    assert own.verify()["verdict"] == "verified"


# --- runs -------------------------------------------------------------------------------------------------------------


def status_of(site: Site, run: str) -> str:
    return str(site.get(f"/v1/runs/{run}")["status"])


def run_until_death(site: Site, name: str, when: str) -> str:
    """Starts a run, lets the service die in it, and returns the run."""
    arm(site, when)
    run = str(site.order(site.train_order(name))["result"]["run"])
    await_death(site)
    site.start()
    return run


@pytest.mark.slow
def test_a_run_that_only_waited_goes_on(town: Site) -> None:
    """Before run.requested nothing stands; after it the run waits, and still waits when its worker had not begun."""
    envelope = town.sign(town.train_order("waited"))
    known = len(town.get("/v1/runs"))
    die(town, "before:run.requested", lambda: town.send(envelope))
    assert len(town.get("/v1/runs")) == known
    arm(town, "after:run.requested")
    with suppress(httpx.TransportError):
        town.send(envelope)
    await_death(town)
    arm(town, "before:run.started")
    town.start(wait=False)  # the run goes on at once: it may die before its door answers
    await_death(town)
    town.start()
    run = town.get("/v1/runs")[-1]["id"]
    assert town.wait_run(run)["adapter"] == "waited@1"
    check_whole(town)
    with pytest.raises(Refused) as refused:
        town.send(envelope)
    assert refused.value.status == 409


@pytest.mark.slow
def test_a_run_that_was_cut_off_before_its_first_checkpoint_failed(town: Site) -> None:
    """One that has a training checkpoint goes on: test_training."""
    run = run_until_death(town, "cut-off", "after:run.started")
    assert status_of(town, run) == "failed"
    failed = town.entries(type="run.failed")[-1]["body"]
    assert (failed["run"], failed["code"]) == (run, "interrupted")
    check_whole(town)


@pytest.mark.slow
def test_an_adapter_is_sealed_whole_or_not_at_all(town: Site) -> None:
    run = run_until_death(town, "whole", "before:adapter.sealed")
    # The folder lay there sealed, and no entry came to name it: the start removed it.
    assert not [name for name in os.listdir(town.home / "artifacts") if name.startswith(".unnamed-")]
    # The run goes on from its last training checkpoint, and is judged and sealed again.
    assert town.wait_run(run)["adapter"] == "whole@1"
    check_whole(town)
    run = run_until_death(town, "whole", "after:adapter.sealed")
    assert status_of(town, run) == "sealed"
    assert town.adapter("whole@2")["run"] == run
    check_whole(town)


@pytest.mark.slow
def test_a_cancellation_that_was_cut_off(town: Site) -> None:
    """Before the entry the run was not cancelled and goes on, or fails; after it, it stays cancelled."""
    for side, status in (("before", "failed"), ("after", "cancelled")):
        run = town.order(town.train_order("stopped"))["result"]["run"]
        await_status(town, run, "running")
        envelope = town.sign(orders.Cancel(run=run, **town.terms("olga")))
        die(town, f"{side}:run.cancelled", partial(town.send, envelope))
        assert status_of(town, run) == status
        with pytest.raises(Refused) as refused:
            town.send(envelope)
        assert refused.value.status == 403
        check_whole(town)


def await_status(site: Site, run: str, status: str) -> None:
    deadline = time.monotonic() + 60
    while status_of(site, run) != status:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_service_that_dies_while_it_recovers_recovers_next_time(town: Site) -> None:
    run = town.order(town.train_order("twice"))["result"]["run"]
    await_status(town, run, "running")
    town.kill()
    for when in ("before:run.failed", "within:run.failed"):
        arm(town, when)
        town.start(wait=False)
        await_death(town)
    arm(town, "after:run.failed")
    town.start(wait=False)
    await_death(town)
    town.start()
    assert status_of(town, run) == "failed"
    assert [entry["body"]["run"] for entry in town.entries(type="run.failed")].count(run) == 1
    check_whole(town)


# --- workers ----------------------------------------------------------------------------------------------------------


def workers(pid: int, module: str) -> list[int]:
    """The service's living descendants that run the module, the outermost first."""
    found, level = [], [pid]
    while level:
        level = [child for parent in level for child in children(parent)]
        found += [child for child in level if module in command(child)]
    return found


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def command(pid: int) -> str:
    """Empty for one that is gone, and for one that is dead and not yet buried."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def await_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(command(pid) for pid in pids):
        assert time.monotonic() < deadline, [command(pid) for pid in pids]
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_training_worker_fails_its_run_and_the_next_run_succeeds(town: Site) -> None:
    assert town.service is not None
    life = count(town, "service.started")
    run = town.order(town.train_order("killed"))["result"]["run"]
    await_status(town, run, "running")
    os.kill(workers(town.service.pid, "appliance.worker.train")[-1], signal.SIGKILL)
    assert town.wait_run(run)["status"] == "failed"
    failed = town.entries(type="run.failed")[-1]["body"]
    assert (failed["run"], failed["code"]) == (run, "worker-ended")
    assert town.train("killed")["adapter"] == "killed@1"
    assert count(town, "service.started") == life
    check_whole(town)


def test_a_killed_serving_worker_is_replaced_by_a_new_admission_and_load(town: Site) -> None:
    assert town.service is not None
    assert town.chat("legal", "labels")["choices"]
    known = count(town, "adapter.admitted"), count(town, "adapter.loaded")
    killed = workers(town.service.pid, "appliance.worker.serve")
    os.kill(killed[-1], signal.SIGKILL)
    await_gone(killed[-1:])
    # The first request may be the one that finds the engine dead; whoever asks next is answered.
    with suppress(Refused):
        town.chat("legal", "labels")
    assert town.chat("legal", "labels")["choices"]
    assert (count(town, "adapter.admitted"), count(town, "adapter.loaded")) == (known[0] + 1, known[1] + 1)
    check_whole(town)


@pytest.mark.slow
def test_workers_die_with_the_service(town: Site) -> None:
    assert town.service is not None
    town.chat("legal", "labels")
    run = town.order(town.train_order("orphan"))["result"]["run"]
    await_status(town, run, "running")
    pids = workers(town.service.pid, "appliance.worker.")
    assert {module for module in ("serve", "train") for pid in pids if f"worker.{module}" in command(pid)} == {
        "serve",
        "train",
    }
    town.kill()
    await_gone(pids)
    town.start()
    assert status_of(town, run) == "failed"
    check_whole(town)
