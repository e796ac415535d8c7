"""SIGKILL of the service before, within and after each kind of entry, and of its workers.

After each kill the service starts again, its ledger verifies, open work is closed, no folder is half-sealed, and each
order is either recorded or can be sent again, never both.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.domain.core.names import add_seconds, encode_value
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.keys import RevokeKey
from appliance.domain.governance.log_control import RotateLogKey
from appliance.domain.governance.people import Grant, RevokePrincipal
from appliance.domain.governance.policies import AdoptPolicy, assemble_policy
from appliance.domain.releases.activations import Activate
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.runs.control import Cancel
from appliance.formats.core.commitment import disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.files.disk import PARTIAL
from scripts.kit.appliance import ROOT, Appliance, Refused
from scripts.kit.ports import free_port
from scripts.kit.tiny_model import build_base, clauses
from scripts.kit.waiting import wait_for
from scripts.kit.warm import find_engine, find_workers
from tests.attacks.keeping import cosigned, erase_order, files_with, submit_cosignature, watched
from tests.attacks.stopping import arm, await_death, await_held, die, disarm, held, let_go

Act = Callable[[], Any]
ENDED = {"sealed", "failed", "cancelled"}


def copy_of(golden: Appliance, place: Path) -> Appliance:
    site = golden.copy(place / "h", free_port())
    site.start()
    return site


def end(site: Appliance) -> None:
    if site.service is not None:
        site.kill()


@pytest.fixture(scope="module")
def shared(golden: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """One copy whose service dies over and over: each test leaves it whole, which is the point."""
    site = copy_of(golden, tmp_path_factory.mktemp("k"))
    site.approve()
    site.activate()
    yield site
    end(site)


@pytest.fixture
def deployment(shared: Appliance) -> Appliance:
    disarm(shared)
    let_go(shared)
    if shared.service is None or shared.service.poll() is not None:
        # Its test failed; a run that it left waiting must not die of the next test's order.
        shared.start()
        for run in shared.get("/v1/runs"):
            shared.wait_run(run["id"])
    return shared


@pytest.fixture
def own(golden: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """Yield a copy of the site, for changes that cannot be undone."""
    site = copy_of(golden, tmp_path_factory.mktemp("o"))
    yield site
    end(site)


# --- dying ------------------------------------------------------------------------------------------------------------


def count(site: Appliance, type_: str) -> int:
    return len(site.entries(type=type_))


def check_whole(site: Appliance) -> None:
    """Check what must be true of every service that started again."""
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
    wanted = len(bodies["import.requested"])
    assert wanted == sum(len(bodies.get(t, [])) for t in ("base.imported", "dataset.imported", "import.failed"))
    check_folders(site)


def check_folders(site: Appliance) -> None:
    """Every sealed folder is named by an entry (whether each holds its bytes, verify says); none is half-made."""
    named = {base["digest"] for base in site.get("/v1/bases")}
    named |= {dataset["digest"] for dataset in site.get("/v1/datasets")}
    named |= {adapter["manifest"] for adapter in site.get("/v1/adapters")}
    names = os.listdir(site.home / "artifacts")
    assert {f"sha256:{name}" for name in names if re.fullmatch("[0-9a-f]{64}", name)} == named
    await_no_staging(site)


def await_no_staging(site: Appliance) -> None:
    """Wait until the unfinished files of runs, workers and dead services are gone, except a living engine's folder."""
    assert site.service is not None
    service = site.service.pid

    def is_gone() -> bool:
        left = [name for name in os.listdir(site.home / "artifacts") if name.startswith(".staging-")]
        return len(left) <= bool(find_workers(service, "appliance.worker.serve"))

    wait_for(is_gone, "no staging folder but a living engine's", pause_s=0.1)


