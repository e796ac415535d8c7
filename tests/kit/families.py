"""A long family of cases is a drawn sample of them: another one in each run, so that in time all are tried.

A test marked `family(keep=N)` runs N of its cases, and `family(keep=0.5)` half of them, drawn by a seed that the run's
header tells. `--seed` draws the same again, `--all` takes every case. A test marked `outside` runs only where a marker
expression asks for it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

_SEED = "seed of families"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("families of cases")
    group.addoption("--seed", type=int, help="draw the sample of each long family as the run with this seed did")
    group.addoption("--all", action="store_true", dest="all_cases", help="every case of every long family")


def pytest_configure(config: pytest.Config) -> None:
    given: dict[str, Any] = getattr(config, "workerinput", {})
    if config.option.seed is None:
        config.option.seed = given.get(_SEED, random.SystemRandom().randrange(1_000_000))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Before one of xdist's processes starts: all of them draw the same."""
    node.workerinput[_SEED] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    if config.option.all_cases:
        return "families: every case"
    return f"families: a sample of each long one, --seed {config.option.seed}; every case: --all"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After -k and -m, so that a case which is asked for by its name is run."""
    left_out = set() if "outside" in config.option.markexpr else {i for i in items if i.get_closest_marker("outside")}
    if not config.option.all_cases:
        left_out |= undrawn(items, config.option.seed)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def undrawn(items: Iterable[pytest.Item], seed: int) -> set[pytest.Item]:
    """Return the cases that a run with this seed leaves out. They depend on the cases' names alone."""
    families: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("family") is not None:
            families[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for name, cases in families.items():
        keep = _keep(cases[0], len(cases))
        if len(cases) > keep:
            cases.sort(key=lambda item: item.nodeid)
            left_out |= set(cases) - set(random.Random(f"{seed} {name}").sample(cases, keep))
    return left_out


def _keep(item: pytest.Item, cases: int) -> int:
    marker = item.get_closest_marker("family")
    assert marker is not None
    keep = marker.kwargs.get("keep")
    if isinstance(keep, float) and 0 < keep < 1:
        return max(1, round(keep * cases))
    if not isinstance(keep, int) or keep < 1 or marker.args:
        raise pytest.UsageError(
            f"{item.nodeid}: family: expected keep=N, N at least 1 or a share below 1, got {marker.args} "
            f"{marker.kwargs}"
        )
    return keep
