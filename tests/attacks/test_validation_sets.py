"""A blind set is read by nobody: not by a request, not by its numbers, not by a guess. What it finds holds."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from typing import Any

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.data.validation_sets import RevokeValidationSet
from appliance.domain.evaluation.gates import parse_gate_file
from appliance.domain.evaluation.items import parse_items
from appliance.domain.evaluation.verdict import Verdict, parse_verdict
from appliance.formats.artifacts.rows import row_digest
from appliance.formats.core.digest import digest_bytes
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.tiny_model import clauses
from tests.attacks.test_gates import GATE

SHARED, OWN = clauses(3), clauses(200)[160:]
"""Rows of both the dataset and the set, and rows of the set alone."""
EXAM = "text,label,client,region\n" + "".join(
    f"{text},{label},client-{number // 2:04d},region-{number % 2}\n"
    for number, (text, label) in enumerate([*SHARED, *OWN])
)
COLUMNS = {"cluster": "client", "slice": "region"}
SECRETS = [text for text, _ in OWN] + ["client-00", "region-0", "region-1"]
"""What stands in the set's rows alone."""


CHECK = {
    "task": "classification", "format": "csv", "columns": {}, "labels": [], "instruction": "", "base": None, "seed": 1,
    "held_out": "0.25", "held_out_file": None, "judges": False, "keep": False,
}  # fmt: skip
"""Of a file of rows."""


def gate_set(*gates: dict[str, Any], **members: Any) -> bytes:
    value = {"version": 1, "name": "attacked", "seed": 1, "gates": list(gates), **members}
    return encode_value(parse_gate_file(json.dumps(value).encode()))


ON_EXAM = GATE | {"name": "blind", "set": "exam", "test": "permutation", "slices": ["label", "column", "length"]}
ON_OPEN = ON_EXAM | {"name": "open", "set": "open"}
GATES = gate_set(GATE, ON_EXAM, ON_OPEN)


@pytest.fixture(scope="module")
def judged(shared: Appliance) -> Appliance:
    """A blind set and an open one of the same rows, and judged@1, which both judged."""
    shared.enroll("vera", "validator")
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses(160))
    assert shared.import_dataset(rows.encode(), "many")["status"] == "finished"
    for name, blind in (("exam", True), ("open", False)):
        found = shared.import_set(EXAM.encode(), name, blind=blind, columns=COLUMNS)
        assert found["status"] == "finished", found
    order = shared.train_order("judged", dataset="many@1", epochs=4)
    bound = {"gates": digest_bytes(GATES), "sets": shared.bind_sets("exam", "open")}
    run = shared.wait_run(shared.order(order.model_copy(update=bound), gates=GATES)["result"]["run"])
    assert run["status"] == "sealed", run
    return shared


def sealing(site: Appliance, name: str = "judged@1") -> dict[str, Any]:
    (found,) = site.entries(type="adapter.sealed", subject=f"adapter:{name}")
    return dict(found)


def verdict_of(site: Appliance, name: str = "judged@1") -> Verdict:
    documents = site.get(f"/v1/ledger/{sealing(site, name)['index']}")["documents"]
    return parse_verdict(base64.b64decode(documents["verdict"]))


def file(site: Appliance, path: str, name: str = "judged@1") -> bytes:
    folder = site.home / "artifacts" / site.adapter(name)["manifest"].removeprefix("sha256:")
    return (folder / path).read_bytes()


def secrets_in(data: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in data]


def test_a_run_is_judged_on_each_of_its_sets_and_its_verdict_is_computed_again(judged: Appliance) -> None:
    records = {one.set: one for one in verdict_of(judged).judged}
    assert records.keys() == {"held-out", "exam", "open"}
    for name, record in records.items():
        path = "items.jsonl" if name == "held-out" else f"items-{name}.jsonl"
        data = file(judged, path)
        assert (digest_bytes(data), len(parse_items(data))) == (record.digest, record.items)
        assert record.judged_before == 0
    report = judged.verify()
    assert (report["local_findings"], report["findings"], report["verdicts"]) == ([], [], 1)
    assert sealing(judged)["body"]["metrics"]["noise"] == {
        "rows": records["held-out"].items,
        "different": 0,
        "largest": 0,
    }


