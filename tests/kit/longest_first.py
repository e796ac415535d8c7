"""Runs the slowest test files first, so that both processes of a run end at about the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
LONGEST = (
    "attacks/test_kill.py",
    "journeys/test_by_hand.py",
    "journeys/test_gates.py",
    "journeys/test_postgresql.py",
    "journeys/test_gptq.py",
    "attacks/test_soak.py",
    "attacks/test_training.py",
    "attacks/test_applications.py",
    "workflows/queries/test_verification.py",
    "attacks/test_keeping.py",
    "worker/test_ranks.py",
    "worker/test_harness.py",
    "store/ledger/test_past.py",
    "web/console/test_signing.py",
    "attacks/test_cost_of_parsers.py",
    "attacks/test_ranks.py",
    "ml/layers/test_architectures.py",
    "ml/lora/test_mixing.py",
    "ml/training/test_methods.py",
    "ml/training/test_stopping.py",
    "ml/training/test_loop.py",
    "ml/serving/test_step_cost.py",
    "ml/serving/test_engine.py",
    "ml/lora/test_mixing_real.py",
    "ml/inference/test_fixed_shapes.py",
    "attacks/test_outsiders.py",
    "attacks/test_validation_sets.py",
)
"""Files that need more than fifteen seconds of the processor. The first two are of different folders, since the tests
of attacks share a site that one process makes while the other would wait for it."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(TESTS).as_posix(), len(places)))