def once(
    site: Appliance, type_: str, act: Act, replay: int | None, sides: tuple[str, ...] = ("before", "after")
) -> None:
    """Kill the service on each side of the entry: before it nothing is recorded, and the same act works; after it, it
    is recorded.

    `replay` is how the service answers the very same act once it is recorded; None where it may be done again.
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


def countersigning(site: Appliance, digest: str) -> Act:
    envelope = site.sign(Countersign(order=digest, **site.terms("ben")))
    return lambda: site.send(envelope)


def pending(site: Appliance) -> Act:
    envelope, printed, proof = site.propose_enrolment("pia", "auditor")
    return lambda: site.send(envelope, printed, possession=proof)


def enrolled(site: Appliance) -> Act:
    envelope, printed, proof = site.propose_enrolment("nora", "operator")
    site.send(envelope, printed, possession=proof)
    return countersigning(site, envelope.pae_digest)


def granted(site: Appliance) -> Act:
    envelope = site.sign(Grant(principal="rita", role="reviewer:legal", **site.terms("anna")))
    site.send(envelope)
    return countersigning(site, envelope.pae_digest)


def principal_revoked(site: Appliance) -> Act:
    site.enrol("gone", "operator")
    envelope = site.sign(RevokePrincipal(principal="gone", **site.terms("anna")))
    return lambda: site.send(envelope)


def adopted(site: Appliance) -> Act:
    files = {path.name: path.read_bytes() for path in (ROOT / "policies" / "default").iterdir()}
    document = encode_value(assemble_policy("second", files))
    envelope = site.sign(AdoptPolicy(policy=digest_bytes(document), **site.terms("anna")))
    site.send(envelope, policy=document)
    return countersigning(site, envelope.pae_digest)


def reviewed(site: Appliance) -> Act:
    order, meaning = site.review_order("rita")
    envelope = site.sign(order)
    return lambda: site.send(envelope, meaning)


def activated(site: Appliance) -> Act:
    envelope = site.sign(
        Activate(
            unit="legal", served_model="labels", adds_instruction=False, **site.on("clauses@1"), **site.terms("lou")
        ),
    )
    return lambda: site.send(envelope)


def key_revoked(site: Appliance) -> Act:
    site.enrol("lost", "operator")
    order = RevokeKey(principal="lost", keyid=site.keys["lost"].keyid, since=None, **site.terms("anna"))
    envelope = site.sign(order)
    return lambda: site.send(envelope)


def log_key_rotated(site: Appliance) -> Act:
    vkey = site.ask("POST", "/v1/log-keys", "anna", json={})["vkey"]
    until = add_seconds(site.now(), 3_600)
    pended = site.order(RotateLogKey(log_key=vkey, old_until=until, **site.terms("anna")))
    return countersigning(site, pended["order"])


GOVERNANCE: dict[str, tuple[Callable[[Appliance], Act], int]] = {
    "order.pending": (pending, 409),
    "principal.enrolled": (enrolled, 409),
    "principal.granted": (granted, 409),
    "principal.revoked": (principal_revoked, 409),
    "policy.adopted": (adopted, 409),
    "review.recorded": (reviewed, 409),
    "release.activated": (activated, 409),
    "key.revoked": (key_revoked, 409),
    "log-key.rotated": (log_key_rotated, 409),
}
"""By entry: how it is asked for, and how the service answers who asks again with the very same order.

