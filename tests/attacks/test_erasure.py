"""An erased text is in no file of the appliance; what was derived from it has to be removed by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.domain.data.artifacts import RevokeDataset
from appliance.formats.core.commitment import parse_disclosure_value
from scripts.kit.appliance import Appliance
from scripts.kit.tiny_model import WORDS, build_base, clauses
from scripts.kit.waiting import wait_for
from tests.attacks.keeping import erase_order, files_with, two

pytestmark = pytest.mark.thorough

SECRET = "Erika Beispielmann"
ROWS = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses())


def erase(site: Appliance, index: int) -> int:
    """Two administrators erase the text of the entry that holds the words; return the entry of the erasure."""
    found = [parse_disclosure_value(value) for value in site.get(f"/v1/ledger/{index}", "axel")["disclosures"]]
    (text,) = [disclosure for disclosure in found if SECRET in disclosure.text]
    return int(two(site, erase_order(site, text.commitment), text)["index"])


def elsewhere(site: Appliance) -> list[str]:
    """Return the files that contain the words, except the database's."""
    return [name for name in files_with(site, SECRET) if not name.startswith("ledger.db")]


def uploads(site: Appliance) -> list[str]:
    return sorted(path.name for path in (site.home / "uploads").rglob("*") if path.is_file())


def check_whole(site: Appliance) -> None:
    report = site.verify()
    assert (report["verdict"], report["local_findings"]) == ("verified", [])


def test_a_row_that_stopped_an_import_is_erased_from_every_file(site: Appliance) -> None:
    """A shifted column: a person's name where the label should be, and another's in the instruction."""
    rows = f"{ROWS}the parties agree,{SECRET}\n".encode()
    order = site.order_dataset(rows, "shifted", labels=tuple(WORDS), instruction=f"Answer as {SECRET} would.")
    found = site.wait_import(order)
    assert SECRET in found["error"]["message"]
    (failed,) = site.entries(type="import.failed")
    (log,) = [path for path in site.settings.logs.iterdir() if order.removeprefix("sha256:") in path.name]
    assert "failed: bad-input" in log.read_text()
    assert files_with(site, SECRET)
    assert elsewhere(site) == []
    erased = erase(site, failed["index"])
    erase(site, found["index"])
    assert files_with(site, SECRET) == []
    assert site.get(f"/v1/imports/{order}")["error"]["message"] == f"erased by entry {erased}"
    check_whole(site)
    site.stop()
    assert files_with(site, SECRET) == []


def add_file(site: Appliance, digest: str) -> None:
    """Somebody puts a file into a sealed folder, and its name is a person's."""
    folder = site.home / "artifacts" / digest.removeprefix("sha256:")
    folder.chmod(0o700)
    (folder / SECRET).touch()


def found_by_a_load(site: Appliance) -> None:
    add_file(site, site.get("/v1/bases/tiny")["digest"])
    with pytest.raises(Exception, match="expected the bytes of its manifest, got a file that differs; entry"):
        site.chat("legal", "labels")


def found_by_a_run(site: Appliance) -> None:
    add_file(site, site.get("/v1/bases/tiny")["digest"])
    assert site.train("again")["status"] == "failed"


def found_on_schedule(site: Appliance) -> None:
    site.stop()
    site.environment["APPLIANCE_REHASH"] = "0.02"
    site.start()
    add_file(site, site.adapter()["manifest"])
    wait_for(
        lambda: site.entries(type="artifacts.checked", outcome="failure"), lambda: f"a check: {site.log()[-2000:]}"
    )
    index = site.adapter()["quarantined"]
    assert f"adapter:clauses@1 has changed on disk: tampered, see entry {index}" in site.log()


@pytest.mark.parametrize("act", [found_by_a_load, found_by_a_run, found_on_schedule])
def test_what_was_found_changed_is_named_behind_one_entry_and_erased_with_it(
    released: Appliance, act: Callable[[Appliance], None]
) -> None:
    act(released)
    (quarantined,) = [entry for entry in released.entries() if entry["type"].endswith(".quarantined")]
    assert files_with(released, SECRET)
    assert elsewhere(released) == []
    erase(released, quarantined["index"])
    assert files_with(released, SECRET) == []
    check_whole(released)


def test_an_erased_instruction_stays_in_the_rows_that_were_made_with_it_until_they_are_destroyed(
    site: Appliance,
) -> None:
    found = site.import_dataset(ROWS.encode(), "told", instruction=f"Answer as {SECRET} would.")
    assert found["status"] == "finished", found
    digest = site.get("/v1/datasets/told@1")["digest"]
    erase(site, found["index"])
    assert files_with(site, SECRET) == ["rows.jsonl"], "the order to erase says so, and SECURITY.md"
    site.order(RevokeDataset(dataset="told", version=1, digest=digest, **site.terms("anna")))
    adapter = site.adapter()["manifest"]
    site.stop()
    destroy(site, digest)
    # As what was trained on it would be.
    destroy(site, adapter)
    destroyed = [path.unlink() for path in (site.home / "checkpoints").iterdir()]
    assert files_with(site, SECRET) == []
    site.start()
    report = site.verify()
    assert report["findings"] == [], report
    named = [finding for finding in report["local_findings"] if finding.startswith(("dataset:told@1: ", "adapter:"))]
    assert (len(named), len(report["local_findings"])) == (2, 2 + len(destroyed)), report["local_findings"]


def destroy(site: Appliance, digest: str) -> None:
    """Remove the folder and the files beside it, as in SECURITY.md."""
    folder = site.home / "artifacts" / digest.removeprefix("sha256:")
    folder.chmod(0o700)
    shutil.rmtree(folder)
    for path in folder.parent.glob(f"{folder.name}.*"):
        path.unlink()


# What was uploaded.


def test_what_an_import_has_read_does_not_stay(site: Appliance) -> None:
    held_out = b"text,label\n" + b"".join(f"held out {n},{label}\n".encode() for n, label in enumerate(WORDS))
    assert site.import_dataset(ROWS.encode(), "read", held_out=held_out)["status"] == "finished"
    assert uploads(site) == []
    # A failure that cannot be recorded would leave the import open, and what it read.
    order = site.order_dataset(b'{"te\\u0000xt": "a", "label": "b"}\n', "nul", format="jsonl")
    assert site.get(f"/v1/imports/{order}", wait_s=25)["status"] == "failed"
    assert uploads(site) == []


def test_what_another_import_is_to_read_stays_until_that_has_ended(site: Appliance) -> None:
    ordered = [site.order_dataset(ROWS.encode(), name) for name in ("one", "two", "three")]
    assert {site.wait_import(order)["status"] for order in ordered} == {"finished"}
    assert uploads(site) == []


def test_what_was_sent_since_the_order_stays_for_who_is_about_to_sign(site: Appliance) -> None:
    order = site.order_dataset(ROWS.encode(), "first")
    digest = site.upload(ROWS.encode())
    assert site.wait_import(order)["status"] == "finished"
    assert uploads(site) == [digest.removeprefix("sha256:")]
    site.stop()
    site.start()
    assert uploads(site) == [], "a start sweeps what nobody signed for"


def test_a_base_leaves_none_of_its_files_behind(site: Appliance, tmp_path: Path) -> None:
    found = site.import_base(build_base(tmp_path / "base", "qwen2"), "second")
    assert found["status"] == "finished", found
    assert uploads(site) == []
