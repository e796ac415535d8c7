"""A changed byte of an adapter, manifest, signature or base on disk prevents every response."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.kit.appliance import Appliance, Refused
from scripts.kit.waiting import wait_for

Spoil = Callable[[Path], None]


def flip_byte(path: Path) -> None:
    """One bit of a sealed, read-only file, by whoever owns the disk."""
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


def of_file(name: str) -> Spoil:
    return lambda folder: flip_byte(folder / name)


def of_signature(folder: Path) -> None:
    flip_byte(folder.with_name(folder.name + ".signature.json"))


def remove_signature(folder: Path) -> None:
    folder.with_name(folder.name + ".signature.json").unlink()


def add_file(folder: Path) -> None:
    folder.chmod(0o700)
    (folder / "more.json").write_text("{}")
    folder.chmod(0o555)


def remove_file(folder: Path) -> None:
    folder.chmod(0o700)
    (folder / "metrics.json").unlink()
    folder.chmod(0o555)


def link_file(folder: Path) -> None:
    """Replace the adapter's weights by a link to the same bytes, which can be changed after they were read."""
    folder.chmod(0o700)
    kept = folder.parent / "elsewhere.safetensors"
    (folder / "adapter_model.safetensors").rename(kept)
    (folder / "adapter_model.safetensors").symlink_to(kept)
    folder.chmod(0o555)


def artifact(site: Appliance, digest: str) -> Path:
    return site.home / "artifacts" / digest.removeprefix("sha256:")


def put_back(site: Appliance, golden: Appliance, digest: str) -> None:
    """Folder and files beside it exactly as they were sealed."""
    here, there = artifact(site, digest), artifact(golden, digest)
    if here.exists():
        here.chmod(0o700)
        shutil.rmtree(here)
    shutil.copytree(there, here, symlinks=True)
    for path in there.parent.glob(f"{there.name}.*"):
        beside = here.with_name(path.name)
        beside.unlink(missing_ok=True)
        shutil.copy2(path, beside)


def not_admitted(site: Appliance) -> Refused:
    with pytest.raises(Refused) as refused:
        site.chat("legal", "labels")
    assert (refused.value.status, refused.value.code) == (403, "not-admitted"), refused.value
    return refused.value


@pytest.fixture
def ready(site: Appliance) -> Appliance:
    """Approved and released, not loaded yet."""
    site.approve()
    site.activate()
    return site


@pytest.mark.essential
@pytest.mark.family(keep=4)
@pytest.mark.parametrize(
    "spoil_folder",
    [
        pytest.param(of_file("adapter_model.safetensors"), id="weights"),
        pytest.param(of_file("recipe.json"), id="recipe"),
        pytest.param(of_file("logit_fingerprint.json"), id="logit_fingerprint"),
        pytest.param(of_file("manifest.json"), id="manifest"),
        pytest.param(of_signature, id="signature"),
        pytest.param(remove_signature, id="no-signature"),
        pytest.param(add_file, id="added-file"),
        pytest.param(remove_file, id="removed-file"),
        pytest.param(link_file, id="link"),
    ],
)
def test_a_changed_adapter_is_refused_quarantined_and_recorded(
    ready: Appliance, golden: Appliance, spoil_folder: Spoil
) -> None:
    digest = ready.adapter()["manifest"]
    spoil_folder(artifact(ready, digest))
    not_admitted(ready)
    refusals = ready.entries(type="admission.refused")[-1]["body"]["refusals"]
    assert refusals[0]["code"] == "evidence-invalid"
    [quarantined] = ready.entries(type="adapter.quarantined")
    assert quarantined["body"]["adapter"] == "clauses@1"
    assert ready.adapter()["quarantined"] == quarantined["index"]
    # Moved aside, kept to be looked at.
    assert not artifact(ready, digest).exists()
    assert list((ready.home / "artifacts").glob(f".quarantined-{artifact(ready, digest).name}-*"))
    # What was changed once is not trusted again, whatever its bytes are now; not even by a new service.
    put_back(ready, golden, digest)
    assert "quarantine" in not_admitted(ready).message
    assert not {"adapter.admitted", "adapter.loaded", "request.admitted"} & set(ready.types())
    assert ready.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_a_quarantine_outlives_the_service(ready: Appliance, golden: Appliance) -> None:
    digest = ready.adapter()["manifest"]
    flip_byte(artifact(ready, digest) / "adapter_model.safetensors")
    not_admitted(ready)
    ready.stop()
    put_back(ready, golden, digest)
    ready.start()
    assert "quarantine" in not_admitted(ready).message
    with pytest.raises(Refused) as refused:
        ready.activate(served_model="other")
    assert any("quarantine" in str(reason) for reason in refused.value.reasons)