A countersignature names an order that no longer waits, which is a reason of its own.
"""


@pytest.mark.essential
@pytest.mark.family(keep=4)
@pytest.mark.parametrize("type_", GOVERNANCE)
def test_an_order_stands_once_whenever_the_service_dies(deployment: Appliance, type_: str) -> None:
    make, replay = GOVERNANCE[type_]
    sides = ("before", "within", "after") if type_ in ("order.pending", "review.recorded") else ("before", "after")
    once(deployment, type_, make(deployment), replay, sides)


@pytest.mark.essential
def test_a_text_is_erased_with_its_entry_or_not_at_all(deployment: Appliance) -> None:
    said = "who took the minutes of the eleventh"
    deployment.enrol("clerk", "operator")
    reason = disclose(said, os.urandom(32))
    deployment.order(RevokePrincipal(principal="clerk", **deployment.terms("anna"), reason=reason.commitment), reason)
    act = countersigning(deployment, deployment.order(erase_order(deployment, reason.commitment), reason)["order"])
    known = count(deployment, "text.erased")
    for side in ("before", "within", "after"):
        die(deployment, f"{side}:text.erased", act)
        erased = side == "after"
        assert count(deployment, "text.erased") == known + erased
        assert (files_with(deployment, said) == []) == erased, side
        check_whole(deployment)
    with pytest.raises(Refused):
        act()


@pytest.mark.thorough
def test_a_cosignature_is_an_entry_once_and_what_was_seen_is_kept_before_it(deployment: Appliance) -> None:
    witness = generate_ed25519()
    watched(deployment, witness, quorum=0)
    note = cosigned(deployment, witness)
    known = count(deployment, "checkpoint.cosigned")
    for side in ("before", "within", "after"):
        die(deployment, f"{side}:checkpoint.cosigned", lambda: submit_cosignature(deployment, note))
        assert count(deployment, "checkpoint.cosigned") == known + (side == "after")
        assert [path.read_text() for path in deployment.settings.witnessed.iterdir()] == [note], side
        check_whole(deployment)
    with pytest.raises(Refused):
        submit_cosignature(deployment, note)


@pytest.mark.thorough
def test_a_refusal_that_was_cut_off_is_a_refusal_still(deployment: Appliance) -> None:
    order, meaning = deployment.review_order("rita", review_function="model-risk")
    envelope = deployment.sign(order)

    def act() -> None:
        with pytest.raises(Refused) as refused:
            deployment.send(envelope, meaning)
        assert refused.value.status == 403

    once(deployment, "order.refused", act, None)


@pytest.mark.thorough
def test_a_session_dies_with_the_service(deployment: Appliance) -> None:
    known = count(deployment, "session.opened")  # itself by axel's session
    for side, more in (("before", 1), ("after", 3)):
        deployment.sessions.clear()
        die(deployment, f"{side}:session.opened", lambda: deployment.session("olga"))
        # The entries are read by a new session each time.
        assert count(deployment, "session.opened") == known + more
    check_whole(deployment)


@pytest.mark.thorough
@pytest.mark.parametrize("type_", ["service.started", "heartbeat"])
def test_a_service_that_dies_of_its_own_entries_starts_again(deployment: Appliance, type_: str) -> None:
    known = count(deployment, type_)
    deployment.kill()
    for side in ("before", "within", "after"):
        arm(deployment, f"{side}:{type_}")
        deployment.start(wait=False)
        await_death(deployment)
    deployment.start()
    # Only what was committed: one by the service that died after it, and each service's own start.
    assert count(deployment, type_) == known + {"service.started": 2, "heartbeat": 1}[type_]
    check_whole(deployment)


@pytest.mark.thorough
def test_a_start_removes_what_was_half_written(deployment: Appliance) -> None:
    deployment.kill()
    left = [folder / f"{PARTIAL}cut-off" for folder in (deployment.home, deployment.home / "keys")]
    for path in left:
        path.write_bytes(b"ha")
    deployment.start()
    assert not any(path.exists() for path in left)
    check_whole(deployment)


@pytest.mark.thorough
def test_an_end_that_was_cut_off_is_no_end(deployment: Appliance) -> None:
    known = count(deployment, "service.stopped")
    for side in ("before", "after"):
        assert deployment.service is not None
        arm(deployment, f"{side}:service.stopped")
        deployment.service.send_signal(signal.SIGTERM)
        await_death(deployment)
        deployment.start()
        assert count(deployment, "service.stopped") == known + (side == "after")
    check_whole(deployment)


# --- imports ----------------------------------------------------------------------------------------------------------


def csv_rows() -> bytes:
    return b"text,label\n" + b"".join(f"{text},{label}\n".encode() for text, label in clauses())


@pytest.mark.thorough
def test_an_import_that_was_cut_off_failed_and_can_be_asked_for_again(deployment: Appliance) -> None:
    def act() -> dict[str, Any]:
        return deployment.import_dataset(csv_rows(), "cut-off")

    for side, failed in (("before", 0), ("after", 1)):
        known = count(deployment, "import.failed")
        die(deployment, f"{side}:import.requested", act)
        assert count(deployment, "import.failed") == known + failed
        check_whole(deployment)
    known = count(deployment, "import.failed")
    die(deployment, "before:dataset.imported", act)
    assert count(deployment, "import.failed") == known + 1
    check_whole(deployment)
    die(deployment, "after:dataset.imported", act)
    assert count(deployment, "import.failed") == known + 1
    check_whole(deployment)
    assert [d["version"] for d in deployment.get("/v1/datasets") if d["name"] == "cut-off"] == [1]
    assert act()["status"] == "finished"


@pytest.mark.thorough
@pytest.mark.family(keep=1)
@pytest.mark.parametrize("side", ["before", "after"])
def test_an_import_that_failed_failed_once(deployment: Appliance, side: str) -> None:
    known = count(deployment, "import.failed")
    die(
        deployment, f"{side}:import.failed", lambda: deployment.import_dataset(b"text,label\nno label here\n", "broken")
    )
    assert count(deployment, "import.failed") == known + 1
    check_whole(deployment)
    assert "broken" not in {dataset["name"] for dataset in deployment.get("/v1/datasets")}


INIT = """
import hashlib, os, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.policies import assemble_policy
from appliance.formats.signatures.keys import Ed25519Signer
from appliance.store.ledger.ledger import Ledger

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
    policy=encode_value(assemble_policy("default", files)),
)
print(trust.genesis)
"""


@pytest.mark.thorough
@pytest.mark.family(keep=1)
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
        assert "Conflict: appliance bank.example/k, already initialised: administrators: expected anna" in other.stderr
    assert not (tmp_path / "h" / "trust.json").exists()
    again = init("never")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() in (tmp_path / "h" / "trust.json").read_text()
    assert "expected none yet, got one with a ledger" in init("never").stderr


@pytest.mark.thorough
def test_a_base_is_there_whole_or_not_at_all(deployment: Appliance, tmp_path: Path) -> None:
    folder = build_base(tmp_path / "base", "qwen2")

    def act() -> dict[str, Any]:
        return deployment.import_base(folder, "second")

    die(deployment, "before:base.imported", act)
    assert not list((deployment.home / "artifacts").glob(".*")), "what was sealed and not recorded is gone"
    check_whole(deployment)
    assert [base["name"] for base in deployment.get("/v1/bases")] == ["tiny"]
    die(deployment, "after:base.imported", act)
    check_whole(deployment)
    assert sorted(base["name"] for base in deployment.get("/v1/bases")) == ["second", "tiny"]


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("type_", "sides"),
    [
        ("adapter.admitted", ("before", "after")),
        ("adapter.loaded", ("before", "after")),
        ("request.admitted", ("after",)),  # before it is after adapter.loaded
        ("request.finished", ("before", "after")),
    ],
)
def test_a_request_that_was_cut_off_is_closed_and_the_next_continues(
    deployment: Appliance, type_: str, sides: tuple[str, ...]
) -> None:
    for side in sides:
        known, answered = count(deployment, type_), count(deployment, "request.finished")
        open_ = (type_, side) in (("request.admitted", "after"), ("request.finished", "before"))
        die(deployment, f"{side}:{type_}", lambda: deployment.chat("legal", "labels"))
        last = deployment.entries(type="request.finished")
        assert len(last) - answered == (open_ or (type_, side) == ("request.finished", "after"))
        if open_:
            assert (last[-1]["outcome"], last[-1]["body"]["finish_reason"]) == ("interrupted", "interrupted")
        if not open_:
            assert count(deployment, type_) == known + (side == "after")
        check_whole(deployment)


@pytest.mark.thorough
def test_what_was_taken_back_does_not_answer_after_a_death(own: Appliance) -> None:
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
    revoke = own.sign(RevokeAdapter(**own.on("clauses@1"), **own.terms("rob")))
    once(own, "adapter.revoked", lambda: own.send(revoke), 409)


@pytest.mark.thorough
def test_changed_bytes_are_quarantined_by_the_next_request(own: Appliance) -> None:
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


def status_of(site: Appliance, run: str) -> str:
    return str(site.get(f"/v1/runs/{run}")["status"])


def run_until_death(site: Appliance, name: str, when: str) -> str:
    """Start a run, let the service die in it, and return the run."""
    arm(site, when)
    run = str(site.order(site.train_order(name))["result"]["run"])
    await_death(site)
    site.start()
    return run


@pytest.mark.thorough
def test_a_run_that_only_waited_continues(deployment: Appliance) -> None:
    """Before run.requested nothing is recorded; after it the run waits, also if its worker had not begun."""
    envelope = deployment.sign(deployment.train_order("waited"))
    known = len(deployment.get("/v1/runs"))
    die(deployment, "before:run.requested", lambda: deployment.send(envelope))
    assert len(deployment.get("/v1/runs")) == known
    arm(deployment, "after:run.requested")
    with suppress(httpx.TransportError):
        deployment.send(envelope)
    await_death(deployment)
    arm(deployment, "before:run.started")
    deployment.start(wait=False)  # the run goes on at once: it may die before its socket answers
    await_death(deployment)
    deployment.start()
    run = deployment.get("/v1/runs")[-1]["id"]
    assert deployment.wait_run(run)["adapter"] == "waited@1"
    check_whole(deployment)
    with pytest.raises(Refused) as refused:
        deployment.send(envelope)
    assert refused.value.status == 409


@pytest.mark.thorough
def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_again(deployment: Appliance) -> None:
    """test_training tests one that resumes from a training checkpoint."""
    run = run_until_death(deployment, "cut-off", "after:run.started")
    assert deployment.wait_run(run)["adapter"] == "cut-off@1"
    assert started(deployment, run) == 2
    check_whole(deployment)


@pytest.mark.essential
def test_an_adapter_is_sealed_whole_or_not_at_all(deployment: Appliance) -> None:
    run = run_until_death(deployment, "whole", "before:adapter.sealed")
    # The folder lay there sealed, and no entry came to name it: the start removed it.
    assert not [name for name in os.listdir(deployment.home / "artifacts") if name.startswith(".unnamed-")]
    # The run goes on from its last training checkpoint, and is evaluated and sealed again.
    assert deployment.wait_run(run)["adapter"] == "whole@1"
    check_whole(deployment)
    run = run_until_death(deployment, "whole", "after:adapter.sealed")
    assert status_of(deployment, run) == "sealed"
    assert deployment.adapter("whole@2")["run"] == run
    check_whole(deployment)


STARTED = "after:run.started"
"""The worker waits for its task; the run is under way."""


@pytest.mark.thorough
def test_a_cancellation_that_was_cut_off(deployment: Appliance) -> None:
    """Before the entry the run was not cancelled and begins again; after it, it stays cancelled."""
    for side in ("before", "after"):
        with held(deployment, STARTED):
            run = deployment.order(deployment.train_order("stopped"))["result"]["run"]
            await_held(deployment)
            envelope = deployment.sign(Cancel(run=run, **deployment.terms("olga")))
            die(deployment, f"{side}:run.cancelled", partial(deployment.send, envelope))
            if side == "before":
                assert status_of(deployment, run) == "running"
                deployment.send(envelope)
            assert status_of(deployment, run) == "cancelled"
            with pytest.raises(Refused) as refused:
                deployment.send(envelope)
            assert refused.value.status == 409
        check_whole(deployment)


@pytest.mark.thorough
def test_a_service_that_dies_while_it_recovers_recovers_next_time(deployment: Appliance) -> None:
    with held(deployment, STARTED):
        run = deployment.order(deployment.train_order("twice"))["result"]["run"]
        await_held(deployment)
        deployment.kill()
    for when in ("before:run.started", "within:run.started", "after:run.started"):
        arm(deployment, when)
        deployment.start(wait=False)
        await_death(deployment)
    deployment.start()
    assert deployment.wait_run(run)["adapter"] == "twice@1"
    assert started(deployment, run) == 3
    check_whole(deployment)


def started(site: Appliance, run: str) -> int:
    return [entry["body"]["run"] for entry in site.entries(type="run.started")].count(run)


# --- workers ----------------------------------------------------------------------------------------------------------


def command(pid: int) -> str:
    """Empty for one that is gone, and for one that is dead and not yet buried."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def await_gone(pids: list[int]) -> None:
    wait_for(lambda: not any(map(command, pids)), lambda: f"the end of {[command(pid) for pid in pids]}")


