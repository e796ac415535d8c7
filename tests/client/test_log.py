from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.api.wire import json_value
from appliance.client.support import log
from appliance.domain.runs.training import RunRequested
from appliance.errors import BadInput, Conflict, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.keys import generate_ed25519
from appliance.workflows.queries import verification
from appliance.workflows.queries.log import export, show
from scripts.kit.log_builder import ORIGIN, b64
from tests.client.conftest import Office


def test_an_entry_is_read_with_its_documents_texts_and_proof(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    index = len(office.site.entries) - 2
    proven = log.read_entry(office.as_("audrey"), office.anchor, index)
    assert proven.entry.type == "import.requested"
    assert proven.size == len(office.site.entries)
    assert digest_bytes(proven.document("order")) == proven.entry.documents["order"]
    assert {found.text for found in proven.disclosures} == {"Name the clause.", "Legal Example"}


def test_a_role_that_an_entry_has_not_is_named_beside_those_it_has(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    with pytest.raises(NotFound, match="document order: expected one of policy"):
        log.read_entry(office.as_("audrey"), office.anchor, 0).document("order")


def _other_entry(answer: Any) -> Any:
    value = json.loads(base64.b64decode(answer["bytes"]))
    value["actor"] = "olga"
    return {**answer, "bytes": b64(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())}


@pytest.mark.parametrize(
    ("bend", "error", "words"),
    [
        (_other_entry, Tampered, "inclusion"),
        (lambda a: {**a, "proof": a["proof"][:-1]}, Tampered, "inclusion"),
        (lambda a: {**a, "documents": {r: b64(b"x") for r in a["documents"]}}, Tampered, "document"),
        (lambda a: {**a, "documents": {}}, Tampered, "document"),
        (lambda a: {**a, "checkpoint": a["checkpoint"].replace(ORIGIN, "evil.example/log", 1)}, Tampered, "signature"),
        (lambda a: {**a, "checkpoint": "no note"}, Tampered, "note"),
        (lambda a: {**a, "proof": ["z"]}, Unavailable, "got proof: base64: expected standard base64"),
        (lambda a: {}, Unavailable, "got index: expected a value, got none"),
    ],
)
def test_an_entry_that_is_not_proved_is_not_read(
    open_office: Callable[..., Office], bend: Callable[[Any], Any], error: type[Exception], words: str
) -> None:
    office = open_office("imported")
    office.service.bend["/v1/ledger/7"] = bend
    with pytest.raises(error, match=words):
        log.read_entry(office.as_("audrey"), office.anchor, 7)


def test_a_document_that_the_entry_does_not_bind_is_none_of_it(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    office.service.bend["/v1/ledger/7"] = lambda a: {**a, "documents": {**a["documents"], "countersigned": b64(b"{}")}}
    proven = log.read_entry(office.as_("audrey"), office.anchor, 7)
    assert set(proven.documents) == set(proven.entry.documents)
    with pytest.raises(NotFound, match="document countersigned"):
        proven.document("countersigned")


def test_an_event_of_another_type_or_value_is_refused_with_the_value_that_differs(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("trained")
    run = office.site.state.runs.get("r-000001")
    assert run is not None
    connection = office.as_("audrey")
    assert log.read_event(connection, office.anchor, run.index, RunRequested, run="r-000001")[1].run == "r-000001"
    with pytest.raises(Tampered, match=f"entry {run.index}, run: expected r-000002, got r-000001"):
        log.read_event(connection, office.anchor, run.index, RunRequested, run="r-000002")
    with pytest.raises(Tampered, match=r"entry 0: expected run\.requested of run r-000001, got appliance\.initialized"):
        log.read_event(connection, office.anchor, 0, RunRequested, run="r-000001")


def test_another_entry_of_the_same_log_is_not_taken_for_the_one_asked_for(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    office.service.bend["/v1/ledger/7"] = lambda answer: json_value(show(office.service.context, 8))
    with pytest.raises(Tampered, match="entry 7: expected this index, got 8"):
        log.read_entry(office.as_("audrey"), office.anchor, 7)


def test_a_text_that_its_commitment_does_not_hold_is_not_shown(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    index = len(office.site.entries) - 2

    def bend(answer: Any) -> Any:
        answer["disclosures"][0]["text"] = "Name nothing."
        return answer

    office.service.bend[f"/v1/ledger/{index}"] = bend
    with pytest.raises(Tampered, match="disclosure, commitment"):
        log.read_entry(office.as_("audrey"), office.anchor, index)


@pytest.mark.parametrize("field", ["origin", "log_key", "genesis"])
def test_a_service_that_is_not_the_trust_files_log_is_refused(open_office: Callable[..., Office], field: str) -> None:
    office = open_office("initialized")
    other = {
        "origin": "other.example/log",
        "log_key": vkey_of(ORIGIN, generate_ed25519()),
        "genesis": "sha256:" + "2" * 64,
    }
    with pytest.raises(Tampered, match="trust file"):
        log.anchor_of(office.connection.about.model_copy(update={field: other[field]}), office.site.trust)


def test_without_a_trust_file_the_anchor_says_whose_word_it_is(open_office: Callable[..., Office]) -> None:
    office = open_office("initialized")
    assert "the service's own word" in log.anchor_of(office.connection.about, None).source
    assert log.anchor_of(office.connection.about, office.site.trust).source == "the trust file"


def test_the_first_entry_must_be_the_one_that_the_anchor_names(open_office: Callable[..., Office]) -> None:
    office = open_office("initialized")
    anchor = replace(office.anchor, genesis="sha256:" + "3" * 64)
    with pytest.raises(Tampered, match="entry 0: expected the log's first entry"):
        log.list_adapter_keys(office.as_("anna"), anchor)


def test_the_adapter_key_is_the_first_entrys(open_office: Callable[..., Office]) -> None:
    office = open_office("initialized")
    assert log.list_adapter_keys(office.as_("anna"), office.anchor) == [(office.site.adapter_key.spki, 0)]


def test_entries_come_page_by_page_until_the_last(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    found = list(log.find_entries(office.as_("audrey"), page=7))
    size = len(office.site.entries)
    assert [entry.index for entry in found] == list(range(size))
    assert office.service.seen.count(("GET", "/v1/ledger")) == size // 7 + 1


def test_filters_reach_the_service(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    found = list(log.find_entries(office.as_("audrey"), type="principal.enrolled", actor="ben"))
    assert {entry.type for entry in found} == {"principal.enrolled"}
    assert len(found) == 8


def test_an_export_has_its_name_only_when_it_is_complete(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("staffed")
    digest, size = log.export(office.as_("audrey"), tmp_path / "log.tar")
    whole = b"".join(export(office.service.context))
    assert (tmp_path / "log.tar").read_bytes() == whole
    assert (digest, size) == (digest_bytes(whole), len(whole))
    assert [path.name for path in tmp_path.iterdir()] == ["log.tar"]


def test_an_export_that_fails_leaves_nothing(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("staffed")

    def bend(answer: Any) -> Any:
        raise Unavailable("disk: full")

    office.service.bend["/v1/ledger/export"] = bend
    with pytest.raises(Unavailable, match="disk: full"):
        log.export(office.as_("audrey"), tmp_path / "log.tar")
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_writes_over_a_file(open_office: Callable[..., Office], tmp_path: Path) -> None:
    (tmp_path / "log.tar").write_bytes(b"mine")
    with pytest.raises(Conflict):
        log.export(open_office("staffed").as_("audrey"), tmp_path / "log.tar")
    assert (tmp_path / "log.tar").read_bytes() == b"mine"


def test_a_trust_file_is_read_back(open_office: Callable[..., Office], tmp_path: Path) -> None:
    trust = open_office("initialized").site.trust
    (tmp_path / "trust.json").write_bytes(encode_trust(trust))
    assert log.load_trust(tmp_path / "trust.json") == trust
    (tmp_path / "other.json").write_bytes(b"{}\n")
    with pytest.raises(BadInput, match=r"other\.json"):
        log.load_trust(tmp_path / "other.json")


@pytest.mark.thorough
def test_a_client_that_leaves_ends_its_verification(
    open_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def wait(*_: Any, cancelled: Callable[[], bool], **__: Any) -> bytes:
        while not cancelled():
            time.sleep(0.01)
        ended.set()
        raise Unavailable("program: expected a caller that waits for its answer, got none")

    monkeypatch.setattr(verification, "ask_program", wait)
    monkeypatch.setattr(log, "LONG_TIMEOUT_S", 2.0)
    office = open_office("staffed")
    with pytest.raises(Unavailable):
        log.verify(office.as_("audrey"), None)
    assert ended.wait(60)
    monkeypatch.undo()
    assert log.verify(office.as_("audrey"), None).verdict == "unverifiable"


def test_a_verification_without_a_verdict_is_none(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    office.service.bend["/v1/ledger/verify"] = lambda answer: {}
    with pytest.raises(Unavailable, match="verdict"):
        log.verify(office.as_("audrey"), None)