@pytest.mark.thorough
def test_a_byte_changed_after_the_load_is_found_by_verify_and_by_the_next_load(ready: Appliance) -> None:
    assert ready.chat("legal", "labels")["choices"]
    flip_byte(artifact(ready, ready.adapter()["manifest"]) / "adapter_model.safetensors")
    assert any("adapter clauses@1" in finding for finding in ready.verify()["local_findings"])
    ready.stop()
    ready.start()
    not_admitted(ready)
    assert len(ready.entries(type="adapter.quarantined")) == 1


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "name"), [("adapter", "adapter_model.safetensors"), ("base", "model.safetensors")])
def test_a_byte_changed_under_a_running_service_is_found_on_schedule_and_taken_out(
    spoil: Callable[[], Appliance], kind: str, name: str
) -> None:
    """Without any request the slot is emptied."""
    site = spoil()
    site.environment["APPLIANCE_REHASH"] = "0.02"
    site.start()
    site.approve()
    site.activate()
    assert site.chat("legal", "labels")["choices"]
    wait_for_entry(site, "artifacts.checked")
    assert {entry["outcome"] for entry in site.entries(type="artifacts.checked")} == {"success"}
    digest = site.adapter()["manifest"] if kind == "adapter" else site.get("/v1/bases/tiny")["digest"]
    flip_byte(artifact(site, digest) / name)
    quarantined = wait_for_entry(site, f"{kind}.quarantined")
    unloaded = wait_for_entry(site, "adapter.unloaded")
    assert quarantined["index"] < unloaded["index"]
    assert "quarantine" in unloaded["body"]["reason"]
    found = wait_for_entry(site, "artifacts.checked", outcome="failure")
    assert found["body"]["changed"] == ["adapter:clauses@1" if kind == "adapter" else "base:tiny"]
    assert found["index"] > quarantined["index"]
    not_admitted(site)
    assert site.verify()["verdict"] == "verified"


def wait_for_entry(site: Appliance, type_: str, **filters: str) -> dict[str, Any]:
    """Return the last entry of the type, once there is one."""
    return wait_for(lambda: site.entries(type=type_, **filters), f"an entry {type_}")[-1]


@pytest.mark.thorough
def test_a_changed_base_is_refused_quarantined_and_recorded(ready: Appliance, golden: Appliance) -> None:
    digest = ready.get("/v1/bases/tiny")["digest"]
    flip_byte(artifact(ready, digest) / "model.safetensors")
    not_admitted(ready)
    [quarantined] = ready.entries(type="base.quarantined")
    assert quarantined["body"]["base"] == "tiny"
    assert ready.get("/v1/bases/tiny")["quarantined"] == quarantined["index"]
    assert not artifact(ready, digest).exists()
    put_back(ready, golden, digest)
    assert "The files of base model tiny have changed on disk" in not_admitted(ready).message
    assert ready.entries(type="admission.refused")[-1]["body"]["refusals"][0]["code"] == "base-quarantined"
    assert not {"adapter.loaded", "request.admitted"} & set(ready.types())
    # Nothing is trained on it any more either.
    with pytest.raises(Refused) as refused:
        ready.order(ready.train_order("again"))
    assert any("quarantine" in str(reason) for reason in refused.value.reasons)


def test_a_changed_base_is_found_before_a_run_trains_on_it(site: Appliance) -> None:
    digest = site.get("/v1/bases/tiny")["digest"]
    flip_byte(artifact(site, digest) / "model.safetensors")
    run = site.train("again")
    assert (run["status"], run["adapter"]) == ("failed", None)
    assert len(site.entries(type="base.quarantined")) == 1
    assert "run.started" not in [entry["type"] for entry in site.entries() if "run:r-000002" in entry["subjects"]]


@pytest.mark.thorough
def test_a_changed_dataset_is_found_before_a_run_trains_on_it(site: Appliance) -> None:
    digest = site.get("/v1/datasets/clauses@1")["digest"]
    flip_byte(artifact(site, digest) / "rows.jsonl")
    assert any("dataset clauses@1" in finding for finding in site.verify()["local_findings"])
    run = site.train("again")
    assert (run["status"], run["adapter"]) == ("failed", None)
    assert os.path.exists(site.settings.socket)
