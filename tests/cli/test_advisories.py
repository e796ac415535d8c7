"""Published advisories are compared with the installed libraries, and an old file of them is called stale."""

from __future__ import annotations

import json
import zipfile
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from appliance.cli.support import advisories
from tests.cli.conftest import Told, one_line, type_alone

PYDANTIC = version("pydantic")
NEXT = f"{Version(PYDANTIC).major + 1}.0"


def days_ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


def record(name: str = "Pydantic", days: float = 1, ecosystem: str = "PyPI", **affected: Any) -> dict[str, Any]:
    """Return an advisory about a library of this name, spelled as its authors do."""
    package = {"ecosystem": ecosystem, "name": name}
    return {
        "id": "PYSEC-2026-1",
        "aliases": ["CVE-2026-1"],
        "modified": days_ago(days),
        "summary": "Reads too much.",
        "affected": [{"package": package, **affected}],
    }


def span(*events: dict[str, str | None], kind: str = "ECOSYSTEM") -> dict[str, Any]:
    return {"ranges": [{"type": kind, "events": list(events)}]}


def checked(capsys: pytest.CaptureFixture[str], file: Path, records: object, *options: str) -> Told:
    file.write_text(json.dumps(records))
    return type_alone(capsys, "advisories", "check", str(file), *options)


def test_an_advisory_about_an_installed_version_is_named_with_its_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = record(**span({"introduced": "0"}, {"fixed": NEXT}))
    told = checked(capsys, tmp_path / "a.json", one, "--json")
    found = json.loads(told.out)
    assert (told.code, found["affected"], found["stale"], found["age_days"]) == (3, 1, False, 1)
    assert found["matches"] == [
        {
            "package": "pydantic",
            "version": PYDANTIC,
            "advisory": "PYSEC-2026-1",
            "aliases": ["CVE-2026-1"],
            "fixed": [NEXT],
            "summary": "Reads too much.",
            "comparable": True,
        }
    ]
    told = checked(capsys, tmp_path / "a.json", [one])
    assert told.code == 3 and "PYSEC-2026-1, CVE-2026-1" in told.out and NEXT in told.out


