"""An exit code says if hosts can be upgraded one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.build import COMPATIBILITY, build_version
from tests.cli.conftest import type_alone


def test_a_build_of_the_same_number_is_upgraded_host_by_host_and_another_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = type_alone(capsys, "update-compatibility", "metadata")
    assert json.loads(told.out) == {"version": build_version(), "compatibility": COMPATIBILITY}
    file = tmp_path / "compatibility.json"
    file.write_text(told.out)
    told = type_alone(capsys, "update-compatibility", "check", str(file))
    assert told.code == 0 and "rolling" in told.out

    for number in (COMPATIBILITY + 1, COMPATIBILITY - 1):
        file.write_text(json.dumps({"version": "0.2.0", "compatibility": number}))
        told = type_alone(capsys, "update-compatibility", "check", str(file), "--json")
        assert told.code == 3
        assert json.loads(told.out) == {
            "verdict": "recreate",
            "this_build": f"{build_version()}, compatibility number {COMPATIBILITY}",
            "other_build": f"0.2.0, compatibility number {number}",
        }


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 2),
        ("{}", 2),
        ("[1]", 2),
        ('{"version": "1"}', 2),
        ('{"version": "1", "compatibility": "1"}', 2),
        ('{"version": "1", "compatibility": -1}', 2),
        ('{"version": "1", "compatibility": 1, "more": 1}', 2),
        (" " * 5_000, 2),
        (None, 4),
    ],
)
def test_metadata_that_cannot_be_read_is_no_verdict(
    text: str | None, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "compatibility.json"
    if text is not None:
        file.write_text(text)
    told = type_alone(capsys, "update-compatibility", "check", str(file))
    assert told.code == code and not told.out and "compatibility" in told.err