def test_the_columns_that_an_import_names_reach_the_items(judged: Appliance) -> None:
    items = parse_items(file(judged, "items-open.jsonl"))
    assert {item.slices.column for item in items} == {"region-0", "region-1"}
    clusters = [item.cluster for item in items]
    assert None not in clusters and len(set(clusters)) == -(-len(items) // 2)
    facts = judged.get("/v1/validation-sets/open@1")["facts"]
    assert (facts["clusters"], facts["slices"], facts["rows"]) == (len(set(clusters)), 2, len(items))
    result = next(one for one in verdict_of(judged).results if one.gate == "open")
    assert {part.value for part in result.slices if part.by == "column"} <= {"region-0", "region-1"}


def test_rows_that_are_trained_on_are_counted_and_a_blind_count_says_nothing_of_three(judged: Appliance) -> None:
    metrics = sealing(judged)["body"]["metrics"]["sets"]
    trained = json.loads(json.dumps(metrics["open"]))["duplicates"]
    assert 1 <= trained <= 3, "those of the shared rows that are on the training side"
    assert metrics["exam"]["duplicates"] == 0 and metrics["exam"]["near_duplicates"] % 5 == 0
    assert metrics["held-out"]["duplicates"] == 0, "an import puts equal texts on one side"
    results = {one.gate: one for one in verdict_of(judged).results}
    assert f"{trained} of {len(SHARED) + len(OWN)} rows of open are trained on" in results["open"].reason
    assert "trained on" not in results["blind"].reason


def test_the_items_of_a_blind_set_hold_no_text_and_no_score_that_a_guess_could_be_compared_with(
    judged: Appliance,
) -> None:
    data, fine = file(judged, "items-exam.jsonl"), file(judged, "items-open.jsonl")
    assert secrets_in(data) == []
    items, exact = parse_items(data), parse_items(fine)
    answers = [answer for item in items for answer in (item.adapter, item.base)]
    assert all(answer.label is None and answer.confidence is None for answer in answers)
    assert all(score % 50_000 == 0 for answer in answers for score in answer.scores.values())
    assert any(score % 50_000 for item in exact for score in item.base.scores.values()), "an open set's are exact"
    losses = [item.base.scores["loss"] for item in items]
    assert len(set(losses)) < len({item.base.scores["loss"] for item in exact}), "many rows have one score"
    assert sorted(item.adapter.right for item in items) == sorted(item.adapter.right for item in exact)


def test_a_guessed_text_gives_no_digest_of_a_blind_set(judged: Appliance) -> None:
    """Whoever has the file and not the key: two imports of one file have no digest in common."""
    exam, opened = (parse_items(file(judged, f"items-{name}.jsonl")) for name in ("exam", "open"))
    rows = {item.row for item in exam}
    assert not rows & {item.row for item in opened}
    assert not {item.cluster for item in exam} & {item.cluster for item in opened}
    folder = judged.home / "artifacts"
    manifest = judged.get("/v1/validation-sets/exam@1")["digest"].removeprefix("sha256:")
    lines = (folder / manifest / "rows.jsonl").read_bytes().splitlines()
    guesses = {hashlib.sha256(line).hexdigest() for line in lines}
    guesses |= {row_digest(bytes(32), number, line).hex() for number, line in enumerate(lines)}
    guesses |= {hashlib.sha256(text.encode()).hexdigest() for text, _ in OWN}
    assert not rows & guesses


PEOPLE = ("olga", "rita", "lou", "axel", "anna", "vera")


@pytest.mark.parametrize("who", PEOPLE)
def test_no_request_reads_a_row_of_a_blind_set(judged: Appliance, who: str) -> None:
    """By its name, by the number of a row, by its text."""
    text = OWN[0][0]
    for path in ("datasets/exam@1", "datasets/exam@1/labels", "datasets/exam@1/uses", "validation-sets/exam@1/labels",
                 "validation-sets/exam@1/rows/0", "validation-sets/exam@1/files/rows.jsonl",
                 "adapters/judged@1/files/rows.jsonl"):  # fmt: skip
        with pytest.raises(Refused, match=r"404|expected"):
            judged.get(f"/v1/{path}", who)
    for path in ("datasets/exam@1/row", "validation-sets/exam@1/row"):
        with pytest.raises(Refused):
            judged.ask("POST", f"/v1/{path}", who, json={"text": text})
    manifest = judged.get("/v1/validation-sets/exam@1", who)["digest"].removeprefix("sha256:")
    for path in (f"../{manifest}/rows.jsonl", f"%2e%2e/{manifest}/rows.jsonl", f"/{manifest}/rows.jsonl"):
        with pytest.raises(Refused):
            judged.get(f"/v1/adapters/judged@1/files/{path}", who)


@pytest.mark.parametrize("who", PEOPLE)
def test_nothing_that_the_service_says_quotes_a_blind_set(judged: Appliance, who: str) -> None:
    run = sealing(judged)["body"]["run"]
    paths = ["validation-sets", "validation-sets/exam@1", "imports", "judgements", "runs", f"runs/{run}", "adapters",
             f"runs/{run}/progress", "adapters/judged@1", "adapters/judged@1/review", "adapters/judged@1/history",
             "datasets/many@1/uses", "status", "storage", "ledger/state"]  # fmt: skip
    for row in judged.get("/v1/imports", who):
        if row["subject"] == "validation-set:exam":
            paths.append(f"imports/{row['order']}")
    told = json.dumps([judged.get(f"/v1/{path}", who) for path in paths])
    assert secrets_in(told.encode()) == []
    facts = judged.get("/v1/recipes/facts", who, base="tiny", dataset="many@1")
    assert {one["name"] for one in facts["validation_sets"]} >= {"exam", "open"}
    assert secrets_in(json.dumps(facts).encode()) == []


def test_no_log_no_export_and_no_sealed_adapter_holds_a_row_of_a_blind_set(judged: Appliance) -> None:
    with judged.http() as client:
        answer = client.get("/v1/ledger/export", headers={"Authorization": f"Bearer {judged.session('axel')}"})
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as export:
        members = {one.name: export.extractfile(one) for one in export.getmembers() if one.isfile()}
        assert members and all(secrets_in(stream.read()) == [] for stream in members.values() if stream is not None)
    logs = sorted((judged.home / "logs").iterdir())
    assert logs and all(secrets_in(path.read_bytes()) == [] for path in logs if path.is_file())
    folder = judged.home / "artifacts" / judged.adapter("judged@1")["manifest"].removeprefix("sha256:")
    names = {path.name for path in folder.iterdir()}
    assert "items-exam.jsonl" in names
    assert [path.name for path in folder.iterdir() if secrets_in(path.read_bytes())] == ["items-open.jsonl"]
    assert not [path for path in (judged.home / "uploads").iterdir() if path.is_file()], "the file is not kept"


def test_an_operator_neither_imports_nor_checks_the_file_of_a_validation_set(judged: Appliance) -> None:
    """By its digest, which the order of the set shows, while the upload is there."""
    digest = judged.upload(EXAM.encode(), "vera")
    with pytest.raises(Refused, match="expected one that is no validation set's, got that of validation-set:"):
        judged.order_dataset(EXAM.encode(), "stolen")
    with pytest.raises(Refused, match="expected one that is no validation set's"):
        judged.order_dataset(b"text,label\na,b\n", "stolen", held_out=EXAM.encode())
    for given in ({"file": digest}, {"file": judged.upload(b"text,label\na,b\n"), "held_out_file": digest}):
        body = {**CHECK, **given}
        with pytest.raises(Refused, match="no validation set's"):
            judged.ask("POST", "/v1/dataset-checks", "olga", json=body)
    assert "stolen@1" not in {f"{row['name']}@{row['version']}" for row in judged.get("/v1/datasets")}


def test_a_check_says_of_open_sets_what_is_among_the_rows_and_of_blind_ones_nothing(judged: Appliance) -> None:
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in [*clauses(30), *OWN])
    body = {**CHECK, "base": "tiny", "file": judged.upload(rows.encode())}
    key = judged.ask("POST", "/v1/dataset-checks", "olga", json=body)["key"]
    while not (found := judged.get(f"/v1/dataset-checks/{key}", wait_s=5))["ended"]:
        continue
    overlaps = found["result"]["overlaps"]
    assert "open@1" in overlaps and not any(name.startswith("exam") for name in overlaps)
    assert overlaps["open@1"]["rows"] == len(SHARED) + len(OWN) and overlaps["open@1"]["duplicates"] > len(OWN) // 2


