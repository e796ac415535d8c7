"""A private run in the log: epsilon recomputed, its secret bound, its steps counted, its manifest compared."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.records.runs import Guarantee as Kept
from appliance.domain.recipe import privacy
from appliance.domain.recipe.privacy import find_epsilon
from appliance.domain.releases import adapters
from appliance.errors import BadInput, Denied
from appliance.formats.artifacts.manifest import PrivacyGuarantee
from appliance.formats.core.digest import digest_bytes
from scripts.kit.log_builder import LogBuilder, stage
from tests.domain.audit.test_verify import verify
from tests.kit.refusals import refuses

RUN, ROWS, STEPS = "r-000001", 8, 2
DELTA = "0.01"
EPSILON = find_epsilon(ROWS, 4, STEPS, "1.0", DELTA)
NOISY: dict[str, Any] = {"noise": "1.0", "clip": "1.0", "epsilon": EPSILON, "delta": DELTA}
SECRET = digest_bytes(b"a secret")
GUARANTEE = PrivacyGuarantee(epsilon=EPSILON, delta=DELTA)


def private(**changes: Any) -> dict[str, Any]:
    return {"privacy": NOISY | changes, "dropout": "0.0", "max_grad_norm": "0.0"}


@pytest.fixture
def site() -> LogBuilder:
    """With a dataset whose training rows are counted."""
    site = stage("staffed")
    site.import_base()
    site.import_dataset(facts={"rows": 10, "train_rows": ROWS})
    return site


@pytest.fixture
def running(site: LogBuilder) -> LogBuilder:
    site.request_run(recipe=private())
    site.add(site.started(RUN, secret=SECRET))
    site.add(site.checkpointed(RUN))
    return site


def test_an_order_whose_epsilon_is_not_what_its_noise_comes_to_is_refused(site: LogBuilder) -> None:
    for changes in ({"epsilon": "0.1"}, {"noise": "0.5"}, {"delta": "0.001"}):
        with refuses(site, Denied, "privacy, epsilon: expected"):
            site.request_run(recipe=private(**changes))
    with refuses(site, Denied, "epsilon: expected"):
        site.request_run(recipe=private() | {"epochs": 3})
    site.request_run(recipe=private())
    run = site.state.runs.get(RUN)
    assert run is not None and run.planned_steps == STEPS
    assert run.privacy == Kept(epsilon=EPSILON, delta=DELTA)


def test_a_dataset_whose_rows_are_not_counted_trains_nothing_privately() -> None:
    site = stage("imported")
    with refuses(site, Denied, "expected a dataset whose training rows are counted"):
        site.request_run(recipe=private())


def test_a_private_run_binds_its_secret_and_no_other_run_has_one(site: LogBuilder) -> None:
    site.request_run(recipe=private())
    with refuses(site, Denied, "secret: expected a digest, got None"):
        site.add(site.started(RUN))
    site.add(site.started(RUN, secret=SECRET))
    run = site.state.runs.get(RUN)
    assert run is not None and run.secret == SECRET
    site.request_run()
    with refuses(site, Denied, "secret: expected none"):
        site.add(site.started("r-000002", secret=SECRET))


def test_a_private_run_ends_after_the_steps_that_its_epsilon_counts_and_tells_no_loss(running: LogBuilder) -> None:
    with refuses(running, Denied, "final_loss: expected none, got 0.25"):
        running.add(running.finished(RUN))
    running.add(running.checkpointed(RUN, 3))
    with refuses(running, Denied, "planned_steps: expected 2, got 3"):
        running.add(running.finished(RUN, steps=3, final_loss=None))


def test_the_manifest_says_what_the_run_guarantees_and_the_log_verifies(running: LogBuilder) -> None:
    running.add(running.finished(RUN, final_loss=None))
    for lie in (None, PrivacyGuarantee(epsilon="0.1", delta=DELTA), PrivacyGuarantee(epsilon=EPSILON, delta="0.001")):
        with refuses(running, Denied, "manifest, privacy: expected"):
            running.seal(RUN, privacy=lie)
    running.seal(RUN, privacy=GUARANTEE)
    assert verify(running).verdict == "verified"


def test_a_verifier_finds_a_log_whose_epsilon_is_a_lie(site: LogBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a service with other code would have written."""
    with monkeypatch.context() as lying:
        lying.setattr(privacy, "find_epsilon", lambda *given: "0.1")
        site.request_run(recipe=private(epsilon="0.1"))
        assert verify(site).verdict == "verified", "by the code that lies"
    report = verify(site)
    assert report.verdict == "failed"
    assert any(f"epsilon: expected {EPSILON}" in finding.message for finding in report.findings)


def test_a_verifier_finds_a_manifest_whose_epsilon_is_a_lie(
    running: LogBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a service with other code would have sealed: the run's epsilon is right, the adapter states less."""
    running.add(running.finished(RUN, final_loss=None))
    lie = PrivacyGuarantee(epsilon="0.1", delta=DELTA)
    with monkeypatch.context() as lying:
        lying.setattr(adapters, "guarantee_of", lambda run: lie)
        running.seal(RUN, privacy=lie)
        assert verify(running).verdict == "verified", "by the code that lies"
    report = verify(running)
    assert report.verdict == "failed"
    assert any("manifest, privacy: expected" in finding.message for finding in report.findings)


def test_an_adapter_of_a_run_that_was_not_private_says_nothing_of_privacy(site: LogBuilder) -> None:
    site.train()
    with refuses(site, Denied, "manifest, privacy: expected None"):
        site.seal(RUN, privacy=GUARANTEE)


@pytest.mark.parametrize(
    "bad", [{"epsilon": "3"}, {"epsilon": "-1.0"}, {"delta": "1e-5"}, {"delta": "0.0000000000001"}]
)
def test_a_manifest_has_its_guarantee_in_decimal_text(bad: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=r"manifest, privacy, .*expected a decimal fraction"):
        PrivacyGuarantee(**{"epsilon": "3.0", "delta": "0.001"} | bad)


def test_a_private_run_stays_on_this_machine(site: LogBuilder) -> None:
    order = site.train_order(recipe=private(), on="slurm")
    assert [reason.code for reason in list_refusal_reasons(site.state, order, site.now)] == ["private-run-on-slurm"]
    with refuses(site, Denied, "A run with privacy stays on this machine, because its secret does."):
        site.request_run(recipe=private(), on="slurm")
