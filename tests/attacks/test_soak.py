"""The short form of scripts/soak, and checks that it detects what it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.entry import Entry, encode_entry, parse_entry
from appliance.domain.evaluation.quality import VLLM
from scripts.kit.appliance import Appliance
from scripts.kit.ports import free_port
from scripts.kit.postgres import Server, postgres
from scripts.soaking import run as soaking
from scripts.soaking.deployment import BUILTIN, Deployment
from scripts.soaking.evaluate import check_entries, check_words
from scripts.soaking.memory import Growth, compare_halves
from scripts.soaking.record import Given, Record
from scripts.soaking.worst import ALONE, BESIDE, evaluate_calm

__all__ = ["postgres"]


def check_sound(result: soaking.Result, *injected: str) -> None:
    assert result.violations == [], "\n".join(result.lines())
    figures = result.record.figures
    for what in (
        "answered whole",
        "cancelled by their client",
        "activations",
        "revocations",
        "foreign names",
        *injected,
    ):
        assert figures[what] > 0, f"{what}: the soak did not get so far"
    assert figures["answered whole"] > figures["requests"] / 4
    assert figures["entries: request.admitted"] == figures["entries: request.finished"]


def soak_eight(request: pytest.FixtureRequest, place: Path) -> soaking.Result:
    """Eight units, with a disk that is full, batches that fail, a worker that is killed and a service that is."""
    golden: Appliance = request.getfixturevalue("golden")
    site = golden.copy(place / "h", free_port())
    site.start()
    return soaking.soak(site, place, soaking.Plan(240, seed=3, seconds=180, cards=15), None)


def soak_three(request: pytest.FixtureRequest, place: Path) -> soaking.Result:
    """Three units, on a database that is stopped."""
    server: Server = request.getfixturevalue("postgres")
    return soaking.run(place, soaking.Plan(150, seed=4, seconds=180, units=3, cards=15), server)


@pytest.mark.family(keep=1)
@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("soak", "injected"),
    [
        pytest.param(soak_eight, ("disk full", "worker killed", "power cut", "row in a batch"), id="sqlite"),
        pytest.param(soak_three, ("database stopped",), id="postgresql"),
    ],
)
def test_units_under_churn_get_nothing_but_their_own_and_all_of_it_is_recorded(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    soak: Callable[[pytest.FixtureRequest, Path], soaking.Result],
    injected: tuple[str, ...],
) -> None:
    check_sound(soak(request, tmp_path), *(f"injected: {what}" for what in injected))


@pytest.mark.outside
@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_service_that_answers_from_another_units_slot_is_caught(golden: Appliance, tmp_path: Path) -> None:
    """So that the soak can fail: every second request goes to the slot of somebody else."""
    site = golden.copy(tmp_path / "h", free_port())
    site.start()
    plan = soaking.Plan(40, seed=5, seconds=180, units=2, clients=2, cards=1)
    result = soaking.soak(site, tmp_path, plan, None, launcher=("-m", "tests.attacks.misrouted"))
    assert any("expected the mark of" in violation for violation in result.violations), "\n".join(result.lines())


def entry(
    index: int,
    kind: str,
    request: str,
    adapter: str = "a@1",
    outcome: str = "success",
    source: str = "service",
    **more: Any,
) -> Entry:
    fields: dict[str, Any] = {
        "v": 1,
        "index": index,
        "time": "2026-01-15T09:30:00.000Z",
        "type": kind,
        "actor": "service",
        "source": source,
        "subjects": ("order:sha256:0", "adapter:a@1") if kind == "adapter.revoked" else (),
        "outcome": outcome,
        "prev": f"sha256:{'0' * 64}",
        "documents": {},
        "body": {"request": request, "adapter": adapter, "unit": "u", "served_model": "t", "last_token": None, **more},
    }
    return parse_entry(encode_entry(Entry(**fields)))


ADMITTED, FINISHED = entry(0, "request.admitted", "r"), entry(1, "request.finished", "r")


@pytest.mark.parametrize(
    ("entries", "given", "words"),
    [
        ([ADMITTED, FINISHED], Given("r", "a@1", whole=True), ""),
        ([ADMITTED], Given("r", "a@1", whole=False), "expected its end in the ledger"),
        ([FINISHED], Given("r", "a@1", whole=True), "expected both of its entries"),
        ([ADMITTED, FINISHED], Given("s", "a@1", whole=True), "expected both of its entries"),
        ([ADMITTED, FINISHED], Given("r", "b@1", whole=True), "expected b@1 in the ledger, got a@1"),
        (
            [ADMITTED, entry(1, "request.finished", "r", outcome="failure")],
            Given("r", "a@1", whole=True),
            "expected success, got failure",
        ),
        ([ADMITTED, FINISHED], Given("r", "a@1", whole=True, engine="vllm"), "expected vllm in the ledger"),
        ([entry(0, "adapter.revoked", ""), ADMITTED, FINISHED], Given("r", "a@1", whole=True), "after its revocation"),
    ],
)
def test_what_the_ledger_does_not_say_of_an_answer_is_a_violation(
    entries: list[Entry], given: Given, words: str
) -> None:
    record = Record()
    record.keep(given)
    check_entries(entries, record)
    assert any(words in violation for violation in record.violations) == bool(words), record.violations


G1, G2 = "service:gateway-1", "service:gateway-2"
LOADED = [entry(0, "adapter.loaded", "", source=G1), entry(1, "adapter.loaded", "", source=G2)]
REVOKED = entry(2, "adapter.revoked", "")


@pytest.mark.parametrize(
    ("after", "silent"),
    [
        ([entry(3, "adapter.unloaded", "", source=G1), entry(4, "adapter.unloaded", "", source=G2)], []),
        ([entry(3, "adapter.unloaded", "", source=G1)], [G2]),
        ([entry(3, "adapter.unloaded", "", source=G1), entry(4, "process.lost", "", process="gateway-2")], []),
        ([entry(3, "adapter.unloaded", "", source=G1), entry(4, "service.stopped", "", process="gateway-1")], [G2]),
        ([], [G1, G2]),
    ],
)
def test_a_process_that_does_not_say_that_it_unloaded_what_was_revoked_is_a_violation(
    after: list[Entry], silent: list[str]
) -> None:
    record = Record()
    check_words([*LOADED, REVOKED, *after], record)
    assert [one for one in (G1, G2) if any(one in violation for violation in record.violations)] == silent


@pytest.mark.parametrize(
    ("text", "whole", "found"),
    [
        ("abcdefgh", True, ["a@1"]),
        ("abcdefgX", True, ["a@1"]),  # its end was rounded otherwise
        ("abcX", True, ["a@1", "b@1"]),  # as near to one as to the other
        ("abdzzz", True, ["c@1"]),
        ("Xbcdefgh", True, []),
        ("ab", False, ["a@1", "b@1", "c@1"]),
        ("", False, ["a@1", "b@1", "c@1"]),
    ],
)
def test_an_answer_of_vllm_is_the_nearest_adapters_and_one_of_its_own_engine_exactly_its(
    text: str, whole: bool, found: list[str]
) -> None:
    answers = {name: (mark,) for name, mark in {"a@1": "abcdefgh", "b@1": "abcxyz", "c@1": "abdefg"}.items()}
    deployed = Deployment(None, (), {}, {VLLM: answers, BUILTIN: answers})  # type: ignore[arg-type]
    assert deployed.given_by(VLLM, 0, text, whole=whole) == found
    if found != ["a@1"] or text != "abcdefgh":
        assert not whole or deployed.given_by(BUILTIN, 0, text) == []


def test_memory_that_grows_is_a_violation() -> None:
    assert Growth("service", 100 << 20, 200 << 20, requests=1000).is_leak
    assert not Growth("service", 100 << 20, 120 << 20, requests=1000).is_leak
    assert not Growth("service", 100 << 20, 200 << 20, requests=30).is_leak, "too few to say"


def test_memory_is_compared_after_equal_numbers_of_requests() -> None:
    """A slow start takes its memory late in time and early in requests; a leak grows with the requests."""
    slow = [(0, 10 << 20)] * 50 + [(20, 200 << 20), (400, 300 << 20), (800, 310 << 20)]
    assert compare_halves("worker", slow) == Growth("worker", 300 << 20, 310 << 20, requests=400)
    assert not compare_halves("worker", slow).is_leak
    leaking = [(asked, (100 << 20) + asked * (100 << 10)) for asked in range(0, 2001, 7)]
    assert compare_halves("worker", leaking).is_leak
    assert not compare_halves("worker", leaking[:5]).is_leak


@pytest.mark.parametrize(
    ("alone", "beside", "words"),
    [
        ([0.1] * 200, [0.19] * 200, ""),
        ([0.1] * 200, [0.1] * 190 + [0.3] * 10, "at most 2 times the p99 beside the worst unit, got 100 ms"),
        ([0.1] * 200, [0.1] * 5, "expected 100 answers in each phase, got 200 and 5"),
        ([], [], "got 0 and 0"),
    ],
)
def test_a_unit_that_costs_the_others_more_than_their_share_is_a_violation(
    alone: list[float], beside: list[float], words: str
) -> None:
    record = Record(latencies={ALONE: alone, BESIDE: beside})
    evaluate_calm(record)
    assert len(record.violations) == bool(words), record.violations
    assert all(words in violation for violation in record.violations)
