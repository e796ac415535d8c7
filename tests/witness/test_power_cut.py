"""A power cut before any line of the witness's program leaves no half-written file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from appliance import witness as program
from appliance.errors import Conflict, Tampered
from appliance.witness import cosign_file, parse_state
from tests.witness.bench import FORK, LOG, WITNESS, Desk

CUT = 9
# Later versions of Python warn of a fork beside threads; the child has none, and ends in the witness's program.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def cut_at(line: int, desk: Desk, *, first: bool) -> bool:
    """Run a request in a process that dies, without cleanup, before the n-th line of the program that it reaches.

    Return True if it died, or False if it had no such line.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal seen
            if frame.f_code.co_filename != program.__file__:
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    os._exit(CUT)
            return trace

        try:
            sys.settrace(trace)
            cosign_file(desk.request, desk.state, desk.out, WITNESS, first=first)
            os._exit(0)
        finally:
            os._exit(1)  # never back into the tests
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, CUT)
    return code == CUT


def desks(folder: Path) -> Iterator[tuple[int, Desk]]:
    for line in count(1):
        (folder / str(line)).mkdir()
        yield line, Desk(folder / str(line))


def size_in(path: Path) -> int:
    """Return the size of a whole checkpoint that this witness cosigned."""
    return parse_state(path.read_bytes(), WITNESS).checkpoint.size


@pytest.mark.thorough
def test_a_cut_before_any_line_leaves_the_old_or_the_new_state_and_a_second_try_succeeds(tmp_path: Path) -> None:
    states, outputs = set(), set()
    for line, desk in desks(tmp_path):
        cosign_file(desk.bring(LOG.request(0, 7)), desk.state, None, WITNESS, first=True)
        desk.bring(LOG.request(7, 12))
        died = cut_at(line, desk, first=False)
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
        if not died:
            break
    assert line > 60, "the tracer saw the program's lines"
    assert (states, outputs) == ({7, 12}, {False, True})


@pytest.mark.thorough
def test_a_cut_during_the_first_request_begins_the_state_whole_or_not_at_all(tmp_path: Path) -> None:
    began = set()
    for line, desk in desks(tmp_path):
        desk.bring(LOG.request(0, 7))
        died = cut_at(line, desk, first=True)
        began.add(desk.state.exists())
        assert desk.state.exists() or not desk.out.exists()
        cosign_file(desk.request, desk.state, desk.out, WITNESS, first=not desk.state.exists())
        assert size_in(desk.state) == size_in(desk.out) == 7
        if not died:
            break
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
