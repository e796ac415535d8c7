"""The VEX statements: complete, about locked versions alone, and in the bill of materials of their wheels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.packaging.install import Refused
from scripts.packaging.sbom import find_stale, make_sbom, read_statements
from tests.kit.wheelhouse import make_wheelhouse
from tests.test_locks import CPU, CUDA

GOOD = {
    "vulnerability": "CVE-2026-12345",
    "component": "Lib",
    "version": "1.2",
    "state": "not_affected",
    "justification": "code_not_reachable",
    "detail": "The appliance never calls the parser that is weak, and no worker imports it.",
    "reviewed": "2026-11-30",
}


def write(path: Path, *statements: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"about": "test", "statements": statements}))
    return path


def locked() -> dict[str, set[str]]:
    return {name: {str(lock[name][0]) for lock in (CPU, CUDA) if name in lock} for name in CPU | CUDA}


def test_each_statement_is_about_a_locked_version() -> None:
    assert find_stale(read_statements(), locked()) == []


def test_a_statement_about_another_version_is_stale(tmp_path: Path) -> None:
    version = str(CPU["starlette"][0])
    fresh, older, gone = (
        {**GOOD, "component": "Starlette", "version": version},
        {**GOOD, "component": "starlette", "version": "0.1"},
        {**GOOD, "component": "unheard-of"},
    )
    assert find_stale(read_statements(write(tmp_path / "v", fresh)), locked()) == []
    stale = find_stale(read_statements(write(tmp_path / "v", fresh, older, gone)), locked())
    assert [one.partition(" is not")[0] for one in stale] == [
        "CVE-2026-12345: starlette 0.1",
        "CVE-2026-12345: unheard-of 1.2",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vulnerability": "a bug"}, "a CVE, GHSA or PYSEC number"),
        ({"state": "fine"}, "a state of"),
        ({"justification": None}, "for not_affected alone, got None"),
        ({"justification": "because"}, "for not_affected alone, got because"),
        ({"state": "in_triage"}, "for not_affected alone, got code_not_reachable"),
        ({"detail": "trust us"}, "the reason in sentences"),
        ({"reviewed": "2999-01-01"}, "a day in the past"),
        ({"reviewed": "soon"}, "expected vulnerability, component"),
        ({"more": "x"}, "expected vulnerability, component"),
    ],
)
def test_a_statement_without_its_reason_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert len(read_statements(write(tmp_path / "v", GOOD))) == 1
    with pytest.raises(Refused, match=words):
        read_statements(write(tmp_path / "v", {**GOOD, **change}))


def test_the_bill_of_materials_has_the_statements_about_its_wheels(tmp_path: Path) -> None:
    wheels = make_wheelhouse(tmp_path / "w", "0.1.0")
    triage = {**GOOD, "vulnerability": "GHSA-aaaa-bbbb-cccc", "state": "in_triage", "justification": None}
    statements = read_statements(write(tmp_path / "v", GOOD, triage, {**GOOD, "component": "other"}))
    bom = make_sbom(wheels, {"appliance": "0.1.0", "lib": "1.2"}, "2026-11-30T00:00:00Z", statements)
    (lib,) = bom["components"]
    affected, open_one = bom["vulnerabilities"]
    assert affected == {
        "id": "CVE-2026-12345",
        "analysis": {
            "state": "not_affected",
            "justification": "code_not_reachable",
            "detail": GOOD["detail"],
            "lastUpdated": "2026-11-30T00:00:00Z",
        },
        "affects": [{"ref": lib["bom-ref"]}],
    }
    assert open_one["analysis"].keys() == {"state", "detail", "lastUpdated"}