def test_what_is_wrong_with_a_blind_file_is_told_to_its_validator_alone(judged: Appliance) -> None:
    wrong = "text,label\n" + "".join(f"{text},{label}\n" for text, label in OWN) + "a hidden row,  ,too many\n"
    body = {**CHECK, "judges": True, "file": judged.upload(wrong.encode(), "vera")}
    key = judged.ask("POST", "/v1/dataset-checks", "vera", json=body)["key"]
    while not (found := judged.get(f"/v1/dataset-checks/{key}", "vera", wait_s=5))["ended"]:
        continue
    assert found["result"]["error_count"] == 1 and found["result"]["train_rows"] == 0
    with pytest.raises(Refused, match=r"that .* started"):
        judged.get(f"/v1/dataset-checks/{key}", "olga")
    failed = judged.import_set(wrong.encode(), "broken", blind=True)
    assert failed["status"] == "failed" and "is not recorded of a blind set" in failed["error"]["message"]
    assert "line" not in failed["error"]["message"]
    short = judged.import_set(EXAM.encode()[:400].rpartition(b"\n")[0], "short", blind=True, columns=COLUMNS)
    assert short["status"] == "failed"


def test_a_run_whose_set_is_revoked_fails_before_it_is_judged_and_nothing_is_sealed(judged: Appliance) -> None:
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in OWN)
    assert judged.import_set(rows.encode(), "brief")["status"] == "finished"
    gates, before = gate_set(GATE | {"set": "brief"}), len(judged.get("/v1/adapters"))
    order = judged.train_order("brief", dataset="many@1", epochs=4)
    bound = {"gates": digest_bytes(gates), "sets": judged.bind_sets("brief")}
    run = judged.order(order.model_copy(update=bound), gates=gates)["result"]["run"]
    row = judged.get("/v1/validation-sets/brief@1")
    judged.order(RevokeValidationSet(validation_set="brief", version=1, digest=row["digest"], **judged.terms("vera")))
    ended = judged.wait_run(run)
    assert ended["status"] == "failed" and "revoked" in str(ended["detail"]), ended
    (failed,) = judged.entries(type="run.failed", subject=f"run:{run}")
    assert failed["body"]["code"] == "revoked" and len(judged.get("/v1/adapters")) == before


