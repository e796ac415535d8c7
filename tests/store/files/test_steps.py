"""Steps on disk: those before a training checkpoint stay, torn ones are dropped, missing ones are detected."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from appliance.errors import Tampered, TooLarge, Unavailable
from appliance.store.files.run_files import StepStore

RUN = "r-000001"


@pytest.fixture
def steps(tmp_path: Path) -> StepStore:
    return StepStore(tmp_path)


def test_a_run_continues_behind_its_checkpoint(steps: StepStore) -> None:
    assert steps.read(RUN) == b""
    assert steps.begin(RUN, 0) == b""
    for line in (b"1\n", b"2\n", b"3\n", b"4"):
        steps.append(RUN, line)
    steps.sync(RUN)
    assert steps.begin(RUN, 2) == b"1\n2\n"
    steps.append(RUN, b"3\n")
    assert steps.read(RUN) == b"1\n2\n3\n"
    for count in (4, 9):
        with pytest.raises(Tampered, match=f"steps of {RUN}: expected {count} lines, .* got 3"):
            steps.begin(RUN, count)
    steps.append(RUN, b"4")
    with pytest.raises(Tampered, match="expected 4 lines"):
        steps.begin(RUN, 4)
    assert steps.begin(RUN, 0) == b"" == steps.read(RUN), "a run that begins anew"
    with pytest.raises(Unavailable, match="expected 4 lines, got no file; see that its disk is mounted"):
        steps.begin("r-000009", 4)


def test_steps_without_end_are_refused(steps: StepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.store.files.run_files.MAX_STEPS_BYTES", 6)
    steps.begin(RUN, 0)
    for _ in range(3):
        steps.append(RUN, b"1\n")
    with pytest.raises(TooLarge, match="steps of r-000001: expected at most 6 bytes"):
        steps.append(RUN, b"1\n")
    assert steps.read(RUN) == b"1\n1\n1\n"


def test_a_link_in_the_place_of_steps_is_not_followed(steps: StepStore, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"1\n")
    (tmp_path / "steps" / f"{RUN}.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(Tampered, match="expected a regular file"):
        steps.read(RUN)


def test_only_what_is_wanted_is_kept(steps: StepStore, tmp_path: Path) -> None:
    for run in (RUN, "r-000002"):
        steps.begin(run, 0)
    (tmp_path / "steps" / ".partial-1").write_bytes(b"half")
    steps.sweep(lambda: frozenset({"r-000002"}))
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["r-000002.jsonl"]


def test_a_run_begins_before_a_sweep_asks_what_is_wanted_or_after_it(steps: StepStore) -> None:
    begun = []
    run = threading.Thread(target=lambda: begun.append(steps.begin(RUN, 0)))

    def wanted() -> frozenset[str]:
        run.start()
        run.join(0.2)
        assert not begun, "it waits"
        return frozenset()

    steps.sweep(wanted)
    run.join()
    steps.append(RUN, b"1\n")
    assert steps.read(RUN) == b"1\n"
