"""Output of questions about the past: each answer names its entries and the next command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from appliance.cli.support.output import print_facts
from appliance.domain.core.entry import parse_entry
from appliance.domain.queries.periods import effective_access_during
from tests.cli.conftest import Desk, one_line


def test_a_log_that_a_limit_cuts_off_says_how_to_go_on(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    first = desk.as_("audrey", "ledger", "log", "--limit", "3")
    size = len(desk.site.entries)
    assert "Continue with: --after 2" in first.err
    last = desk.as_("audrey", "ledger", "log", "--last", "9", "--json")
    assert [json.loads(line)["index"] for line in last.out.splitlines()] == list(range(size - 9, size))
    assert f"Continue with: --before {size - 9} --last 9" in last.err
    whole = desk.as_("audrey", "ledger", "log", "--last", str(size))
    assert len(whole.out.splitlines()) == size + 1 and "Continue" not in whole.err
    before = desk.as_("audrey", "ledger", "log", "--before", "4", "--last", "2", "--json").out.splitlines()
    assert [json.loads(line)["index"] for line in before] == [2, 3]


def test_several_types_a_unit_and_an_outcome_are_asked_together(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    words = ("ledger", "log", "--type", "adapter.loaded", "--type", "release.activated", "--unit", "legal", "--json")
    rows = [json.loads(line) for line in desk.as_("audrey", *words, "--outcome", "success").out.splitlines()]
    assert [row["type"] for row in rows] == ["release.activated", "adapter.loaded"]
    assert desk.as_("audrey", *words, "--subject", "unit:sales").out == ""


def test_effective_access_names_adapter_reviewers_and_entries(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    told = desk.as_("audrey", "ledger", "effective-access", "legal", "--trust", str(desk.trust))
    assert told.code == 0, told.err
    assert "labels: could load clauses@1" in told.out
    assert "by rita (Rita Example), for privacy, until" in one_line(told.out)
    assert "asked for:  2 valid approvals of 2 different review functions" in told.out
    assert "was loaded:  clauses@1, entry" in told.out
    assert "Proved here: the" in told.err and "the trust file" in told.err
    value = json.loads(desk.as_("audrey", "ledger", "effective-access", "legal", "--json").out)
    assert value["served_models"][0]["effective_access"] is True
    desk.site.revoke("raul")
    gone = desk.as_("audrey", "ledger", "effective-access", "legal").out
    assert "labels: could not load clauses@1" in gone
    assert "refused:" in gone and "no longer valid: raul, who decided in entry" in gone


@pytest.mark.thorough
def test_a_span_has_each_answer_and_whose_approvals_it_rests_on(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    (reviewed, released) = (
        next(e.index for e in map(parse_entry, desk.site.entries) if e.type == kind)
        for kind in ("review.recorded", "release.activated")
    )
    revoked = desk.site.revoke("raul").index
    told = desk.as_("audrey", "ledger", "effective-access", "legal", "--since", "0")
    assert told.code == 0, told.err
    text = one_line(told.out)
    assert "as of entry 0: nothing: no adapter was released to it" in text
    assert f"as of entry {released}: labels: could load clauses@1; released by otto, entry {released};" in text
    assert f"approved by rita (privacy), entry {reviewed}, raul (model-risk)" in text
    assert f"as of entry {revoked}: labels: could not load clauses@1: " in text
    day = parse_entry(desk.site.entries[released]).time[:10]
    of_day = one_line(desk.as_("audrey", "ledger", "effective-access", "legal", "--since", day).out)
    assert f"as of entry {released}: labels: could load" in of_day, "a day begins with its midnight"
    periods = json.loads(desk.as_("audrey", "ledger", "effective-access", "legal", "--since", "0", "--json").out)[
        "periods"
    ]
    assert [period["as_of"] for period in periods if period["served_models"]] == [released, revoked]
    points = ("0", str(revoked))
    offline = effective_access_during(
        lambda: desk.site.entries, desk.site.documents.get, "legal", points, desk.site.now
    )
    words = ("--since", "0", "--until", str(revoked), "--json")
    online = json.loads(desk.as_("audrey", "ledger", "effective-access", "legal", *words).out)["periods"]
    assert [(one.as_of, one.answer.at) for one in offline.periods] == [(one["as_of"], one["at"]) for one in online]
    later = desk.as_(
        "audrey", "ledger", "effective-access", "legal", "--since", str(released), "--until", str(revoked - 1)
    )
    assert "could not" not in later.out and later.out.count("could load") == 1
    for words in (("--until", "now"), ("--since", "1h", "--at", "1h"), ("--since", "2199-01-01")):
        assert desk.as_("audrey", "ledger", "effective-access", "legal", *words).code == 2


def test_effective_access_names_the_folder_that_no_revocation_reaches(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    exported = desk.site.export()
    desk.site.revoke("raul")
    (folder,) = desk.site.state.exports.values()
    told, until = desk.as_("audrey", "ledger", "effective-access", "legal"), folder.valid_until
    said = f"until {until} from an exported folder, entry {exported.index}; no revocation reaches it"
    assert told.code == 0 and f"labels: could load clauses@1 {said}\n" in told.out
    assert "labels: could not load clauses@1\n" in told.out
    assert f"exported:  entry {exported.index}, {exported.time}" in told.out
    value = json.loads(desk.as_("audrey", "ledger", "effective-access", "legal", "--json").out)
    assert [one["index"] for one in value["exported"]] == [exported.index]
    assert exported.index in [named["entry"] for named in value["rests_on"]]


def test_every_entry_that_effective_access_names_is_proved(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("approved")
    last = str(desk.site.state.size - 1)
    told = desk.as_("audrey", "ledger", "effective-access", "legal", "--at", last)
    named = {int(number) for number in re.findall(r"entr(?:y|ies) (\d+)", told.out)}
    rests = told.out.partition("rests on entries:")[2]
    assert "not released: could not load clauses@1" in told.out and int(last) in named
    assert named <= {int(number) for number in re.findall(r"\d+", rests)}


def test_before_the_first_entry_a_unit_could_load_nothing(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    first = parse_entry(desk.site.entries[0]).time
    told = desk.as_("audrey", "ledger", "effective-access", "legal", "--at", "2020-11-24")
    assert told.code == 0 and f"\nnothing: the log begins on {first}\n" in told.out
    assert "Proved here: the 1 entries" not in told.err and "Proved here: the 1 entry" in told.err
    assert (
        json.loads(desk.as_("audrey", "ledger", "effective-access", "legal", "--at", "2020-11-24", "--json").out)[
            "log_begins"
        ]
        == first
    )


def test_a_unit_that_could_load_nothing_is_told_so_in_words(open_desk: Callable[[str], Desk]) -> None:
    told = open_desk("staffed").as_("audrey", "ledger", "effective-access", "legal")
    assert told.code == 0 and "\nnothing: no adapter was released to it or approved for it\n" in told.out


def test_a_mapping_among_facts_is_a_line_of_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("measured", {"accuracy": "0.9", "macro_f1": "0.8"})])
    assert capsys.readouterr().out == "measured:  accuracy 0.9, macro f1 0.8\n"


def test_the_state_is_facts_or_whole_in_json(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    slot = desk.site.state.slots.get("legal/labels")
    assert slot is not None
    released = str(slot.release)
    told = desk.as_("audrey", "ledger", "state", "--kind", "release")
    first, *facts = told.out.splitlines()
    assert first == "release:  legal/labels"
    assert [line.split() for line in facts if "served model" in line or "since" in line] == [
        ["since", "entry:", released],
        ["served", "model:", "labels"],
    ]
    assert "As of entry" in told.err
    things = json.loads(desk.as_("audrey", "ledger", "state", "--json").out)["rows"]
    assert {"principal", "adapter", "slot"} <= {thing["kind"] for thing in things}
    assert desk.as_("audrey", "ledger", "state", "--at", "yesterday").code == 2


def test_a_dataset_says_what_was_made_of_it_and_where_it_went(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    line = desk.as_("olga", "dataset", "used-by", "clauses").out.splitlines()[1].split()
    assert line[0] == "clauses@1" and line[2:5] == ["r-000001", "sealed", "clauses@1"] and line[-1] == "legal/labels"


def test_a_row_is_proved_and_its_proof_is_written_once(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    proof, file = desk.trust.parent / "proof.json", desk.trust.parent / "row.txt"
    file.write_text("two\n")
    words = ("dataset", "used-by", "clauses@1", "--row-file", str(file), "--output", str(proof))
    told = desk.as_("olga", *words)
    assert told.code == 0, told.err
    assert "found 2 times, 2 proved here under entry" in told.err
    assert proof.stat().st_mode & 0o777 == 0o600
    written = json.loads(proof.read_text())
    assert [row["proof"]["index"] for row in written["datasets"][0]["rows"]] == [1, 3]
    assert desk.as_("olga", *words).code == 5, "a proof is not written over"
    absent = desk.as_("olga", "dataset", "used-by", "clauses@1", "--row", "three")
    assert absent.code == 0 and "reports that the row is not in it. This cannot be proved" in absent.err
    assert desk.as_("olga", "dataset", "used-by", "clauses@1", "--row", "a", "--row-file", str(file)).code == 2
    assert desk.as_("olga", "dataset", "used-by", "clauses@1", "--output", str(proof)).code == 2