def test_the_released_version_is_evaluated_on_a_new_version_of_the_dataset(released: Appliance) -> None:
    """clauses@1 answers; its record is of other rows."""
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses(120))
    assert released.import_dataset(rows.encode(), "clauses")["status"] == "finished"
    no_worse = {
        "name": "no-worse",
        "leg": "rest",
        "comparison": "released",
        "claim": "no-worse",
        "test": "tango",
        "margin": "0.9",
        "slices": [],
    }
    gates = gate_set(GATE, GATE | no_worse)
    order = released.train_order("clauses", dataset="clauses@2", epochs=4)
    run = released.wait_run(
        released.order(order.model_copy(update={"gates": digest_bytes(gates)}), gates=gates)["result"]["run"]
    )
    assert run["adapter"] == "clauses@2", run
    theirs = file(released, "items-held-out-released.jsonl", "clauses@2")
    records = {one.model: one for one in verdict_of(released, "clauses@2").judged}
    assert records["released"].digest == digest_bytes(theirs) and records["released"].items == records["run"].items
    own = parse_items(file(released, "items.jsonl", "clauses@2"))
    assert [item.base for item in parse_items(theirs)] == [item.base for item in own], "the same base answered"
    assert verdict_of(released, "clauses@2").results[1].outcome == "passed"
    assert released.verify()["local_findings"] == []
