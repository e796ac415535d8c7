"""No parser is left out of `scripts/fuzz`, inputs that failed once do not fail again, and failures are found."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, BadInput
from appliance.signer.server import _OPERATIONS
from tests.fuzz.judging import CORPUS, folder_of, judge
from tests.fuzz.of_ml import NEEDS_TORCH
from tests.fuzz.of_signer import OPERATIONS
from tests.fuzz.target import TARGETS, Target
from tests.fuzz.targets import OTHERS, find_parsers
from tests.fuzz.worker import Worker

KEPT = [path for path in sorted(CORPUS.glob("*/*")) if path.is_file()]


@pytest.mark.thorough
def test_every_parser_has_a_target_or_a_reason() -> None:
    named = {name.partition(" ")[0] for name in TARGETS}
    found = set(find_parsers())
    assert found - named == OTHERS.keys()
    assert not named & OTHERS.keys()


def test_every_operation_of_the_signer_has_a_target() -> None:
    assert OPERATIONS.keys() == _OPERATIONS.keys()


def test_every_folder_of_the_corpus_is_of_a_target() -> None:
    assert {path.parent for path in KEPT} <= {folder_of(CORPUS, name) for name in TARGETS}


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_that_failed_once_does_not_fail_again(path: Path) -> None:
    (name,) = (name for name in TARGETS if folder_of(CORPUS, name) == path.parent)
    assert judge(TARGETS[name], path.read_bytes()).problem == ""


def parse(data: bytes) -> object:
    if b"!" in data:
        raise KeyError("a defect")
    if not data:
        raise BadInput("expected bytes, got none")
    return data


def test_a_worker_finds_a_defect_makes_its_input_small_and_keeps_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TARGETS, "a", Target(parse, lambda: [b"good!" * 9], "bytes"))
    monkeypatch.setattr("tests.fuzz.worker.ROUND_S", 60.0)
    out = io.StringIO()
    worker = Worker(tmp_path, tmp_path / "current", time.monotonic() + 60, 1, out)
    worker.try_once("a")
    *found, last = map(json.loads, out.getvalue().splitlines())
    assert all(one["problem"].startswith("KeyError") for one in found)
    assert all(b"!" in Path(one["input"]).read_bytes() for one in found) and found
    assert last["ways"] == 2 and last["calls"] > 10
    assert len(list(folder_of(tmp_path / "corpus", "a").iterdir())) == 2


def test_a_call_that_takes_too_long_is_a_problem_and_a_named_error_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 3.0, 0.0, 0.1))
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    assert "3.0 s" in judge(Target(bytes, list, "bytes"), b"").problem
    assert judge(Target(lambda data: {}[data], list, "bytes", (LookupError,)), b"").problem == ""


@pytest.mark.thorough
def test_every_target_accepts_a_good_input() -> None:
    """A seed that is refused leads nowhere. Answers of a service, of which there are many types, have none."""
    others = ("api.wire.parse_response", *NEEDS_TORCH)
    assert list_refused([name for name in TARGETS if not name.startswith(others)]) == []


@pytest.mark.outside
def test_every_target_with_torch_accepts_a_good_input() -> None:
    assert list_refused([name for name in TARGETS if name.startswith(NEEDS_TORCH)]) == []


def list_refused(names: list[str]) -> list[str]:
    refused = []
    for name, target in ((name, TARGETS[name]) for name in names):
        accepted = []
        for seed in target.seeds():
            try:
                target.parse(seed)
            except ApplianceError as error:
                accepted.append(error.message == "ended with 0")
            else:
                accepted.append(True)
        refused += [] if any(accepted) else [name]
    return refused
