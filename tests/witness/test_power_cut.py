"""A power cut in any state of the disk during the witness's program leaves no half-written file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance import witness as program
from appliance.errors import Conflict, Tampered
from appliance.witness import cosign_file, parse_state
from tests.kit.cuts import cut_at, find_cuts
from tests.witness.bench import FORK, LOG, WITNESS, Desk

# Later versions of Python warn of a fork beside threads; the child has none, and ends in the witness's program.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FILES = frozenset({program.__file__})


def size_in(path: Path) -> int:
    """Return the size of a whole checkpoint that this witness cosigned."""
    return parse_state(path.read_bytes(), WITNESS).checkpoint.size


def desks(folder: Path, bring: Callable[[Desk], object], *, first: bool) -> Iterator[Desk]:
    """Yield a folder for each state of the disk in which the power was cut during a request."""

    def make(name: str) -> tuple[Desk, Callable[[], object]]:
        (folder / name).mkdir()
        bring(desk := Desk(folder / name))
        return desk, lambda: cosign_file(desk.request, desk.state, desk.out, WITNESS, first=first)

    places = find_cuts(folder, FILES, make("whole")[1])
    assert len(places) > 6
    for number, place in enumerate(places):
        desk, act = make(str(number))
        assert cut_at(place, FILES, act)
        yield desk


def test_a_cut_in_each_state_of_the_disk_leaves_the_old_or_the_new_state_and_a_second_try_succeeds(
    tmp_path: Path,
) -> None:
    def bring(desk: Desk) -> None:
        cosign_file(desk.bring(LOG.request(0, 7)), desk.state, None, WITNESS, first=True)
        desk.bring(LOG.request(7, 12))

    states, outputs = set(), set()
    for desk in desks(tmp_path, bring, first=False):
        state = size_in(desk.state)
        states.add(state)
        outputs.add(desk.out.exists())
        if desk.out.exists():
            assert (size_in(desk.out), state) == (12, 12), "what left is remembered"
        if state == 12:
            with pytest.raises(Conflict):
                cosign_file(desk.bring(LOG.request(7, 9)), desk.state, None, WITNESS)
            with pytest.raises(Tampered, match="two histories"):
                cosign_file(desk.bring(FORK.request(7, 12)), desk.state, None, WITNESS)
            desk.bring(LOG.request(7, 12))
        cosign_file(desk.request, desk.state, desk.out, WITNESS)
        assert size_in(desk.state) == size_in(desk.out) == 12
    assert (states, outputs) == ({7, 12}, {False, True})


def test_a_cut_during_the_first_request_begins_the_state_whole_or_not_at_all(tmp_path: Path) -> None:
    began = set()
    for desk in desks(tmp_path, lambda desk: desk.bring(LOG.request(0, 7)), first=True):
        began.add(desk.state.exists())
        assert desk.state.exists() or not desk.out.exists()
        cosign_file(desk.request, desk.state, desk.out, WITNESS, first=not desk.state.exists())
        assert size_in(desk.state) == size_in(desk.out) == 7
    assert began == {False, True}


def test_the_state_is_on_the_disk_before_the_cosignature_is_anywhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, then their name, then the folder that holds the name; and only then the output, in the same order."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        done.append(f"replace {target.name}")
        replace(source, target)

    monkeypatch.setattr(program.os, "fsync", record_fsync)
    monkeypatch.setattr(program.os, "replace", record_replace)
    (tmp_path / "stick").mkdir()
    desk = Desk(tmp_path)
    cosign_file(desk.bring(LOG.request(0, 7)), desk.state, tmp_path / "stick/cosigned", WITNESS, first=True)
    assert done == [
        "fsync .log.state.part",
        "replace log.state",
        f"fsync {tmp_path.name}",
        "fsync .cosigned.part",
        "replace cosigned",
        "fsync stick",
    ]
