"""The rows of a blind set cannot be read: not by a request, from its numbers, or by guessing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from typing import Any

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.data.artifacts import RevokeValidationSet
from appliance.domain.data.imports import ImportDataset, ImportValidationSet
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
ROWS_OF_TEXTS = "".join(f"{text},{label}\n" for text, label in clauses(160))
SECRETS = [text for text, _ in OWN] + ["client-00", "region-0", "region-1"]
"""What stands in the set's rows alone."""


CHECK = {
    "dataset_kind": "classification", "format": "csv", "columns": {}, "labels": [], "instruction": "", "base": None,
    "seed": 1, "held_out": "0.25", "held_out_file": None, "is_validation_set": False, "blind": False, "keep": False,
}  # fmt: skip
"""Of a file of rows."""


def gates_file(*gates: dict[str, Any], **members: Any) -> bytes:
    # The clauses of the tests follow a few patterns, so many of them are nearly the same.
    value = {"version": 1, "name": "attacked", "seed": 1, "most_near_overlap": "1.0", "gates": list(gates), **members}
    return encode_value(parse_gate_file(json.dumps(value).encode()))


ON_EXAM = GATE | {"name": "blind", "set": "exam", "test": "permutation", "slices": ["label", "column", "length"]}
ON_OPEN = ON_EXAM | {"name": "open", "set": "open"}
GATES = gates_file(GATE, ON_EXAM, ON_OPEN)


@pytest.fixture(scope="module")
def evaluated(shared: Appliance) -> Appliance:
    """Return the site with a blind and an open set of the same rows, and evaluated@1, evaluated on both."""
    shared.enrol("vera", "validator")
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses(160))
    assert shared.import_dataset(rows.encode(), "many")["status"] == "finished"
    for name, blind in (("exam", True), ("open", False)):
        found = shared.import_set(EXAM.encode(), name, blind=blind, columns=COLUMNS)
        assert found["status"] == "finished", found
    order = shared.train_order("evaluated", dataset="many@1", epochs=4)
    bound = {"gates": digest_bytes(GATES), "sets": shared.bind_sets("exam", "open")}
    run = shared.wait_run(shared.order(order.model_copy(update=bound), gates=GATES)["result"]["run"])
    assert run["status"] == "sealed", run
    return shared


def sealing(site: Appliance, name: str = "evaluated@1") -> dict[str, Any]:
    (found,) = site.entries(type="adapter.sealed", subject=f"adapter:{name}")
    return dict(found)


def verdict_of(site: Appliance, name: str = "evaluated@1") -> Verdict:
    documents = site.get(f"/v1/ledger/{sealing(site, name)['index']}")["documents"]
    return parse_verdict(base64.b64decode(documents["verdict"]))


def file(site: Appliance, path: str, name: str = "evaluated@1") -> bytes:
    folder = site.home / "artifacts" / site.adapter(name)["manifest"].removeprefix("sha256:")
    return (folder / path).read_bytes()


def secrets_in(data: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in data]


@pytest.mark.thorough
def test_a_run_is_evaluated_on_each_of_its_sets_and_its_verdict_is_computed_again(evaluated: Appliance) -> None:
    records = {one.set: one for one in verdict_of(evaluated).evaluated}
    assert records.keys() == {"held-out", "exam", "open"}
    for name, record in records.items():
        path = "items.jsonl" if name == "held-out" else f"items-{name}.jsonl"
        data = file(evaluated, path)
        assert (digest_bytes(data), len(parse_items(data))) == (record.digest, record.items)
        assert record.evaluated_before == 0
    report = evaluated.verify()
    assert (report["local_findings"], report["findings"], report["verdicts"]) == ([], [], 1)
    assert sealing(evaluated)["body"]["metrics"]["noise"] == {
        "rows": records["held-out"].items,
        "different": 0,
        "largest": 0,
    }