@pytest.mark.thorough
def test_a_run_whose_training_worker_is_killed_begins_again(deployment: Appliance) -> None:
    assert deployment.service is not None
    life = count(deployment, "service.started")
    with held(deployment, STARTED):
        run = deployment.order(deployment.train_order("killed"))["result"]["run"]
        await_held(deployment)
        os.kill(find_workers(deployment.service.pid, "appliance.worker.train")[-1], signal.SIGKILL)
    assert deployment.wait_run(run)["adapter"] == "killed@1"
    assert started(deployment, run) == 2
    assert count(deployment, "service.started") == life
    check_whole(deployment)


@pytest.mark.thorough
def test_a_killed_serving_worker_is_replaced_by_a_new_admission_and_load(deployment: Appliance) -> None:
    assert deployment.service is not None
    assert deployment.chat("legal", "labels")["choices"]
    known = count(deployment, "adapter.admitted"), count(deployment, "adapter.loaded")
    killed = find_engine(deployment.service.pid, "appliance.worker.serve")
    os.kill(killed, signal.SIGKILL)
    await_gone([killed])
    # The first request may be the one that finds the engine dead; whoever asks next is answered.
    with suppress(Refused):
        deployment.chat("legal", "labels")
    assert deployment.chat("legal", "labels")["choices"]
    assert (count(deployment, "adapter.admitted"), count(deployment, "adapter.loaded")) == (known[0] + 1, known[1] + 1)
    check_whole(deployment)


@pytest.mark.thorough
def test_workers_die_with_the_service(deployment: Appliance) -> None:
    assert deployment.service is not None
    deployment.chat("legal", "labels")
    with held(deployment, STARTED):
        run = deployment.order(deployment.train_order("orphan"))["result"]["run"]
        await_held(deployment)
        pids = find_workers(deployment.service.pid, "appliance.worker.")
        assert {module for module in ("serve", "train") for pid in pids if f"worker.{module}" in command(pid)} == {
            "serve",
            "train",
        }
        deployment.kill()
        await_gone(pids)
    deployment.start()
    assert deployment.wait_run(run)["adapter"] == "orphan@1"
    check_whole(deployment)
