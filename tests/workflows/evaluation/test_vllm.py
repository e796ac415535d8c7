"""The evaluation with vLLM ends with its run, and its end says nothing about the adapter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.evaluation.quality import VLLM
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.errors import ApplianceError
from appliance.workflows.core.retry import stop_cancelled_work, stop_run_workers, stop_withdrawn_runs
from appliance.workflows.evaluation import verdicts
from scripts.kit.log_builder import LogBuilder, stage
from tests.workflows.core.test_defects import context_of, inmates

pytestmark = pytest.mark.usefixtures("cleared")
__all__ = ["inmates"]

RUN = "r-000001"


def cancel(site: LogBuilder) -> None:
    site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=RUN))


def close(context: Any) -> None:
    context.closing.set()
    for started in list(context.workers.values()):
        started.kill()


ENDS: list[tuple[Callable[[LogBuilder, Any], object], str]] = [
    (lambda site, context: (cancel(site), stop_run_workers(context, RUN)), "cancelled"),
    (lambda site, context: (cancel(site), stop_cancelled_work(context)), "cancelled"),
    (lambda site, context: (site.revoke_dataset(), stop_withdrawn_runs(context)), "revoked"),
    (lambda site, context: close(context), "worker-ended"),
]


class Evaluation(threading.Thread):
    """The evaluation of a trained run with vLLM, in a thread, as a job has it."""

    def __init__(self, site: LogBuilder, context: Any) -> None:
        super().__init__()
        self.site, self.context = site, context
        self.has_task = threading.Event()
        self.error: ApplianceError | None = None
        self.result: dict[str, Any] | None = None

    def run(self) -> None:
        run = self.site.state.runs.get(RUN)
        assert run is not None
        folder = self.context.logs
        order = self.site.train_order()
        try:
            self.result = verdicts.evaluate_on_vllm(self.context, run, order, folder, folder, folder, {})
        except ApplianceError as error:
            self.error = error


@pytest.fixture
def evaluation(home: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    site = stage("trained")
    context = context_of(site, home)
    context.vllm = home / "logs"
    made, carry_out = Evaluation(site, context), verdicts.carry_out

    def send_task(*given: Any, **more: Any) -> Any:
        made.has_task.set()
        return carry_out(*given, **more)

    monkeypatch.setattr(verdicts, "carry_out", send_task)
    return made


@pytest.mark.parametrize(("end", "code"), ENDS, ids=["cancelled", "cancelled elsewhere", "revoked", "service ends"])
def test_it_ends_with_its_run(evaluation: Evaluation, inmates: list[str], end: Callable[..., Any], code: str) -> None:
    inmates += ["inmates.sleep"]
    evaluation.start()
    try:
        assert evaluation.has_task.wait(60)
        end(evaluation.site, evaluation.context)
        evaluation.join(60)
        assert not evaluation.is_alive()
    finally:
        close(evaluation.context)
        evaluation.join(60)
    assert evaluation.error is not None and evaluation.error.code == code
    assert evaluation.result is None and evaluation.context.workers == {}


def test_it_does_not_begin_for_a_run_that_was_cancelled_before_its_worker_could_be_found(
    evaluation: Evaluation, inmates: list[str]
) -> None:
    inmates += ["inmates.sleep"]
    cancel(evaluation.site)
    evaluation.start()
    evaluation.join(120)
    try:
        assert not evaluation.is_alive()
    finally:
        close(evaluation.context)
        evaluation.join(60)
    assert evaluation.error is not None and evaluation.error.code == "cancelled"
    assert not evaluation.has_task.is_set()


def test_a_failure_of_vllm_itself_is_its_refusal(evaluation: Evaluation, inmates: list[str]) -> None:
    inmates += ["inmates.killed"]
    evaluation.run()
    assert evaluation.result == {VLLM: {"refused": "worker-ended"}}
