"""With sealed folders beside an export, the auditor's program computes each verdict again, to the last byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.data.imports import ImportRequested
from appliance.domain.evaluation.gates import GatesFile
from appliance.domain.evaluation.items import encode_items, parse_items
from appliance.domain.evaluation.shipped.sets import list_shipped_rows
from appliance.domain.evaluation.verdict import VerdictInputs, conclude, parse_verdict
from appliance.formats.artifacts.manifest import MANIFEST_PATH
from appliance.formats.artifacts.rows import row_digest, rows_root, split_digests
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.log.trust import encode_trust
from scripts.kit.item_groups import Group, make_items
from scripts.kit.log_builder import STEPS, LogBuilder, manifest, stage
from tests.domain.evaluation.test_local_sets import GATES as ON_GENERAL
from tests.domain.evaluation.test_rules import AGAINST_RELEASED, GATES
from tests.domain.evaluation.test_sets import AGAINST_RELEASED as SET_AGAINST_RELEASED
from tests.domain.evaluation.test_sets import CLEAN
from tests.domain.evaluation.test_sets import ON_EXAM as SET_GATES
from tests.kit.cedar_policies import permitting
from tests.verifier.test_program import export_of, run
from tests.workflows.evaluation.test_verdicts import DIGESTS, ITEMS, LINES

pytestmark = pytest.mark.thorough

ROWS = {"rows.jsonl": b"".join(line + b"\n" for line in LINES), "row_digests.bin": b"".join(DIGESTS)}


class Desk:
    """An auditor's: the export, the trust file, and the sealed folders of clauses@1, clauses@2 and their dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site = folder, stage("staffed", permitting()).fork()
        self.site.import_base()
        requested = self.site.ordered(ImportRequested(policy=self.site.in_force), self.site.dataset_order())
        facts = {"rows": len(LINES), "held_out_rows": len(ITEMS), "dataset_kind": "classification"}
        body = self.site.dataset_imported(requested, root=f"sha256:{rows_root(DIGESTS).hex()}", facts=facts)
        listed = manifest("clauses", 1, ROWS)
        self.site.add(body, documents={"manifest": listed})
        self.lay("rows", {**ROWS, MANIFEST_PATH: listed})

    def seal(
        self,
        items: bytes,
        version: int = 1,
        verdict: bytes | None = None,
        gates: GatesFile = GATES,
        sets: dict[str, bytes] | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> str:
        own = parse_items(items)
        calibration = conclude(
            gates, own, VerdictInputs({"held-out": own}, {("released", "held-out"): None}, {})
        ).calibration
        assert calibration is not None
        run = self.site.train(gates=gates)
        sets, metrics = sets or {}, metrics or {}
        evaluated = self.site.evaluate(run, items, sets, metrics) | ({} if verdict is None else {"verdict": verdict})
        beside = {"calibration.json": calibration}
        entry = self.site.seal(run, version, items=items, verdict=evaluated, files=beside, sets=sets, metrics=metrics)
        files = {"items.jsonl": items, **sets, **beside, "steps.jsonl": STEPS, "recipe.json": b"{}"}
        files |= {f"{role}.json": data for role, data in evaluated.items()}
        listed = self.site.documents[parse_entry(entry.encoded).documents["manifest"]]
        self.lay(f"clauses-{version}", {**files, MANIFEST_PATH: listed})
        return run

    def import_set(self, rows: dict[str, bytes]) -> None:
        """Import the validation set exam@1, in the folder exam."""
        self.site.enrol("vera", "validator")
        requested = self.site.ordered(ImportRequested(policy=self.site.in_force), self.site.set_order())
        facts = {"dataset_kind": "classification", "rows": len(rows["rows.jsonl"].splitlines())}
        root = f"sha256:{rows_root(split_digests(rows['row_digests.bin'])).hex()}"
        listed = manifest("exam", 1, rows)
        body = self.site.set_imported(requested, root=root, facts=facts)
        self.site.add(body, documents={"manifest": listed})
        self.lay("exam", {**rows, MANIFEST_PATH: listed})

    def lay(self, name: str, files: dict[str, bytes]) -> None:
        (self.folder / name).mkdir()
        for path, data in files.items():
            (self.folder / name / path).write_bytes(data)

    def verify(self, capsys: pytest.CaptureFixture[str], *folders: str) -> tuple[int, str]:
        export, trust = self.folder / "ledger.tar", self.folder / "trust.json"
        export.write_bytes(export_of(self.site))
        trust.write_bytes(encode_trust(self.site.trust))
        given = [word for name in folders for word in ("--folder", self.folder / name)]
        code, out, _ = run(capsys, export, "--trust", trust, *given)
        return code, " ".join(out.split())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_verdict_is_computed_again_from_its_folder(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.seal(encode_items(ITEMS))
    code, out = desk.verify(capsys, "clauses-1", "rows")
    assert code == 0, out
    assert "clauses@1: verdict and items hold, computed again from" in out and "not checked" not in out
    code, out = desk.verify(capsys, "clauses-1")
    assert code == 0 and "not checked rows of clauses@1: give the folder of its dataset clauses@1, too" in out


def test_a_verdict_that_the_items_do_not_give_fails(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """One that the log's rules cannot tell from the right one."""
    run = desk.site.request_run(gates=GATES)
    right = parse_verdict(desk.site.evaluate(run, encode_items(ITEMS))["verdict"])
    first = right.results[0].model_copy(update={"upper": "0.999999999"})
    typed = encode_value(right.model_copy(update={"results": (first,)}))
    desk.seal(encode_items(ITEMS), verdict=typed)
    assert desk.verify(capsys)[0] == 0, "without the folder nothing speaks against it"
    code, out = desk.verify(capsys, "clauses-1", "rows")
    assert code == 6
    assert "clauses@1, verdict: expected what its items give, got another one" in out


@pytest.mark.parametrize("change", ["dropped", "reordered", "typed-in", "missing"])
def test_items_that_were_changed_on_disk_fail(desk: Desk, capsys: pytest.CaptureFixture[str], change: str) -> None:
    desk.seal(encode_items(ITEMS))
    path = desk.folder / "clauses-1" / "items.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "dropped": lines[1:],
        "reordered": lines[::-1],
        "typed-in": [lines[0].replace(b'"right":true', b'"right":false', 1), *lines[1:]],
    }
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(b"".join(changed[change]))
    code, out = desk.verify(capsys, "clauses-1", "rows")
    assert code == 6, out
    assert "items.jsonl: expected" in out


def test_items_of_rows_that_the_dataset_does_not_hold_out_fail(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Sealed so by who owns the machine: as many, but others."""
    other = make_items([Group(len(ITEMS), adapter=True, base=False)])
    desk.seal(encode_items(other))
    assert desk.verify(capsys, "clauses-1")[0] == 0
    code, out = desk.verify(capsys, "clauses-1", "rows")
    assert code == 6 and f"got {len(ITEMS)} of them missing and {len(ITEMS)} that are not of the set" in out


def test_what_it_was_compared_with_is_asked_for_and_without_it_nothing_is_verified(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.seal(encode_items(ITEMS))
    _release(desk.site)
    desk.seal(
        encode_items(make_items([Group(60, True, True)], rows=[item.row for item in ITEMS])), 2, gates=AGAINST_RELEASED
    )
    code, out = desk.verify(capsys, "clauses-2", "rows")
    assert code == 7 and "give the folder of the adapter that it is compared with (released), too" in out
    code, out = desk.verify(capsys, "clauses-2", "clauses-1", "rows")
    assert code == 0, out


EXAM = [encode_canonical({"split": "held-out", "text": f"exam {n}"}) for n in range(60)]
EXAM_DIGESTS = [row_digest(bytes(32), n, line) for n, line in enumerate(EXAM)]
EXAM_ROWS = {"rows.jsonl": b"".join(line + b"\n" for line in EXAM), "row_digests.bin": b"".join(EXAM_DIGESTS)}
ON_EXAM = encode_items(
    make_items([Group(30, adapter=True, base=False), Group(30, True, True)], rows=[one.hex() for one in EXAM_DIGESTS])
)
"""Items of the rows of a validation set."""


def test_a_verdict_on_a_validation_set_is_computed_again_and_its_rows_are_those_of_the_set(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.import_set(EXAM_ROWS)
    desk.seal(encode_items(ITEMS))
    _release(desk.site)
    sets = {"items-exam.jsonl": ON_EXAM, "items-exam-released.jsonl": ON_EXAM}
    desk.seal(encode_items(ITEMS), 2, gates=SET_AGAINST_RELEASED, sets=sets, metrics=CLEAN)
    code, out = desk.verify(capsys, "clauses-2", "rows", "exam")
    assert code == 0, out
    assert "clauses@2: verdict and items hold" in out and "not checked" not in out
    code, out = desk.verify(capsys, "clauses-2", "rows")
    assert code == 0 and "rows of clauses@2: give the folder of its validation-set exam@1, too" in out
    (desk.folder / "clauses-2" / "items-exam-released.jsonl").write_bytes(ON_EXAM[:-1])
    code, out = desk.verify(capsys, "clauses-2", "rows", "exam")
    assert code == 6 and "items-exam-released.jsonl: expected sha256:" in out


def test_items_that_are_not_of_the_rows_of_a_validation_set_fail(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.import_set(EXAM_ROWS)
    other = encode_items(make_items([Group(60, adapter=True, base=False)]))
    desk.seal(encode_items(ITEMS), gates=SET_GATES, sets={"items-exam.jsonl": other}, metrics=CLEAN)
    assert desk.verify(capsys, "clauses-1", "rows")[0] == 0
    code, out = desk.verify(capsys, "clauses-1", "rows", "exam")
    assert code == 6 and "items-exam.jsonl: expected the 60 rows of the set, got 60 of them missing" in out


def _release(site: LogBuilder) -> None:
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    site.activate()


def test_a_folder_of_another_log_is_named(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.seal(encode_items(ITEMS))
    desk.lay("other", {MANIFEST_PATH: manifest("clauses", 1, {"w": b"others"})})
    code, out = desk.verify(capsys, "other")
    assert code == 6 and "expected a manifest that an adapter, a dataset or a validation set of this log has" in out
    (desk.folder / "empty").mkdir()
    code, out = desk.verify(capsys, "empty")
    assert code == 6 and "a sealed folder does not fit the log: folder" in out
    assert f"/empty: file, {desk.folder / 'empty' / MANIFEST_PATH}: expected a readable file, got No such file" in out


def test_a_mistyped_folder_is_no_fault_of_the_log(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.seal(encode_items(ITEMS))
    assert desk.verify(capsys, "clauses-1")[0] == 0
    export, trust, folder = (desk.folder / name for name in ("ledger.tar", "trust.json", "clauses-l"))
    code, out, err = run(capsys, export, "--trust", trust, "--folder", folder)
    assert (code, out) == (2, "")
    assert err == f"appliance-verify: folder, {folder}: expected a sealed folder, got none\n"


def test_items_of_a_set_that_comes_with_the_appliance_must_be_of_its_rows(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    for version, rows in enumerate((list_shipped_rows("general"), [f"{number:064x}" for number in range(200)]), 1):
        general = encode_items(make_items([Group(200, adapter=True, base=True)], rows=rows))
        desk.seal(encode_items(ITEMS), version, gates=ON_GENERAL, sets={"items-general.jsonl": general})
    code, out = desk.verify(capsys, "clauses-1", "rows")
    assert code == 0 and "not checked" not in out, out
    code, out = desk.verify(capsys, "clauses-2", "rows")
    assert code != 0 and "clauses@2, items-general.jsonl: expected the 200 rows of the set" in out
