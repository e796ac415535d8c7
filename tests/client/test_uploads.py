from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.api.data import ImportStatus
from appliance.client import imports
from appliance.client.support import files, orders
from appliance.domain.core.records.data import Base
from appliance.domain.data.artifacts import DatasetImported
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
from scripts.kit.log_builder import SANDBOX_PROBES, manifest, order_of
from tests.client.conftest import Office


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(b"tensors")
    return folder


def _upload(office: Office, source: files.ImportSource) -> int:
    sent: list[int] = []
    files.upload(office.as_("olga"), source, sent.append)
    return sum(sent)


def test_a_folder_is_a_manifest_over_its_files_and_all_of_it_is_sent(
    open_office: Callable[..., Office], tmp_path: Path
) -> None:
    office = open_office("staffed")
    source = files.read_base(_folder(tmp_path), "smollm2")
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
    source = files.read_base(tmp_path / "m.gguf", "smollm2")
    _upload(office, source)
    proposal = office.propose(
        "olga",
        ImportBase,
        {"base": "smollm2", "licence": "Apache-2.0", "format": source.format, "source": source.digest},
    )
    assert isinstance(proposal.order, ImportBase)
    assert (proposal.order.format, proposal.order.source) == ("gguf", digest_bytes(b"gguf"))
    receipt = orders.submit(office.connection, orders.sign(proposal, office.site.keys["olga"]), office.anchor.log_keys)
    assert receipt.type == "import.requested"


def test_a_link_in_a_model_folder_is_refused_by_name(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match=r"vocab\.json: expected a regular file, got a link"):
        files.read_base(folder, "smollm2")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "a.ckpt", "B.PKL", "modeling.py"])
def test_pickles_and_code_are_refused_before_a_byte_is_sent(tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match=r"got (a pickle|remote code)"):
        files.read_base(folder, "smollm2")


def test_what_no_base_needs_is_not_sent(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    for name in (".gitattributes", "LICENSE", "consolidated.safetensors"):
        (folder / name).write_bytes(b"x" * 100)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"\x80\x04.")
    source = files.read_base(folder, "smollm2")
    assert source.total_bytes == 9
    assert source.ignored == (".gitattributes", "LICENSE", "consolidated.safetensors", "original")


