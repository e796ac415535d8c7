"""Selects the cases of a tier, and writes down what each case took.

The gate (`--gate`) has every case that is not marked `thorough` or `outside`, and the first case of each test that is
marked `essential`. It is the same in each run: families are drawn with seed 0, and hypothesis draws the same examples.
The whole suite (`--all`) has every case; hypothesis draws new examples from `--seed`. Without either option, pytest
runs what is named on its command line, less the cases marked `outside`, and draws families from `--seed`.

A test marked `family(keep=N)` runs N of its cases. `--all` takes every case.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

_SEED = "seed"
_PROCESSOR = "processor_s"
_BEGAN = pytest.StashKey[float]()
_IN_GATE = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--gate", action="store_true", help="the cases that a change passes before it lands")
    group.addoption("--all", action="store_true", dest="all_cases", help="every case, also of long families")
    group.addoption("--seed", type=int, help="draw families and examples as the run with this seed did")
    group.addoption("--report", metavar="FILE", help="write the outcome and the time of each case to FILE, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    given: dict[str, Any] = getattr(config, "workerinput", {})
    option = config.option
    if option.seed is None:
        option.seed = given.get(_SEED, 0 if option.gate else random.SystemRandom().randrange(1_000_000))
    _load_profile(repeatable=option.gate)
    if not option.gate and getattr(option, "hypothesis_seed", None) is None:
        option.hypothesis_seed = option.seed
    if option.report and not given:
        config.pluginmanager.register(Report(Path(option.report)))


def _load_profile(*, repeatable: bool) -> None:
    """Set what holds for each property: no limit on the time of an example, and in the gate the same examples."""
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:  # the environment of scripts/gpu may lack it
        return
    settings.register_profile(
        "tests",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=repeatable,
        database=None,
        print_blob=not repeatable,
    )
    settings.load_profile("tests")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give each of xdist's processes the seed of the run."""
    node.workerinput[_SEED] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    if config.option.gate:
        return "tier: the gate; every case: scripts/test --all"
    if config.option.all_cases:
        return f"tier: every case, --seed {config.option.seed}"
    return f"families: a sample of each long one, --seed {config.option.seed}; every case: --all"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the cases of other tiers, after pytest's -k and -m. Files with long cases come first."""
    option = config.option
    gate = list_gate(items)
    left_out: set[pytest.Item] = set()
    if option.gate:
        left_out = set(items) - gate
    elif not option.all_cases and "outside" not in option.markexpr:
        left_out = {item for item in items if item.get_closest_marker("outside") is not None}
    if not option.all_cases:
        left_out |= list_undrawn((item for item in items if item not in left_out), option.seed)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    first = "essential" if option.gate else "outside"
    long = {item.path for item in items if item.get_closest_marker(first) is not None}
    items.sort(key=lambda item: item.path not in long)
    for item in items:
        item.stash[_IN_GATE] = item in gate


def list_gate(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Return the cases of the gate: one of each essential test, and all that are neither thorough nor outside."""
    gate: set[pytest.Item] = set()
    essential: set[str] = set()
    for item in items:
        if item.get_closest_marker("essential") is not None:
            name = item.nodeid.partition("[")[0]
            if name not in essential:
                gate.add(item)
            essential.add(name)
        elif item.get_closest_marker("thorough") is None and item.get_closest_marker("outside") is None:
            gate.add(item)
    return gate


def list_undrawn(items: Iterable[pytest.Item], seed: int) -> set[pytest.Item]:
    """Return the cases of families that a run with this seed leaves out. They depend on the cases' names alone."""
    families: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("family") is not None:
            families[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for name, cases in families.items():
        keep = _keep(cases[0])
        if len(cases) > keep:
            cases.sort(key=lambda item: item.nodeid)
            left_out |= set(cases) - set(random.Random(f"{seed} {name}").sample(cases, keep))
    return left_out


def _keep(item: pytest.Item) -> int:
    marker = item.get_closest_marker("family")
    assert marker is not None
    keep = marker.kwargs.get("keep")
    if not isinstance(keep, int) or keep < 1 or marker.args:
        raise pytest.UsageError(
            f"{item.nodeid}: family: expected keep=N, N at least 1, got {marker.args} {marker.kwargs}"
        )
    return keep


def _processor_s() -> float:
    """Return the processor time of this process and of the children that it waited for, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEGAN] = _processor_s()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Give the last report of a case its processor time, and whether the gate has it, and as an essential one."""
    report: Any = yield
    if call.when == "teardown":
        report.user_properties.append((_PROCESSOR, _processor_s() - item.stash[_BEGAN]))
        report.user_properties.append(("gate", item.stash[_IN_GATE]))
        report.user_properties.append(("essential", item.get_closest_marker("essential") is not None))
    return report


class Report:
    """Outcome, seconds and processor time of each case, written as JSON at the end of the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cases: dict[str, dict[str, Any]] = {}
        self._broken: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._broken.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = self._cases.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        case["seconds"] += report.duration
        if report.failed:
            case["outcome"] = "failed"
        elif report.skipped and case["outcome"] == "passed":
            case["outcome"] = "xfailed" if hasattr(report, "wasxfail") else "skipped"
        case.update(report.user_properties)

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps({"cases": self._cases, "broken": self._broken}), encoding="utf-8")