@pytest.mark.parametrize(
    ("installed", "affected", "expected"),
    [
        ("2.9.0", span({"introduced": "0"}), True),
        ("2.9.0", span({"introduced": "0"}, {"fixed": "2.9.0"}), False),
        ("2.9.0rc1", span({"introduced": "0"}, {"fixed": "2.9.0"}), True),
        ("2.10.0", span({"introduced": "0"}, {"fixed": "2.9.0"}), False),
        ("2.9.0", span({"introduced": "2.9.1"}), False),
        ("2.9.0", span({"introduced": "0"}, {"last_affected": "2.9.0"}), True),
        ("2.9.0+cpu", span({"introduced": "0"}, {"last_affected": "2.9.0"}), True),
        ("2.9.1", span({"introduced": "0"}, {"last_affected": "2.9.0"}), False),
        ("3.1", span({"introduced": "0"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "3.2"}), True),
        ("2.5", span({"introduced": "3"}, {"fixed": "3.2"}, {"introduced": "0"}, {"fixed": "2"}), False),
        ("2.5", span({"introduced": "0"}, {"limit": "2"}), False),
        ("2.5", span({"introduced": "0"}, {"limit": "*"}), True),
        ("1!1.0", span({"introduced": "0"}, {"fixed": "9"}), False),
        ("0.dev1", span({"introduced": "0"}), True),
        ("2.9.0", {"versions": ["2.9"]}, True),
        ("2.9.0", {"versions": ["2.9.1", "unknown"]}, False),
        ("2.9.0", {"versions": ["2.8"], **span({"introduced": "2.9"})}, True),
        ("2.9.0", span({"introduced": "abc"}, kind="GIT"), None),
        ("2.9.0", span({"introduced": "not a version"}), None),
        ("not a version", span({"introduced": "0"}), None),
        ("2.9.0", {"versions": ["9" * 5_000]}, False),
        ("2.9.0", span({"introduced": "9" * 5_000}), None),
        ("2.9.0", {}, None),
        ("2.9.0", span(), None),
        ("2.9.0", span({"fixed": "9"}), None),
        ("2.9.0", span({"began": "0"}), None),
        ("2.9.0", {"versions": ["1"], **span({"last_affected": "9"})}, None),
    ],
)
def test_ranges_are_evaluated_as_the_schema_says(
    installed: str, affected: dict[str, Any], expected: bool | None, tmp_path: Path
) -> None:
    """None: a person has to compare it, so it is shown."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps(record("torch", **affected)))
    found = advisories.compare(file, {"torch": installed}).matches
    assert [match.comparable for match in found] == ([] if expected is False else [expected is True])


@pytest.mark.thorough
def test_an_old_file_is_called_stale_and_never_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harmless = span({"introduced": "0"}, {"fixed": "0.1"})
    assert checked(capsys, tmp_path / "a.json", record(days=13, **harmless)).code == 0
    told = checked(capsys, tmp_path / "a.json", record(days=15, **harmless))
    assert told.code == 7 and "STALE" in told.err and "15 days ago" in told.err
    assert checked(capsys, tmp_path / "a.json", record(days=15, **harmless), "--days", "30").code == 0
    told = checked(capsys, tmp_path / "a.json", record(days=-5, **harmless))
    assert told.code == 7 and "in the future of this machine's clock" in told.err and "days ago" not in told.err
    told = checked(capsys, tmp_path / "a.json", record(days=15, versions=[PYDANTIC]))
    assert told.code == 3 and "STALE" in told.err


@pytest.mark.thorough
def test_a_file_with_fewer_advisories_than_before_is_never_clear(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harmless = span({"introduced": "0"}, {"fixed": "0.1"})
    found = checked(capsys, tmp_path / "a.json", [record(**harmless)] * 3, "--json")
    assert (found.code, json.loads(found.out)["largest_before"]) == (0, None)
    told = checked(capsys, tmp_path / "a.json", [record(**harmless)] * 2)
    assert told.code == 7 and "an earlier file had 3 advisories, and this one has 2" in one_line(told.err)
    assert checked(capsys, tmp_path / "a.json", [record(**harmless)] * 2).code == 7  # the largest number stays
    assert checked(capsys, tmp_path / "a.json", [record(versions=[PYDANTIC])]).code == 3
    found = checked(capsys, tmp_path / "a.json", [record(**harmless)] * 4, "--json")
    assert (found.code, json.loads(found.out)["largest_before"], json.loads(found.out)["fewer"]) == (0, 3, False)
    advisories.count_path().write_text("many")
    assert checked(capsys, tmp_path / "a.json", record(**harmless)).code == 2
    advisories.count_path().unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", "/proc")
        told = checked(capsys, tmp_path / "a.json", record(versions=[PYDANTIC]))
        assert told.code == 3 and "is not stored for the next check" in one_line(told.err)
    assert checked(capsys, tmp_path / "a.json", record(**harmless)).code == 0


def test_an_export_of_all_records_is_a_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "all.zip"
    with zipfile.ZipFile(file, "w") as archive:
        old = record(days=400, versions=[PYDANTIC])
        gone = {**record(days=2, versions=[PYDANTIC]), "id": "PYSEC-2", "withdrawn": days_ago(2)}
        back = {**record("torch", 2, versions=["0"]), "id": "PYSEC-3", "withdrawn": None}
        for name, one in (
            ("a", old),
            ("b", gone),
            ("d", back),
            ("c", record("debian", 1, "Debian:12", versions=["1"])),
        ):
            archive.writestr(f"{name}.json", json.dumps(one))
    told = type_alone(capsys, "advisories", "check", str(file), "--json")
    found = json.loads(told.out)
    assert (told.code, found["advisories"], found["age_days"], found["affected"]) == (3, 2, 1, 1)
    file.write_bytes(file.read_bytes()[:200] + bytes(60) + file.read_bytes()[260:])
    assert type_alone(capsys, "advisories", "check", str(file)).code == 2


@pytest.mark.parametrize(
    "records",
    [
        [],
        {},
        [1],
        [record(ecosystem="npm", versions=["1"])],
        [{**record(), "withdrawn": "2026-01-01T00:00:00Z"}],
        [{**record(), "modified": "yesterday"}],
        [{**record(), "modified": "2026-01-01T00:00:00"}],
        [{**record(), "modified": "1700000000"}],
        [record(**span({"introduced": "0", "fixed": None}))],
        [{**record(), "affected": "all"}],
        [record(versions="1.0")],
        [record(ranges=[{"type": "ECOSYSTEM"}])],
        [{**record(), "id": 7}],
    ],
)
def test_a_file_that_compares_nothing_is_an_error(
    records: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = checked(capsys, tmp_path / "a.json", records)
    assert told.code == 2 and not told.out and "advisories" in told.err


def test_a_record_with_a_field_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second value could hide what is affected."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps(record(**span({"introduced": "0"})))[:-1] + ', "affected": []}')
    told = type_alone(capsys, "advisories", "check", str(file))
    assert told.code == 2 and "expected every key once, got 'affected' twice" in one_line(told.err)


def test_ranges_of_commits_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = span({"introduced": "0"}, {"fixed": NEXT})["ranges"]
    one = record(ranges=[{"type": "GIT"}, *versions])
    assert checked(capsys, tmp_path / "a.json", one).code == 3


def test_an_ecosystem_may_name_its_registry(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(record("torch", ecosystem="PyPI:https://pypi.org/simple", versions=["2"])))
    assert len(advisories.compare(file, {"torch": "2"}).matches) == 1


def test_of_two_versions_the_imported_one_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, number in (("first", "1"), ("second", "2")):
        info = tmp_path / folder / f"twice-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: twice\nVersion: {number}\n")
    monkeypatch.setattr("sys.path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert advisories.list_installed() == {"twice": "1"}


def test_every_installed_library_is_compared_under_its_normalised_name() -> None:
    found = advisories.list_installed()
    assert "appliance" not in found and found["prometheus-client"] == version("prometheus-client")
    assert {"torch", "cryptography", "pydantic-core"} <= found.keys()