def test_the_columns_that_an_import_names_reach_the_items(evaluated: Appliance) -> None:
    items = parse_items(file(evaluated, "items-open.jsonl"))
    assert {item.slices.column for item in items} == {"region-0", "region-1"}
    clusters = [item.cluster for item in items]
    assert None not in clusters and len(set(clusters)) == -(-len(items) // 2)
    facts = evaluated.get("/v1/validation-sets/open@1")["facts"]
    assert (facts["clusters"], facts["slices"], facts["rows"]) == (len(set(clusters)), 2, len(items))
    result = next(one for one in verdict_of(evaluated).results if one.gate == "open")
    assert {part.value for part in result.slices if part.by == "column"} <= {"region-0", "region-1"}


def test_rows_that_are_trained_on_are_counted_and_a_blind_count_says_nothing_of_three(evaluated: Appliance) -> None:
    metrics = sealing(evaluated)["body"]["metrics"]["sets"]
    trained = json.loads(json.dumps(metrics["open"]))["duplicates"]
    assert 1 <= trained <= 3, "those of the shared rows that are on the training side"
    assert metrics["exam"]["duplicates"] == "few" and metrics["exam"]["near_duplicates"] in ("few", "many")
    assert metrics["held-out"]["duplicates"] == 0, "an import puts equal texts on one side"
    results = {one.gate: one for one in verdict_of(evaluated).results}
    assert f"{trained} of {len(SHARED) + len(OWN)} rows of open are trained on" in results["open"].reason
    assert "trained on" not in results["blind"].reason


def test_the_items_of_a_blind_set_hold_no_text_and_no_score_that_a_guess_could_be_compared_with(
    evaluated: Appliance,
) -> None:
    data, fine = file(evaluated, "items-exam.jsonl"), file(evaluated, "items-open.jsonl")
    assert secrets_in(data) == []
    items, exact = parse_items(data), parse_items(fine)
    answers = [answer for item in items for answer in (item.adapter, item.base)]
    assert all(answer.label is None and answer.confidence is None for answer in answers)
    assert all(score % 50_000 == 0 for answer in answers for score in answer.scores.values())
    assert any(score % 50_000 for item in exact for score in item.base.scores.values()), "an open set's are exact"
    losses = [item.base.scores["loss"] for item in items]
    assert len(set(losses)) < len({item.base.scores["loss"] for item in exact}), "many rows have one score"
    assert sorted(item.adapter.right for item in items) == sorted(item.adapter.right for item in exact)


def test_a_guessed_text_gives_no_digest_of_a_blind_set(evaluated: Appliance) -> None:
    """Whoever has the file and not the key: two imports of one file have no digest in common."""
    exam, opened = (parse_items(file(evaluated, f"items-{name}.jsonl")) for name in ("exam", "open"))
    rows = {item.row for item in exam}
    assert not rows & {item.row for item in opened}
    assert not {item.cluster for item in exam} & {item.cluster for item in opened}
    folder = evaluated.home / "artifacts"
    manifest = evaluated.get("/v1/validation-sets/exam@1")["digest"].removeprefix("sha256:")
    lines = (folder / manifest / "rows.jsonl").read_bytes().splitlines()
    guesses = {hashlib.sha256(line).hexdigest() for line in lines}
    guesses |= {row_digest(bytes(32), number, line).hex() for number, line in enumerate(lines)}
    guesses |= {hashlib.sha256(text.encode()).hexdigest() for text, _ in OWN}
    assert not rows & guesses


PEOPLE = ("olga", "rita", "lou", "axel", "anna", "vera")


@pytest.mark.parametrize("who", PEOPLE)
def test_no_request_reads_a_row_of_a_blind_set(evaluated: Appliance, who: str) -> None:
    """By its name, by the number of a row, by its text."""
    text = OWN[0][0]
    for path in ("datasets/exam@1", "datasets/exam@1/labels", "datasets/exam@1/uses", "validation-sets/exam@1/labels",
                 "validation-sets/exam@1/rows/0", "validation-sets/exam@1/files/rows.jsonl",
                 "adapters/evaluated@1/files/rows.jsonl"):  # fmt: skip
        with pytest.raises(Refused, match=r"404|expected"):
            evaluated.get(f"/v1/{path}", who)
    for path in ("datasets/exam@1/row", "validation-sets/exam@1/row"):
        with pytest.raises(Refused):
            evaluated.ask("POST", f"/v1/{path}", who, json={"text": text})
    manifest = evaluated.get("/v1/validation-sets/exam@1", who)["digest"].removeprefix("sha256:")
    for path in (f"../{manifest}/rows.jsonl", f"%2e%2e/{manifest}/rows.jsonl", f"/{manifest}/rows.jsonl"):
        with pytest.raises(Refused):
            evaluated.get(f"/v1/adapters/evaluated@1/files/{path}", who)


@pytest.mark.parametrize("who", PEOPLE)
def test_nothing_that_the_service_says_quotes_a_blind_set(evaluated: Appliance, who: str) -> None:
    run = sealing(evaluated)["body"]["run"]
    paths = ["validation-sets", "validation-sets/exam@1", "imports", "evaluations", "runs", f"runs/{run}", "adapters",
             f"runs/{run}/progress", "adapters/evaluated@1", "adapters/evaluated@1/review",
             "adapters/evaluated@1/history",
             "datasets/many@1/uses", "status", "storage", "ledger/state"]  # fmt: skip
    for row in evaluated.get("/v1/imports", who):
        if row["subject"] == "validation-set:exam":
            paths.append(f"imports/{row['order']}")
    told = json.dumps([evaluated.get(f"/v1/{path}", who) for path in paths])
    assert secrets_in(told.encode()) == []
    facts = evaluated.get("/v1/recipes/facts", who, base="tiny", dataset="many@1")
    assert {one["name"] for one in facts["validation_sets"]} >= {"exam", "open"}
    assert secrets_in(json.dumps(facts).encode()) == []


def test_no_log_no_export_and_no_sealed_adapter_holds_a_row_of_a_blind_set(evaluated: Appliance) -> None:
    with evaluated.http() as client:
        answer = client.get("/v1/ledger/export", headers={"Authorization": f"Bearer {evaluated.session('axel')}"})
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as export:
        members = {one.name: export.extractfile(one) for one in export.getmembers() if one.isfile()}
        assert members and all(secrets_in(stream.read()) == [] for stream in members.values() if stream is not None)
    logs = sorted((evaluated.home / "logs").iterdir())
    assert logs and all(secrets_in(path.read_bytes()) == [] for path in logs if path.is_file())
    folder = evaluated.home / "artifacts" / evaluated.adapter("evaluated@1")["manifest"].removeprefix("sha256:")
    names = {path.name for path in folder.iterdir()}
    assert "items-exam.jsonl" in names
    assert [path.name for path in folder.iterdir() if secrets_in(path.read_bytes())] == ["items-open.jsonl"]
    assert not [path for path in (evaluated.home / "uploads").rglob("*") if path.is_file()], "the file is not kept"


def checked(site: Appliance, who: str, **body: Any) -> dict[str, Any]:
    """Check a dataset, and return the result."""
    key = site.ask("POST", "/v1/dataset-checks", who, json={**CHECK, **body})["key"]
    while not (found := site.get(f"/v1/dataset-checks/{key}", who, wait_s=5))["ended"]:
        continue
    return dict(found)


@pytest.mark.thorough
def test_an_upload_of_another_person_is_answered_as_one_that_is_not_there(evaluated: Appliance) -> None:
    """A second validator and an operator learn a digest from the log, and exchange text and label."""
    evaluated.enrol("walt", "validator")
    rows = EXAM.encode() + b"one more row,payment,client-0100,region-1\n"
    digest, absent, own = evaluated.upload(rows, "vera"), digest_bytes(b"never sent"), b"text,label\na,b\n"
    swapped = {"columns": {"text": "label", "label": "text"}, "keep": True}
    for who in ("walt", "olga"):
        refused = []
        for one in (digest, absent):
            for files in ({"file": one}, {"file": evaluated.upload(own, who), "held_out_file": one}):
                with pytest.raises(Refused) as error:
                    evaluated.ask("POST", "/v1/dataset-checks", who, json={**CHECK, **swapped, **files})
                refused.append(str(error.value).replace(one, "DIGEST"))
        assert "expected bytes sent before, got none" in refused[0]
        assert refused[:2] == refused[2:], "whether another person sent it makes no difference"
    for who, role in (("walt", ImportValidationSet), ("olga", ImportDataset)):
        with pytest.raises(Refused, match=f"upload {digest}: expected bytes sent before, got none"):
            evaluated.order_rows(role, digest, who)
    assert checked(evaluated, "vera", file=digest, columns=COLUMNS)["result"]["rows"] > len(OWN), (
        "the sender's own is there"
    )


@pytest.mark.thorough
def test_a_check_of_a_blind_set_has_numbers_alone(evaluated: Appliance) -> None:
    """Also for its own validator: as one that is announced as blind, and as a file that the log has as blind."""
    rows = EXAM.encode()
    for announced in (True, False):
        found = checked(
            evaluated,
            "vera",
            file=evaluated.upload(rows, "vera"),
            is_validation_set=True,
            blind=announced,
            columns=COLUMNS,
        )
        assert found["result"]["rows"] == len(SHARED) + len(OWN) and found["result"]["label_count"] == 3
        assert found["result"]["labels"] == {} and secrets_in(json.dumps(found).encode()) == []
    wrong = rows.replace(b"\n", b",more\n", 3)
    found = checked(
        evaluated, "vera", file=evaluated.upload(wrong, "vera"), is_validation_set=True, blind=True, columns=COLUMNS
    )
    assert found["result"]["errors"][0] == "dataset, line 4"
    assert all(re.fullmatch(r"dataset, line \d+", one) for one in found["result"]["errors"])
    found = checked(
        evaluated,
        "vera",
        file=evaluated.upload(b"PAR1 secret", "vera"),
        format="parquet",
        is_validation_set=True,
        blind=True,
    )
    assert found["error"] is None or "cannot be read" in found["error"]["message"]
    assert "secret" not in json.dumps(found)


def test_labels_that_are_texts_are_not_listed(evaluated: Appliance) -> None:
    swapped = {"columns": {"text": "label", "label": "text"}}
    found = checked(evaluated, "olga", file=evaluated.upload(f"text,label\n{ROWS_OF_TEXTS}".encode()), **swapped)[
        "result"
    ]
    assert found["labels"] == {} and found["similar_labels"] == [] and found["label_count"] == 160
    assert found["notes"] == [
        "the column of labels seems to hold texts: 160 different ones in 160 rows; none is listed"
    ]


def test_an_operator_neither_imports_nor_checks_the_file_of_a_validation_set(evaluated: Appliance) -> None:
    """The operator has the file, too."""
    digest = evaluated.upload(EXAM.encode())
    with pytest.raises(Refused, match=r"This file was ordered as .*, which is a validation set"):
        evaluated.order_dataset(EXAM.encode(), "stolen")
    with pytest.raises(Refused, match="which is a validation set"):
        evaluated.order_dataset(b"text,label\na,b\n", "stolen", held_out=EXAM.encode())
    for given in ({"file": digest}, {"file": evaluated.upload(b"text,label\na,b\n"), "held_out_file": digest}):
        body = {**CHECK, **given}
        with pytest.raises(Refused, match="which is a validation set") as checked_by_olga:
            evaluated.ask("POST", "/v1/dataset-checks", "olga", json=body)
        assert checked_by_olga.value.codes == ["file-for-evaluation"]
    assert "stolen@1" not in {f"{row['name']}@{row['version']}" for row in evaluated.get("/v1/datasets")}


def test_a_check_says_of_open_sets_what_is_among_the_rows_and_of_blind_ones_nothing(evaluated: Appliance) -> None:
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in [*clauses(30), *OWN])
    body = {**CHECK, "base": "tiny", "file": evaluated.upload(rows.encode())}
    overlaps = checked(evaluated, "olga", **body)["result"]["overlaps"]
    assert "open@1" in overlaps and not any(name.startswith("exam") for name in overlaps)
    assert overlaps["open@1"]["rows"] == len(SHARED) + len(OWN) and overlaps["open@1"]["duplicates"] > len(OWN) // 2


