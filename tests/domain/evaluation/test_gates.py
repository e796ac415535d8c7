"""A gates file is parsed strictly; gates that can never be passed or never fail are refused."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from appliance.domain.core.names import encode_value
from appliance.domain.evaluation.gates import CLAIMS, MOST_DRAWS, Gate, GatesFile, parse_gate_file, parse_gates
from appliance.errors import BadInput
from tests.kit.mutations import mutated, reshaped

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "policies" / "gates").glob("*.json"))
CLASSIFICATION: dict[str, Any] = json.loads((ROOT / "policies" / "gates" / "classification.json").read_bytes())
EXAMPLES = settings(deadline=None, max_examples=150)


def written(gate: int = 0, *, of_set: dict[str, Any] | None = None, **members: Any) -> bytes:
    """Return the classification gates with one gate's fields, or the file's, changed. None removes one."""
    gates = [dict(one) for one in CLASSIFICATION["gates"]]
    gates[gate] |= members
    gates[gate] = {name: value for name, value in gates[gate].items() if value is not None}
    return json.dumps(CLASSIFICATION | {"gates": gates} | (of_set or {})).encode()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_gates_that_lie_under_policies_are_good(path: Path) -> None:
    gates = parse_gate_file(path.read_bytes())
    assert gates.name == path.stem
    assert parse_gates(encode_value(gates)) == gates


def test_the_pages_example_is_good_and_its_tables_name_every_field() -> None:
    page = (ROOT / "docs" / "formats" / "evaluation.md").read_text(encoding="utf-8")
    example = parse_gate_file(page.partition("```json\n")[2].partition("```")[0].encode())
    assert example.name == "classification"
    for heading, model in (("of the file", GatesFile), ("of a gate", Gate)):
        table = page.partition(f"| field {heading} |")[2].partition("\n\n")[0]
        rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(model.model_fields)
    tests = page.partition("| test | claims | of |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", tests)) == set(CLAIMS)


def test_the_sets_are_there() -> None:
    assert {path.stem for path in FILES} == {"answers", "classification", "preferences", "thorough"}


def test_what_is_left_out_has_the_defaults_of_the_page() -> None:
    gates = parse_gate_file((ROOT / "policies" / "gates" / "answers.json").read_bytes())
    assert (gates.alpha, gates.correction, gates.run_correction, gates.power) == ("0.05", "holm", "spend", "0.8")
    assert (gates.gates[0].draws, gates.gates[1].draws, gates.gates[0].margin) == (9_999, 0, "0.0")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (written(test="tost", metric="token_f1"), "test: expected one that can show better (mcnemar, tango"),
        (written(1, test="mcnemar"), "expected one that can show no-worse (tango, permutation, bootstrap, tost)"),
        (written(metric="loss"), "mcnemar counts right and wrong: expected metric accuracy, got loss"),
        (written(margin="0.01"), "margin: expected 0.0 for mcnemar"),
        (written(1, margin="0.0"), "margin: expected more than 0 for no-worse, since equality cannot be shown"),
        (written(1, margin=None), "margin: expected more than 0 for no-worse"),
        (written(1, margin="1.0"), "margin: expected less than 1.0 for accuracy"),
        (written(1, margin=0.02), "margin: expected text, got 0.02"),
        (written(1, margin="-0.1"), "margin: expected a decimal fraction"),
        (written(resamples=999), "resamples: expected none for mcnemar"),
        (written(slices=["label", "label"]), "slices: expected each once"),
        (written(slices=["colour"]), "'column', 'label' or 'length'"),
        (written(chance="0.5"), "chance: expected a fraction between 0 and 1, with metric accuracy and a claim other"),
        (written(1, chance="1.0"), "chance: expected a fraction between 0 and 1"),
        (written(least_items=19), "least_items: expected at least 20, got 19"),
        (written(name="no-worse-than-released"), "gates: expected each name once"),
        (written(name="No Worse"), "name: expected lower-case letters"),
        (written(comparison="nothing"), "'base', 'full-fine-tuning' or 'released'"),
        (written(kind="regression"), "expected a gate of kind target"),
        (written(of_set={"alpha": "0.0"}), "alpha: expected above 0"),
        (written(of_set={"alpha": "0.21"}), "at most 0.2, with nine places at most, got 0.21"),
        (written(of_set={"alpha": "0.0500000001"}), "with nine places at most"),
        (written(of_set={"power": "1.0"}), "power: expected a fraction between 0 and 1"),
        (written(of_set={"seed": -1}), "seed: expected at least 0"),
        (written(of_set={"version": 2}), "version: expected 1"),
        (written(of_set={"note": "x"}), "note: expected no field of this name"),
        (written(of_set={"gates": []}), "gates: expected 1 or more of them"),
        (
            written(1, test="permutation", resamples=999, slices=None) .replace(b'"0.05"', b'"0.003"'),
            "gate no-worse-than-released, resamples: expected 1334 or more to reach alpha 0.003 over 2 gates, got 999",
        ),
        (written().replace(b'"seed": 1', b'"seed": 1, "seed": 2'), "expected every key once"),
        (b"{", "expected JSON"),
        (b"\xff", "byte 0: expected UTF-8"),
        (b"[" * 100_000, "expected JSON"),
        (b"9" * 10_000, "gates file: "),
    ],
)  # fmt: skip
def test_other_sets_are_refused_with_what_was_expected(data: bytes, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_gate_file(data)
    assert words in caught.value.message


@pytest.mark.parametrize(("gates", "resamples"), [(32, 9_999), (3, 100_000), (32, 10_000), (4, 100_000)])
def test_the_resamples_of_all_gates_together_are_bounded(gates: int, resamples: int) -> None:
    one = {**CLASSIFICATION["gates"][0], "test": "permutation", "resamples": resamples}
    data = json.dumps(CLASSIFICATION | {"gates": [one | {"name": f"gate-{n}"} for n in range(gates)]}).encode()
    if gates * resamples <= MOST_DRAWS:
        assert len(parse_gate_file(data).gates) == gates
    else:
        with pytest.raises(BadInput, match="resamples: expected at most 319968 of all gates together"):
            parse_gate_file(data)


def test_a_set_in_which_nothing_looks_for_harm_is_refused() -> None:
    gates = [dict(CLASSIFICATION["gates"][0]) | {"slices": []}]
    with pytest.raises(BadInput, match="to detect regressions, got none"):
        parse_gate_file(json.dumps(CLASSIFICATION | {"gates": gates}).encode())


@pytest.mark.parametrize("test", CLAIMS)
def test_each_test_takes_its_claims_and_no_other(test: str) -> None:
    for claim in ("better", "no-worse", "equivalent"):
        gate = dict(CLASSIFICATION["gates"][0]) | {"test": test, "claim": claim, "kind": "target"}
        gate |= {"margin": "0.0" if claim == "better" else "0.1"}
        data = json.dumps(CLASSIFICATION | {"gates": [gate]}).encode()
        if claim in CLAIMS[test]:
            assert isinstance(parse_gate_file(data).gates[0], Gate)
        else:
            with pytest.raises(BadInput, match="expected one that can show"):
                parse_gate_file(data)


GOOD = encode_value(parse_gate_file(json.dumps(CLASSIFICATION).encode()))


@EXAMPLES
@given(mutated(GOOD))
def test_nearly_good_bytes_are_the_same_set_or_an_error_of_ours(data: bytes) -> None:
    with suppress(BadInput):
        assert encode_value(parse_gates(data)) == data


@EXAMPLES
@given(reshaped(CLASSIFICATION))
def test_a_file_of_any_shape_is_a_set_or_an_error_of_ours(value: Any) -> None:
    with suppress(BadInput):
        gates = parse_gate_file(json.dumps(value).encode())
        assert isinstance(gates, GatesFile) and parse_gates(encode_value(gates)) == gates
