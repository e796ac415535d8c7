"""Commands and output of a journey of operators, reviewers, units and auditors."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli import main
from appliance.cli.releases import reviews
from appliance.cli.support import caller
from appliance.domain.audit.report import UNBOUND
from appliance.domain.core.credentials import parse_token
from appliance.domain.core.names import encode_value
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from scripts.kit.log_builder import ORIGIN, b64, order_of, policy_digest
from tests.cli.conftest import Desk, one_line
from tests.kit.founded import FILES, copied_policy, policy_set

RECIPE = "name: clauses\nbase: smollm2\ndataset: clauses@1\nrank: 8\n"


def _recipe(desk: Desk, name: str = "recipe.yaml", text: str = RECIPE) -> str:
    path = desk.folder / name
    path.write_text(text)
    return str(path)


def test_an_operator_imports_a_base_that_was_hashed_here(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    (desk.folder / "m.gguf").write_bytes(b"gguf")
    words = ["base", "import", str(desk.folder / "m.gguf"), "--name", "smollm2", "--licence", "Apache-2.0", "--yes"]
    told = desk.as_("olga", *words, "--no-wait", "--json")
    assert told.code == 0, told.err
    receipt = json.loads(told.out)
    assert receipt["type"] == "import.requested"
    assert list(desk.service.uploads.values()) == [b"gguf"]
    assert "Apache-2.0" in told.err and "You vouch for the source" in told.err


def test_a_failed_import_fails_the_command_with_the_workers_words(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.client import imports

    def fail(connection: object, order: str, told: object) -> None:
        raise BadInput(
            "import of base:smollm2: base, evil.bin: expected safetensors, got a pickle", code="base-refused"
        )

    monkeypatch.setattr(imports, "wait_for_import", fail)
    desk = open_desk("staffed")
    (desk.folder / "m.gguf").write_bytes(b"gguf")
    told = desk.as_(
        "olga", "base", "import", str(desk.folder / "m.gguf"), "--name", "smollm2", "--licence", "MIT", "--yes"
    )
    assert told.code == 2
    error, manual = told.err.splitlines()[-2:]
    assert error.endswith("got a pickle [base-refused]")
    assert manual.endswith("docs/reference/errors.md (section base-refused)")


def test_an_import_that_will_be_refused_is_so_before_a_byte_is_sent_and_says_all_at_once(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("imported")
    (desk.folder / "rows.csv").write_bytes(b"text,label\na,b\n")
    (desk.folder / "m.gguf").write_bytes(b"gguf")
    rows = ("dataset", "import", str(desk.folder / "rows.csv"), "--owner", "Legal", "--yes")
    words = ("--name", "notes", "--base", "smolm2", "--licence", "Apache2", "--classification", "intrenal")
    told = desk.as_("olga", *rows, *words)
    assert told.code == 3
    for said in ("got smolm2", "did you mean Apache-2.0", "did you mean internal"):
        assert said in told.err
    words = ("--name", "My Notes", "--base", "smollm2", "--licence", "MIT", "--classification", "internal")
    told = desk.as_("olga", *rows, *words, "--held-out", "20", "--column", "txt=clause")
    assert told.code == 2 and "lower-case letters, digits and hyphens" in told.err and "pattern" not in told.err
    assert (
        "column 'txt'" in told.err
        and "held_out: expected a share above 0 and at most 0.9, such as 0.2, got '20'" in told.err
    )
    base = ("base", "import", str(desk.folder / "m.gguf"), "--yes", "--licence", "apache-2.0", "--name")
    told = desk.as_("olga", *base, "smollm2")
    assert (
        told.code == 3
        and "A base model with the name smollm2 was imported." in told.err
        and "did you mean Apache-2.0" in told.err
    )
    told = desk.as_("olga", *base, "Smol LM")
    assert told.code == 2 and "did you mean 'smol-lm'?" in told.err
    assert desk.service.uploads == {} and desk.ordered() == 0


def test_what_the_rules_would_refuse_is_refused_before_it_is_signed(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    told = desk.as_("anna", "principal", "grant", "olga", "release-owner:lgal", "--yes")
    assert told.code == 3 and "lgal" in told.err and "You are about to sign" not in told.err
    assert desk.ordered() == 0


def test_a_dataset_import_shows_every_term_before_it_is_signed(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.client import imports as checks
    from tests.cli.test_rows import FOUND

    monkeypatch.setattr(checks, "check_rows", lambda *found, keep: FOUND)  # the founded base has no tokenizer
    desk = open_desk("imported")
    (desk.folder / "rows.csv").write_bytes(b"clause,kind\na,b\n")
    told = desk.as_(
        "olga", "dataset", "import", str(desk.folder / "rows.csv"), "--name", "notes", "--base", "smollm2",
        "--column", "text=clause", "--column", "label=kind", "--owner", "Legal Example", "--licence", "CC0-1.0",
        "--classification", "internal", "--instruction", "Name it.", "--no-wait", "--yes",
    )  # fmt: skip
    assert told.code == 0, told.err
    for text in ("clause", "kind", "Legal Example", "CC0-1.0", "internal", "Name it.", "0.2"):
        assert text in told.err


def test_several_recipes_are_shown_first_and_queued_in_their_order(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    second = _recipe(desk, "second.yaml", RECIPE.replace("rank: 8", "rank: 4"))
    told = desk.as_("olga", "run", "start", _recipe(desk), second, "--yes", "--json")
    assert told.code == 0, told.err
    assert [run["run"] for run in json.loads(told.out)] == ["r-000001", "r-000002"]
    assert (
        told.err.index("You are about to sign") < told.err.rindex("You are about to sign") < told.err.index("signed:")
    )
    assert "epochs:" in told.err and "2  (auto)" in told.err
    assert "appliance run show r-000001 --follow" in told.err


def test_one_recipe_that_is_off_starts_none(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    bad = _recipe(desk, "bad.yaml", RECIPE + "rnak: 3\n")
    told = desk.as_("olga", "run", "start", _recipe(desk), bad, "--yes")
    assert told.code == 2
    assert "bad.yaml" in told.err and "did you mean 'rank'" in told.err
    assert len(desk.site.state.runs) == 0


def test_a_follow_asks_for_no_passphrase_while_a_session_is_open(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    assert desk.as_("olga", "run", "list").code == 0, "opens a session"
    told = desk.type("run", "show", "r-000001", "--follow", "--as", "olga", "--key", str(desk.key("olga")))
    assert told.code == 0, told.err
    assert "Passphrase" not in told.err and "sealed" in told.out


def test_an_unknown_run_is_not_cancelled_and_the_nearest_is_named(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    told = desk.as_("olga", "run", "cancel", "r-000002", "--yes")
    assert told.code == 4 and told.err.count("r-000002") == 1, told.err
    assert "expected one of r-000001" in told.err and "did you mean r-000001?" in told.err
    assert "You are about to sign" not in told.err and desk.ordered() == 0
    told = desk.as_("olga", "dataset", "show", "clause@1")
    assert told.code == 4 and "did you mean clauses@1?" in told.err
    told = desk.as_("rita", "review", "show", "clause@1")
    assert told.code == 4 and "did you mean clauses@1?" in told.err


def test_a_run_is_followed_to_its_seal(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    told = desk.as_("olga", "run", "show", "r-000001", "--follow")
    assert told.code == 0
    assert "trains: 2 of 2 steps, loss 0.250" in told.err
    assert "next: a reviewer types: appliance review show clauses@1" in told.err
    assert told.out.splitlines()[-1].split() == ["r-000001", "sealed", "clauses@1"]


RUINED = {
    "base": {"accuracy": "0.428571", "loss": "2.100000"},
    "adapter": {"accuracy": "0.285714", "loss": "10.800000"},
    "majority": {"accuracy": "0.428571", "rows": 21},
    "training": {"first_loss": "2.000000", "last_loss": "9.500000"},
}


@pytest.mark.thorough
def test_a_ruined_adapter_is_told_to_be_one_wherever_it_is_shown(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("trained")
    files = FILES | {"metrics.json": encode_canonical(RUINED)}
    body, documents = desk.site.sealing("r-000001", 1, files=files, metrics=RUINED)
    desk.site.lay(documents["manifest"], files)
    desk.site.add(body, documents=documents)
    folder = desk.folder / "report"
    shown = {
        "follow": desk.as_("olga", "run", "show", "r-000001", "--follow").err,
        "show": desk.as_("olga", "run", "show", "r-000001").out,
        "list": desk.as_("rita", "review", "list").err,
        "review": desk.as_("rita", "review", "show", "clauses@1").out,
    }
    assert desk.as_("olga", "run", "report", "r-000001", "--folder", str(folder)).code == 0
    shown["report"] = (folder / "report.md").read_text()
    for where, text in shown.items():
        for said in ("worse than its base", "the majority class", "rose from 2.000 to 9.500", "far above its base's"):
            assert said in one_line(text).lower(), where
        assert "0.286, its base 0.429, the majority class 0.429" in text, where
    for person, words in (("olga", ("run", "show", "r-000001")), ("rita", ("review", "show", "clauses@1"))):
        assert len(json.loads(desk.as_(person, *words, "--json").out)["warnings"]) == 4
    assert len(json.loads(desk.as_("rita", "review", "list", "--json").out)[0]["warnings"]) == 4


def test_a_run_that_was_not_sealed_fails_the_command(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    desk.service.bend["/v1/runs/r-000001/progress"] = lambda a: {**a, "status": "failed", "detail": "out of memory"}
    told = desk.as_("olga", "run", "show", "r-000001", "--follow")
    assert told.code == 5
    assert "r-000001: expected it sealed, got failed: out of memory" in told.err


@pytest.mark.thorough
def test_a_run_shows_its_steps_and_its_report_is_what_the_ledger_binds(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    shown = desk.as_("olga", "run", "show", "r-000001").out
    for text in ("2 of 2", "0.250, at first 1.500", "80 tokens a second over 1 s", "5 MB"):
        assert text in shown
    folder = desk.folder / "report"
    told = desk.as_("olga", "run", "report", "r-000001", "--folder", str(folder))
    assert told.code == 0, told.err
    assert "proved" in told.out
    data = (folder / "steps.jsonl").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.md", "steps.jsonl", "training.png", "training.svg",
    ]  # fmt: skip
    text = (folder / "report.md").read_text()
    assert hashlib.sha256(data).hexdigest() in text and "| seed | 1 |" in text
    assert desk.as_("olga", "run", "report", "r-000001", "--folder", str(folder)).code == 5


def test_steps_that_the_ledger_does_not_bind_make_no_report(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    desk.service.spoil("clauses@1", "steps.jsonl", FILES["steps.jsonl"].replace(b'"1.500000"', b'"1.400000"'))
    folder = desk.folder / "report"
    told = desk.as_("olga", "run", "report", "r-000001", "--folder", str(folder))
    assert told.code == 6
    assert "steps.jsonl of r-000001: expected sha256:" in told.err
    assert desk.as_("olga", "run", "show", "r-000001").code == 6
    assert not folder.exists()


def test_without_the_tracker_nothing_is_exported(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    folder = desk.folder / "tracked"
    words = ("run", "export", "r-000001", "--to", "wandb", "--folder", str(folder))
    told = desk.as_("olga", *words)
    assert told.code == 7
    assert "expected it to be installed for this Python, got none" in told.err
    told = desk.as_("olga", *words, "--python", "/nowhere")
    assert told.code == 7 and "/nowhere: expected it to run" in told.err
    half = desk.folder / "python"
    half.write_text('#!/bin/sh\nfor last; do :; done\nmkdir "$last/wandb"\necho half > "$last/wandb/run"\nexit 1\n')
    half.chmod(0o755)
    told = desk.as_("olga", *words, "--python", str(half))
    assert told.code == 7 and "wandb_run: expected the program to succeed" in told.err
    assert not any("tracked" in path.name for path in desk.folder.iterdir())


@pytest.mark.thorough
def test_a_run_that_waits_has_its_place_in_the_queue(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    words = ("run", "start", _recipe(desk), _recipe(desk, "second.yaml"), _recipe(desk, "third.yaml"), "--yes")
    assert desk.as_("olga", *words).code == 0
    assert desk.as_("olga", "run", "cancel", "r-000002", "--yes").code == 0
    listed = desk.as_("olga", "run", "list").out.splitlines()[1:]
    assert ["queued, 1 of 2" in listed[0], "cancelled" in listed[1], "queued, 2 of 2" in listed[2]] == [True] * 3
    rows = json.loads(desk.as_("olga", "run", "list", "--json").out)
    assert [row["place"] for row in rows] == [1, None, 2]


def test_a_run_is_cancelled_by_the_one_who_ordered_it(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("trained")
    assert desk.as_("olga", "run", "cancel", "seven", "--yes").code == 2
    told = desk.as_("olga", "run", "cancel", "r-000001", "--yes")
    assert told.code == 0, told.err
    assert "cancelled" in desk.as_("olga", "run", "list").out


def test_an_import_under_way_is_listed_and_cancelled_by_what_it_imports(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    requested = order_of(desk.site.request_import("another"))
    listed = json.loads(desk.as_("ines", "import", "list", "--json").out)
    assert [(row["subject"], row["status"]) for row in listed][-1] == ("base:another", "requested")
    assert desk.as_("ines", "import", "cancel", "base:other", "--yes").code == 4
    told = desk.as_("ines", "import", "cancel", "base:another", "--yes")
    assert told.code == 0, told.err
    record = desk.site.state.imports.get(requested)
    assert record is not None and record.status == "cancelled"
    assert "cancelled" in desk.as_("ines", "import", "list").out
    told = desk.as_("ines", "import", "cancel", requested, "--yes")
    assert told.code == 4 and "expected one that waits or runs, and none does; type: appliance import list" in told.err


def test_a_reviewer_reads_what_a_signature_binds_and_then_signs_it(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    row = desk.site.state.adapters.get("clauses@1")
    assert row is not None
    shown = desk.as_("rita", "review", "show", "clauses@1", "--trust", str(desk.trust))
    assert shown.code == 0, shown.err
    for text in (row.manifest, "adapter_model.safetensors", "accuracy = 0.9000", "ordered by olga", "the trust file"):
        assert text in shown.out
    words = ("review", "approve", "clauses@1", "--unit", "legal", "--meaning", "No personal data.")
    told = desk.as_("rita", *words, "--yes")
    assert told.code == 0, told.err
    assert "No personal data." in one_line(told.out)
    listed = desk.as_("rita", "review", "list", "--unit", "legal")
    assert "rita (privacy, legal)" in listed.out


def test_the_meaning_is_asked_for_and_bound_as_it_was_typed(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("sealed")
    monkeypatch.setattr(caller, "is_interactive", lambda: True)
    monkeypatch.setattr(reviews, "is_interactive", lambda: True)
    words = ["review", "reject", "clauses@1", "--unit", "legal", *desk.options("raul")]
    result = CliRunner().invoke(main.cli, words, input="It names a client.\ny\n")
    assert result.exit_code == 0, result.stderr
    assert "What your signature means" in result.stderr
    assert "meaning:" in result.stdout and "It names a client." in result.stdout
    assert "It names a client." in {found.text for found in desk.site.disclosures}


@pytest.mark.parametrize("decision", ["approve", "reject"])
@pytest.mark.parametrize(("words", "said"), [(("--yes",), "--yes answers no question"), ((), "no terminal to ask at")])
def test_a_decision_without_a_meaning_is_not_signed_where_nobody_is_asked(
    open_desk: Callable[[str], Desk], decision: str, words: tuple[str, ...], said: str
) -> None:
    desk = open_desk("sealed")
    told = desk.as_("rita", "review", decision, "clauses@1", "--unit", "legal", *words)
    assert told.code == 2 and desk.ordered() == 0
    assert "expected --meaning TEXT" in told.err and said in told.err
    assert "hashes" not in told.err  # nothing was downloaded for it


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--valid-until", "2027-02-30"), "expected a day that exists"),
        (("--valid-until", "2020-01-01"), "expected a time after"),
        (("--valid-until", "9000d"), "and, by policy, not after"),
        (("--review-function", "law"), "law is not your review function. Choose privacy"),
        (("--meaning", " "), "got an empty text"),
        (("--unit", "nobody"), "unit: expected one of legal, sales, got 'nobody'"),
    ],
)
def test_a_decision_that_cannot_count_is_refused(
    open_desk: Callable[[str], Desk], words: tuple[str, ...], said: str
) -> None:
    desk = open_desk("sealed")
    given = ("--unit", "legal", "--meaning", "Fit.", *words)
    told = desk.as_("rita", "review", "approve", "clauses@1", *given, "--yes")
    assert told.code in (2, 3)
    assert said in told.err
    row = desk.site.state.adapters.get("clauses@1")
    assert row is not None and row.reviews == ()


def test_a_changed_byte_stops_review_and_release_before_anything_is_signed(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    desk.service.spoil("clauses@1", "adapter_model.safetensors", b"weightz")
    for name, words in (
        ("rita", ("review", "show", "clauses@1")),
        ("rita", ("review", "approve", "clauses@1", "--unit", "legal", "--meaning", "Fit.", "--yes")),
        ("otto", ("release", "activate", "clauses@1", "--unit", "legal", "--served-model", "labels", "--yes")),
    ):
        told = desk.as_(name, *words)
        assert told.code == 6
        assert "adapter_model.safetensors: expected sha256:" in told.err
    assert desk.ordered() == 0


def _approve(desk: Desk) -> None:
    for name in ("rita", "raul"):
        terms = ("--unit", "legal", "--meaning", "Fit.", "--valid-until", "9d")
        told = desk.as_(name, "review", "approve", "clauses@1", *terms, "--yes")
        assert told.code == 0, told.err


@pytest.mark.thorough
def test_a_release_is_activated_listed_and_taken_back(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    words = ("release", "activate", "clauses@1", "--unit", "legal", "--served-model", "labels", "--yes")
    denied = desk.as_("otto", *words)
    assert denied.code == 3 and "Adapter clauses@1 needs 2 valid approvals for legal and has 0." in denied.err
    assert "Signed content" not in denied.err and "You are about to sign" not in denied.err
    _approve(desk)
    told = desk.as_("otto", *words)
    assert told.code == 0, told.err
    assert told.err.index("Signed content") < told.err.index("You are about to sign") < told.err.index("signed:")
    assert "served by:     clauses@1" in told.out
    assert "clauses@1" in desk.as_("otto", "release", "history", "--unit", "legal").out
    back = desk.as_("otto", "release", "rollback", "--unit", "legal", "--served-model", "labels", "--yes")
    assert back.code == 4 and "expected an earlier adapter than clauses@1" in back.err
    told = desk.as_("rita", "adapter", "revoke", "clauses@1", "--reason", "leaks", "--yes")
    assert told.code == 0, told.err
    history = desk.as_("audrey", "adapter", "show", "clauses@1").out
    for kind in (
        "run.requested",
        "run.started",
        "adapter.sealed",
        "review.recorded",
        "release.activated",
        "adapter.revoked",
    ):
        assert kind in history
    assert "clauses@1" in desk.as_("audrey", "adapter", "list").out


def test_a_unit_gets_a_token_on_stdout_and_nothing_else(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("legal", "token", "issue", "--minutes", "5")
    assert told.code == 0
    assert parse_token(told.out.removesuffix("\n")).payload
    assert "It acts for the unit: keep it secret." in told.err
    offline = desk.type("token", "issue", "--origin", ORIGIN, *desk.options("legal"), "--home", "/nowhere")
    assert offline.code == 0
    assert desk.as_("legal", "token", "issue", "--minutes", "61").code == 2


def test_a_person_who_is_no_unit_gets_no_token(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    for name, roles in (("rita", "reviewer:privacy"), ("audrey", "auditor")):
        told = desk.as_(name, "token", "issue")
        assert (told.code, told.out) == (3, ""), told
        assert f"expected the name of a unit, got {name}, with {roles}" in one_line(told.err)


def test_the_log_is_a_table_lines_of_json_or_csv(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    table = desk.as_("audrey", "ledger", "log", "--type", "base.imported")
    assert table.out.splitlines()[1].split()[2:5] == ["base.imported", "service", "success"]
    rows = [json.loads(line) for line in desk.as_("audrey", "ledger", "log", "--json").out.splitlines()]
    assert [row["index"] for row in rows] == list(range(len(desk.site.entries)))
    text = desk.as_("audrey", "ledger", "log", "--actor", "ben", "--csv").out
    read = list(csv.DictReader(io.StringIO(text)))
    assert {row["actor"] for row in read} == {"ben"}
    last = desk.as_("audrey", "ledger", "log", "--last", "2", "--json").out.splitlines()
    assert [json.loads(line)["index"] for line in last] == [row["index"] for row in rows[-2:]]
    limited = desk.as_("audrey", "ledger", "log", "--after", "3", "--limit", "2", "--json").out.splitlines()
    assert [json.loads(line)["index"] for line in limited] == [4, 5]
    until = desk.as_("audrey", "ledger", "log", "--until", "2020-01-01", "--json")
    assert (until.code, until.out) == (0, "")
    assert desk.as_("audrey", "ledger", "log", "--csv", "--json").code == 2
    assert desk.as_("audrey", "ledger", "log", "--since", "yesterday").code == 2


def test_an_entry_is_shown_with_its_order_in_words_and_its_document_byte_for_byte(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("imported")
    index = str(len(desk.site.entries) - 2)
    told = desk.as_("audrey", "ledger", "show", index, "--trust", str(desk.trust))
    assert told.code == 0, told.err
    assert "action: import-dataset" in told.out and "owner: Legal Example" in told.out
    assert f"entry {index} is in the log of {len(desk.site.entries)} entries" in told.err
    raw = desk.as_("audrey", "ledger", "show", index, "--document", "order").out
    assert raw.encode() in desk.site.documents.values()
    value = json.loads(desk.as_("audrey", "ledger", "show", index, "--json").out)
    assert value["type"] == "import.requested" and "order" in value["contents"]


def test_an_export_is_written_once(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    path = str(desk.folder / "log.tar")
    told = desk.as_("audrey", "ledger", "export", path)
    assert told.code == 0
    assert f"appliance-verify {path} --trust" in told.err
    assert desk.as_("audrey", "ledger", "export", path).code == 5


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, "18 entries, "),
        (
            {"verdict": "failed", "findings": [{"index": 2, "rule": "chain", "message": "broken"}]},
            6,
            "failed: entry 2 is the first that does not hold\nfinding:               an entry was changed, ",
        ),
        ({"verdict": "failed", "local_findings": ["projection x differs"]}, 6, "projection x differs"),
        ({"verdict": "unverifiable", "trust": None, "unchecked": ["no trust file"]}, 7, "no trust file"),
    ],
)
def test_only_a_verified_log_succeeds_and_the_counts_are_printed(
    open_desk: Callable[[str], Desk], changes: dict[str, object], code: int, said: str
) -> None:
    desk = open_desk("staffed")
    desk.service.bend["/v1/ledger/verify"] = lambda report: {**report, **changes}
    told = desk.as_("audrey", "ledger", "verify", "--trust", str(desk.trust))
    assert told.code == code
    assert said in told.out
    value = json.loads(desk.as_("audrey", "ledger", "verify", "--json", "--trust", str(desk.trust)).out)
    assert value["verdict"] == changes.get("verdict", "verified")


@pytest.mark.thorough
def test_a_report_of_many_findings_is_short_unless_all_are_asked_for(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    unbound = {"index": None, "rule": "unbound-text", "message": f"disclosure x: {UNBOUND}"}
    findings = [{"index": 2, "rule": "chain", "message": "entry 2: other"}, *[unbound] * 45]
    local = [f"projection {number} differs" for number in range(30)]
    changes = {"verdict": "failed", "findings": findings, "local_findings": local}
    desk.service.bend["/v1/ledger/verify"] = lambda report: {**report, **changes}
    told = desk.as_("audrey", "ledger", "verify", "--trust", str(desk.trust))
    lines = told.out.splitlines()
    assert told.code == 6 and len(lines) <= 25
    assert lines[0].split(maxsplit=1)[1] == "failed: entry 2 is the first that does not hold"
    said = one_line(told.out)
    assert "45 texts have no entry that binds them" in said and "more of this machine's own" in said
    whole = desk.as_("audrey", "ledger", "verify", "--all", "--wide", "--trust", str(desk.trust)).out
    assert whole.count(UNBOUND) == 45 and whole.count("projection") >= 30


def _policy(desk: Desk, **parameters: object) -> Path:
    folder = copied_policy(desk.folder / "strict", **parameters)
    (folder / "tests.json").write_text('[{"name": "one", "action": "enrol", "expect": "deny"}]')
    return folder


@pytest.mark.thorough
def test_a_policy_is_shown_compared_tested_and_adopted_by_two(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    folder = str(_policy(desk, reviewers=3))
    assert policy_digest(policy_set()) in desk.as_("anna", "policy", "show").out
    assert '+  "reviewers": 3,' in desk.as_("anna", "policy", "diff", folder).out.splitlines()
    tested = desk.as_("anna", "policy", "test", folder)
    assert tested.code == 3
    assert "FAILED" in tested.out and "0 of 1 cases passed." in tested.err
    told = desk.as_("anna", "policy", "adopt", folder, "--yes", "--json")
    assert told.code == 0, told.err
    assert '+  "reviewers": 3,' in told.err.splitlines()
    shown = desk.as_("ben", "order", "show")
    assert shown.code == 0 and '+  "reviewers": 3,' in shown.err.splitlines()
    told = desk.as_("ben", "order", "countersign", json.loads(told.out)["order"], "--yes")
    assert told.code == 0, told.err
    assert '+  "reviewers": 3,' in told.err.splitlines()
    assert desk.site.state.parameters.reviewers == 3


def test_the_second_administrator_sees_the_changes_of_the_set_that_the_log_names_whatever_set_is_served(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("staffed")
    in_force, served = desk.site.state.site.policy, encode_value(policy_set(reviewers=9))
    assert desk.as_("anna", "policy", "adopt", str(_policy(desk, reviewers=3)), "--yes").code == 0
    lie = {"digest": digest_bytes(served), "document": b64(served)}
    desk.service.bend["/v1/policy"] = lambda answer: {**answer, **lie}
    (pending,) = (one.index for one in desk.site.state.pending.values())
    for words in (("show",), ("countersign", "--yes")):
        told = desk.as_("ben", "order", *words)
        assert told.code == 0 and '+  "reviewers": 3,' in told.err.splitlines(), told.err
        (warning,) = (line for line in told.err.splitlines() if line.startswith("warning: "))
        for text in (f"entry {pending} names {in_force}", f"serves {digest_bytes(served)}"):
            assert text in warning


def test_the_set_in_force_is_exported_edited_and_adopted_anew(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    folder = desk.folder / "default"
    told = desk.as_("anna", "policy", "export", str(folder))
    assert told.code == 0 and policy_digest(policy_set()) in told.out, told.err
    assert "No text differs." in desk.as_("anna", "policy", "diff", str(folder)).err
    parameters = folder / "parameters.json"
    parameters.write_text(parameters.read_text().replace('"reviewers": 2,', '"reviewers": 3,'))
    told = desk.as_("anna", "policy", "adopt", str(folder), "--yes", "--json")
    assert desk.as_("ben", "order", "countersign", json.loads(told.out)["order"], "--yes").code == 0
    assert desk.site.state.parameters.reviewers == 3
    told = desk.as_("anna", "policy", "export", str(folder))
    assert told.code != 0 and "expected a new folder, got an existing one" in told.err
    told = desk.as_("anna", "policy", "export", str(desk.folder / "other"))
    assert "it differs in its name" in told.err


def test_a_service_of_another_log_than_the_trust_files_is_refused(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    text = desk.trust.read_text()
    desk.trust.write_text(text.replace(ORIGIN, "bank.example/loh"))
    told = desk.as_("audrey", "ledger", "show", "0", "--trust", str(desk.trust))
    assert told.code in (2, 6)
    assert "trust file" in told.err


def test_why_a_run_failed_is_read_from_its_entry(open_desk: Callable[[str], Desk]) -> None:
    from appliance.domain.runs.training import RunFailed

    desk = open_desk("trained")
    message = desk.site.text("the worker ran out of memory")
    failed = desk.site.add(RunFailed(run="r-000001", code="out-of-memory", message=message))
    shown = desk.as_("olga", "run", "show", "r-000001").out
    assert "the worker ran out of memory" in shown
    entry = desk.as_("audrey", "ledger", "show", str(failed.index)).out
    assert "text of hmac-sha256:" in entry and "the worker ran out of memory" in entry
