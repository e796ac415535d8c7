"""Commands of sample views and trials, and their entries; the test makes the worker's answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.records.runs import Adapter
from appliance.errors import Unavailable
from appliance.formats.core.commitment import commit
from appliance.formats.core.fields import parse_base64
from appliance.formats.signatures.dsse import parse_envelope
from appliance.workflows.core.jobs import Jobs
from appliance.workflows.serving import previews
from tests.cli.conftest import Desk, one_line
from tests.kit.founded import FILES, HELD_OUT

PROMPT = "May the tenant of Zyxwolf sublet?"


def _answered(
    context: Any, preview: Any, adapter: Adapter, released: Adapter | None, questions: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    models = ["adapter", *(["released"] if released else []), *(["base"] if preview.kind == "samples" else [])]

    def answer(model: str, number: int) -> dict[str, Any]:
        told = {"model": model, "code": None, "text": "AB"[number % 2], "probability": "0.900000000"}
        return {**told, "finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": 1}

    return [[answer(model, number) for model in models] for number in range(len(questions))]


@pytest.fixture
def desk(open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch) -> Desk:
    opened = open_desk("sealed")
    opened.service.context.previews = Jobs("previews")
    monkeypatch.setattr(previews, "_ask", _answered)
    return opened


def _types(desk: Desk) -> list[str]:
    return [json.loads(entry)["type"] for entry in desk.site.entries]


def test_samples_are_printed_side_by_side_and_the_rows_are_drawn(desk: Desk, terminal: None) -> None:
    told = desk.as_("rita", "review", "samples", "clauses@1", "--count", "2", "--yes")
    assert told.code == 0, told.err
    assert told.out.count("expected:") == 2 and "Row 2 of 2" in told.out
    for words in ("held out", "clauses@1:  A  (0.900)", "base:       A  (0.900)"):
        assert words in told.out
    assert all(len(line) <= 80 for line in told.out.splitlines())
    assert "Shown to rita alone" in told.err
    assert _types(desk)[-2:] == ["samples.requested", "samples.shown"]


def _released_first(open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch, recipe: bytes) -> dict[str, Any]:
    """Return what is shown of a second version, of this recipe, while the first one serves legal."""
    desk = open_desk("released")
    desk.service.context.previews = Jobs("previews")
    monkeypatch.setattr(previews, "_ask", _answered)
    desk.site.seal(desk.site.train({"epochs": 2}), 2, files={**FILES, "recipe.json": recipe})
    told = desk.as_("rita", "review", "samples", "clauses@2", "--json", "--yes")
    assert told.code == 0, told.err
    return dict(json.loads(told.out))


def test_the_version_that_answers_now_is_asked_too(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _released_first(open_desk, monkeypatch, b'{"rank":16}')
    assert (found["released"], found["released_missing"]) == ("clauses@1", None)
    assert [one["model"] for one in found["rows"][0]["answers"]] == ["adapter", "released", "base"]


def test_a_version_on_another_form_of_the_base_is_left_out_and_that_is_said(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _released_first(open_desk, monkeypatch, b'{"quantisation":"none"}')
    assert found["released"] is None
    assert found["released_missing"] == "clauses@1, which serves now, is on another base, or in another form of it"


def test_the_same_rows_are_drawn_for_everybody(desk: Desk) -> None:
    rows = [
        [
            row["row"]
            for row in json.loads(desk.as_(who, "review", "samples", "clauses@1", "--json", "--yes").out)["rows"]
        ]
        for who in ("rita", "raul")
    ]
    assert rows[0] == rows[1] and len(set(rows[0])) == 5


def test_no_text_of_a_row_or_a_prompt_is_in_the_log(desk: Desk) -> None:
    assert desk.as_("rita", "review", "samples", "clauses@1", "--count", "20", "--yes").code == 0
    assert desk.as_("rita", "review", "try", "clauses@1", "--prompt", PROMPT, "--yes").code == 0
    log = b"".join(desk.site.entries) + b"".join(desk.site.documents.values())
    assert PROMPT.encode() not in log and b"Zyxwolf" not in log
    assert not any(str(row["text"]).encode() in log for row in HELD_OUT)
    assert all("Zyxwolf" not in text.text for text in desk.site.disclosures)


def test_a_report_written_after_a_preview_has_no_row_in_it(desk: Desk) -> None:
    assert desk.as_("rita", "review", "samples", "clauses@1", "--count", "20", "--yes").code == 0
    folder = desk.folder / "report"
    assert desk.as_("rita", "review", "report", "clauses@1", "--folder", str(folder)).code == 0
    written = b"".join(path.read_bytes() for path in Path(folder).iterdir())
    assert not any(str(row["text"]).encode() in written for row in HELD_OUT)


def test_a_try_binds_prompt_and_answer_by_keyed_digests(desk: Desk) -> None:
    told = desk.as_("rita", "review", "try", "clauses@1", "--prompt", PROMPT, "--json", "--yes")
    value = json.loads(told.out)
    entry = json.loads(desk.site.entries[-1])
    (answer,), (bound,) = value["answers"], entry["body"]["answers"]
    assert entry["type"] == "try.finished" and "text" not in bound
    assert bound["answer"] == commit(answer["text"], parse_base64(answer["salt"], "salt"))
    order = parse_envelope(desk.site.ledger.documents_of(value["entry"])["order"])
    assert commit(PROMPT, bytes.fromhex(answer["prompt_salt"])).encode() in order.payload
    assert value["entry"] == entry["index"] - 1


def test_who_may_not_is_told_so_before_anything_is_signed(desk: Desk) -> None:
    for who, words, said in (
        ("olga", ("samples", "clauses@1"), "olga is operator. This action needs reviewer or auditor."),
        ("audrey", ("try", "clauses@1", "--prompt", PROMPT), "audrey is auditor. This action needs reviewer"),
    ):
        told = desk.as_(who, "review", *words, "--yes")
        assert told.code == 3, told
        assert said in told.err
    assert "samples.requested" not in _types(desk) and "try.requested" not in _types(desk)


def test_a_failure_is_an_entry_with_a_code_and_no_message(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise Unavailable(f"answer to {PROMPT}: expected enough memory, got too little", code="out-of-memory")

    monkeypatch.setattr(previews, "_ask", fail)
    told = desk.as_("rita", "review", "try", "clauses@1", "--prompt", PROMPT, "--yes")
    assert told.code == 7 and "expected enough memory" in told.err
    entry = json.loads(desk.site.entries[-1])
    assert (entry["type"], entry["outcome"], entry["body"]["code"]) == ("try.finished", "failure", "out-of-memory")
    assert "Zyxwolf" not in desk.site.entries[-1].decode()


def test_a_prompt_is_asked_for_where_none_is_given_and_refused_without_a_terminal(desk: Desk) -> None:
    told = desk.as_("rita", "review", "try", "clauses@1", "--yes")
    assert told.code == 2 and "prompt: expected --prompt TEXT, got none" in one_line(told.err)
