"""Cells that a spreadsheet would evaluate are written as text: in the console and on the command line."""

from __future__ import annotations

import csv
import io

import pytest

from appliance.api.releases import Review
from appliance.cli.ledger import _COLUMNS, _print_csv
from appliance.domain.core.entry import parse_entry
from appliance.formats.core.text import safe_cell
from scripts.kit.log_builder import stage

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "=cmd|' /C calc'!A0")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_would_be_calculated_begins_with_an_apostrophe(text: str) -> None:
    assert safe_cell(text) == f"'{text}" and safe_cell([text, "x"]) == f"'{text} x"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "text", ["x;=1+1", "x; =1", "x\t@SUM(A1)", 'a, b;"=1"', "x;=cmd|'/C calc'!A0", "x\n-1;+1", "=a;=b"]
)
def test_no_cell_is_a_formula_wherever_a_spreadsheet_divides_them(text: str, delimiter: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow(["1", safe_cell(text), safe_cell(text)])
    for row in csv.reader(io.StringIO(file.getvalue()), delimiter=delimiter):
        assert [cell for cell in row if cell.lstrip(' \t\r\n"').startswith(("=", "+", "-", "@"))] == []


def test_other_values_stay_what_they_are() -> None:
    assert [safe_cell(one) for one in (-1, 2.5, None, True, "a=b; c-d", ("a", "b"))] == [
        *(-1, 2.5, "", "True", "a=b; c-d", "a b")
    ]


def test_the_command_line_prints_no_formula_either(capsys: pytest.CaptureFixture[str]) -> None:
    site = stage("staffed")
    entry = parse_entry(site.entries[1]).model_copy(update={"actor": "=1+1", "source": "@x"})
    review = Review(
        index=1,
        order="",
        reviewer="",
        keyid="",
        review_function="@law",
        unit="legal",
        decision="-2+3",
        valid_until=None,
        time="",
        request=None,
        conditions=None,
        on_behalf_of=None,
        again_by=None,
        state="=valid",
        superseded_by=None,
        refusal=None,
    )
    _print_csv([(entry, review)])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["actor"], row["source"], row["decision"]) == ("'=1+1", "'@x", "'-2+3")
    assert (row["review_function"], row["state"]) == ("'@law", "'=valid")
    assert row["unit"] == "legal" and set(_COLUMNS) <= row.keys()