@pytest.mark.parametrize("revision", ["snapshots", "other"])
def test_links_of_a_cache_are_followed_to_its_own_files(tmp_path: Path, revision: str) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / revision / "0123"
    blobs.mkdir()
    folder.mkdir(parents=True)
    (blobs / "abcd").write_bytes(b"{}")
    (folder / "config.json").symlink_to("../../blobs/abcd")
    if revision == "snapshots":
        assert files.read_base(folder, "smollm2").files == ((blobs / "abcd", digest_bytes(b"{}"), 2),)
        (folder / "vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match="expected a regular file, got a link"):
        files.read_base(folder, "smollm2")


def test_what_is_neither_a_folder_nor_a_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"a folder of safetensors or a \.gguf file"):
        files.read_base(tmp_path / "m.onnx", "smollm2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="got none of them"):
        files.read_base(tmp_path / "empty", "smollm2")


@pytest.mark.parametrize("data", [b"short", b"much longer than before"])
def test_a_file_that_changes_while_it_is_sent_is_not_taken(
    open_office: Callable[..., Office], tmp_path: Path, data: bytes
) -> None:
    office = open_office("staffed")
    path = tmp_path / "m.gguf"
    path.write_bytes(b"the first bytes")
    source = files.read_base(path, "smollm2")
    path.write_bytes(data)
    with pytest.raises(Unavailable, match="it changed while it was read"):
        _upload(office, source)
    assert office.service.uploads == {}


def test_a_service_that_has_other_bytes_is_refused(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("staffed")
    (tmp_path / "m.gguf").write_bytes(b"gguf")
    source = files.read_base(tmp_path / "m.gguf", "smollm2")
    office.service.bend[f"/v1/uploads/{source.digest}"] = lambda answer: {**answer, "digest": "sha256:" + "8" * 64}
    with pytest.raises(Tampered, match="expected the service to have"):
        _upload(office, source)


def test_an_upload_begins_again_under_a_new_session(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("staffed")
    (tmp_path / "m.gguf").write_bytes(b"gguf")
    source = files.read_base(tmp_path / "m.gguf", "smollm2")
    connection = office.as_("olga")
    connection.get("/v1/bases", list[Base])
    office.service.forget_sessions()
    files.upload(connection, source, lambda count: None)
    assert office.service.uploads == {source.digest: b"gguf"}


def test_a_datasets_texts_are_committed_and_its_base_is_named_by_digest(
    open_office: Callable[..., Office], tmp_path: Path
) -> None:
    office = open_office("imported")
    (tmp_path / "rows.csv").write_bytes(b"text,label\na,b\n")
    terms = imports.DatasetTerms(
        name="notes", base="smollm2", dataset_kind="classification", columns={}, labels=(), instruction="Name it.",
        owner="Legal Example", licence="CC0-1.0", classification="internal", seed=1, held_out="0.2",
    )  # fmt: skip
    source = imports.read_rows(tmp_path / "rows.csv", None)
    order = orders.propose(
        office.connection.about, "olga", ImportDataset, imports.describe_rows(terms, source), office.lookup("olga")
    )
    assert isinstance(order.order, ImportDataset)
    assert order.order.base_digest == office.site.base_digest
    assert {d.text for d in order.disclosures} == {"Name it.", "Legal Example"}


def test_a_file_whose_ending_says_nothing_needs_its_format(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(b"text,label\n")
    with pytest.raises(BadInput, match="--format"):
        imports.read_rows(tmp_path / "rows.txt", None)
    assert imports.read_rows(tmp_path / "rows.txt", "csv").format == "csv"


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"text,label\n", "its first line is most like csv: add --format csv"),
        (b"text\tlabel\n", "add --format tsv"),
        (b'\xef\xbb\xbf{"text": "a, b"}\n', "add --format jsonl"),
        (b"[{}]", "a JSON array: write one object a line"),
        (b"PAR1", "add --format parquet"),
        (b"PK\x03\x04", "an Excel workbook: export its rows as CSV"),
    ],
)
def test_a_file_of_another_ending_is_refused_with_the_closest_format(tmp_path: Path, start: bytes, told: str) -> None:
    (tmp_path / "rows.txt").write_bytes(start)
    with pytest.raises(BadInput, match=re.escape(told)):
        imports.read_rows(tmp_path / "rows.txt", None)


def test_an_import_ends_with_its_result_or_as_the_error_it_was(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    site, progress, connection = office.site, office.service.context.progress, office.as_("olga")

    def order(name: str) -> str:
        digest = order_of(site.ordered(ImportRequested(policy=site.in_force), site.dataset_order(dataset=name)))
        assert connection.get(f"/v1/imports/{digest}", ImportStatus).status == "requested"
        return digest

    good = order("notes")
    listed = site.lay(manifest("notes", 1, {"rows": b"rows"}), {"rows": b"rows"})
    body = DatasetImported(
        order=good,
        dataset="notes@1",
        base="smollm2",
        root=digest_bytes(b"root"),
        facts={"rows": 1},
        sandbox_probes=SANDBOX_PROBES,
    )
    site.add(body, documents={"manifest": listed})
    progress.end(good, result={"dataset": "notes@1"})
    assert imports.wait_for_import(connection, good, lambda state: None) == {"dataset": "notes@1"}
    bad, why = order("briefs"), conceal("line 7: expected a label")
    site.add(ImportFailed(order=bad, code="dataset", message=why.commitment))
    progress.fail(bad, "dataset", why)
    with pytest.raises(BadInput, match="import of dataset:briefs: line 7") as raised:
        imports.wait_for_import(connection, bad, lambda state: None)
    assert raised.value.code == "dataset"
    ended = order("drafts")
    site.ordered(ImportCancelled(policy=site.in_force), site.order(CancelImport, "anna", order=ended))
    with pytest.raises(Conflict, match="import of dataset:drafts: it was cancelled"):
        imports.wait_for_import(connection, ended, lambda state: None)