@pytest.mark.thorough
def test_what_is_wrong_with_a_blind_file_is_told_to_its_validator_alone(evaluated: Appliance) -> None:
    wrong = "text,label\n" + "".join(f"{text},{label}\n" for text, label in OWN) + "a hidden row,  ,too many\n"
    body = {**CHECK, "is_validation_set": True, "file": evaluated.upload(wrong.encode(), "vera")}
    key = evaluated.ask("POST", "/v1/dataset-checks", "vera", json=body)["key"]
    while not (found := evaluated.get(f"/v1/dataset-checks/{key}", "vera", wait_s=5))["ended"]:
        continue
    assert found["result"]["error_count"] == 1 and found["result"]["train_rows"] == 0
    with pytest.raises(Refused, match=r"that .* started"):
        evaluated.get(f"/v1/dataset-checks/{key}", "olga")
    failed = evaluated.import_set(wrong.encode(), "broken", blind=True)
    assert failed["status"] == "failed" and "is not recorded of a blind set" in failed["error"]["message"]
    assert "line" not in failed["error"]["message"]
    short = evaluated.import_set(EXAM.encode()[:400].rpartition(b"\n")[0], "short", blind=True, columns=COLUMNS)
    assert short["status"] == "failed"


@pytest.mark.thorough
def test_a_run_whose_set_is_revoked_fails_before_it_is_evaluated_and_nothing_is_sealed(evaluated: Appliance) -> None:
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in OWN)
    assert evaluated.import_set(rows.encode(), "brief")["status"] == "finished"
    gates, before = gates_file(GATE | {"set": "brief"}), len(evaluated.get("/v1/adapters"))
    order = evaluated.train_order("brief", dataset="many@1", epochs=4)
    bound = {"gates": digest_bytes(gates), "sets": evaluated.bind_sets("brief")}
    run = evaluated.order(order.model_copy(update=bound), gates=gates)["result"]["run"]
    row = evaluated.get("/v1/validation-sets/brief@1")
    evaluated.order(
        RevokeValidationSet(validation_set="brief", version=1, digest=row["digest"], **evaluated.terms("vera"))
    )
    ended = evaluated.wait_run(run)
    assert ended["status"] == "failed" and "revoked" in str(ended["detail"]), ended
    (failed,) = evaluated.entries(type="run.failed", subject=f"run:{run}")
    assert failed["body"]["code"] == "revoked" and len(evaluated.get("/v1/adapters")) == before


