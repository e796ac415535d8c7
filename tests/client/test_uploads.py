from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.client import imports
from appliance.client.support import orders, uploads
from appliance.domain.data.datasets import DatasetImported
from appliance.domain.data.imports import (
    CancelImport,
    ImportBase,
    ImportCancelled,
    ImportDataset,
    ImportFailed,
    ImportRequested,
)
from appliance.errors import BadInput, Conflict, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.core.record import conceal
from scripts.kit.log_builder import WALLS, manifest, order_of
from tests.client.conftest import Office


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(b"tensors")
    return folder


def _upload(office: Office, source: uploads.Source) -> int:
    sent: list[int] = []
    uploads.upload(office.as_("olga"), source, sent.append)
    return sum(sent)


def test_a_folder_is_a_manifest_over_its_files_and_all_of_it_is_sent(
    open_office: Callable[..., Office], tmp_path: Path
) -> None:
    office = open_office("staffed")
    source = uploads.read_base(_folder(tmp_path), "smollm2")
    assert _upload(office, source) == source.total_bytes == 9
    manifest = parse_manifest(office.service.uploads[source.digest])
    assert (manifest.name, manifest.version) == ("smollm2", 1)
    assert {f.path: f.digest for f in manifest.files} == {
        "config.json": digest_bytes(b"{}"),
        "model.safetensors": digest_bytes(b"tensors"),
    }
    assert all(file.digest in office.service.uploads for file in manifest.files)


def test_a_gguf_file_is_itself(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("staffed")
    (tmp_path / "m.gguf").write_bytes(b"gguf")
    source = uploads.read_base(tmp_path / "m.gguf", "smollm2")
    _upload(office, source)
    proposal = imports.propose_base(office.door.about, "olga", "smollm2", "Apache-2.0", source)
    assert isinstance(proposal.order, ImportBase)
    assert (proposal.order.format, proposal.order.source) == ("gguf", digest_bytes(b"gguf"))
    receipt = orders.submit(office.door, orders.sign(proposal, office.site.keys["olga"]), office.anchor.log_key)
    assert receipt.type == "import.requested"


def test_a_link_in_a_model_folder_is_refused_by_name(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match=r"vocab\.json: expected a regular file, got a link"):
        uploads.read_base(folder, "smollm2")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "a.ckpt", "B.PKL"])
def test_a_pickle_is_refused_before_a_byte_is_sent(tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match="got a pickle"):
        uploads.read_base(folder, "smollm2")


def test_what_is_neither_a_folder_nor_a_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"a folder of safetensors or a \.gguf file"):
        uploads.read_base(tmp_path / "m.onnx", "smollm2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="got an empty folder"):
        uploads.read_base(tmp_path / "empty", "smollm2")


@pytest.mark.parametrize("data", [b"short", b"much longer than before"])
def test_a_file_that_changes_while_it_is_sent_is_not_taken(
    open_office: Callable[..., Office], tmp_path: Path, data: bytes
) -> None:
    office = open_office("staffed")
    path = tmp_path / "m.gguf"
    path.write_bytes(b"the first bytes")
    source = uploads.read_base(path, "smollm2")
    path.write_bytes(data)
    with pytest.raises(Unavailable, match="it changed while it was read"):
        _upload(office, source)
    assert office.service.uploads == {}


def test_a_service_that_has_other_bytes_is_refused(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("staffed")
    (tmp_path / "m.gguf").write_bytes(b"gguf")
    source = uploads.read_base(tmp_path / "m.gguf", "smollm2")
    office.service.bend[f"/v1/uploads/{source.digest}"] = lambda answer: {"digest": "sha256:" + "8" * 64}
    with pytest.raises(Tampered, match="expected the service to have"):
        _upload(office, source)


def test_an_upload_begins_again_under_a_new_session(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("staffed")
    (tmp_path / "m.gguf").write_bytes(b"gguf")
    source = uploads.read_base(tmp_path / "m.gguf", "smollm2")
    door = office.as_("olga")
    door.get("/v1/bases")
    office.service.forget_sessions()
    uploads.upload(door, source, lambda count: None)
    assert office.service.uploads == {source.digest: b"gguf"}


def test_a_datasets_texts_are_committed_and_its_base_is_named_by_digest(
    open_office: Callable[..., Office], tmp_path: Path
) -> None:
    office = open_office("imported")
    (tmp_path / "rows.csv").write_bytes(b"text,label\na,b\n")
    terms = imports.DatasetTerms(
        name="notes", base="smollm2", task="classification", columns={}, labels=(), instruction="Name it.",
        owner="Legal Example", licence="CC0-1.0", classification="internal", seed=1, held_out="0.2",
    )  # fmt: skip
    digest = imports.proven_digest(office.as_("olga"), office.anchor, "base", "smollm2")
    source = imports.read_rows(tmp_path / "rows.csv", None)
    order = imports.propose_dataset(office.door.about, "olga", terms, source, digest)
    assert isinstance(order.order, ImportDataset)
    assert order.order.base_digest == office.site.base_digest
    assert {d.text for d in order.disclosures} == {"Name it.", "Legal Example"}


def test_a_file_whose_ending_says_nothing_needs_its_format(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(b"text,label\n")
    with pytest.raises(BadInput, match="--format"):
        imports.read_rows(tmp_path / "rows.txt", None)
    assert imports.read_rows(tmp_path / "rows.txt", "csv").format == "csv"


def test_an_import_ends_with_its_result_or_as_the_error_it_was(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    site, progress, door = office.site, office.service.context.progress, office.as_("olga")

    def order(name: str) -> str:
        digest = order_of(site.ordered(ImportRequested(policy=site.in_force), site.dataset_order(dataset=name)))
        assert door.get(f"/v1/imports/{digest}")["status"] == "requested"
        return digest

    good = order("notes")
    listed = site.lay(manifest("notes", 1, {"rows": b"rows"}), {"rows": b"rows"})
    body = DatasetImported(
        order=good, dataset="notes@1", base="smollm2", root=digest_bytes(b"root"), facts={"rows": 1}, walls=WALLS
    )
    site.add(body, documents={"manifest": listed})
    progress.end(good, result={"dataset": "notes@1"})
    assert imports.wait_for_import(door, good, lambda state: None) == {"dataset": "notes@1"}
    bad, why = order("briefs"), conceal("line 7: expected a label")
    site.add(ImportFailed(order=bad, code="dataset", message=why.commitment))
    progress.fail(bad, "dataset", why)
    with pytest.raises(BadInput, match="import of dataset:briefs: line 7") as raised:
        imports.wait_for_import(door, bad, lambda state: None)
    assert raised.value.code == "dataset"
    ended = order("drafts")
    site.ordered(ImportCancelled(policy=site.in_force), site.order(CancelImport, "anna", order=ended))
    with pytest.raises(Conflict, match="import of dataset:drafts: it was cancelled"):
        imports.wait_for_import(door, ended, lambda state: None)