@pytest.mark.thorough
def test_the_released_version_is_evaluated_on_a_new_version_of_the_dataset(released: Appliance) -> None:
    """clauses@1 answers; its record is of other rows."""
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses(120))
    assert released.import_dataset(rows.encode(), "clauses")["status"] == "finished"
    no_worse = {
        "name": "no-worse",
        "kind": "regression",
        "comparison": "released",
        "claim": "no-worse",
        "test": "tango",
        "margin": "0.9",
        "slices": [],
    }
    gates = gates_file(GATE, GATE | no_worse)
    order = released.train_order("clauses", dataset="clauses@2", epochs=4)
    run = released.wait_run(
        released.order(order.model_copy(update={"gates": digest_bytes(gates)}), gates=gates)["result"]["run"]
    )
    assert run["adapter"] == "clauses@2", run
    theirs = file(released, "items-held-out-released.jsonl", "clauses@2")
    records = {one.model: one for one in verdict_of(released, "clauses@2").evaluated}
    assert records["released"].digest == digest_bytes(theirs) and records["released"].items == records["run"].items
    own = parse_items(file(released, "items.jsonl", "clauses@2"))
    assert [item.base for item in parse_items(theirs)] == [item.base for item in own], "the same base answered"
    assert verdict_of(released, "clauses@2").results[1].outcome == "passed"
    assert released.verify()["local_findings"] == []
